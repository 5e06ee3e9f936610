//! A part of a domain's addresses as the memory-management unit of a `vcm` context.

use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;

use vcm::{Mmu, MmuError, PageSizes, Run};

use crate::capabilities::Features;
use crate::domain::Domain;
use crate::error::Error;
use crate::tables::Permissions;

/// The addresses `range` of a domain. While the context is active, the device is attached to the
/// domain, with all that is mapped in it elsewhere.
pub struct Window {
    domain: Arc<Domain>,
    range: Range<u64>,
}

impl Window {
    /// `range` of `domain`, in whole pages; `None` where it is empty, or beyond what devices address.
    pub fn new(domain: Arc<Domain>, range: Range<u64>) -> Option<Self> {
        let end = 1 << domain.unit().capabilities().address_bits;
        (!range.is_empty() && range.end <= end).then_some(Self { domain, range })
    }

    /// The domain.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }
}

impl From<Error> for MmuError {
    fn from(error: Error) -> Self {
        match error {
            Error::Memory(_) | Error::Exhausted => Self::NoMemory,
            Error::Range | Error::Mapped => Self::Untranslatable,
            Error::Silent(_) => Self::TimedOut,
            _ => Self::Gone,
        }
    }
}

impl Mmu for Window {
    fn page_sizes(&self) -> PageSizes {
        let unit = self.domain.unit().capabilities();
        let mut sizes = PageSizes::KIB4;
        sizes.set(PageSizes::MIB2, unit.has(Features::PAGES_2M));
        sizes.set(PageSizes::GIB1, unit.has(Features::PAGES_1G));
        sizes
    }

    fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    fn gap(&self) -> u64 {
        4096
    }

    fn map(&self, run: Run, access: vcm::Access) -> Result<(), MmuError> {
        let mut permissions = Permissions::empty();
        permissions.set(Permissions::READ, access.contains(vcm::Access::READ));
        permissions.set(Permissions::WRITE, access.contains(vcm::Access::WRITE));
        Ok(self.domain.map(run.at, run.phys, run.len, permissions)?)
    }

    fn sync_map(&self, _: &Range<u64>) -> Result<(), MmuError> {
        Ok(self.domain.flush()?)
    }

    fn unmap(&self, range: &Range<u64>) {
        if let Err(error) = self.domain.unmap(range.start, range.end - range.start) {
            // What was mapped as a whole needs no memory to be unmapped so. Whoever unmaps otherwise
            // does not leave more mapped than it believes.
            log::error!("{:?}: {error}: revoked", self.domain);
            let _ = self.domain.revoke();
        }
    }

    fn flush(&self, _: &[Range<u64>]) -> Result<(), MmuError> {
        Ok(self.domain.flush()?)
    }

    fn activate(&self) -> Result<(), MmuError> {
        Ok(self.domain.attach()?)
    }

    fn deactivate(&self) {
        // A unit that fails has said so.
        let _ = self.domain.detach();
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({:?}, {:#x?})", self.domain, self.range)
    }
}
