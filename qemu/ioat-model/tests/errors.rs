//! Errors: one bit each, the channel halted, and the way back.

#![forbid(unsafe_code)]

mod rig;

use ioat_model::{EngineConfig, Irq};
use ioat_spec::{CbVer, ChanCmd, ChanErr, Control, Descriptor, Op, State, channel, pci};
use rig::{DATA, Event, Rig, copy, pattern};

const SRC: u64 = DATA;
const DST: u64 = DATA + 0x20_0000;

/// Runs `bad` after a good copy and before another: it must halt with `error` and nothing else.
#[track_caller]
fn fails(config: &EngineConfig, bad: Descriptor, error: ChanErr) {
    let rig = Rig::probed(config.clone());
    let state = rig.run(0, &[copy(SRC, DST, 8), bad, copy(SRC, DST, 8)]);
    assert_eq!(state, State::Halted);
    assert_eq!(rig.errors(0), error.bits(), "one bit");
    assert_eq!(
        rig.status(0).address(),
        Rig::slot(0, 0),
        "the last good one"
    );
    let word = rig.r64(channel::base(0) + channel::CHANSTS);
    assert!(
        rig.machine
            .events()
            .contains(&Event::Word(Rig::done(0), word))
    );
    assert_eq!(rig.engine.statistics().faults, 1);
    assert_eq!(rig.engine.statistics().descriptors, 1);
}

#[test]
fn every_error_has_its_bit() {
    let config = EngineConfig::default();
    let beyond = 1 << 48;
    let nowhere = 0x4000_0000;
    let op = |op| Descriptor::new(op, Control::COMPLETION, 64, 0);
    for (bad, error) in [
        (copy(0xffff_0000_0000_0000, DST, 64), ChanErr::SRC_ADDR),
        (copy(beyond - 63, DST, 64), ChanErr::SRC_ADDR),
        (copy(SRC, beyond, 64), ChanErr::DST_ADDR),
        (copy(SRC, u64::MAX, 64), ChanErr::DST_ADDR),
        (copy(nowhere, DST, 64), ChanErr::READ_DATA),
        (copy(0, DST, 64), ChanErr::READ_DATA),
        (copy(SRC, nowhere, 64), ChanErr::WRITE_DATA),
        (copy(SRC, DST, 0), ChanErr::LENGTH),
        (copy(SRC, DST, (2 << 20) + 1), ChanErr::LENGTH),
        (copy(SRC, DST, u32::MAX), ChanErr::LENGTH),
        (
            Descriptor::new(Op::COPY, Control::NULL, 0, 0),
            ChanErr::LENGTH,
        ),
        (
            Descriptor::fill(Control::empty(), 64, 0, nowhere, 0),
            ChanErr::WRITE_DATA,
        ),
        (
            Descriptor::fill(Control::empty(), 64, 0, beyond, 0),
            ChanErr::DST_ADDR,
        ),
        (op(Op::XOR), ChanErr::CONTROL),
        (op(Op::PQ), ChanErr::CONTROL),
        (op(Op::CRC), ChanErr::CONTROL),
        (op(Op(0x7f)), ChanErr::CONTROL),
    ] {
        fails(&config, bad, error);
    }
}

#[test]
fn forty_address_bits_where_the_part_has_no_more() {
    let narrow = EngineConfig {
        device_id: 0x3712,
        ..EngineConfig::default()
    };
    fails(&narrow, copy(1 << 40, DST, 8), ChanErr::SRC_ADDR);
    fails(
        &EngineConfig::default(),
        copy(1 << 40, DST, 8),
        ChanErr::READ_DATA,
    );
}

#[test]
fn broken_links_and_lost_descriptors_have_their_bits() {
    for (link, error) in [
        (Rig::slot(0, 1) + 32, ChanErr::NEXT_ADDR),
        (0x4000_0000, ChanErr::DESCRIPTOR),
        (!63, ChanErr::DESCRIPTOR),
    ] {
        let rig = Rig::probed(EngineConfig::default());
        rig.put(
            Rig::slot(0, 0),
            Descriptor::copy(Control::empty(), 8, SRC, DST, link),
        );
        rig.arm(0);
        rig.ring(0, 2);
        assert_eq!(rig.settle(0), State::Halted);
        assert_eq!(rig.errors(0), error.bits(), "{link:#x}");
    }
}

#[test]
fn a_misaligned_chain_is_an_error_at_once() {
    let rig = Rig::probed(EngineConfig::default());
    rig.w64(channel::base(0) + channel::CHAINADDR, Rig::slot(0, 0) + 8);
    assert_eq!(rig.errors(0), ChanErr::CHAINADDR.bits());
    assert_eq!(rig.state(0), State::Halted);
}

#[test]
fn a_completion_that_cannot_be_written_is_an_error() {
    for place in [0x4000_0000, Rig::done(0) + 4] {
        let rig = Rig::probed(EngineConfig::default());
        rig.put(Rig::slot(0, 0), copy(SRC, DST, 8));
        rig.arm(0);
        rig.w64(channel::base(0) + channel::CHANCMP, place);
        rig.ring(0, 1);
        assert_eq!(rig.settle(0), State::Halted);
        assert_eq!(rig.errors(0), ChanErr::COMPLETION_ADDR.bits());
    }
}

#[test]
fn the_first_descriptor_that_fails_leaves_address_zero() {
    let rig = Rig::probed(EngineConfig::default());
    assert_eq!(rig.run(0, &[copy(0, DST, 8)]), State::Halted);
    assert_eq!(rig.status(0).0, State::Halted as u64);
    let word = Event::Word(Rig::done(0), State::Halted as u64);
    assert!(rig.machine.events().contains(&word));
}

#[test]
fn completion_and_interrupt_of_an_error_are_chosen_by_chanctrl() {
    for (control, words, messages) in [(0x08, 0, 0), (0x0c, 1, 0), (0x18, 0, 1), (0x1d, 1, 1)] {
        let rig = Rig::probed(EngineConfig {
            irq: Irq::MsiX,
            ..EngineConfig::default()
        });
        rig.enable_messages();
        rig.put(Rig::slot(0, 0), copy(0, DST, 8));
        rig.arm(0);
        rig.w16(channel::base(0) + channel::CHANCTRL, control);
        rig.ring(0, 1);
        assert_eq!(rig.settle(0), State::Halted);
        let statistics = rig.engine.statistics();
        assert_eq!(statistics.completions, words, "{control:#x}");
        assert_eq!(rig.machine.messages().len(), messages, "{control:#x}");
    }
}

#[test]
fn masked_errors_are_recorded_and_nothing_else() {
    let rig = Rig::probed(EngineConfig::default());
    rig.w32(
        channel::base(0) + channel::CHANERRMSK,
        ChanErr::READ_DATA.bits(),
    );
    let chain = [copy(0, DST, 8), copy(SRC, DST, 8)];
    assert_eq!(rig.run(0, &chain), State::Idle);
    assert_eq!(rig.errors(0), ChanErr::READ_DATA.bits());
    assert_eq!(rig.status(0).address(), Rig::slot(0, 1));
    assert_eq!(rig.config(pci::CHANERR_INT), 0);
}

#[test]
fn what_cannot_be_fetched_is_not_stepped_over_though_its_error_is_masked() {
    let rig = Rig::probed(EngineConfig::default());
    let base = channel::base(0);
    rig.w32(base + channel::CHANERRMSK, u32::MAX);
    rig.w64(base + channel::CHAINADDR, 0x7fff_ffff_f000);
    rig.w16(base + channel::DMACOUNT, 1);
    rig::until("the error", || rig.errors(0) == ChanErr::DESCRIPTOR.bits());
    // It rests: the error that is cleared does not come again.
    rig.w32(base + channel::CHANERR, u32::MAX);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((rig.errors(0), rig.state(0)), (0, State::Active));
    rig.command(0, ChanCmd::SUSPEND.bits());
    rig::until("SUSPEND", || rig.state(0) == State::Suspended);
}

#[test]
fn halted_is_left_only_with_all_errors_clear() {
    for cbver in [CbVer::V3_2, CbVer::V3_3, CbVer::V3_4] {
        let mirrored = cbver < CbVer::V3_3;
        let rig = Rig::probed(EngineConfig::new(cbver));
        rig.run(0, &[copy(0, DST, 8)]);
        let chain = channel::base(0) + channel::CHAINADDR;
        rig.w64(chain, Rig::slot(0, 0));
        assert_eq!(rig.state(0), State::Halted, "CHANERR is set");
        rig.w32(channel::base(0) + channel::CHANERR, u32::MAX);
        assert_eq!(rig.errors(0), 0);
        assert_eq!(rig.config(pci::CHANERR_INT) != 0, mirrored, "{cbver:?}");
        rig.w64(chain, Rig::slot(0, 0));
        assert_eq!(rig.state(0) == State::Halted, mirrored, "{cbver:?}");
        rig.config_write(pci::CHANERR_INT, u32::MAX);
        rig.w64(chain, Rig::slot(0, 0));
        assert_eq!(rig.state(0), State::Armed);
    }
}

#[test]
fn chanerr_is_cleared_bit_by_bit() {
    let rig = Rig::probed(EngineConfig::default());
    rig.run(0, &[copy(0, DST, 8)]);
    let chanerr = channel::base(0) + channel::CHANERR;
    rig.w32(chanerr, 0);
    rig.w32(chanerr, !ChanErr::READ_DATA.bits());
    assert_eq!(rig.r32(chanerr), ChanErr::READ_DATA.bits());
    rig.w32(chanerr, ChanErr::READ_DATA.bits());
    assert_eq!(rig.r32(chanerr), 0);
}

#[test]
fn a_channel_works_again_after_its_reset_and_others_never_stopped() {
    let rig = Rig::probed(EngineConfig::default());
    rig.write(SRC, &pattern(4096));
    rig.run(0, &[copy(0, DST, 8)]);
    assert_eq!(rig.run(1, &[copy(SRC, DST, 4096)]), State::Idle);
    rig.w32(channel::base(0) + channel::CHANERR, u32::MAX);
    rig.config_write(pci::CHANERR_INT, u32::MAX);
    rig.command(0, 0x20);
    assert_eq!(rig.run(0, &[copy(SRC, DST + 4096, 4096)]), State::Idle);
    assert_eq!(rig.bytes(DST + 4096, 4096), pattern(4096));
}

#[test]
fn memory_that_fails_in_the_middle_is_noticed() {
    let rig = Rig::probed(EngineConfig::default());
    rig.machine.deny_reads(SRC + 0x1800..SRC + 0x1801);
    assert_eq!(rig.run(0, &[copy(SRC, DST, 0x4000)]), State::Halted);
    assert_eq!(rig.errors(0), ChanErr::READ_DATA.bits());
    let rig = Rig::probed(EngineConfig::default());
    rig.machine.deny_writes(DST + 0x3fff..DST + 0x4000);
    assert_eq!(rig.run(0, &[copy(SRC, DST, 0x4000)]), State::Halted);
    assert_eq!(rig.errors(0), ChanErr::WRITE_DATA.bits());
}
