//! What the crate promises, by the rows of README.md.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{pending, ready};
use core::pin::pin;
use core::task::Poll;
use std::format;
use std::string::ToString;

use proptest::prelude::*;

use crate::sync::{AtomicUsize, Ordering};
use crate::testing::{Count, Engine, Outcome, listen, poll, poll_once};
use crate::{
    AlreadySignalled, Chain, Context, Fence, FenceError, FenceOps, SeqnoFences, SeqnoWord,
    Signaler, TimedOut, Timeline,
};

const FAILED: Outcome = Err(FenceError::Device(7));

fn fences(count: usize) -> (Vec<Signaler>, Vec<Fence>) {
    let context = Context::new();
    (0..count).map(|_| context.fence()).unzip()
}

#[test]
fn s4_16_each_fence_is_awaited_once() {
    let (signalers, old) = fences(2);
    let both = Fence::all([&old[0], &old[1], &old[0]].map(Fence::clone));
    let more = Fence::all([both.clone(), old[1].clone()]);
    assert_eq!(more.members().len(), 2, "an array's fences instead of it");
    let heard = listen(&more);
    for fence in &old {
        assert!(fence.to_string().ends_with("cbs=1"), "{fence}");
    }
    drop(signalers);
    assert_eq!(*heard.lock(), [Err(FenceError::Abandoned)]);
}

#[test]
fn s4_16_the_new_fence_outlives_those_it_waits_for() {
    let (mut signalers, mut old) = fences(2);
    let engine = Arc::new(Engine::default());
    let released = engine.released.0.clone();
    old.push(Fence::lazy(1, 1, engine.clone()));
    let new = Fence::all(old);
    let heard = listen(&new);
    drop(new);
    signalers.drain(..).for_each(|old| old.signal(Ok(())));
    assert!(heard.lock().is_empty());
    engine.finish(Ok(()));
    engine.interrupt();
    assert_eq!(*heard.lock(), [Ok(())], "the callbacks have kept it");
    drop(engine);
    assert_eq!(released.get(), 1, "nothing is left of any");
}

#[test]
fn s4_17_one_call_collects_all_and_listens_to_each() {
    let (mut signalers, old) = fences(4);
    signalers.pop().unwrap().signal(Ok(()));
    let new = Fence::all(old.iter().cloned());
    assert_eq!(new.members().len(), 3, "what has ended is not kept");
    assert!(old[0].to_string().ends_with("cbs=0"), "nobody waits yet");
    let heard = listen(&new);
    for fence in new.members() {
        assert!(fence.to_string().ends_with("cbs=1"), "{fence}");
    }
    for signaler in signalers {
        assert!(heard.lock().is_empty());
        signaler.signal(Ok(()));
    }
    assert_eq!(*heard.lock(), [Ok(())]);
}

#[test]
fn s4_29_a_wait_ends_at_its_limit() {
    let (signaler, fence) = Fence::new(1, 1);
    let (timer, expired) = Fence::new(2, 1);
    {
        let mut wait = pin!(fence.wait_until(expired.wait()));
        assert!(poll_once(wait.as_mut()).is_pending());
        timer.signal(Ok(()));
        assert_eq!(poll_once(wait.as_mut()), Poll::Ready(Err(TimedOut)));
    }
    assert_eq!(TimedOut.errno(), -110);
    assert_eq!(fence.to_string(), "1:1 pending err=0 cbs=0");
    let mut wait = pin!(fence.wait_until(pending::<()>()));
    assert!(poll_once(wait.as_mut()).is_pending());
    signaler.signal(FAILED);
    assert_eq!(poll_once(wait.as_mut()), Poll::Ready(Ok(FAILED)));
}

#[test]
fn s4_29_a_limit_of_zero_is_a_question() {
    let engine = Arc::new(Engine::default());
    let fence = Fence::lazy(1, 1, engine.clone());
    let asked = poll_once(pin!(fence.wait_until(ready(()))));
    assert_eq!(asked, Poll::Ready(Err(TimedOut)));
    assert_eq!(engine.armed(), 0);
    engine.finish(Ok(()));
    let asked = poll_once(pin!(fence.wait_until(ready(()))));
    assert_eq!(asked, Poll::Ready(Ok(Ok(()))));
}

#[test]
fn s4_30_a_job_is_queued_before_what_it_waits_for_has_ended() {
    let started = Arc::new(Count::default());
    // A job starts when nothing is left to wait for, and ends by its own fence.
    let job = |after: Vec<Fence>| {
        let (signaler, fence) = Context::new().fence();
        let count = started.clone();
        let start = move |result: Outcome| {
            count.add();
            signaler.signal(result);
        };
        assert!(Fence::all(after).add_callback(start).is_ok());
        fence
    };
    let (mut signalers, old) = fences(3);
    let first = job(Vec::from(&old[..2]));
    let second = job(Vec::from([first.clone(), old[2].clone()]));
    let third = listen(&second);
    signalers.pop().unwrap().signal(Ok(()));
    signalers.pop().unwrap().signal(FAILED);
    assert_eq!(started.get(), 0);
    signalers.pop().unwrap().signal(Ok(()));
    assert_eq!(started.get(), 2);
    assert_eq!(*third.lock(), [FAILED]);
}

#[test]
fn s4_31_who_waits_keeps_the_fence() {
    let (signaler, fence) = Fence::new(1, 1);
    let count = Arc::new(Count::default());
    let mut wait = fence.wait();
    assert!(poll(&mut wait, &count).is_pending());
    drop(fence);
    drop(signaler);
    assert_eq!(count.get(), 1);
    let result = poll(&mut wait, &count);
    assert_eq!(result, Poll::Ready(Err(FenceError::Abandoned)));
}

#[test]
fn s4_32_a_second_signal_is_an_error_and_changes_nothing() {
    let (mut signaler, fence) = Fence::new(1, 1);
    let heard = listen(&fence);
    let count = Arc::new(Count::default());
    let mut wait = fence.wait();
    assert!(poll(&mut wait, &count).is_pending());
    assert_eq!(signaler.try_signal(FAILED), Ok(()));
    let second = signaler.try_signal(Ok(()));
    assert_eq!(second, Err(AlreadySignalled(FAILED)));
    drop(signaler);
    assert_eq!(fence.result(), Some(FAILED));
    assert_eq!((heard.lock().len(), count.get()), (1, 1));
    assert_eq!(poll(&mut wait, &count), Poll::Ready(FAILED));
}

#[test]
fn s4_33_a_late_callback_is_told_so() {
    let fence = Fence::signalled(1, 2, FAILED);
    let late = fence.add_callback(|_| ()).unwrap_err();
    assert_eq!((late, late.errno()), (AlreadySignalled(FAILED), -2));
}

#[test]
fn s4_33_the_caller_may_drop_its_reference() {
    let (signaler, fence) = Fence::new(1, 1);
    let heard = listen(&fence);
    drop(fence);
    signaler.signal(Ok(()));
    assert_eq!(*heard.lock(), [Ok(())]);
}

#[test]
fn s4_33_a_wait_is_cancelled_safely() {
    let engine = Arc::new(Engine::default());
    let fence = Fence::lazy(1, 1, engine.clone());
    let (kept, given_up) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let mut wait = fence.wait();
    assert!(poll(&mut wait, &kept).is_pending());
    {
        let mut wait = fence.wait();
        assert!(poll(&mut wait, &given_up).is_pending());
        // It has ended, and nobody was told yet.
        engine.finish(Ok(()));
        assert!(fence.is_signalled());
    }
    assert_eq!(Arc::strong_count(&given_up), 1);
    engine.interrupt();
    assert_eq!((kept.get(), given_up.get()), (1, 0));
}

#[test]
fn s4_34_only_who_waits_arms_and_only_once() {
    let engine = Arc::new(Engine::default());
    let fence = Fence::lazy(1, 1, engine.clone());
    let (both, either) = (
        Fence::all([fence.clone(), Fence::new(1, 2).1]),
        Fence::any([fence.clone(), Fence::new(1, 3).1]),
    );
    let chain = Chain::new();
    let point = chain.add(1, fence.clone()).unwrap();
    for fence in [&fence, &both, &point] {
        assert!(!fence.is_signalled());
        assert!(format!("{fence}").contains("pending"));
    }
    assert!(either.is_signalled(), "the other one is abandoned");
    assert_eq!(engine.armed(), 0);
    let heard = listen(&point);
    assert_eq!(engine.armed(), 1);
    let more = listen(&fence);
    assert_eq!(engine.armed(), 1);
    engine.finish(Ok(()));
    assert!(
        heard.lock().is_empty(),
        "nobody is told before the interrupt"
    );
    engine.interrupt();
    assert_eq!((heard.lock().len(), more.lock().len()), (1, 1));
}

#[test]
fn s4_34_who_cannot_be_armed_signals_the_error() {
    let engine = Arc::new(Engine {
        broken: Some(FenceError::Gone),
        ..Engine::default()
    });
    let fence = Fence::lazy(1, 1, engine);
    assert!(!fence.is_signalled());
    assert_eq!(*listen(&fence).lock(), [Err(FenceError::Gone)]);
    assert_eq!(fence.result(), Some(Err(FenceError::Gone)));
}

#[test]
fn s4_34_the_signaler_keeps_the_fence() {
    let engine = Arc::new(Engine::default());
    let fence = Fence::lazy(1, 1, engine.clone());
    let heard = listen(&fence);
    drop(fence);
    engine.finish(FAILED);
    engine.interrupt();
    assert_eq!(*heard.lock(), [FAILED]);
    assert_eq!(Arc::strong_count(&engine), 1, "the fence is gone");
}

#[test]
fn s4_34_one_signaler_from_the_start_is_the_only_one() {
    let engine = Arc::new(Engine::default());
    let (signaler, fence) = Fence::with_ops(1, 1, engine.clone());
    let heard = listen(&fence);
    assert_eq!(engine.armed(), 1);
    assert!(engine.signaler.lock().is_none());
    engine.finish(Ok(()));
    assert_eq!(fence.result(), Some(Ok(())));
    drop(signaler);
    assert_eq!(*heard.lock(), [Ok(())], "what was seen holds");
}

#[test]
fn s4_35_release_and_kinds_of_their_own() {
    let engine = Arc::new(Engine::default());
    let released = engine.released.0.clone();
    let fence = Fence::lazy(1, 1, engine);
    let other = fence.clone();
    drop(fence);
    assert_eq!(released.get(), 0);
    drop(other);
    assert_eq!(released.get(), 1);
}

/// A kind that does nothing by itself.
struct Nothing;

impl FenceOps for Nothing {
    fn enable_signaling(&self, _: &Fence, _: Option<Signaler>) {}
}

/// An engine's word in memory, which the fences are to keep.
#[derive(Default)]
struct Word {
    value: Arc<AtomicUsize>,
    armed: Arc<AtomicUsize>,
    broken: bool,
}

impl Word {
    fn at(value: u64) -> (Self, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let word = Self::default();
        word.value.store(value as usize, Ordering::Relaxed);
        let (value, armed) = (word.value.clone(), word.armed.clone());
        (word, value, armed)
    }
}

impl SeqnoWord for Word {
    fn read(&self) -> u32 {
        self.value.load(Ordering::Acquire) as u32
    }

    fn arm(&self) -> Outcome {
        self.armed.fetch_add(1, Ordering::Relaxed);
        if self.broken {
            Err(FenceError::Gone)
        } else {
            Ok(())
        }
    }
}

#[test]
fn s4_36_the_word_alone_signals_and_wraps() {
    let start = u64::from(u32::MAX) - 1;
    let (word, value, armed) = Word::at(start);
    let word = SeqnoFences::new(word, start);
    let made: Vec<_> = (start - 1..start + 5)
        .map(|seqno| word.fence(seqno))
        .collect();
    let reached = || made.iter().filter(|fence| fence.is_signalled()).count();
    assert_eq!(reached(), 2);
    for steps in 3..=6 {
        value.fetch_add(1, Ordering::Release);
        assert_eq!(reached(), steps, "of the word {:#x}", word.word().read());
    }
    assert_eq!(armed.load(Ordering::Relaxed), 0, "nobody waits");
    // Half of the numbers later what was reached is so still.
    for _ in 0..3 {
        value.fetch_add(1 << 30, Ordering::Release);
        assert_eq!(word.reached(), value.load(Ordering::Relaxed) as u64);
    }
    assert!(word.fence(start).is_signalled());
    // What was seen holds, whatever the word does.
    let reached = word.reached();
    value.fetch_sub(1, Ordering::Release);
    assert_eq!(word.reached(), reached);
}

#[test]
fn s4_36_software_falls_back_and_memory_is_kept() {
    let (word, value, armed) = Word::at(0);
    let word = SeqnoFences::new(word, 0);
    let (first, second) = (word.fence(1), word.fence(2));
    drop(word.fence(3));
    let heard = [listen(&second), listen(&first)];
    assert_eq!(armed.load(Ordering::Relaxed), 2);
    value.store(1, Ordering::Release);
    assert!(heard[1].lock().is_empty());
    word.update();
    assert_eq!((heard[0].lock().len(), heard[1].lock().len()), (0, 1));
    assert_eq!(armed.load(Ordering::Relaxed), 3, "for who is left");
    value.store(2, Ordering::Release);
    word.update();
    assert_eq!(*heard[0].lock(), [Ok(())]);
    assert_eq!(armed.load(Ordering::Relaxed), 3);
    drop(word);
    assert_eq!(Arc::strong_count(&value), 2, "the fences keep the word");
    drop((first, second));
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
fn s4_36_an_owner_that_goes_away_signals_an_error() {
    let (word, value, _) = Word::at(0);
    let word = SeqnoFences::new(word, 0);
    let (reached, asked, awaited) = (word.fence(1), word.fence(2), word.fence(2));
    let heard = listen(&awaited);
    value.store(1, Ordering::Release);
    drop(word);
    assert_eq!(*heard.lock(), [Err(FenceError::Closed)]);
    assert_eq!(FenceError::Closed.errno(), -2);
    assert_eq!(asked.result(), Some(Err(FenceError::Closed)));
    assert_eq!(reached.result(), Some(Ok(())));
    drop((reached, asked, awaited));
    assert_eq!(Arc::strong_count(&value), 1, "nothing is left");

    let (mut word, _, _) = Word::at(0);
    word.broken = true;
    let word = SeqnoFences::new(word, 0);
    assert_eq!(*listen(&word.fence(1)).lock(), [Err(FenceError::Gone)]);
}

#[test]
fn s4_37_a_provider_recognises_its_own_fences() {
    let engine = Arc::new(Engine::default());
    let own = Fence::lazy(1, 1, engine.clone());
    let timeline = Timeline::new(0);
    let found = own.ops::<Engine>().unwrap();
    assert!(core::ptr::eq(found, &*engine));
    for other in [timeline.fence(1), Fence::new(1, 1).1] {
        assert!(other.ops::<Engine>().is_none());
    }
    static ALL: Nothing = Nothing;
    let (_signaler, fence) = Fence::with_ops(1, 1, &ALL);
    assert!(fence.ops::<Nothing>().is_some());
}

#[test]
fn a_parcel_goes_to_who_collects_it_once() {
    let (signaler, fence) = Fence::new(1, 1);
    assert!(fence.collect().is_none());
    signaler.signal_with(Ok(()), Some(Box::new(7u32)));
    let parcel = fence.clone().collect().unwrap();
    assert_eq!(*parcel.downcast::<u32>().unwrap(), 7);
    assert!(fence.collect().is_none());
}

#[test]
fn a_parcel_that_is_declined_is_dropped_at_once() {
    let kept = Arc::new(());
    let (signaler, early) = Fence::new(1, 1);
    early.decline();
    signaler.signal_with(Ok(()), Some(Box::new(kept.clone())));
    assert_eq!(Arc::strong_count(&kept), 1, "declined before it came");
    let (signaler, late) = Fence::new(1, 2);
    signaler.signal_with(Ok(()), Some(Box::new(kept.clone())));
    assert_eq!(Arc::strong_count(&kept), 2);
    late.decline();
    assert_eq!(Arc::strong_count(&kept), 1, "declined afterwards");
    assert_eq!(
        (early.result(), late.result()),
        (Some(Ok(())), Some(Ok(())))
    );
}

#[test]
fn an_array_of_all_gives_the_error_that_came_first() {
    let (mut signalers, old) = fences(3);
    let new = Fence::all(old.iter().cloned());
    let heard = listen(&new);
    signalers.pop().unwrap().signal(Err(FenceError::Device(3)));
    signalers.remove(0).signal(Err(FenceError::Device(1)));
    assert!(!new.is_signalled(), "one is left");
    signalers.pop().unwrap().signal(Ok(()));
    assert_eq!(*heard.lock(), [Err(FenceError::Device(3))]);

    let (mut signalers, old) = fences(2);
    let new = Fence::all(old);
    signalers.pop().unwrap().signal(Err(FenceError::Device(2)));
    signalers.pop().unwrap().signal(Err(FenceError::Device(1)));
    let first = Some(Err(FenceError::Device(1)));
    assert_eq!(new.result(), first, "nobody has heard which was first");
}

#[test]
fn an_array_of_any_is_as_its_first_and_lets_go_of_the_others() {
    let (mut signalers, old) = fences(3);
    let new = Fence::any(old.iter().cloned());
    let heard = listen(&new);
    signalers.remove(1).signal(FAILED);
    assert_eq!(*heard.lock(), [FAILED]);
    for other in [&old[0], &old[2]] {
        assert_eq!(other.to_string().split(' ').next_back(), Some("cbs=0"));
    }
    signalers.pop().unwrap().signal(Ok(()));
    assert_eq!(new.result(), Some(FAILED));
    // One that has ended before anybody waits.
    let again = Fence::any([old[0].clone(), old[2].clone()]);
    assert_eq!(*listen(&again).lock(), [Ok(())]);
    assert_eq!(old[0].to_string().split(' ').next_back(), Some("cbs=0"));
}

#[test]
fn an_array_that_ends_while_it_begins_to_listen_leaves_nothing_behind() {
    // Its end is noticed by being listened to alone.
    struct Blind(Outcome);
    impl FenceOps for Blind {
        fn enable_signaling(&self, _: &Fence, signaler: Option<Signaler>) {
            signaler.unwrap().signal(self.0);
        }
    }
    let (_signalers, old) = fences(2);
    let blind = Fence::lazy(1, 1, Arc::new(Blind(FAILED)));
    let any = Fence::any([old[0].clone(), blind, old[1].clone()]);
    assert_eq!(*listen(&any).lock(), [FAILED]);
    assert!(old.iter().all(|fence| fence.to_string().ends_with("cbs=0")));
}

#[test]
fn arrays_of_few() {
    assert_eq!(Fence::all([]).result(), Some(Ok(())));
    assert_eq!(Fence::any([]).result(), Some(Err(FenceError::Abandoned)));
    let (_signaler, one) = Fence::new(1, 1);
    assert!(Fence::all([one.clone()]).is_same(&one));
    assert!(Fence::any([one.clone()]).is_same(&one));
    assert!(one.members()[0].is_same(&one));
    let two = Fence::any([one.clone(), Fence::signalled(1, 2, FAILED)]);
    assert_eq!(Fence::all([two, one]).members().len(), 2);
}

#[test]
fn deadlines_reach_all_who_do_the_work() {
    let engines: Vec<_> = (0..3).map(|_| Arc::new(Engine::default())).collect();
    let made = |i: usize| Fence::lazy(1, 1, engines[i].clone());
    let chain = Chain::new();
    chain.add(1, made(0)).unwrap();
    let point = chain
        .add(2, Fence::all([made(1), Fence::new(1, 2).1]))
        .unwrap();
    chain.add(3, made(2)).unwrap();
    let when = core::time::Duration::from_millis(16);
    point.set_deadline(when);
    Fence::new(1, 1).1.set_deadline(when);
    let told = engines.iter().map(|engine| engine.deadlines.lock().len());
    assert_eq!(told.collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(engines[1].deadlines.lock()[0], when);
}

#[test]
fn points_wait_for_those_before_them_and_prune() {
    let (mut signalers, works) = fences(3);
    let chain = Chain::new();
    let points: Vec<_> = (10..40)
        .step_by(10)
        .zip(works)
        .map(|(seqno, work)| chain.add(seqno, work).unwrap())
        .collect();
    assert_eq!(points[2].seqno(), 30);
    let heard: Vec<_> = points.iter().map(listen).collect();
    signalers.pop().unwrap().signal(FAILED);
    signalers.remove(0).signal(Ok(()));
    let count = || heard.iter().map(|heard| heard.lock().len()).sum::<usize>();
    assert_eq!((count(), chain.pending()), (1, 2));
    assert_eq!(chain.point(11).unwrap().seqno(), 20);
    assert!(chain.point(10).unwrap().is_signalled());
    assert!(chain.point(31).is_none());
    signalers.pop().unwrap().signal(Ok(()));
    assert_eq!((count(), chain.pending()), (3, 0));
    assert_eq!(*heard[1].lock(), [Ok(())]);
    assert_eq!(
        *heard[2].lock(),
        [FAILED],
        "a point has its own work's error"
    );
}

#[test]
fn a_chain_refuses_points_that_make_no_sense() {
    let chain = Chain::new();
    let (_signaler, work) = Fence::new(1, 1);
    let point = chain.add(5, work.clone()).unwrap();
    let nested = Fence::any([
        Fence::all([point.clone(), work.clone()]),
        Fence::new(1, 2).1,
    ]);
    for (seqno, work) in [
        (5, work.clone()),
        (4, work.clone()),
        (6, point),
        (6, nested),
    ] {
        let refused = chain.add(seqno, work).unwrap_err();
        assert_eq!(refused.errno(), -22);
    }
    chain.close();
    assert!(chain.add(6, work).is_err());
}

#[test]
fn a_point_is_awaited_before_it_is_there() {
    let chain = Chain::new();
    let mut wait = pin!(chain.wait(2));
    assert!(poll_once(wait.as_mut()).is_pending());
    let (signaler, work) = Fence::new(1, 1);
    chain.add(1, Fence::signalled(1, 1, Ok(()))).unwrap();
    assert!(poll_once(wait.as_mut()).is_pending());
    chain.add(3, work).unwrap();
    assert!(poll_once(wait.as_mut()).is_pending());
    signaler.signal(FAILED);
    assert_eq!(poll_once(wait.as_mut()), Poll::Ready(FAILED));

    let mut never = pin!(chain.wait(4));
    assert!(poll_once(never.as_mut()).is_pending());
    chain.close();
    assert_eq!(poll_once(never), Poll::Ready(Err(FenceError::Closed)));
    assert_eq!(
        poll_once(pin!(chain.wait(9))),
        Poll::Ready(Err(FenceError::Closed))
    );
    assert_eq!(poll_once(pin!(chain.wait(3))), Poll::Ready(Ok(())));
}

#[test]
fn points_end_without_the_owner_and_leave_nothing() {
    let engine = Arc::new(Engine::default());
    let released = engine.released.0.clone();
    let chain = Chain::new();
    drop(chain.add(1, Fence::lazy(1, 1, engine.clone())).unwrap());
    let heard = listen(&chain.add(2, Fence::signalled(1, 2, Ok(()))).unwrap());
    drop(chain);
    engine.finish(Ok(()));
    engine.interrupt();
    assert_eq!(*heard.lock(), [Ok(())]);
    drop(engine);
    assert_eq!(released.get(), 1);
}

#[test]
fn a_long_chain_costs_no_stack() {
    let (signalers, works) = fences(if cfg!(miri) { 100 } else { 100_000 });
    let chain = Chain::new();
    let points: Vec<_> = (1..)
        .zip(works)
        .map(|(seqno, work)| chain.add(seqno, work).unwrap())
        .collect();
    let heard = listen(points.last().unwrap());
    signalers
        .into_iter()
        .rev()
        .for_each(|work| work.signal(Ok(())));
    assert_eq!(*heard.lock(), [Ok(())]);
}

#[test]
fn a_timeline_signals_what_it_passes_and_closes() {
    let timeline = Timeline::new(7);
    assert!(timeline.fence(7).is_signalled());
    let heard: Vec<_> = (8..=10)
        .map(|value| listen(&timeline.fence(value)))
        .collect();
    let count = || {
        heard
            .iter()
            .filter(|heard| !heard.lock().is_empty())
            .count()
    };
    timeline.advance(0);
    assert_eq!(count(), 0);
    timeline.advance(2);
    assert_eq!((count(), timeline.value()), (2, 9));
    timeline.close(FenceError::Gone);
    assert_eq!(*heard[2].lock(), [Err(FenceError::Gone)]);
    assert_eq!(timeline.fence(9).result(), Some(Ok(())));
    let ahead = timeline.fence(11);
    drop(timeline);
    assert_eq!(ahead.result(), Some(Err(FenceError::Gone)));
}

/// How each of some fences ends, and in which order they do.
fn endings() -> impl Strategy<Value = (Vec<Outcome>, Vec<usize>)> {
    let outcome = prop_oneof![
        Just(Ok(())),
        (1..9u32).prop_map(|code| Err(FenceError::Device(code)))
    ];
    prop::collection::vec(outcome, 1..9).prop_flat_map(|outcomes| {
        let order: Vec<_> = (0..outcomes.len()).collect();
        (Just(outcomes), Just(order).prop_shuffle())
    })
}

fn some(count: usize) -> (Vec<Option<Signaler>>, Vec<Fence>) {
    let (signalers, fences) = fences(count);
    (signalers.into_iter().map(Some).collect(), fences)
}

proptest! {
    /// Whenever somebody begins to wait: all, or the first, by the error that came first.
    #[test]
    fn arrays_are_signalled_as_their_members_say(
        (outcomes, order) in endings(),
        begin in any::<prop::sample::Index>(),
    ) {
        let (mut signalers, old) = some(outcomes.len());
        let (all, any) = (Fence::all(old.clone()), Fence::any(old.clone()));
        let begin = begin.index(order.len());
        let mut heard = None;
        for (step, &at) in order.iter().enumerate() {
            if step == begin {
                heard = Some([listen(&all), listen(&any)]);
            }
            prop_assert!(!all.is_signalled());
            signalers[at].take().unwrap().signal(outcomes[at]);
            prop_assert_eq!(any.result(), Some(outcomes[order[0]]));
        }
        let (mut before, after) = (order[..begin].to_vec(), &order[begin..]);
        before.sort_unstable();
        let first = before.iter().chain(after).map(|&at| outcomes[at]);
        let expected = first.fold(Ok(()), Result::and);
        let [of_all, of_any] = heard.unwrap();
        prop_assert_eq!(all.result(), Some(expected));
        prop_assert_eq!(&*of_all.lock(), &[expected]);
        prop_assert_eq!(&*of_any.lock(), &[outcomes[order[0]]]);
        for fence in &old {
            prop_assert!(fence.to_string().ends_with("cbs=0"));
        }
    }

    /// A point is reached when all works up to it have ended, in whatever order, with or without
    /// somebody who waits for it.
    #[test]
    fn points_are_reached_in_their_order((outcomes, order) in endings(), waited in any::<u16>()) {
        let (mut signalers, works) = some(outcomes.len());
        let chain = Chain::new();
        let points: Vec<_> = (1..)
            .zip(works)
            .map(|(seqno, work)| chain.add(seqno, work).unwrap())
            .collect();
        let waited = |at: &usize| waited >> at & 1 == 1;
        let heard: Vec<_> = (0..points.len())
            .filter(waited)
            .map(|at| (at, listen(&points[at])))
            .collect();
        for at in order {
            signalers[at].take().unwrap().signal(outcomes[at]);
            let reached = signalers.iter().take_while(|open| open.is_none()).count();
            for (at, heard) in &heard {
                prop_assert_eq!(heard.lock().len(), usize::from(*at < reached));
            }
            prop_assert_eq!(chain.pending(), points.len() - reached);
            for (at, point) in points.iter().enumerate() {
                let result = (at < reached).then_some(outcomes[at]);
                prop_assert_eq!(point.result(), result);
            }
        }
    }

    /// However the word moves, less than half of its numbers between two looks.
    #[test]
    fn s4_36_a_fence_is_reached_when_the_word_has_come_to_it(
        start in 0..=u64::from(u32::MAX) * 2,
        steps in prop::collection::vec(0..=i32::MAX as u32, 1..20),
        ahead in prop::collection::vec(0..1u64 << 34, 1..8),
    ) {
        let (word, value, _) = Word::at(start);
        let word = SeqnoFences::new(word, start);
        let made: Vec<_> = ahead.iter().map(|ahead| word.fence(start + ahead)).collect();
        let heard: Vec<_> = made.iter().step_by(2).map(listen).collect();
        let mut now = start;
        for step in steps {
            now += u64::from(step);
            value.store(now as usize, Ordering::Release);
            word.update();
            for fence in &made {
                prop_assert_eq!(fence.is_signalled(), fence.seqno() <= now);
            }
            for (heard, fence) in heard.iter().zip(made.iter().step_by(2)) {
                prop_assert_eq!(heard.lock().len(), usize::from(fence.seqno() <= now));
            }
        }
    }
}
