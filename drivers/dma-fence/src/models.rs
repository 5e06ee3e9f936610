//! Models of the fence, run by loom in every order that the memory model allows (`make loom`).

use alloc::sync::Arc;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Waker};

use loom::future::block_on;
use loom::thread;

use crate::sync::{AtomicUsize, Ordering};
use crate::{Fence, FenceError};

/// Counts by a callback.
fn counting(count: &Arc<AtomicUsize>) -> impl FnOnce(Result<(), FenceError>) + Send + 'static {
    let count = count.clone();
    move |result| {
        assert_eq!(result, Ok(()));
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn who_sees_the_signal_sees_the_work() {
    loom::model(|| {
        let work = Arc::new(AtomicUsize::new(0));
        let (signaler, fence) = Fence::new(1, 1);
        let done = work.clone();
        let worker = thread::spawn(move || {
            done.store(1, Ordering::Relaxed);
            signaler.signal(Ok(()));
        });
        if fence.is_signalled() {
            assert_eq!(work.load(Ordering::Relaxed), 1);
        }
        worker.join().unwrap();
        assert_eq!(fence.result(), Some(Ok(())));
    });
}

#[test]
fn a_callback_runs_once_or_is_told_that_it_came_too_late() {
    loom::model(|| {
        let runs = Arc::new(AtomicUsize::new(0));
        let (signaler, fence) = Fence::new(1, 1);
        let worker = thread::spawn(move || signaler.signal(Ok(())));
        let late = fence.add_callback(counting(&runs)).is_err();
        worker.join().unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), usize::from(!late));
        assert_eq!(Arc::strong_count(&runs), 1, "the callback is gone");
    });
}

#[test]
fn a_callback_is_taken_back_or_runs() {
    loom::model(|| {
        let runs = Arc::new(AtomicUsize::new(0));
        let (signaler, fence) = Fence::new(1, 1);
        let id = fence.add_callback(counting(&runs)).unwrap();
        let worker = thread::spawn(move || signaler.signal(Ok(())));
        let taken = fence.remove_callback(id);
        worker.join().unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), usize::from(!taken));
    });
}

#[test]
fn a_waiting_task_is_woken() {
    loom::model(|| {
        let work = Arc::new(AtomicUsize::new(0));
        let (signaler, fence) = Fence::new(1, 1);
        let done = work.clone();
        let worker = thread::spawn(move || {
            done.store(1, Ordering::Relaxed);
            signaler.signal(Ok(()));
        });
        // loom reports a task that nobody wakes as a deadlock.
        assert_eq!(block_on(fence.wait()), Ok(()));
        assert_eq!(work.load(Ordering::Relaxed), 1);
        worker.join().unwrap();
    });
}

#[test]
fn an_abandoned_fence_wakes_too() {
    loom::model(|| {
        let (signaler, fence) = Fence::new(1, 1);
        let worker = thread::spawn(move || drop(signaler));
        assert_eq!(block_on(fence.wait()), Err(FenceError::Abandoned));
        worker.join().unwrap();
    });
}

#[test]
fn a_wait_given_up_meanwhile_takes_no_other_with_it() {
    loom::model(|| {
        let (signaler, fence) = Fence::new(1, 1);
        let worker = thread::spawn(move || signaler.signal(Ok(())));
        let mut given_up = fence.wait();
        let _ = Pin::new(&mut given_up).poll(&mut Context::from_waker(Waker::noop()));
        let mut other = fence.wait();
        let mut given_up = Some(given_up);
        let waited = block_on(poll_fn(|cx| {
            let polled = Pin::new(&mut other).poll(cx);
            drop(given_up.take());
            polled
        }));
        assert_eq!(waited, Ok(()));
        worker.join().unwrap();
        assert!(std::format!("{fence}").ends_with("cbs=0"));
    });
}
