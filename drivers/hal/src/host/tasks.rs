//! The host's tasks and timers, on threads of the standard library alone, so that Miri can run
//! them. The threads start at the first use and end with the process.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use async_task::Runnable;

use crate::machine::TimerId;

/// Threads that run tasks: more than one, so that tasks meet.
const WORKERS: usize = 2;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `task` on one of the workers.
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    let schedule = |runnable| {
        // The workers hold the other end for ever.
        let _ = ready().send(runnable);
    };
    let (runnable, task) = async_task::spawn(task, schedule);
    runnable.schedule();
    task.detach();
}

fn ready() -> &'static Sender<Runnable> {
    static READY: OnceLock<Sender<Runnable>> = OnceLock::new();
    READY.get_or_init(|| {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..WORKERS {
            let receiver = receiver.clone();
            thread::spawn(move || work(&receiver));
        }
        sender
    })
}

fn work(ready: &Mutex<Receiver<Runnable>>) {
    loop {
        // Whoever waits for the lock waits for a task in turn.
        let next = lock(ready).recv();
        let Ok(runnable) = next else { return };
        // The panic was printed; the worker has other tasks to run.
        let _ = catch_unwind(AssertUnwindSafe(|| runnable.run()));
    }
}

/// Runs `future` to its end on the caller's thread.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Pending timers, and the thread that wakes for them.
#[derive(Default)]
pub(super) struct Timers {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    next: u64,
    timers: BTreeMap<TimerId, (Instant, Waker)>,
    /// The thread has been started.
    running: bool,
}

impl Timers {
    pub(super) fn set(&'static self, deadline: Instant, waker: Waker) -> TimerId {
        let mut pending = lock(&self.pending);
        let id = TimerId(pending.next);
        pending.next += 1;
        pending.timers.insert(id, (deadline, waker));
        if !pending.running {
            pending.running = true;
            thread::spawn(|| self.run());
        }
        drop(pending);
        self.changed.notify_one();
        id
    }

    pub(super) fn cancel(&self, id: TimerId) {
        // Dropped outside the lock: the waker may lead back here.
        let timer = lock(&self.pending).timers.remove(&id);
        drop(timer);
    }

    fn run(&self) {
        let mut pending = lock(&self.pending);
        loop {
            let now = Instant::now();
            let timers = &mut pending.timers;
            let due: Vec<_> = timers
                .extract_if(.., |_, (deadline, _)| *deadline <= now)
                .collect();
            if !due.is_empty() {
                drop(pending);
                for (_, (_, waker)) in due {
                    waker.wake();
                }
                pending = lock(&self.pending);
                continue;
            }
            let next = timers.values().map(|(deadline, _)| *deadline).min();
            let wait = next.map_or(Duration::MAX, |deadline| deadline - now);
            let waited = self.changed.wait_timeout(pending, wait);
            pending = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{Instant, poll_until, sleep, timeout};
    use core::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn tasks_meet_and_survive_one_that_panics() {
        static RAN: AtomicUsize = AtomicUsize::new(0);
        let (sender, receiver) = channel::<()>();
        for number in 0..20 {
            let sender = sender.clone();
            spawn(async move {
                crate::task::yield_now().await;
                assert_ne!(number, 7, "the test's own");
                RAN.fetch_add(1, Ordering::Relaxed);
                drop(sender);
            });
        }
        drop(sender);
        // Every task has ended when all have let go of it.
        assert!(receiver.recv().is_err());
        assert_eq!(RAN.load(Ordering::Relaxed), 19);
    }

    #[test]
    fn who_looks_again_and_again_lets_others_run() {
        // A step that is over before anybody could sleep, as on a machine that is slow.
        let looks = poll_until(Duration::from_secs(3600), Duration::ZERO, || false);
        assert!(block_on(timeout(Duration::from_millis(5), looks)).is_err());
    }

    #[test]
    fn no_timer_comes_early_and_none_is_forgotten() {
        let begin = Instant::now();
        thread::scope(|scope| {
            for millis in [60, 5, 30] {
                scope.spawn(move || {
                    let wait = Duration::from_millis(millis);
                    block_on(sleep(wait));
                    assert!(begin.elapsed() >= wait);
                });
            }
        });
    }

    #[test]
    fn a_wait_that_is_given_up_forgets_its_timer() {
        let long = Duration::from_secs(3600);
        assert!(block_on(timeout(Duration::from_millis(1), sleep(long))).is_err());
        let late = std::time::Instant::now() + long / 2;
        let pending = lock(&super::super::host().timers.pending);
        assert!(
            pending
                .timers
                .values()
                .all(|(deadline, _)| *deadline < late)
        );
    }
}
