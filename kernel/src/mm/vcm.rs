//! The kernel's addresses as contexts of the crate `vcm`, behind the page tables of the CPUs, and
//! memory that is one range there while its frames are scattered.
//!
//! Large pages have addresses of their own: where a table of small ones has been, none fits until the
//! table is gone, and with it what CPUs may know of it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::ptr::NonNull;

use hal::RawScattered;
use hal::dma::Extent;
use spin::LazyLock;
use vcm::{Access, Mmu, MmuError, PageSize, PageSizes, Physical, Reservation, Run, Vcm};

use super::frames::FRAMES;
use super::{CONTIGUOUS, PAGE, paging};
use crate::arch::x86_64::smp;

/// Where a half of [`CONTIGUOUS`] ends and the other begins.
const MIDDLE: u64 = CONTIGUOUS.start + (CONTIGUOUS.end - CONTIGUOUS.start) / 2;

/// The kernel's page tables, shared by all CPUs, for pages of one size: always active.
struct Tables(PageSize);

impl Mmu for Tables {
    fn page_sizes(&self) -> PageSizes {
        match self.0 {
            PageSize::Kib4 => PageSizes::KIB4,
            _ => PageSizes::MIB2,
        }
    }

    fn range(&self) -> Range<u64> {
        match self.0 {
            PageSize::Kib4 => CONTIGUOUS.start..MIDDLE,
            _ => MIDDLE..CONTIGUOUS.end,
        }
    }

    fn map(&self, run: Run, access: Access) -> Result<(), MmuError> {
        let access = if access.contains(Access::WRITE) {
            paging::Access::Write
        } else {
            paging::Access::Read
        };
        // A page at a time: no larger one is taken than `unmap` knows.
        let page = run.page.bytes();
        for done in (0..run.len).step_by(page as usize) {
            if paging::map(run.at + done, run.phys + done, page, access).is_err() {
                paging::unmap(run.at, done, |_, _| {});
                return Err(MmuError::NoMemory);
            }
        }
        Ok(())
    }

    fn unmap(&self, range: &Range<u64>) {
        paging::unmap(range.start, range.end - range.start, |_, _| {});
    }

    fn flush(&self, _: &[Range<u64>]) -> Result<(), MmuError> {
        smp::barrier().map_err(|_| MmuError::TimedOut)
    }
}

/// The context of the kernel's addresses in pages of 4 KiB. `None` never: its range has pages.
pub fn context() -> Option<&'static Arc<Vcm>> {
    static CONTEXT: LazyLock<Option<Arc<Vcm>>> = LazyLock::new(|| active("cpu", PageSize::Kib4));
    CONTEXT.as_ref()
}

/// That of the addresses in pages of 2 MiB.
pub fn large_context() -> Option<&'static Arc<Vcm>> {
    static CONTEXT: LazyLock<Option<Arc<Vcm>>> = LazyLock::new(|| active("cpu-2m", PageSize::Mib2));
    CONTEXT.as_ref()
}

fn active(name: &str, page: PageSize) -> Option<Arc<Vcm>> {
    let context = Vcm::new(name, Arc::new(Tables(page)))?;
    context.activate().ok()?;
    Some(context)
}

/// Frames of one size, of one owner.
struct Frames {
    chunk: usize,
    pieces: Vec<u64>,
}

impl Frames {
    /// So many, in descending order: none is right behind the one before it.
    fn new(count: usize, chunk: usize) -> Option<Self> {
        // What cannot be is not begun: even its list may be larger than all memory.
        let free = {
            let all = FRAMES.lock();
            all.total() - all.used()
        };
        if count as u64 > free / chunk as u64 {
            return None;
        }
        let mut frames = Self {
            chunk,
            pieces: Vec::new(),
        };
        frames.pieces.try_reserve_exact(count).ok()?;
        for _ in 0..count {
            let phys = FRAMES.lock().alloc(chunk, chunk, u64::MAX)?;
            frames.pieces.push(phys);
        }
        frames.pieces.sort_unstable_by(|a, b| b.cmp(a));
        Some(frames)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let mut all = FRAMES.lock();
        for &phys in &self.pieces {
            // SAFETY: allocated so in `new`; who drops the owner has let go of the memory.
            unsafe { all.free(phys, self.chunk, self.chunk) };
        }
    }
}

/// Scattered frames that are mapped. The context has them as their reservation's memory, and frees
/// them once no CPU can reach them there.
struct Mapped(Reservation);

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Err(error) = self.0.unbind() {
            log::warn!("WARN {error}; {:#x} bytes of memory lost", self.0.size());
        }
    }
}

/// `len` bytes in scattered frames of `chunk`, a power of two of which `len` is a multiple. Their owner
/// frees them.
pub fn frames(len: usize, chunk: usize) -> Option<Physical> {
    if chunk < PAGE || !chunk.is_power_of_two() || !len.is_multiple_of(chunk) {
        return None;
    }
    let frames = Arc::new(Frames::new(len / chunk, chunk)?);
    let pieces = frames.pieces.iter();
    let extents = pieces.map(|&phys| Extent { phys, len: chunk });
    Some(Physical::new(extents).kept_by(frames))
}

/// Memory as [`hal::Machine::alloc_scattered`] wants it.
pub fn alloc_scattered(len: usize, chunk: usize) -> Option<RawScattered> {
    let memory = frames(len, chunk)?;
    let pieces = memory.pieces().iter().map(|piece| piece.phys).collect();
    let large = (chunk as u64).is_multiple_of(PageSize::Mib2.bytes());
    let context = if large { large_context() } else { context() }?;
    let mapped = context.map(memory, Access::READ | Access::WRITE).ok()?;
    Some(RawScattered {
        ptr: NonNull::new(mapped.start() as *mut u8)?,
        chunk,
        pieces,
        owner: Box::new(Mapped(mapped)),
    })
}
