//! Engines that misbehave: every wait ends, every operation gets an answer, and the channel works
//! afterwards where the engine does.

use dma_fence::FenceError;
use dmaengine::{Channel, Finished, Flags, Memcpy, Submitted};
use hal::dma::{Destination, Memory, Source};
use hal::host::block_on;
use hal::time::{Duration, Instant};
use ioat::{Options, ProbeError, ResetError};
use ioat_model::{EngineConfig, Fault, Irq};
use ioat_spec::CbVer;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::rig::{Driven, Rig, config};

fn with(fault: Fault) -> EngineConfig {
    EngineConfig {
        faults: vec![fault],
        ..EngineConfig::default()
    }
}

/// The host may give an engine no time for a while: that is no hang.
fn options() -> Options {
    Options {
        hang_limit: Duration::from_secs(60),
        lost_limit: Duration::from_millis(300),
        ..Options::default()
    }
}

/// For engines that hang indeed.
fn impatient() -> Options {
    Options {
        hang_limit: Duration::from_millis(300),
        ..options()
    }
}

fn submit(channel: &Channel, byte: u8, flags: Flags) -> Submitted<Memcpy> {
    let mut memory = Memory::new(3000).unwrap();
    memory.fill(byte);
    let src = Source::new(Arc::new(memory), 0..3000).unwrap();
    let dst = Destination::new(Memory::new(3000).unwrap(), 0..3000).unwrap();
    let descriptor = channel.prep_memcpy(dst, src, flags).unwrap();
    channel.submit(descriptor).unwrap()
}

/// Waits, but not for ever, and checks the data of those that succeeded.
fn ended(submitted: Submitted<Memcpy>, byte: u8) -> Result<(), FenceError> {
    let limit = Duration::from_secs(60);
    let ended = block_on(hal::time::timeout(limit, submitted.finish()));
    let Finished { buffers, result } = ended.expect("bounded");
    let (dst, _) = buffers.expect("buffers come back");
    if result.is_ok() {
        assert!(dst.into_memory().iter().all(|&found| found == byte));
    }
    result
}

fn works(channel: &Channel) {
    let submitted = submit(channel, 0x77, Flags::INTERRUPT);
    channel.issue_pending();
    assert_eq!(ended(submitted, 0x77), Ok(()));
}

/// An engine that strays loses its memory, and fails at what it has in its ring: that is done
/// elsewhere, as all that a removed engine has not finished.
#[test]
fn what_fails_for_want_of_memory_is_done_elsewhere() {
    let driven = Driven::new(with(Fault::Error(4, 8)), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let batch: Vec<_> = (0..8)
        .map(|i| submit(&channel, i, Flags::INTERRUPT))
        .collect();
    driven.rig.tricks.revoked.store(true, Ordering::Relaxed);
    channel.issue_pending();
    let lost = hal::time::timeout(Duration::from_secs(60), driven.driver.lost());
    assert!(block_on(lost).expect("bounded"));
    let removal = driven.remove();
    assert_eq!((removal.by_cpu, removal.lost), (5, 0));
    for (i, submitted) in batch.into_iter().enumerate() {
        assert_eq!(ended(submitted, i as u8), Ok(()), "{i}");
    }
}

#[test]
fn an_error_fails_one_copy_and_spares_the_others() {
    for bit in [0, 1, 8, 9, 11] {
        let driven = Driven::new(with(Fault::Error(4, bit)), options());
        let channel = block_on(driven.chan(0).request()).unwrap();
        let batch: Vec<_> = (0..8)
            .map(|i| submit(&channel, i, Flags::INTERRUPT))
            .collect();
        channel.issue_pending();
        for (i, submitted) in batch.into_iter().enumerate() {
            let expected = match i {
                3 => Err(FenceError::Device(1 << bit)),
                _ => Ok(()),
            };
            assert_eq!(ended(submitted, i as u8), expected, "copy {i}, bit {bit}");
        }
        works(&channel);
        assert_eq!(channel.counters().errors, 1);
        block_on(channel.release());
        driven.remove();
    }
}

#[test]
fn an_error_is_found_by_polling_too() {
    let driven = Driven::new(with(Fault::Error(1, 8)), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let first = submit(&channel, 1, Flags::empty());
    let second = submit(&channel, 2, Flags::empty());
    channel.issue_pending();
    block_on(async {
        while !second.fence().is_signalled() {
            channel.poll();
            hal::task::yield_now().await;
        }
    });
    assert_eq!(ended(first, 1), Err(FenceError::Device(0x100)));
    assert_eq!(ended(second, 2), Ok(()));
}

#[test]
fn a_hang_is_bounded_and_the_channel_works_again() {
    let driven = Driven::new(with(Fault::Hang(2)), impatient());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let start = Instant::now();
    let batch: Vec<_> = (0..3)
        .map(|i| submit(&channel, i, Flags::INTERRUPT))
        .collect();
    channel.issue_pending();
    let results: Vec<_> = (0..).zip(batch).map(|(i, copy)| ended(copy, i)).collect();
    let timeout = Err(FenceError::Timeout);
    assert_eq!(results, [Ok(()), timeout, timeout]);
    assert!(start.elapsed() < Duration::from_secs(3));
    works(&channel);
    block_on(channel.release());
    driven.remove();
}

#[test]
fn a_hang_at_the_start_is_an_error() {
    let driven = Driven::new(with(Fault::Hang(0)), options());
    let error = block_on(driven.chan(0).request()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("did not start: status 0x"), "{text}");
    assert!(driven.driver.to_string().contains("stopped"));
    let channel = block_on(driven.chan(0).request()).unwrap();
    works(&channel);
}

/// Nobody but who serves the line re-arms a channel that is not up yet.
#[test]
fn an_error_at_the_start_does_not_hold_a_shared_line() {
    let driven = Driven::new(config(CbVer::V3_3, Irq::Intx), options());
    let no_fetch = &driven.rig.tricks.no_fetch;
    no_fetch.store(true, Ordering::Relaxed);
    let error = block_on(driven.chan(0).request()).unwrap_err();
    assert!(error.to_string().contains("did not start"), "{error}");
    let interrupts = driven.rig.pin_interrupts();
    assert!((1..5).contains(&interrupts), "{interrupts}");
    no_fetch.store(false, Ordering::Relaxed);
    works(&block_on(driven.chan(0).request()).unwrap());
}

/// An engine that gets no time from the host stands still for longer than one that hangs may.
#[test]
fn an_engine_that_takes_its_time_is_not_reset() {
    let driven = Driven::new(EngineConfig::default(), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let tricks = &driven.rig.tricks;
    tricks.hold.store(1, Ordering::Relaxed);
    let submitted = submit(&channel, 1, Flags::INTERRUPT);
    channel.issue_pending();
    block_on(hal::time::sleep(impatient().hang_limit * 2));
    assert!(!submitted.fence().is_signalled());
    tricks.release.store(true, Ordering::Relaxed);
    assert_eq!(ended(submitted, 1), Ok(()));
    assert!(driven.driver.to_string().contains("recoveries=0"));
}

#[test]
fn a_lost_interrupt_costs_time_only() {
    let driven = Driven::new(with(Fault::DropIrq(1)), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    for _ in 0..20 {
        works(&channel);
    }
    assert_eq!(channel.counters().errors, 0);
    // Others interrupt as ever, some of them for two: the channel was armed again.
    assert!(driven.rig.engine.statistics().interrupts >= 5);
    assert!(driven.driver.to_string().contains("channel 0: running"));
    assert!(!driven.driver.to_string().contains("recoveries=1"));
}

#[test]
fn an_error_in_the_middle_fails_the_whole_copy_alone() {
    let config = EngineConfig {
        xfercap_log2: 12,
        ..with(Fault::Error(30, 9))
    };
    let driven = Driven::new(config, options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let fills: Vec<_> = (0..6)
        .map(|i| {
            let dst = Destination::new(Memory::new(40960).unwrap(), 0..40960).unwrap();
            let fill = channel.prep_memset(dst, i, Flags::INTERRUPT).unwrap();
            channel.submit(fill).unwrap()
        })
        .collect();
    channel.issue_pending();
    for (i, fill) in fills.into_iter().enumerate() {
        let Finished { buffers, result } = block_on(fill.finish());
        let memory = buffers.unwrap().into_memory();
        if i == 2 {
            assert_eq!(result, Err(FenceError::Device(0x200)));
        } else {
            assert_eq!(result, Ok(()));
            assert!(memory.iter().all(|&byte| byte == i as u8));
        }
    }
    works(&channel);
}

#[test]
fn a_completion_from_nowhere_is_an_error_and_no_endless_loop() {
    let driven = Driven::new(EngineConfig::default(), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    works(&channel);
    let tricks = driven.rig.tricks.clone();
    tricks.foreign_completion.store(true, Ordering::Relaxed);
    let submitted = submit(&channel, 1, Flags::INTERRUPT);
    channel.issue_pending();
    assert_eq!(ended(submitted, 1), Err(FenceError::Device(0)));
    tricks.foreign_completion.store(false, Ordering::Relaxed);
    works(&channel);
    assert_eq!(channel.counters().errors, 1);
}

#[test]
fn an_engine_that_cannot_be_stopped_is_cut_off_from_memory() {
    let driven = Driven::new(with(Fault::Hang(1)), impatient());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let other = block_on(driven.chan(1).request()).unwrap();
    driven.rig.tricks.no_reset.store(true, Ordering::Relaxed);
    let issued = submit(&channel, 1, Flags::INTERRUPT);
    channel.issue_pending();
    let waiting = submit(&channel, 2, Flags::INTERRUPT);
    assert_eq!(ended(issued, 1), Err(FenceError::Timeout));
    assert_eq!(ended(waiting, 2), Err(FenceError::Timeout));
    assert!(!driven.rig.bus_master());
    assert!(driven.driver.to_string().contains(" broken"));
    let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
    let fill = other.prep_memset(dst, 1, Flags::empty()).unwrap();
    let error = other.submit(fill).unwrap_err();
    assert_eq!(error.reason, dmaengine::SubmitReason::Gone);
    drop((channel, other));
    let removal = driven.remove();
    assert_eq!(removal.lost, 0);
}

#[test]
fn an_engine_that_vanishes_fails_all_and_is_left_alone() {
    let driven = Driven::new(with(Fault::AllOnes(3)), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let batch: Vec<_> = (0..6)
        .map(|i| submit(&channel, i, Flags::INTERRUPT))
        .collect();
    channel.issue_pending();
    let results: Vec<_> = (0..).zip(batch).map(|(i, copy)| ended(copy, i)).collect();
    let gone = Err(FenceError::Gone);
    assert_eq!(results[3..], [gone, gone, gone]);
    assert!(driven.driver.is_gone());
    let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
    let fill = channel.prep_memset(dst, 1, Flags::empty()).unwrap();
    let error = channel.submit(fill).unwrap_err();
    assert_eq!(error.reason, dmaengine::SubmitReason::Gone);
    let engine = driven.rig.engine.clone();
    let touched = engine.statistics().mmio_after_gone;
    assert!(touched <= 2, "{touched} accesses to find out");
    drop(channel);
    driven.remove();
    assert_eq!(engine.statistics().mmio_after_gone, touched);
}

/// Whether an engine is found to be lost, within its limits.
fn lost(driven: &Driven) -> bool {
    let lost = hal::time::timeout(Duration::from_secs(60), driven.driver.lost());
    block_on(lost).expect("bounded")
}

#[test]
fn what_a_lost_engine_had_is_done_elsewhere_when_it_is_removed() {
    let patient = Options {
        lost_limit: Duration::from_secs(60),
        ..impatient()
    };
    for (fault, no_reset, left) in [(Fault::AllOnes(3), false, 5), (Fault::Hang(4), true, 5)] {
        let driven = Driven::new(with(fault), patient);
        let channel = block_on(driven.chan(0).request()).unwrap();
        let other = block_on(driven.chan(1).request()).unwrap();
        let tricks = &driven.rig.tricks;
        tricks.no_reset.store(no_reset, Ordering::Relaxed);
        let batch: Vec<_> = (0..8)
            .map(|i| submit(&channel, i, Flags::INTERRUPT))
            .collect();
        channel.issue_pending();
        assert!(lost(&driven), "{fault:?}");
        assert!(!batch[7].fence().is_signalled());
        drop(other);
        let removal = driven.remove();
        assert_eq!((removal.by_cpu, removal.lost), (left, 0), "{fault:?}");
        for (i, submitted) in (0..).zip(batch) {
            assert_eq!(ended(submitted, i), Ok(()), "copy {i}, {fault:?}");
        }
    }
}

#[test]
fn what_a_lost_engine_had_can_be_given_up() {
    let patient = Options {
        lost_limit: Duration::from_secs(60),
        ..options()
    };
    let driven = Driven::new(with(Fault::AllOnes(1)), patient);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let batch = [1, 2].map(|byte| submit(&channel, byte, Flags::INTERRUPT));
    channel.issue_pending();
    assert!(lost(&driven));
    assert_eq!(block_on(channel.pause()), Ok(()));
    assert_eq!(block_on(channel.terminate_all().wait()), Ok(()));
    let [_, second] = batch;
    assert_eq!(ended(second, 2), Err(FenceError::Terminated));
}

#[test]
fn an_engine_that_is_removed_is_not_lost() {
    let driven = Driven::new(EngineConfig::default(), options());
    let lost = driven.driver.lost();
    driven.remove();
    assert!(!block_on(lost));
}

/// The watchdog finds a hang, and while it resets the channel, the layer stops it.
#[test]
fn who_stops_a_hanging_channel_gets_what_it_had() {
    let driven = Driven::new(with(Fault::Hang(1)), impatient());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let tricks = driven.rig.tricks.clone();
    tricks.hold_reset.store(true, Ordering::Relaxed);
    let submitted = submit(&channel, 1, Flags::INTERRUPT);
    channel.issue_pending();
    while !tricks.reset_held.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    let chan = driven.chan(0);
    let removal = std::thread::spawn(move || block_on(driven.driver.remove(Duration::ZERO)));
    while !chan.is_gone() {
        std::thread::yield_now();
    }
    // The stop follows at once; nothing shows when it has been asked for.
    std::thread::sleep(std::time::Duration::from_millis(300));
    tricks.hold_reset.store(false, Ordering::Relaxed);
    let removal = removal.join().unwrap();
    assert_eq!((removal.by_cpu, removal.lost), (1, 0));
    assert_eq!(ended(submitted, 1), Ok(()));
}

#[test]
fn an_engine_left_running_by_somebody_is_taken_over() {
    let driven = Driven::new(with(Fault::Dirty), options());
    for index in 0..4 {
        let channel = block_on(driven.chan(index).request()).unwrap();
        works(&channel);
    }
    driven.remove();
}

#[test]
fn a_driver_takes_over_from_a_driver() {
    let driven = Driven::new(EngineConfig::default(), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    works(&channel);
    // Nobody removes it: as after a crash.
    let Driven { rig, driver } = driven;
    let _ = std::mem::ManuallyDrop::new(driver);
    let again = rig.probe(options());
    let channel = block_on(again.chan(0).request()).unwrap();
    works(&channel);
}

fn refused(config: EngineConfig) -> (ProbeError, Rig) {
    let rig = Rig::new(config);
    let error = rig.try_probe(options()).unwrap_err();
    assert!(!rig.bus_master(), "{error}");
    assert!(rig.registry.devices().is_empty());
    assert!(!error.to_string().contains('\n'));
    (error, rig)
}

#[test]
fn what_cannot_be_driven_is_refused() {
    let (error, _) = refused(with(Fault::ChanCnt(0)));
    assert_eq!(error, ProbeError::NoChannels);
    let (error, _) = refused(with(Fault::XferCap(0)));
    assert_eq!(error, ProbeError::TransferCapacity(0));
    let (error, _) = refused(with(Fault::NoReset));
    let expected = ProbeError::Reset {
        channel: 0,
        error: ResetError::Stuck,
    };
    assert_eq!(error, expected);
    let (error, _) = refused(with(Fault::AllOnes(0)).vanished());
    assert!(
        matches!(error, ProbeError::Unknown { .. } | ProbeError::Gone),
        "{error:?}"
    );
}

trait Vanished {
    fn vanished(self) -> Self;
}

impl Vanished for EngineConfig {
    /// Not one of ours, as a function that is absent reads.
    fn vanished(mut self) -> Self {
        self.faults.clear();
        self.device_id = 0xffff;
        self
    }
}

#[test]
fn unknown_functions_and_small_bars_are_refused() {
    let rig = Rig::new(EngineConfig::default());
    let probe = |function| block_on(ioat::probe(function, &rig.registry)).unwrap_err();
    let mut function = rig.function();
    function.identity.device = 0x1234;
    let expected = ProbeError::Unknown {
        vendor: 0x8086,
        device: 0x1234,
    };
    assert_eq!(probe(function), expected);
    let mut function = rig.function();
    function.bars[0] = None;
    assert_eq!(probe(function), ProbeError::NoBar);
    let mut function = rig.function();
    let inner = function.bars[0].take().unwrap();
    function.bars[0] = Some(hal::mmio::MmioRegion::new(Arc::new(Window(inner)), 0x100));
    let small = ProbeError::SmallBar {
        len: 0x100,
        needed: 0x280,
    };
    assert_eq!(probe(function), small);
}

/// A part of a BAR.
struct Window(hal::mmio::MmioRegion);

impl hal::mmio::MmioOps for Window {
    fn read(&self, offset: usize, width: hal::mmio::Width) -> u64 {
        self.0.read(offset, width)
    }
    fn write(&self, offset: usize, width: hal::mmio::Width, value: u64) {
        self.0.write(offset, width, value);
    }
}

#[test]
fn looping_capabilities_end() {
    let driven = Driven::new(with(Fault::CapabilityLoop), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    works(&channel);
}

#[test]
fn the_smallest_transfer_limit_works() {
    let driven = Driven::new(with(Fault::XferCap(12)), options());
    let channel = block_on(driven.chan(0).request()).unwrap();
    works(&channel);
}
