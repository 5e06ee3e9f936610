//! The fences of a reservation: who waits for whom, and what replaces what.

use core::pin::pin;
use core::task::Poll;
use std::string::ToString;
use std::sync::Arc;
use std::vec::Vec;

use dma_fence::{Fence, FenceError, FenceOps, Signaler};
use hal::host::block_on;

use super::{Wakes, fence, manager, poll, resvs, used};
use crate::{Earlier, Manager, Options, ReserveError, Resv, SHARED_FENCES, Usage};

use Usage::{Bookkeep, Kernel, Read, Write};

/// What is in `resv`, in the order of classes.
fn classes(resv: &Resv) -> Vec<Usage> {
    let mut classes: Vec<_> = resv.fences().iter().map(|(_, usage)| *usage).collect();
    classes.sort();
    classes
}

#[test]
fn s4_25_writers_wait_for_all_and_readers_for_writers() {
    for (before, after, waits) in [
        (Write, Write, true),
        (Write, Read, true),
        (Read, Write, true),
        (Read, Read, false),
        (Kernel, Read, true),
        (Kernel, Write, true),
        (Kernel, Bookkeep, true),
        (Kernel, Kernel, true),
        (Write, Bookkeep, false),
        (Read, Bookkeep, false),
        (Bookkeep, Bookkeep, false),
        (Bookkeep, Read, false),
        (Bookkeep, Write, false),
        (Bookkeep, Kernel, true),
        (Read, Kernel, true),
        (Write, Kernel, true),
    ] {
        let manager = manager();
        let resv = Resv::new(&manager);
        let (signaler, _) = used(&manager, &resv, before);
        let wakes = Arc::new(Wakes::default());
        let mut wait = pin!(resv.wait(after));
        let polled = poll(wait.as_mut(), &wakes);
        assert_eq!(polled.is_pending(), waits, "{after} after {before}");
        signaler.signal(Ok(()));
        if waits {
            assert_eq!(poll(wait.as_mut(), &wakes), Poll::Ready(Ok(())));
        }
    }
}

#[test]
fn s4_5_who_waits_for_a_buffer_waits_for_what_is_there_now() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let (writer, _) = used(&manager, &resv, Write);
    let wakes = Arc::new(Wakes::default());
    let mut read = pin!(resv.wait(Read));
    assert!(poll(read.as_mut(), &wakes).is_pending());
    // Comes later: a barrier does not wait for it.
    let (_later, _) = used(&manager, &resv, Write);
    writer.signal(Ok(()));
    assert_eq!(poll(read.as_mut(), &wakes), Poll::Ready(Ok(())));
    let mut write = pin!(resv.wait(Write));
    assert!(poll(write.as_mut(), &wakes).is_pending());
}

#[test]
fn s4_28_an_exclusive_fence_replaces_all_and_a_shared_one_joins() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let (_w, first) = used(&manager, &resv, Write);
    let (_a, a) = used(&manager, &resv, Read);
    let (_b, b) = used(&manager, &resv, Read);
    assert_eq!(classes(&resv), [Write, Read, Read]);
    let named = |fence: &Fence| {
        resv.fences()
            .iter()
            .any(|(other, _)| other.context() == fence.context())
    };
    assert!(named(&first) && named(&a) && named(&b));
    assert!(!resv.is_reserved());
    let (_k, _) = used(&manager, &resv, Bookkeep);
    let (_second, second) = used(&manager, &resv, Write);
    assert_eq!(classes(&resv), [Write, Bookkeep]);
    assert!(named(&second));
    let (_third, third) = used(&manager, &resv, Kernel);
    assert_eq!(classes(&resv), [Kernel]);
    assert!(named(&third));
    // More than are dropped at a time.
    let signalers: Vec<_> = (0..20).map(|_| used(&manager, &resv, Read).0).collect();
    assert_eq!(resv.fences().len(), 21);
    let (_fourth, fourth) = used(&manager, &resv, Write);
    assert!(named(&fourth) && classes(&resv) == [Write]);
    drop(signalers);
}

#[test]
fn what_has_ended_is_forgotten_but_a_writer_that_failed() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let (writer, _) = used(&manager, &resv, Write);
    writer.signal(Err(FenceError::Device(3)));
    let (reader, _) = used(&manager, &resv, Read);
    reader.signal(Err(FenceError::Terminated));
    let (_other, _) = used(&manager, &resv, Read);
    assert_eq!(classes(&resv), [Write, Read]);
    // Who reads is told; who writes need not know.
    assert_eq!(block_on(resv.wait(Read)), Err(FenceError::Device(3)));
    let (writer, _) = used(&manager, &resv, Write);
    drop(_other);
    writer.signal(Ok(()));
    assert_eq!(block_on(resv.wait(Read)), Ok(()));
    assert_eq!(block_on(resv.wait(Write)), Ok(()));
}

#[test]
fn s4_26_the_ninth_shared_fence_is_refused_where_there_is_a_limit() {
    let limited = Manager::new(Options {
        shared_fences: Some(SHARED_FENCES),
        ..Options::default()
    });
    let resv = Resv::new(&limited);
    let mut signalers: Vec<_> = (0..8).map(|_| used(&limited, &resv, Read)).collect();
    let ninth = |usage| {
        let reserved = block_on(limited.reserve("ninth", [(&resv, usage)])).unwrap();
        let refused = reserved.queue_waits().err();
        assert!(!resv.is_reserved());
        refused
    };
    assert_eq!(ninth(Read), Some(ReserveError::Full));
    assert_eq!(resv.fences().len(), 8, "nothing has changed");
    assert_eq!(ninth(Write), None, "an exclusive one has its place");
    let (signaler, _) = signalers.remove(3);
    signaler.signal(Ok(()));
    assert_eq!(ninth(Read), None, "one has ended");
    // Without a limit there is room for nine.
    let manager = manager();
    let resv = Resv::new(&manager);
    let signalers: Vec<_> = (0..9).map(|_| used(&manager, &resv, Read)).collect();
    assert_eq!(resv.fences().len(), 9);
    drop(signalers);
}

#[test]
fn s4_27_backing_off_leaves_no_trace() {
    let manager = manager();
    let list = resvs(&manager, 3);
    let _signalers: Vec<_> = [(0, Write), (1, Read), (1, Read), (2, Bookkeep)]
        .into_iter()
        .map(|(at, usage): (usize, _)| used(&manager, &list[at], usage))
        .collect();
    let dump = || {
        let fences = list.iter().flat_map(Resv::fences);
        let lines = fences.map(|(fence, usage)| std::format!("{fence} {usage}"));
        (lines.collect::<Vec<_>>(), manager.outstanding().len())
    };
    let before = dump();
    let all = || list.iter().map(|resv| (resv, Write));
    drop(block_on(manager.reserve("test", all())).unwrap());
    assert_eq!(dump(), before);
    block_on(manager.reserve("test", all())).unwrap().back_off();
    assert_eq!(dump(), before);
    let waited = block_on(manager.reserve("test", all()))
        .unwrap()
        .queue_waits();
    assert_eq!(waited.as_ref().unwrap().earlier().len(), 3);
    drop(waited);
    assert_eq!(dump(), before);
    assert!(!list.iter().any(Resv::is_reserved));
}

#[test]
fn s4_17_a_fence_common_to_many_is_waited_for_once() {
    let manager = manager();
    let list = resvs(&manager, 3);
    let all = |usage| list.iter().map(move |resv| (resv, usage));
    let write = block_on(manager.reserve("write", all(Write))).unwrap();
    let write = write.queue_waits().unwrap().commit(fence());
    let read = block_on(manager.reserve("read", all(Read))).unwrap();
    let read = read.queue_waits().unwrap();
    assert_eq!(read.earlier().len(), 1);
    let read = read.commit(fence());
    let again = block_on(manager.reserve("write", all(Write))).unwrap();
    let waits = again.queue_waits().unwrap();
    let waits: Vec<_> = waits.earlier().fences().map(ToString::to_string).collect();
    assert_eq!(waits, [write.fence().to_string(), read.fence().to_string()]);
}

#[test]
fn s4_16_a_fence_ends_after_those_whose_place_it_took() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let (reader, _) = used(&manager, &resv, Read);
    let reserved = block_on(manager.reserve("write", [(&resv, Write)])).unwrap();
    let write = reserved.queue_waits().unwrap().commit(fence());
    assert_eq!(
        classes(&resv),
        [Write],
        "the reader's is not there any more"
    );
    let published = write.fence().clone();
    // The task is cancelled before it has waited.
    drop(write);
    let mut wait = pin!(resv.wait(Write));
    assert!(poll(wait.as_mut(), &Arc::default()).is_pending());
    assert!(!published.is_signalled());
    reader.signal(Ok(()));
    assert_eq!(block_on(published.wait()), Err(FenceError::Abandoned));
    assert_eq!(
        block_on(wait),
        Ok(()),
        "it is written anew: who failed does not matter"
    );
    // Work that says how it ended too early, and a failure in what it reads.
    let (reader, _) = used(&manager, &resv, Read);
    let reserved = block_on(manager.reserve("write", [(&resv, Write)])).unwrap();
    let write = reserved.queue_waits().unwrap().commit(fence());
    let published = write.fence().clone();
    write.signal(Ok(()));
    assert!(!published.is_signalled());
    drop(reader);
    assert_eq!(block_on(published.wait()), Ok(()));
}

/// Lives as long as the fences of its kind.
struct Kept;

impl FenceOps for Kept {
    fn enable_signaling(&self, _: &Fence, _: Option<Signaler>) {}
}

#[test]
fn s4_16_no_fence_is_left_when_all_have_ended() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let alive = Arc::new(Kept);
    let watched = || Fence::with_ops(dma_fence::next_context(), 1, alive.clone());
    let all = || list.iter().map(|resv| (resv, Write));
    let first = block_on(manager.reserve("first", all())).unwrap();
    let first = first.queue_waits().unwrap().commit(watched());
    let second = block_on(manager.reserve("second", all())).unwrap();
    let second = second.queue_waits().unwrap().commit(watched());
    assert_eq!(Arc::strong_count(&alive), 3);
    first.signal(Ok(()));
    assert_eq!(block_on(second.wait()), Ok(()));
    second.signal(Ok(()));
    assert_eq!(
        Arc::strong_count(&alive),
        2,
        "the first is nowhere any more"
    );
    assert!(list.iter().all(|resv| resv.earlier(Kernel).is_empty()));
    drop(list);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn s4_20_who_cannot_queue_waits_for_everything_reserved() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let (first, _) = used(&manager, &list[0], Read);
    let (second, _) = used(&manager, &list[1], Write);
    let all = list.iter().map(|resv| (resv, Write));
    let reserved = block_on(manager.reserve("sync", all)).unwrap();
    let wakes = Arc::new(Wakes::default());
    let mut wait = pin!(reserved.wait_all());
    assert!(poll(wait.as_mut(), &wakes).is_pending());
    second.signal(Ok(()));
    assert!(poll(wait.as_mut(), &wakes).is_pending());
    first.signal(Ok(()));
    assert_eq!(poll(wait.as_mut(), &wakes), Poll::Ready(Ok(())));
    assert!(list.iter().all(Resv::is_reserved));
}

#[test]
fn s4_30_a_second_job_is_queued_before_the_first_has_ended() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let commit = || {
        let reserved = block_on(manager.reserve("job", [(&resv, Write)])).unwrap();
        reserved.queue_waits().unwrap().commit(fence())
    };
    let first = commit();
    let second = commit();
    let third = commit();
    let wakes = Arc::new(Wakes::default());
    let mut last = pin!(third.wait());
    {
        let mut wait = pin!(second.wait());
        assert!(poll(wait.as_mut(), &wakes).is_pending());
        assert!(poll(last.as_mut(), &wakes).is_pending());
        first.signal(Ok(()));
        assert_eq!(poll(wait.as_mut(), &wakes), Poll::Ready(Ok(())));
        assert!(poll(last.as_mut(), &wakes).is_pending());
    }
    second.signal(Ok(()));
    assert_eq!(poll(last.as_mut(), &wakes), Poll::Ready(Ok(())));
}

#[test]
fn nothing_to_wait_for_is_waited_for_at_once() {
    assert_eq!(block_on(Earlier::default().wait()), Ok(()));
    assert!(Earlier::default().has_ended());
}
