//! What can be wrong.

use core::fmt;

/// Why a memory-management unit did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmuError {
    /// There is no memory for its tables.
    NoMemory,
    /// It cannot translate this address to that memory.
    Untranslatable,
    /// It did not answer in time.
    TimedOut,
    /// It is gone, or broken.
    Gone,
}

impl fmt::Display for MmuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "no memory for translation tables",
            Self::Untranslatable => "no translation from this address to that memory",
            Self::TimedOut => "the memory-management unit does not answer",
            Self::Gone => "the memory-management unit is gone",
        })
    }
}

/// Why there is no reservation, or nothing is bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nothing was asked for: a size of zero, memory without a byte.
    Empty,
    /// More than the whole address space, or more memory than was reserved.
    TooLarge,
    /// Size, address or alignment is not in whole pages, or no power of two.
    Misaligned,
    /// The address is none of this context's.
    OutOfRange,
    /// Somebody has reserved a part of it.
    Overlap,
    /// No free range is large enough.
    Exhausted,
    /// Memory is bound already.
    Bound,
    /// No memory is bound.
    NotBound,
    /// It is not reserved any more.
    Unreserved,
    /// The unit may still use what was unbound: nobody gets the range.
    Withheld,
    /// Nobody has activated the context.
    NotActive,
    /// The unit refused.
    Mmu(MmuError),
}

impl Error {
    /// The number that Linux would use for it, negative.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Empty | Self::Misaligned | Self::Unreserved | Self::NotActive => -22, // EINVAL
            Self::TooLarge | Self::OutOfRange => -34,                                   // ERANGE
            Self::Overlap => -17,                                                       // EEXIST
            Self::Exhausted => -28,                                                     // ENOSPC
            Self::Bound => -114,                                                        // EALREADY
            Self::NotBound => -2,                                                       // ENOENT
            Self::Withheld => -16,                                                      // EBUSY
            Self::Mmu(MmuError::NoMemory) => -12,                                       // ENOMEM
            Self::Mmu(MmuError::Untranslatable) => -95, // EOPNOTSUPP
            Self::Mmu(MmuError::TimedOut) => -110,      // ETIMEDOUT
            Self::Mmu(MmuError::Gone) => -19,           // ENODEV
        }
    }
}

impl From<MmuError> for Error {
    fn from(error: MmuError) -> Self {
        Self::Mmu(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "nothing to reserve or to bind",
            Self::TooLarge => "larger than what there is",
            Self::Misaligned => "not in whole pages",
            Self::OutOfRange => "outside the address space",
            Self::Overlap => "reserved by somebody else",
            Self::Exhausted => "the address space is exhausted",
            Self::Bound => "memory is bound already",
            Self::NotBound => "no memory is bound",
            Self::Unreserved => "not reserved any more",
            Self::Withheld => "withheld, for its unit did not answer",
            Self::NotActive => "not active",
            Self::Mmu(error) => return error.fmt(f),
        })
    }
}
