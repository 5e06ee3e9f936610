//! What is known of the card in a slot by those who bring it into use or take it out.

use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;

use atomic_waker::AtomicWaker;

/// The card of one stay in a slot. What was an orderly removal becomes a surprise when it is gone.
#[derive(Default)]
pub struct Card {
    gone: AtomicBool,
    waker: AtomicWaker,
}

impl Card {
    /// Whether it was pulled, exchanged, or has lost its power or its link: it does not answer any
    /// more, or another does in its place. For good.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Waits until it is gone. One task at a time. Cancel-safe.
    pub async fn gone(&self) {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            if self.is_gone() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    pub(crate) fn set_gone(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }
}

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_gone() { "Card(gone)" } else { "Card" })
    }
}
