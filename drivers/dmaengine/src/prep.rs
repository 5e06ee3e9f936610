//! Preparing operations: what a channel can do with which buffers.

use alloc::boxed::Box;
use core::fmt;

use hal::dma::{Destination, Source};

use crate::capability::Flags;
use crate::channel::Channel;
use crate::descriptor::Descriptor;
use crate::operation::Record;
use crate::raid::{Pq, PqVal, Xor, XorVal};
use crate::shape::{self, Shape};
use crate::work::{Interrupt, Kind, Memcpy, Memset, Work};

/// Why an operation was not prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepReason {
    /// The device cannot do it.
    Unsupported,
    /// Its buffers differ in length.
    LengthMismatch,
    /// It has less sources than make sense.
    TooFewSources {
        /// Sources that do.
        least: usize,
    },
    /// It has more sources than the device takes at once.
    TooManySources {
        /// Sources that it takes.
        limit: usize,
    },
    /// Neither P nor Q is asked for.
    NoParity,
    /// It is longer than the device can do at once.
    TooLong {
        /// Bytes that it can.
        limit: usize,
    },
    /// An address or the length is not aligned as the device needs it.
    Misaligned {
        /// The alignment, in bytes.
        align: usize,
    },
    /// The device is gone.
    Gone,
}

impl fmt::Display for PrepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("the device cannot do that"),
            Self::LengthMismatch => f.write_str("the buffers differ in length"),
            Self::TooFewSources { least } => write!(f, "less than {least} sources"),
            Self::TooManySources { limit } => {
                write!(f, "more than the {limit} sources of one operation")
            }
            Self::NoParity => f.write_str("neither P nor Q is asked for"),
            Self::TooLong { limit } => write!(f, "longer than the {limit} bytes of one operation"),
            Self::Misaligned { align } => write!(f, "not aligned to {align} bytes"),
            Self::Gone => f.write_str("the device is gone"),
        }
    }
}

/// An operation that was not prepared; its buffers come back.
#[derive(Debug)]
pub struct PrepError<K: Kind> {
    /// Why.
    pub reason: PrepReason,
    /// The buffers.
    pub buffers: K::Buffers,
}

impl<K: Kind> fmt::Display for PrepError<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl Channel {
    /// Prepares a copy of all of `src` to `dst`.
    pub fn prep_memcpy(
        &self,
        dst: Destination,
        src: Source,
        flags: Flags,
    ) -> Result<Descriptor<Memcpy>, PrepError<Memcpy>> {
        let buffers = [shape::dst(&dst), shape::src(&src)];
        let shape = Shape::new(Memcpy::CAPABILITY, 1, buffers);
        let work = |(dst, src)| Work::Memcpy { dst, src };
        self.prepare(shape, (dst, src), work, flags)
    }

    /// Prepares a fill of `dst` with `value`.
    pub fn prep_memset(
        &self,
        dst: Destination,
        value: u8,
        flags: Flags,
    ) -> Result<Descriptor<Memset>, PrepError<Memset>> {
        let shape = Shape::new(Memset::CAPABILITY, 0, [shape::dst(&dst)]);
        self.prepare(shape, dst, |dst| Work::Memset { dst, value }, flags)
    }

    /// Prepares an exclusive or.
    pub fn prep_xor(
        &self,
        xor: impl Into<Box<Xor>>,
        flags: Flags,
    ) -> Result<Descriptor<Xor>, PrepError<Xor>> {
        let xor = xor.into();
        self.prepare(xor.shape(), xor, Work::Xor, flags)
    }

    /// Prepares the check of an exclusive or. What it finds comes back with the buffers.
    pub fn prep_xor_val(
        &self,
        xor: impl Into<Box<XorVal>>,
        flags: Flags,
    ) -> Result<Descriptor<XorVal>, PrepError<XorVal>> {
        let mut xor = xor.into();
        xor.found = None;
        self.prepare(xor.shape(), xor, Work::XorVal, flags)
    }

    /// Prepares the parities of RAID 6.
    pub fn prep_pq(
        &self,
        pq: impl Into<Box<Pq>>,
        flags: Flags,
    ) -> Result<Descriptor<Pq>, PrepError<Pq>> {
        let pq = pq.into();
        self.prepare(pq.shape(), pq, Work::Pq, flags)
    }

    /// Prepares the check of the parities of RAID 6. What it finds comes back with the buffers.
    pub fn prep_pq_val(
        &self,
        pq: impl Into<Box<PqVal>>,
        flags: Flags,
    ) -> Result<Descriptor<PqVal>, PrepError<PqVal>> {
        let mut pq = pq.into();
        pq.found = None;
        self.prepare(pq.shape(), pq, Work::PqVal, flags)
    }

    /// Prepares an operation that moves nothing and completes after all earlier ones.
    pub fn prep_interrupt(
        &self,
        flags: Flags,
    ) -> Result<Descriptor<Interrupt>, PrepError<Interrupt>> {
        let shape = Shape::new(Interrupt::CAPABILITY, 0, []);
        self.prepare(shape, (), |()| Work::Interrupt, flags)
    }

    #[inline(always)]
    fn prepare<K: Kind>(
        &self,
        shape: Result<Shape, PrepReason>,
        buffers: K::Buffers,
        work: impl FnOnce(K::Buffers) -> Work,
        flags: Flags,
    ) -> Result<Descriptor<K>, PrepError<K>> {
        match shape.and_then(|shape| self.check(shape)) {
            Ok(()) => {
                let record = Record::new(work(buffers), flags);
                Ok(Descriptor::new(self.chan().clone(), record))
            }
            Err(reason) => Err(PrepError { reason, buffers }),
        }
    }

    #[inline(always)]
    fn check(&self, shape: Shape) -> Result<(), PrepReason> {
        if self.is_gone() {
            return Err(PrepReason::Gone);
        }
        shape.fits(self.info())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use crate::{Capabilities, Counters, DeviceInfo, Registry, Sources, SubmitReason, Weighted};
    use hal::dma::Memory;
    use hal::host::block_on;
    use hal::time::Duration;
    use std::string::ToString;
    use std::sync::Arc;
    use std::vec;

    fn source(range: core::ops::Range<usize>) -> Source {
        Source::new(Arc::new(Memory::new(4096).unwrap()), range).unwrap()
    }

    fn destination(range: core::ops::Range<usize>) -> Destination {
        Destination::new(Memory::new(4096).unwrap(), range).unwrap()
    }

    fn xor(dst: usize, srcs: &[usize]) -> Xor {
        let srcs = srcs.iter().map(|&len| source(0..len)).collect();
        let dst = destination(0..dst);
        Xor { dst, srcs }
    }

    fn pq(p: Option<usize>, q: Option<usize>, srcs: &[usize]) -> Pq {
        let parity = |len: Option<usize>| len.map(|len| destination(0..len));
        Pq {
            p: parity(p),
            q: parity(q),
            srcs: srcs.iter().map(|&len| (source(0..len), 1)).collect(),
        }
    }

    fn narrow() -> DeviceInfo {
        DeviceInfo {
            capabilities: Capabilities::all().difference(Capabilities::PRIVATE),
            copy_align: 3,
            max_transfer: 128,
            max_xor: 4,
            max_pq: 3,
            ..mock::info()
        }
    }

    fn channel_of(info: DeviceInfo) -> (Registry, Channel) {
        let registry = Registry::new();
        let device = registry.register(info, vec![Mock::eager(2)]).unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        (registry, channel)
    }

    /// Nothing was counted, nothing is in the ring, and what comes next has the first number.
    fn untouched(channel: &Channel) {
        assert_eq!(channel.counters(), Counters::default());
        assert_eq!(channel.in_flight(), 0);
        let next = channel.prep_interrupt(Flags::empty()).unwrap();
        let submitted = channel.submit(next).unwrap();
        assert_eq!(submitted.cookie().0, 1);
    }

    #[test]
    fn nothing_has_no_length() {
        let memory = Memory::new(64).unwrap();
        assert!(Destination::new(memory, 8..8).is_err());
        assert!(Source::new(Arc::new(Memory::new(64).unwrap()), 64..64).is_none());
    }

    #[test]
    fn wrong_exclusive_ors_come_back() {
        let (_registry, channel) = channel_of(narrow());
        let refused = |xor: Xor| {
            let (to, count) = (xor.dst.phys(), xor.srcs.len());
            let error = channel.prep_xor(xor, Flags::empty()).unwrap_err();
            let Xor { dst, srcs } = *error.buffers;
            assert_eq!((dst.phys(), srcs.len()), (to, count));
            error.reason
        };
        let few = PrepReason::TooFewSources { least: 2 };
        let many = PrepReason::TooManySources { limit: 4 };
        let long = PrepReason::TooLong { limit: 128 };
        let misaligned = PrepReason::Misaligned { align: 8 };
        assert_eq!(refused(xor(64, &[])), few);
        assert_eq!(refused(xor(64, &[64])), few);
        assert_eq!(refused(xor(64, &[64; 5])), many);
        assert_eq!(refused(xor(64, &[64, 64, 56])), PrepReason::LengthMismatch);
        assert_eq!(refused(xor(56, &[64, 64])), PrepReason::LengthMismatch);
        assert_eq!(refused(xor(136, &[136, 136])), long);
        assert_eq!(refused(xor(60, &[60, 60])), misaligned);
        let srcs = [source(0..64), source(4..68)].into_iter().collect();
        let dst = destination(0..64);
        assert_eq!(refused(Xor { dst, srcs }), misaligned);
        let srcs = Sources::from_elem(source(0..64), 2);
        let dst = destination(4..68);
        assert_eq!(refused(Xor { dst, srcs }), misaligned);
        untouched(&channel);
    }

    #[test]
    fn wrong_parities_come_back() {
        let (_registry, channel) = channel_of(narrow());
        let refused = |pq: Pq| {
            let (p, q, count) = (pq.p.is_some(), pq.q.is_some(), pq.srcs.len());
            let error = channel.prep_pq(pq, Flags::empty()).unwrap_err();
            let Pq {
                p: back,
                q: other,
                srcs,
            } = *error.buffers;
            assert_eq!((back.is_some(), other.is_some(), srcs.len()), (p, q, count));
            error.reason
        };
        let few = PrepReason::TooFewSources { least: 1 };
        let many = PrepReason::TooManySources { limit: 3 };
        let long = PrepReason::TooLong { limit: 128 };
        let misaligned = PrepReason::Misaligned { align: 8 };
        assert_eq!(refused(pq(Some(64), Some(64), &[])), few);
        assert_eq!(refused(pq(None, None, &[64, 64])), PrepReason::NoParity);
        assert_eq!(refused(pq(Some(64), Some(64), &[64; 4])), many);
        for (p, q) in [(Some(56), Some(64)), (Some(64), Some(56)), (None, Some(56))] {
            let reason = refused(pq(p, q, &[64, 64]));
            assert_eq!(reason, PrepReason::LengthMismatch);
        }
        assert_eq!(refused(pq(Some(136), None, &[136])), long);
        assert_eq!(refused(pq(Some(60), None, &[60])), misaligned);
        untouched(&channel);
    }

    #[test]
    fn wrong_checks_come_back() {
        let (_registry, channel) = channel_of(narrow());
        let refused = |srcs: Sources| {
            let count = srcs.len();
            let error = channel.prep_xor_val(XorVal::new(srcs), Flags::empty());
            let error = error.unwrap_err();
            assert_eq!(
                (error.buffers.srcs.len(), error.buffers.found),
                (count, None)
            );
            error.reason
        };
        let few = PrepReason::TooFewSources { least: 2 };
        let many = PrepReason::TooManySources { limit: 4 };
        assert_eq!(refused(Sources::new()), few);
        assert_eq!(refused(Sources::from_elem(source(0..64), 5)), many);
        let mixed = [source(0..64), source(0..56)].into_iter().collect();
        assert_eq!(refused(mixed), PrepReason::LengthMismatch);
        let refused = |p: Option<usize>, q: Option<usize>, srcs: usize| {
            let parity = |len: Option<usize>| len.map(|len| source(0..len));
            let (p, q) = (parity(p), parity(q));
            let srcs = Weighted::from_elem((source(0..64), 1), srcs);
            let check = PqVal {
                p,
                q,
                srcs,
                found: None,
            };
            let error = channel.prep_pq_val(check, Flags::empty()).unwrap_err();
            assert_eq!(error.buffers.found, None);
            error.reason
        };
        assert_eq!(refused(None, None, 2), PrepReason::NoParity);
        assert_eq!(refused(Some(56), Some(64), 2), PrepReason::LengthMismatch);
        let few = PrepReason::TooFewSources { least: 1 };
        assert_eq!(refused(Some(64), Some(64), 0), few);
        let many = PrepReason::TooManySources { limit: 3 };
        assert_eq!(refused(Some(64), Some(64), 4), many);
        untouched(&channel);
    }

    #[test]
    fn what_a_device_lacks_and_what_is_gone_are_told_apart() {
        let (registry, channel) = channel_of(mock::info());
        let reason = |xor: Xor| channel.prep_xor(xor, Flags::empty()).unwrap_err().reason;
        assert_eq!(reason(xor(64, &[64, 64])), PrepReason::Unsupported);
        untouched(&channel);
        let device = registry.devices().remove(0);
        block_on(registry.unregister(&device, Duration::from_millis(5)));
        assert_eq!(reason(xor(64, &[64, 64])), PrepReason::Gone);
    }

    /// The layer asks a provider for its kinds once, when it registers: one that changes its mind
    /// later gets its say.
    #[test]
    fn what_a_provider_does_not_take_comes_back() {
        let registry = Registry::new();
        let mock = Mock::eager(2);
        let registered = registry.register(narrow(), vec![mock.clone()]);
        let chan = registered.unwrap().channels().next().unwrap();
        let channel = block_on(chan.request()).unwrap();
        mock.state.lock().refused = Capabilities::XOR;
        let descriptor = channel.prep_xor(xor(64, &[64, 64]), Flags::empty());
        let error = channel.submit(descriptor.unwrap()).unwrap_err();
        assert_eq!(error.reason, SubmitReason::Unsupported);
        assert_eq!(error.to_string(), "the channel does not do that");
        assert_eq!(error.descriptor.into_buffers().srcs.len(), 2);
        untouched(&channel);
    }

    #[test]
    fn reasons_are_one_line_each() {
        for (reason, line) in [
            (
                PrepReason::TooFewSources { least: 2 },
                "less than 2 sources",
            ),
            (
                PrepReason::TooManySources { limit: 3 },
                "more than the 3 sources of one operation",
            ),
            (PrepReason::NoParity, "neither P nor Q is asked for"),
            (PrepReason::LengthMismatch, "the buffers differ in length"),
        ] {
            assert_eq!(reason.to_string(), line);
        }
    }
}
