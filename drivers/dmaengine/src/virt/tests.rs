use super::pump::QUANTUM;
use super::*;
use crate::mock::{self, Mock};
use crate::{Counters, Flags, Interrupt, Memset, Registry, Submitted};
use dma_fence::FenceError;
use hal::dma::{Destination, Memory};
use hal::host::block_on;
use hal::time::{Duration, Instant, timeout};
use proptest::prelude::*;
use std::{format, thread, vec};

const SOON: Duration = Duration::from_millis(5);
const TERMINATED: Result<(), FenceError> = Err(FenceError::Terminated);

/// A registry with one channel of `mock`.
fn machine(mock: &Arc<Mock>) -> (Registry, DmaChan) {
    let registry = Registry::new();
    let mock: Arc<Mock> = mock.clone();
    let device = registry.register(mock::info(), vec![mock]).unwrap();
    (registry, device.channels().next().unwrap())
}

fn client(chan: &DmaChan, name: &str) -> Channel {
    block_on(chan.virtual_for(&Client::new(name))).unwrap()
}

fn submit(channel: &Channel) -> Submitted<Interrupt> {
    let descriptor = channel.prep_interrupt(Flags::empty()).unwrap();
    channel.submit(descriptor).unwrap()
}

fn many(channel: &Channel, count: usize) -> Vec<Submitted<Interrupt>> {
    (0..count).map(|_| submit(channel)).collect()
}

fn fill(channel: &Channel, len: usize, flags: Flags) -> Submitted<Memset> {
    let dst = Destination::new(Memory::new(len).unwrap(), 0..len).unwrap();
    let descriptor = channel.prep_memset(dst, 7, flags).unwrap();
    channel.submit(descriptor).unwrap()
}

fn results<K: crate::Kind>(all: &[Submitted<K>]) -> Vec<Option<Result<(), FenceError>>> {
    all.iter()
        .map(|submitted| submitted.fence().result())
        .collect()
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true");
        thread::yield_now();
    }
}

/// Whose operations the ring holds, by the first letter of the client's name.
fn ring(mock: &Mock) -> std::string::String {
    let state = mock.state.lock();
    let letter = |operation: &Operation| {
        let operation = format!("{operation:?}");
        let name = operation.split('/').nth(1).unwrap();
        name.chars().next().unwrap()
    };
    state.ring.iter().map(letter).collect()
}

#[test]
fn each_client_has_a_channel_of_its_own() {
    let mock = Mock::new(8);
    let (_registry, chan) = machine(&mock);
    let (a, b) = (client(&chan, "a"), client(&chan, "b"));
    assert_eq!((a.name(), b.name()), ("dma0chan0/a", "dma0chan0/b"));
    assert_eq!(chan.clients(), 2);
    let first = fill(&a, 8, Flags::empty());
    let second = fill(&b, 16, Flags::empty());
    assert_eq!(
        (first.cookie(), second.cookie()),
        (crate::Cookie(1), crate::Cookie(1))
    );
    assert_ne!(first.fence().context(), second.fence().context());
    assert_eq!(ring(&mock), "", "submitted, not issued");
    assert_eq!((a.in_flight(), b.in_flight(), chan.in_flight()), (1, 1, 0));
    a.issue_pending();
    assert_eq!(ring(&mock), "a");
    assert_eq!((a.in_flight(), b.in_flight(), chan.in_flight()), (1, 1, 1));
    b.issue_pending();
    mock.finish(Ok(()));
    mock.finish(Err(FenceError::Device(1)));
    let memory = block_on(first.finish()).buffers.unwrap().into_memory();
    assert_eq!(memory[..8], [7; 8]);
    assert_eq!(block_on(second.finish()).result, Err(FenceError::Device(1)));
    let counters = |fills, bytes, errors| Counters {
        fills,
        bytes,
        errors,
        ..Counters::default()
    };
    assert_eq!(a.counters(), counters(1, 8, 0));
    assert_eq!(b.counters(), counters(0, 0, 1));
    assert_eq!(chan.counters(), counters(1, 8, 1));
    assert_eq!((a.in_flight(), b.in_flight(), chan.in_flight()), (0, 0, 0));
}

#[test]
fn s3_7_each_client_of_one_channel_is_set_and_released() {
    let mock = Mock::new(8);
    let (_registry, chan) = machine(&mock);
    let clients = ["a", "b", "c"].map(|name| client(&chan, name));
    assert_eq!(block_on(chan.request()).unwrap_err(), RequestError::Busy);
    let also = block_on(clients[0].virtual_for(&Client::new("d"))).unwrap();
    assert_eq!(also.name(), "dma0chan0/d", "on the physical one too");
    block_on(also.release());
    for channel in clients {
        let submitted = submit(&channel);
        channel.issue_pending();
        assert!(mock.finish(Ok(())));
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
        block_on(channel.release());
    }
    let trace = mock.state.lock().trace.clone();
    let calls = |what: &str| trace.iter().filter(|line| line.starts_with(what)).count();
    assert_eq!((calls("set"), calls("release")), (4, 4), "{trace:?}");
    assert_eq!((calls("alloc"), calls("free")), (1, 1));
    assert_eq!(trace[..3], ["alloc a", "set a", "set b"]);
    assert_eq!(trace[trace.len() - 3..], ["submit", "release c", "free"]);
    assert!(block_on(chan.request()).is_ok());
    assert_eq!(
        block_on(chan.virtual_for(&Client::new("e"))).map(drop),
        Ok(())
    );
}

#[test]
fn a_channel_that_one_client_has_alone_carries_none() {
    let mock = Mock::new(8);
    let (_registry, chan) = machine(&mock);
    let _alone = block_on(chan.request()).unwrap();
    let refused = block_on(chan.virtual_for(&Client::new("a")));
    assert_eq!(refused.unwrap_err(), RequestError::Busy);
}

#[test]
fn clients_take_turns() {
    const Q: usize = QUANTUM;
    let mock = Mock::new(2 * Q);
    let (_registry, chan) = machine(&mock);
    let (a, b) = (client(&chan, "a"), client(&chan, "b"));
    let of_a = many(&a, 10 * Q);
    a.issue_pending();
    let of_b = many(&b, 2 * Q + Q / 2);
    b.issue_pending();
    let mut order = std::string::String::new();
    while let Some(whose) = ring(&mock).chars().next() {
        order.push(whose);
        assert!(mock.finish(Ok(())));
    }
    // One ring full and one turn were its own when the other came.
    let runs = [(3 * Q, Q), (Q, Q), (Q, Q / 2), (5 * Q, 0)];
    let run = |(a, b): (usize, usize)| "a".repeat(a) + &"b".repeat(b);
    assert_eq!(order, runs.map(run).concat());
    let all = [results(&of_a), results(&of_b)].concat();
    assert!(all.iter().all(|result| *result == Some(Ok(()))));
}

#[test]
fn a_ring_full_of_others_is_waited_for() {
    let mock = Mock::new(4);
    let (_registry, chan) = machine(&mock);
    let (other, a) = (block_on(chan.share()).unwrap(), client(&chan, "a"));
    let blocking = many(&other, 4);
    let waiting = many(&a, 9);
    a.issue_pending();
    assert_eq!((a.in_flight(), chan.in_flight()), (9, 4));
    for submitted in &blocking {
        assert!(mock.finish(Ok(())), "issued, else there were never room");
        assert!(submitted.fence().is_signalled());
    }
    until(|| {
        mock.finish(Ok(()));
        a.in_flight() == 0
    });
    assert!(
        results(&waiting)
            .iter()
            .all(|result| *result == Some(Ok(())))
    );
}

#[test]
fn one_doorbell_serves_a_turn() {
    let mock = Mock::new(16);
    let (_registry, chan) = machine(&mock);
    let a = client(&chan, "a");
    let _all = many(&a, 40);
    a.issue_pending();
    assert_eq!((ring(&mock).len(), mock.state.lock().doorbells), (16, 1));
    a.issue_pending();
    for _ in 0..7 {
        mock.finish(Ok(()));
    }
    assert_eq!(
        (ring(&mock).len(), mock.state.lock().doorbells),
        (9, 1),
        "not for so few"
    );
    mock.finish(Ok(()));
    assert_eq!((ring(&mock).len(), mock.state.lock().doorbells), (16, 2));
    while mock.finish(Ok(())) {}
    assert_eq!(mock.state.lock().doorbells, 4);
    assert_eq!(a.counters().errors + a.in_flight() as u64, 0);
}

#[test]
fn a_termination_ends_one_clients_operations_in_their_order() {
    let mock = Mock::new(3);
    let (_registry, chan) = machine(&mock);
    let (a, b) = (client(&chan, "a"), client(&chan, "b"));
    let of_b = many(&b, 1);
    b.issue_pending();
    let in_ring = many(&a, 2);
    a.issue_pending();
    let listed = [fill(&a, 8, Flags::empty()), fill(&a, 8, Flags::empty())];
    let done = a.terminate_all();
    assert_eq!(
        results(&in_ring),
        [None, None],
        "the ring is not theirs alone"
    );
    assert_eq!(results(&listed), [None, None], "in order");
    let late = fill(&a, 8, Flags::empty());
    a.issue_pending();
    assert!(mock.finish(Ok(())));
    assert_eq!(results(&of_b), [Some(Ok(()))]);
    assert!(mock.finish(Ok(())) && !done.is_signalled());
    assert_eq!(results(&in_ring), [Some(TERMINATED), None]);
    assert!(mock.finish(Err(FenceError::Device(3))));
    assert_eq!(
        results(&in_ring)[1],
        Some(Err(FenceError::Device(3))),
        "that is worth telling"
    );
    assert_eq!(results(&listed), [Some(TERMINATED); 2]);
    assert_eq!(done.result(), Some(Ok(())));
    for submitted in listed {
        let finished = block_on(submitted.finish());
        assert!(finished.buffers.unwrap().into_memory()[..8] == [0; 8]);
    }
    assert!(mock.finish(Ok(())));
    assert_eq!(
        block_on(late.finish()).result,
        Ok(()),
        "submitted afterwards"
    );
    assert_eq!((a.counters().errors, b.counters().errors), (4, 0));
    let idle = [submit(&a)];
    assert!(
        a.terminate_all().is_signalled(),
        "at once where nothing is in the ring"
    );
    assert_eq!(results(&idle), [Some(TERMINATED)]);
}

#[test]
fn a_pause_holds_back_one_clients_operations() {
    let mock = Mock::new(8);
    let (registry, chan) = machine(&mock);
    let (a, b) = (client(&chan, "a"), client(&chan, "b"));
    let in_ring = submit(&a);
    a.issue_pending();
    let mut pause = Box::pin(a.pause());
    assert!(block_on(timeout(SOON, pause.as_mut())).is_err());
    assert!(mock.finish(Ok(())), "it runs out");
    assert_eq!(block_on(pause), Ok(()));
    assert!(in_ring.fence().is_signalled());
    let (held, other) = (submit(&a), submit(&b));
    a.issue_pending();
    b.issue_pending();
    assert_eq!(ring(&mock), "b");
    a.terminate_all();
    assert_eq!(held.fence().result(), Some(TERMINATED));
    let held = submit(&a);
    a.issue_pending();
    assert_eq!(ring(&mock), "b", "the pause goes on");
    a.resume();
    assert_eq!(ring(&mock), "ba");
    while mock.finish(Ok(())) {}
    assert_eq!(results(&[held, other]), [Some(Ok(())); 2]);
    block_on(a.pause()).unwrap();
    let held = submit(&a);
    let removal = block_on(registry.unregister(&registry.devices()[0], SOON));
    assert_eq!((removal.revoked, removal.lost), (2, 0));
    assert_eq!(
        block_on(held.finish()).result,
        Ok(()),
        "no pause outlives the channel"
    );
}

#[test]
fn synchronize_waits_for_ones_own_operations_only() {
    let mock = Mock::new(8);
    let (_registry, chan) = machine(&mock);
    let (a, b) = (client(&chan, "a"), client(&chan, "b"));
    let _of_a = submit(&a);
    a.issue_pending();
    let stuck = submit(&b);
    b.issue_pending();
    mock.finish(Ok(()));
    block_on(a.synchronize());
    assert!(!stuck.fence().is_signalled());
    let waits = block_on(timeout(SOON, b.synchronize()));
    assert!(waits.is_err());
}

#[test]
fn lists_are_bounded_and_give_back_or_make_wait() {
    let mock = Mock::new(4);
    let (_registry, chan) = machine(&mock);
    let a = client(&chan, "a");
    let all = many(&a, LIMIT);
    let descriptor = a.prep_interrupt(Flags::empty()).unwrap();
    let error = a.submit(descriptor).unwrap_err();
    assert_eq!(error.reason, SubmitReason::Full);
    let mut waiting = Box::pin(a.submit_wait(error.descriptor));
    assert!(block_on(timeout(SOON, waiting.as_mut())).is_err());
    assert_eq!(ring(&mock).len(), 4, "issued, else there were never room");
    mock.finish(Ok(()));
    let last = block_on(waiting).unwrap();
    a.issue_pending();
    until(|| {
        while mock.finish(Ok(())) {}
        last.fence().is_signalled()
    });
    assert!(results(&all).iter().all(|result| *result == Some(Ok(()))));
}

#[test]
fn what_the_ring_refuses_is_done_elsewhere_in_order() {
    let mock = Mock::new(8);
    let (registry, chan) = machine(&mock);
    mock.state.lock().refused = Capabilities::MEMSET;
    let a = client(&chan, "a");
    let before = submit(&a);
    let refused = fill(&a, 200, Flags::FENCE);
    let behind = submit(&a);
    a.issue_pending();
    assert_eq!((ring(&mock).len(), registry.cpu().counters().fills), (1, 0));
    assert!(mock.finish(Ok(())));
    until(|| ring(&mock).len() == 1);
    assert_eq!(results(&[before, behind]), [Some(Ok(())), None]);
    assert_eq!(block_on(refused.finish()).result, Ok(()));
    assert_eq!(registry.cpu().counters().fills, 1);
    // It is in the ring before it is issued.
    until(|| mock.finish(Ok(())));
    assert_eq!((a.counters().fills, chan.counters().fills), (1, 0));
    until(|| a.in_flight() + chan.in_flight() == 0);
}

#[test]
fn a_removal_sends_all_lists_elsewhere() {
    for spare in [false, true] {
        let mock = Mock::new(3);
        let (registry, chan) = machine(&mock);
        let (a, b) = (client(&chan, "a"), client(&chan, "b"));
        let fills = |channel: &Channel| -> Vec<_> {
            (0..20).map(|_| fill(channel, 8, Flags::FENCE)).collect()
        };
        let of_a = fills(&a);
        a.issue_pending();
        let of_b = fills(&b);
        let late = b.prep_interrupt(Flags::empty()).unwrap();
        if spare {
            registry
                .register(mock::info(), vec![Mock::eager(64)])
                .unwrap();
        }
        let removal = block_on(registry.unregister(&registry.devices()[0], SOON));
        assert_eq!(
            (removal.in_flight, removal.lost, removal.revoked),
            (3, 0, 2)
        );
        assert!(a.is_gone() && a.is_leaving() && b.is_leaving());
        assert_eq!(b.submit(late).unwrap_err().reason, SubmitReason::Gone);
        for submitted in of_a.into_iter().chain(of_b) {
            let finished = block_on(submitted.finish());
            assert_eq!(finished.result, Ok(()));
            assert_eq!(finished.buffers.unwrap().into_memory()[..8], [7; 8]);
        }
        until(|| a.in_flight() + b.in_flight() == 0);
        assert_eq!((a.counters().fills, b.counters().fills), (20, 20));
        assert_eq!(chan.counters().fills, 0);
        assert_eq!(registry.cpu().counters().fills, if spare { 0 } else { 40 });
        block_on(a.release());
        drop(b);
        until(|| chan.clients() == 0);
    }
}

#[test]
fn a_client_that_leaves_gets_back_what_has_not_begun() {
    let mock = Mock::new(2);
    let (_registry, chan) = machine(&mock);
    let (a, b) = (client(&chan, "a"), client(&chan, "b"));
    let in_ring = [fill(&a, 8, Flags::empty()), fill(&a, 8, Flags::empty())];
    a.issue_pending();
    let listed = fill(&a, 8, Flags::empty());
    let handle = DmaChan::clone(&a);
    let of_b = submit(&b);
    drop(a);
    assert!(mock.finish(Ok(())) && mock.finish(Ok(())));
    until(|| chan.clients() == 1 && handle.in_flight() == 0);
    assert_eq!(results(&in_ring), [Some(Ok(())); 2]);
    let finished = block_on(listed.finish());
    assert_eq!(
        (finished.result, finished.buffers.is_some()),
        (TERMINATED, true)
    );
    b.issue_pending();
    mock.finish(Ok(()));
    assert_eq!(block_on(of_b.finish()).result, Ok(()));
    let again = block_on(handle.request()).unwrap();
    let submitted = submit(&again);
    again.issue_pending();
    assert!(mock.finish(Ok(())), "a handle starts it anew");
    assert!(submitted.fence().is_signalled());
    assert_eq!(chan.clients(), 2);
}

#[test]
fn a_provider_that_drops_operations_loses_buffers_only() {
    let mock = Mock::new(4);
    let (_registry, chan) = machine(&mock);
    let a = client(&chan, "a");
    let all = [fill(&a, 8, Flags::empty()), fill(&a, 8, Flags::empty())];
    a.issue_pending();
    let last = mock.state.lock().ring.pop_back();
    drop(last);
    assert_eq!(results(&all), [None, None], "in order");
    mock.state.lock().issued = 1;
    mock.finish(Ok(()));
    assert_eq!(
        results(&all),
        [Some(Ok(())), Some(Err(FenceError::Abandoned))]
    );
    let [first, second] = all;
    assert!(block_on(first.finish()).buffers.is_some());
    assert!(block_on(second.finish()).buffers.is_none());
    assert_eq!((a.in_flight(), chan.in_flight()), (0, 0));
}

#[test]
fn dependencies_hold_within_and_between_clients() {
    let mock = Mock::new(8);
    let (_registry, chan) = machine(&mock);
    let (a, b) = (client(&chan, "a"), client(&chan, "b"));
    let first = fill(&a, 8, Flags::FENCE);
    let behind = a
        .prep_interrupt(Flags::empty())
        .unwrap()
        .after(first.fence());
    let behind = a.submit(behind).unwrap();
    let other = b
        .prep_interrupt(Flags::empty())
        .unwrap()
        .after(behind.fence());
    let other = b.submit(other).unwrap();
    assert_eq!((a.waiting(), b.waiting()), (0, 1));
    a.issue_pending();
    assert_eq!(ring(&mock), "aa", "the ring keeps their order");
    mock.finish(Ok(()));
    mock.finish(Ok(()));
    assert_eq!(ring(&mock), "b", "issued by itself");
    mock.finish(Ok(()));
    assert!(other.fence().is_signalled());
}

#[test]
fn the_cpu_carries_virtual_channels_and_long_lists_need_no_stack() {
    let run = || {
        let registry = Registry::new();
        let (_, eager) = (registry.clone(), Mock::eager(4));
        let eager = registry.register(mock::info(), vec![eager]).unwrap();
        for chan in [registry.cpu(), eager.channels().next().unwrap()] {
            let (a, b) = (client(&chan, "a"), client(&chan, "b"));
            let mut all = many(&a, LIMIT);
            all.extend(many(&b, LIMIT));
            a.issue_pending();
            b.issue_pending();
            until(|| a.in_flight() + b.in_flight() + chan.in_flight() == 0);
            assert!(results(&all).iter().all(|result| *result == Some(Ok(()))));
            block_on(a.release());
            block_on(b.release());
        }
    };
    let small = thread::Builder::new().stack_size(96 << 10);
    small.spawn(run).unwrap().join().unwrap();
}

/// What happens next in a random history, to one of three clients.
#[derive(Clone, Copy, Debug)]
enum Act {
    Submit,
    Issue,
    Terminate,
    Finish,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Submit),
        3 => Just(Act::Issue),
        1 => Just(Act::Terminate),
        5 => Just(Act::Finish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(mock::times(64) as u32))]

    #[test]
    fn clients_do_not_touch_each_other_and_all_ends_in_order(
        slots in 1..8usize,
        acts in prop::collection::vec((0..3usize, act()), 1..mock::size(200)),
        removed in any::<bool>(),
    ) {
        let mock = Mock::new(slots);
        let (registry, chan) = machine(&mock);
        let clients = ["a", "b", "c"].map(|name| client(&chan, name));
        let order: [Arc<Mutex<Vec<u64>>>; 3] = Default::default();
        let mut submitted: [Vec<(Submitted<Interrupt>, bool)>; 3] = Default::default();
        for (who, act) in acts {
            let channel = &clients[who];
            match act {
                Act::Submit => {
                    let (order, number) = (order[who].clone(), submitted[who].len() as u64);
                    let descriptor = channel.prep_interrupt(Flags::empty()).unwrap();
                    let descriptor = descriptor.callback(move |_| order.lock().push(number));
                    submitted[who].push((channel.submit(descriptor).unwrap(), false));
                }
                Act::Issue => channel.issue_pending(),
                Act::Terminate => {
                    for (submitted, terminated) in &mut submitted[who] {
                        *terminated |= !submitted.fence().is_signalled();
                    }
                    channel.terminate_all();
                }
                Act::Finish => { mock.finish(Ok(())); }
            }
            prop_assert!(ring(&mock).len() <= slots);
        }
        if removed {
            let removal = block_on(registry.unregister(&registry.devices()[0], SOON));
            prop_assert_eq!(removal.lost, 0);
        }
        clients.iter().for_each(|channel| channel.issue_pending());
        let deadline = Instant::now() + Duration::from_secs(30);
        while clients.iter().any(|channel| channel.in_flight() > 0) {
            prop_assert!(Instant::now() < deadline, "some never end");
            mock.finish(Ok(()));
        }
        for (who, all) in submitted.iter().enumerate() {
            for (submitted, terminated) in all {
                let expected = if *terminated { TERMINATED } else { Ok(()) };
                prop_assert_eq!(submitted.fence().result(), Some(expected));
            }
            let numbers: Vec<_> = (0..all.len() as u64).collect();
            prop_assert_eq!(&*order[who].lock(), &numbers, "in order");
        }
        prop_assert_eq!(chan.in_flight(), 0);
    }
}

#[test]
fn what_is_listed_when_a_client_lets_go_of_a_leaving_device_is_not_terminated() {
    let mock = Mock::new(1);
    let (registry, chan) = machine(&mock);
    let client = client(&chan, "a");
    let all = many(&client, 3);
    client.issue_pending();
    let device = registry.devices().remove(0);
    thread::scope(|scope| {
        let removal =
            scope.spawn(|| block_on(registry.unregister(&device, Duration::from_secs(10))));
        block_on(client.removed());
        let left = (*client).clone();
        let release = scope.spawn(|| block_on(client.release()));
        until(|| left.clients() == 0);
        // By then its lists are closed.
        thread::sleep(SOON);
        until(|| {
            mock.finish(Ok(()));
            release.is_finished()
        });
        release.join().unwrap();
        assert_eq!(removal.join().unwrap().lost, 0);
    });
    until(|| results(&all).iter().all(Option::is_some));
    assert_eq!(results(&all), [Some(Ok(())); 3]);
}

#[test]
fn s1_16_virtual_clients_are_told_of_a_removal_and_their_work_goes_elsewhere() {
    let registry = Registry::new();
    let mock = Mock::new(2);
    let device = registry.register(mock::info(), vec![mock]).unwrap();
    let chan = device.channels().next().unwrap();
    let client = block_on(chan.virtual_for(&Client::new("a"))).unwrap();
    assert!(!client.is_leaving());
    let told = std::thread::scope(|scope| {
        let told = scope.spawn(|| block_on(client.removed()));
        let limit = hal::time::Duration::from_millis(20);
        block_on(registry.unregister(&device, limit));
        told.join().unwrap()
    });
    assert!(told <= hal::time::Instant::now());
    assert!(client.is_leaving());
}
