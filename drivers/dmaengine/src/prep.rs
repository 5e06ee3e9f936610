//! Preparing operations: what a channel can do with which buffers.

use core::fmt;

use hal::dma::{Destination, Source};

use crate::capability::Flags;
use crate::channel::Channel;
use crate::descriptor::Descriptor;
use crate::work::{Interrupt, Kind, Memcpy, Memset, Work};

/// Why an operation was not prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepReason {
    /// The device cannot do it.
    Unsupported,
    /// Source and destination differ in length.
    LengthMismatch,
    /// It is longer than the device can do at once.
    TooLong {
        /// Bytes that it can.
        limit: usize,
    },
    /// Source, destination or length is not aligned as the device needs it.
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
            Self::LengthMismatch => f.write_str("source and destination differ in length"),
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
        let places = [dst.phys(), src.phys()];
        let checked = if dst.len() == src.len() {
            self.check::<Memcpy>(dst.len(), &places)
        } else {
            Err(PrepReason::LengthMismatch)
        };
        match checked {
            Ok(()) => Ok(self.descriptor(Work::Memcpy { dst, src }, flags)),
            Err(reason) => Err(PrepError {
                reason,
                buffers: (dst, src),
            }),
        }
    }

    /// Prepares a fill of `dst` with `value`.
    pub fn prep_memset(
        &self,
        dst: Destination,
        value: u8,
        flags: Flags,
    ) -> Result<Descriptor<Memset>, PrepError<Memset>> {
        match self.check::<Memset>(dst.len(), &[dst.phys()]) {
            Ok(()) => Ok(self.descriptor(Work::Memset { dst, value }, flags)),
            Err(reason) => Err(PrepError {
                reason,
                buffers: dst,
            }),
        }
    }

    /// Prepares an operation that moves nothing and completes after all earlier ones.
    pub fn prep_interrupt(
        &self,
        flags: Flags,
    ) -> Result<Descriptor<Interrupt>, PrepError<Interrupt>> {
        match self.check::<Interrupt>(0, &[]) {
            Ok(()) => Ok(self.descriptor(Work::Interrupt, flags)),
            Err(reason) => Err(PrepError {
                reason,
                buffers: (),
            }),
        }
    }

    fn descriptor<K: Kind>(&self, work: Work, flags: Flags) -> Descriptor<K> {
        Descriptor::new(self.chan().clone(), work, flags)
    }

    fn check<K: Kind>(&self, len: usize, places: &[u64]) -> Result<(), PrepReason> {
        if self.is_gone() {
            return Err(PrepReason::Gone);
        }
        let info = self.info();
        if !info.capabilities.contains(K::CAPABILITY) {
            return Err(PrepReason::Unsupported);
        }
        let limit = info.max_transfer;
        if len > limit {
            return Err(PrepReason::TooLong { limit });
        }
        let align = 1 << info.copy_align;
        let all = places.iter().fold(len as u64, |all, place| all | place);
        if !all.is_multiple_of(align) {
            return Err(PrepReason::Misaligned {
                align: align as usize,
            });
        }
        Ok(())
    }
}
