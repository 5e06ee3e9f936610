//! The drain: when a channel leaves the tables for good, until nobody refers to it.
//!
//! 1. The slots are marked as draining, so that no reference is duplicated any more, and the
//!    tables are written without them.
//! 2. A barrier on every CPU: a finder that looked at its table before has its count in memory, one
//!    that looks later finds the slot gone. Now no reference can appear, and all are seen.
//! 3. The slot's counters are summed until they are 0. They only fall, so that reading them at
//!    different moments errs to one side: 0 is exact.
//!
//! A reference that outlives the deadline keeps its slot from being used again, nothing else. The
//! protocol is checked exhaustively, as it is here, by `tests/drain_check.rs`.

use alloc::vec::Vec;

use hal::time::{Duration, Instant, poll_until};

use super::count;
use super::slot::{self, Number};

/// How often the counters are summed.
pub(crate) const STEP: Duration = Duration::from_micros(100);

/// Slots that no table names any more.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    slots: Vec<Number>,
    /// How many clients were interested when the slots were withdrawn.
    interest: usize,
    settled: bool,
    done: bool,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    /// References that outlived the deadline.
    pub(crate) leaked: usize,
    /// What it took.
    pub(crate) took: Duration,
}

impl Drain {
    /// Begins with slots that are marked and out of all tables.
    pub(crate) fn new(slots: Vec<Number>, interest: usize) -> Self {
        Self {
            slots,
            interest,
            settled: false,
            done: false,
        }
    }

    /// Waits for the references, if they were not all put before, at most for `limit`; `poll` moves
    /// on what they may wait for.
    pub(crate) async fn wait(&mut self, limit: Duration, mut poll: impl FnMut()) -> Drained {
        let begin = Instant::now();
        if self.done || self.slots.is_empty() {
            return Drained::default();
        }
        self.settled = count::settle(self.interest);
        // Where a sum of 0 proves nothing, the wait lasts to its limit.
        let none = || {
            poll();
            self.settled && self.references() == 0
        };
        let leaked = match poll_until(limit, STEP, none).await {
            Ok(()) => {
                self.done = true;
                0
            }
            Err(_) => self.references(),
        };
        Drained {
            leaked,
            took: begin.elapsed(),
        }
    }

    fn references(&self) -> usize {
        let counts = self.slots.iter().map(|&slot| count::references(slot));
        counts
            .map(|count| usize::try_from(count).unwrap_or(0))
            .sum()
    }
}

/// Takes the channels out of the slots. Those that are referred to still become tombstones.
impl Drop for Drain {
    fn drop(&mut self) {
        for &slot in &self.slots {
            slot::retire(slot, self.settled);
        }
    }
}
