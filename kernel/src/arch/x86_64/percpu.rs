//! Per-CPU data, found through the GS base.
//!
//! Each CPU's block is written by that CPU alone, but for the atomics whose documentation says
//! otherwise, and lives as long as the kernel. Blocks are aligned to cache lines, so that no line
//! is shared between CPUs.

use alloc::boxed::Box;
use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{
    AtomicBool, AtomicIsize, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use hal::cpu::COUNTERS;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

use super::MAX_CPUS;
use super::gdt::Tables;

/// One CPU's data.
#[repr(C, align(64))]
pub struct PerCpu {
    this: *const PerCpu,
    index: usize,
    apic_id: AtomicU32,
    counters: Counters,
    /// Vectors whose handler ran and whose owners were not yet told: set by handlers, taken by
    /// the executor, both on this CPU.
    pub pending: [AtomicU64; 4],
    /// How often each vector came.
    pub arrivals: [AtomicU64; 256],
    /// Whether the executor sleeps or is about to; others read it to decide on an IPI.
    pub idle: AtomicBool,
    /// Whether the CPU takes new work: set by itself when it is up, cleared by who parks it.
    pub online: AtomicBool,
    /// Whether the CPU executes: from its start until it has parked. Barriers wait for such CPUs.
    pub running: AtomicBool,
    /// How far its start has come: see [`Claim`].
    pub claim: AtomicU8,
    /// The rounds of [`super::clocks`], by which who starts it compares its time-stamp counter:
    /// asked by the former, answered by the CPU, which has read its counter before.
    pub clock_asked: AtomicU64,
    /// See [`PerCpu::clock_asked`].
    pub clock_answered: AtomicU64,
    /// See [`PerCpu::clock_asked`].
    pub clock_read: AtomicU64,
    /// What port 0x61 said at the last non-maskable interrupt: set by its handler on this CPU.
    pub nmi_reason: AtomicU8,
    /// The last barrier this CPU went through; the initiator reads it.
    pub barrier_seen: AtomicU64,
    /// Its descriptor tables, once it has some.
    pub tables: AtomicPtr<Tables>,
    /// The top of the stack on which it starts.
    pub stack_top: AtomicU64,
    /// The lowest address of the stack that tasks run on; below it lies the guard page.
    pub stack_bottom: AtomicUsize,
}

/// Who decides whether a CPU that is slow to start takes part: itself, by entering the kernel, or
/// the CPU that starts it, by giving it up. The first to change this from waiting has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Claim {
    /// Undecided.
    Waiting,
    /// It runs the kernel.
    Entered,
    /// It was given up and must not run the kernel.
    Abandoned,
}

#[repr(C, align(64))]
struct Counters([AtomicIsize; COUNTERS]);

// SAFETY: `this` points to the block itself and is only read.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    const fn new(index: usize, apic_id: u32) -> Self {
        Self {
            this: core::ptr::null(),
            index,
            apic_id: AtomicU32::new(apic_id),
            counters: Counters([const { AtomicIsize::new(0) }; COUNTERS]),
            pending: [const { AtomicU64::new(0) }; 4],
            arrivals: [const { AtomicU64::new(0) }; 256],
            idle: AtomicBool::new(false),
            online: AtomicBool::new(false),
            running: AtomicBool::new(false),
            tables: AtomicPtr::new(core::ptr::null_mut()),
            stack_top: AtomicU64::new(0),
            claim: AtomicU8::new(Claim::Waiting as u8),
            clock_asked: AtomicU64::new(0),
            clock_answered: AtomicU64::new(0),
            clock_read: AtomicU64::new(0),
            nmi_reason: AtomicU8::new(0),
            barrier_seen: AtomicU64::new(0),
            stack_bottom: AtomicUsize::new(0),
        }
    }

    /// The local APIC's ID.
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    /// Makes the block that of another CPU, before that has started.
    pub fn set_apic_id(&self, apic_id: u32) {
        self.apic_id.store(apic_id, Ordering::Relaxed);
    }

    /// Decides on the CPU's start, where that is open still; says whether this was the decision.
    pub fn decide(&self, claim: Claim) -> bool {
        let waiting = Claim::Waiting as u8;
        let (set, fail) = (Ordering::AcqRel, Ordering::Acquire);
        self.claim
            .compare_exchange(waiting, claim as u8, set, fail)
            .is_ok()
    }

    /// One of its CPU-local counters.
    pub fn counter(&self, counter: usize) -> isize {
        self.counters.0[counter].load(Ordering::Relaxed)
    }

    /// Where its CPU-local counters lie.
    pub fn counters(&self) -> core::ops::Range<*const AtomicIsize> {
        self.counters.0.as_ptr_range()
    }

    /// This CPU's number, counted from 0 without holes.
    pub fn index(&self) -> usize {
        self.index
    }
}

static BLOCKS: [AtomicPtr<PerCpu>; MAX_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
static POSSIBLE: AtomicUsize = AtomicUsize::new(1);

/// The boot CPU's block, which is needed before there is a heap.
static mut BOOT: PerCpu = PerCpu::new(0, 0);

/// Makes the boot CPU's block current. Once, first of all.
pub fn init_boot() {
    let block = &raw mut BOOT;
    // SAFETY: one CPU runs, and nobody has a reference to the block yet.
    unsafe { (*block).this = block };
    publish(block);
    set_current(block);
}

/// Makes a block for another CPU, findable by its number. The block is never freed.
pub fn create(index: usize, apic_id: u32) -> &'static PerCpu {
    let block = Box::leak(Box::new(PerCpu::new(index, apic_id)));
    block.this = block;
    publish(block);
    block
}

fn publish(block: *mut PerCpu) {
    // SAFETY: the caller's block is valid.
    let index = unsafe { (*block).index };
    BLOCKS[index].store(block, Ordering::Release);
    POSSIBLE.fetch_max(index + 1, Ordering::Release);
}

/// Takes the block with the highest number out of sight again, whose CPU did not start. It stays
/// valid. Nobody else starts CPUs meanwhile.
pub fn withdraw(block: &PerCpu) {
    POSSIBLE.store(block.index, Ordering::Release);
    BLOCKS[block.index].store(core::ptr::null_mut(), Ordering::Release);
}

/// Makes `block`, which [`withdraw`] took out of sight, findable again.
pub fn restore(block: &'static PerCpu) {
    publish(block.this.cast_mut());
}

/// Makes `block` the running CPU's.
pub fn set_current(block: *const PerCpu) {
    GsBase::write(VirtAddr::new(block as u64));
}

/// The running CPU's block.
#[inline(always)]
pub fn current() -> &'static PerCpu {
    let block: *const PerCpu;
    // SAFETY: GS points to this CPU's block from the first moments on, whose first word is its
    // own address; blocks live forever.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) block, options(nostack, preserves_flags, readonly));
        &*block
    }
}

/// CPU `index`'s block, where that CPU exists.
pub fn get(index: usize) -> Option<&'static PerCpu> {
    let block = BLOCKS.get(index)?.load(Ordering::Acquire);
    // SAFETY: published blocks are valid forever.
    unsafe { block.as_ref() }
}

/// All CPUs that were found.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..possible()).filter_map(get)
}

/// One more than the highest CPU number.
pub fn possible() -> usize {
    POSSIBLE.load(Ordering::Acquire)
}

// The link-time functions of `hal::cpu`.

#[unsafe(no_mangle)]
fn longshore_hal_cpu_current() -> usize {
    let index: usize;
    // SAFETY: as in `current`.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) index, const offset_of!(PerCpu, index),
            options(nostack, preserves_flags, readonly));
    }
    index
}

#[unsafe(no_mangle)]
fn longshore_hal_cpu_possible() -> usize {
    possible()
}

#[unsafe(no_mangle)]
fn longshore_hal_local_add(counter: usize, delta: isize) {
    assert!(counter < COUNTERS);
    // SAFETY: the counter is inside this CPU's block; one instruction reads and writes it, so that
    // neither an interrupt nor a move to another CPU can come between.
    unsafe {
        asm!("add qword ptr gs:[{counter} * 8 + {base}], {delta}",
            counter = in(reg) counter, delta = in(reg) delta,
            base = const offset_of!(PerCpu, counters), options(nostack));
    }
}

#[unsafe(no_mangle)]
fn longshore_hal_local_inc(counter: usize) {
    assert!(counter < COUNTERS);
    // SAFETY: as in `longshore_hal_local_add`.
    unsafe {
        asm!("inc qword ptr gs:[{counter} * 8 + {base}]", counter = in(reg) counter,
            base = const offset_of!(PerCpu, counters), options(nostack));
    }
}

#[unsafe(no_mangle)]
fn longshore_hal_local_dec(counter: usize) {
    assert!(counter < COUNTERS);
    // SAFETY: as in `longshore_hal_local_add`.
    unsafe {
        asm!("dec qword ptr gs:[{counter} * 8 + {base}]", counter = in(reg) counter,
            base = const offset_of!(PerCpu, counters), options(nostack));
    }
}

#[unsafe(no_mangle)]
fn longshore_hal_local_sum(counter: usize) -> isize {
    all().map(|cpu| cpu.counter(counter)).sum()
}
