//! An operation's buffers as the device sees them in whose ring it is.

use hal::dma::{DmaSpace, Mapping, Segment};

use crate::provider::SubmitReason;
use crate::work::Work;

/// The mapping of an operation's buffers, as many as its kind has.
#[derive(Debug, Default)]
pub struct Mapped(Mapping);

impl Mapped {
    /// What the device writes, and what it reads.
    pub fn segments(
        &self,
    ) -> (
        impl Iterator<Item = Segment<'_>> + Clone,
        impl Iterator<Item = Segment<'_>> + Clone,
    ) {
        self.0.operation()
    }

    /// Maps the buffers of `work`.
    pub(crate) fn fill(&mut self, work: &Work, space: &DmaSpace) -> Result<(), SubmitReason> {
        let (dst, src) = match work {
            Work::Memcpy { dst, src } => (dst, Some(src)),
            Work::Memset { dst, .. } => (dst, None),
            Work::Interrupt => return Ok(()),
            Work::Xor(_) | Work::XorVal(_) | Work::Pq(_) | Work::PqVal(_) => {
                return Err(SubmitReason::Unsupported);
            }
        };
        space
            .map_operation(&mut self.0, dst, src)
            .map_err(SubmitReason::Map)
    }

    /// The device reaches nothing of it any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
