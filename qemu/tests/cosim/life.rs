//! Beginnings and ends: full rings, clients that leave, termination, removal.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;

use dma_fence::FenceError;
use dmaengine::{
    Channel, Client, Flags, Memcpy, RequestError, SubmitReason, Submitted, Transaction,
};
use hal::dma::{Destination, Memory, Source};
use hal::host::block_on;
use hal::time::Duration;
use ioat::Options;
use ioat_model::{EngineConfig, Fault};

use crate::rig::Driven;

const LEN: usize = 1 << 20;

fn copy(channel: &Channel) -> dmaengine::Descriptor<Memcpy> {
    let mut memory = Memory::new(LEN).unwrap();
    memory.fill(0xee);
    let src = Source::new(Arc::new(memory), 0..LEN).unwrap();
    let dst = Destination::new(Memory::new(LEN).unwrap(), 0..LEN).unwrap();
    channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap()
}

fn small_ring() -> Options {
    Options {
        ring_order: 2,
        ..Options::default()
    }
}

fn check(submitted: Submitted<Memcpy>) {
    let finished = block_on(submitted.finish());
    assert_eq!(finished.result, Ok(()));
    let memory = finished.buffers.unwrap().0.into_memory();
    assert!(memory.iter().all(|&byte| byte == 0xee));
}

#[test]
fn a_full_ring_refuses_or_waits() {
    let driven = Driven::new(EngineConfig::default(), small_ring());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let first: Vec<_> = (0..3)
        .map(|_| channel.submit(copy(&channel)).unwrap())
        .collect();
    let error = channel.submit(copy(&channel)).unwrap_err();
    assert_eq!(error.reason, SubmitReason::Full);
    let mut all = first;
    all.push(block_on(channel.submit_wait(error.descriptor)).unwrap());
    for _ in 0..20 {
        all.push(block_on(channel.submit_wait(copy(&channel))).unwrap());
    }
    channel.issue_pending();
    all.into_iter().for_each(check);
}

#[test]
fn s3_8_the_driver_lists_the_clients_of_a_channel() {
    let driven = Driven::new(EngineConfig::default(), small_ring());
    let shown = || driven.driver.to_string();
    let clients: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| block_on(driven.chan(0).share_for(&Client::new(name))).unwrap())
        .collect();
    assert!(shown().contains("clients=a,b,c"), "{}", shown());
    clients
        .into_iter()
        .for_each(|client| block_on(client.release()));
    assert!(!shown().contains("clients="), "{}", shown());
}

/// Each operation's end submits the next, and waits until the engine has done that too.
struct Chain {
    channel: Channel,
    engine: Arc<ioat_model::Engine>,
    left: AtomicUsize,
    polling: ThreadId,
    /// Those that ended on the stack of who polls.
    polled: AtomicUsize,
}

impl Chain {
    fn next(self: &Arc<Self>) {
        let before = self.engine.statistics().completions;
        let operation = self.channel.prep_interrupt(Flags::empty()).unwrap();
        let submitted = self.channel.submit(operation).unwrap();
        let this = self.clone();
        let ended = move |result| {
            assert_eq!(result, Ok(()));
            if std::thread::current().id() == this.polling {
                this.polled.fetch_add(1, Ordering::Relaxed);
            }
            if this.left.fetch_sub(1, Ordering::Relaxed) > 1 {
                this.next();
            }
        };
        submitted.fence().add_callback(ended).unwrap();
        self.channel.issue_pending();
        while self.engine.statistics().completions == before {
            std::thread::yield_now();
        }
    }
}

#[test]
fn who_polls_a_busy_engine_is_let_go_and_nothing_is_forgotten() {
    let driven = Driven::new(EngineConfig::default(), small_ring());
    let chain = Arc::new(Chain {
        channel: block_on(driven.chan(0).request()).unwrap(),
        engine: driven.rig.engine.clone(),
        left: AtomicUsize::new(300),
        polling: std::thread::current().id(),
        polled: AtomicUsize::new(0),
    });
    chain.next();
    chain.channel.poll();
    let polled = chain.polled.load(Ordering::Relaxed);
    assert!(polled <= 4, "{polled} for a ring of 4");
    // Nobody interrupts or polls. The watchdog alone, which looks every 100 ms, would take longer.
    let begun = hal::time::Instant::now();
    while chain.left.load(Ordering::Relaxed) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
}

#[test]
fn a_client_that_leaves_frees_nothing_in_flight() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let channel = block_on(driven.chan(0).request()).unwrap();
    for _ in 0..10 {
        let submitted = channel.submit(copy(&channel)).unwrap();
        channel.issue_pending();
        drop(submitted);
    }
    // The channel stops with copies under way; what they write to belongs to nobody else.
    block_on(channel.release());
    assert!(!driven.chan(0).is_running());
    assert_eq!(driven.chan(0).in_flight(), 0);
    driven.remove();
}

#[test]
fn termination_ends_a_hang_at_once() {
    let config = EngineConfig {
        faults: vec![Fault::Hang(1)],
        ..EngineConfig::default()
    };
    let driven = Driven::new(config, Options::default());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let submitted = channel.submit(copy(&channel)).unwrap();
    channel.issue_pending();
    // Else the reset might come first, and the next copy hang.
    while driven.rig.engine.statistics().faults == 0 {
        std::thread::yield_now();
    }
    let terminated = channel.terminate_all();
    assert_eq!(block_on(terminated.wait()), Ok(()));
    let finished = block_on(submitted.finish());
    assert_eq!(finished.result, Err(FenceError::Terminated));
    assert!(finished.buffers.is_some());
    let submitted = channel.submit(copy(&channel)).unwrap();
    channel.issue_pending();
    check(submitted);
}

#[test]
fn what_was_not_issued_is_terminated_too() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let waiting = channel.submit(copy(&channel)).unwrap();
    block_on(channel.terminate_all().wait()).unwrap();
    assert_eq!(
        block_on(waiting.finish()).result,
        Err(FenceError::Terminated)
    );
    let submitted = channel.submit(copy(&channel)).unwrap();
    channel.issue_pending();
    check(submitted);
}

#[test]
fn interrupt_operations_follow_what_came_before() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let submitted = channel.submit(copy(&channel)).unwrap();
    let last = channel
        .prep_interrupt(Flags::INTERRUPT | Flags::FENCE)
        .unwrap();
    let last = channel.submit(last).unwrap();
    channel.issue_pending();
    assert_eq!(block_on(last.finish()).result, Ok(()));
    assert!(submitted.fence().is_signalled());
    check(submitted);
}

#[test]
fn a_removal_drains_and_leaves_nothing() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let batch: Vec<_> = (0..16)
        .map(|_| channel.submit(copy(&channel)).unwrap())
        .collect();
    channel.issue_pending();
    let registry = driven.rig.registry.clone();
    let removal = driven.remove();
    assert!(removal.in_flight <= 16, "{removal:?}");
    let redone = removal.failed_over + removal.by_cpu;
    assert_eq!((redone, removal.lost, removal.revoked), (0, 0, 1));
    batch.into_iter().for_each(check);
    let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
    let error = channel.prep_memset(dst, 0, Flags::empty()).unwrap_err();
    assert_eq!(error.reason, dmaengine::PrepReason::Gone);
    assert_eq!(
        block_on((*channel).clone().request()).unwrap_err(),
        RequestError::Gone
    );
    // The machine goes on without it.
    let dst = error.buffers;
    let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
    assert_eq!(block_on(registry.copy(dst, src)).unwrap().via.name(), "cpu");
}

#[test]
fn a_removal_ends_a_hang_by_its_deadline() {
    let config = EngineConfig {
        faults: vec![Fault::Hang(1)],
        ..EngineConfig::default()
    };
    let options = Options {
        hang_limit: Duration::from_secs(60),
        ..Options::default()
    };
    let driven = Driven::new(config, options);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let submitted = channel.submit(copy(&channel)).unwrap();
    channel.issue_pending();
    let start = hal::time::Instant::now();
    let removal = driven.remove();
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!((removal.in_flight, removal.by_cpu, removal.lost), (1, 1, 0));
    // The CPU has done what the engine did not.
    check(submitted);
}

#[test]
fn an_engine_comes_back_after_its_removal() {
    let mut rig = Driven::new(EngineConfig::default(), Options::default());
    for _ in 0..5 {
        let channel = block_on(rig.chan(3).request()).unwrap();
        let submitted = channel.submit(copy(&channel)).unwrap();
        channel.issue_pending();
        check(submitted);
        block_on(channel.release());
        let Driven { rig: wires, driver } = rig;
        block_on(driver.remove(Duration::from_secs(1)));
        rig = wires.probe(Options::default());
    }
    rig.remove();
}

/// Interest goes while somebody submits by a reference: what was accepted ends, one way or another.
#[test]
fn what_is_accepted_while_a_channel_stops_still_ends() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let registry = driven.rig.registry.clone();
    for _ in 0..100 {
        let interest = block_on(registry.get_interest());
        let reference = registry.find(Transaction::Memcpy).unwrap();
        let submitting = std::thread::spawn(move || {
            let mut accepted = Vec::new();
            loop {
                let Ok(channel) = reference.open() else { break };
                let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
                let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
                let Ok(copy) = channel.prep_memcpy(dst, src, Flags::INTERRUPT) else {
                    break;
                };
                match channel.submit(copy) {
                    Ok(submitted) => accepted.push(submitted),
                    Err(error) if error.reason == SubmitReason::Full => channel.issue_pending(),
                    Err(_) => break,
                }
            }
            accepted
        });
        std::thread::sleep(std::time::Duration::from_micros(200));
        block_on(interest.put());
        for submitted in submitting.join().unwrap() {
            let ended = hal::time::timeout(Duration::from_secs(10), submitted.fence().wait());
            assert!(block_on(ended).is_ok(), "left behind in a stopped ring");
        }
    }
    driven.remove();
}

#[test]
fn many_tasks_share_a_channel() {
    let driven = Driven::new(EngineConfig::default(), small_ring());
    let channel = Arc::new(block_on(driven.chan(0).share()).unwrap());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let channel = channel.clone();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    let submitted = block_on(channel.submit_wait(copy(&channel))).unwrap();
                    channel.issue_pending();
                    check(submitted);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(channel.counters().copies, 200);
}
