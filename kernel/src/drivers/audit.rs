//! What exists, by the ledgers of those who hand it out, against what there is reason for.
//!
//! None of the ledgers is written by the code that they audit: mappings are counted by the bus,
//! buffers and fences by the allocators, timers by their queue, vectors by their table.

use core::fmt;

use dmaengine::registry;
use hal::time::{Duration, poll_until};

use super::{dma, machine};
use crate::console::input;
use crate::mm::heap;
use crate::time::timers;
use crate::{iommu, irq};

/// An audit at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Channels that are registered.
    pub chans: usize,
    /// Coherent memory mapped for devices: rings and completion words.
    pub rings: usize,
    /// Timers that wait.
    pub timers: usize,
    /// Vectors of devices.
    pub vectors: usize,
    /// What devices reach: buffers that are mapped, or where an IOMMU confines them, pages by its
    /// tables.
    pub iova: usize,
    /// Fences that exist.
    pub fences: usize,
    /// What exists without a reason.
    pub leaked: usize,
}

/// Counts, and compares with what the registered devices and their clients give reason for.
pub fn now() -> Audit {
    let channels = registry().channels();
    let (transfers, rings) = dma::mappings();
    let running = channels
        .iter()
        .filter(|channel| channel.is_running())
        .count();
    let in_flight: usize = channels.iter().map(|channel| channel.in_flight()).sum();
    let clients: usize = channels.iter().map(|channel| channel.clients()).sum();
    let vectors = irq::bound();
    let fences = heap::fences();
    // A channel has one ring, its completion word in the same memory. A copy maps two buffers.
    let mut leaked = rings.saturating_sub(running) + transfers.saturating_sub(2 * in_flight);
    let wanted = super::vectors() + super::hotplug::vectors() + input::vectors() + iommu::vectors();
    leaked += vectors.saturating_sub(wanted);
    if clients == 0 && in_flight == 0 && dmaengine::waiting() == 0 {
        let buffers = rings + hal::dma::withheld() + iommu::buffers();
        leaked += fences.saturating_sub(super::fences());
        leaked += machine::buffers().saturating_sub(buffers);
    }
    // Where devices are confined, their own tables say what they reach.
    let iova = if iommu::is_on() {
        iommu::reachable()
    } else {
        transfers + rings
    };
    if transfers + rings == 0 {
        leaked += if iommu::is_on() { iova } else { 0 };
    }
    Audit {
        chans: channels.len(),
        rings,
        timers: timers::pending(),
        vectors,
        iova,
        fences,
        leaked,
    }
}

/// The first clean audit that `look` ([`now`]) gives within `limit`; else the last one. What is on its
/// way out is counted in one ledger longer than in another: each look may see some of that, and one
/// after a clean one says nothing new.
pub async fn settled(limit: Duration, mut look: impl FnMut() -> Audit) -> Audit {
    let mut audit = look();
    let clean = || {
        if audit.leaked != 0 {
            audit = look();
        }
        audit.leaked == 0
    };
    let _ = poll_until(limit, Duration::from_millis(10), clean).await;
    audit
}

/// The line of the interface.
impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            chans,
            rings,
            timers,
            vectors,
            iova,
            fences,
            leaked,
        } = self;
        write!(
            f,
            "audit: chans={chans} rings={rings} timers={timers} vectors={vectors} iova={iova} \
             fences={fences} leaked={leaked}"
        )
    }
}
