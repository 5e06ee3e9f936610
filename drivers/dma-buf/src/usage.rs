//! What a fence in a reservation stands for.

use core::fmt;

/// How work behind a fence uses what is reserved. The order is that of Linux's dma_resv_usage: who
/// asks for the fences of one class gets those of the classes before it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Usage {
    /// It is moved or cleared: nobody else has it meanwhile. Exclusive.
    Kernel,
    /// It is written. Exclusive among those who read and write.
    Write,
    /// It is read. Shared.
    Read,
    /// It is kept where it is, and nothing more: who reads and writes need not wait. Shared.
    Bookkeep,
}

impl Usage {
    /// Whether only one fence of this class is in place, and replaces those that it waits for.
    pub const fn is_exclusive(self) -> bool {
        matches!(self, Self::Kernel | Self::Write)
    }

    /// The last class that this one waits for. Who moves waits for all, who writes for readers and
    /// writers, who reads for writers, who keeps for nobody but who moves.
    pub const fn waits_for(self) -> Self {
        match self {
            Self::Kernel => Self::Bookkeep,
            Self::Write => Self::Read,
            Self::Read => Self::Write,
            Self::Bookkeep => Self::Kernel,
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Write => "write",
            Self::Read => "read",
            Self::Bookkeep => "bookkeep",
        })
    }
}
