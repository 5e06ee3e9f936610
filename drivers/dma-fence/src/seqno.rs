//! Fences on a word in memory that somebody counts up, as engines do: the fence `n` is signalled
//! when the word has reached `n`.
//!
//! Whoever asks reads the word; that needs no interrupt. For those who wait there is the software
//! fallback, [`SeqnoFences::update`]: it is asked for by [`SeqnoWord::arm`], which comes only while
//! somebody waits. Fences own the word together with [`SeqnoFences`], and may go at any time.
//!
//! The word has the low 32 bits of a number that never wraps. It is ahead of what was seen of it
//! last if the difference, taken as signed, is positive; so it must be looked at, by anybody, once
//! in 2^31 numbers. Making a fence is a look.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::time::Duration;

use crate::context::next_context;
use crate::error::FenceError;
use crate::fence::{Fence, Signaler};
use crate::ops::FenceOps;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// The word, and what it takes to be told of its changes.
pub trait SeqnoWord: Send + Sync + 'static {
    /// What the word holds; what was written before it is visible afterwards.
    fn read(&self) -> u32;

    /// Somebody waits: [`SeqnoFences::update`] is to be called after the next change of the word,
    /// and may be called more often. Fails where that cannot be had: who waits gets the error.
    /// Called without locks, once for each who begins to wait, and again after an update that has
    /// left some.
    fn arm(&self) -> Result<(), FenceError>;

    /// Somebody will need what he waits for by `deadline`, a time since the start of the machine's
    /// clock.
    fn set_deadline(&self, deadline: Duration) {
        let _ = deadline;
    }
}

/// Makes the fences of one word. Dropping it closes the word: fences that it has not reached by
/// then end with [`FenceError::Closed`].
pub struct SeqnoFences<W: SeqnoWord> {
    shared: Arc<Shared<W>>,
}

struct Shared<W> {
    word: W,
    context: u64,
    /// How far the word is known to have come.
    seen: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Why no fence is reached any more.
    closed: Option<FenceError>,
    list: Vec<(u64, Signaler)>,
}

impl<W: SeqnoWord> SeqnoFences<W> {
    /// The fences of `word`, which holds the low bits of `start` now.
    pub fn new(word: W, start: u64) -> Self {
        let shared = Arc::new(Shared {
            word,
            context: next_context(),
            seen: AtomicU64::new(start),
            waiting: Mutex::default(),
        });
        Self { shared }
    }

    /// The fence of `seqno`.
    pub fn fence(&self, seqno: u64) -> Fence {
        self.shared.look();
        Fence::lazy(self.shared.context, seqno, self.shared.clone())
    }

    /// The word.
    pub fn word(&self) -> &W {
        &self.shared.word
    }

    /// The context of the fences.
    pub fn context(&self) -> u64 {
        self.shared.context
    }

    /// How far the word has come.
    pub fn reached(&self) -> u64 {
        self.shared.look()
    }

    /// Signals what is waited for and has been reached, on the caller's stack.
    pub fn update(&self) {
        self.shared.update();
    }

    /// Ends all fences that the word has not reached, those to come among them, with `error`: who
    /// would have counted it up has gone.
    pub fn close(&self, error: FenceError) {
        self.shared.waiting.lock().closed.get_or_insert(error);
        self.shared.update();
    }
}

impl<W: SeqnoWord> Drop for SeqnoFences<W> {
    fn drop(&mut self) {
        self.close(FenceError::Closed);
    }
}

impl<W: SeqnoWord> fmt::Debug for SeqnoFences<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeqnoFences({}:{})", self.context(), self.reached())
    }
}

/// How far a counter is whose low bits are `word`, and that was `seen` before.
const fn ahead(seen: u64, word: u32) -> u64 {
    let difference = word.wrapping_sub(seen as u32) as i32;
    if difference > 0 {
        seen + difference as u64
    } else {
        seen
    }
}

impl<W: SeqnoWord> Shared<W> {
    /// How far the word has come.
    fn look(&self) -> u64 {
        let seen = self.seen.load(Ordering::Acquire);
        let now = ahead(seen, self.word.read());
        if now > seen {
            self.seen.fetch_max(now, Ordering::AcqRel);
        }
        now
    }

    fn update(&self) {
        loop {
            let reached = self.look();
            let (mut due, closed) = {
                let mut waiting = self.waiting.lock();
                let closed = waiting.closed;
                let due = match closed {
                    Some(_) => mem::take(&mut waiting.list),
                    None => take_reached(&mut waiting.list, reached),
                };
                (due, closed)
            };
            due.sort_by_key(|(seqno, _)| *seqno);
            for (seqno, signaler) in due {
                let error = closed.filter(|_| seqno > reached);
                signaler.signal(error.map_or(Ok(()), Err));
            }
            if !self.rearm() {
                return;
            }
        }
    }

    /// Asks for the next update if somebody waits. Whether it is due at once: the word may have
    /// moved before it was armed.
    fn rearm(&self) -> bool {
        if self.waiting.lock().list.is_empty() {
            return false;
        }
        if let Err(error) = self.word.arm() {
            let list = mem::take(&mut self.waiting.lock().list);
            for (_, signaler) in list {
                signaler.signal(Err(error));
            }
            return false;
        }
        let reached = self.look();
        let waiting = self.waiting.lock();
        waiting.closed.is_some() || waiting.list.iter().any(|(seqno, _)| *seqno <= reached)
    }
}

fn take_reached(list: &mut Vec<(u64, Signaler)>, reached: u64) -> Vec<(u64, Signaler)> {
    list.extract_if(.., |(seqno, _)| *seqno <= reached)
        .collect()
}

impl<W: SeqnoWord> FenceOps for Shared<W> {
    fn enable_signaling(&self, fence: &Fence, signaler: Option<Signaler>) {
        let Some(signaler) = signaler else { return };
        let entry = (fence.seqno(), signaler);
        self.waiting.lock().list.push(entry);
        self.update();
    }

    fn poll(&self, fence: &Fence) -> Option<Result<(), FenceError>> {
        // First: what is reached when the word is closed is reached for good.
        let closed = self.waiting.lock().closed;
        if self.look() >= fence.seqno() {
            return Some(Ok(()));
        }
        closed.map(Err)
    }

    fn set_deadline(&self, _: &Fence, deadline: Duration) {
        self.word.set_deadline(deadline);
    }
}
