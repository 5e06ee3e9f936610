//! Why something was not reserved.

use core::fmt;

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
