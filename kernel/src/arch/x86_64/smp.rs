//! Starting the other CPUs, and the barrier across all.
//!
//! A CPU starts in real mode at a page below 1 MiB (Intel SDM volume 3, 9.4.4). The trampoline
//! copied there takes it by the boot page tables into 64-bit mode, from where it loads the
//! kernel's tables and its own stack. One CPU starts at a time.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use hal::cpu::BarrierTimeout;
use spin::Mutex;

use super::percpu::{self, Claim, PerCpu};
use super::{apic, gdt, traps, tsc};
use crate::mm::{self, stack::Stack};
use crate::time::clock;

/// Where the trampoline runs: a page of conventional memory that the frame allocator leaves alone.
/// CPUs are started only where the memory map calls it usable.
pub const TRAMPOLINE: u64 = 0x8000;

global_asm!(
    r#"
    .section .rodata.trampoline, "a"
    .code16
    .global trampoline_start
    trampoline_start:
        cli
        cld
        xor ax, ax
        mov ds, ax
        lgdt cs:[{offset}]
        mov eax, cr0
        or eax, 1
        mov cr0, eax
        .byte 0x66, 0xea            /* far jump into 32-bit code */
        .long {base} + trampoline_32 - trampoline_start
        .word 24
    .code32
    trampoline_32:
        mov ax, 16
        mov ds, ax
        mov ss, ax
        mov eax, cr4
        or eax, 1 << 5              /* PAE */
        mov cr4, eax
        mov eax, [{base} + {offset} + 8]
        mov cr3, eax
        mov ecx, 0xc0000080         /* EFER */
        rdmsr
        or eax, 1 << 8              /* LME */
        or eax, [{base} + {offset} + 16]
        wrmsr
        mov eax, cr0
        or eax, (1 << 31) | (1 << 16) | 1
        and eax, ~((1 << 30) | (1 << 29))
        mov cr0, eax
        .byte 0xea                  /* far jump into 64-bit code */
        .long {base} + trampoline_64 - trampoline_start
        .word 8
    .code64
    trampoline_64:
        mov rsp, ds:[{base} + {offset} + 24]
        mov rdi, ds:[{base} + {offset} + 32]
        mov rdx, ds:[{base} + {offset} + 40]
        movabs rax, offset {enter}
        xor ebp, ebp
        jmp rax

    .global trampoline_end
    trampoline_end:

    .section .text.ap_enter, "ax"
    .code64
    ap_enter:
        mov cr3, rdx
        push 0                      /* ends a backtrace */
        jmp {main}
    "#,
    base = const TRAMPOLINE,
    offset = const PARAMETERS,
    enter = sym ap_enter,
    main = sym ap_main,
);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static boot_pml4: u8;
    fn ap_enter();
}

/// What the trampoline reads, at [`PARAMETERS`] in its page.
#[repr(C)]
struct Parameters {
    /// Limit and base, as LGDT takes them in 16-bit code.
    gdt_pointer: u64,
    boot_cr3: u64,
    efer: u64,
    stack_top: u64,
    block: u64,
    kernel_cr3: u64,
    /// Null, 64-bit code, data, 32-bit code.
    gdt: [u64; 4],
}

/// Where in the trampoline's page its parameters lie.
const PARAMETERS: usize = 0x800;
const GDT: [u64; 4] = [
    0,
    0x00af_9a00_0000_ffff,
    0x00cf_9200_0000_ffff,
    0x00cf_9a00_0000_ffff,
];

/// How long a CPU may take to come up. Emulated CPUs share the host's.
const START_LIMIT: Duration = Duration::from_secs(2);
/// How long it may take from there to its executor.
const ONLINE_LIMIT: Duration = Duration::from_secs(10);

/// Copies the trampoline to its page. `to` is that page, as the kernel sees it.
fn place_trampoline(to: *mut u8) -> *mut Parameters {
    let (start, end) = (&raw const trampoline_start, &raw const trampoline_end);
    let len = end as usize - start as usize;
    assert!(len <= PARAMETERS);
    // SAFETY: the page is reserved for this; the trampoline is in the image.
    unsafe { to.copy_from_nonoverlapping(start, len) };
    to.wrapping_add(PARAMETERS).cast()
}

/// Starts the CPUs with these APIC IDs, one by one, and returns how many came up. Those that do
/// not are reported and left out; their numbers, stacks and blocks are not used again.
pub fn start_all(apic_ids: impl Iterator<Item = u32>) -> usize {
    let mut next = percpu::possible();
    let mut started = 0;
    for apic_id in apic_ids {
        if next >= super::MAX_CPUS {
            log::warn!(
                "APIC {apic_id:#x} left out: {} CPUs are supported",
                super::MAX_CPUS
            );
            continue;
        }
        let Some(stack) = Stack::new() else {
            log::error!("APIC {apic_id:#x} left out: no memory for a stack");
            continue;
        };
        let block = percpu::create(next, apic_id);
        block
            .stack_bottom
            .store(stack.bottom() as usize, Ordering::Relaxed);
        block.stack_top.store(stack.leak(), Ordering::Relaxed);
        next += 1;
        started += usize::from(start(block));
    }
    started
}

/// Starts a CPU that has its block and stack, for the first time or after it has parked; says
/// whether it came up. One at a time.
pub fn start(block: &'static PerCpu) -> bool {
    let parameters = place_trampoline(mm::direct(TRAMPOLINE).cast());
    let gdt_at = TRAMPOLINE + (PARAMETERS + offset_of!(Parameters, gdt)) as u64;
    let values = Parameters {
        gdt_pointer: gdt_at << 16 | (size_of_val(&GDT) - 1) as u64,
        boot_cr3: &raw const boot_pml4 as u64,
        efer: if super::has_no_execute() { 1 << 11 } else { 0 },
        stack_top: block.stack_top.load(Ordering::Relaxed),
        block: block as *const PerCpu as u64,
        kernel_cr3: mm::paging::root(),
        gdt: GDT,
    };
    // SAFETY: the page is the trampoline's; no CPU is using it between two starts.
    unsafe { parameters.write_volatile(values) };
    block.claim.store(Claim::Waiting as u8, Ordering::Release);
    let before = tsc();
    if !wake(block) {
        log::warn!(
            "WARN CPU {} (APIC {:#x}) does not start",
            block.index(),
            block.apic_id
        );
        return false;
    }
    let at = block.started_at.load(Ordering::Acquire);
    if at < before || at > tsc() {
        log::warn!(
            "WARN the time-stamp counter of CPU {} is off",
            block.index()
        );
    }
    true
}

/// Brings a CPU from reset to its executor, by the sequence of Intel SDM volume 3, 9.4.4. One that does not enter the kernel
/// in time is given up and reset, so that it cannot take up its successor's parameters.
fn wake(block: &PerCpu) -> bool {
    let page = (TRAMPOLINE >> 12) as u8;
    let entered = || block.claim.load(Ordering::Acquire) == Claim::Entered as u8;
    apic::send_init(block.apic_id);
    clock::spin_for(Duration::from_micros(200));
    apic::send_startup(block.apic_id, page);
    if !clock::spin_until(Duration::from_millis(10), entered) {
        apic::send_startup(block.apic_id, page);
        if !clock::spin_until(START_LIMIT, entered) && block.decide(Claim::Abandoned) {
            apic::send_init(block.apic_id);
            return false;
        }
    }
    clock::spin_until(ONLINE_LIMIT, || block.online.load(Ordering::Acquire))
}

extern "C" fn ap_main(block: &'static PerCpu) -> ! {
    block.started_at.store(tsc(), Ordering::Release);
    if !block.decide(Claim::Entered) {
        super::halt_forever();
    }
    percpu::set_current(block);
    gdt::load_early();
    traps::load();
    super::enable_features();
    apic::init();
    gdt::init();
    crate::task::run(block)
}

/// One barrier at a time; a waiting initiator has interrupts on and so answers the other's.
static INITIATOR: Mutex<()> = Mutex::new(());
static REQUESTED: AtomicU64 = AtomicU64::new(0);
/// How long CPUs may take to answer. Emulated CPUs share the host's.
const BARRIER_LIMIT: Duration = Duration::from_secs(5);

/// Parks the running CPU for good, or until it is started again. It has no work left. The exchange
/// is a locked instruction: its stores are visible to who sees it stopped.
pub fn park(cpu: &PerCpu) -> ! {
    x86_64::instructions::interrupts::disable();
    cpu.running.swap(false, Ordering::SeqCst);
    super::halt_forever()
}

/// A full barrier on every running CPU, which also forgets its cached translations. Task context,
/// interrupts on.
pub fn barrier() -> Result<(), BarrierTimeout> {
    let _initiator = INITIATOR.lock();
    let this = percpu::current();
    let generation = REQUESTED.load(Ordering::Relaxed) + 1;
    REQUESTED.store(generation, Ordering::SeqCst);
    barrier_answer(this);
    let others = || {
        percpu::all()
            .filter(|cpu| cpu.index() != this.index() && cpu.running.load(Ordering::Acquire))
    };
    for cpu in others() {
        apic::send(cpu.apic_id, traps::BARRIER);
    }
    for cpu in others() {
        // One that parks meanwhile has gone through more than a barrier.
        let seen = || {
            cpu.barrier_seen.load(Ordering::Acquire) >= generation
                || !cpu.running.load(Ordering::Acquire)
        };
        if !clock::spin_until(BARRIER_LIMIT, seen) {
            return Err(BarrierTimeout { cpu: cpu.index() });
        }
    }
    Ok(())
}

/// This CPU's part of a barrier, in interrupt context on all but the initiator. The exchange is a
/// locked instruction: earlier stores have left the store buffer before it is seen.
pub fn barrier_answer(cpu: &PerCpu) {
    let generation = REQUESTED.load(Ordering::SeqCst);
    // After the load: what was unmapped before this generation is forgotten when it is seen.
    x86_64::instructions::tlb::flush_all();
    cpu.barrier_seen.swap(generation, Ordering::SeqCst);
}

/// Stops all other CPUs, for a report that nothing shall disturb.
pub fn stop_others() {
    let this = percpu::current().index();
    for cpu in percpu::all().filter(|cpu| cpu.index() != this) {
        // The boot CPU runs long before it is online.
        if cpu.index() == 0 || cpu.running.load(Ordering::Acquire) {
            apic::send_nmi(cpu.apic_id);
        }
    }
}
