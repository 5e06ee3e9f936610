//! A machine inside a process, for tests: tasks on threads, an arena as physical memory.
//!
//! The arena's physical addresses start at [`ARENA_PHYS`], so that no test confuses them with
//! pointers; memory in many pieces has further ones. A device model reaches the arena by [`bus_read`] and [`bus_write`].
//! [`install_default`] runs by itself at the first use.

use alloc::alloc::{Layout, alloc_zeroed};
mod counting;
mod probe;
mod scattered;
mod tasks;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::Future;
use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering, fence};
use core::task::Waker;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use buddy_system_allocator::FrameAllocator;
pub use counting::CountingHeap;
pub use probe::{Moment, probe};
use tasks::{Timers, lock};

use crate::cpu::{BarrierTimeout, COUNTERS};
use crate::dma::{Buffer, DmaOps, DmaSpace, MapError, PAGE, RawMapping};
use crate::machine::{Machine, RawMemory, RawScattered, TimerId, install};

/// Physical address of the arena's first byte.
pub const ARENA_PHYS: u64 = 0x1_0000_0000;
/// Bytes in the arena.
pub const ARENA_LEN: usize = 256 << 20;
/// How many CPUs the host pretends to have; each thread is one of them. Under Miri the tables of
/// fewer are written in bearable time.
pub const CPUS: usize = if cfg!(miri) { 4 } else { 16 };

struct Arena {
    base: NonNull<u8>,
    /// Its pages, by number. Kept outside the arena, where no device can write them.
    free: Mutex<FrameAllocator>,
}

// SAFETY: `base` is only used to compute addresses; the memory behind it is handed out to one
// owner at a time.
unsafe impl Sync for Arena {}
// SAFETY: as above.
unsafe impl Send for Arena {}

fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        let layout = Layout::from_size_align(ARENA_LEN, ARENA_LEN).expect("a power of two");
        // SAFETY: the layout is not empty. The memory is never freed: it is the machine's.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory for the arena");
        let mut free = FrameAllocator::new();
        free.add_frame(0, ARENA_LEN / PAGE);
        Arena {
            base,
            free: Mutex::new(free),
        }
    })
}

struct Host {
    start: Instant,
    timers: Timers,
}

impl Machine for Host {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn set_timer(&self, deadline_ns: u64, waker: Waker) -> TimerId {
        // The end of time, where it is too far off to be told.
        let deadline = self.start.checked_add(Duration::from_nanos(deadline_ns));
        let never = || Instant::now() + Duration::from_secs(1 << 30);
        host().timers.set(deadline.unwrap_or_else(never), waker)
    }

    fn cancel_timer(&self, timer: TimerId) {
        self.timers.cancel(timer);
    }

    fn spawn(
        &self,
        _: &'static str,
        _: Option<usize>,
        task: Pin<Box<dyn Future<Output = ()> + Send>>,
    ) {
        tasks::spawn(task);
    }

    fn alloc_memory(&self, len: usize, align: usize, limit: u64) -> Option<RawMemory> {
        if limit < ARENA_PHYS + ARENA_LEN as u64 || len > ARENA_LEN {
            return None;
        }
        // Blocks are powers of two, aligned to their size: one of at least the alignment is
        // aligned, and its length alone tells its size when it comes back.
        let len = len.max(align);
        let arena = arena();
        let offset = lock(&arena.free).alloc(len / PAGE)? * PAGE;
        // SAFETY: `offset` is inside the arena.
        let ptr = unsafe { arena.base.add(offset) };
        Some(RawMemory {
            ptr,
            phys: ARENA_PHYS + offset as u64,
            len,
        })
    }

    unsafe fn free_memory(&self, memory: RawMemory) {
        let offset = (memory.phys - ARENA_PHYS) as usize;
        lock(&arena().free).dealloc(offset / PAGE, memory.len / PAGE);
    }

    fn alloc_scattered(&self, len: usize, chunk: usize) -> Option<RawScattered> {
        let block = self.alloc_memory(len, chunk, u64::MAX)?;
        Some(scattered::scatter(block, len, chunk))
    }

    fn barrier(&self) -> Result<(), BarrierTimeout> {
        // One process: a sequentially consistent fence orders this thread; threads that the host
        // models as CPUs use sequentially consistent counters below.
        fence(Ordering::SeqCst);
        probe::at(Moment::Barrier)
    }

    fn is_online(&self, cpu: usize) -> bool {
        cpu < CPUS
    }
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| Host {
        start: Instant::now(),
        timers: Timers::default(),
    })
}

/// Installs the host as the machine. Further calls do nothing.
pub fn install_default() {
    install(host());
}

/// Runs `future` to its end on the caller's thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tasks::block_on(future)
}

struct Direct;

impl DmaOps for Direct {
    fn map(&self, buffers: &[Buffer<'_>], mapping: &mut RawMapping) -> Result<(), MapError> {
        mapping.push_direct(buffers);
        Ok(())
    }
    fn unmap(&self, _: &RawMapping) {}
}

/// A device's address space in which addresses are physical ones.
pub fn direct_space() -> DmaSpace {
    DmaSpace::new(Arc::new(Direct))
}

/// An access outside the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusError;

/// A pointer to `len` bytes of the arena at physical address `phys`, for a device model.
pub fn bus_pointer(phys: u64, len: usize) -> Result<NonNull<u8>, BusError> {
    let phys = scattered::resolve(phys, len).ok_or(BusError)?;
    let offset = phys.checked_sub(ARENA_PHYS).ok_or(BusError)? as usize;
    if offset.checked_add(len).is_none_or(|end| end > ARENA_LEN) {
        return Err(BusError);
    }
    // SAFETY: inside the arena, as just checked.
    Ok(unsafe { arena().base.add(offset) })
}

/// Reads physical memory as a device would.
pub fn bus_read(phys: u64, bytes: &mut [u8]) -> Result<(), BusError> {
    let from = bus_pointer(phys, bytes.len())?;
    // SAFETY: both ranges are valid and, the arena never being lent as `bytes`, apart.
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    Ok(())
}

/// Writes physical memory as a device would: a driver that lets go of memory too early sees it.
pub fn bus_write(phys: u64, bytes: &[u8]) -> Result<(), BusError> {
    let to = bus_pointer(phys, bytes.len())?;
    // SAFETY: as in `bus_read`.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    Ok(())
}

/// Reads the word at `phys`, a multiple of 8, as a device would: in one access, and ordered before
/// its later ones.
pub fn bus_load64(phys: u64) -> Result<u64, BusError> {
    Ok(u64::from_le(bus_word(phys)?.load(Ordering::Acquire)))
}

/// Writes the word at `phys`, a multiple of 8, as a device would: in one access, and ordered after
/// its earlier ones.
pub fn bus_store64(phys: u64, value: u64) -> Result<(), BusError> {
    bus_word(phys)?.store(value.to_le(), Ordering::Release);
    Ok(())
}

fn bus_word(phys: u64) -> Result<&'static AtomicU64, BusError> {
    if !phys.is_multiple_of(8) {
        return Err(BusError);
    }
    let word = bus_pointer(phys, 8)?;
    // SAFETY: inside the arena, which lives forever, and aligned, as the arena is.
    Ok(unsafe { AtomicU64::from_ptr(word.as_ptr().cast()) })
}

/// Copies physical memory as a device would, as if by way of a buffer of its own.
pub fn bus_copy(src: u64, dst: u64, len: usize) -> Result<(), BusError> {
    let (from, to) = (bus_pointer(src, len)?, bus_pointer(dst, len)?);
    // SAFETY: both ranges are inside the arena; they may overlap.
    unsafe { core::ptr::copy(from.as_ptr(), to.as_ptr(), len) };
    Ok(())
}

static COUNTER: [[AtomicIsize; COUNTERS]; CPUS] =
    [const { [const { AtomicIsize::new(0) }; COUNTERS] }; CPUS];

// The link-time functions of `crate::cpu`.

#[unsafe(no_mangle)]
fn longshore_hal_cpu_current() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    std::thread_local! {
        static CPU: usize = NEXT.fetch_add(1, Ordering::Relaxed) % CPUS;
    }
    CPU.with(|cpu| *cpu)
}

#[unsafe(no_mangle)]
fn longshore_hal_cpu_possible() -> usize {
    CPUS
}

#[unsafe(no_mangle)]
fn longshore_hal_local_add(counter: usize, delta: isize) {
    // What a probe answers concerns barriers alone.
    let _ = probe::at(Moment::Counting);
    COUNTER[longshore_hal_cpu_current()][counter].fetch_add(delta, Ordering::SeqCst);
    let _ = probe::at(Moment::Count { counter, delta });
}

#[unsafe(no_mangle)]
fn longshore_hal_local_inc(counter: usize) {
    longshore_hal_local_add(counter, 1);
}

#[unsafe(no_mangle)]
fn longshore_hal_local_dec(counter: usize) {
    longshore_hal_local_add(counter, -1);
}

#[unsafe(no_mangle)]
fn longshore_hal_local_sum(counter: usize) -> isize {
    COUNTER
        .iter()
        .map(|cpu| cpu[counter].load(Ordering::SeqCst))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reaches_the_arena_and_nothing_else() {
        let memory = crate::dma::Memory::new(64).unwrap();
        let phys = memory.extent().phys;
        bus_store64(phys, 0x1122_3344_5566_7788).unwrap();
        bus_copy(phys, phys + 8, 8).unwrap();
        assert_eq!(bus_load64(phys + 8), Ok(0x1122_3344_5566_7788));
        assert_eq!(memory[15], 0x11);
        assert_eq!(bus_load64(phys + 4), Err(BusError), "misaligned");
        let end = ARENA_PHYS + ARENA_LEN as u64;
        assert_eq!(bus_load64(end), Err(BusError));
        assert_eq!(bus_store64(0, 1), Err(BusError));
        assert_eq!(bus_copy(phys, end - 4, 8), Err(BusError));
        assert_eq!(bus_copy(u64::MAX - 2, phys, 8), Err(BusError));
    }
}
