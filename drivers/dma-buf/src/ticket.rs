//! Tickets: many reservations in any order, without deadlock.
//!
//! A ticket that meets a younger one's reservation waits for it, and keeps what it holds. One that
//! meets an older one's lets go of all it holds, waits until that whole ticket has ended, and begins
//! again with its old number. So every ticket begins again at most as often as there were older ones
//! when it was drawn, and the oldest never does. Once refused it has claimed all that it lists: no
//! younger one gets that before.
//!
//! A ticket and its steps belong to one task; each step consumes the one before. Dropped at any
//! point, they let go of what they hold, and nothing was changed.

use core::task::Waker;
use core::{fmt, ptr};

use dma_fence::{Fence, FenceError, Signaler};
use smallvec::SmallVec;

use crate::commit::Committed;
use crate::earlier::Earlier;
use crate::error::ReserveError;
use crate::manager::{Key, Manager, State, Until, Wakers};
use crate::outstanding::Wanted;
use crate::resv::{Met, Resv};
use crate::seq::{Holder, Seq};
use crate::usage::Usage;

/// A place in the queue for reservations, and the list of what is to be reserved.
pub struct Ticket<'a> {
    manager: &'a Manager,
    me: Holder,
    /// Those held, then those wanted.
    entries: Entries<'a>,
    held: usize,
    /// It may have claims.
    contended: bool,
    /// Why it has not got the first of those wanted.
    refusal: Option<Refusal<'a>>,
    retries: u32,
    older: u32,
}

/// As many as are reserved without allocating.
type Entries<'a> = SmallVec<[Entry<'a>; 16]>;

/// A reservation on a ticket.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) resv: &'a Resv,
    /// Without one no fence is published.
    usage: Option<Usage>,
}

const _: () = assert!(size_of::<Entry<'_>>() <= 16);

/// What a ticket was refused.
struct Refusal<'a> {
    resv: &'a Resv,
    holder: Holder,
    until: Until,
}

impl<'a> Ticket<'a> {
    pub(crate) fn new(manager: &'a Manager, me: Holder, older: u32) -> Self {
        Self {
            manager,
            me,
            entries: Entries::new(),
            held: 0,
            contended: false,
            refusal: None,
            retries: 0,
            older,
        }
    }

    /// Its number.
    pub fn seq(&self) -> Seq {
        self.me.seq
    }

    /// How often it has begun again.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// How many older ones were outstanding when it was drawn: it begins again no more often.
    pub fn older(&self) -> u32 {
        self.older
    }

    /// Lists `resv`, for a use of class `usage`.
    pub fn add(&mut self, resv: &'a Resv, usage: Usage) -> &mut Self {
        self.extend([(resv, usage)]);
        self
    }

    /// Lists `resv` to be had alone for a while, without a fence.
    pub fn hold(&mut self, resv: &'a Resv) -> &mut Self {
        self.entries.push(Entry { resv, usage: None });
        self
    }

    /// Reserves all that is listed. Waits as long as others have it; dropping the wait ends the
    /// ticket.
    pub async fn reserve(mut self) -> Result<Reserved<'a>, ReserveError> {
        loop {
            match self.attempt() {
                Ok(()) => return Ok(Reserved { ticket: self }),
                Err(ReserveError::Again) => self.back_off().await,
                Err(ReserveError::Busy) => self.stand().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Reserves all that is listed at once, or nothing of it: then the ticket has ended.
    pub fn try_reserve(mut self) -> Result<Reserved<'a>, ReserveError> {
        self.attempt()?;
        Ok(Reserved { ticket: self })
    }

    /// Reserves `resv` beside what it holds, at once or not at all; what others have is listed all
    /// the same. [`ReserveError::Again`] demands [`Ticket::back_off`].
    pub fn try_one(&mut self, resv: &'a Resv, usage: Usage) -> Result<(), ReserveError> {
        let mut wanted = self.entries[self.held..].iter();
        match wanted.position(|entry| ptr::eq(entry.resv, resv)) {
            Some(at) => self.entries.swap(self.held, self.held + at),
            None => self.entries.insert(self.held, Entry { resv, usage: None }),
        }
        self.entries[self.held].usage = Some(usage);
        let got = self.locked(|ticket, state, _| {
            let got = ticket.next(state);
            ticket.show(state);
            got
        });
        if !matches!(got, Ok(()) | Err(ReserveError::Again | ReserveError::Busy)) {
            self.entries.remove(self.held);
            self.locked(|ticket, _, _| ticket.unclaim(resv));
        }
        got
    }

    /// Reserves `resv` beside what it holds, and waits while a younger ticket has it.
    pub async fn one(&mut self, resv: &'a Resv, usage: Usage) -> Result<(), ReserveError> {
        loop {
            match self.try_one(resv, usage) {
                Err(ReserveError::Busy) => self.stand().await,
                got => return got,
            }
        }
    }

    /// Takes `resv` off the list, and lets go of it where it is held; whether it was.
    pub fn unreserve(&mut self, resv: &Resv) -> bool {
        let mut listed = self.entries.iter();
        let Some(at) = listed.position(|entry| ptr::eq(entry.resv, resv)) else {
            return false;
        };
        self.entries.remove(at);
        self.locked(|ticket, state, wakers| {
            ticket.unclaim(resv);
            if at >= ticket.held {
                return false;
            }
            ticket.held -= 1;
            resv.release();
            ticket.show(state);
            state.wake(ticket.me, Until::Release, wakers);
            true
        })
    }

    /// Lets go of all it holds, which stays listed, and waits until the older ticket that it has met
    /// has ended.
    pub async fn back_off(&mut self) {
        let wait = self.locked(|ticket, state, wakers| {
            ticket.let_go(state, wakers);
            let refusal = ticket.refusal.take();
            let refusal = refusal.filter(|refusal| refusal.until == Until::End)?;
            ticket.retries += 1;
            state.count_retry(ticket.me);
            if !state.is_outstanding(refusal.holder) {
                return None;
            }
            ticket.wait_for(refusal, state)
        });
        debug_assert!(self.retries <= self.older, "older tickets end once");
        if let Some((on, key)) = wait {
            self.manager.waiting(on, key).await;
        }
    }

    /// Keeps what it holds, and waits until the younger ticket that it has met lets go.
    async fn stand(&mut self) {
        let wait = self.locked(|ticket, state, _| {
            let refusal = ticket.refusal.take()?;
            if refusal.resv.owner() != Some(refusal.holder) {
                return None;
            }
            ticket.wait_for(refusal, state)
        });
        if let Some((on, key)) = wait {
            self.manager.waiting(on, key).await;
        }
    }

    /// Reserves what is listed, up to the first refusal.
    fn attempt(&mut self) -> Result<(), ReserveError> {
        self.locked(|ticket, state, _| {
            let mut got = Ok(());
            while got.is_ok() && ticket.held < ticket.entries.len() {
                got = ticket.next(state);
            }
            ticket.show(state);
            got
        })
    }

    /// Reserves the first of those wanted.
    fn next(&mut self, state: &mut State) -> Result<(), ReserveError> {
        let resv = self.entries[self.held].resv;
        if !resv.is_of(self.manager) {
            return Err(ReserveError::Foreign);
        }
        if state.place(self.me).interrupted {
            return Err(ReserveError::Interrupted);
        }
        let (until, error) = match resv.take(self.me) {
            Ok(()) => {
                self.held += 1;
                return Ok(());
            }
            Err(Met::Itself) => return Err(ReserveError::Deadlock),
            Err(Met::Older) => (Until::End, ReserveError::Again),
            Err(Met::Younger) => (Until::Release, ReserveError::Busy),
        };
        self.contended = true;
        self.own().for_each(|resv| resv.claim(self.me));
        self.refusal = match until {
            Until::Release => resv.owner().map(|holder| Refusal {
                resv,
                holder,
                until,
            }),
            Until::End => self.last(),
        };
        Err(error)
    }

    /// What it lists, as far as it can have it.
    fn own(&self) -> impl Iterator<Item = &'a Resv> {
        let all = self.entries.iter().map(|entry| entry.resv);
        all.filter(|resv| resv.is_of(self.manager))
    }

    /// The youngest of the older ones that are in the way: all of them have to end.
    fn last(&self) -> Option<Refusal<'a>> {
        let refusal = |resv: &'a Resv| Some((resv, resv.first()?));
        let all = self.own().filter_map(refusal);
        let older = all.filter(|(_, holder)| holder.seq.is_older_than(self.seq()));
        let last = older.reduce(|last, other| {
            if last.1.seq.is_older_than(other.1.seq) {
                other
            } else {
                last
            }
        });
        last.map(|(resv, holder)| Refusal {
            resv,
            holder,
            until: Until::End,
        })
    }

    fn let_go(&mut self, state: &mut State, wakers: &mut Wakers) {
        let held = &self.entries[..self.held];
        held.iter().for_each(|entry| entry.resv.release());
        self.held = 0;
        self.show(state);
        state.wake(self.me, Until::Release, wakers);
    }

    fn unclaim(&self, resv: &Resv) {
        if resv.is_of(self.manager) {
            resv.unclaim(self.me);
        }
    }

    fn wait_for(&self, refusal: Refusal<'_>, state: &mut State) -> Option<(Holder, Key)> {
        if state.place(self.me).interrupted {
            return None;
        }
        let (holder, key) = state.enlist(refusal.holder, refusal.until);
        let resv = refusal.resv.number();
        state.place(self.me).wants = Some((Wanted { resv, holder }, key));
        Some((holder, key))
    }

    /// Tells others what it holds.
    fn show(&self, state: &mut State) {
        let holds = &mut state.place(self.me).holds;
        holds.clear();
        let held = self.entries[..self.held].iter();
        holds.extend(held.map(|entry| entry.resv.number()));
    }

    /// Runs `step` under the manager's lock, then wakes those whom it has found to be woken.
    fn locked<T>(&mut self, step: impl FnOnce(&mut Self, &mut State, &mut Wakers) -> T) -> T {
        let mut wakers = Wakers::new();
        let manager = self.manager;
        let value = step(self, &mut manager.state.lock(), &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        value
    }
}

impl<'a> Extend<(&'a Resv, Usage)> for Ticket<'a> {
    fn extend<T: IntoIterator<Item = (&'a Resv, Usage)>>(&mut self, objects: T) {
        let entry = |(resv, usage)| Entry {
            resv,
            usage: Some(usage),
        };
        self.entries.extend(objects.into_iter().map(entry));
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.locked(|ticket, state, wakers| {
            ticket.let_go(state, wakers);
            if ticket.contended {
                ticket.own().for_each(|resv| resv.unclaim(ticket.me));
            }
            state.wake(ticket.me, Until::End, wakers);
            state.dismiss(ticket.me);
        });
    }
}

/// A ticket that has all it listed. Dropping it backs off.
#[must_use = "what is reserved is let go of when this is dropped"]
pub struct Reserved<'a> {
    ticket: Ticket<'a>,
}

impl<'a> Reserved<'a> {
    /// Its number.
    pub fn seq(&self) -> Seq {
        self.ticket.seq()
    }

    /// How often it has begun again.
    pub fn retries(&self) -> u32 {
        self.ticket.retries
    }

    /// How many older ones were outstanding when it was drawn.
    pub fn older(&self) -> u32 {
        self.ticket.older
    }

    /// Reserves `resv` as well, if it can be had at once and is not listed; whether it could.
    pub(crate) fn also(&mut self, resv: &'a Resv, usage: Usage) -> bool {
        let got = self.ticket.try_one(resv, usage);
        if matches!(got, Err(ReserveError::Again | ReserveError::Busy)) {
            // Nobody waits for it with this ticket.
            self.ticket.unreserve(resv);
        }
        got.is_ok()
    }

    /// Lets go of what it has reserved [as well](Reserved::also).
    pub(crate) fn without(&mut self, resv: &Resv) {
        self.ticket.unreserve(resv);
    }

    /// Waits for all that the listed uses wait for, with all of it reserved. For those who cannot
    /// queue waits.
    pub async fn wait_all(&self) -> Result<(), FenceError> {
        self.earlier().wait().await
    }

    /// Notes what the uses wait for, and makes room for the fence that is to come: the last step
    /// that can fail, and then nothing has changed.
    pub fn queue_waits(self) -> Result<Waited<'a>, ReserveError> {
        let limit = self.ticket.manager.shared_fences();
        for entry in &self.ticket.entries {
            if let Some(usage) = entry.usage {
                entry.resv.make_room(usage, limit)?;
            }
        }
        Ok(Waited {
            earlier: self.earlier(),
            ticket: self.ticket,
        })
    }

    /// Lets go of everything without a trace. What dropping it does, by name.
    pub fn back_off(self) {}

    fn earlier(&self) -> Earlier {
        let mut earlier = Earlier::default();
        for entry in &self.ticket.entries {
            if let Some(usage) = entry.usage {
                entry.resv.add_earlier(usage, &mut earlier);
            }
        }
        earlier
    }
}

/// A ticket that knows what its uses wait for, and has room for their fence. Dropping it backs off.
#[must_use = "what is reserved is let go of when this is dropped"]
pub struct Waited<'a> {
    ticket: Ticket<'a>,
    earlier: Earlier,
}

impl Waited<'_> {
    /// Its number.
    pub fn seq(&self) -> Seq {
        self.ticket.seq()
    }

    /// What the uses wait for.
    pub fn earlier(&self) -> &Earlier {
        &self.earlier
    }

    /// Publishes `fence` as that of all listed uses, and lets go of what is reserved; cannot fail.
    /// The earlier fences need not have been signalled.
    pub fn commit(self, (signaler, fence): (Signaler, Fence)) -> Committed {
        for entry in &self.ticket.entries {
            if let Some(usage) = entry.usage {
                entry.resv.publish(fence.clone(), usage);
            }
        }
        Committed::new(signaler, fence, self.earlier)
    }
}

impl fmt::Debug for Ticket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (held, listed) = (self.held, self.entries.len());
        write!(f, "Ticket({}, {held} of {listed} held)", self.seq())
    }
}

impl fmt::Debug for Reserved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reserved({:?})", self.ticket)
    }
}

impl fmt::Debug for Waited<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Waited({:?}, {:?})", self.ticket, self.earlier)
    }
}
