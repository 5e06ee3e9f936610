//! Models of the fence, run by loom in every order that the memory model allows (`make loom`).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Waker};

use loom::future::block_on;
use loom::thread;

use crate::sync::{self, AtomicUsize, Ordering};
use crate::testing::{Engine, listen};
use crate::{Chain, Fence, FenceError, SeqnoFences, SeqnoWord};

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
fn who_sees_the_signal_finds_the_parcel_and_who_declines_keeps_none() {
    loom::model(|| {
        let kept = Arc::new(());
        let (signaler, fence) = Fence::new(1, 1);
        let parcel = Box::new(kept.clone());
        let worker = thread::spawn(move || signaler.signal_with(Ok(()), Some(parcel)));
        let seen = fence.is_signalled();
        let found = fence.collect().is_some();
        assert!(found || !seen);
        fence.decline();
        worker.join().unwrap();
        assert_eq!(Arc::strong_count(&kept), 1);
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

#[test]
fn one_of_two_who_wait_arms_and_neither_misses_the_end() {
    loom::model(|| {
        let engine = Arc::new(Engine::default());
        let fence = Fence::lazy(1, 1, engine.clone());
        let other = fence.clone();
        let worker = thread::spawn(move || listen(&other));
        let here = listen(&fence);
        let there = worker.join().unwrap();
        assert_eq!(engine.armed(), 1);
        engine.finish(Ok(()));
        engine.interrupt();
        assert_eq!((here.lock().len(), there.lock().len()), (1, 1));
    });
}

#[test]
fn what_was_seen_by_looking_is_what_is_signalled() {
    loom::model(|| {
        let engine = Arc::new(Engine::default());
        let (signaler, fence) = Fence::with_ops(1, 1, engine.clone());
        let heard = listen(&fence);
        engine.finish(Ok(()));
        let worker = thread::spawn(move || drop(signaler));
        let seen = fence.result();
        worker.join().unwrap();
        assert_eq!(fence.result(), seen);
        assert_eq!(*heard.lock(), [seen.unwrap()]);
    });
}

#[test]
fn an_array_ends_with_the_last_of_all_whoever_signals_when() {
    loom::model(|| {
        let (one, first) = Fence::new(1, 1);
        let (two, second) = Fence::new(1, 2);
        let array = Fence::all([first, second]);
        let worker = thread::spawn(move || one.signal(Err(FenceError::Gone)));
        let heard = listen(&array);
        two.signal(Ok(()));
        worker.join().unwrap();
        assert_eq!(*heard.lock(), [Err(FenceError::Gone)]);
        assert_eq!(array.result(), Some(Err(FenceError::Gone)));
    });
}

#[test]
fn an_array_ends_once_with_any_and_lets_go_of_the_others() {
    loom::model(|| {
        let (one, first) = Fence::new(1, 1);
        let (_two, second) = Fence::new(1, 2);
        let array = Fence::any([first, second.clone()]);
        let worker = thread::spawn(move || one.signal(Ok(())));
        let heard = listen(&array);
        worker.join().unwrap();
        assert_eq!(*heard.lock(), [Ok(())]);
        assert!(std::format!("{second}").ends_with("cbs=0"));
    });
}

#[test]
fn a_point_is_signalled_once_whoever_looks() {
    loom::model(|| {
        let (one, first) = Fence::new(1, 1);
        let (two, second) = Fence::new(1, 2);
        let chain = Chain::new();
        chain.add(1, first).unwrap();
        let point = chain.add(2, second).unwrap();
        two.signal(Ok(()));
        let worker = thread::spawn(move || one.signal(Ok(())));
        let heard = listen(&point);
        assert!(chain.pending() <= 2);
        worker.join().unwrap();
        assert_eq!(*heard.lock(), [Ok(())]);
    });
}

#[test]
fn a_point_that_is_added_while_the_last_one_ends_waits_for_its_work() {
    loom::model(|| {
        let (one, first) = Fence::new(1, 1);
        let (two, second) = Fence::new(1, 2);
        let chain = Chain::new();
        let heard = listen(&chain.add(1, first).unwrap());
        let worker = thread::spawn(move || one.signal(Ok(())));
        let point = chain.add(2, second).unwrap();
        let late = listen(&point);
        worker.join().unwrap();
        assert_eq!(*heard.lock(), [Ok(())]);
        assert_eq!(*late.lock(), []);
        two.signal(Ok(()));
        assert_eq!(*late.lock(), [Ok(())]);
    });
}

/// An engine whose interrupt, once armed, comes with the next change of the word alone.
struct Word {
    value: AtomicUsize,
    armed: AtomicUsize,
}

impl SeqnoWord for Word {
    fn read(&self) -> u32 {
        self.value.load(Ordering::Acquire) as u32
    }

    fn arm(&self) -> Result<(), FenceError> {
        self.armed.store(1, Ordering::Relaxed);
        sync::fence(Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn who_waits_for_a_word_hears_of_it_or_has_armed() {
    loom::model(|| {
        let word = Word {
            value: AtomicUsize::new(0),
            armed: AtomicUsize::new(0),
        };
        let fences = Arc::new(SeqnoFences::new(word, 0));
        let fence = fences.fence(1);
        let engine = fences.clone();
        let worker = thread::spawn(move || {
            engine.word().value.store(1, Ordering::Release);
            sync::fence(Ordering::SeqCst);
            if engine.word().armed.load(Ordering::Relaxed) == 1 {
                engine.update();
            }
        });
        assert_eq!(block_on(fence.wait()), Ok(()));
        worker.join().unwrap();
    });
}

#[test]
fn a_word_that_is_closed_leaves_nobody_waiting() {
    loom::model(|| {
        let word = Word {
            value: AtomicUsize::new(0),
            armed: AtomicUsize::new(0),
        };
        let fences = SeqnoFences::new(word, 0);
        let fence = fences.fence(1);
        let worker = thread::spawn(move || drop(fences));
        assert_eq!(block_on(fence.wait()), Err(FenceError::Closed));
        worker.join().unwrap();
    });
}
