//! Whether an engine is there and of use, and whether it can still write memory where it is not.

use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use core::task::Poll;

use atomic_waker::AtomicWaker;

/// What the channels of a function and its registers know of it. Each of the flags is for good.
#[derive(Default)]
pub(crate) struct Presence {
    /// Registers read all ones: no access follows.
    gone: AtomicBool,
    /// A channel could not be reset: bus mastering is off for all of them.
    broken: AtomicBool,
    /// Its driver lets it go.
    leaving: AtomicBool,
    /// Who waits for the engine to be lost, and who removes it.
    waker: AtomicWaker,
    remover: AtomicWaker,
    /// A channel is asking the registers why it makes no progress.
    asking: AtomicBool,
    /// A [`Reach`].
    reach: AtomicU8,
}

/// Whether the engine reaches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reach {
    /// As far as its channels work.
    Open,
    /// Somebody is cutting it off.
    Closing,
    /// It does not, for good.
    Closed,
    /// It was to be cut off, and nothing is there that does so.
    Exposed,
}

/// The right to ask the registers why a channel makes no progress.
pub(crate) struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Presence {
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.is_gone() && !self.broken.load(Ordering::Relaxed)
    }

    pub(crate) fn set_gone(&self) {
        self.set(&self.gone);
    }

    pub(crate) fn set_broken(&self) {
        self.set(&self.broken);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    pub(crate) fn set_leaving(&self) {
        self.set(&self.leaving);
    }

    fn set(&self, flag: &AtomicBool) {
        if !flag.swap(true, Ordering::AcqRel) {
            self.waker.wake();
            self.remover.wake();
        }
    }

    /// Waits until it is of no use any more, for who removes it.
    pub(crate) async fn unusable(&self) {
        poll_fn(|cx| {
            self.remover.register(cx.waker());
            if self.is_usable() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    /// For one channel at a time: if the engine is gone, the first answer tells the others, and an
    /// engine that does not answer holds up one CPU alone.
    pub(crate) fn turn(&self) -> Option<Turn<'_>> {
        let busy = self.asking.swap(true, Ordering::Acquire);
        // Lazily: a turn that nobody has would end the one that somebody has.
        (!busy).then(|| Turn(&self.asking))
    }

    pub(crate) fn reach(&self) -> Reach {
        match self.reach.load(Ordering::Acquire) {
            0 => Reach::Open,
            1 => Reach::Closing,
            2 => Reach::Closed,
            _ => Reach::Exposed,
        }
    }

    /// Whether the caller is the one who cuts it off.
    pub(crate) fn close(&self) -> bool {
        let (from, to) = (Reach::Open as u8, Reach::Closing as u8);
        let relaxed = Ordering::Relaxed;
        self.reach
            .compare_exchange(from, to, relaxed, relaxed)
            .is_ok()
    }

    pub(crate) fn set_reach(&self, reach: Reach) {
        self.reach.store(reach as u8, Ordering::Release);
    }

    /// Waits for one of the three; whether the engine is lost, and nobody lets it go yet.
    pub(crate) async fn lost(&self) -> bool {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            if self.leaving.load(Ordering::Acquire) {
                Poll::Ready(false)
            } else if self.is_usable() {
                Poll::Pending
            } else {
                Poll::Ready(true)
            }
        })
        .await
    }
}
