//! The manager: numbers for tickets, the list of those outstanding, and who waits for whom.
//!
//! One lock guards all of it, and the owners of the manager's reservations. Under it nothing is
//! allocated but where more tickets are outstanding, or more tasks wait for one, than ever before;
//! tasks are woken outside.

use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use dma_fence::sync::{Counter, Mutex, Ordering};
use smallvec::SmallVec;

use crate::error::ReserveError;
use crate::outstanding::{Outstanding, Wanted};
use crate::resv::Resv;
use crate::seq::{Holder, Seq};
use crate::ticket::{Reserved, Ticket};
use crate::usage::Usage;

/// Shared fences in one reservation, where a manager limits them as the first proposal of 2012 did.
pub const SHARED_FENCES: usize = 8;

/// What a manager can be told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The first ticket's number.
    pub first: u32,
    /// How far the newest ticket's number may lie from the oldest's, at most 2^31: who would go
    /// further waits for the oldest to end.
    pub span: u32,
    /// How many shared fences a reservation takes; more and more where there is no limit.
    pub shared_fences: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            first: 1,
            span: 1 << 31,
            shared_fences: None,
        }
    }
}

/// The manager of all [`DmaBuf`](crate::DmaBuf)s, and of what is reserved together with them.
pub fn manager() -> &'static Manager {
    static MANAGER: spin::Once<Manager> = spin::Once::new();
    MANAGER.call_once(|| Manager::new(Options::default()))
}

/// Gives out tickets, and reserves for them.
pub struct Manager {
    id: u32,
    options: Options,
    pub(crate) state: Mutex<State>,
}

/// What tickets have met so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Tickets that are outstanding.
    pub outstanding: u32,
    /// Tickets that were given out.
    pub tickets: u64,
    /// Times that one let go of all it held and began again.
    pub retries: u64,
    /// The most of these by one ticket.
    pub most_retries: u32,
}

pub(crate) struct State {
    next: Seq,
    /// No ticket outstanding is older.
    oldest: Seq,
    key: u64,
    pub(crate) statistics: Statistics,
    places: Vec<Place>,
    free: Vec<u32>,
}

/// A place in the list of tickets.
#[derive(Default)]
pub(crate) struct Place {
    /// Whose it is; `None` while it is free.
    pub(crate) seq: Option<Seq>,
    by: &'static str,
    /// What it holds, by number, whenever others can ask.
    pub(crate) holds: SmallVec<[u32; 16]>,
    /// What it waits for, or has waited for last; and its name on that ticket's list.
    pub(crate) wants: Option<(Wanted, Key)>,
    pub(crate) retries: u32,
    pub(crate) interrupted: bool,
    /// The one thing that others wait on.
    waiters: Vec<Waiter>,
}

/// Names a waiter: never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u64);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// That the ticket lets go of something.
    Release,
    /// That the ticket has ended.
    End,
}

struct Waiter {
    key: Key,
    until: Until,
    waker: Option<Waker>,
}

/// Tasks to wake once the lock is let go of.
pub(crate) type Wakers = SmallVec<[Waker; 8]>;

static NEXT: Counter = Counter::new(1);

impl Manager {
    /// A manager of its own.
    pub fn new(options: Options) -> Self {
        let first = Seq::new(options.first);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed) as u32,
            options,
            state: Mutex::new(State {
                next: first,
                oldest: first,
                key: 0,
                statistics: Statistics::default(),
                places: Vec::new(),
                free: Vec::new(),
            }),
        }
    }

    /// A ticket for whoever is called `by`. Waits where the numbers have gone round, for the oldest.
    ///
    /// A task holds one ticket of a manager at a time: who waits with a second for what another
    /// ticket holds may be waited for with the first.
    pub async fn ticket(&self, by: &'static str) -> Ticket<'_> {
        loop {
            let oldest = match self.begin(by) {
                Ok(ticket) => return ticket,
                Err(oldest) => oldest,
            };
            oldest.await;
        }
    }

    /// A ticket, if there is a number for it.
    pub fn try_ticket(&self, by: &'static str) -> Option<Ticket<'_>> {
        self.begin(by).ok()
    }

    /// Reserves all of `objects` by a ticket of their own.
    pub async fn reserve<'a>(
        &'a self,
        by: &'static str,
        objects: impl IntoIterator<Item = (&'a Resv, Usage)>,
    ) -> Result<Reserved<'a>, ReserveError> {
        let mut ticket = self.ticket(by).await;
        ticket.extend(objects);
        ticket.reserve().await
    }

    /// Waits until no ticket has `resv`: others may be faster then.
    pub async fn wait_unreserved(&self, resv: &Resv) -> Result<(), ReserveError> {
        if !resv.is_of(self) {
            return Err(ReserveError::Foreign);
        }
        loop {
            let (on, key) = {
                let mut state = self.state.lock();
                let Some(owner) = resv.owner() else {
                    return Ok(());
                };
                state.enlist(owner, Until::Release)
            };
            self.waiting(on, key).await;
        }
    }

    /// Calls off what the ticket waits for, or will wait for next: it is told so, and lets go of all
    /// it holds. Whether there is such a ticket.
    pub fn interrupt(&self, seq: Seq) -> bool {
        let waker = {
            let mut state = self.state.lock();
            let mut places = state.places.iter_mut();
            let Some(place) = places.find(|place| place.seq == Some(seq)) else {
                return false;
            };
            place.interrupted = true;
            let wants = place.wants;
            wants.and_then(|(wanted, key)| state.strike(wanted.holder.place, key))
        };
        if let Some(waker) = waker.flatten() {
            waker.wake();
        }
        true
    }

    /// The tickets that are outstanding, the oldest first.
    pub fn outstanding(&self) -> Vec<Outstanding> {
        let mut tickets: Vec<_> = {
            let state = self.state.lock();
            let places = state.places.iter();
            places.filter_map(|place| place.show(&state)).collect()
        };
        if let Some(newest) = tickets
            .iter()
            .map(|ticket| ticket.seq)
            .reduce(|a, b| if a.is_older_than(b) { b } else { a })
        {
            tickets.sort_by_key(|ticket| core::cmp::Reverse(newest.since(ticket.seq)));
        }
        tickets
    }

    /// What tickets have met so far.
    pub fn statistics(&self) -> Statistics {
        self.state.lock().statistics
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn shared_fences(&self) -> Option<usize> {
        self.options.shared_fences
    }

    /// The next ticket, or a wait for the oldest.
    fn begin(&self, by: &'static str) -> Result<Ticket<'_>, Waiting<'_>> {
        let mut state = self.state.lock();
        let span = self.options.span.clamp(1, 1 << 31);
        if state.next.since(state.oldest) >= span {
            // What is known of the oldest may be old itself.
            let oldest = state.oldest();
            state.oldest = oldest.map_or(state.next, |oldest| oldest.seq);
            if let Some(oldest) = oldest
                && state.next.since(oldest.seq) >= span
            {
                let (on, key) = state.enlist(oldest, Until::End);
                return Err(self.waiting(on, key));
            }
        }
        let older = state.statistics.outstanding;
        let me = state.admit(by);
        Ok(Ticket::new(self, me, older))
    }

    pub(crate) fn waiting(&self, on: Holder, key: Key) -> Waiting<'_> {
        Waiting {
            manager: self,
            on,
            key,
        }
    }
}

impl State {
    fn admit(&mut self, by: &'static str) -> Holder {
        let seq = self.next;
        self.next = seq.next();
        self.statistics.outstanding += 1;
        self.statistics.tickets += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            // `dismiss` does not allocate.
            let more = self.places.len() - self.free.len();
            self.free.reserve(more);
            (self.places.len() - 1) as u32
        });
        let new = &mut self.places[place as usize];
        new.seq = Some(seq);
        new.by = by;
        Holder { place, seq }
    }

    pub(crate) fn dismiss(&mut self, me: Holder) {
        self.statistics.outstanding -= 1;
        let place = &mut self.places[me.place as usize];
        place.seq = None;
        place.holds.clear();
        place.wants = None;
        place.retries = 0;
        place.interrupted = false;
        self.free.push(me.place);
    }

    pub(crate) fn place(&mut self, holder: Holder) -> &mut Place {
        &mut self.places[holder.place as usize]
    }

    fn oldest(&self) -> Option<Holder> {
        let holder = |(at, place): (usize, &Place)| {
            Some(Holder {
                place: at as u32,
                seq: place.seq?,
            })
        };
        let tickets = self.places.iter().enumerate().filter_map(holder);
        tickets.reduce(|a, b| if b.seq.is_older_than(a.seq) { b } else { a })
    }

    /// Puts a task on the list of the ticket `on`, which has not ended. What awaits it gives its
    /// waker: until then it is listed without.
    pub(crate) fn enlist(&mut self, on: Holder, until: Until) -> (Holder, Key) {
        self.key += 1;
        let key = Key(self.key);
        self.place(on).waiters.push(Waiter {
            key,
            until,
            waker: None,
        });
        (on, key)
    }

    /// Takes a waiter off a list; `None` where it is on none.
    fn strike(&mut self, place: u32, key: Key) -> Option<Option<Waker>> {
        let waiters = &mut self.places[place as usize].waiters;
        let at = waiters.iter().position(|waiter| waiter.key == key)?;
        Some(waiters.swap_remove(at).waker)
    }

    /// Takes those who wait for this off the list, to be woken.
    pub(crate) fn wake(&mut self, on: Holder, until: Until, wakers: &mut Wakers) {
        let waiters = &mut self.place(on).waiters;
        let woken = waiters.extract_if(.., |waiter| waiter.until == until);
        wakers.extend(woken.filter_map(|waiter| waiter.waker));
    }

    pub(crate) fn is_outstanding(&self, holder: Holder) -> bool {
        self.places[holder.place as usize].seq == Some(holder.seq)
    }

    pub(crate) fn count_retry(&mut self, me: Holder) {
        let place = self.place(me);
        place.retries += 1;
        let retries = place.retries;
        let statistics = &mut self.statistics;
        statistics.retries += 1;
        statistics.most_retries = statistics.most_retries.max(retries);
    }
}

impl Place {
    fn show(&self, state: &State) -> Option<Outstanding> {
        let wants = self.wants.filter(|(wanted, key)| {
            let waiters = &state.places[wanted.holder.place as usize].waiters;
            waiters.iter().any(|waiter| waiter.key == *key)
        });
        Some(Outstanding {
            seq: self.seq?,
            by: self.by,
            holds: self.holds.to_vec(),
            waits: wants.map(|(wanted, _)| wanted),
            retries: self.retries,
        })
    }
}

/// Completes once it is off the list of the ticket that it waits for. Dropping it takes it off.
pub(crate) struct Waiting<'a> {
    manager: &'a Manager,
    on: Holder,
    key: Key,
}

impl Future for Waiting<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Dropped outside the lock, as every waker here: it may own a task that has a ticket.
        let new = cx.waker().clone();
        let old = {
            let mut state = self.manager.state.lock();
            let mut waiters = state.place(self.on).waiters.iter_mut();
            let Some(me) = waiters.find(|waiter| waiter.key == self.key) else {
                drop(state);
                return Poll::Ready(());
            };
            me.waker.replace(new)
        };
        drop(old);
        Poll::Pending
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let struck = {
            let mut state = self.manager.state.lock();
            state.strike(self.on.place, self.key)
        };
        drop(struck);
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.outstanding()).finish()
    }
}
