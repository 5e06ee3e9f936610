//! Timelines that software moves on: what tests, and drivers without an engine's word, have instead.

use core::fmt;

use crate::error::FenceError;
use crate::fence::Fence;
use crate::seqno::{SeqnoFences, SeqnoWord};
use crate::sync::{AtomicU64, Ordering};

/// A counter whose fences are signalled when it gets there. Dropping it closes it: fences ahead of
/// it end with [`FenceError::Closed`].
pub struct Timeline {
    fences: SeqnoFences<Value>,
}

struct Value(AtomicU64);

impl SeqnoWord for Value {
    fn read(&self) -> u32 {
        self.0.load(Ordering::Acquire) as u32
    }

    /// Each advance is an update.
    fn arm(&self) -> Result<(), FenceError> {
        Ok(())
    }
}

impl Timeline {
    /// A timeline at `value`.
    pub fn new(value: u64) -> Self {
        Self {
            fences: SeqnoFences::new(Value(AtomicU64::new(value)), value),
        }
    }

    /// The fence that is signalled when the timeline is at `value` or further.
    pub fn fence(&self, value: u64) -> Fence {
        self.fences.fence(value)
    }

    /// Where it is.
    pub fn value(&self) -> u64 {
        self.fences.reached()
    }

    /// Moves on by `steps`, and signals, on the caller's stack.
    pub fn advance(&self, steps: u16) {
        let word = &self.fences.word().0;
        word.fetch_add(steps.into(), Ordering::AcqRel);
        self.fences.update();
    }

    /// Closes it with an error of the owner's.
    pub fn close(&self, error: FenceError) {
        self.fences.close(error);
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timeline({}:{})", self.fences.context(), self.value())
    }
}
