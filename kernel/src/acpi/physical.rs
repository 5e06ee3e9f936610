//! Physical memory, as the tables are read from it.

use core::ops::Deref;

use super::place;
use super::tables::Memory;
use crate::boot_info::BootInfo;
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;

/// What of this machine's memory the firmware may have put tables into.
pub(super) struct Firmware<'i>(pub(super) &'i BootInfo);

/// Bytes of it, mapped.
pub(super) struct Mapped(PhysicalMapping);

impl Memory for Firmware<'_> {
    type Bytes = Mapped;

    fn bytes(&self, phys: u64, len: usize) -> Option<Mapped> {
        place::holds_table(self.0, phys, len as u64)
            .then(|| map(phys, len))
            .flatten()
    }
}

fn map(phys: u64, len: usize) -> Option<Mapped> {
    let mapping = PhysicalMapping::new(phys, len, Access::Read);
    mapping.ok().map(Mapped)
}

impl Mapped {
    /// A table's bytes, which have been read before: its signature, address and length.
    pub(super) fn again(&(_, phys, len): &([u8; 4], u64, usize)) -> Option<Self> {
        map(phys, len)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for this length as long as `self` lives. It is no memory that the kernel
        // uses, and firmware's does not change.
        unsafe { core::slice::from_raw_parts(self.0.addr() as *const u8, self.0.len()) }
    }
}
