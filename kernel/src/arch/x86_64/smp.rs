//! Starting the other CPUs, and the barrier across all.
//!
//! A CPU starts in real mode at a page below 1 MiB (Intel SDM volume 3, 9.4.4). The trampoline
//! copied there takes it by the boot page tables into 64-bit mode, from where it loads the
//! kernel's tables and its own stack. One CPU starts at a time.

use alloc::vec::Vec;
use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use hal::cpu::BarrierTimeout;
use spin::Mutex;

use super::percpu::{self, Claim, PerCpu};
use super::{apic, gdt, machine_check, traps, tsc};
use crate::mm::{self, stack::Stack};
use crate::time::clock;
use crate::time::offset::Offset;

/// The page below 1 MiB on which the trampoline runs, which the frame allocator leaves alone; 0 where
/// there is none, and one CPU.
static TRAMPOLINE: AtomicU64 = AtomicU64::new(0);

/// Gives the trampoline its page, which is mapped: usable memory below 640 KiB. Once, before
/// [`start_all`].
pub fn set_trampoline(page: u64) {
    TRAMPOLINE.store(page, Ordering::Relaxed);
}

/// Whether there is a page on which CPUs can start.
pub fn has_trampoline() -> bool {
    TRAMPOLINE.load(Ordering::Relaxed) != 0
}

// EBX is where the page begins.
global_asm!(
    r#"
    .section .rodata.trampoline, "a"
    .code16
    .global trampoline_start
    trampoline_start:
        cli
        cld
        xor ebx, ebx
        mov bx, cs
        shl ebx, 4
        lgdt cs:[{offset}]
        mov eax, cr0
        or eax, 1
        mov cr0, eax
        .byte 0x2e, 0x66, 0xff, 0x2e    /* far jump to cs:[offset + 48], into 32-bit code */
        .word {offset} + 48
    .code32
    .global trampoline_32
    trampoline_32:
        mov ax, 16
        mov ds, ax
        mov ss, ax
        mov eax, cr4
        or eax, 1 << 5              /* PAE */
        mov cr4, eax
        mov eax, [ebx + {offset} + 8]
        mov cr3, eax
        mov ecx, 0xc0000080         /* EFER */
        rdmsr
        or eax, 1 << 8              /* LME */
        or eax, [ebx + {offset} + 16]
        wrmsr
        mov eax, cr0
        or eax, (1 << 31) | (1 << 16) | 1
        and eax, ~((1 << 30) | (1 << 29))
        mov cr0, eax
        .byte 0xff, 0xab            /* far jump to [ebx + offset + 56], into 64-bit code */
        .long {offset} + 56
    .code64
    .global trampoline_64
    trampoline_64:
        mov ebx, ebx                /* its upper half is undefined so far */
        mov rsp, [rbx + {offset} + 24]
        mov rdi, [rbx + {offset} + 32]
        mov rdx, [rbx + {offset} + 40]
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
    offset = const PARAMETERS,
    enter = sym ap_enter,
    main = sym ap_main,
);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_32: u8;
    static trampoline_64: u8;
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
    /// Far pointers: an offset of 32 bits, a selector.
    to_32: u64,
    to_64: u64,
    /// Null, 64-bit code, data, 32-bit code.
    gdt: [u64; 4],
}

/// Where in the trampoline's page its parameters lie.
const PARAMETERS: usize = 0x800;
const GDT: [u64; 4] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
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

/// Starts the CPUs with these APIC IDs, one after the other, and returns how many came up; `each` is
/// told of every step. Those that do not are reported and left out; the numbers, stacks and blocks of
/// those that are absent go to the next. While one finds its way from the kernel's entry to its
/// executor, the next starts.
pub fn start_all(apic_ids: impl Iterator<Item = u32>, each: impl Fn()) -> usize {
    let mut spare: Option<&'static PerCpu> = None;
    let mut entered: Vec<&'static PerCpu> = Vec::new();
    let mut too_many = 0;
    for apic_id in apic_ids {
        let next = percpu::possible();
        if next >= super::MAX_CPUS {
            too_many += 1;
            continue;
        }
        each();
        let block = match spare.take() {
            Some(block) => {
                block.set_apic_id(apic_id);
                percpu::restore(block);
                block
            }
            None => {
                let Some(stack) = Stack::new() else {
                    log::error!("APIC {apic_id:#x} left out: no memory for a stack");
                    continue;
                };
                let block = percpu::create(next, apic_id);
                let bottom = stack.bottom() as usize;
                block.stack_bottom.store(bottom, Ordering::Relaxed);
                block.stack_top.store(stack.leak(), Ordering::Relaxed);
                block
            }
        };
        if enter(block) {
            entered.push(block);
        } else {
            percpu::withdraw(block);
            spare = Some(block);
        }
    }
    if too_many > 0 {
        let most = super::MAX_CPUS;
        log::warn!("WARN {too_many} CPUs left out: {most} are supported");
    }
    let up = |block: &&&PerCpu| {
        each();
        comes_up(block)
    };
    entered.iter().filter(up).count()
}

/// Starts a CPU that has its block and stack, and has parked; says whether it runs. One at a time.
pub fn start(block: &'static PerCpu) -> bool {
    enter(block) && comes_up(block)
}

/// Has a CPU enter the kernel; says whether it did. Otherwise it is reset: its stack and block are
/// free for another.
fn enter(block: &'static PerCpu) -> bool {
    let page = TRAMPOLINE.load(Ordering::Relaxed);
    let parameters = place_trampoline(mm::direct(page).cast());
    let gdt_at = page + (PARAMETERS + offset_of!(Parameters, gdt)) as u64;
    let far = |selector: u64, code: *const u8| {
        (selector << 32) | (page + code as u64 - &raw const trampoline_start as u64)
    };
    let values = Parameters {
        gdt_pointer: gdt_at << 16 | (size_of_val(&GDT) - 1) as u64,
        boot_cr3: &raw const boot_pml4 as u64,
        efer: if super::has_no_execute() { 1 << 11 } else { 0 },
        stack_top: block.stack_top.load(Ordering::Relaxed),
        block: block as *const PerCpu as u64,
        kernel_cr3: mm::paging::root(),
        to_32: far(24, &raw const trampoline_32),
        to_64: far(8, &raw const trampoline_64),
        gdt: GDT,
    };
    // SAFETY: the page is the trampoline's; no CPU is using it between two starts.
    unsafe { parameters.write_volatile(values) };
    block.clock_asked.store(0, Ordering::Relaxed);
    block.clock_answered.store(0, Ordering::Relaxed);
    block.claim.store(Claim::Waiting as u8, Ordering::Release);
    let entered = wake(block, (page >> 12) as u8);
    if entered && clocks_agree(block) {
        return true;
    }
    apic::send_init(block.apic_id());
    if !entered {
        report(block);
    }
    false
}

/// Whether a CPU that has entered comes to its executor. One that does not keeps what it has.
fn comes_up(block: &PerCpu) -> bool {
    let up = clock::spin_until(ONLINE_LIMIT, || block.online.load(Ordering::Acquire));
    if !up {
        report(block);
    }
    up
}

fn report(block: &PerCpu) {
    let (index, apic_id) = (block.index(), block.apic_id());
    log::warn!("WARN CPU {index} (APIC {apic_id:#x}) does not start");
}

/// Brings a CPU from reset to the kernel's entry, by the sequence of Intel SDM volume 3, 9.4.4. One
/// that does not enter in time is given up, and must be reset, so that it cannot take up its
/// successor's parameters.
fn wake(block: &PerCpu, page: u8) -> bool {
    let entered = || block.claim.load(Ordering::Acquire) == Claim::Entered as u8;
    apic::send_init(block.apic_id());
    clock::spin_for(Duration::from_micros(200));
    apic::send_startup(block.apic_id(), page);
    if !clock::spin_until(Duration::from_millis(10), entered) {
        apic::send_startup(block.apic_id(), page);
        if !clock::spin_until(START_LIMIT, entered) {
            return !block.decide(Claim::Abandoned);
        }
    }
    true
}

/// At most so many rounds compare time-stamp counters. One that is quick is enough; one that is slow
/// shows that the two do not run at the same time, being emulated, and that more are of no use.
const ROUNDS: u64 = 8;
const QUICK: u64 = 20_000;
const SLOW: u64 = 1_000_000;
/// In [`PerCpu::clock_asked`]: it may go on; it is not wanted.
const GO_ON: u64 = u64::MAX;
const HALT: u64 = u64::MAX - 1;
/// By how much a CPU's clock may differ from the boot CPU's. One that differs by more is left out:
/// its limits and deadlines would mean nothing.
const CLOCK_LIMIT: Duration = Duration::from_micros(500);
/// For so many ticks a CPU waits to be asked, or told to go on.
const PATIENCE: u64 = 1 << 36;

/// Compares the time-stamp counter of a CPU that has just entered with this one's, and says whether
/// it can take part.
fn clocks_agree(block: &PerCpu) -> bool {
    let mut offset = Offset::UNKNOWN;
    for round in 1..=ROUNDS {
        let before = ordered_tsc();
        block.clock_asked.store(round, Ordering::Release);
        let limit = START_LIMIT.as_nanos() as u64;
        let waited = || clock::ticks_to_ns(tsc().wrapping_sub(before));
        while block.clock_answered.load(Ordering::Acquire) != round && waited() < limit {}
        if waited() >= limit {
            break;
        }
        let after = ordered_tsc();
        offset.round(before, block.clock_read.load(Ordering::Relaxed), after);
        let nanos = clock::ticks_to_ns(after.wrapping_sub(before));
        if !(QUICK..SLOW).contains(&nanos) {
            break;
        }
    }
    let ticks = offset.proven();
    let nanos = clock::ticks_to_ns(ticks.unsigned_abs());
    let agree = nanos <= CLOCK_LIMIT.as_nanos() as u64;
    if ticks != 0 {
        let (index, sign) = (block.index(), if ticks < 0 { "behind" } else { "ahead" });
        let then = if agree {
            "its times are off by that"
        } else {
            "it is left out"
        };
        log::warn!("WARN the time-stamp counter of CPU {index} is {nanos} ns {sign}: {then}");
    }
    block
        .clock_asked
        .store(if agree { GO_ON } else { HALT }, Ordering::Release);
    agree
}

/// The other side of [`clocks_agree`]: answers until it is told whether to go on. It takes no
/// longer than [`PATIENCE`], after which it goes on. Neither side pauses while it waits: emulated
/// CPUs that do hold each other up.
fn answer_clock(block: &PerCpu) {
    let start = tsc();
    let mut last = 0;
    while tsc().wrapping_sub(start) < PATIENCE {
        match block.clock_asked.load(Ordering::Acquire) {
            GO_ON => return,
            HALT => super::halt_forever(),
            asked if asked != last => {
                last = asked;
                block.clock_read.store(ordered_tsc(), Ordering::Relaxed);
                block.clock_answered.store(asked, Ordering::Release);
            }
            _ => {}
        }
    }
}

/// The time-stamp counter after all earlier loads and before all later ones: Intel SDM volume 2,
/// RDTSC.
fn ordered_tsc() -> u64 {
    // SAFETY: fences have no other effect.
    unsafe { core::arch::x86_64::_mm_lfence() };
    let now = tsc();
    // SAFETY: as above.
    unsafe { core::arch::x86_64::_mm_lfence() };
    now
}

extern "C" fn ap_main(block: &'static PerCpu) -> ! {
    if !block.decide(Claim::Entered) {
        super::halt_forever();
    }
    percpu::set_current(block);
    gdt::load_early();
    traps::load();
    answer_clock(block);
    super::enable_features();
    apic::init();
    gdt::init();
    machine_check::init();
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
        apic::send(cpu.apic_id(), traps::BARRIER);
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
            apic::send_nmi(cpu.apic_id());
        }
    }
}
