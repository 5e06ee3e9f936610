//! What limits apply to an operation, and whether a device keeps them.

use hal::dma::{Destination, Source};

use crate::capability::Capabilities;
use crate::device::DeviceInfo;
use crate::prep::PrepReason;

/// An operation as the limits of a device see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    capability: Capabilities,
    sources: usize,
    len: usize,
    /// All bits that its addresses and its length have set: their common alignment.
    places: u64,
}

/// A buffer: where in physical memory it lies, and how long it is.
pub(crate) type Extent = (u64, usize);

#[inline(always)]
pub(crate) fn src(source: &Source) -> Extent {
    (source.phys(), source.len())
}

#[inline(always)]
pub(crate) fn dst(destination: &Destination) -> Extent {
    (destination.phys(), destination.len())
}

impl Shape {
    /// Of work on `buffers`, `sources` of which are sources. Fails where they differ in length.
    pub(crate) fn new(
        capability: Capabilities,
        sources: usize,
        buffers: impl IntoIterator<Item = Extent>,
    ) -> Result<Self, PrepReason> {
        let mut buffers = buffers.into_iter();
        let (place, len) = buffers.next().unwrap_or_default();
        let mut places = place | len as u64;
        for (place, other) in buffers {
            if other != len {
                return Err(PrepReason::LengthMismatch);
            }
            places |= place;
        }
        Ok(Self {
            capability,
            sources,
            len,
            places,
        })
    }

    /// Bytes of each buffer.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether a device can do it.
    #[inline(always)]
    pub(crate) fn fits(&self, info: &DeviceInfo) -> Result<(), PrepReason> {
        if !info.capabilities.contains(self.capability) {
            return Err(PrepReason::Unsupported);
        }
        let limit = match self.capability {
            Capabilities::XOR | Capabilities::XOR_VAL => info.max_xor.into(),
            Capabilities::PQ | Capabilities::PQ_VAL => info.max_pq.into(),
            _ => usize::MAX,
        };
        if self.sources > limit {
            return Err(PrepReason::TooManySources { limit });
        }
        let limit = info.max_transfer;
        if self.len > limit {
            return Err(PrepReason::TooLong { limit });
        }
        let align = 1 << info.copy_align;
        if !self.places.is_multiple_of(align as u64) {
            return Err(PrepReason::Misaligned { align });
        }
        Ok(())
    }
}
