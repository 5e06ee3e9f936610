//! Whether an engine is there and of use.

use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;

use atomic_waker::AtomicWaker;

/// What the channels of a function and its registers know of it. Each of the three is for good.
#[derive(Default)]
pub(crate) struct Presence {
    /// Registers read all ones: no access follows.
    gone: AtomicBool,
    /// A channel could not be reset: bus mastering is off for all of them.
    broken: AtomicBool,
    /// Its driver lets it go.
    leaving: AtomicBool,
    waker: AtomicWaker,
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

    pub(crate) fn set_leaving(&self) {
        self.set(&self.leaving);
    }

    fn set(&self, flag: &AtomicBool) {
        if !flag.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
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
