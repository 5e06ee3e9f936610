//! What a virtual channel holds.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use dma_fence::{FenceError, Signaler};

use crate::operation::{Ended, Operation};

/// The lists of one client.
#[derive(Default)]
pub(super) struct Lists {
    /// Takes operations.
    pub(super) open: bool,
    /// Holds back what is issued.
    pub(super) paused: bool,
    /// Holds back what is issued, while something runs elsewhere.
    pub(super) detour: bool,
    /// Somebody ends operations, outside the lock.
    pub(super) delivering: bool,
    pub(super) submitted: VecDeque<Operation>,
    pub(super) issued: VecDeque<Operation>,
    pub(super) slots: Slots,
    /// What a stopped channel hands back.
    pub(super) unfinished: Vec<Operation>,
}

/// What is under way and what is completed behind it, in order.
#[derive(Default)]
pub(super) struct Slots {
    queue: VecDeque<Slot>,
    /// The number of the first.
    first: u64,
    /// What has a lower number ends as terminated.
    terminated: u64,
}

pub(super) enum Slot {
    /// In a ring, or on its way.
    UnderWay,
    Ended(Ended),
    /// Somebody waits for those before it.
    Mark(Signaler),
}

impl Lists {
    /// What is submitted is issued.
    pub(super) fn issue(&mut self) {
        self.issued.append(&mut self.submitted);
    }

    /// Nothing of what is here runs, or counts as having run.
    pub(super) fn terminate(&mut self) {
        self.issue();
        for operation in self.issued.drain(..) {
            let ended = operation.into_ended(Err(FenceError::Terminated));
            self.slots.push(Slot::Ended(ended));
        }
        self.slots.terminated = self.slots.end_number();
    }

    /// Nothing of what is here runs any more, nor is anything taken.
    pub(super) fn stop(&mut self) {
        self.open = false;
        self.issue();
        self.unfinished.extend(self.issued.drain(..));
    }
}

impl Slots {
    fn end_number(&self) -> u64 {
        self.first + self.queue.len() as u64
    }

    /// Adds a slot. Returns its number.
    pub(super) fn push(&mut self, slot: Slot) -> u64 {
        self.queue.push_back(slot);
        self.end_number() - 1
    }

    /// Takes the last one back.
    pub(super) fn pop_last(&mut self) {
        self.queue.pop_back();
    }

    /// The operation in slot `number` has ended.
    pub(super) fn end(&mut self, number: u64, mut ended: Ended) {
        if number < self.terminated {
            ended.result = ended.result.and(Err(FenceError::Terminated));
        }
        let place = usize::try_from(number - self.first).ok();
        if let Some(slot) = place.and_then(|place| self.queue.get_mut(place)) {
            *slot = Slot::Ended(ended);
        }
    }

    /// Takes the first one, unless it is under way.
    pub(super) fn pop_first(&mut self) -> Option<Slot> {
        let done = |slot: &mut Slot| !matches!(slot, Slot::UnderWay);
        let slot = self.queue.pop_front_if(done)?;
        self.first += 1;
        Some(slot)
    }
}
