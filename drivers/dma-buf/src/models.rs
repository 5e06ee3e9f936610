//! Models of tickets and reservations, run by loom in every order that the memory model allows
//! (`make loom`).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::pin::pin;
use core::task::{Context, Waker};

use dma_fence::sync::{AtomicUsize, Ordering};
use dma_fence::{Fence, next_context};
use loom::future::block_on;
use loom::thread;

use crate::{Manager, Options, ReserveError, Resv, Usage};

struct Shared {
    manager: Manager,
    list: [Resv; 2],
    /// Plain data of whoever has all of the list.
    data: AtomicUsize,
}

impl Shared {
    fn new() -> Arc<Self> {
        let manager = Manager::new(Options::default());
        let list = [Resv::new(&manager), Resv::new(&manager)];
        let data = AtomicUsize::new(0);
        Arc::new(Self {
            manager,
            list,
            data,
        })
    }

    /// Reserves both in this order, one after the other, and counts: nobody counts at the same time.
    fn count(&self, [first, second]: [usize; 2]) {
        let reserved = block_on(async {
            let mut ticket = self.manager.ticket("model").await;
            // What it is refused stays listed.
            let _ = ticket.one(&self.list[first], Usage::Write).await;
            ticket.add(&self.list[second], Usage::Write);
            ticket.reserve().await.unwrap()
        });
        let count = self.data.load(Ordering::Relaxed);
        self.data.store(count + 1, Ordering::Relaxed);
        assert!(reserved.retries() <= reserved.older());
    }
}

#[test]
fn two_tickets_in_opposite_orders_both_get_through() {
    loom::model(|| {
        let shared = Shared::new();
        let other = shared.clone();
        let thread = thread::spawn(move || other.count([1, 0]));
        shared.count([0, 1]);
        thread.join().unwrap();
        // What the first has written the second has read.
        assert_eq!(shared.data.load(Ordering::Relaxed), 2);
        assert!(shared.manager.outstanding().is_empty());
    });
}

/// The second waits for the third, which lets go; the first, an older one, may have come before the
/// second looks again.
#[test]
fn s4_23_who_waits_looks_again_when_an_older_one_comes_in_between() {
    loom::model(|| {
        // Tickets go to other threads: what they borrow stays.
        let shared: &'static Shared = Box::leak(Box::new(Arc::into_inner(Shared::new()).unwrap()));
        let draw = || shared.manager.try_ticket("model").unwrap();
        let [first, mut second, mut third] = [draw(), draw(), draw()];
        third.try_one(&shared.list[0], Usage::Read).unwrap();
        let third = thread::spawn(move || drop(third));
        let older = thread::spawn(move || {
            let mut first = first;
            first.try_one(&shared.list[0], Usage::Read).is_ok()
        });
        second.add(&shared.list[0], Usage::Read);
        let reserved = block_on(second.reserve()).unwrap();
        assert!(reserved.retries() <= 1);
        drop(reserved);
        third.join().unwrap();
        older.join().unwrap();
        assert!(!shared.list[0].is_reserved());
    });
}

#[test]
fn three_tickets_wait_for_one_another_and_none_for_ever() {
    loom::model(|| {
        let shared = Shared::new();
        let (one, two) = (shared.clone(), shared.clone());
        let reserve = |shared: &Shared| {
            let objects = [(&shared.list[0], Usage::Read)];
            block_on(shared.manager.reserve("model", objects))
                .unwrap()
                .seq()
        };
        let first = thread::spawn(move || reserve(&one));
        let second = thread::spawn(move || reserve(&two));
        reserve(&shared);
        first.join().unwrap();
        second.join().unwrap();
        assert!(!shared.list[0].is_reserved());
    });
}

#[test]
fn who_gives_up_takes_no_other_along() {
    loom::model(|| {
        let shared = Shared::new();
        let other = shared.clone();
        let mut holder = shared.manager.try_ticket("holder").unwrap();
        holder.try_one(&shared.list[0], Usage::Read).unwrap();
        let thread = thread::spawn(move || {
            let mut given_up = pin!(other.manager.wait_unreserved(&other.list[0]));
            let _ = given_up
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
        });
        let waiter = shared.clone();
        let waits = thread::spawn(move || {
            block_on(waiter.manager.wait_unreserved(&waiter.list[0])).unwrap();
        });
        drop(holder);
        thread.join().unwrap();
        waits.join().unwrap();
    });
}

#[test]
fn an_interrupted_wait_ends_however_it_goes() {
    loom::model(|| {
        let shared = Shared::new();
        let other = shared.clone();
        let mut older = shared.manager.try_ticket("older").unwrap();
        let seq = older.seq();
        let mut younger = shared.manager.try_ticket("younger").unwrap();
        younger.try_one(&shared.list[0], Usage::Read).unwrap();
        older.add(&shared.list[0], Usage::Read);
        let thread = thread::spawn(move || other.manager.interrupt(seq));
        // Nobody lets go: only the interruption ends this.
        let ended = block_on(older.reserve());
        assert_eq!(ended.err(), Some(ReserveError::Interrupted));
        assert!(thread.join().unwrap());
    });
}

#[test]
fn who_looks_while_a_fence_is_replaced_finds_the_old_or_the_new() {
    loom::model(|| {
        let shared = Shared::new();
        let other = shared.clone();
        let commit = |shared: &Shared, usage| {
            let reserved = shared.manager.reserve("model", [(&shared.list[0], usage)]);
            let waited = block_on(reserved).unwrap().queue_waits().unwrap();
            waited.commit(Fence::new(next_context(), 1))
        };
        let read = commit(&shared, Usage::Read);
        let thread = thread::spawn(move || {
            let write = commit(&other, Usage::Write);
            assert_eq!(write.earlier().len(), 1);
            write
        });
        let seen = shared.list[0].earlier(Usage::Write);
        let seen: alloc::vec::Vec<_> = seen.fences().map(Fence::context).collect();
        let write = thread.join().unwrap();
        let (old, new) = (read.fence().context(), write.fence().context());
        assert!(
            seen == [old] || seen == [new] || seen == [new, old],
            "{seen:?}"
        );
        read.signal(Ok(()));
        write.signal(Ok(()));
    });
}
