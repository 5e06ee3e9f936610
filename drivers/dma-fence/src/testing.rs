//! What tests of fences share.

// Models use a part of it.
#![cfg_attr(loom, allow(dead_code))]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::task::Wake;

use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::{Fence, FenceError, FenceOps, Signaler};

pub(crate) type Outcome = Result<(), FenceError>;

/// Counts wake-ups.
#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.add();
    }
}

/// Polls as a task that `count` wakes.
pub(crate) fn poll<F: Future + Unpin>(future: &mut F, count: &Arc<Count>) -> Poll<F::Output> {
    let waker = Waker::from(count.clone());
    Pin::new(future).poll(&mut Context::from_waker(&waker))
}

/// Polls once, as a task that nobody wakes.
pub(crate) fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// The results that a fence's callbacks have got.
pub(crate) type Heard = Arc<Mutex<Vec<Outcome>>>;

pub(crate) fn listen(fence: &Fence) -> Heard {
    let heard = Heard::default();
    let other = heard.clone();
    let listed = fence.add_callback(move |result| other.lock().push(result));
    if let Err(late) = listed {
        heard.lock().push(late.0);
    }
    heard
}

/// Hardware that a test plays.
#[derive(Default)]
pub(crate) struct Engine {
    /// How its work ended.
    pub(crate) done: Mutex<Option<Outcome>>,
    /// How often it was asked to interrupt.
    pub(crate) armed: AtomicUsize,
    /// It cannot interrupt, for this reason.
    pub(crate) broken: Option<FenceError>,
    /// Where it keeps whom to signal.
    pub(crate) signaler: Mutex<Option<Signaler>>,
    pub(crate) deadlines: Mutex<Vec<Duration>>,
    pub(crate) released: Released,
}

impl Engine {
    pub(crate) fn armed(&self) -> usize {
        self.armed.load(Ordering::Relaxed)
    }

    pub(crate) fn finish(&self, result: Outcome) {
        *self.done.lock() = Some(result);
    }

    /// The interrupt.
    pub(crate) fn interrupt(&self) {
        let done = *self.done.lock();
        if let Some(result) = done
            && let Some(signaler) = self.signaler.lock().take()
        {
            signaler.signal(result);
        }
    }
}

impl FenceOps for Engine {
    fn enable_signaling(&self, _: &Fence, signaler: Option<Signaler>) {
        self.armed.fetch_add(1, Ordering::Relaxed);
        match (self.broken, signaler) {
            (Some(error), Some(signaler)) => signaler.signal(Err(error)),
            (_, signaler) => *self.signaler.lock() = signaler,
        }
    }

    fn poll(&self, _: &Fence) -> Option<Outcome> {
        *self.done.lock()
    }

    fn set_deadline(&self, _: &Fence, deadline: Duration) {
        self.deadlines.lock().push(deadline);
    }
}

/// Counts the engine's release.
#[derive(Default)]
pub(crate) struct Released(pub(crate) Arc<Count>);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.add();
    }
}
