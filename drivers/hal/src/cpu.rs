//! CPUs: who am I, counters of my own, a barrier across all.
//!
//! The functions on hot paths are resolved at link time, so that the linker inlines them: a
//! machine defines, with `#[unsafe(no_mangle)]` and the Rust ABI,
//!
//! ```text
//! fn longshore_hal_cpu_current() -> usize;
//! fn longshore_hal_cpu_possible() -> usize;
//! fn longshore_hal_local_add(counter: usize, delta: isize);
//! fn longshore_hal_local_inc(counter: usize);
//! fn longshore_hal_local_dec(counter: usize);
//! fn longshore_hal_local_sum(counter: usize) -> isize;
//! ```
//!
//! The first must be below the second, and that at most [`MAX_CPUS`].

use core::fmt;

use crate::machine;

/// CPUs that there may be at most.
pub const MAX_CPUS: usize = 256;
/// How many CPU-local counters a machine offers: every `u8` names one, so that a counter named by
/// a byte needs no bounds check.
pub const COUNTERS: usize = 256;
/// The last so many of them are the kernel's own; those below are for drivers.
pub const KERNEL_COUNTERS: usize = 8;

unsafe extern "Rust" {
    safe fn longshore_hal_cpu_current() -> usize;
    safe fn longshore_hal_cpu_possible() -> usize;
    safe fn longshore_hal_local_add(counter: usize, delta: isize);
    safe fn longshore_hal_local_inc(counter: usize);
    safe fn longshore_hal_local_dec(counter: usize);
    safe fn longshore_hal_local_sum(counter: usize) -> isize;
}

/// The CPU that runs the caller. A task may be elsewhere after its next await.
#[inline(always)]
pub fn current() -> usize {
    let cpu = longshore_hal_cpu_current();
    // SAFETY: the machine keeps to the limit, as the module's documentation asks of it. Said here,
    // it saves who indexes by CPU a comparison on hot paths.
    unsafe { core::hint::assert_unchecked(cpu < MAX_CPUS) };
    cpu
}

/// One more than the highest CPU number there will ever be.
#[inline(always)]
pub fn possible() -> usize {
    longshore_hal_cpu_possible()
}

/// Whether `cpu` runs tasks now.
pub fn is_online(cpu: usize) -> bool {
    cpu < possible() && machine().is_online(cpu)
}

/// The CPUs that run tasks now, by rising number.
pub fn online() -> impl DoubleEndedIterator<Item = usize> + Clone {
    (0..possible()).filter(|&cpu| is_online(cpu))
}

/// The NUMA node of `cpu`, by the numbers that functions have too; `None` where it is not known.
pub fn node(cpu: usize) -> Option<u32> {
    machine().node(cpu)
}

/// Adds to this CPU's counter `counter` (below [`COUNTERS`]): one instruction without a lock
/// prefix, which an interrupt on this CPU cannot tear. No other CPU writes it.
#[inline(always)]
pub fn local_add(counter: usize, delta: isize) {
    longshore_hal_local_add(counter, delta);
}

/// Adds one to this CPU's counter, as [`local_add`] does, in a shorter instruction.
#[inline(always)]
pub fn local_inc(counter: usize) {
    longshore_hal_local_inc(counter);
}

/// Takes one from this CPU's counter, as [`local_add`] does, in a shorter instruction.
#[inline(always)]
pub fn local_dec(counter: usize) {
    longshore_hal_local_dec(counter);
}

/// The sum of counter `counter` over all possible CPUs. Each CPU's share is read at a different
/// moment; after [`barrier`], increments that preceded it are seen.
pub fn local_sum(counter: usize) -> isize {
    longshore_hal_local_sum(counter)
}

/// A CPU did not answer the barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierTimeout {
    /// The first CPU that did not answer.
    pub cpu: usize,
}

impl fmt::Display for BarrierTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {} did not answer the barrier", self.cpu)
    }
}

/// Returns once every online CPU has executed a full barrier after the call began, so that its
/// earlier stores are visible to the caller. Task context, interrupts on.
pub fn barrier() -> Result<(), BarrierTimeout> {
    machine().barrier()
}
