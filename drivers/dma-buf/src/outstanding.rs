//! Tickets as people see them.

use alloc::vec::Vec;
use core::fmt;

use crate::seq::{Holder, Seq};

/// A ticket that is outstanding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its number.
    pub seq: Seq,
    /// Whose it is.
    pub by: &'static str,
    /// The numbers of the reservations that it holds.
    pub holds: Vec<u32>,
    /// What it waits for.
    pub waits: Option<Wanted>,
    /// How often it has begun again.
    pub retries: u32,
}

/// A reservation that a ticket was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its number.
    pub resv: u32,
    pub(crate) holder: Holder,
}

impl Wanted {
    /// The ticket that has it, or comes before.
    pub fn ticket(&self) -> Seq {
        self.holder.seq
    }
}

/// `resv: ticket=SEQ holds=[RESV,…] waits=[RESV@SEQ] retries=N by=NAME`.
impl fmt::Display for Outstanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "resv: ticket={} holds=[", self.seq)?;
        for (at, number) in self.holds.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{number}")?;
        }
        f.write_str("] waits=[")?;
        if let Some(wanted) = self.waits {
            write!(f, "{}@{}", wanted.resv, wanted.ticket())?;
        }
        write!(f, "] retries={} by={}", self.retries, self.by)
    }
}
