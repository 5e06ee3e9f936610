//! Why something was not reserved, or a buffer not used.

use core::fmt;

use dma_fence::FenceError;
use hal::dma::{MapError, OutOfMemory};
use hal::time::Elapsed;

/// Why a ticket did not get what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReserveError {
    /// The ticket holds it already.
    Deadlock,
    /// An older ticket has it, or has asked for it: who holds others must let go of them first.
    Again,
    /// A younger ticket has it, and the caller does not wait.
    Busy,
    /// Somebody called the wait off.
    Interrupted,
    /// It belongs to another manager than the ticket.
    Foreign,
    /// It has no place for another shared fence.
    Full,
    /// There was no memory for another fence.
    OutOfMemory,
}

impl ReserveError {
    /// The number that Linux would use for it, negative.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Deadlock => -35,    // EDEADLK
            Self::Again => -11,       // EAGAIN
            Self::Busy => -16,        // EBUSY
            Self::Interrupted => -4,  // EINTR
            Self::Foreign => -18,     // EXDEV
            Self::Full => -22,        // EINVAL
            Self::OutOfMemory => -12, // ENOMEM
        }
    }
}

impl fmt::Display for ReserveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deadlock => "reserved twice by one ticket",
            Self::Again => "an older ticket has it",
            Self::Busy => "reserved",
            Self::Interrupted => "interrupted",
            Self::Foreign => "of another manager",
            Self::Full => "no place for another shared fence",
            Self::OutOfMemory => "out of memory",
        })
    }
}

/// Why a buffer was not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufError {
    /// It was not reserved.
    Reserve(ReserveError),
    /// The work that was to write it failed: there is nothing to read.
    Failed(FenceError),
    /// Its memory is with somebody whose fence was not waited for.
    Busy,
    /// A part of its memory was lost with a device.
    Lost,
    /// It has other memory now: unmap, and let go of everything else before mapping anew.
    Evicted,
    /// The attachment is not mapped.
    NotMapped,
    /// The attachment is synchronous.
    Synchronous,
    /// The devices do not see each other's writes, and the exporter cannot flush between them.
    Incoherent,
    /// Its exporter does not want the importer.
    Refused,
    /// It could not be mapped for the device.
    Map(MapError),
    /// Somebody needs it where it is.
    Pinned,
    /// The range leaves the buffer, or is empty.
    Range,
    /// The limit ran out.
    TimedOut,
    /// There is no memory for it.
    OutOfMemory,
}

impl BufError {
    /// The number that Linux would use for it, negative.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Reserve(error) => error.errno(),
            Self::Failed(error) => error.errno(),
            Self::Busy | Self::Pinned => -16, // EBUSY
            Self::Lost => -5,                 // EIO
            Self::Evicted => -116,            // ESTALE
            Self::NotMapped | Self::Synchronous | Self::Incoherent | Self::Range => -22, // EINVAL
            Self::Refused => -95,             // EOPNOTSUPP
            Self::Map(_) => -14,              // EFAULT
            Self::TimedOut => -110,           // ETIMEDOUT
            Self::OutOfMemory => -12,         // ENOMEM
        }
    }
}

impl fmt::Display for BufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserve(error) => return error.fmt(f),
            Self::Failed(error) => return error.fmt(f),
            Self::Map(error) => return error.fmt(f),
            Self::Busy => "its memory is in use",
            Self::Lost => "its memory was lost with a device",
            Self::Evicted => "evicted",
            Self::NotMapped => "not mapped",
            Self::Synchronous => "the attachment is synchronous",
            Self::Incoherent => "devices that are not coherent",
            Self::Refused => "refused by the exporter",
            Self::Pinned => "pinned",
            Self::Range => "outside the buffer",
            Self::TimedOut => "timed out",
            Self::OutOfMemory => "out of memory",
        })
    }
}

impl From<ReserveError> for BufError {
    fn from(error: ReserveError) -> Self {
        Self::Reserve(error)
    }
}

impl From<FenceError> for BufError {
    fn from(error: FenceError) -> Self {
        Self::Failed(error)
    }
}

impl From<MapError> for BufError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<OutOfMemory> for BufError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<Elapsed> for BufError {
    fn from(_: Elapsed) -> Self {
        Self::TimedOut
    }
}
