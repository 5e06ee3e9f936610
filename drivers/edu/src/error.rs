//! Why a device is not used.

use core::fmt;

use dmaengine::RegisterError;

/// Why a device was not taken: one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The function is no educational device.
    Unknown {
        /// PCI vendor ID.
        vendor: u16,
        /// PCI device ID.
        device: u16,
    },
    /// BAR0 is absent or found no room.
    NoBar,
    /// BAR0 is too small for the registers.
    SmallBar {
        /// Bytes that there are.
        len: usize,
    },
    /// The registers read all ones.
    Gone,
    /// The identification register does not end in `00ed`.
    Identification(u32),
    /// The major version is not 1.
    Version {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The liveness register does not invert what is written to it.
    NotAlive {
        /// What was written.
        wrote: u32,
        /// What was read.
        read: u32,
    },
    /// A transfer that somebody else started does not end.
    Busy,
    /// The layer refused it.
    Register(RegisterError),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unknown { vendor, device } => {
                write!(f, "{vendor:04x}:{device:04x} is no educational device")
            }
            Self::NoBar => f.write_str("BAR0 is absent or found no room"),
            Self::SmallBar { len } => {
                write!(f, "BAR0 has {len:#x} bytes, too few for the registers")
            }
            Self::Gone => f.write_str("the registers read all ones"),
            Self::Identification(value) => {
                write!(
                    f,
                    "the identification is {value:#010x}, expected 0x....00ed"
                )
            }
            Self::Version { major, minor } => {
                write!(f, "version {major}.{minor}, expected 1.x")
            }
            Self::NotAlive { wrote, read } => {
                write!(f, "liveness check: wrote {wrote:#010x}, read {read:#010x}")
            }
            Self::Busy => f.write_str("a transfer of whoever had it before does not end"),
            Self::Register(error) => error.fmt(f),
        }
    }
}
