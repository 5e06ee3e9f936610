//! DMA without an IOMMU: device addresses are physical addresses. And how many mappings there are,
//! with one or without.

use core::sync::atomic::{AtomicUsize, Ordering};

use hal::dma::{Buffer, Direction, DmaOps, MapError, RawMapping};
use hal::pci::Address;

use super::hotplug;
use crate::events::{self, Event};
use crate::pci::bus;

/// The address space of the function at an address, which no IOMMU confines.
#[derive(Debug)]
pub struct Direct(pub Address);

/// Mappings of coherent memory that exist: kept here, as [`Event::Transfer`] is, where no driver
/// writes.
static COHERENT: AtomicUsize = AtomicUsize::new(0);

impl DmaOps for Direct {
    fn map(&self, buffers: &[Buffer], mapping: &mut RawMapping) -> Result<(), MapError> {
        mapping.push_direct(buffers);
        note(buffers, mapping);
        Ok(())
    }

    fn unmap(&self, mapping: &RawMapping) {
        forget(mapping);
    }

    fn isolate(&self) -> bool {
        let isolated = bus::isolate(self.0);
        hotplug::look(self.0);
        isolated
    }
}

/// Counts a mapping, and notes in its token as what.
pub fn note(buffers: &[Buffer], mapping: &mut RawMapping) {
    let coherent = buffers
        .iter()
        .any(|buffer| buffer.direction == Direction::Both);
    mapping.token = u64::from(coherent);
    if coherent {
        COHERENT.fetch_add(1, Ordering::Relaxed);
    } else {
        events::count(Event::Transfer);
    }
}

/// Counts it no more.
pub fn forget(mapping: &RawMapping) {
    if mapping.token != 0 {
        COHERENT.fetch_sub(1, Ordering::Relaxed);
    } else {
        events::uncount(Event::Transfer);
    }
}

/// How many mappings of transfers, and of coherent memory such as rings, exist.
pub fn mappings() -> (usize, usize) {
    (
        // Counts of one moment may be seen in another order.
        usize::try_from(events::total(Event::Transfer) as i64).unwrap_or(0),
        COHERENT.load(Ordering::Relaxed),
    )
}
