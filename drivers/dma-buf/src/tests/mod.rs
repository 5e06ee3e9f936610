//! Tests of reservations and tickets, named after the promises of README.md.

mod access;
mod contention;
mod engine;
mod fences;
mod numbers;
mod single;
mod steps;
mod transfers;

use alloc::sync::Arc;
use alloc::task::Wake;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::sync::atomic::{AtomicUsize, Ordering};

use dma_fence::{Fence, Signaler};
use hal::host::CountingHeap;

use crate::{Manager, Options, Resv, Usage};

#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

fn manager() -> Manager {
    Manager::new(Options::default())
}

fn resvs(manager: &Manager, count: usize) -> std::vec::Vec<Resv> {
    (0..count).map(|_| Resv::new(manager)).collect()
}

/// A fence that nobody else has.
fn fence() -> (Signaler, Fence) {
    Fence::new(dma_fence::next_context(), 1)
}

/// Publishes a pending fence for a use of `resv`.
fn used(manager: &Manager, resv: &Resv, usage: Usage) -> (Signaler, Fence) {
    let (signaler, fence) = fence();
    let ticket = manager.reserve("test", [(resv, usage)]);
    let waited = hal::host::block_on(ticket).unwrap().queue_waits().unwrap();
    // The test signals when it likes: nothing is kept from it by what stood before.
    let (inner, published) = self::fence();
    let committed = waited.commit((inner, published.clone()));
    fence
        .add_callback(move |result| committed.signal(result))
        .unwrap();
    (signaler, published)
}

/// Counts how often it wakes.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn poll<F: Future>(future: Pin<&mut F>, wakes: &Arc<Wakes>) -> Poll<F::Output> {
    let waker = Waker::from(wakes.clone());
    future.poll(&mut Context::from_waker(&waker))
}
