//! Engines that vanish without a word: how soon that is known, what touches them afterwards, and what
//! one may do that still writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dma_fence::FenceError;
use dmaengine::{Capabilities, Channel, Flags, Memcpy, RequestError, StartError, Submitted};
use hal::dma::{Destination, Memory, Source, withheld};
use hal::host::block_on;
use hal::time::{Duration, Instant, timeout};
use ioat::Options;
use ioat_model::{EngineConfig, Fault};

use crate::rig::{Driven, Rig};

const LEN: usize = 3000;

fn submit(channel: &Channel, byte: u8) -> Submitted<Memcpy> {
    submit_to(channel, Memory::new(LEN).unwrap(), byte)
}

fn submit_to(channel: &Channel, dst: Memory, byte: u8) -> Submitted<Memcpy> {
    let mut memory = Memory::new(LEN).unwrap();
    memory.fill(byte);
    let src = Source::new(Arc::new(memory), 0..LEN).unwrap();
    let dst = Destination::new(dst, 0..LEN).unwrap();
    let descriptor = channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap();
    channel.submit(descriptor).unwrap()
}

/// What became of it, within its limits, and where it wrote if that came back.
fn ended(submitted: Submitted<Memcpy>, byte: u8) -> (Result<(), FenceError>, Option<Memory>) {
    let ended = block_on(timeout(Duration::from_secs(10), submitted.finish())).expect("bounded");
    let memory = ended.buffers.map(|(dst, _)| dst.into_memory());
    if ended.result.is_ok() {
        let memory = memory.as_ref().expect("what was done comes back");
        assert!(memory.iter().all(|&found| found == byte));
    }
    (ended.result, memory)
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn set(flag: &AtomicBool) -> impl Fn() -> bool + '_ {
    move || flag.load(Ordering::Acquire)
}

/// Whether the engine is found to be lost, within its limits.
fn lost(driven: &Driven) -> bool {
    let lost = timeout(Duration::from_secs(5), driven.driver.lost());
    block_on(lost).expect("bounded")
}

fn patient() -> Options {
    Options {
        lost_limit: Duration::from_secs(60),
        ..Options::default()
    }
}

/// An engine that is long at its first copy.
fn slow() -> Driven {
    let config = EngineConfig {
        faults: vec![Fault::Slow(1_000_000)],
        ..EngineConfig::default()
    };
    Driven::new(config, patient())
}

/// One read of a register tells, one of configuration space confirms, and no access follows.
#[test]
fn an_engine_that_vanishes_at_its_work_is_asked_once_and_then_left_alone() {
    for (how, freeze) in [("allones", false), ("freeze", true)] {
        let driven = slow();
        let channels = [0, 1, 2, 3].map(|n| block_on(driven.chan(n).request()).unwrap());
        let copies: Vec<_> = (0..8).map(|n| submit(&channels[n % 4], n as u8)).collect();
        channels.iter().for_each(Channel::issue_pending);
        let engine = driven.rig.engine.clone();
        let begun = Instant::now();
        if freeze {
            engine.freeze();
        } else {
            engine.vanish();
        }
        assert!(lost(&driven), "{how}");
        let known = begun.elapsed();
        let removal = removed(driven.driver);
        println!(
            "{how}: known after {} ms, done elsewhere after {} ms",
            known.as_millis(),
            begun.elapsed().as_millis()
        );
        assert!(known < Duration::from_secs(1), "{known:?}");
        assert_eq!((removal.by_cpu, removal.lost), (8, 0), "{how}");
        for (n, copy) in (0..).zip(copies) {
            assert_eq!(ended(copy, n).0, Ok(()), "{how}");
        }
        let counted = engine.statistics();
        assert_eq!(counted.mmio_after_gone, 1, "{how}");
        assert_eq!(counted.config_after_gone, 1, "{how}");
        drop(channels);
    }
}

/// Who has a channel alone is told, keeps it until the deadline, and then meets that it is gone.
#[test]
fn who_holds_a_channel_of_an_engine_that_vanishes_is_told_and_revoked() {
    let driven = slow();
    let chan = driven.chan(0);
    let channel = block_on(chan.request()).unwrap();
    let copy = submit(&channel, 3);
    channel.issue_pending();
    let told = thread::spawn(move || block_on(chan.removed()));
    driven.rig.engine.vanish();
    assert!(lost(&driven));
    assert!(!channel.is_gone() && !told.is_finished(), "not removed yet");
    let begun = Instant::now();
    let removal = block_on(driven.driver.remove(Duration::from_millis(50)));
    let deadline = told.join().unwrap();
    assert!(deadline - begun >= Duration::from_millis(50));
    let told = (removal.revoked, removal.by_cpu, removal.lost);
    assert_eq!(told, (1, 1, 0));
    assert_eq!(ended(copy, 3).0, Ok(()));
    assert!(channel.is_gone());
    assert!(channel.prep_interrupt(Flags::empty()).is_err());
}

/// Its removal was under way, and waited for who holds a channel: nobody is waited for any more, and
/// what it had is not given up.
#[test]
fn an_engine_vanishes_while_it_is_being_removed() {
    let options = Options {
        lost_limit: Duration::from_millis(100),
        ..Options::default()
    };
    let config = EngineConfig {
        faults: vec![Fault::Slow(1_000_000)],
        ..EngineConfig::default()
    };
    let driven = Driven::new(config, options);
    let (rig, driver) = (driven.rig, driven.driver);
    let chan = driver.device().channels().next().unwrap();
    let channel = block_on(chan.request()).unwrap();
    let copies = [1, 2, 3].map(|byte| submit(&channel, byte));
    channel.issue_pending();
    let limit = Duration::from_secs(60);
    let removal = thread::spawn(move || block_on(driver.remove(limit)));
    block_on(chan.removed());
    let begun = Instant::now();
    rig.engine.vanish();
    let removal = removal.join().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "nobody was waited for"
    );
    assert_eq!((removal.by_cpu, removal.lost, removal.revoked), (3, 0, 1));
    for (byte, copy) in (1..).zip(copies) {
        assert_eq!(ended(copy, byte).0, Ok(()));
    }
    drop(channel);
}

/// It hangs; while its channel is reset, it is pulled.
#[test]
fn an_engine_vanishes_while_it_resets() {
    let config = EngineConfig {
        faults: vec![Fault::Hang(3), Fault::Late(200)],
        ..EngineConfig::default()
    };
    let options = Options {
        hang_limit: Duration::from_millis(300),
        ..patient()
    };
    for freeze in [false, true] {
        let driven = Driven::new(config.clone(), options);
        let tricks = driven.rig.tricks.clone();
        let channel = block_on(driven.chan(0).request()).unwrap();
        tricks.hold_reset.store(true, Ordering::Relaxed);
        let copies: Vec<_> = (0..5).map(|byte| submit(&channel, byte)).collect();
        channel.issue_pending();
        until("the reset", set(&tricks.reset_held));
        let engine = driven.rig.engine.clone();
        if freeze {
            engine.freeze();
        } else {
            engine.vanish();
        }
        tricks.hold_reset.store(false, Ordering::Relaxed);
        assert!(lost(&driven));
        let removal = driven.remove();
        // Hanging, it was at its third: nothing of it failed, all the same.
        assert_eq!((removal.by_cpu, removal.lost), (3, 0));
        for (byte, copy) in (0..).zip(copies) {
            assert_eq!(ended(copy, byte).0, Ok(()));
        }
        // The command that was held, the read behind it, and one more where its bits prove little.
        assert!(engine.statistics().mmio_after_gone <= 3);
    }
}

/// Half of what it copies has arrived when it stops: it is done again, whole.
#[test]
fn an_engine_freezes_in_the_middle_of_a_copy() {
    let config = EngineConfig {
        faults: vec![Fault::Freeze(3)],
        ..EngineConfig::default()
    };
    let driven = Driven::new(config, patient());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let copies: Vec<_> = (1..7).map(|byte| submit(&channel, byte)).collect();
    channel.issue_pending();
    assert!(lost(&driven));
    let engine = driven.rig.engine.clone();
    let removal = driven.remove();
    assert_eq!((removal.by_cpu, removal.lost), (4, 0));
    for (byte, copy) in (1..).zip(copies) {
        assert_eq!(ended(copy, byte).0, Ok(()));
    }
    assert_eq!(
        engine.statistics().descriptors,
        2 + 1,
        "and that of the start"
    );
    drop(channel);
}

/// Nothing looks at an engine that is not used. The next client's work finds out, and is done.
#[test]
fn an_idle_engine_that_vanishes_costs_its_next_client_time_only() {
    let driven = Driven::new(EngineConfig::default(), patient());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let before = submit(&channel, 1);
    channel.issue_pending();
    assert_eq!(ended(before, 1).0, Ok(()));
    driven.rig.engine.vanish();
    let copy = submit(&channel, 2);
    channel.issue_pending();
    assert!(lost(&driven));
    let removal = driven.remove();
    assert_eq!((removal.by_cpu, removal.lost), (1, 0));
    assert_eq!(ended(copy, 2).0, Ok(()));
}

#[test]
fn who_asks_for_any_channel_does_not_meet_an_engine_that_has_vanished() {
    let gone = Driven::new(EngineConfig::default(), patient());
    let mut rig = Rig::new(EngineConfig::default());
    rig.registry = gone.rig.registry.clone();
    let _other = rig.probe(patient());
    gone.rig.engine.vanish();
    let registry = gone.rig.registry.clone();
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    assert_eq!(channel.name(), "dma1chan0");
    assert!(lost(&gone), "found on the way");
    let error = block_on(gone.chan(1).request()).unwrap_err();
    assert_eq!(error, RequestError::Start(StartError::Gone));
    let counted = gone.rig.engine.statistics();
    assert_eq!((counted.mmio_after_gone, counted.config_after_gone), (1, 1));
}

/// A copy under way on an engine that answers nothing any more and goes on.
fn deaf_at_work(driven: &Driven) -> (Channel, Submitted<Memcpy>) {
    let work = at_work(driven);
    let tricks = &driven.rig.tricks;
    tricks.deaf_config.store(true, Ordering::Relaxed);
    tricks.deaf.store(true, Ordering::Relaxed);
    work
}

/// An engine in the middle of a copy that it does not end.
fn at_work(driven: &Driven) -> (Channel, Submitted<Memcpy>) {
    let tricks = &driven.rig.tricks;
    tricks.hold.store(1, Ordering::Relaxed);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let copy = submit(&channel, 7);
    channel.issue_pending();
    let begun = || tricks.copies.load(Ordering::Relaxed) > 0;
    until("the copy", begun);
    (channel, copy)
}

/// The engine writes when its work has long been done elsewhere.
fn write_late(driven: &Driven) {
    driven.rig.tricks.release.store(true, Ordering::Relaxed);
    until("the late write", set(&driven.rig.tricks.late));
}

fn removed(driver: ioat::Engine) -> dmaengine::Removal {
    block_on(driver.remove(Duration::from_secs(1)))
}

#[test]
fn no_fence_tells_of_success_before_the_engine_is_kept_from_memory() {
    let driven = slow_to_isolate();
    let (channel, copy) = deaf_at_work(&driven);
    let tricks = driven.rig.tricks.clone();
    assert!(lost(&driven));
    let driver = driven.driver;
    let removal = thread::spawn(move || removed(driver));
    // It is tried again and again, until the slot is off, the port passes nothing on, or time is up.
    let often = || tricks.isolations.load(Ordering::Relaxed) >= 5;
    until("five tries", often);
    assert!(!copy.fence().is_signalled());
    tricks.isolable.store(true, Ordering::Relaxed);
    let removal = removal.join().unwrap();
    assert_eq!((removal.by_cpu, removal.lost), (1, 0));
    let (result, memory) = ended(copy, 7);
    assert_eq!(result, Ok(()));
    let mut memory = memory.unwrap();
    memory.fill(8);
    tricks.release.store(true, Ordering::Relaxed);
    until("the late write", set(&tricks.late));
    assert!(memory.iter().all(|&byte| byte == 8), "written late");
    drop(channel);
}

fn slow_to_isolate() -> Driven {
    let driven = Driven::new(EngineConfig::default(), patient());
    driven.rig.tricks.isolable.store(false, Ordering::Relaxed);
    driven
}

/// Whether a new buffer comes to lie at `place`.
fn is_reused(place: u64) -> bool {
    let others: Vec<_> = (0..256).map_while(|_| Memory::new(LEN).ok()).collect();
    others.iter().any(|memory| memory.extent().phys == place)
}

#[test]
fn what_may_be_written_late_is_withheld() {
    let driven = slow_to_isolate();
    let before = withheld();
    let (channel, copy) = deaf_at_work(&driven);
    let memory = Memory::new(LEN).unwrap();
    let place = memory.extent().phys;
    let behind = submit_to(&channel, memory, 9);
    assert!(lost(&driven));
    let Driven { rig, driver } = driven;
    let removal = removed(driver);
    let done = removal.failed_over + removal.by_cpu;
    assert_eq!((removal.in_flight, done, removal.lost), (2, 0, 2));
    for (copy, byte) in [(copy, 7), (behind, 9)] {
        let (result, memory) = ended(copy, byte);
        assert_eq!(result, Err(FenceError::Gone));
        assert!(memory.is_none(), "the destination stays behind");
    }
    assert!(withheld() >= before + 3, "two destinations and the ring");
    assert!(!is_reused(place));
    rig.tricks.release.store(true, Ordering::Relaxed);
    until("the late write", set(&rig.tricks.late));
    drop(channel);
}

/// Whoever gives up, or gives up waiting for a removal, does not get the buffers either.
#[test]
fn giving_up_does_not_bring_back_what_may_be_written_late() {
    for terminate in [true, false] {
        let options = Options {
            lost_limit: Duration::from_millis(if terminate { 60_000 } else { 300 }),
            ..Options::default()
        };
        let driven = Driven::new(EngineConfig::default(), options);
        driven.rig.tricks.isolable.store(false, Ordering::Relaxed);
        let (channel, copy) = deaf_at_work(&driven);
        assert!(lost(&driven));
        if terminate {
            assert_eq!(block_on(channel.terminate_all().wait()), Ok(()));
        }
        let (result, memory) = ended(copy, 7);
        let error = if terminate {
            FenceError::Terminated
        } else {
            FenceError::Gone
        };
        assert_eq!(result, Err(error));
        assert!(memory.is_none());
        write_late(&driven);
        assert_eq!(removed(driven.driver).lost, 0);
    }
}

/// Registers that read all ones prove little where configuration space answers.
#[test]
fn an_engine_whose_configuration_space_answers_is_cut_off_there() {
    let driven = slow_to_isolate();
    let (channel, copy) = at_work(&driven);
    assert!(driven.rig.bus_master());
    driven.rig.tricks.deaf.store(true, Ordering::Relaxed);
    assert!(lost(&driven));
    let tricks = driven.rig.tricks.clone();
    let driver = driven.driver;
    let removal = thread::spawn(move || removed(driver));
    // It stops between two pieces of a copy, and here is only one.
    until("the end of bus mastering", || !driven.rig.bus_master());
    tricks.release.store(true, Ordering::Relaxed);
    let removal = removal.join().unwrap();
    assert_eq!((removal.by_cpu, removal.lost), (1, 0));
    assert_eq!(ended(copy, 7).0, Ok(()));
    assert_eq!(tricks.isolations.load(Ordering::Relaxed), 0);
    drop(channel);
}

/// An engine that is lost while a channel starts has its ring withheld, too.
#[test]
fn a_ring_that_an_engine_was_given_and_may_still_write_is_withheld() {
    let driven = slow_to_isolate();
    let tricks = driven.rig.tricks.clone();
    // The null descriptor of the start is never fetched.
    tricks.no_fetch.store(true, Ordering::Relaxed);
    let before = withheld();
    let request = thread::spawn({
        let chan = driven.chan(0);
        move || block_on(chan.request()).unwrap_err()
    });
    let started = || driven.rig.engine.statistics().doorbells > 0;
    until("the start", started);
    tricks.deaf_config.store(true, Ordering::Relaxed);
    tricks.deaf.store(true, Ordering::Relaxed);
    let error = request.join().unwrap();
    assert_eq!(error, RequestError::Start(StartError::Gone));
    assert!(withheld() > before);
}
