//! An operation's buffers as the device sees them in whose ring it is.

use hal::dma::{DmaSpace, Mapping};

use crate::provider::SubmitReason;
use crate::work::Work;

/// The mappings of an operation's buffers, as many as its kind has.
#[derive(Debug, Default)]
pub struct Mapped {
    /// Of what is written.
    pub dst: Option<Mapping>,
    /// Of what is read.
    pub src: Option<Mapping>,
}

impl Mapped {
    /// Maps the buffers of `work`.
    pub(crate) fn fill(&mut self, work: &Work, space: &DmaSpace) -> Result<(), SubmitReason> {
        if let Work::Memcpy { src, .. } = work {
            self.src = Some(space.map_source(src).map_err(SubmitReason::Map)?);
        }
        match work {
            Work::Memcpy { dst, .. } | Work::Memset { dst, .. } => {
                self.dst = Some(space.map_destination(dst).map_err(SubmitReason::Map)?);
                Ok(())
            }
            Work::Interrupt => Ok(()),
            Work::Xor(_) | Work::XorVal(_) | Work::Pq(_) | Work::PqVal(_) => {
                Err(SubmitReason::Unsupported)
            }
        }
    }

    /// The device reaches nothing of it any more.
    pub(crate) fn clear(&mut self) {
        (self.dst, self.src) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use crate::operation::Record;
    use crate::{Flags, Operation, Registry, Sources, Xor};
    use hal::dma::{Destination, DmaOps, Extent, MapError, Memory, RawMapping, Source};
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
        fn map(&self, memory: Extent, to: hal::dma::Direction) -> Result<RawMapping, MapError> {
            if self.read_only && to == hal::dma::Direction::FromDevice {
                return Err(MapError::Unreachable);
            }
            self.live.fetch_add(1, Ordering::Relaxed);
            Ok(RawMapping {
                segments: [(memory.phys, memory.len)].into_iter().collect(),
                token: 0,
            })
        }

        fn unmap(&self, _: &RawMapping) {
            self.live.fetch_sub(1, Ordering::Relaxed);
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
    }

    #[test]
    fn each_kind_has_its_own() {
        let space = DmaSpace::new(Arc::new(Bus::default()));
        let mapped = |work| {
            let mut operation = Operation::new(Record::new(work, Flags::empty()));
            operation.map(&space)?;
            let Mapped { dst, src } = operation.mapped();
            Ok((dst.is_some(), src.is_some()))
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
