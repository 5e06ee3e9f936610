//! What the units did not let pass: told, counted, and acted on.
//!
//! A unit's interrupt is recorded as any other; a task reads what was recorded. One stray access to
//! memory is enough: what has gone wrong with an engine cannot be known, so that it is in quarantine
//! from then on. It reaches nothing any more, it is removed, and what it had is done elsewhere; nobody
//! gets it until it has left the bus and come back (`pci remove`, its slot). A stray interrupt is told
//! alone: it reaches nobody, and one may be under way when its entry is taken back.

use alloc::sync::Arc;

use hal::irq::IrqEvent;
use hal::time::{Duration, Instant, pause};
use spin::Mutex;
use vtd::{Access, Fault, Reporter, Telling, Unit};

use super::confined;
use crate::drivers;
use crate::irq::{self, Retarget, Vector};
use crate::task;

static REPORTER: Mutex<Reporter> = Mutex::new(Reporter::new());

/// What was counted.
pub fn reporter() -> spin::MutexGuard<'static, Reporter> {
    REPORTER.lock()
}

/// A unit that faults without end gets the CPU so often and no more.
const PAUSE: Duration = Duration::from_millis(1);
/// Faults read in a row.
const ROUNDS: usize = 64;

struct Source(Arc<Unit>);

impl Retarget for Source {
    fn retarget(&self, _: &Arc<IrqEvent>, vector: Vector) {
        // The unit's own interrupt is not remapped. Intel SDM volume 3, 11.11.
        let address = u64::from(0xfee0_0000 | vector.apic_id << 12);
        self.0.set_fault_message(address, u32::from(vector.vector));
    }
}

/// Serves the units' faults, once tasks can run.
pub fn serve() {
    for unit in super::units() {
        let event = Arc::new(IrqEvent::default());
        let source = Arc::new(Source(unit.clone()));
        let sender: Arc<dyn Retarget> = source.clone();
        let Some(vector) = irq::bind_message("iommu", event.clone(), Some(Arc::downgrade(&sender)))
        else {
            log::error!("{unit}: no vector left for its faults");
            continue;
        };
        source.retarget(&event, vector);
        task::spawn("iommu", None, watch(source, event)).detach();
    }
}

async fn watch(source: Arc<Source>, event: Arc<IrqEvent>) {
    let mut seen = 0;
    loop {
        let mut rounds = 0;
        while source.0.has_faults() {
            let (faults, lost) = source.0.take_faults();
            faults.into_iter().for_each(note);
            if lost {
                REPORTER.lock().lose();
            }
            rounds += 1;
            if rounds % ROUNDS == 0 {
                pause(PAUSE).await;
            }
        }
        seen = event.beyond(seen).await;
    }
}

fn note(fault: Fault) {
    let telling = REPORTER.lock().note(fault, Instant::now());
    match telling {
        Telling::Line(0) => log::warn!("iommu: {fault}"),
        Telling::Line(untold) => log::warn!("iommu: {fault}, {untold} more before it"),
        Telling::Nothing => {}
    }
    if matches!(fault.access, Access::Interrupt(_)) {
        return;
    }
    // One that has no domain, or has lost it, reaches nothing anyway.
    let confined = confined::find(fault.device);
    if confined.is_some_and(|confined| !confined.domain().is_revoked()) {
        confined::quarantine(fault.device);
        task::spawn(
            "quarantine",
            None,
            drivers::removal::quarantine(fault.device),
        )
        .detach();
    }
}

/// How many vectors the units have reason for.
pub fn vectors() -> usize {
    super::units().count()
}
