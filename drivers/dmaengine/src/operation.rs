//! An operation under way: what a provider's ring holds.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::{fmt, mem};

use dma_fence::{Fence, FenceError, Signaler};
use spin::Mutex;

use crate::capability::Flags;
use crate::chan::Chan;
use crate::descriptor::Terms;
use crate::virt::Ride;
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
    /// A device may still write its destinations.
    exposed: bool,
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
    /// Where it is in another channel's ring for its own, which is a virtual one.
    pub(crate) ride: Option<Ride>,
}

impl Operation {
    pub(crate) fn new(work: Work, completion: Completion) -> Self {
        Self {
            work,
            completion,
            exposed: false,
        }
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
    /// client's callback. No device reaches the buffers any more, unless it is
    /// [exposed](Operation::expose), and the caller holds no lock.
    pub fn complete(self, result: Result<(), FenceError>) {
        let Self {
            work,
            mut completion,
            exposed,
        } = self;
        if exposed {
            drop(work);
            let error = result.err().unwrap_or(FenceError::Gone);
            return completion.end(None, Err(error));
        }
        completion.end(Some(work), result);
    }

    /// The device has not finished it, and may write its destinations at any time from now on: it
    /// is gone, and nothing is there that keeps it from memory. Such an operation ends with an error
    /// whatever it is completed with, is not done elsewhere, and its destinations are withheld:
    /// nobody gets them any more.
    pub fn expose(&mut self) {
        self.exposed = true;
        self.work.withhold();
    }

    pub(crate) fn is_exposed(&self) -> bool {
        self.exposed
    }

    /// An observer of its fence.
    pub(crate) fn fence(&self) -> Option<Fence> {
        self.completion.signaler.as_ref().and_then(Signaler::fence)
    }

    /// Leaves its channel, of whose ring it is out, for another, or its channel's waiting ones for
    /// the ring. Cookie and fence stay.
    pub(crate) fn move_to(&mut self, chan: &Arc<Chan>) {
        chan.enter();
        if let Some(ride) = &mut self.completion.ride {
            if let Some(ring) = ride.ring.replace(chan.clone()) {
                ring.leave();
            }
            return;
        }
        self.completion.leave();
        self.completion.waits = false;
        self.completion.chan = chan.clone();
    }

    /// Enters another channel's ring from now on, and comes back when it has ended there.
    pub(crate) fn board(&mut self, ride: Ride) {
        self.completion.ride = Some(ride);
    }

    /// Is back from the ring that has refused it.
    pub(crate) fn alight(&mut self) {
        let ride = self.completion.ride.take();
        if let Some(ring) = ride.and_then(|ride| ride.ring) {
            ring.withdraw();
        }
    }

    /// Ends without having run, as soon as its turn to end comes.
    pub(crate) fn into_ended(self, result: Result<(), FenceError>) -> Ended {
        let Self {
            work, completion, ..
        } = self;
        Ended {
            completion,
            work: Some(work),
            result,
        }
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
            ..
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
        if let Some(ride) = self.ride.take() {
            return self.come_back(ride, work, result);
        }
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

    /// Leaves another channel's ring for its own channel, to end there.
    fn come_back(&mut self, ride: Ride, work: Option<Work>, result: Result<(), FenceError>) {
        if let Some(ring) = &ride.ring {
            ring.count(work.as_ref().unwrap_or(&Work::Interrupt), result);
            ring.leave();
        }
        let completion = Self {
            chan: self.chan.clone(),
            cookie: self.cookie,
            terms: mem::take(&mut self.terms),
            back: self.back.clone(),
            signaler: self.signaler.take(),
            waits: false,
            ride: None,
        };
        ride.end(Ended {
            completion,
            work,
            result,
        });
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

/// An operation that is out of all rings, and whose client does not know it yet.
pub(crate) struct Ended {
    completion: Completion,
    work: Option<Work>,
    pub(crate) result: Result<(), FenceError>,
}

impl Ended {
    /// Ends the operation.
    pub(crate) fn deliver(self) {
        let Self {
            mut completion,
            work,
            result,
        } = self;
        completion.end(work, result);
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
