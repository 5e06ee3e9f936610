//! Tasks that wait for a condition to change.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::mem;
use core::task::{Poll, Waker};

use dma_fence::sync::{AtomicUsize, Mutex, Ordering, fence};

/// A list of waiting tasks, all woken together to look at their conditions again.
#[derive(Default)]
pub(crate) struct WaitList {
    /// How many tasks are listed: lets [`WaitList::wake_all`] pass without the lock.
    waiting: AtomicUsize,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    next: u64,
    wakers: Vec<(u64, Waker)>,
}

impl WaitList {
    /// Wakes every waiting task. Call it after the condition has changed.
    #[inline]
    pub(crate) fn wake_all(&self) {
        // Pairs with the fence in `until`: either the waiter sees the change or we see the waiter.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.wake_listed();
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_listed(&self) {
        let wakers = {
            let mut list = self.list.lock();
            self.waiting.store(0, Ordering::Relaxed);
            mem::take(&mut list.wakers)
        };
        for (_, waker) in wakers {
            waker.wake();
        }
    }

    /// Waits until `condition` gives a value. Cancel-safe.
    pub(crate) async fn until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        if let Some(value) = condition() {
            return value;
        }
        let mut place = Place {
            list: self,
            key: None,
        };
        poll_fn(|cx| {
            place.register(cx.waker());
            fence(Ordering::SeqCst);
            condition().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// One task's place on the list, given up when its wait ends.
struct Place<'a> {
    list: &'a WaitList,
    key: Option<u64>,
}

impl Place<'_> {
    fn register(&mut self, waker: &Waker) {
        let mut list = self.list.list.lock();
        let listed = list
            .wakers
            .iter_mut()
            .find(|(key, _)| Some(*key) == self.key);
        if let Some((_, old)) = listed {
            old.clone_from(waker);
            return;
        }
        list.next += 1;
        let key = list.next;
        list.wakers.push((key, waker.clone()));
        self.list
            .waiting
            .store(list.wakers.len(), Ordering::Relaxed);
        self.key = Some(key);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut list = self.list.list.lock();
        list.wakers.retain(|(key, _)| Some(*key) != self.key);
        self.list
            .waiting
            .store(list.wakers.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hal::host::block_on;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn waits_until_the_condition_holds() {
        let shared = Arc::new((WaitList::default(), AtomicU32::new(0)));
        let other = shared.clone();
        let thread = std::thread::spawn(move || {
            for _ in 0..1000 {
                other.1.fetch_add(1, Ordering::Relaxed);
                other.0.wake_all();
            }
        });
        for goal in [1, 10, 1000] {
            block_on(
                shared
                    .0
                    .until(|| (shared.1.load(Ordering::Relaxed) >= goal).then_some(())),
            );
        }
        thread.join().unwrap();
        assert_eq!(shared.0.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_cancelled_wait_leaves_the_list() {
        let list = WaitList::default();
        let never = hal::time::timeout(
            hal::time::Duration::from_millis(1),
            list.until(|| None::<()>),
        );
        assert!(block_on(never).is_err());
        assert_eq!(list.waiting.load(Ordering::Relaxed), 0);
        assert!(list.list.lock().wakers.is_empty());
    }
}

/// Run by loom in every order that the memory model allows.
#[cfg(all(loom, test))]
mod models {
    use super::*;
    use core::future::Future;
    use core::pin::pin;
    use core::task::Context;
    use loom::future::block_on;
    use loom::thread;
    use std::sync::Arc;

    #[derive(Default)]
    struct Shared {
        list: WaitList,
        condition: AtomicUsize,
    }

    impl Shared {
        /// What changes the condition has nothing but the list to be heard by.
        fn set(&self, value: usize) {
            self.condition.store(value, Ordering::Relaxed);
            self.list.wake_all();
        }

        fn is(&self, value: usize) -> Option<()> {
            (self.condition.load(Ordering::Relaxed) >= value).then_some(())
        }
    }

    #[test]
    fn no_wake_is_lost() {
        loom::model(|| {
            let shared = Arc::new(Shared::default());
            let other = shared.clone();
            let thread = thread::spawn(move || other.set(1));
            // loom reports a task that nobody wakes as a deadlock.
            block_on(shared.list.until(|| shared.is(1)));
            thread.join().unwrap();
            assert!(shared.list.list.lock().wakers.is_empty());
        });
    }

    #[test]
    fn the_second_change_is_heard_as_well() {
        loom::model(|| {
            let shared = Arc::new(Shared::default());
            let other = shared.clone();
            let thread = thread::spawn(move || {
                other.set(1);
                other.set(2);
            });
            block_on(shared.list.until(|| shared.is(2)));
            thread.join().unwrap();
            assert_eq!(shared.list.waiting.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn who_gives_up_takes_no_other_off_the_list() {
        loom::model(|| {
            let shared = Arc::new(Shared::default());
            let other = shared.clone();
            let thread = thread::spawn(move || other.set(1));
            {
                let mut given_up = pin!(shared.list.until(|| shared.is(1)));
                let _ = given_up
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
            }
            block_on(shared.list.until(|| shared.is(1)));
            thread.join().unwrap();
            assert_eq!(shared.list.waiting.load(Ordering::Relaxed), 0);
        });
    }
}
