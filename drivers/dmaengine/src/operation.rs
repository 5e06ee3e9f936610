//! An operation under way: what a provider's ring holds.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::{fmt, mem};

use dma_fence::{Fence, FenceError, Parcel, Signaler};
use hal::dma::DmaSpace;

use crate::capability::Flags;
use crate::chan::Chan;
use crate::descriptor::Terms;
use crate::mapped::Mapped;
use crate::provider::SubmitReason;
use crate::virt::Ride;
use crate::work::Work;

/// A channel's own number for an operation: counts from 1 in the order of submission. It is the
/// sequence number of the operation's fence, unless the operation waits for others outside the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A submitted operation with its buffers and the duty to complete it.
///
/// Who takes it into a ring maps its buffers for the device there ([`Operation::map`]); they are
/// unmapped before it ends. Dropping it completes it as abandoned, its buffers lost. It is one
/// pointer large: what moves from list to list is not what it holds.
pub struct Operation {
    record: Box<Record>,
}

/// What is known of an operation from its preparation until its client has the buffers back: made
/// once, and handed on, in the end as its fence's parcel.
pub struct Record {
    // Before the buffers: where all is dropped, the device loses its access first.
    mapped: Mapped,
    pub(crate) work: Work,
    pub(crate) completion: Completion,
    /// A device may still write its destinations.
    exposed: bool,
}

/// How the operation ends. Dropped before, it ends as abandoned.
#[derive(Default)]
pub(crate) struct Completion {
    pub(crate) cookie: Cookie,
    pub(crate) terms: Terms,
    /// Empty before it is submitted, when it is refused, and once it has ended.
    pub(crate) duty: Option<Duty>,
    /// It waits for others outside the ring, and is counted there.
    pub(crate) waits: bool,
    /// Where it is in another channel's ring for its own, which is a virtual one.
    ride: Option<Ride>,
}

/// What a submitted operation owes its client and its channel.
pub(crate) struct Duty {
    pub(crate) chan: Arc<Chan>,
    pub(crate) signaler: Signaler,
}

impl Record {
    #[inline(always)]
    pub(crate) fn new(work: Work, flags: Flags) -> Box<Self> {
        Box::new(Self {
            mapped: Mapped::default(),
            work,
            completion: Completion {
                cookie: Cookie::default(),
                terms: Terms::new(flags),
                duty: None,
                waits: false,
                ride: None,
            },
            exposed: false,
        })
    }

    /// Ends the operation, unless it has ended. What is `lost` does not reach the client.
    #[inline]
    fn end(mut self: Box<Self>, result: Result<(), FenceError>, lost: bool) {
        self.mapped.clear();
        if let Some(ride) = self.completion.ride.take() {
            ride.count(if lost { &Work::Interrupt } else { &self.work }, result);
            return ride.end(Ended {
                record: self,
                result,
                lost,
            });
        }
        let completion = &mut self.completion;
        let Some(Duty { chan, signaler }) = completion.duty.take() else {
            return;
        };
        // What stood before it in the ring has ended, perhaps badly.
        let failed = |fence: &Fence| fence.result()?.err();
        let before = completion.terms.after().iter().find_map(failed);
        let result = result.and(before.map_or(Ok(()), Err));
        let callback = completion.terms.take_callback();
        let waits = completion.waits;
        chan.count(if lost { &Work::Interrupt } else { &self.work }, result);
        signaler.signal_with(result, (!lost).then_some(self as Parcel));
        if let Some(callback) = callback {
            callback(result);
        }
        // Last: who waits until nothing is in flight waits for the callbacks as well.
        leave(&chan, waits);
    }
}

impl Operation {
    pub(crate) fn new(record: Box<Record>) -> Self {
        Self { record }
    }

    /// What to do with which buffers.
    pub fn work(&self) -> &Work {
        &self.record.work
    }

    /// The same, for a CPU that does it.
    pub fn work_mut(&mut self) -> &mut Work {
        &mut self.record.work
    }

    /// What the client asked for.
    pub fn flags(&self) -> Flags {
        self.record.completion.terms.flags
    }

    /// Its number in its channel.
    pub fn cookie(&self) -> Cookie {
        self.record.completion.cookie
    }

    /// Maps its buffers for the device that reaches memory through `space`, instead of for another.
    /// Fails where they cannot be mapped, or where the kind of work has no mapping: parities.
    #[inline]
    pub fn map(&mut self, space: &DmaSpace) -> Result<(), SubmitReason> {
        let Record { mapped, work, .. } = &mut *self.record;
        mapped.fill(work, space)
    }

    /// Its buffers as the device sees them for which they are mapped.
    pub fn mapped(&self) -> &Mapped {
        &self.record.mapped
    }

    /// The device has let go of its buffers: it goes elsewhere.
    pub fn unmap(&mut self) {
        self.record.mapped.clear();
    }

    /// Ends the operation: unmaps its buffers, counts it, hands the buffers to the client, signals
    /// the fence, runs the client's callback. No device reaches the buffers any more, unless it is
    /// [exposed](Operation::expose), and the caller holds no lock.
    #[inline]
    pub fn complete(self, result: Result<(), FenceError>) {
        let exposed = self.record.exposed;
        let result = if exposed {
            result.and(Err(FenceError::Gone))
        } else {
            result
        };
        self.record.end(result, exposed);
    }

    /// The device has not finished it, and may write its destinations at any time from now on: it
    /// is gone, and nothing is there that keeps it from memory. Such an operation ends with an error
    /// whatever it is completed with, is not done elsewhere, and its destinations are withheld:
    /// nobody gets them any more.
    pub fn expose(&mut self) {
        self.record.exposed = true;
        self.record.work.withhold();
    }

    pub(crate) fn is_exposed(&self) -> bool {
        self.record.exposed
    }

    /// An observer of its fence.
    pub(crate) fn fence(&self) -> Option<Fence> {
        let duty = self.record.completion.duty.as_ref();
        duty.map(|duty| duty.signaler.fence())
    }

    /// The channel that counts it: whose ring it is in, or was last.
    pub(crate) fn chan(&self) -> Option<Arc<Chan>> {
        let completion = &self.record.completion;
        match &completion.ride {
            Some(ride) => ride.ring.clone(),
            None => completion.duty.as_ref().map(|duty| duty.chan.clone()),
        }
    }

    /// Leaves its channel, of whose ring it is out, for another, or its channel's waiting ones for
    /// the ring. Cookie and fence stay.
    pub(crate) fn move_to(&mut self, chan: &Arc<Chan>) {
        chan.enter();
        let completion = &mut self.record.completion;
        if let Some(ride) = &mut completion.ride {
            if let Some(ring) = ride.ring.replace(chan.clone()) {
                ring.leave();
            }
            return;
        }
        if let Some(duty) = &mut completion.duty {
            leave(&duty.chan, mem::take(&mut completion.waits));
            duty.chan = chan.clone();
            if duty.signaler.is_awaited() {
                completion.terms.flags |= Flags::INTERRUPT;
            }
        }
    }

    /// Enters another channel's ring from now on, and comes back when it has ended there.
    pub(crate) fn board(&mut self, ride: Ride) {
        self.record.completion.ride = Some(ride);
    }

    /// Is back from the ring that has refused it.
    pub(crate) fn alight(&mut self) {
        let ride = self.record.completion.ride.take();
        if let Some(ring) = ride.and_then(|ride| ride.ring) {
            ring.withdraw();
        }
    }

    /// Ends without having run, as soon as its turn to end comes.
    pub(crate) fn into_ended(self, result: Result<(), FenceError>) -> Ended {
        Ended {
            record: self.record,
            result,
            lost: false,
        }
    }

    /// What it depends on. Its ring keeps no order for it then.
    pub(crate) fn take_after(&mut self) -> Vec<Fence> {
        self.record.completion.terms.take_after()
    }

    /// Waits outside the ring that has refused it.
    pub(crate) fn wait(&mut self) {
        let completion = &mut self.record.completion;
        if !mem::replace(&mut completion.waits, true)
            && let Some(duty) = &completion.duty
        {
            duty.chan.depend.enter();
            duty.chan.withdraw();
        }
    }

    /// Takes back what never entered a ring. Nobody has seen its fence.
    pub(crate) fn refuse(mut self) -> Box<Record> {
        if let Some(duty) = self.record.completion.duty.take() {
            duty.chan.withdraw();
        }
        self.record
    }
}

/// An operation is not counted any more where it is.
#[inline]
fn leave(chan: &Chan, waits: bool) {
    if waits {
        chan.depend.leave();
    } else {
        chan.leave();
    }
}

impl Drop for Completion {
    #[inline]
    fn drop(&mut self) {
        if self.duty.is_some() {
            self.abandon();
        }
    }
}

impl Completion {
    /// Ends an operation whose buffers are gone already, or about to go.
    #[cold]
    #[inline(never)]
    fn abandon(&mut self) {
        let record = Box::new(Record {
            mapped: Mapped::default(),
            work: Work::Interrupt,
            completion: mem::take(self),
            exposed: false,
        });
        record.end(Err(FenceError::Abandoned), true);
    }
}

/// An operation that is out of all rings, and whose client does not know it yet.
pub(crate) struct Ended {
    record: Box<Record>,
    pub(crate) result: Result<(), FenceError>,
    lost: bool,
}

impl Ended {
    /// Ends the operation.
    pub(crate) fn deliver(self) {
        self.record.end(self.result, self.lost);
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record {
            work, completion, ..
        } = &*self.record;
        let duty = completion.duty.as_ref();
        let chan = duty.map_or("", |duty| &duty.chan.name);
        write!(f, "Operation({chan} {} {work:?})", completion.cookie)
    }
}
