//! An operation under way: what a provider's ring holds.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::{fmt, mem};

use dma_fence::{Fence, FenceError, Signaler};
use spin::Mutex;

use crate::capability::Flags;
use crate::chan::Chan;
use crate::descriptor::Terms;
use crate::work::Work;

/// A channel's own number for an operation: counts from 1 in the order of submission. It is the
/// sequence number of the operation's fence, unless the operation waits for others outside the ring.
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
    pub(crate) terms: Terms,
    pub(crate) back: Back,
    /// Empty once completed, or when the operation was refused.
    pub(crate) signaler: Option<Signaler>,
    /// It waits for others outside the ring, and is counted there.
    pub(crate) waits: bool,
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
        self.completion.terms.flags
    }

    /// Its number in its channel.
    pub fn cookie(&self) -> Cookie {
        self.completion.cookie
    }

    /// Ends the operation: counts it, hands the buffers to the client, signals the fence, runs the
    /// client's callback. No device reaches the buffers any more, and the caller holds no lock.
    pub fn complete(self, result: Result<(), FenceError>) {
        let Self {
            work,
            mut completion,
        } = self;
        completion.end(Some(work), result);
    }

    /// An observer of its fence.
    pub(crate) fn fence(&self) -> Option<Fence> {
        self.completion.signaler.as_ref().and_then(Signaler::fence)
    }

    /// Leaves its channel, of whose ring it is out, for another, or its channel's waiting ones for
    /// the ring. Cookie and fence stay.
    pub(crate) fn move_to(&mut self, chan: &Arc<Chan>) {
        chan.enter();
        self.completion.leave();
        self.completion.waits = false;
        self.completion.chan = chan.clone();
    }

    /// What it depends on. Its ring keeps no order for it then.
    pub(crate) fn take_after(&mut self) -> Vec<Fence> {
        self.completion.terms.take_after()
    }

    /// Waits outside the ring that has refused it.
    pub(crate) fn wait(&mut self) {
        if !mem::replace(&mut self.completion.waits, true) {
            self.completion.chan.depend.enter();
            self.completion.chan.withdraw();
        }
    }

    /// Takes back what never entered a ring.
    pub(crate) fn refuse(self) -> (Work, Terms) {
        let Self {
            work,
            mut completion,
        } = self;
        completion.chan.withdraw();
        // Nobody has seen the fence of a refused operation.
        drop(completion.signaler.take());
        (work, mem::take(&mut completion.terms))
    }
}

impl Completion {
    /// Ends the operation, unless it has ended. Without `work` its buffers are lost.
    fn end(&mut self, work: Option<Work>, result: Result<(), FenceError>) {
        let Some(signaler) = self.signaler.take() else {
            return;
        };
        // What stood before it in the ring has ended, perhaps badly.
        let failed = |fence: &Fence| fence.result()?.err();
        let result = result.and(
            self.terms
                .after()
                .iter()
                .find_map(failed)
                .map_or(Ok(()), Err),
        );
        self.chan
            .count(work.as_ref().unwrap_or(&Work::Interrupt), result);
        *self.back.lock() = work;
        signaler.signal(result);
        if let Some(callback) = self.terms.take_callback() {
            callback(result);
        }
        // Last: who waits until nothing is in flight waits for the callbacks as well.
        self.leave();
    }

    /// Is not counted any more where it is.
    fn leave(&self) {
        if self.waits {
            self.chan.depend.leave();
        } else {
            self.chan.leave();
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.end(None, Err(FenceError::Abandoned));
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
