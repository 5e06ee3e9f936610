//! The Multiboot2 entry: 32-bit protected mode, paging off, EBX → the information structure. GRUB
//! enters so by BIOS and by UEFI, whose boot services it has ended. Multiboot2 Specification 2.0, 3.1
//! and 3.3.
//!
//! What the loader gives lies below 4 GiB, which the boot page tables map one to one; the kernel
//! library reads it before the kernel's own tables take over.

use core::arch::global_asm;

use longshore::BootInfo;
use longshore::multiboot2::{SIZE_MAX, read};

use crate::long_mode::REACH;

// The header, which must lie in the file's first 32 KiB. What only helps is optional (flag 1): a
// loader without it loads us all the same.
global_asm!(
    r#"
    .section .boot.multiboot2, "a"
    .balign 8
    multiboot2_header:
        .long 0xe85250d6, 0         /* magic, architecture: 32-bit protected mode */
        .long multiboot2_header_end - multiboot2_header
        .long 0x100000000 - 0xe85250d6 - (multiboot2_header_end - multiboot2_header)

        .word 1, 1                  /* asks for: command line, memory map, framebuffer, */
        .long 32                    /* ACPI root pointers, UEFI's memory map */
        .long 1, 6, 8, 14, 15, 17

        .word 3, 0                  /* the entry: that of the ELF file is for PVH */
        .long 12, _start_multiboot2
        .balign 8
        .word 4, 1                  /* no console is required, and none in text mode wanted */
        .long 12, 0
        .balign 8
        .word 5, 1                  /* a framebuffer: any size, direct colour of 32 bits */
        .long 20, 0, 0, 32
        .balign 8
        .word 0, 0
        .long 8
    multiboot2_header_end:

    .section .boot.text, "ax"
    .code32
    .global _start_multiboot2
    _start_multiboot2:
        cli
        mov esi, eax
        jmp enter_long_mode
    .code64
    "#
);

/// What the loader tells in the structure at this address.
pub(crate) fn boot_info(address: u64) -> BootInfo {
    let reach = REACH - address.min(REACH);
    let bytes = if address == 0 || reach < 8 {
        &[][..]
    } else {
        // SAFETY: by the protocol EBX points to the structure, which begins with its size; the boot
        // tables map it.
        let size = unsafe { (address as *const u32).read_unaligned() };
        let len = u64::from(size.min(SIZE_MAX)).min(reach);
        // SAFETY: as above; nobody writes there before the kernel has taken the machine over.
        unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) }
    };
    read(bytes, address)
}
