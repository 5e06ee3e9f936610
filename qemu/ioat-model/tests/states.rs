//! The state machine: arming, suspending, resetting, and what each leaves behind.

#![forbid(unsafe_code)]

mod rig;

use std::time::Duration;

use ioat_model::EngineConfig;
use ioat_spec::{ChanErr, State, channel, device, pci};
use rig::{DATA, Rig, copy, until};

const SRC: u64 = DATA;
const DST: u64 = DATA + 0x20_0000;

/// A channel with much to do.
fn busy(rig: &Rig) {
    let chain: Vec<_> = (0..200).map(|_| copy(SRC, DST, 1 << 20)).collect();
    rig.submit(0, &chain);
}

#[test]
fn reset_is_done_before_the_next_read_whatever_is_under_way() {
    let rig = Rig::probed(EngineConfig::default());
    for _ in 0..20 {
        busy(&rig);
        rig.command(0, 0x20);
        assert_eq!(rig.r8(channel::base(0) + channel::CHANCMD), 0);
        assert_eq!(rig.status(0).0, State::Halted as u64);
        let before = rig.machine.events().len();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(
            rig.machine.events().len(),
            before,
            "nothing moves after RESET"
        );
    }
    assert_eq!(rig.errors(0), 0);
}

#[test]
fn reset_keeps_chanctrl_and_forgets_the_chain() {
    let rig = Rig::probed(EngineConfig::default());
    rig.run(0, &[copy(SRC, DST, 8)]);
    rig.command(0, 0x20);
    let base = channel::base(0);
    assert_eq!(rig.r16(base + channel::CHANCTRL) & 0x1c, 0x1c);
    assert_eq!(rig.r64(base + channel::CHAINADDR), 0);
    assert_eq!(rig.r64(base + channel::CHANCMP), 0);
    assert_eq!(rig.r16(base + channel::DMACOUNT), 0);
}

#[test]
fn a_doorbell_without_a_chain_does_nothing() {
    let rig = Rig::probed(EngineConfig::default());
    rig.ring(0, 5);
    assert_eq!(rig.state(0), State::Halted);
    rig.arm(0);
    assert_eq!(rig.state(0), State::Armed, "the old count means nothing");
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(rig.state(0), State::Armed);
}

#[test]
fn suspend_ends_active_and_idle() {
    let rig = Rig::probed(EngineConfig::default());
    busy(&rig);
    rig.command(0, 0x04);
    until("suspended", || rig.state(0) == State::Suspended);
    let before = rig.machine.events().len();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(rig.machine.events().len(), before);
    rig.command(0, 0x20);
    rig.run(0, &[copy(SRC, DST, 8)]);
    rig.command(0, 0x04);
    assert_eq!(rig.state(0), State::Suspended);
}

#[test]
fn suspend_in_halted_and_armed_changes_nothing() {
    let rig = Rig::probed(EngineConfig::default());
    rig.command(0, 0x04);
    assert_eq!(rig.state(0), State::Halted);
    rig.arm(0);
    rig.command(0, 0x04);
    assert_eq!(rig.status(0).0, 4);
    assert_eq!(rig.errors(0), 0);
    rig.put(Rig::slot(0, 0), copy(SRC, DST, 8));
    rig.ring(0, 1);
    assert_eq!(rig.settle(0), State::Idle, "nor does it lie in wait");
}

#[test]
fn suspend_ends_without_bus_mastering_too() {
    let rig = Rig::probed(EngineConfig::default());
    rig.bus_master(false);
    rig.submit(0, &[copy(SRC, DST, 8)]);
    assert_eq!(rig.state(0), State::Active);
    rig.command(0, 0x04);
    until("suspended", || rig.state(0) == State::Suspended);
}

#[test]
fn chainaddr_takes_a_suspended_channel_back_to_work() {
    let rig = Rig::probed(EngineConfig::default());
    busy(&rig);
    rig.command(0, 0x04);
    until("suspended", || rig.state(0) == State::Suspended);
    assert_eq!(rig.run(0, &[copy(SRC, DST, 8)]), State::Idle);
    assert_eq!(rig.status(0).address(), Rig::slot(0, 0));
}

#[test]
fn resume_goes_on_where_suspend_stopped() {
    let rig = Rig::probed(EngineConfig::default());
    busy(&rig);
    rig.command(0, 0x04);
    until("suspended", || rig.state(0) == State::Suspended);
    rig.command(0, 0x10);
    assert_eq!(rig.settle(0), State::Idle);
    assert_eq!(rig.engine.statistics().descriptors, 200);
}

#[test]
fn two_commands_at_once_are_an_error() {
    let rig = Rig::probed(EngineConfig::default());
    rig.command(0, 0x24);
    assert_eq!(rig.errors(0), ChanErr::CHANCMD.bits());
    assert_eq!(rig.state(0), State::Halted);
}

#[test]
fn function_level_reset_returns_to_power_on() {
    let rig = Rig::probed(EngineConfig::default());
    busy(&rig);
    rig.w16(device::INTRDELAY, 100);
    rig.config_write(pci::CHANERRMSK_INT, 0x3e07);
    let control = rig.config(0x98);
    rig.config_write(0x98, control & 0xffff | 0x8000);
    assert_eq!(rig.status(0).0, State::Halted as u64);
    assert_eq!(rig.config(4) & 7, 0, "bus mastering is off");
    assert_eq!(rig.config(pci::CHANERRMSK_INT), 0);
    assert_eq!(rig.r16(device::INTRDELAY), 0x8000);
    assert_eq!(rig.r16(channel::base(0) + channel::CHANCTRL), 0);
    assert_eq!(rig.r8(device::INTRCTRL), 0);
    let before = rig.machine.events().len();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(rig.machine.events().len(), before);
}

#[test]
fn channels_are_reset_one_by_one() {
    let rig = Rig::probed(EngineConfig::default());
    rig.run(1, &[copy(SRC, DST, 8)]);
    rig.command(0, 0x20);
    assert_eq!(rig.status(1).address(), Rig::slot(1, 0));
    assert_eq!(rig.state(1), State::Idle);
}

#[test]
fn an_engine_at_work_shuts_down() {
    let rig = Rig::probed(EngineConfig::default());
    busy(&rig);
    rig.engine.shutdown();
    assert_eq!(rig.r8(device::CBVER), 0x32, "registers still answer");
    rig.engine.shutdown();
}
