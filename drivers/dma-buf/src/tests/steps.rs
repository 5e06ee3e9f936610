//! From a list to a published fence: private objects, one call, no allocation.

use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use std::vec::Vec;

use hal::host::{CountingHeap, block_on};

use super::{fence, manager, resvs, used};
use crate::{Resv, SHARED_FENCES, Usage};

/// Something of a driver's own, which is no buffer and has no fences.
struct Ring {
    resv: Resv,
    head: u32,
}

#[test]
fn s4_8_private_objects_are_reserved_with_buffers() {
    let manager = manager();
    let buffer = Resv::new(&manager);
    let mut ring = Ring {
        resv: Resv::new(&manager),
        head: 7,
    };
    let mut ticket = manager.try_ticket("driver").unwrap();
    ticket.hold(&ring.resv).add(&buffer, Usage::Write);
    let reserved = block_on(ticket.reserve()).unwrap();
    assert!(ring.resv.is_reserved() && buffer.is_reserved());
    let committed = reserved.queue_waits().unwrap().commit(fence());
    assert!(!ring.resv.is_reserved());
    assert!(ring.resv.fences().is_empty(), "it has no use for fences");
    assert_eq!(buffer.fences().len(), 1);
    committed.signal(Ok(()));
    ring.head += 1;
    assert_eq!(ring.head, 8);
}

#[test]
fn s4_38_a_list_is_stitched_together_and_reserved_in_one_call() {
    let manager = manager();
    let list = resvs(&manager, 4);
    let of = |range: core::ops::Range<usize>| list[range].iter().map(|resv| (resv, Usage::Read));
    let mut ticket = manager.try_ticket("stitched").unwrap();
    ticket.extend(of(0..2));
    ticket.extend(of(2..3));
    ticket.add(&list[3], Usage::Write);
    let reserved = block_on(ticket.reserve()).unwrap();
    assert!(list.iter().all(Resv::is_reserved));
    let committed = reserved.queue_waits().unwrap().commit(fence());
    let one = |resv: &Resv| resv.fences()[0].0.context() == committed.fence().context();
    assert!(list.iter().all(one), "one fence for all");
    committed.signal(Ok(()));
    let reserved = block_on(manager.reserve("one call", of(0..4))).unwrap();
    assert!(list.iter().all(Resv::is_reserved));
    drop(reserved);
}

#[test]
fn reserving_and_committing_do_not_allocate() {
    let manager = manager();
    let list: Vec<_> = (0..16)
        .map(|_| Resv::with_room(&manager, SHARED_FENCES))
        .collect();
    // Whoever is first makes the manager's list of tickets.
    drop(manager.try_ticket("first"));
    for count in [1, 4, 16] {
        for usage in [Usage::Write, Usage::Read, Usage::Write, Usage::Bookkeep] {
            // Readers of every buffer are still there, as a writer finds them.
            let earlier = list.iter().take(count).enumerate();
            let earlier: Vec<_> = earlier
                .filter(|(at, _)| at % 2 == 0)
                .map(|(_, resv)| used(&manager, resv, Usage::Read))
                .collect();
            let fence = fence();
            let before = CountingHeap::count();
            let objects = list[..count].iter().map(|resv| (resv, usage));
            let reserved = block_on_without_allocating(manager.reserve("counted", objects));
            let committed = reserved.unwrap().queue_waits().unwrap().commit(fence);
            assert_eq!(CountingHeap::count(), before, "{usage} of {count}");
            earlier
                .into_iter()
                .for_each(|(signaler, _)| signaler.signal(Ok(())));
            block_on(committed.wait()).unwrap();
            committed.signal(Ok(()));
        }
    }
}

/// Whoever is the first to wait for a ticket in its place on the list makes room for that.
#[test]
fn waiting_does_not_allocate() {
    let manager = manager();
    let list = resvs(&manager, 4);
    let all = || list.iter().map(|resv| (resv, Usage::Write));
    for round in 0..6 {
        let (first_fence, second_fence) = (fence(), fence());
        let before = CountingHeap::count();
        // For the whole of an older ticket.
        let mut older = manager.try_ticket("older").unwrap();
        older.extend(all());
        let held = older.try_reserve().unwrap();
        let mut younger = pin!(manager.reserve("younger", all()));
        assert!(poll_once(younger.as_mut()).is_none());
        let first = held.queue_waits().unwrap().commit(first_fence);
        let held = poll_once(younger).unwrap().unwrap();
        // For the earlier work.
        let second = held.queue_waits().unwrap().commit(second_fence);
        {
            let mut work = pin!(second.wait());
            assert!(poll_once(work.as_mut()).is_none());
            first.signal(Ok(()));
            assert_eq!(poll_once(work), Some(Ok(())));
        }
        second.signal(Ok(()));
        // For a younger ticket to let go.
        let mut older = manager.try_ticket("older").unwrap();
        older.extend(all());
        let mut younger = manager.try_ticket("younger").unwrap();
        younger.add(&list[3], Usage::Write);
        let held = younger.try_reserve().unwrap();
        let mut older = pin!(older.reserve());
        assert!(poll_once(older.as_mut()).is_none());
        held.back_off();
        drop(poll_once(older).unwrap().unwrap());
        let allocated = CountingHeap::count() - before;
        assert!(round < 3 || allocated == 0, "{allocated} blocks");
    }
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Of what nobody else reserves, which is never pending.
fn block_on_without_allocating<T>(future: impl Future<Output = T>) -> T {
    poll_once(pin!(future)).expect("somebody else has it")
}
