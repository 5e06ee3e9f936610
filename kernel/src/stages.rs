//! The stages of the boot, and a watchdog over them.
//!
//! The boot CPU's timer interrupts once a second. Where a stage has made no progress for
//! [`LIMIT`], the handler says so, with a backtrace of what was interrupted; the boot goes on if it
//! can. From the first stage on the boot CPU takes interrupts of its own alone: its priority keeps
//! away those that firmware left.
//!
//! What is not seen: code that has interrupts off, and an access that hardware never answers.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use core::time::Duration;

use crate::arch::x86_64::apic;
use crate::arch::x86_64::traps::TrapFrame;
use crate::time::clock;

/// A stage, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// The firmware's tables.
    Tables,
    /// Measuring the clock.
    Clock,
    /// Starting the other CPUs.
    Cpus,
    /// Finding PCI functions.
    Pci,
    /// Taking the remapping units over.
    Iommu,
    /// Handing functions to their drivers.
    Drivers,
    /// The console is about to come.
    Up,
}

/// By [`Stage`].
const NAMES: [&str; 7] = ["tables", "clock", "cpus", "pci", "iommu", "drivers", "up"];
/// For how long a stage may stand still. Emulated CPUs share the host's.
const LIMIT: Duration = Duration::from_secs(10);
const STEP: u64 = 1_000_000_000;

static STAGE: AtomicU8 = AtomicU8::new(0);
/// When it last made progress.
static SINCE: AtomicU64 = AtomicU64::new(0);
static REPORTS: AtomicU64 = AtomicU64::new(0);

/// Begins a stage. `stall` names one that is to stand still, to show what happens then.
pub fn enter(stage: Stage, stall: Option<&str>) {
    STAGE.store(stage as u8, Ordering::Relaxed);
    progress();
    if stage != Stage::Up {
        apic::set_timer(Some(STEP));
    }
    if stall == Some(NAMES[stage as usize]) {
        stand_still();
    }
}

/// The stage goes on.
pub fn progress() {
    SINCE.store(clock::now_ns(), Ordering::Relaxed);
}

/// Looks at the clock: from the handler of the boot CPU's timer.
pub fn tick(frame: &TrapFrame) {
    let stage = STAGE.load(Ordering::Relaxed);
    if stage == Stage::Up as u8 {
        return;
    }
    let still = clock::now_ns().saturating_sub(SINCE.load(Ordering::Relaxed));
    let limit = LIMIT.as_nanos() as u64;
    let reports = REPORTS.load(Ordering::Relaxed);
    if still / limit > reports {
        REPORTS.store(still / limit, Ordering::Relaxed);
        let name = NAMES.get(usize::from(stage)).unwrap_or(&"?");
        let seconds = still / STEP;
        crate::panic::in_passing(
            frame,
            format_args!("WARN boot stands still in {name} for {seconds} s"),
        );
    } else if still < limit {
        REPORTS.store(0, Ordering::Relaxed);
    }
    apic::set_timer(Some(STEP));
}

/// Until it has been noticed.
#[inline(never)]
fn stand_still() {
    clock::spin_until(6 * LIMIT, || REPORTS.load(Ordering::Relaxed) > 0);
}
