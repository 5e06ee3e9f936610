//! What operations do, and to which buffers.

use core::fmt;

use hal::dma::{Destination, Source};

use crate::capability::Capabilities;

/// An operation's task and the buffers it owns.
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
    /// Moves nothing; it completes after all earlier operations of its channel.
    Interrupt,
}

impl Work {
    /// Bytes to be written.
    pub fn len(&self) -> usize {
        match self {
            Self::Memcpy { dst, .. } | Self::Memset { dst, .. } => dst.len(),
            Self::Interrupt => 0,
        }
    }

    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a device must be capable of.
    pub fn capability(&self) -> Capabilities {
        match self {
            Self::Memcpy { .. } => Capabilities::MEMCPY,
            Self::Memset { .. } => Capabilities::MEMSET,
            Self::Interrupt => Capabilities::INTERRUPT,
        }
    }

    /// All bits that its addresses and its length have set: their common alignment.
    pub(crate) fn places(&self) -> u64 {
        match self {
            Self::Memcpy { dst, src } => dst.phys() | src.phys() | dst.len() as u64,
            Self::Memset { dst, .. } => dst.phys() | dst.len() as u64,
            Self::Interrupt => 0,
        }
    }

    /// Does the work with the CPU.
    pub fn run_by_cpu(&mut self) {
        match self {
            Self::Memcpy { dst, src } => dst.bytes_mut().copy_from_slice(src.bytes()),
            Self::Memset { dst, value } => dst.bytes_mut().fill(*value),
            Self::Interrupt => {}
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// The kinds of operations: which buffers go in and come back.
pub trait Kind: sealed::Sealed + Send + Sync + 'static {
    /// The buffers of one operation.
    type Buffers: Send + fmt::Debug;
    /// What a device must be capable of.
    const CAPABILITY: Capabilities;
    /// Takes the buffers out of an operation of this kind.
    #[doc(hidden)]
    fn unwrap(work: Work) -> Option<Self::Buffers>;
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

impl sealed::Sealed for Memcpy {}
impl sealed::Sealed for Memset {}
impl sealed::Sealed for Interrupt {}

impl Kind for Memcpy {
    type Buffers = (Destination, Source);
    const CAPABILITY: Capabilities = Capabilities::MEMCPY;

    fn unwrap(work: Work) -> Option<Self::Buffers> {
        match work {
            Work::Memcpy { dst, src } => Some((dst, src)),
            _ => None,
        }
    }
}

impl Kind for Memset {
    type Buffers = Destination;
    const CAPABILITY: Capabilities = Capabilities::MEMSET;

    fn unwrap(work: Work) -> Option<Self::Buffers> {
        match work {
            Work::Memset { dst, .. } => Some(dst),
            _ => None,
        }
    }
}

impl Kind for Interrupt {
    type Buffers = ();
    const CAPABILITY: Capabilities = Capabilities::INTERRUPT;

    fn unwrap(work: Work) -> Option<()> {
        matches!(work, Work::Interrupt).then_some(())
    }
}
