//! An operation under way: what a provider's ring holds.

use alloc::sync::Arc;
use core::fmt;

use dma_fence::{Fence, FenceError, Signaler};
use spin::Mutex;

use crate::capability::Flags;
use crate::chan::Chan;
use crate::work::Work;

/// A channel's own number for an operation: counts from 1 in the order of submission. It is the
/// sequence number of the operation's fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A submitted operation with its buffers and the duty to complete it.
///
/// It knows no device address: who takes it into a ring maps the buffers there, and unmaps them
/// before completing it. Dropping it completes it as abandoned, its buffers lost.
pub struct Operation {
    work: Work,
    completion: Completion,
}

/// Where a completed operation's buffers wait for the client.
pub(crate) type Back = Arc<Mutex<Option<Work>>>;

pub(crate) struct Completion {
    pub(crate) chan: Arc<Chan>,
    pub(crate) cookie: Cookie,
    pub(crate) flags: Flags,
    pub(crate) back: Back,
    /// Empty once completed, or when the operation was refused.
    pub(crate) signaler: Option<Signaler>,
}

impl Operation {
    pub(crate) fn new(work: Work, completion: Completion) -> Self {
        Self { work, completion }
    }

    /// What to do with which buffers.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// The same, for a CPU that does it.
    pub fn work_mut(&mut self) -> &mut Work {
        &mut self.work
    }

    /// What the client asked for.
    pub fn flags(&self) -> Flags {
        self.completion.flags
    }

    /// Its number in its channel.
    pub fn cookie(&self) -> Cookie {
        self.completion.cookie
    }

    /// Ends the operation: counts it, hands the buffers to the client, signals the fence. No
    /// device reaches the buffers any more, and the caller holds no lock.
    pub fn complete(self, result: Result<(), FenceError>) {
        let Self { work, completion } = self;
        completion.finish(work, result);
    }

    /// An observer of its fence.
    pub(crate) fn fence(&self) -> Option<Fence> {
        self.completion.signaler.as_ref().and_then(Signaler::fence)
    }

    /// Leaves its channel, of whose ring it is out, for another. Cookie and fence stay.
    pub(crate) fn move_to(&mut self, chan: &Arc<Chan>) {
        chan.enter();
        let left = core::mem::replace(&mut self.completion.chan, chan.clone());
        left.leave();
    }

    /// Takes back what never entered a ring.
    pub(crate) fn refuse(self) -> Work {
        let Self {
            work,
            mut completion,
        } = self;
        completion.chan.withdraw();
        // Nobody has seen the fence of a refused operation.
        drop(completion.signaler.take());
        work
    }
}

impl Completion {
    fn finish(mut self, work: Work, result: Result<(), FenceError>) {
        let Some(signaler) = self.signaler.take() else {
            return;
        };
        self.chan.count(&work, result);
        *self.back.lock() = Some(work);
        signaler.signal(result);
        self.chan.leave();
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(signaler) = self.signaler.take() {
            self.chan
                .count(&Work::Interrupt, Err(FenceError::Abandoned));
            drop(signaler);
            self.chan.leave();
        }
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Operation({} {} {:?})",
            self.completion.chan.name, self.completion.cookie, self.work
        )
    }
}
