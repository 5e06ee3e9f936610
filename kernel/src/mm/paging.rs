//! The kernel's page tables, shared by all CPUs.
//!
//! Changes take [`TABLES`]; whoever takes a mapping away runs the barrier across CPUs before the
//! addresses are used again (see [`super::virt`]).

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;
use x86_64::structures::paging::mapper::{Mapper, OffsetPageTable};
use x86_64::structures::paging::{
    FrameAllocator, Page, PageSize, PageTable, PageTableFlags, PhysFrame, Size1GiB, Size2MiB,
    Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use super::frames::FRAMES;
use super::{DIRECT, PAGE};

/// How a range is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Readable.
    Read,
    /// Readable and executable.
    Execute,
    /// Readable and writable.
    Write,
    /// Readable and writable, uncached: device registers.
    Device,
    /// Writable; writes are combined where the CPU can: video memory.
    Combine,
}

impl Access {
    fn flags(self) -> PageTableFlags {
        let no_execute = if crate::arch::x86_64::has_no_execute() {
            PageTableFlags::NO_EXECUTE
        } else {
            PageTableFlags::empty()
        };
        PageTableFlags::PRESENT
            | match self {
                Self::Read => no_execute,
                Self::Execute => PageTableFlags::empty(),
                Self::Write => PageTableFlags::WRITABLE | no_execute,
                Self::Device => {
                    PageTableFlags::WRITABLE
                        | PageTableFlags::NO_CACHE
                        | PageTableFlags::WRITE_THROUGH
                        | no_execute
                }
                // Entry 1 of the page attribute table.
                Self::Combine => {
                    PageTableFlags::WRITABLE | PageTableFlags::WRITE_THROUGH | no_execute
                }
            }
    }
}

/// No memory for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

static ROOT: AtomicU64 = AtomicU64::new(0);
/// Held while tables change.
static TABLES: Mutex<()> = Mutex::new(());

/// The physical address of the top-level table, as CR3 takes it.
pub fn root() -> u64 {
    ROOT.load(Ordering::Relaxed)
}

/// Sets the table that [`map`] and [`unmap`] change.
pub(super) fn set_root(phys: u64) {
    ROOT.store(phys, Ordering::Relaxed);
}

/// Hands out zeroed frames for tables.
pub(super) struct TableFrames<F>(pub(super) F);

// SAFETY: whoever makes one gives frames that nobody else uses.
unsafe impl<F: FnMut() -> Option<u64>> FrameAllocator<Size4KiB> for TableFrames<F> {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        (self.0)().map(|phys| PhysFrame::containing_address(PhysAddr::new(phys)))
    }
}

/// Maps `len` bytes at `virt` to `phys` in `tables`, with the largest pages that fit.
pub(super) fn map_in(
    tables: &mut OffsetPageTable<'_>,
    frames: &mut impl FrameAllocator<Size4KiB>,
    virt: u64,
    phys: u64,
    len: u64,
    access: Access,
) -> Result<(), NoMemory> {
    let flags = access.flags();
    let gib_pages = crate::arch::x86_64::has_gib_pages();
    let mut done = 0;
    while done < len {
        let (virt, phys, left) = (virt + done, phys + done, len - done);
        let fits = |size: u64| (virt | phys).is_multiple_of(size) && left >= size;
        done += if gib_pages && fits(Size1GiB::SIZE) {
            map_one::<Size1GiB>(tables, frames, virt, phys, flags)?
        } else if fits(Size2MiB::SIZE) {
            map_one::<Size2MiB>(tables, frames, virt, phys, flags)?
        } else {
            map_one::<Size4KiB>(tables, frames, virt, phys, flags)?
        };
    }
    Ok(())
}

fn map_one<'t, S: PageSize + core::fmt::Debug>(
    tables: &mut OffsetPageTable<'t>,
    frames: &mut impl FrameAllocator<Size4KiB>,
    virt: u64,
    phys: u64,
    flags: PageTableFlags,
) -> Result<u64, NoMemory>
where
    OffsetPageTable<'t>: Mapper<S>,
{
    let page = Page::<S>::containing_address(VirtAddr::new(virt));
    let frame = PhysFrame::<S>::containing_address(PhysAddr::new(phys));
    let parents = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
    // SAFETY: the callers map ranges that were not mapped before, of memory that they own; nothing
    // is cached for them, so that nothing need be flushed.
    match unsafe { tables.map_to_with_table_flags(page, frame, flags, parents, frames) } {
        Ok(flush) => {
            flush.ignore();
            Ok(S::SIZE)
        }
        // Already mapped: a mistake of the caller's, which must not be logged here, for the heap
        // may be growing.
        Err(_) => Err(NoMemory),
    }
}

fn with_tables<T>(change: impl FnOnce(&mut OffsetPageTable<'_>) -> T) -> T {
    let _tables = TABLES.lock();
    // SAFETY: the root table, reached through the direct map; `TABLES` makes this the only
    // reference to it.
    let top = unsafe { &mut *super::direct(root()).cast::<PageTable>() };
    // SAFETY: all tables lie in memory that the direct map covers.
    change(&mut unsafe { OffsetPageTable::new(top, VirtAddr::new(DIRECT)) })
}

fn zeroed_frame() -> Option<u64> {
    let phys = FRAMES.lock().alloc(PAGE, PAGE, u64::MAX)?;
    // SAFETY: just allocated, a whole page.
    unsafe { super::direct(phys).write_bytes(0, PAGE) };
    Some(phys)
}

/// Maps `len` bytes (whole pages) at the unused addresses from `virt` to `phys`.
pub fn map(virt: u64, phys: u64, len: u64, access: Access) -> Result<(), NoMemory> {
    with_tables(|tables| {
        map_in(
            tables,
            &mut TableFrames(zeroed_frame),
            virt,
            phys,
            len,
            access,
        )
    })
}

/// Whether an address is mapped. Takes no lock: for the report of a panic, when nothing changes
/// tables any more.
pub fn is_mapped(virt: u64) -> bool {
    use x86_64::structures::paging::Translate;
    // SAFETY: as in `with_tables`, but for the lock, whose holder may have been stopped; a torn
    // entry is read as mapped or not mapped.
    let top = unsafe { &mut *super::direct(root()).cast::<PageTable>() };
    // SAFETY: as in `with_tables`.
    let tables = unsafe { OffsetPageTable::new(top, VirtAddr::new(DIRECT)) };
    root() != 0
        && tables
            .translate_addr(VirtAddr::new_truncate(virt))
            .is_some()
}

/// Calls `each` with the address of every page that is mapped, whatever its size, and whether it
/// can be written and executed.
pub fn for_each_page(mut each: impl FnMut(u64, bool, bool)) {
    with_tables(|tables| walk(tables.level_4_table(), 4, 0, true, true, &mut each));
}

fn walk(
    table: &PageTable,
    level: u8,
    base: u64,
    writable: bool,
    executable: bool,
    each: &mut impl FnMut(u64, bool, bool),
) {
    let shift = 12 + 9 * (level - 1);
    for (index, entry) in table.iter().enumerate() {
        let flags = entry.flags();
        if !flags.contains(PageTableFlags::PRESENT) {
            continue;
        }
        let virt = VirtAddr::new_truncate(base | (index as u64) << shift).as_u64();
        let writable = writable && flags.contains(PageTableFlags::WRITABLE);
        let executable = executable && !flags.contains(PageTableFlags::NO_EXECUTE);
        if level == 1 || flags.contains(PageTableFlags::HUGE_PAGE) {
            each(virt, writable, executable);
        } else {
            // SAFETY: a table of this hierarchy, in memory that the direct map covers; `TABLES` is
            // held.
            let below = unsafe { &*super::direct(entry.addr().as_u64()).cast::<PageTable>() };
            walk(below, level - 1, virt, writable, executable, each);
        }
    }
}

/// Takes the mapping of `len` bytes at `virt` away, calling `each` with the physical address and
/// length of each page that was mapped. Other CPUs may see the mapping until the barrier.
pub fn unmap(virt: u64, len: u64, mut each: impl FnMut(u64, u64)) {
    with_tables(|tables| {
        let mut done = 0;
        while done < len {
            let at = VirtAddr::new(virt + done);
            let small = Page::<Size4KiB>::containing_address(at);
            if let Ok((frame, flush)) = tables.unmap(small) {
                flush.flush();
                each(frame.start_address().as_u64(), Size4KiB::SIZE);
                done += Size4KiB::SIZE;
                continue;
            }
            let large = Page::<Size2MiB>::containing_address(at);
            match tables.unmap(large) {
                Ok((frame, flush)) => {
                    flush.flush();
                    each(frame.start_address().as_u64(), Size2MiB::SIZE);
                    done += Size2MiB::SIZE;
                }
                Err(_) => done += Size4KiB::SIZE,
            }
        }
    });
}
