//! From the loader's page tables to the kernel's own.
//!
//! The tables are built while the loader's identity mapping of the first 4 GiB is in force, in
//! frames taken from the largest piece of usable memory there; what is left of that piece, and
//! all other usable memory, goes to the frame allocator once the direct map exists.

use x86_64::registers::control::Cr3;
use x86_64::structures::paging::mapper::OffsetPageTable;
use x86_64::structures::paging::{PageTable, PhysFrame};
use x86_64::{PhysAddr, VirtAddr};

use super::frames::FRAMES;
use super::paging::{self, Access, NoMemory, TableFrames};
use super::{DIRECT, IMAGE, PAGE};
use crate::arch::x86_64::physical_address_bits;
use crate::boot_info::BootInfo;

unsafe extern "C" {
    static __boot_start: u8;
    static __kernel_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __kernel_end: u8;
}

/// Memory below this is left to firmware and to the trampoline that starts CPUs.
const LOW_END: u64 = 1 << 20;
/// What the loader's tables map.
const REACH: u64 = 1 << 32;

/// The image in physical memory, from the boot code to the end of its data.
pub fn image() -> (u64, u64) {
    (
        &raw const __boot_start as u64,
        &raw const __kernel_end as u64 - IMAGE,
    )
}

/// The usable memory of `info` but for the image and the first MiB, as whole pages.
fn usable(info: &BootInfo) -> impl Iterator<Item = (u64, u64)> + '_ {
    let (image_start, image_end) = image();
    let page = PAGE as u64;
    let reach = (super::VIRTUAL - DIRECT).min(1 << physical_address_bits());
    info.usable().flat_map(move |(start, end)| {
        let end = end.min(reach) & !(page - 1);
        let start = start.max(LOW_END).min(end).next_multiple_of(page);
        [(start, end.min(image_start)), (start.max(image_end), end)]
            .into_iter()
            .filter(|(start, end)| start < end)
    })
}

/// Builds the kernel's tables, goes over to them, and gives the usable memory to the frame
/// allocator.
///
/// # Safety
/// Runs once, on the boot CPU, on the loader's tables, which map the first 4 GiB one to one.
pub unsafe fn init(info: &BootInfo) -> Result<(), NoMemory> {
    let reachable = usable(info).map(|(start, end)| (start, end.min(REACH)));
    let pool = reachable.max_by_key(|(start, end)| end.saturating_sub(*start));
    let (pool_start, pool_end) = pool.ok_or(NoMemory)?;
    let mut next = pool_start;
    let mut frames = TableFrames(|| {
        let phys = next;
        if phys + PAGE as u64 > pool_end {
            return None;
        }
        next += PAGE as u64;
        // SAFETY: usable memory that the loader's tables map one to one.
        unsafe { (phys as *mut u8).write_bytes(0, PAGE) };
        Some(phys)
    });
    let root = (frames.0)().ok_or(NoMemory)?;
    {
        // SAFETY: a zeroed frame of ours, mapped one to one.
        let top = unsafe { &mut *(root as *mut PageTable) };
        // SAFETY: so are all tables below it.
        let mut tables = unsafe { OffsetPageTable::new(top, VirtAddr::new(0)) };
        let mut map = |virt, phys, len, access| {
            paging::map_in(&mut tables, &mut frames, virt, phys, len, access)
        };
        let [text, text_end, rodata_end, end] = [
            &raw const __kernel_start as u64,
            &raw const __text_end as u64,
            &raw const __rodata_end as u64,
            &raw const __kernel_end as u64,
        ];
        map(text, text - IMAGE, text_end - text, Access::Execute)?;
        map(
            text_end,
            text_end - IMAGE,
            rodata_end - text_end,
            Access::Read,
        )?;
        map(
            rodata_end,
            rodata_end - IMAGE,
            end - rodata_end,
            Access::Write,
        )?;
        // The trampoline: written through the direct map, run through the identity mapping of the
        // boot tables. It enters the kernel's tables from the image.
        if let Some(page) = info.low_page() {
            map(DIRECT + page, page, PAGE as u64, Access::Write)?;
            crate::arch::x86_64::smp::set_trampoline(page);
        }
        for (start, end) in usable(info) {
            map(DIRECT + start, start, end - start, Access::Write)?;
        }
    }
    let (_, flags) = Cr3::read();
    // SAFETY: the tables map the code, stack and data in use as they were.
    unsafe { Cr3::write(PhysFrame::containing_address(PhysAddr::new(root)), flags) };
    paging::set_root(root);
    let mut allocator = FRAMES.lock();
    for (start, end) in usable(info) {
        let start = if start == pool_start { next } else { start };
        // SAFETY: usable, mapped, and nobody's; the tables' frames are left out.
        unsafe { allocator.add(start, end) };
    }
    Ok(())
}
