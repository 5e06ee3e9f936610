//! Why an engine is not used.

use core::fmt;

use dmaengine::RegisterError;
use hal::irq::{IrqError, IrqKind};
use ioat_spec::device::XFERCAP_MIN;

/// Why a channel did not come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// The registers read all ones: the engine is gone.
    Gone,
    /// RESET did not finish within its limit.
    Stuck,
    /// RESET finished, but CHANERR still reports these errors.
    Errors(u32),
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the engine is gone"),
            Self::Stuck => f.write_str("RESET does not finish"),
            Self::Errors(errors) => write!(f, "CHANERR is {errors:#x} after RESET"),
        }
    }
}

/// Why an engine was not taken: one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The function is no engine that this driver knows.
    Unknown {
        /// PCI vendor ID.
        vendor: u16,
        /// PCI device ID.
        device: u16,
    },
    /// BAR0 is absent or found no room.
    NoBar,
    /// BAR0 is too small for the channels.
    SmallBar {
        /// Bytes that there are.
        len: usize,
        /// Bytes that are needed.
        needed: usize,
    },
    /// The registers read all ones.
    Gone,
    /// CBVER names a version other than 3.2 to 3.4.
    Version(u8),
    /// CHANCNT is 0.
    NoChannels,
    /// CHANCNT is more than its five bits can say.
    TooManyChannels(u8),
    /// XFERCAP is 0 or less than a page.
    TransferCapacity(u8),
    /// CHANERR_INT lies in extended configuration space, which cannot be reached.
    NoExtendedConfig,
    /// A channel did not come to rest.
    Reset {
        /// Which.
        channel: usize,
        /// Why.
        error: ResetError,
    },
    /// The interrupts that were asked for could not be bound.
    Interrupts(IrqKind, IrqError),
    /// The layer refused it.
    Register(RegisterError),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unknown { vendor, device } => {
                write!(f, "{vendor:04x}:{device:04x} is no engine that ioat knows")
            }
            Self::NoBar => f.write_str("BAR0 is absent or found no room"),
            Self::SmallBar { len, needed } => {
                write!(f, "BAR0 has {len:#x} bytes, its channels need {needed:#x}")
            }
            Self::Gone => f.write_str("the registers read all ones"),
            Self::Version(version) => {
                write!(f, "CBVER is {version:#04x}, expected 0x32 to 0x34")
            }
            Self::NoChannels => f.write_str("CHANCNT is 0: no channels"),
            Self::TooManyChannels(count) => write!(f, "CHANCNT is {count:#04x}: too many channels"),
            Self::TransferCapacity(log2) => {
                write!(f, "XFERCAP is {log2}, expected {XFERCAP_MIN} or more")
            }
            Self::NoExtendedConfig => f.write_str("extended configuration space is out of reach"),
            Self::Reset { channel, error } => write!(f, "channel {channel}: {error}"),
            Self::Interrupts(kind, error) => write!(f, "{kind:?}: {error}"),
            Self::Register(error) => error.fmt(f),
        }
    }
}
