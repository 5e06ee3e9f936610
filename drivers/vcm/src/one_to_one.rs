//! Without a unit: every address is the physical one.

use core::ops::Range;

use crate::error::MmuError;
use crate::mmu::{Access, Mmu};
use crate::pages::{PageSizes, Run};

/// Translates nothing: memory is reached at its own address, or not at all, so that scattered memory
/// is refused.
#[derive(Clone, Debug)]
pub struct OneToOne {
    range: Range<u64>,
}

impl OneToOne {
    /// For who reaches the physical addresses `range`.
    pub fn new(range: Range<u64>) -> Self {
        Self { range }
    }
}

impl Mmu for OneToOne {
    fn page_sizes(&self) -> PageSizes {
        PageSizes::all()
    }

    fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    fn fixed(&self, phys: u64) -> Option<u64> {
        Some(phys)
    }

    fn map(&self, run: Run, _: Access) -> Result<(), MmuError> {
        if run.at == run.phys {
            Ok(())
        } else {
            Err(MmuError::Untranslatable)
        }
    }

    fn unmap(&self, _: &Range<u64>) {}

    fn flush(&self, _: &[Range<u64>]) -> Result<(), MmuError> {
        Ok(())
    }
}
