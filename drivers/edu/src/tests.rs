//! The driver against the fake device.

use std::string::ToString;
use std::sync::Arc;
use std::time::Duration;

use dma_fence::FenceError;
use dmaengine::{
    Capabilities, Channel, Flags, Memcpy, PrepReason, Registry, Removal, RequestError, StartError,
    SubmitReason, Submitted,
};
use hal::dma::{Destination, Memory, Source};
use hal::host::block_on;
use hal::irq::IrqKind;
use hal::time::Instant;
use proptest::prelude::*;

use crate::fake::{BITS, Fake, Faults};
use crate::hardware::BUFFER_LEN;
use crate::{Device, Options, ProbeError, probe_with};

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);
/// A copy of many chunks. Bouncing goes word by word, which takes Miri long.
const CHUNKS: usize = if cfg!(miri) { 4 } else { 16 };
const BIG: usize = CHUNKS * BUFFER_LEN;

fn options() -> Options {
    Options {
        address_bits: BITS,
        ..Options::default()
    }
}

struct Bench {
    fake: Arc<Fake>,
    registry: Registry,
    device: Device,
}

impl Bench {
    fn with(kind: Option<IrqKind>, near: bool, options: Options) -> Self {
        let fake = Fake::healthy(kind);
        let registry = Registry::new();
        let device = block_on(probe_with(fake.function(near), &registry, options)).unwrap();
        Self {
            fake,
            registry,
            device,
        }
    }

    fn new(kind: Option<IrqKind>, near: bool) -> Self {
        Self::with(kind, near, options())
    }

    fn channel(&self) -> Channel {
        block_on(self.registry.channel("dma0chan0").unwrap().request()).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.fake.close();
        let mistakes = self.fake.mistakes();
        assert!(
            mistakes.is_empty() || std::thread::panicking(),
            "{mistakes:?}"
        );
    }
}

/// What is copied. Its period, a prime, tells chunks apart.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = Vec::from_iter(1..=251).repeat(len / 251 + 1);
    bytes.truncate(len);
    bytes
}

/// A copy of `len` bytes between offsets, submitted.
fn submit(channel: &Channel, len: usize, from: usize, to: usize) -> Submitted<Memcpy> {
    let mut memory = Memory::new(from + len).unwrap();
    memory.copy_from_slice(&pattern(from + len));
    let src = Source::new(Arc::new(memory), from..from + len).unwrap();
    let dst = Destination::new(Memory::new(to + len + 1).unwrap(), to..to + len).unwrap();
    let descriptor = channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap();
    channel.submit(descriptor).unwrap()
}

/// Every byte arrived, and none beside.
fn check(submitted: Submitted<Memcpy>, len: usize, from: usize, to: usize) {
    let finished = block_on(submitted.finish());
    assert_eq!(finished.result, Ok(()));
    let memory = finished.buffers.unwrap().0.into_memory();
    let expected = [&vec![0; to], &pattern(from + len)[from..], &[0]].concat();
    // Not by `assert_eq!`, which would print it all.
    assert!(memory[..to + len + 1] == expected);
}

fn copy(channel: &Channel, len: usize, from: usize, to: usize) {
    let submitted = submit(channel, len, from, to);
    channel.issue_pending();
    check(submitted, len, from, to);
}

#[test]
fn copies_of_every_size_within_reach_and_out_of_it() {
    for kind in [Some(IrqKind::Msi), Some(IrqKind::Intx), None] {
        for near in [true, false] {
            let bench = Bench::new(kind, near);
            assert_eq!(bench.device.interrupt(), kind);
            let channel = bench.channel();
            for (len, from, to) in [
                (1, 0, 0),
                (3, 5, 4095),
                (4096, 1, 2),
                (4097, 4095, 3),
                (BIG, 13, 4091),
            ] {
                copy(&channel, len, from, to);
            }
            let shown = bench.device.to_string();
            let bounced = if near { "bounced=0" } else { "bounced=10" };
            assert!(shown.contains(bounced), "{shown}");
            assert_eq!(channel.counters().copies, 5);
            assert_eq!(channel.counters().errors, 0);
        }
    }
}

#[test]
fn a_chunk_takes_two_transfers_and_their_interrupts() {
    let bench = Bench::new(Some(IrqKind::Msi), false);
    let channel = bench.channel();
    copy(&channel, 3 * BUFFER_LEN, 0, 0);
    assert_eq!(bench.fake.transfers(), 6);
    let shown = bench.device.to_string();
    assert!(
        shown.starts_with("edu 00:03.0 QEMU educational device version=1.0 bits=33 irq=msi\n"),
        "{shown}"
    );
    let state = "\n  channel 0: running waiting=0 transfers=6 bounced=2 interrupts=";
    assert!(shown.contains(state), "{shown}");
    assert!(!shown.contains("interrupts=0"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 24 }))]

    #[test]
    fn any_copy_arrives(
        len in 1..if cfg!(miri) { 5000 } else { 20000usize },
        from in 0..9000usize,
        to in 0..9000usize,
        near: bool,
    ) {
        let bench = Bench::new(Some(IrqKind::Msi), near);
        copy(&bench.channel(), len, from, to);
    }
}

#[test]
fn operations_complete_in_order() {
    let bench = Bench::new(Some(IrqKind::Msi), false);
    let channel = bench.channel();
    let all: Vec<_> = (1..=8).map(|n| submit(&channel, n * 100, n, 0)).collect();
    std::thread::sleep(SOON);
    assert_eq!(
        bench.fake.transfers(),
        0,
        "nothing runs before it is issued"
    );
    channel.issue_pending();
    for (n, submitted) in all.into_iter().enumerate().rev() {
        let n = n + 1;
        if n == 8 {
            block_on(submitted.fence().wait()).unwrap();
        }
        assert!(submitted.fence().is_signalled(), "all before the last");
        check(submitted, n * 100, n, 0);
    }
}

#[test]
fn the_queue_is_bounded() {
    let bench = Bench::new(Some(IrqKind::Msi), true);
    let channel = bench.channel();
    let mut all = Vec::new();
    for _ in 0..crate::chan::SLOTS {
        all.push(submit(&channel, 8, 0, 0));
    }
    let src = Source::new(Arc::new(Memory::new(8).unwrap()), 0..8).unwrap();
    let dst = Destination::new(Memory::new(8).unwrap(), 0..8).unwrap();
    let descriptor = channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap();
    let error = channel.submit(descriptor).unwrap_err();
    assert_eq!(error.reason, SubmitReason::Full);
    let late = block_on(channel.submit_wait(error.descriptor)).unwrap();
    channel.issue_pending();
    for submitted in all {
        check(submitted, 8, 0, 0);
    }
    assert_eq!(block_on(late.finish()).result, Ok(()));
}

#[test]
fn what_is_too_long_is_refused() {
    let bench = Bench::new(None, true);
    let channel = bench.channel();
    let len = 65537;
    let src = Source::new(Arc::new(Memory::new(len).unwrap()), 0..len).unwrap();
    let dst = Destination::new(Memory::new(len).unwrap(), 0..len).unwrap();
    let error = channel.prep_memcpy(dst, src, Flags::empty()).unwrap_err();
    assert_eq!(error.reason, PrepReason::TooLong { limit: 65536 });
}

#[test]
fn lost_interrupts_cost_time_and_nothing_else() {
    for kind in [IrqKind::Msi, IrqKind::Intx] {
        let bench = Bench::new(Some(kind), false);
        bench.fake.set(Faults {
            lose_interrupts: true,
            ..Faults::default()
        });
        copy(&bench.channel(), 100, 1, 2);
    }
}

#[test]
fn a_device_that_never_finishes_fails_in_time_and_works_again_when_it_does() {
    let limits = Options {
        transfer_limit: SOON,
        ..options()
    };
    let bench = Bench::with(Some(IrqKind::Msi), false, limits);
    let hang = Faults {
        hang: true,
        ..Faults::default()
    };
    let channel = bench.channel();
    bench.fake.set(hang);
    let first = submit(&channel, 100, 0, 0);
    let second = submit(&channel, 100, 0, 0);
    channel.issue_pending();
    let begun = Instant::now();
    for submitted in [first, second] {
        let finished = block_on(submitted.finish());
        assert_eq!(finished.result, Err(FenceError::Timeout));
        assert!(finished.buffers.is_some());
    }
    assert!(begun.elapsed() < 20 * SOON);
    assert!(!bench.fake.is_bus_master(), "it reaches no memory any more");
    assert!(bench.device.to_string().contains(" stalled\n"));
    block_on(channel.release());
    let chan = bench.registry.channel("dma0chan0").unwrap();
    let error = block_on(chan.request()).unwrap_err();
    let not_ready = StartError::NotReady {
        status: 1,
        errors: 0,
    };
    assert_eq!(error, RequestError::Start(not_ready));
    bench.fake.set(Faults::default());
    let channel = bench.channel();
    copy(&channel, 5000, 1, 2);
    // The same without a new client in between.
    bench.fake.set(hang);
    let submitted = submit(&channel, 100, 0, 0);
    channel.issue_pending();
    assert_eq!(
        block_on(submitted.finish()).result,
        Err(FenceError::Timeout)
    );
    bench.fake.set(Faults::default());
    std::thread::sleep(SOON);
    copy(&channel, 100, 3, 5);
    assert!(bench.device.to_string().ends_with(" timeouts=2"));
}

#[test]
fn termination_gives_up_what_was_submitted_and_nothing_later() {
    let bench = Bench::new(Some(IrqKind::Msi), false);
    let channel = bench.channel();
    let early: Vec<_> = (0..4).map(|_| submit(&channel, BIG, 0, 0)).collect();
    channel.issue_pending();
    let given_up = channel.terminate_all();
    let later = submit(&channel, 50, 0, 0);
    channel.issue_pending();
    assert_eq!(block_on(given_up.wait()), Ok(()));
    for submitted in early {
        let finished = submitted.try_finish().expect("before the fence");
        assert_eq!(finished.result, Err(FenceError::Terminated));
        assert!(finished.buffers.is_some());
    }
    check(later, 50, 0, 0);
    assert!(bench.fake.transfers() < 2 * CHUNKS, "not all was done");
}

#[test]
fn a_pause_takes_effect_after_the_transfer_and_does_nothing_again() {
    let bench = Bench::new(Some(IrqKind::Msi), false);
    let channel = bench.channel();
    let first = submit(&channel, BIG, 3, 1);
    channel.issue_pending();
    while bench.fake.transfers() < 5 {
        std::thread::yield_now();
    }
    assert_eq!(block_on(channel.pause()), Ok(()));
    let transfers = bench.fake.transfers();
    assert!(transfers < 2 * CHUNKS);
    let second = submit(&channel, 100, 5, 0);
    channel.issue_pending();
    std::thread::sleep(SOON);
    assert_eq!(bench.fake.transfers(), transfers, "it rests");
    channel.resume();
    check(first, BIG, 3, 1);
    check(second, 100, 5, 0);
    // A chunk that had come halfway is done anew.
    assert!((2..=3).contains(&(bench.fake.transfers() - 2 * CHUNKS)));
}

#[test]
fn termination_stop_and_removal_end_what_rests() {
    let bench = Bench::new(Some(IrqKind::Intx), true);
    let channel = bench.channel();
    assert_eq!(block_on(channel.pause()), Ok(()));
    let given_up = submit(&channel, 100, 0, 0);
    channel.issue_pending();
    assert_eq!(block_on(channel.terminate_all().wait()), Ok(()));
    let result = block_on(given_up.finish()).result;
    assert_eq!(result, Err(FenceError::Terminated));
    let held = submit(&channel, 100, 0, 0);
    channel.issue_pending();
    std::thread::sleep(SOON);
    assert_eq!(bench.fake.transfers(), 0, "the pause goes on");
    block_on(channel.release());
    assert_eq!(block_on(held.finish()).result, Err(FenceError::Terminated));
    let channel = bench.channel();
    copy(&channel, 100, 0, 0);
    assert_eq!(block_on(channel.pause()), Ok(()));
    let held = submit(&channel, 100, 1, 2);
    channel.issue_pending();
    let device = bench.device.device();
    let removal = block_on(bench.registry.unregister(device, SOON));
    assert_eq!((removal.by_cpu, removal.lost), (1, 0));
    check(held, 100, 1, 2);
}

#[test]
fn a_stopped_channel_lets_go_and_starts_again() {
    let bench = Bench::new(Some(IrqKind::Msi), false);
    let channel = bench.channel();
    assert!(bench.fake.is_bus_master());
    let pending: Vec<_> = (0..3).map(|_| submit(&channel, BIG, 0, 0)).collect();
    channel.issue_pending();
    block_on(channel.release());
    assert!(!bench.fake.is_bus_master());
    for submitted in pending {
        let finished = block_on(submitted.finish());
        assert_eq!(finished.result, Err(FenceError::Terminated));
        assert!(finished.buffers.is_some());
    }
    copy(&bench.channel(), 77, 1, 1);
}

#[test]
fn a_removal_gives_everything_back() {
    for kind in [Some(IrqKind::Msi), Some(IrqKind::Intx), None] {
        let fake = Fake::healthy(kind);
        let registry = Registry::new();
        let device = block_on(probe_with(fake.function(false), &registry, options())).unwrap();
        let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        assert_eq!(fake.is_bound(), kind.is_some());
        let submitted = submit(&channel, 9000, 3, 1);
        channel.issue_pending();
        let chan = (*channel).clone();
        let removal = async move {
            chan.removed().await;
            channel.release().await;
        };
        hal::task::spawn("holder", removal);
        let removal = block_on(device.remove(LONG));
        assert_eq!(
            (removal.revoked, removal.lost, removal.leaked),
            (0, 0, 0),
            "told in time"
        );
        check(submitted, 9000, 3, 1);
        assert!(!fake.is_bus_master() && !fake.is_bound());
        assert!(registry.devices().is_empty());
        fake.close();
    }
}

#[test]
fn what_a_hanging_device_does_not_drain_is_done_elsewhere() {
    let fake = Fake::healthy(Some(IrqKind::Intx));
    let registry = Registry::new();
    let limits = Options {
        transfer_limit: 6 * SOON,
        ..options()
    };
    let device = block_on(probe_with(fake.function(true), &registry, limits)).unwrap();
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    fake.set(Faults {
        hang: true,
        ..Faults::default()
    });
    let all = [submit(&channel, 100, 1, 0), submit(&channel, 5000, 2, 3)];
    channel.issue_pending();
    let removal = block_on(device.remove(SOON));
    let expected = Removal {
        in_flight: 2,
        by_cpu: 2,
        revoked: 1,
        ..Removal::default()
    };
    assert_eq!(removal, expected);
    assert!(!fake.is_bus_master() && !fake.is_bound());
    let [first, second] = all;
    check(first, 100, 1, 0);
    check(second, 5000, 2, 3);
    fake.close();
}

#[test]
fn a_device_that_is_gone_is_found_out_left_alone_and_removed() {
    let fake = Fake::healthy(Some(IrqKind::Msi));
    let registry = Registry::new();
    let device = block_on(probe_with(fake.function(false), &registry, options())).unwrap();
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    fake.set(Faults {
        all_ones: true,
        ..Faults::default()
    });
    let submitted = submit(&channel, 100, 0, 0);
    channel.issue_pending();
    let finished = block_on(submitted.finish());
    assert_eq!(finished.result, Err(FenceError::Gone));
    assert!(finished.buffers.is_some());
    assert!(device.is_gone() && device.to_string().contains(" gone\n"));
    let accesses = fake.accesses();
    let src = Source::new(Arc::new(Memory::new(8).unwrap()), 0..8).unwrap();
    let dst = Destination::new(Memory::new(8).unwrap(), 0..8).unwrap();
    let descriptor = channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap();
    let error = channel.submit(descriptor).unwrap_err();
    assert_eq!(error.reason, SubmitReason::Gone);
    drop(channel);
    assert_eq!(block_on(device.remove(SOON)).lost, 0);
    assert_eq!(fake.accesses(), accesses);
    assert!(!fake.is_bound());
    fake.close();
}

#[test]
fn its_channel_is_private() {
    let bench = Bench::new(Some(IrqKind::Msi), true);
    let info = bench.device.device().info();
    assert_eq!(
        info.capabilities,
        Capabilities::MEMCPY | Capabilities::PRIVATE
    );
    let src = Source::new(Arc::new(Memory::new(8).unwrap()), 0..8).unwrap();
    let dst = Destination::new(Memory::new(8).unwrap(), 0..8).unwrap();
    let copied = block_on(bench.registry.copy(dst, src)).unwrap();
    assert_eq!(copied.via.name(), "cpu");
}

fn refused(fake: &Arc<Fake>, change: impl FnOnce(&mut hal::pci::Function)) -> ProbeError {
    let mut function = fake.function(true);
    change(&mut function);
    let registry = Registry::new();
    let limits = Options {
        transfer_limit: SOON,
        ..options()
    };
    let error = block_on(probe_with(function, &registry, limits)).unwrap_err();
    assert!(registry.devices().is_empty());
    assert!(!fake.is_bus_master() && !fake.is_bound());
    assert_eq!(error.to_string().lines().count(), 1);
    fake.close();
    error
}

#[test]
fn what_is_no_such_device_is_refused() {
    let kind = Some(IrqKind::Msi);
    let healthy = || Fake::healthy(kind);
    let error = refused(&healthy(), |function| function.identity.device = 0x11e9);
    assert_eq!(error.to_string(), "1234:11e9 is no educational device");
    let error = refused(&healthy(), |function| function.bars[0] = None);
    assert_eq!(error, ProbeError::NoBar);
    let fake = healthy();
    fake.set(Faults {
        all_ones: true,
        ..Faults::default()
    });
    assert_eq!(refused(&fake, |_| {}), ProbeError::Gone);
    let fake = healthy();
    fake.set(Faults {
        dead: true,
        ..Faults::default()
    });
    assert!(matches!(
        refused(&fake, |_| {}),
        ProbeError::NotAlive { read: 7, .. }
    ));
    let error = refused(&Fake::new(0x0100_00ee, BITS, kind), |_| {});
    assert_eq!(error, ProbeError::Identification(0x0100_00ee));
    let error = refused(&Fake::new(0x0201_00ed, BITS, kind), |_| {});
    assert_eq!(error, ProbeError::Version { major: 2, minor: 1 });
}

#[test]
fn a_transfer_of_whoever_had_it_before_is_waited_for() {
    let fake = Fake::healthy(None);
    fake.left_running(Duration::from_secs(3600));
    assert_eq!(refused(&fake, |_| {}), ProbeError::Busy);
    let fake = Fake::healthy(None);
    fake.left_running(Duration::from_millis(20));
    let registry = Registry::new();
    assert!(block_on(probe_with(fake.function(true), &registry, options())).is_ok());
    assert_eq!(fake.transfers(), 1);
    fake.close();
}
