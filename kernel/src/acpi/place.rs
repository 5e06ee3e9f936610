//! What an address in the firmware's tables may lead to, judged by the loader's memory map.
//!
//! Tables lie in memory that is the firmware's, registers in none. What would lead into memory that
//! somebody uses is left out: reading it tells nothing, writing it destroys something.

use core::ops::Range;

use crate::boot_info::{BootInfo, RegionKind};

/// The kernel uses no memory below this but one page, while it starts CPUs.
const LOW_END: u64 = 1 << 20;
/// Where processors take writes for interrupts. Intel SDM volume 3, 11.11.1.
const INTERRUPTS: Range<u64> = 0xfee0_0000..0xfef0_0000;
/// Registers are mapped by pages.
const PAGE: u64 = 4096;

/// `len` bytes from `at` on, `None` where they leave the address space.
fn range(at: u64, len: u64) -> Option<Range<u64>> {
    Some(at..at.checked_add(len)?)
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Whether none of it is memory that the kernel uses.
fn is_nobodys(info: &BootInfo, range: &Range<u64>) -> bool {
    let mut used = info
        .usable()
        .map(|(start, end)| start.max(LOW_END)..end.max(LOW_END));
    !used.any(|used| overlap(&used, range))
}

/// Whether a table may lie in the `len` bytes at `at`.
pub fn holds_table(info: &BootInfo, at: u64, len: u64) -> bool {
    range(at, len).is_some_and(|range| is_nobodys(info, &range))
}

/// Whether a device may have registers in the pages of the `len` bytes at `at`.
pub fn holds_registers(info: &BootInfo, at: u64, len: u64) -> bool {
    let whole = len.checked_add(at % PAGE);
    let Some(range) = whole.and_then(|len| range(at & !(PAGE - 1), len)) else {
        return false;
    };
    let memory = info.regions().iter().filter(|region| {
        matches!(
            region.kind,
            RegionKind::AcpiReclaimable | RegionKind::AcpiNvs
        )
    });
    let mut memory = memory.map(|region| region.start..region.start + region.len);
    range.start >= LOW_END
        && is_nobodys(info, &range)
        && !overlap(&range, &INTERRUPTS)
        && !memory.any(|memory| overlap(&memory, &range))
}

/// Whether firmware may have a device go on using the memory from `base` to `last`.
pub fn is_firmwares(info: &BootInfo, base: u64, last: u64) -> bool {
    /// Graphics memory is the largest known, of 2 GiB at most.
    const MAX: u64 = 1 << 32;
    let range = base..last.saturating_add(1);
    base < last && last - base < MAX && is_nobodys(info, &range) && !overlap(&range, &INTERRUPTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_info::Region;

    fn info() -> BootInfo {
        let mut info = BootInfo::new("test");
        for (start, end, kind) in [
            (0, 0x9_fc00, RegionKind::Usable),
            (0xf_0000, 0x10_0000, RegionKind::Reserved),
            (0x10_0000, 0x1000_0000, RegionKind::Usable),
            (0x1000_0000, 0x1001_0000, RegionKind::AcpiReclaimable),
            (0x1001_0000, 0x1002_0000, RegionKind::Reserved),
            (1 << 32, 1 << 33, RegionKind::Usable),
        ] {
            let len = end - start;
            info.add_region(Region { start, len, kind });
        }
        info
    }

    #[test]
    fn tables_lie_in_memory_that_the_kernel_leaves_alone() {
        let holds = |at, len| holds_table(&info(), at, len);
        assert!(holds(0xf_5000, 36) && holds(0x4_0000, 0x1_0000), "low");
        assert!(holds(0x1000_0000, 0x2_0000));
        assert!(!holds(0x10_0000, 1) && !holds(0xf_fff0, 17), "the image's");
        assert!(!holds(0xfff_fff0, 36) && !holds(1 << 32, 8));
        assert!(!holds(u64::MAX, 2), "beyond the end");
    }

    #[test]
    fn registers_lie_in_no_memory() {
        let holds = |at, len| holds_registers(&info(), at, len);
        assert!(holds(0xfec0_0000, 4096) && holds(0xb000_0000, 1 << 28));
        assert!(!holds(0, 4096) && !holds(0x9_fc00, 4096) && !holds(0xf_f000, 4096));
        assert!(!holds(0xfff_f000, 4096) && !holds(0x1000_8000, 4096));
        assert!(holds(0x1001_0000, 4096), "reserved is what many are");
        assert!(!holds(0x2000_0000, u64::MAX - 0x2000_0000), "around all");
        assert!(!holds(0x2000_0001, u64::MAX), "beyond the end");
        assert!(!holds(0xfee0_0400, 1) && !holds(0xf000_0000, 1 << 28));
        // What shares a page with memory is mapped with it.
        let mut info = info();
        info.add_region(Region {
            start: 0xc000_0000,
            len: 16,
            kind: RegionKind::Usable,
        });
        assert!(!holds_registers(&info, 0xc000_0400, 16));
        assert!(holds_registers(&info, 0xc000_1000, 16));
    }

    #[test]
    fn firmware_keeps_what_is_nobodys_else() {
        let firmwares = |base, last| is_firmwares(&info(), base, last);
        assert!(firmwares(0x1001_0000, 0x1001_ffff) && firmwares(0xe_0000, 0xe_ffff));
        assert!(!firmwares(0x20_0000, 0x20_ffff), "the kernel's");
        assert!(!firmwares(0x1_0000, 0xffff) && !firmwares(1 << 40, u64::MAX));
        assert!(!firmwares(0xfee0_0000, 0xfee0_0fff));
    }
}
