//! Faults on order come true, once where once is said, and the statistics tell.

#![forbid(unsafe_code)]

mod rig;

use std::time::Duration;

use ioat_model::{EngineConfig, Fault};
use ioat_spec::{ChanErr, Control, Descriptor, State, channel, device, pci};
use rig::{DATA, Rig, copy, pattern, until};

const SRC: u64 = DATA;
const DST: u64 = DATA + 0x20_0000;

fn rig(fault: Fault) -> Rig {
    Rig::probed(EngineConfig {
        faults: vec![fault],
        ..EngineConfig::default()
    })
}

fn three() -> [Descriptor; 3] {
    [copy(SRC, DST, 8); 3]
}

fn recover(rig: &Rig, n: usize) {
    rig.w32(channel::base(n) + channel::CHANERR, u32::MAX);
    rig.config_write(pci::CHANERR_INT, u32::MAX);
    rig.command(n, 0x20);
}

#[test]
fn a_hanging_channel_hangs_until_reset_and_once() {
    let rig = rig(Fault::Hang(2));
    rig.submit(0, &three());
    until("the first", || rig.status(0).address() == Rig::slot(0, 0));
    std::thread::sleep(Duration::from_millis(5));
    rig.command(0, 0x04);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(rig.state(0), State::Active, "SUSPEND does not help");
    assert_eq!(rig.run(1, &three()), State::Idle, "others work");
    recover(&rig, 0);
    assert_eq!(rig.state(0), State::Halted);
    assert_eq!(rig.run(0, &three()), State::Idle);
    assert_eq!(rig.engine.statistics().faults, 1);
}

#[test]
fn hang_zero_takes_the_first_descriptor_of_any_kind() {
    let rig = rig(Fault::Hang(0));
    rig.submit(0, &[Descriptor::null(Control::COMPLETION, 0)]);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(rig.status(0).0, State::Active as u64);
}

#[test]
fn an_ordered_error_fails_one_descriptor_with_its_bit() {
    for (fault, bit) in [
        (Fault::Error(2, 8), ChanErr::READ_DATA),
        (Fault::Error(2, 7), ChanErr::DMA_INTEGRITY),
    ] {
        let rig = rig(fault);
        // Null descriptors do not count.
        let null = Descriptor::null(Control::empty(), 0);
        let chain = [null, copy(SRC, DST, 8), null, copy(SRC, DST, 8)];
        assert_eq!(rig.run(0, &chain), State::Halted);
        assert_eq!(rig.errors(0), bit.bits());
        assert_eq!(rig.status(0).address(), Rig::slot(0, 2));
        recover(&rig, 0);
        assert_eq!(rig.run(0, &three()), State::Idle);
    }
}

#[test]
fn a_dropped_interrupt_is_dropped_once() {
    let rig = rig(Fault::DropIrq(1));
    rig.enable_messages();
    let descriptor = Descriptor::null(Control::COMPLETION | Control::INT_EN, 0);
    rig.run(0, &[descriptor]);
    assert_eq!(rig.machine.messages(), []);
    assert_eq!(rig.run(0, &[descriptor]), State::Idle);
    assert_eq!(rig.machine.messages(), [0]);
}

#[test]
fn every_nth_interrupt_can_be_dropped() {
    for (every, arrive) in [(1, 0), (3, 4)] {
        let rig = rig(Fault::DropIrqs(every));
        rig.enable_messages();
        let descriptor = Descriptor::null(Control::COMPLETION | Control::INT_EN, 0);
        for _ in 0..6 {
            rig.run(0, &[descriptor]);
        }
        assert_eq!(rig.machine.messages().len(), arrive, "every {every}");
        assert_eq!(rig.engine.statistics().faults, 6 / every);
    }
}

/// Whether the first half of what was copied has arrived, and the second has.
fn halves(rig: &Rig, len: usize) -> [bool; 2] {
    let (src, dst) = (rig.bytes(SRC, len), rig.bytes(DST, len));
    [0..len / 2, len / 2..len].map(|half| src[half.clone()] == dst[half])
}

#[test]
fn an_engine_freezes_in_the_middle_of_a_copy() {
    let rig = rig(Fault::Freeze(2));
    rig.write(SRC, &pattern(100_000));
    assert_eq!(rig.engine.answers_in(), Some(Duration::ZERO));
    let small = copy(SRC, DST + 0x10_0000, 8);
    rig.submit(0, &[small, copy(SRC, DST, 100_000), small]);
    until("frozen", || rig.engine.answers_in().is_none());
    assert_eq!(halves(&rig, 100_000), [true, false]);
    let done = rig.engine.statistics();
    assert_eq!((done.descriptors, done.bytes, done.faults), (1, 8, 1));
    let events = rig.machine.events().len();
    rig.command(0, 0x20);
    rig.ring(1, 1);
    assert_eq!(rig.r64(channel::base(0) + channel::CHANSTS), u64::MAX);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(rig.machine.events().len(), events);
}

#[test]
fn an_engine_can_freeze_at_any_moment() {
    let rig = rig(Fault::Slow(1_000_000));
    rig.write(SRC, &pattern(1000));
    rig.submit(0, &[copy(SRC, DST, 1000)]);
    until("it is under way", || rig.state(0) == State::Active);
    rig.engine.freeze();
    assert_eq!(rig.engine.answers_in(), None);
    // Where the copy had begun, half of it has been done.
    assert!(!halves(&rig, 1000)[1]);
    assert_eq!(rig.engine.statistics().descriptors, 0);
    let events = rig.machine.events().len();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(rig.machine.events().len(), events);
}

#[test]
fn answers_can_be_late() {
    let rig = rig(Fault::Late(700));
    assert_eq!(rig.engine.answers_in(), Some(Duration::from_micros(700)));
    assert_eq!(rig.run(0, &three()), State::Idle);
}

#[test]
fn an_engine_that_is_gone_reads_all_ones_and_counts() {
    let rig = rig(Fault::AllOnes(2));
    rig.submit(0, &three());
    until("gone", || rig.r8(device::CBVER) == 0xff);
    assert_eq!(rig.r64(channel::base(0) + channel::CHANSTS), u64::MAX);
    assert_eq!(rig.config(0), u32::MAX);
    let before = rig.engine.statistics();
    assert_eq!(before.descriptors, 2);
    rig.ring(1, 1);
    rig.command(0, 0x20);
    rig.r32(device::DMACAPABILITY);
    let after = rig.engine.statistics();
    assert_eq!(after.mmio_after_gone - before.mmio_after_gone, 3);
    assert_eq!(after.config_after_gone, before.config_after_gone);
    rig.config_write(4, 0);
    assert_eq!(rig.config(4), u32::MAX);
    let config = rig.engine.statistics().config_after_gone;
    assert_eq!(config - after.config_after_gone, 2);
    let events = rig.machine.events().len();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(rig.machine.events().len(), events);
    rig.engine.reset();
    assert_eq!(rig.r8(device::CBVER), 0xff, "for ever");
}

#[test]
fn an_engine_can_vanish_at_any_moment() {
    let rig = Rig::probed(EngineConfig::default());
    let chain: Vec<_> = (0..500).map(|_| copy(SRC, DST, 1 << 20)).collect();
    rig.submit(0, &chain);
    rig.engine.vanish();
    let events = rig.machine.events().len();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(rig.machine.events().len(), events);
    assert_eq!(rig.r32(channel::base(0)), u32::MAX);
}

#[test]
fn a_dirty_engine_is_as_somebody_left_it_and_can_be_taken_over() {
    let rig = rig(Fault::Dirty);
    assert_eq!(rig.state(0), State::Halted);
    assert_ne!(rig.errors(0), 0);
    assert_ne!(rig.config(pci::CHANERR_INT), 0);
    assert_eq!(rig.state(1), State::Active);
    for n in 0..4 {
        assert_ne!(rig.r16(channel::base(n) + channel::CHANCTRL) & 0x100, 0);
    }
    // The active one can be suspended.
    rig.command(1, 0x04);
    until("suspended", || rig.state(1) == State::Suspended);
    for n in 0..4 {
        recover(&rig, n);
        assert_eq!(rig.run(n, &three()), State::Idle);
    }
    // A machine's restart leaves it dirty again, a reset by the guest does not.
    rig.engine.reset();
    assert_eq!(rig.state(1), State::Active);
    rig.config_write(0x98, 0x8000);
    assert_eq!(rig.state(1), State::Halted);
    assert_eq!(rig.config(pci::CHANERR_INT), 0);
}

#[test]
fn a_reset_that_never_ends_shows_in_chancmd() {
    let rig = rig(Fault::NoReset);
    rig.command(0, 0x20);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(rig.r8(channel::base(0) + channel::CHANCMD), 0x20);
}

#[test]
fn registers_lie_where_they_are_told_to() {
    assert_eq!(rig(Fault::ChanCnt(0)).r8(device::CHANCNT), 0);
    assert_eq!(rig(Fault::ChanCnt(31)).r8(device::CHANCNT), 31);
    assert_eq!(rig(Fault::XferCap(0)).r8(device::XFERCAP), 0);
}

#[test]
fn a_bar_can_ask_for_more_than_there_is() {
    let rig = rig(Fault::Bar(1 << 40));
    assert_eq!(rig.engine.bar_len(), 1 << 40);
    rig.config_write(0x10, u32::MAX);
    rig.config_write(0x14, u32::MAX);
    assert_eq!((rig.config(0x10), rig.config(0x14)), (4, 0xffff_ff00));
    assert_eq!(rig.r8(device::CBVER), 0x32);
}

#[test]
fn capability_lists_can_loop() {
    let rig = rig(Fault::CapabilityLoop);
    let mut at = rig.config(0x34) as usize & 0xff;
    for _ in 0..100 {
        at = rig.config(at) as usize >> 8 & 0xff;
        assert_ne!(at, 0);
    }
    assert_eq!(rig.config(0x100) >> 20, 0x100);
}
