//! Traps: exceptions and interrupts.
//!
//! Every vector has a stub that saves all registers as a [`TrapFrame`] and calls [`dispatch`].
//! Exceptions end in a report. Interrupt handlers count, note the vector as pending for the
//! executor of their CPU, and acknowledge; nothing else runs in this context.

use core::arch::global_asm;
use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU16, Ordering};
use core::time::Duration;

use x86_64::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::instructions::tables::lidt;
use x86_64::registers::control::Cr2;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::{Entry, HandlerFunc};

use super::{apic, gdt, ioapic, machine_check, percpu, smp};
use crate::time::clock;
use crate::{stages, stepping};

/// First vector for devices.
pub const FIRST_DEVICE: u8 = 0x30;
/// Last vector for devices.
pub const LAST_DEVICE: u8 = 0xdf;
/// The local APIC's timer.
pub const TIMER: u8 = 0xf0;
/// Wakes the executor of a halted CPU.
pub const WAKE: u8 = 0xf1;
/// The barrier across CPUs.
pub const BARRIER: u8 = 0xf2;
/// The local APIC's error.
pub const APIC_ERROR: u8 = 0xf3;
/// Spurious interrupts of the local APIC, which need no acknowledgement.
pub const SPURIOUS: u8 = 0xff;

const DEBUG: u64 = 1;
const DOUBLE_FAULT: u64 = 8;
const PAGE_FAULT: u64 = 14;
const MACHINE_CHECK: u64 = 18;
/// Non-maskable interrupts; pending like an interrupt, for the executor to report.
pub const NMI: u8 = 2;

/// The registers of what was interrupted, in the order in which the stub and the CPU push them.
#[repr(C)]
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: [[(&str, u64); 4]; 5] = [
            [
                ("rip", self.rip),
                ("rsp", self.rsp),
                ("rbp", self.rbp),
                ("rfl", self.rflags),
            ],
            [
                ("rax", self.rax),
                ("rbx", self.rbx),
                ("rcx", self.rcx),
                ("rdx", self.rdx),
            ],
            [
                ("rsi", self.rsi),
                ("rdi", self.rdi),
                ("r8 ", self.r8),
                ("r9 ", self.r9),
            ],
            [
                ("r10", self.r10),
                ("r11", self.r11),
                ("r12", self.r12),
                ("r13", self.r13),
            ],
            [
                ("r14", self.r14),
                ("r15", self.r15),
                ("cr2", Cr2::read_raw()),
                ("err", self.error),
            ],
        ];
        for row in rows {
            for (name, value) in row {
                write!(f, "  {name} {value:016x}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

// A stub is 16 bytes. Vectors for which the CPU pushes no error code push a zero: all but 8,
// 10 to 14, 17, 21, 29 and 30 (Intel SDM volume 3, table 6-1).
global_asm!(
    r#"
    .section .text.trap_stubs, "ax"
    .balign 16
    .global trap_stubs
    trap_stubs:
    .set vector, 0
    .rept 256
        .balign 16
        .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
        .else
        push 0
        .endif
        push vector
        jmp trap_common
        .set vector, vector + 1
    .endr

    trap_common:
        cld
        push rax
        push rbx
        push rcx
        push rdx
        push rsi
        push rdi
        push rbp
        push r8
        push r9
        push r10
        push r11
        push r12
        push r13
        push r14
        push r15
        mov rdi, rsp
        call {dispatch}
        pop r15
        pop r14
        pop r13
        pop r12
        pop r11
        pop r10
        pop r9
        pop r8
        pop rbp
        pop rdi
        pop rsi
        pop rdx
        pop rcx
        pop rbx
        pop rax
        add rsp, 16
        iretq
    "#,
    dispatch = sym dispatch,
);

unsafe extern "C" {
    static trap_stubs: [[u8; 16]; 256];
}

type Idt = [Entry<HandlerFunc>; 256];

/// Zeros, which take no room in the image, until [`init`].
static mut IDT: MaybeUninit<Idt> = MaybeUninit::zeroed();

/// Fills the table that all CPUs share. Once, before the first [`load`].
pub fn init() {
    let idt = &raw mut IDT;
    // SAFETY: one CPU runs, and the table is not loaded yet.
    let idt = unsafe { &mut *idt };
    let idt = idt.write([const { Entry::missing() }; 256]);
    for (vector, entry) in idt.iter_mut().enumerate() {
        // The stubs lie 16 bytes apart.
        let stub = (&raw const trap_stubs)
            .cast::<[u8; 16]>()
            .wrapping_add(vector);
        // SAFETY: the stub saves and restores everything and returns with IRETQ.
        let options = unsafe { entry.set_handler_addr(VirtAddr::new(stub as u64)) };
        let stack = match vector as u64 {
            vector if vector == u64::from(NMI) => gdt::IST_NMI,
            DOUBLE_FAULT => gdt::IST_DOUBLE_FAULT,
            MACHINE_CHECK => gdt::IST_MACHINE_CHECK,
            _ => continue,
        };
        // SAFETY: `gdt::init` sets this stack up before interrupts are on.
        unsafe { options.set_stack_index(u16::from(stack) - 1) };
    }
}

/// Loads the table on this CPU.
pub fn load() {
    let pointer = DescriptorTablePointer {
        limit: (size_of::<Idt>() - 1) as u16,
        base: VirtAddr::new(&raw const IDT as u64),
    };
    // SAFETY: the table is filled and lives forever.
    unsafe { lidt(&pointer) };
}

/// For each device vector on any CPU that carries a level-triggered line: the line's number plus
/// one. Such a line is masked until its owners have quieted their devices.
static LEVEL: [AtomicU16; 256] = [const { AtomicU16::new(0) }; 256];

/// Says that `vector` carries the level-triggered I/O APIC input `gsi`, or none.
pub fn set_level(vector: u8, gsi: Option<u16>) {
    LEVEL[usize::from(vector)].store(gsi.map_or(0, |gsi| gsi + 1), Ordering::Release);
}

extern "C" fn dispatch(frame: &mut TrapFrame) {
    let vector = frame.vector as u8;
    if vector < 32 {
        return exception(frame);
    }
    let cpu = percpu::current();
    cpu.arrivals[usize::from(vector)].fetch_add(1, Ordering::Relaxed);
    match vector {
        SPURIOUS => return,
        BARRIER => smp::barrier_answer(cpu),
        WAKE => {}
        _ => {
            if vector == TIMER && cpu.index() == 0 {
                stages::tick(frame);
            }
            let level = LEVEL[usize::from(vector)].load(Ordering::Acquire);
            if level != 0 {
                ioapic::mask_in_interrupt(level - 1);
            }
            cpu.pending[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::Release);
        }
    }
    apic::end_of_interrupt();
}

fn exception(frame: &mut TrapFrame) {
    if frame.vector == DEBUG && stepping::trapped(frame) {
        return;
    }
    if frame.vector == u64::from(NMI) && crate::panic::in_progress() {
        super::halt_forever();
    }
    let name = NAMES
        .get(frame.vector as usize)
        .copied()
        .unwrap_or("reserved exception");
    let address = Cr2::read_raw();
    let cpu = percpu::current();
    let bottom = cpu.stack_bottom.load(Ordering::Relaxed) as u64;
    let in_guard = bottom != 0 && (bottom - crate::mm::stack::GUARD..bottom).contains(&address);
    match frame.vector {
        DOUBLE_FAULT if in_guard => crate::panic::exception(
            frame,
            format_args!("stack overflow: {address:#x} is in the guard page"),
        ),
        PAGE_FAULT => {
            let access = match frame.error {
                error if error & 16 != 0 => "execute",
                error if error & 2 != 0 => "write",
                _ => "read",
            };
            let why = if frame.error & 1 != 0 {
                "protected"
            } else {
                "not mapped"
            };
            crate::panic::exception(
                frame,
                format_args!("page fault: {access} of {address:#x}, which is {why}"),
            )
        }
        // Whatever was interrupted may hold any lock: the executor reports it.
        vector if vector == u64::from(NMI) => {
            cpu.arrivals[usize::from(NMI)].fetch_add(1, Ordering::Relaxed);
            // SAFETY: reading the PC's status port B has no side effect.
            let reason = unsafe { Port::<u8>::new(0x61).read() };
            cpu.nmi_reason.store(reason, Ordering::Relaxed);
            cpu.pending[0].fetch_or(1 << NMI, Ordering::Release);
        }
        MACHINE_CHECK => {
            // Those that know more go first.
            if !machine_check::is_told_here() {
                clock::spin_for(Duration::from_millis(100));
            }
            crate::panic::exception(frame, format_args!("{}", machine_check::Report))
        }
        _ => crate::panic::exception(frame, format_args!("{name}, error {:#x}", frame.error)),
    }
}

const NAMES: [&str; 22] = [
    "divide error",
    "debug exception",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack-segment fault",
    "general protection",
    "page fault",
    "reserved exception",
    "x87 floating-point error",
    "alignment check",
    "machine check",
    "SIMD floating-point exception",
    "virtualization exception",
    "control protection exception",
];
