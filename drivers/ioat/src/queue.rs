//! What a channel has in its ring: from who submits, by way of the engine, to who completes.
//!
//! The ring's memory is somebody else's ([`crate::ring`], whose counts of slots these are); here is
//! who may do what with it, and when. An entry is pushed by who submits, issued with all others that
//! wait, and taken out when the engine is done with it, by whoever looks first. One at a time
//! delivers what was taken out, outside all locks, so that entries end in their order.
//!
//! Lock order: producer, then cleaner. A submission waits for a completion only while an entry
//! changes hands.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;
use core::ops::Range;

use dma_fence::sync::{AtomicU64, Mutex, Ordering};
use smallvec::SmallVec;

/// How many entries change hands under one lock, without memory from the heap.
const HANDFUL: usize = 8;

/// The memory of a ring.
pub(crate) trait Slots {
    /// How many slots can be in use.
    fn capacity(&self) -> u64;
}

/// Entries of type `T` in a ring of type `R`, which exists from [`Queue::open`] to
/// [`Queue::close`].
pub(crate) struct Queue<R, T> {
    producer: Mutex<Producer<R, T>>,
    cleaner: Mutex<Cleaner<R, T>>,
    /// The oldest slot in flight. Written under the cleaner's lock.
    tail: AtomicU64,
    /// The first slot that the doorbell has not announced. Written under the producer's lock.
    issued: AtomicU64,
}

/// What submitting needs.
struct Producer<R, T> {
    ring: Option<Arc<R>>,
    /// What was pushed and not issued, each with the slot after its last.
    pending: Vec<(u64, T)>,
    /// The next slot to write.
    head: u64,
    /// The slot at which CHAINADDR was set last: DMACOUNT counts from there.
    base: u64,
    /// The engine listens to the doorbell. While it does not, slots are written all the same.
    live: bool,
    /// The first slot that no doorbell had announced when the engine was silenced.
    announced: u64,
}

/// What completing needs.
struct Cleaner<R, T> {
    ring: Option<Arc<R>>,
    /// What was issued, each with the slot after its last.
    entries: VecDeque<(u64, T)>,
    /// For who looks: what was seen last.
    seen: u64,
    /// Somebody delivers, outside the lock, and looks again afterwards: others leave it to them.
    delivering: bool,
}

/// Why the ring does not take an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no ring, or it takes nothing any more.
    Closed,
    /// The entry needs more slots than there are.
    TooLarge,
    /// It needs more than are free.
    Full,
    /// It cannot be written whole.
    Torn,
}

/// Which entries are taken out of a stopped ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// None.
    None,
    /// The oldest.
    First,
    /// Those that were announced.
    Issued,
    /// All.
    All,
}

impl<R: Slots, T> Queue<R, T> {
    /// A queue without a ring.
    pub(crate) fn new() -> Self {
        Self {
            producer: Mutex::new(Producer {
                ring: None,
                pending: Vec::new(),
                head: 0,
                base: 0,
                live: false,
                announced: 0,
            }),
            cleaner: Mutex::new(Cleaner {
                ring: None,
                entries: VecDeque::new(),
                seen: 0,
                delivering: false,
            }),
            tail: AtomicU64::new(0),
            issued: AtomicU64::new(0),
        }
    }

    pub(crate) fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    pub(crate) fn issued(&self) -> u64 {
        self.issued.load(Ordering::Acquire)
    }

    /// Takes a ring into use whose engine runs, and is done with all slots before `first`. `seen` is
    /// for who looks.
    pub(crate) fn open(&self, ring: Arc<R>, first: u64, seen: u64) {
        let mut producer = self.producer.lock();
        let mut cleaner = self.cleaner.lock();
        self.tail.store(first, Ordering::Release);
        self.issued.store(first, Ordering::Release);
        *cleaner = Cleaner {
            ring: Some(ring.clone()),
            entries: VecDeque::new(),
            seen,
            delivering: false,
        };
        *producer = Producer {
            ring: Some(ring),
            pending: Vec::new(),
            head: first,
            base: 0,
            live: true,
            announced: first,
        };
    }

    /// Gives up the ring, of an engine that is stopped for good. Nothing enters any more.
    pub(crate) fn close(&self) -> Option<R> {
        let (entries, one, other) = {
            let mut producer = self.producer.lock();
            let mut cleaner = self.cleaner.lock();
            producer.live = false;
            let entries = (
                mem::take(&mut cleaner.entries),
                mem::take(&mut producer.pending),
            );
            (entries, producer.ring.take(), cleaner.ring.take())
        };
        // Outside the locks. Under them nobody else refers to the ring.
        drop((entries, one));
        other.and_then(Arc::into_inner)
    }

    /// Puts an entry into the slots that `write` writes, of the free ones that it is given. It says
    /// how many there are, also where it found too few free; `None` where that cannot be said. The
    /// engine does not know of them yet.
    pub(crate) fn push(
        &self,
        entry: T,
        write: impl FnOnce(&R, Range<u64>, &T) -> Option<u64>,
    ) -> Result<(), (T, Refusal)> {
        let mut producer = self.producer.lock();
        let Producer {
            ring,
            head,
            pending,
            ..
        } = &mut *producer;
        let Some(ring) = ring else {
            return Err((entry, Refusal::Closed));
        };
        // The tail only moves on: there is at least this much room.
        let room = ring.capacity() - (*head - self.tail());
        let refusal = match write(ring, *head..*head + room, &entry) {
            Some(count) if count <= room => {
                *head += count;
                pending.push((*head, entry));
                return Ok(());
            }
            Some(count) if count <= ring.capacity() => Refusal::Full,
            Some(_) => Refusal::TooLarge,
            None => Refusal::Torn,
        };
        Err((entry, refusal))
    }

    /// Announces what was pushed since the last time: `doorbell` gets how many slots there were in
    /// all since the engine was started, unless the engine is silenced. Whether there was anything.
    pub(crate) fn issue(&self, doorbell: impl FnOnce(u64)) -> bool {
        let mut producer = self.producer.lock();
        if self.issued() == producer.head {
            return false;
        }
        let mut cleaner = self.cleaner.lock();
        cleaner.entries.extend(producer.pending.drain(..));
        // Under both locks: who looks knows all that the engine may be done with.
        self.issued.store(producer.head, Ordering::Release);
        drop(cleaner);
        if producer.live {
            doorbell(producer.head - producer.base);
        }
        true
    }

    /// Whether something was pushed that was not issued.
    pub(crate) fn has_unissued(&self) -> bool {
        let producer = self.producer.lock();
        self.issued() != producer.head
    }

    /// Delivers what the engine is done with, `budget` entries at most. `look` says up to which slot
    /// it is done, of the slots in the range that it has been given; it sees what it saw the last
    /// time, too, and is called under the lock. Whether the budget is spent, and more may be done.
    ///
    /// On return everything is delivered, or about to be by somebody else, that the engine was done
    /// with at the time of the call.
    pub(crate) fn complete(
        &self,
        budget: u64,
        mut look: impl FnMut(&R, &mut u64, Range<u64>) -> u64,
        mut deliver: impl FnMut(T),
    ) -> bool {
        let mut left = budget as usize;
        // Up to which slot the engine was done when it was looked at.
        let mut done = None;
        let mut hand = SmallVec::<[T; HANDFUL]>::new();
        while left > 0 {
            {
                let mut cleaner = self.cleaner.lock();
                if done.is_none() && cleaner.delivering {
                    return false;
                }
                self.take_done(&mut cleaner, &mut done, &mut look, |entry| {
                    hand.push(entry);
                    hand.len() < left.min(HANDFUL)
                });
                cleaner.delivering = !hand.is_empty();
            }
            if hand.is_empty() {
                return false;
            }
            left -= hand.len();
            hand.drain(..).for_each(&mut deliver);
        }
        self.cleaner.lock().delivering = false;
        true
    }

    /// Takes the oldest entries out with which the engine is done, as long as `more` wants. Looks at
    /// the engine at first, and where that is not known of what is left: it may have gone on
    /// meanwhile.
    fn take_done(
        &self,
        cleaner: &mut Cleaner<R, T>,
        done: &mut Option<u64>,
        look: &mut impl FnMut(&R, &mut u64, Range<u64>) -> u64,
        mut more: impl FnMut(T) -> bool,
    ) {
        let oldest = cleaner.entries.front().map(|(end, _)| *end);
        if done.is_none_or(|done| oldest.is_some_and(|end| end > done)) {
            *done = self.look(cleaner, look);
        }
        let ended = |(end, _): &mut (u64, T)| Some(*end) <= *done;
        while let Some((end, entry)) = cleaner.entries.pop_front_if(ended) {
            self.tail.store(end, Ordering::Release);
            if !more(entry) {
                return;
            }
        }
    }

    fn look(
        &self,
        cleaner: &mut Cleaner<R, T>,
        look: &mut impl FnMut(&R, &mut u64, Range<u64>) -> u64,
    ) -> Option<u64> {
        let ring = cleaner.ring.as_deref()?;
        Some(look(ring, &mut cleaner.seen, self.tail()..self.issued()))
    }

    /// Lets the doorbell be silent while the engine is stopped.
    pub(crate) fn silence(&self) {
        let mut producer = self.producer.lock();
        if mem::replace(&mut producer.live, false) {
            producer.announced = self.issued();
        }
    }

    /// Takes entries out of a ring whose engine is stopped, and the right to deliver before all
    /// others, which [`Queue::delivered`] gives back. `None` while somebody else delivers, or
    /// something is left to be delivered.
    ///
    /// A ring that is `closing` takes nothing any more from the same moment on, so that nothing is
    /// left behind in it.
    pub(crate) fn take(
        &self,
        scope: Scope,
        closing: bool,
        mut look: impl FnMut(&R, &mut u64, Range<u64>) -> u64,
    ) -> Option<Vec<T>> {
        let mut producer = self.producer.lock();
        let mut cleaner = self.cleaner.lock();
        if cleaner.delivering {
            return None;
        }
        let done = self.look(&mut cleaner, &mut look);
        if cleaner
            .entries
            .front()
            .is_some_and(|(end, _)| Some(*end) <= done)
        {
            return None;
        }
        cleaner.delivering = true;
        if scope == Scope::All {
            cleaner.entries.extend(producer.pending.drain(..));
            self.issued.store(producer.head, Ordering::Release);
        }
        // What was issued while the engine was silent is no business of its fault.
        let end = match scope {
            Scope::All => producer.head,
            Scope::None => 0,
            Scope::First | Scope::Issued => producer.announced,
        };
        let reached = cleaner.entries.iter().take_while(|entry| entry.0 <= end);
        let count = match scope {
            Scope::First => reached.count().min(1),
            _ => reached.count(),
        };
        if closing {
            producer.ring = None;
        }
        let taken: Vec<_> = cleaner.entries.drain(..count).collect();
        if let Some((end, _)) = taken.last() {
            self.tail.store(*end, Ordering::Release);
        }
        Some(taken.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Lets others deliver again. [`Queue::complete`] is to follow: they may have left it to us.
    pub(crate) fn delivered(&self) {
        self.cleaner.lock().delivering = false;
    }

    /// Sets an engine that was reset or suspended to work again, on what is left in the ring: `run`
    /// gets the oldest slot, and how many from there on were issued. Nothing was seen since, but 0.
    pub(crate) fn restart(&self, run: impl FnOnce(&R, u64, u64)) {
        let mut producer = self.producer.lock();
        let mut cleaner = self.cleaner.lock();
        let Some(ring) = producer.ring.clone() else {
            return;
        };
        cleaner.seen = 0;
        let (tail, issued) = (self.tail(), self.issued());
        producer.base = tail;
        run(&ring, tail, issued - tail);
        producer.live = true;
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
