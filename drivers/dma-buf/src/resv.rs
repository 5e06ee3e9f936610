//! The reservation: who has an object for the moment, and the fences of its uses.
//!
//! Owner and claim change under the manager's lock alone; they are atomics because that lock is
//! elsewhere. Fences are read under the reservation's own lock; only who has the reservation writes
//! them, under that lock as well. Lock order: manager, then reservation; no fence is dropped and no
//! task woken under either.

use alloc::vec::Vec;
use core::fmt;
use core::mem;

use dma_fence::Fence;
use dma_fence::FenceError;
use dma_fence::sync::{AtomicU64, Counter, Mutex, Ordering};
use hal::time::{Duration, timeout};
use smallvec::SmallVec;

use crate::earlier::Earlier;
use crate::error::{BufError, ReserveError};
use crate::manager::Manager;
use crate::seq::Holder;
use crate::usage::Usage;

/// A reservation, apart from what is reserved: it can stand in any object, shared or private. It
/// is a cache line, and without fences has nothing on the heap.
pub struct Resv {
    /// Which manager's tickets reserve it.
    manager: u32,
    /// Its name in what people read.
    number: u32,
    /// The [`Holder`] that has it.
    owner: AtomicU64,
    /// The oldest [`Holder`] that wants it and was refused something: no younger one gets it before.
    claim: AtomicU64,
    fences: Mutex<Fences>,
}

/// Work that uses the object, and how. One is inline: nearly always there is one writer alone.
type Fences = SmallVec<[(Fence, Usage); 1]>;

/// Fences on their way out, to be dropped outside the lock.
type Dropped = SmallVec<[(Fence, Usage); 8]>;

/// Whom a ticket meets where it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    Itself,
    /// It has it, or has claimed it.
    Older,
    Younger,
}

static NEXT: Counter = Counter::new(1);

impl Resv {
    /// A reservation that tickets of `manager` can reserve, with room for one fence.
    pub fn new(manager: &Manager) -> Self {
        Self {
            manager: manager.id(),
            number: NEXT.fetch_add(1, Ordering::Relaxed) as u32,
            owner: AtomicU64::new(Holder::NOBODY),
            claim: AtomicU64::new(Holder::NOBODY),
            fences: Mutex::new(Fences::new()),
        }
    }

    /// The same with room for `count` fences, so that as many are published without allocating.
    pub fn with_room(manager: &Manager, count: usize) -> Self {
        let resv = Self::new(manager);
        resv.fences.lock().reserve_exact(count);
        resv
    }

    /// Its number, by which it is shown.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether some ticket has it at this moment.
    pub fn is_reserved(&self) -> bool {
        self.owner().is_some()
    }

    /// The fences in it.
    pub fn fences(&self) -> Vec<(Fence, Usage)> {
        self.fences.lock().to_vec()
    }

    /// What a use of class `usage` that begins now would wait for.
    pub fn earlier(&self, usage: Usage) -> Earlier {
        let mut earlier = Earlier::default();
        self.add_earlier(usage, &mut earlier);
        earlier
    }

    /// Waits for all that a use of class `usage` that begins now would wait for, whatever comes
    /// meanwhile: a barrier, which keeps nobody out.
    pub async fn wait(&self, usage: Usage) -> Result<(), FenceError> {
        self.earlier(usage).wait().await
    }

    /// The same, at most for `limit`.
    pub async fn wait_for(&self, usage: Usage, limit: Duration) -> Result<(), BufError> {
        Ok(timeout(limit, self.wait(usage)).await??)
    }

    pub(crate) fn is_of(&self, manager: &Manager) -> bool {
        self.manager == manager.id()
    }

    pub(crate) fn owner(&self) -> Option<Holder> {
        Holder::of(self.owner.load(Ordering::Relaxed))
    }

    /// Gives it to `me`, unless another ticket has it or an older one has claimed it. Under the
    /// manager's lock, as all up to [`Resv::unclaim`].
    pub(crate) fn take(&self, me: Holder) -> Result<(), Met> {
        if let Some(owner) = self.owner() {
            return Err(if owner == me {
                Met::Itself
            } else if owner.seq.is_older_than(me.seq) {
                Met::Older
            } else {
                Met::Younger
            });
        }
        match Holder::of(self.claim.load(Ordering::Relaxed)) {
            Some(first) if first.seq.is_older_than(me.seq) => return Err(Met::Older),
            Some(first) if first == me => self.claim.store(Holder::NOBODY, Ordering::Relaxed),
            _ => {}
        }
        self.owner.store(me.word(), Ordering::Relaxed);
        Ok(())
    }

    /// Who has it, or else is to have it first.
    pub(crate) fn first(&self) -> Option<Holder> {
        let claim = || Holder::of(self.claim.load(Ordering::Relaxed));
        self.owner().or_else(claim)
    }

    pub(crate) fn release(&self) {
        self.owner.store(Holder::NOBODY, Ordering::Relaxed);
    }

    /// Keeps it from those younger than `me`, until `me` has had it or has ended.
    pub(crate) fn claim(&self, me: Holder) {
        let first = Holder::of(self.claim.load(Ordering::Relaxed));
        if first.is_none_or(|first| me.seq.is_older_than(first.seq)) {
            self.claim.store(me.word(), Ordering::Relaxed);
        }
    }

    pub(crate) fn unclaim(&self, me: Holder) {
        if self.claim.load(Ordering::Relaxed) == me.word() {
            self.claim.store(Holder::NOBODY, Ordering::Relaxed);
        }
    }

    /// The fence of who writes, and has not ended.
    pub(crate) fn writer(&self) -> Option<Fence> {
        let fences = self.fences.lock();
        let mut writers = fences.iter().filter(|(_, of)| of.is_exclusive());
        let (fence, _) = writers.find(|(fence, _)| !fence.is_signalled())?;
        Some(fence.clone())
    }

    /// Whether `fence` is in it: no later exclusive one has taken its place.
    pub(crate) fn has(&self, fence: &Fence) -> bool {
        let fences = self.fences.lock();
        fences.iter().any(|(other, _)| other.is_same(fence))
    }

    pub(crate) fn add_earlier(&self, usage: Usage, earlier: &mut Earlier) {
        let fences = self.fences.lock();
        for (fence, of) in fences.iter() {
            if *of <= usage.waits_for() {
                earlier.add(fence, of.is_exclusive(), !usage.is_exclusive());
            }
        }
    }

    /// Makes room for a fence of class `usage`, among at most `limit` shared ones. The caller has
    /// the reservation.
    pub(crate) fn make_room(&self, usage: Usage, limit: Option<usize>) -> Result<(), ReserveError> {
        self.prune();
        let mut fences = self.fences.lock();
        let shared = fences.iter().filter(|(_, of)| !of.is_exclusive()).count();
        if !usage.is_exclusive() && limit.is_some_and(|limit| shared >= limit) {
            return Err(ReserveError::Full);
        }
        fences.try_reserve(1).map_err(|_| ReserveError::OutOfMemory)
    }

    /// Puts `fence` into its place; an exclusive one replaces all that it waits for. There is room:
    /// this cannot fail. The caller has the reservation.
    pub(crate) fn publish(&self, fence: Fence, usage: Usage) {
        let mut dropped = Dropped::new();
        let mut fences = self.fences.lock();
        let replaced = |of: Usage| usage.is_exclusive() && of <= usage.waits_for();
        match fences.iter_mut().find(|(_, of)| replaced(*of)) {
            Some(place) => dropped.push(mem::replace(place, (fence.clone(), usage))),
            None => fences.push((fence.clone(), usage)),
        }
        drop(fences);
        self.remove(dropped, |other, of| replaced(of) && !other.is_same(&fence));
    }

    /// Forgets what has ended: nobody waits for it. A writer that failed stays, for readers to know.
    fn prune(&self) {
        self.remove(Dropped::new(), |fence, of| match fence.result() {
            Some(Err(_)) => !of.is_exclusive(),
            Some(Ok(())) => true,
            None => false,
        });
    }

    /// Takes out all that `goes`, a few at a time, and drops them outside the lock.
    fn remove(&self, mut dropped: Dropped, goes: impl Fn(&Fence, Usage) -> bool) {
        loop {
            let mut fences = self.fences.lock();
            let mut at = 0;
            while at < fences.len() && dropped.len() < dropped.inline_size() {
                if goes(&fences[at].0, fences[at].1) {
                    dropped.push(fences.swap_remove(at));
                } else {
                    at += 1;
                }
            }
            drop(fences);
            if dropped.len() < dropped.inline_size() {
                return;
            }
            dropped.clear();
        }
    }
}

impl fmt::Debug for Resv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resv")
            .field("number", &self.number)
            .field("owner", &self.owner().map(|owner| owner.seq))
            .field("fences", &self.fences())
            .finish()
    }
}
