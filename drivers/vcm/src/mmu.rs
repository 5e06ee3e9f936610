//! What a memory-management unit does for a context.

use core::ops::Range;

use crate::error::MmuError;
use crate::pages::{PageSizes, Run};

bitflags::bitflags! {
    /// What is allowed through a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u8 {
        /// Memory is read.
        const READ = 1;
        /// Memory is written.
        const WRITE = 2;
    }
}

impl From<hal::dma::Direction> for Access {
    fn from(direction: hal::dma::Direction) -> Self {
        match direction {
            hal::dma::Direction::ToDevice => Self::READ,
            hal::dma::Direction::FromDevice => Self::WRITE,
            hal::dma::Direction::Both => Self::READ | Self::WRITE,
        }
    }
}

/// A memory-management unit, or one address space of it: tables that [`Mmu::map`] and
/// [`Mmu::unmap`] change, and caches that [`Mmu::flush`] empties.
///
/// A context keeps the ranges of its calls apart: no two of them that run at the same time concern
/// the same address. Different addresses come from different CPUs at once.
pub trait Mmu: Send + Sync {
    /// The sizes of its pages.
    fn page_sizes(&self) -> PageSizes;

    /// The addresses that it translates.
    fn range(&self) -> Range<u64>;

    /// Bytes, whole pages, that stay unmapped behind each reservation: who runs over its end, or over the
    /// next one's beginning, meets nothing.
    fn gap(&self) -> u64 {
        0
    }

    /// Where this memory must be mapped, if the unit leaves no choice.
    fn fixed(&self, _phys: u64) -> Option<u64> {
        None
    }

    /// Makes pages translate. Nothing is mapped there. On an error, nothing of the run is in the tables;
    /// a flush follows.
    fn map(&self, run: Run, access: Access) -> Result<(), MmuError>;

    /// New translations of `range` are used from now on: for units that cache their absence.
    fn sync_map(&self, _range: &Range<u64>) -> Result<(), MmuError> {
        Ok(())
    }

    /// Takes the translations of `range` out of the tables: runs that were mapped, each as a whole.
    /// They may be cached until the flush; so may tables that become empty, which therefore stay, or
    /// are freed after it.
    fn unmap(&self, range: &Range<u64>);

    /// On return no translation of `ranges`, which were unmapped, is used any more, and what was
    /// written by them is in memory. Bounded; on an error all of this may still come.
    fn flush(&self, ranges: &[Range<u64>]) -> Result<(), MmuError>;

    /// Translates from now on. Never called while active.
    fn activate(&self) -> Result<(), MmuError> {
        Ok(())
    }

    /// Does not translate any more: nothing behind it reaches memory.
    fn deactivate(&self) {}

    /// A range is about to be reserved.
    fn reserve(&self, _range: &Range<u64>) -> Result<(), MmuError> {
        Ok(())
    }

    /// A range is not reserved any more. Nothing is mapped there.
    fn unreserve(&self, _range: &Range<u64>) {}
}
