//! From 32-bit protected mode without paging into the kernel's own address space.
//!
//! The page tables here live until the last CPU has started: they map the first 4 GiB one to one
//! and the first GiB in the kernel's range, writable and executable. The kernel replaces them by
//! tables without such pages; only a CPU on its way up uses them again.
//!
//! EBX holds what the loader gave, ESI which loader it is: they become the arguments of
//! `longshore_entry_64`. Intel SDM volume 3, 11.8.5 "Initializing IA-32e Mode".

use core::arch::global_asm;

/// The boot page tables map this much.
pub(crate) const REACH: u64 = 1 << 32;

global_asm!(
    r#"
    .section .boot.bss, "aw", @nobits
    .balign 4096
    .global boot_pml4
    boot_pml4:      .skip 4096
    boot_pdpt_low:  .skip 4096
    boot_pdpt_high: .skip 4096
    boot_pd:        .skip 4 * 4096

    .section .boot.data, "aw"
    .balign 16
    boot_gdt:
        .quad 0
        .quad 0x00af9a000000ffff    /* 64-bit code */
        .quad 0x00cf92000000ffff    /* data */
    boot_gdt_end:
    boot_gdt_pointer:
        .word boot_gdt_end - boot_gdt - 1
        .quad boot_gdt

    .section .boot.text, "ax"
    .code32
    .global enter_long_mode
    enter_long_mode:
        cld
        /* A loader need not have cleared what is not in the file. */
        lea edi, [boot_pml4]
        mov ecx, 7 * 1024
        xor eax, eax
        rep stosd

        /* PML4: 0 -> low, 511 -> high. */
        lea eax, [boot_pdpt_low + 3]
        mov [boot_pml4], eax
        lea eax, [boot_pdpt_high + 3]
        mov [boot_pml4 + 511 * 8], eax
        /* Low: four directories of 2 MiB pages; high: GiB 510 is the first of them. */
        lea eax, [boot_pd + 3]
        mov [boot_pdpt_high + 510 * 8], eax
        xor ecx, ecx
    1:  mov [boot_pdpt_low + ecx * 8], eax
        add eax, 4096
        inc ecx
        cmp ecx, 4
        jne 1b
        xor ecx, ecx
        mov eax, 0x83               /* present, writable, large */
    2:  mov [boot_pd + ecx * 8], eax
        add eax, 0x200000
        inc ecx
        cmp ecx, 4 * 512
        jne 2b

        mov eax, cr4
        or eax, 1 << 5              /* PAE */
        mov cr4, eax
        lea eax, [boot_pml4]
        mov cr3, eax
        mov ecx, 0xc0000080         /* EFER */
        rdmsr
        or eax, 1 << 8              /* LME */
        wrmsr
        mov eax, cr0
        or eax, (1 << 31) | (1 << 16) | 1   /* PG, WP, PE */
        and eax, ~((1 << 30) | (1 << 29))   /* caches on */
        mov cr0, eax
        lgdt [boot_gdt_pointer]
        .byte 0xea                  /* far jump to the 64-bit code segment */
        .long 3f
        .word 8

    .code64
    3:  mov ax, 16
        mov ds, ax
        mov es, ax
        mov ss, ax
        xor eax, eax
        mov fs, ax
        mov gs, ax
        mov rsp, offset __boot_stack_top
        xor ebp, ebp
        mov edi, ebx
        mov esi, esi                /* the upper half of RSI is undefined so far */
        movabs rax, offset longshore_entry_64
        push 0                      /* ends a backtrace */
        jmp rax

    .section .bss.boot_stack, "aw", @nobits
    .balign 4096
    .skip 32768
    __boot_stack_top:
    "#
);
