//! Engines that are told to rest in the middle of their work, for a while or for good.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use dma_fence::FenceError;
use dmaengine::{Channel, Flags, Memcpy, Submitted};
use hal::dma::{Destination, Memory, Source};
use hal::host::block_on;
use hal::time::{Duration, Instant, timeout};
use ioat::Options;
use ioat_model::{EngineConfig, Fault, Irq};
use ioat_spec::CbVer;

use crate::rig::{Driven, config};

const LEN: usize = 5000;
/// More than the watchdog's patience.
const LONG: Duration = Duration::from_millis(600);

/// Impatient, so that a channel that rests would soon be taken for one that hangs.
fn options() -> Options {
    Options {
        hang_limit: Duration::from_millis(50),
        ..Options::default()
    }
}

fn submit(channel: &Channel, byte: u8) -> Submitted<Memcpy> {
    let mut memory = Memory::new(LEN).unwrap();
    memory.fill(byte);
    let src = Source::new(Arc::new(memory), 0..LEN).unwrap();
    let dst = Destination::new(Memory::new(LEN).unwrap(), 0..LEN).unwrap();
    let descriptor = channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap();
    channel.submit(descriptor).unwrap()
}

/// `count` copies, not issued.
fn batch(channel: &Channel, count: u8) -> Vec<Submitted<Memcpy>> {
    (0..count).map(|byte| submit(channel, byte)).collect()
}

fn ended(submitted: Submitted<Memcpy>, byte: u8) -> Result<(), FenceError> {
    let finished = block_on(timeout(Duration::from_secs(20), submitted.finish())).expect("bounded");
    let memory = finished.buffers.expect("buffers come back").0.into_memory();
    if finished.result.is_ok() {
        assert!(memory.iter().all(|&found| found == byte));
    }
    finished.result
}

fn all_done(batch: Vec<Submitted<Memcpy>>) {
    for (byte, submitted) in (0..).zip(batch) {
        assert_eq!(ended(submitted, byte), Ok(()), "copy {byte}");
    }
}

/// An engine at copy `at` of ten, which ends when the engine is told to suspend.
fn busy(config: EngineConfig, at: usize) -> (Driven, Channel, Vec<Submitted<Memcpy>>) {
    let driven = Driven::new(config, options());
    driven.rig.tricks.hold.store(at, Ordering::Relaxed);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let batch = batch(&channel, 10);
    channel.issue_pending();
    while driven.rig.tricks.copies.load(Ordering::Relaxed) < at {
        std::thread::yield_now();
    }
    (driven, channel, batch)
}

fn copies(driven: &Driven) -> usize {
    driven.rig.tricks.copies.load(Ordering::Relaxed)
}

/// Ten copies of which the engine has done so many before the channel was paused.
fn paused_after(config: EngineConfig, at: usize) -> (Driven, Channel, Vec<Submitted<Memcpy>>) {
    let (driven, channel, batch) = busy(config, at);
    assert_eq!(block_on(channel.pause()), Ok(()));
    assert_eq!(
        copies(&driven),
        at,
        "it ends what it is at, and begins nothing"
    );
    (driven, channel, batch)
}

#[test]
fn a_pause_takes_effect_after_the_descriptor_under_way_and_loses_nothing() {
    for version in [CbVer::V3_2, CbVer::V3_3, CbVer::V3_4] {
        for irq in [Irq::Msi, Irq::MsiX, Irq::Intx] {
            let (driven, channel, batch) = paused_after(config(version, irq), 4);
            assert_eq!(block_on(batch[3].fence().wait()), Ok(()));
            assert!(!batch[4].fence().is_signalled());
            let late = submit(&channel, 77);
            channel.issue_pending();
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(copies(&driven), 4, "it rests");
            channel.resume();
            all_done(batch);
            assert_eq!(ended(late, 77), Ok(()));
            assert_eq!(copies(&driven), 11, "none twice");
            driven.remove();
        }
    }
}

#[test]
fn who_rests_does_not_hang() {
    let (driven, channel, batch) = paused_after(EngineConfig::default(), 2);
    std::thread::sleep(LONG);
    assert_eq!(block_on(channel.pause()), Ok(()), "it has paused already");
    let shown = driven.driver.to_string();
    assert!(shown.contains("recoveries=0"), "{shown}");
    channel.resume();
    all_done(batch);
    channel.resume();
    // An idle channel rests and works as well.
    for _ in 0..3 {
        assert_eq!(block_on(channel.pause()), Ok(()));
        let held = submit(&channel, 1);
        channel.issue_pending();
        channel.resume();
        assert_eq!(ended(held, 1), Ok(()));
    }
}

#[test]
fn termination_ends_what_rests_and_not_the_rest() {
    let (driven, channel, batch) = paused_after(EngineConfig::default(), 2);
    let terminated = channel.terminate_all();
    assert_eq!(block_on(terminated.wait()), Ok(()));
    for (byte, submitted) in (0..).zip(batch) {
        let expected = match byte {
            0 | 1 => Ok(()),
            _ => Err(FenceError::Terminated),
        };
        assert_eq!(ended(submitted, byte), expected);
    }
    let held = submit(&channel, 9);
    channel.issue_pending();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(copies(&driven), 2, "it rests still");
    channel.resume();
    assert_eq!(ended(held, 9), Ok(()));
}

#[test]
fn a_channel_stops_while_it_rests_and_starts_awake() {
    let (driven, channel, batch) = paused_after(EngineConfig::default(), 2);
    block_on(channel.release());
    let results: Vec<_> = (0..).zip(batch).map(|(n, copy)| ended(copy, n)).collect();
    assert_eq!(results[1], Ok(()));
    assert_eq!(results[2..], [Err(FenceError::Terminated); 8]);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let submitted = submit(&channel, 5);
    channel.issue_pending();
    assert_eq!(ended(submitted, 5), Ok(()));
}

#[test]
fn a_removal_ends_a_pause() {
    let (driven, _channel, batch) = paused_after(EngineConfig::default(), 2);
    let removal = driven.remove();
    assert_eq!((removal.by_cpu, removal.lost), (8, 0));
    all_done(batch);
}

#[test]
fn an_error_of_the_last_descriptor_before_a_pause_fails_that_alone() {
    let driven = Driven::new(EngineConfig::default(), options());
    let tricks = driven.rig.tricks.clone();
    tricks.fail_held.store(true, Ordering::Relaxed);
    tricks.hold.store(3, Ordering::Relaxed);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let batch = batch(&channel, 10);
    channel.issue_pending();
    while copies(&driven) < 3 {
        std::thread::yield_now();
    }
    assert_eq!(block_on(channel.pause()), Ok(()));
    assert_eq!(copies(&driven), 3, "it rests, though it was reset");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(copies(&driven), 3);
    channel.resume();
    for (byte, submitted) in (0..).zip(batch) {
        let expected = match byte {
            2 => Err(FenceError::Device(0x100)),
            _ => Ok(()),
        };
        assert_eq!(ended(submitted, byte), expected, "copy {byte}");
    }
}

#[test]
fn an_engine_that_does_not_suspend_is_reset_and_fails_nothing() {
    let faulty = EngineConfig {
        faults: vec![Fault::Hang(3)],
        ..EngineConfig::default()
    };
    let patient = Options {
        hang_limit: Duration::from_secs(60),
        ..Options::default()
    };
    let driven = Driven::new(faulty, patient);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let batch = batch(&channel, 10);
    channel.issue_pending();
    while driven.rig.engine.statistics().faults == 0 {
        std::thread::yield_now();
    }
    let begun = Instant::now();
    assert_eq!(block_on(channel.pause()), Ok(()));
    assert!(begun.elapsed() < Duration::from_secs(5));
    channel.resume();
    all_done(batch);
    assert_eq!(channel.counters().errors, 0);
}

/// A full ring, stopped in the middle: what the engine had done and what it hands back are all,
/// in order, none twice.
#[test]
fn who_is_stopped_ends_its_descriptor_and_hands_back_the_rest() {
    let driven = Driven::new(
        EngineConfig::default(),
        Options {
            ring_order: 6,
            ..Options::default()
        },
    );
    driven.rig.tricks.hold.store(20, Ordering::Relaxed);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let batch = batch(&channel, 63);
    let order = Arc::new(Mutex::new(Vec::new()));
    for submitted in &batch {
        let (order, cookie) = (order.clone(), submitted.cookie());
        let ended = move |_| order.lock().unwrap().push(cookie);
        submitted.fence().add_callback(ended).unwrap();
    }
    channel.issue_pending();
    while copies(&driven) < 20 {
        std::thread::yield_now();
    }
    let (tricks, by_engine) = (driven.rig.tricks.clone(), driven.chan(0));
    let removal = block_on(driven.driver.remove(Duration::from_millis(1)));
    assert_eq!(tricks.copies.load(Ordering::Relaxed), 20);
    assert_eq!(by_engine.counters().copies, 20);
    assert_eq!((removal.by_cpu, removal.lost), (43, 0));
    let cookies: Vec<_> = batch.iter().map(Submitted::cookie).collect();
    all_done(batch);
    assert_eq!(*order.lock().unwrap(), cookies);
}
