//! What can go wrong.

use core::fmt;

use hal::dma::{CoherentError, MapError};

/// What can go wrong with a unit or a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Its registers read all ones: there is no unit.
    Absent,
    /// Its registers reach beyond what is mapped of them.
    Registers,
    /// An architecture version that is not known.
    Version(u32),
    /// It knows no paging tables of 3, 4 or 5 levels.
    Widths(u8),
    /// Devices have fewer address bits than make sense.
    AddressBits(u8),
    /// Domain identifiers of more bits than there are.
    DomainBits(u32),
    /// It did not answer in time, to what is named; it is left alone from then on.
    Silent(&'static str),
    /// It refused an invalidation.
    Refused,
    /// It refused, or did not answer, earlier: nothing is asked of it any more.
    Failed,
    /// No memory for tables.
    Memory(CoherentError),
    /// All domain identifiers, or interrupt entries, are in use.
    Exhausted,
    /// The device has a domain already.
    Attached,
    /// The device's access was revoked.
    Revoked,
    /// Not whole pages, or beyond what the device or the machine can address.
    Range,
    /// Something is mapped there already.
    Mapped,
    /// It cannot remap interrupts.
    NoRemapping,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("its registers read all ones"),
            Self::Registers => f.write_str("registers beyond those that are mapped"),
            Self::Version(version) => write!(f, "unknown version {version:#x}"),
            Self::Widths(widths) => write!(f, "no known width of tables among {widths:#07b}"),
            Self::AddressBits(bits) => write!(f, "devices of {bits} address bits"),
            Self::DomainBits(bits) => write!(f, "domain identifiers of {bits} bits"),
            Self::Silent(what) => write!(f, "no answer to {what}"),
            Self::Refused => f.write_str("it refused an invalidation"),
            Self::Failed => f.write_str("it has failed earlier"),
            Self::Memory(error) => error.fmt(f),
            Self::Exhausted => f.write_str("nothing left to hand out"),
            Self::Attached => f.write_str("the device has a domain already"),
            Self::Revoked => f.write_str("the device's access was revoked"),
            Self::Range => f.write_str("not pages that can be mapped"),
            Self::Mapped => f.write_str("something is mapped there already"),
            Self::NoRemapping => f.write_str("it cannot remap interrupts"),
        }
    }
}

impl core::error::Error for Error {}

impl From<CoherentError> for Error {
    fn from(error: CoherentError) -> Self {
        Self::Memory(error)
    }
}

impl From<Error> for MapError {
    fn from(error: Error) -> Self {
        match error {
            Error::Range => Self::Unreachable,
            Error::Memory(_) | Error::Exhausted | Error::Mapped => Self::Exhausted,
            _ => Self::Gone,
        }
    }
}
