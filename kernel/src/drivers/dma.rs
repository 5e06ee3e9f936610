//! DMA without an IOMMU: device addresses are physical addresses.

use core::sync::atomic::{AtomicUsize, Ordering};

use hal::dma::{Direction, DmaOps, Extent, MapError, RawMapping};

/// The address space of a device that no IOMMU confines.
#[derive(Debug)]
pub struct Direct;

/// Mappings that exist, by what they are for: kept here, where no driver writes.
static TRANSFERS: AtomicUsize = AtomicUsize::new(0);
static COHERENT: AtomicUsize = AtomicUsize::new(0);

impl DmaOps for Direct {
    fn map(&self, memory: Extent, direction: Direction) -> Result<RawMapping, MapError> {
        let ledger = ledger(direction == Direction::Both);
        ledger.fetch_add(1, Ordering::Relaxed);
        Ok(RawMapping {
            segments: smallvec::smallvec![(memory.phys, memory.len)],
            token: u64::from(direction == Direction::Both),
        })
    }

    fn unmap(&self, mapping: &RawMapping) {
        ledger(mapping.token != 0).fetch_sub(1, Ordering::Relaxed);
    }
}

fn ledger(coherent: bool) -> &'static AtomicUsize {
    if coherent { &COHERENT } else { &TRANSFERS }
}

/// How many mappings of transfers, and of coherent memory such as rings, exist.
pub fn mappings() -> (usize, usize) {
    (
        TRANSFERS.load(Ordering::Relaxed),
        COHERENT.load(Ordering::Relaxed),
    )
}
