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
    #[inline]
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
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use crate::operation::Record;
    use crate::{Flags, Operation, Registry, Sources, Xor};
    use hal::dma::{Buffer, Destination, Direction, DmaOps, MapError, Memory, RawMapping, Source};
    use hal::host::block_on;
    use std::boxed::Box;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::vec;

    /// A bus that reaches what is read, and counts.
    #[derive(Default)]
    struct Bus {
        live: AtomicUsize,
        read_only: bool,
    }

    impl DmaOps for Bus {
        fn map(&self, buffers: &[Buffer<'_>], mapping: &mut RawMapping) -> Result<(), MapError> {
            let written = |buffer: &Buffer<'_>| buffer.direction == Direction::FromDevice;
            if self.read_only && buffers.iter().any(written) {
                return Err(MapError::Unreachable);
            }
            self.live.fetch_add(buffers.len(), Ordering::Relaxed);
            mapping.push_direct(buffers);
            Ok(())
        }

        fn unmap(&self, mapping: &RawMapping) {
            // One segment for each buffer.
            let buffers = mapping.segments().len();
            self.live.fetch_sub(buffers, Ordering::Relaxed);
        }
    }

    fn source() -> Source {
        Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap()
    }

    fn destination() -> Destination {
        Destination::new(Memory::new(64).unwrap(), 0..64).unwrap()
    }

    fn copy() -> Operation {
        let (dst, src) = (destination(), source());
        Operation::new(Record::new(Work::Memcpy { dst, src }, Flags::empty()))
    }

    #[test]
    fn an_operation_loses_its_mappings_before_it_ends_or_goes_elsewhere() {
        let bus = Arc::new(Bus::default());
        let space = DmaSpace::new(bus.clone());
        let live = || bus.live.load(Ordering::Relaxed);
        let mut operation = copy();
        operation.map(&space).unwrap();
        assert_eq!(live(), 2);
        operation.map(&space).unwrap();
        assert_eq!(live(), 2, "anew, for another device");
        operation.unmap();
        assert_eq!(live(), 0);
        operation.map(&space).unwrap();
        drop(operation);
        assert_eq!(live(), 0);
    }

    #[test]
    fn a_client_gets_nothing_back_that_a_device_reaches() {
        let bus = Arc::new(Bus::default());
        let mock = Mock::new(1);
        let registry = Registry::new();
        let device = registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        let prepared = channel.prep_memcpy(destination(), source(), Flags::empty());
        let (seen, told) = (bus.clone(), Arc::new(AtomicUsize::new(usize::MAX)));
        let at_end = told.clone();
        let prepared = prepared.unwrap().callback(move |_| {
            at_end.store(seen.live.load(Ordering::Relaxed), Ordering::Relaxed);
        });
        let submitted = channel.submit(prepared).unwrap();
        let space = DmaSpace::new(bus.clone());
        mock.state.lock().ring[0].map(&space).unwrap();
        channel.issue_pending();
        assert_eq!(bus.live.load(Ordering::Relaxed), 2);
        assert!(mock.finish(Ok(())));
        assert_eq!(told.load(Ordering::Relaxed), 0);
        assert!(submitted.try_finish().unwrap().buffers.is_some());
    }

    #[test]
    fn what_is_mapped_in_part_is_not_mapped() {
        let bus = Arc::new(Bus {
            read_only: true,
            ..Bus::default()
        });
        let mut operation = copy();
        let refused = operation.map(&DmaSpace::new(bus.clone()));
        assert_eq!(refused, Err(SubmitReason::Map(MapError::Unreachable)));
        assert_eq!(bus.live.load(Ordering::Relaxed), 0);
        let bus = Arc::new(Bus::default());
        let narrow = DmaSpace::new(bus.clone()).with_address_bits(12);
        let refused = operation.map(&narrow);
        assert_eq!(refused, Err(SubmitReason::Map(MapError::Unreachable)));
        assert_eq!(bus.live.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn each_kind_has_its_own() {
        let space = DmaSpace::new(Arc::new(Bus::default()));
        let mapped = |work| {
            let mut operation = Operation::new(Record::new(work, Flags::empty()));
            operation.map(&space)?;
            let (dst, src) = operation.mapped().segments();
            Ok((dst.count() == 1, src.count() == 1))
        };
        let fill = Work::Memset {
            dst: destination(),
            value: 1,
        };
        assert_eq!(mapped(fill), Ok((true, false)));
        assert_eq!(mapped(Work::Interrupt), Ok((false, false)));
        let xor = Xor {
            dst: destination(),
            srcs: Sources::from_iter([source(), source()]),
        };
        let xor = Work::Xor(Box::new(xor));
        assert_eq!(mapped(xor), Err(SubmitReason::Unsupported));
    }
}
