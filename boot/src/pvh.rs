//! The PVH entry: 32-bit protected mode, paging off, EBX → `hvm_start_info`.
//!
//! The layouts are those of Xen's public header `arch-x86/hvm/start_info.h`, version 1. Everything
//! the loader gives lies below 4 GiB, which the boot page tables map one to one; it is copied
//! before the kernel's own tables take over.

use core::arch::global_asm;
use core::ffi::CStr;

use longshore::boot_info::{BootInfo, Region, RegionKind};

use crate::long_mode::REACH;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18              /* name size, value size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start_pvh

    .section .boot.text, "ax"
    .code32
    .global _start_pvh
    _start_pvh:
        cli
        xor esi, esi
        jmp enter_long_mode
    .code64
    "#
);

const MAGIC: u32 = 0x336e_c578;

/// `struct hvm_start_info`.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_at: u64,
    command_line_at: u64,
    rsdp_at: u64,
    memory_map_at: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
struct MemoryMapEntry {
    start: u64,
    len: u64,
    kind: u32,
    reserved: u32,
}

/// No loader gives more; what lies beyond is not looked at.
const ENTRIES_MAX: u32 = 512;

/// What the loader tells in the start info at this address.
pub(crate) fn boot_info(start_info: u64) -> BootInfo {
    let mut info = BootInfo::new("pvh");
    // SAFETY: by the PVH protocol EBX points to a start info, which the boot tables map; any bytes
    // make one.
    let start = unsafe { (start_info as *const StartInfo).read_unaligned() };
    if start.magic == MAGIC {
        if start.command_line_at != 0 && start.command_line_at < REACH {
            // SAFETY: by the protocol a string that ends in a zero byte, below 4 GiB.
            let line = unsafe { CStr::from_ptr(start.command_line_at as *const _) };
            info.set_command_line(line.to_bytes());
        }
        info.rsdp = (start.rsdp_at != 0).then_some(start.rsdp_at);
        let entries = u64::from(start.memory_map_entries.min(ENTRIES_MAX));
        let size = size_of::<MemoryMapEntry>() as u64;
        let reached = start.memory_map_at < REACH - entries * size;
        if start.version >= 1 && start.memory_map_at != 0 && reached {
            for index in 0..entries {
                let at = (start.memory_map_at + index * size) as *const MemoryMapEntry;
                // SAFETY: an entry of the table that the loader left, below 4 GiB; any bytes make
                // one.
                let entry = unsafe { at.read_unaligned() };
                info.add_region(Region {
                    start: entry.start,
                    len: entry.len,
                    kind: RegionKind::of_e820(entry.kind),
                });
            }
        }
    }
    info
}
