use super::*;
use crate::mock::{self, Mock};
use crate::{Channel, Descriptor, Flags, Interrupt, Memset, Registry, Submitted};
use dma_fence::Fence;
use hal::dma::{Destination, Memory};
use hal::host::block_on;
use hal::time::{Duration, Instant};
use proptest::prelude::*;
use std::{format, thread, vec};

const SOON: Duration = Duration::from_millis(5);
/// A chain that no stack of the tests holds.
const LONG: usize = if cfg!(miri) { 20 } else { 10_000 };

/// A registry with one device of one channel for each mock, and the channels, requested.
fn machine(mocks: &[&Arc<Mock>]) -> (Registry, Vec<Channel>) {
    let registry = Registry::new();
    let channel = |mock: &&Arc<Mock>| {
        let mock: Arc<Mock> = (*mock).clone();
        let device = registry.register(mock::info(), vec![mock]).unwrap();
        block_on(device.channels().next().unwrap().request()).unwrap()
    };
    let channels = mocks.iter().map(channel).collect();
    (registry, channels)
}

fn fill(channel: &Channel, flags: Flags) -> Descriptor<Memset> {
    let dst = Destination::new(Memory::new(8).unwrap(), 0..8).unwrap();
    channel.prep_memset(dst, 7, flags).unwrap()
}

fn nothing(channel: &Channel) -> Descriptor<Interrupt> {
    channel.prep_interrupt(Flags::empty()).unwrap()
}

fn in_ring(mock: &Mock) -> Vec<u64> {
    let state = mock.state.lock();
    state.ring.iter().map(|op| op.cookie().0).collect()
}

fn is_filled(submitted: Submitted<Memset>) -> bool {
    let finished = block_on(submitted.finish());
    let memory = finished.buffers.unwrap().into_memory();
    finished.result.is_ok() && memory[..8] == [7; 8]
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true");
        thread::yield_now();
    }
}

#[test]
fn a_chain_across_devices_runs_by_itself() {
    let (left, right) = (Mock::new(4), Mock::new(4));
    let (_registry, channels) = machine(&[&left, &right]);
    let a = channels[0]
        .submit(fill(&channels[0], Flags::empty()))
        .unwrap();
    let b = fill(&channels[1], Flags::empty()).after(a.fence());
    let b = channels[1].submit(b).unwrap();
    let c = fill(&channels[0], Flags::empty()).after(b.fence());
    let c = channels[0].submit(c).unwrap();
    assert_eq!((a.cookie().0, b.cookie().0, c.cookie().0), (1, 1, 2));
    assert_ne!(a.fence().context(), c.fence().context());
    assert_eq!((in_ring(&left), in_ring(&right)), (vec![1], vec![]));
    assert_eq!((channels[0].in_flight(), channels[0].waiting()), (1, 1));
    assert!(waiting() >= 2);
    channels[0].issue_pending();
    left.finish(Ok(()));
    assert_eq!((in_ring(&left), in_ring(&right)), (vec![], vec![1]));
    assert!(right.finish(Ok(())), "it is issued");
    assert_eq!(in_ring(&left), [2]);
    assert_eq!((channels[0].in_flight(), channels[0].waiting()), (1, 0));
    assert!(left.finish(Ok(())));
    assert!(is_filled(a) && is_filled(b) && is_filled(c));
    assert_eq!(left.state.lock().doorbells, 2);
    assert_eq!(channels[0].counters().fills, 2);
}

#[test]
fn what_the_ring_keeps_in_order_does_not_wait() {
    let mock = Mock::new(8);
    let (_registry, channels) = machine(&[&mock]);
    let channel = &channels[0];
    let plain = channel.submit(nothing(channel)).unwrap();
    let early = nothing(channel).after(plain.fence());
    let early = channel.submit(early).unwrap();
    let fenced = channel.submit(fill(channel, Flags::FENCE)).unwrap();
    let behind = nothing(channel).after(fenced.fence()).after(plain.fence());
    let behind = channel.submit(behind).unwrap();
    assert_eq!(
        in_ring(&mock),
        [1, 3, 4],
        "nothing fences the first for the second"
    );
    assert_eq!(behind.fence().context(), plain.fence().context());
    channel.issue_pending();
    assert_eq!(mock.state.lock().doorbells, 1);
    mock.finish(Ok(()));
    assert_eq!(in_ring(&mock), [3, 4, 2]);
    while mock.finish(Ok(())) {}
    assert!(early.fence().is_signalled() && behind.fence().is_signalled());
    let late = nothing(channel).after(plain.fence()).after(behind.fence());
    let late = channel.submit(late).unwrap();
    assert_eq!(in_ring(&mock), [5], "what has ended is no dependency");
    assert_eq!(late.fence().context(), plain.fence().context());
}

#[test]
fn errors_reach_what_depends_on_them() {
    let (left, right) = (Mock::new(4), Mock::new(4));
    let (_registry, channels) = machine(&[&left, &right]);
    let a = channels[0].submit(nothing(&channels[0])).unwrap();
    let other = channels[1].submit(nothing(&channels[1])).unwrap();
    let b = fill(&channels[1], Flags::empty());
    let b = channels[1]
        .submit(b.after(a.fence()).after(other.fence()))
        .unwrap();
    let c = channels[0]
        .submit(fill(&channels[0], Flags::empty()).after(b.fence()))
        .unwrap();
    channels[0].issue_pending();
    channels[1].issue_pending();
    let error = Err(FenceError::Device(0x10));
    left.finish(error);
    assert!(
        !b.fence().is_signalled(),
        "it ends after all its dependencies"
    );
    right.finish(Ok(()));
    let finished = block_on(c.finish());
    assert_eq!((in_ring(&left), in_ring(&right)), (vec![], vec![]));
    assert_eq!(finished.result, error);
    assert_eq!(finished.buffers.unwrap().into_memory()[..8], [0; 8]);
    let finished = b.try_finish().unwrap();
    assert_eq!((finished.result, finished.buffers.is_some()), (error, true));
    assert_eq!(channels[1].counters().errors, 1);
    let late = nothing(&channels[1]).after(a.fence()).after(other.fence());
    let late = channels[1].submit(late).unwrap();
    assert_eq!(late.try_finish().unwrap().result, error);
}

#[test]
fn errors_reach_what_stands_behind_them_in_the_ring() {
    let mock = Mock::new(4);
    let (_registry, channels) = machine(&[&mock]);
    let first = channels[0]
        .submit(fill(&channels[0], Flags::FENCE))
        .unwrap();
    let second = nothing(&channels[0]).after(first.fence());
    let second = channels[0].submit(second).unwrap();
    let third = channels[0].submit(nothing(&channels[0])).unwrap();
    channels[0].issue_pending();
    let error = Err(FenceError::Device(1));
    mock.finish(error);
    while mock.finish(Ok(())) {}
    assert_eq!(second.try_finish().unwrap().result, error);
    assert_eq!(third.try_finish().unwrap().result, Ok(()));
}

#[test]
fn the_middle_of_a_chain_is_removed_and_done_elsewhere() {
    for spare in [false, true] {
        let (left, middle) = (Mock::new(4), Mock::new(4));
        let (registry, channels) = machine(&[&left, &middle]);
        let a = channels[0].submit(nothing(&channels[0])).unwrap();
        let b = fill(&channels[1], Flags::empty()).after(a.fence());
        let b = channels[1].submit(b).unwrap();
        let c = fill(&channels[0], Flags::empty()).after(b.fence());
        let c = channels[0].submit(c).unwrap();
        if spare {
            let eager = Mock::eager(1);
            registry.register(mock::info(), vec![eager]).unwrap();
        }
        let removal = block_on(registry.unregister(&registry.devices()[1], SOON));
        assert_eq!((removal.in_flight, removal.lost), (0, 0));
        assert_eq!(channels[1].waiting(), 1, "it is not lost");
        channels[0].issue_pending();
        left.finish(Ok(()));
        until(|| left.finish(Ok(())));
        assert!(is_filled(b) && is_filled(c));
        let (cpu, gone) = (registry.cpu(), &channels[1]);
        assert_eq!((gone.waiting(), gone.in_flight()), (0, 0));
        // It is counted a little longer than its fence is waited for.
        until(|| cpu.in_flight() == 0);
        assert_eq!(cpu.counters().fills, u64::from(!spare));
        assert!(in_ring(&middle).is_empty());
    }
}

#[test]
fn without_a_registry_what_waits_ends_with_an_error() {
    let (left, right) = (Mock::new(4), Mock::new(4));
    let (registry, channels) = machine(&[&left, &right]);
    let a = channels[0].submit(nothing(&channels[0])).unwrap();
    let b = fill(&channels[1], Flags::empty()).after(a.fence());
    let b = channels[1].submit(b).unwrap();
    block_on(registry.unregister(&registry.devices()[1], SOON));
    drop(registry);
    channels[0].issue_pending();
    left.finish(Ok(()));
    let finished = block_on(b.finish());
    assert_eq!(finished.result, Err(FenceError::Gone));
    assert!(finished.buffers.is_some());
}

#[test]
fn a_full_ring_makes_what_is_ready_wait_for_room() {
    let (left, right) = (Mock::new(4), Mock::new(1));
    let (_registry, channels) = machine(&[&left, &right]);
    let a = channels[0].submit(nothing(&channels[0])).unwrap();
    let blocker = channels[1].submit(nothing(&channels[1])).unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let b = fill(&channels[1], Flags::empty()).after(a.fence());
            channels[1].submit(b).unwrap()
        })
        .collect();
    channels[0].issue_pending();
    left.finish(Ok(()));
    assert_eq!(in_ring(&right), [1], "full");
    assert_eq!(
        right.state.lock().doorbells,
        1,
        "issued, else there were never room"
    );
    assert_eq!(channels[1].waiting(), 3);
    assert!(right.finish(Ok(())));
    for cookie in 2..=4 {
        until(|| in_ring(&right) == [cookie]);
        until(|| right.finish(Ok(())));
    }
    assert!(blocker.fence().is_signalled());
    assert!(waiting.into_iter().all(is_filled));
    assert_eq!((channels[1].waiting(), channels[1].in_flight()), (0, 0));
}

#[test]
fn what_the_client_drops_goes_on() {
    let (left, right) = (Mock::new(4), Mock::new(4));
    let (_registry, channels) = machine(&[&left, &right]);
    let a = channels[0].submit(nothing(&channels[0])).unwrap();
    let b = channels[1].submit(nothing(&channels[1]).after(a.fence()));
    drop((a, b));
    channels[0].issue_pending();
    left.finish(Ok(()));
    assert!(right.finish(Ok(())));
}

#[test]
fn a_termination_ends_what_waits() {
    let (left, right) = (Mock::new(4), Mock::new(1));
    let (_registry, channels) = machine(&[&left, &right]);
    let a = channels[0].submit(nothing(&channels[0])).unwrap();
    let waiting = |after: &Fence| {
        channels[1]
            .submit(nothing(&channels[1]).after(after))
            .unwrap()
    };
    let b = waiting(a.fence());
    let c = waiting(b.fence());
    let elsewhere = channels[0]
        .submit(nothing(&channels[0]).after(c.fence()))
        .unwrap();
    channels[1].terminate_all();
    let terminated = Some(Err(FenceError::Terminated));
    until(|| elsewhere.fence().is_signalled());
    for submitted in [&b, &c, &elsewhere] {
        assert_eq!(submitted.fence().result(), terminated);
    }
    assert!(!a.fence().is_signalled());
    // As well what waits for room only.
    let blocker = channels[1].submit(nothing(&channels[1])).unwrap();
    right.state.lock().stuck = true;
    let (d, e) = (waiting(a.fence()), waiting(a.fence()));
    channels[0].issue_pending();
    left.finish(Ok(()));
    channels[1].terminate_all();
    assert_eq!(
        (d.fence().result(), e.fence().result()),
        (terminated, terminated)
    );
    assert_eq!(channels[1].waiting(), 0);
    assert!(right.finish(Ok(())));
    block_on(blocker.finish());
    until(|| !channels[1].chan().depend.lists.lock().busy);
    assert!(in_ring(&right).is_empty());
}

#[test]
fn long_chains_need_no_stack() {
    let chains = || {
        let (left, right) = (Mock::eager(4), Mock::eager(4));
        for fail in [false, true] {
            let (registry, mut channels) = machine(&[&left, &right]);
            channels.push(block_on(registry.cpu().share()).unwrap());
            let (signaler, mut last) = Fence::new(dma_fence::next_context(), 1);
            let mut fences = Vec::new();
            for channel in channels.iter().cycle().take(LONG) {
                let descriptor = nothing(channel).after(&last);
                last = channel.submit(descriptor).unwrap().fence().clone();
                fences.push(last.clone());
            }
            let result = if fail { Err(FenceError::Map) } else { Ok(()) };
            signaler.signal(result);
            until(|| last.is_signalled());
            assert!(fences.iter().all(|fence| fence.result() == Some(result)));
            assert!(channels.iter().all(|channel| channel.waiting() == 0));
        }
    };
    let small = thread::Builder::new().stack_size(96 << 10);
    small.spawn(chains).unwrap().join().unwrap();
}

/// As many channels as operations: each is another's to hand over.
#[test]
fn an_error_that_goes_from_channel_to_channel_needs_no_stack() {
    let mocks: Vec<_> = (0..mock::size(400)).map(|_| Mock::eager(4)).collect();
    let (_registry, channels) = machine(&mocks.iter().collect::<Vec<_>>());
    let fail = || {
        let (signaler, mut last) = Fence::new(dma_fence::next_context(), 1);
        for channel in &channels {
            let descriptor = nothing(channel).after(&last);
            last = channel.submit(descriptor).unwrap().fence().clone();
        }
        signaler.signal(Err(FenceError::Map));
        until(|| last.is_signalled());
        assert_eq!(last.result(), Some(Err(FenceError::Map)));
    };
    let small = thread::Builder::new().stack_size(96 << 10);
    thread::scope(|scope| small.spawn_scoped(scope, fail).unwrap().join().unwrap());
}

#[test]
fn terminating_a_long_chain_needs_no_stack() {
    let small = thread::Builder::new().stack_size(96 << 10);
    let terminate = || {
        let (left, right) = (Mock::eager(4), Mock::eager(4));
        let (_registry, channels) = machine(&[&left, &right]);
        let (_signaler, mut last) = Fence::new(dma_fence::next_context(), 1);
        for channel in channels.iter().cycle().take(LONG) {
            let descriptor = nothing(channel).after(&last);
            last = channel.submit(descriptor).unwrap().fence().clone();
        }
        channels[0].terminate_all();
        until(|| last.is_signalled());
        assert_eq!(last.result(), Some(Err(FenceError::Terminated)));
    };
    small.spawn(terminate).unwrap().join().unwrap();
}

/// An operation of a random graph: where, behind which earlier ones, fenced, and whether it fails.
type Node = (usize, Vec<prop::sample::Index>, bool, bool);

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let index = any::<prop::sample::Index>();
    let node = (
        0..3usize,
        prop::collection::vec(index, 0..4),
        any::<bool>(),
        prop::bool::weighted(0.1),
    );
    prop::collection::vec(node, 1..mock::size(40))
}

/// A submitted operation of the graph.
struct Known {
    on: usize,
    cookie: u64,
    fence: Fence,
    after: Vec<usize>,
    fenced: bool,
}

/// Whether everything in the rings has its dependencies behind it: ended, or in order before it.
fn check_rings(known: &[Known], mocks: &[Arc<Mock>]) -> Result<(), TestCaseError> {
    for (on, mock) in mocks.iter().enumerate() {
        let state = mock.state.lock();
        let of = |op: &Operation| {
            let is = |known: &Known| known.on == on && known.cookie == op.cookie().0;
            known.iter().position(is).unwrap()
        };
        let ring: Vec<_> = state.ring.iter().map(of).collect();
        for (place, &node) in ring.iter().enumerate() {
            for dependency in &known[node].after {
                if known[*dependency].fence.is_signalled() {
                    continue;
                }
                let before = ring[..place].iter().position(|other| other == dependency);
                let kept =
                    before.is_some_and(|at| ring[at..place].iter().any(|&n| known[n].fenced));
                prop_assert!(kept, "{node} entered before {dependency} had ended");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(mock::times(64) as u32))]

    #[test]
    fn no_operation_starts_before_its_dependencies_and_all_end(
        nodes in nodes(),
        slots in 1..6usize,
        steps in prop::collection::vec((0..3usize, any::<bool>()), 0..mock::size(60)),
    ) {
        let mocks = [Mock::new(slots), Mock::new(slots), Mock::new(40)];
        let (_registry, channels) = machine(&[&mocks[0], &mocks[1], &mocks[2]]);
        let mut known: Vec<Known> = Vec::new();
        let mut steps = steps.into_iter();
        let mut expected: Vec<Result<(), FenceError>> = Vec::new();
        let fails = |on: usize, cookie: u64, known: &[Known]| {
            let is = |node: &Known| node.on == on && node.cookie == cookie;
            known.iter().position(is).is_some_and(|node| nodes[node].3)
        };
        let finish = |on: usize, known: &[Known]| {
            let front = mocks[on].state.lock().ring.front().map(|op| op.cookie().0);
            // What a task puts into an empty ring meanwhile is for the next time.
            let Some(cookie) = front else { return false };
            let result = if fails(on, cookie, known) { Err(FenceError::Device(1)) } else { Ok(()) };
            mocks[on].finish(result)
        };
        for (number, (on, after, fenced, fails)) in nodes.iter().enumerate() {
            let after: Vec<_> = if number == 0 {
                Vec::new()
            } else {
                after.iter().map(|index| index.index(number)).collect()
            };
            let channel = &channels[*on];
            let flags = if *fenced { Flags::FENCE } else { Flags::empty() };
            let mut descriptor = channel.prep_interrupt(flags).unwrap();
            for &node in &after {
                descriptor = descriptor.after(&known[node].fence);
            }
            let submitted = loop {
                match channel.submit(descriptor) {
                    Ok(submitted) => break submitted,
                    Err(error) => {
                        prop_assert_eq!(error.reason, SubmitReason::Full);
                        descriptor = error.descriptor;
                        channel.issue_pending();
                        finish(*on, &known);
                    }
                }
            };
            let failed = *fails || after.iter().any(|&node| expected[node].is_err());
            expected.push(if failed { Err(FenceError::Device(1)) } else { Ok(()) });
            let (cookie, fence) = (submitted.cookie().0, submitted.fence().clone());
            known.push(Known { on: *on, cookie, fence, after, fenced: *fenced });
            check_rings(&known, &mocks)?;
            if let Some((on, finishes)) = steps.next() {
                if finishes { finish(on, &known); } else { channels[on].issue_pending(); }
                check_rings(&known, &mocks)?;
            }
        }
        for (on, _) in steps {
            channels[on].issue_pending();
            finish(on, &known);
            check_rings(&known, &mocks)?;
        }
        channels.iter().for_each(|channel| channel.issue_pending());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !known.iter().all(|node| node.fence.is_signalled()) {
            prop_assert!(Instant::now() < deadline, "some never end");
            (0..3).for_each(|on| { finish(on, &known); });
            check_rings(&known, &mocks)?;
        }
        for (node, expected) in known.iter().zip(expected) {
            prop_assert_eq!(node.fence.result(), Some(expected), "{}", format!("{}", node.cookie));
        }
        let counted = |channel: &Channel| channel.waiting() + channel.in_flight();
        until(|| channels.iter().all(|channel| counted(channel) == 0));
    }
}
