//! The services that a machine offers once, as one object.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::Waker;

use crate::cpu::BarrierTimeout;

/// Names a pending timer of a [`Machine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerId(pub u64);

/// Memory as a machine hands it out: mapped for the CPU, contiguous for devices.
#[derive(Clone, Copy, Debug)]
pub struct RawMemory {
    /// Where the CPU sees it.
    pub ptr: NonNull<u8>,
    /// Where it lies in physical memory.
    pub phys: u64,
    /// Bytes, a multiple of the page size.
    pub len: usize,
}

/// Memory as a machine hands it out in pieces: contiguous for the CPU alone.
pub struct RawScattered {
    /// Where the CPU sees it.
    pub ptr: NonNull<u8>,
    /// Bytes in a piece.
    pub chunk: usize,
    /// Where each piece lies in physical memory, in the order in which the CPU sees them.
    pub pieces: Vec<u64>,
    /// Takes it back when it is dropped: neither a CPU nor a device touches it after that.
    pub owner: Box<dyn Send + Sync>,
}

/// The services of a machine. All are called in task context.
pub trait Machine: Sync {
    /// Nanoseconds since boot; never goes back, the same on every CPU.
    fn now_ns(&self) -> u64;

    /// Wakes `waker` once `deadline_ns` has come. A deadline in the past wakes at the next
    /// opportunity.
    fn set_timer(&self, deadline_ns: u64, waker: Waker) -> TimerId;

    /// Forgets a timer. One that has fired already is not an error.
    fn cancel_timer(&self, timer: TimerId);

    /// Runs a task: on CPU `cpu`, or on the caller's. A CPU that is not online is replaced by
    /// one that is.
    fn spawn(
        &self,
        name: &'static str,
        cpu: Option<usize>,
        task: Pin<Box<dyn Future<Output = ()> + Send>>,
    );

    /// Physically contiguous memory of at least `len` bytes, aligned to `align` (a power of two,
    /// at least a page), every byte below the physical address `limit`. Contents are undefined.
    fn alloc_memory(&self, len: usize, align: usize, limit: u64) -> Option<RawMemory>;

    /// Takes memory back.
    ///
    /// # Safety
    /// `memory` came from [`Machine::alloc_memory`] of this machine, was not freed before, and
    /// neither a CPU nor a device will touch it again.
    unsafe fn free_memory(&self, memory: RawMemory);

    /// Writes what CPUs hold of this memory in caches back to it, before their later writes. Nothing
    /// to do on a machine whose devices all look into the caches. `memory` need not be whole pages.
    fn write_back(&self, _memory: RawMemory) {}

    /// Memory of exactly `len` bytes, in pieces of `chunk` bytes, each aligned to its size, none of them
    /// right behind the one before it. `chunk` is a power of two, at least a page, and `len` a multiple
    /// of it. Contents are undefined. `None` also where the machine cannot let the CPU see it as one.
    fn alloc_scattered(&self, _len: usize, _chunk: usize) -> Option<RawScattered> {
        None
    }

    /// Returns once every CPU that is online has executed a full memory barrier after the call
    /// began. Bounded: a CPU that does not answer is an error.
    fn barrier(&self) -> Result<(), BarrierTimeout>;

    /// Whether CPU `cpu` is online. Those at or above [`crate::cpu::possible`] never are.
    fn is_online(&self, cpu: usize) -> bool;

    /// The NUMA node of CPU `cpu`; `None` where that is not known.
    fn node(&self, _cpu: usize) -> Option<u32> {
        None
    }
}

static MACHINE: spin::Once<&'static dyn Machine> = spin::Once::new();

/// Installs the machine. The first call counts; the kernel makes it before it starts a driver.
pub fn install(machine: &'static dyn Machine) {
    MACHINE.call_once(|| machine);
}

/// The installed machine.
///
/// # Panics
/// Where none was installed: a mistake in the kernel's start-up, which no input can cause.
pub(crate) fn machine() -> &'static dyn Machine {
    #[cfg(feature = "host")]
    crate::host::install_default();
    *MACHINE
        .get()
        .expect("hal::install comes before the first driver")
}
