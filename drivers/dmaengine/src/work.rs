//! What operations do, and to which buffers.

use alloc::boxed::Box;
use core::fmt;

use hal::dma::{Destination, Source};

use self::sealed::Sealed;
use crate::capability::Capabilities;
use crate::operation::Record;
use crate::prep::PrepReason;
use crate::raid::{Pq, PqVal, Xor, XorVal};
use crate::shape::{self, Shape};

/// An operation's task and the buffers it owns. Providers refuse what they do not know, by
/// [`crate::SubmitReason::Unsupported`].
// Its tag is as wide as it is aligned: so it is moved by whole words.
#[non_exhaustive]
#[repr(u64)]
#[derive(Debug)]
pub enum Work {
    /// Copies all of `src` to `dst`; they are equally long.
    Memcpy {
        /// Where to.
        dst: Destination,
        /// Where from.
        src: Source,
    },
    /// Writes `value` to every byte of `dst`.
    Memset {
        /// Where to.
        dst: Destination,
        /// With what.
        value: u8,
    },
    /// Writes the exclusive or of several sources.
    Xor(Box<Xor>),
    /// Checks that the exclusive or of several sources is zero.
    XorVal(Box<XorVal>),
    /// Computes the parities of RAID 6.
    Pq(Box<Pq>),
    /// Checks them.
    PqVal(Box<PqVal>),
    /// Moves nothing; it completes after all earlier operations of its channel.
    Interrupt,
}

impl Work {
    /// Bytes of each of its buffers: all are equally long.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Memcpy { dst, .. } | Self::Memset { dst, .. } => dst.len(),
            Self::Interrupt => 0,
            _ => self.shape().map_or(0, |shape| shape.len()),
        }
    }

    /// Whether it has no buffers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a device must be capable of.
    pub fn capability(&self) -> Capabilities {
        match self {
            Self::Memcpy { .. } => Capabilities::MEMCPY,
            Self::Memset { .. } => Capabilities::MEMSET,
            Self::Xor(_) => Capabilities::XOR,
            Self::XorVal(_) => Capabilities::XOR_VAL,
            Self::Pq(_) => Capabilities::PQ,
            Self::PqVal(_) => Capabilities::PQ_VAL,
            Self::Interrupt => Capabilities::INTERRUPT,
        }
    }

    /// What it asks of a device. Fails for work that no device could do.
    pub(crate) fn shape(&self) -> Result<Shape, PrepReason> {
        let caps = self.capability();
        match self {
            Self::Memcpy { dst, src } => Shape::new(caps, 1, [shape::dst(dst), shape::src(src)]),
            Self::Memset { dst, .. } => Shape::new(caps, 0, [shape::dst(dst)]),
            Self::Xor(xor) => xor.shape(),
            Self::XorVal(xor) => xor.shape(),
            Self::Pq(pq) => pq.shape(),
            Self::PqVal(pq) => pq.shape(),
            Self::Interrupt => Shape::new(caps, 0, []),
        }
    }

    /// Does the work with the CPU.
    pub fn run_by_cpu(&mut self) {
        match self {
            Self::Memcpy { dst, src } => dst.bytes_mut().copy_from_slice(src.bytes()),
            Self::Memset { dst, value } => dst.bytes_mut().fill(*value),
            Self::Xor(xor) => xor.run(),
            Self::XorVal(xor) => xor.run(),
            Self::Pq(pq) => pq.run(),
            Self::PqVal(pq) => pq.run(),
            Self::Interrupt => {}
        }
    }

    /// See [`Destination::withhold`].
    pub(crate) fn withhold(&mut self) {
        match self {
            Self::Memcpy { dst, .. } | Self::Memset { dst, .. } => dst.withhold(),
            Self::Xor(xor) => xor.dst.withhold(),
            Self::Pq(pq) => [&mut pq.p, &mut pq.q]
                .into_iter()
                .flatten()
                .for_each(Destination::withhold),
            Self::XorVal(_) | Self::PqVal(_) | Self::Interrupt => {}
        }
    }
}

pub(crate) mod sealed {
    use alloc::boxed::Box;

    use super::Kind;
    use crate::operation::Record;

    pub trait Sealed {
        /// Takes the buffers out of the record of an operation of this kind: out of the heap, where
        /// they lie, and not by way of the stack.
        fn unwrap(record: Box<Record>) -> Option<Self::Buffers>
        where
            Self: Kind;
    }
}

/// The kinds of operations: which buffers go in and come back.
pub trait Kind: Sealed + Send + Sync + 'static {
    /// The buffers of one operation.
    type Buffers: Send + fmt::Debug;
    /// What a device must be capable of.
    const CAPABILITY: Capabilities;
}

/// Copies; see [`Work::Memcpy`].
#[derive(Debug)]
pub enum Memcpy {}

/// Fills; see [`Work::Memset`].
#[derive(Debug)]
pub enum Memset {}

/// Only interrupts; see [`Work::Interrupt`].
#[derive(Debug)]
pub enum Interrupt {}

impl Kind for Memcpy {
    type Buffers = (Destination, Source);
    const CAPABILITY: Capabilities = Capabilities::MEMCPY;
}

impl Sealed for Memcpy {
    #[inline(always)]
    fn unwrap(record: Box<Record>) -> Option<(Destination, Source)> {
        match record.work {
            Work::Memcpy { dst, src } => Some((dst, src)),
            _ => None,
        }
    }
}

impl Kind for Memset {
    type Buffers = Destination;
    const CAPABILITY: Capabilities = Capabilities::MEMSET;
}

impl Sealed for Memset {
    #[inline(always)]
    fn unwrap(record: Box<Record>) -> Option<Destination> {
        match record.work {
            Work::Memset { dst, .. } => Some(dst),
            _ => None,
        }
    }
}

impl Kind for Interrupt {
    type Buffers = ();
    const CAPABILITY: Capabilities = Capabilities::INTERRUPT;
}

impl Sealed for Interrupt {
    fn unwrap(record: Box<Record>) -> Option<()> {
        matches!(record.work, Work::Interrupt).then_some(())
    }
}
