//! Descriptors: copies, fills, null descriptors, chains and doorbells.

#![forbid(unsafe_code)]

mod rig;

use ioat_model::{EngineConfig, Fault};
use ioat_spec::{CbVer, ChanErr, Control, Descriptor, State, channel};
use rig::{BASE, DATA, Event, LEN, Rig, copy, pattern, until};

const SRC: u64 = DATA + 3;
const DST: u64 = DATA + 0x20_0005;

#[test]
fn a_copy_moves_its_bytes_and_no_others() {
    let rig = Rig::probed(EngineConfig::default());
    for size in [1, 2, 7, 8, 63, 4096, 4097, 300_000, 1 << 20] {
        let data = pattern(size);
        rig.write(SRC, &data);
        rig.write(DST - 1, &vec![0xaa; size + 2]);
        let last = rig.submit(0, &[copy(SRC, DST, size as u32)]);
        assert_eq!(rig.settle(0), State::Idle);
        assert_eq!(rig.bytes(DST, size), data, "{size}");
        assert_eq!(rig.bytes(DST - 1, 1), [0xaa]);
        assert_eq!(rig.bytes(DST + size as u64, 1), [0xaa]);
        assert_eq!(rig.status(0).address(), last);
        rig.command(0, 0x20);
    }
    let statistics = rig.engine.statistics();
    assert_eq!(statistics.descriptors, 9);
    assert_eq!(statistics.completions, 9);
    assert_eq!(statistics.doorbells, 9);
    assert_eq!(
        statistics.bytes,
        1 + 2 + 7 + 8 + 63 + 4096 + 4097 + 300_000 + (1 << 20)
    );
    assert_eq!(statistics.faults, 0);
}

#[test]
fn a_fill_repeats_its_pattern_from_the_destination_on() {
    let rig = Rig::probed(EngineConfig::default());
    for size in [1, 7, 8, 50, 64, 89, 100, 1024, 9000] {
        rig.write(DST, &vec![0xee; size + 1]);
        let fill = Descriptor::fill(
            Control::COMPLETION,
            size as u32,
            0x0807_0605_0403_0201,
            DST,
            0,
        );
        assert_eq!(rig.run(0, &[fill]), State::Idle);
        let filled = rig.bytes(DST, size + 1);
        assert!((0..size).all(|n| filled[n] == (n % 8) as u8 + 1), "{size}");
        assert_eq!(filled[size], 0xee, "{size}: no overrun");
        rig.command(0, 0x20);
    }
}

#[test]
fn page_breaks_go_on_at_the_next_addresses() {
    let rig = Rig::probed(EngineConfig::default());
    let data = pattern(8192);
    rig.write(DATA, &data[..4096]);
    rig.write(DATA + 0x5000, &data[4096..]);
    let control = Control::COMPLETION | Control::SRC_PAGE_BREAK | Control::DST_PAGE_BREAK;
    let mut both = Descriptor::copy(control, 8192, DATA, DATA + 0x10_0000, 0);
    both.0[4] = DATA + 0x5000;
    both.0[5] = DATA + 0x20_0000;
    assert_eq!(rig.run(0, &[both]), State::Idle);
    assert_eq!(rig.bytes(DATA + 0x10_0000, 4096), data[..4096]);
    assert_eq!(rig.bytes(DATA + 0x20_0000, 4096), data[4096..]);

    // One side only, and not from the start of a page.
    rig.command(0, 0x20);
    let control = Control::COMPLETION | Control::DST_PAGE_BREAK;
    let mut one = Descriptor::copy(control, 3000, DATA + 7, DATA + 0x10_0f00, 0);
    one.0[5] = DATA + 0x30_0000;
    assert_eq!(rig.run(0, &[one]), State::Idle);
    assert_eq!(rig.bytes(DATA + 0x10_0f00, 256), data[7..263]);
    assert_eq!(rig.bytes(DATA + 0x30_0000, 3000 - 256), data[263..3007]);

    // A fill keeps its phase across the break.
    rig.command(0, 0x20);
    let control = Control::COMPLETION | Control::DST_PAGE_BREAK;
    let mut fill = Descriptor::fill(control, 32, 0x0807_0605_0403_0201, DATA + 0xffd, 0);
    fill.0[5] = DATA + 0x40_0000;
    assert_eq!(rig.run(0, &[fill]), State::Idle);
    assert_eq!(rig.bytes(DATA + 0xffd, 3), [1, 2, 3]);
    assert_eq!(rig.bytes(DATA + 0x40_0000, 8), [4, 5, 6, 7, 8, 1, 2, 3]);
}

#[test]
fn what_is_not_advertised_is_a_control_error() {
    let config = EngineConfig {
        capabilities: ioat_spec::DmaCap::empty(),
        ..EngineConfig::default()
    };
    let broken = Descriptor::copy(Control::SRC_PAGE_BREAK, 64, DATA, DST, 0);
    let fill = Descriptor::fill(Control::empty(), 64, 0, DST, 0);
    for descriptor in [broken, fill] {
        let rig = Rig::probed(config.clone());
        assert_eq!(rig.run(0, &[descriptor]), State::Halted);
        assert_eq!(rig.errors(0), ChanErr::CONTROL.bits());
    }
}

#[test]
fn a_null_descriptor_touches_no_data_and_completes_at_once() {
    let rig = Rig::probed(EngineConfig::default());
    // Its addresses lead nowhere.
    let mut null = Descriptor::null(Control::COMPLETION | Control::FENCE, 0);
    null.0[1] = u64::MAX;
    null.0[2] = u64::MAX;
    rig.submit(0, &[null]);
    assert_eq!(rig.settle(0), State::Idle);
    let words = rig.machine.events();
    let done = Event::Word(Rig::done(0), Rig::slot(0, 0) | State::Idle as u64);
    assert!(words.contains(&done), "{words:?}");
    assert_eq!(rig.engine.statistics().bytes, 0);
}

#[test]
fn completion_words_are_written_only_where_asked_for() {
    let rig = Rig::probed(EngineConfig::default());
    let quiet = Descriptor::copy(Control::empty(), 64, SRC, DST, 0);
    assert_eq!(
        rig.run(0, &[quiet, quiet, copy(SRC, DST, 64), quiet]),
        State::Idle
    );
    let words: Vec<_> = rig
        .machine
        .events()
        .into_iter()
        .filter(|event| matches!(event, Event::Word(..)))
        .collect();
    let third = Rig::slot(0, 2) | State::Active as u64;
    assert_eq!(words, [Event::Word(Rig::done(0), third)]);
    assert_eq!(rig.status(0).address(), Rig::slot(0, 3));
}

#[test]
fn chancmp_zero_means_nowhere() {
    let rig = Rig::probed(EngineConfig::default());
    rig.put(Rig::slot(0, 0), copy(SRC, DST, 8));
    rig.w64(channel::base(0) + channel::CHAINADDR, Rig::slot(0, 0));
    rig.ring(0, 1);
    assert_eq!(rig.settle(0), State::Idle);
    assert_eq!(rig.engine.statistics().completions, 0);
}

#[test]
fn data_is_visible_before_the_completion_and_that_before_the_interrupt() {
    let rig = Rig::probed(EngineConfig::default());
    rig.enable_messages();
    let copy = Descriptor::copy(Control::COMPLETION | Control::INT_EN, 64, SRC, DST, 0);
    rig.run(0, &[copy]);
    let events = rig.machine.events();
    let place = |wanted: Event| events.iter().position(|event| *event == wanted);
    let data = place(Event::Data(DST)).expect("data");
    let word = place(Event::Word(Rig::done(0), Rig::slot(0, 0) | 1)).expect("completion");
    let message = place(Event::Message(0)).expect("interrupt");
    assert!(data < word && word < message, "{events:?}");
}

#[test]
fn chainaddr_arms_and_restarts_the_count() {
    for halves in [false, true] {
        let rig = Rig::probed(EngineConfig::default());
        assert_eq!(
            rig.run(0, &[copy(SRC, DST, 8), copy(SRC, DST, 8)]),
            State::Idle
        );
        let chain = channel::base(0) + channel::CHAINADDR;
        if halves {
            rig.w32(chain, Rig::slot(0, 0) as u32);
            assert_eq!(rig.state(0), State::Idle, "half an address is none");
            rig.w32(chain + 4, 0);
        } else {
            rig.w64(chain, Rig::slot(0, 0));
        }
        assert_eq!(rig.status(0).0, 4, "ARMED, and no address");
        rig.ring(0, 1);
        assert_eq!(rig.settle(0), State::Idle);
        assert_eq!(rig.status(0).address(), Rig::slot(0, 0));
        assert_eq!(rig.engine.statistics().descriptors, 3);
    }
}

#[test]
fn active_shows_in_the_read_after_the_doorbell() {
    let rig = Rig::probed(EngineConfig::default());
    for _ in 0..50 {
        rig.submit(0, &[copy(SRC, DST, 1 << 20)]);
        let state = rig.state(0);
        assert!(matches!(state, State::Active | State::Idle), "{state:?}");
        rig.settle(0);
    }
}

#[test]
fn dmacount_wraps_on_a_descriptor_linked_to_itself() {
    let rig = Rig::probed(EngineConfig::default());
    let slot = Rig::slot(0, 0);
    rig.put(slot, Descriptor::copy(Control::empty(), 1, SRC, DST, slot));
    rig.arm(0);
    rig.ring(0, 65_535);
    until("65535 copies", || rig.state(0) == State::Idle);
    rig.ring(0, 4);
    assert_eq!(rig.settle(0), State::Idle);
    assert_eq!(rig.engine.statistics().descriptors, 65_540);
}

#[test]
fn the_link_is_read_anew_and_nothing_behind_dmacount_is_looked_at() {
    let rig = Rig::probed(EngineConfig::default());
    // The first descriptor's link leads nowhere, as the driver has not appended yet.
    rig.put(
        Rig::slot(0, 0),
        Descriptor::copy(Control::empty(), 8, SRC, DST, u64::MAX),
    );
    rig.arm(0);
    rig.ring(0, 1);
    assert_eq!(rig.settle(0), State::Idle);
    let elsewhere = DATA + 0x30_0000;
    rig.write(Rig::slot(0, 0) + 24, &elsewhere.to_le_bytes());
    rig.put(elsewhere, copy(SRC, DST, 8));
    rig.ring(0, 2);
    assert_eq!(rig.settle(0), State::Idle);
    assert_eq!(rig.status(0).address(), elsewhere);
    assert_eq!(rig.errors(0), 0);
}

#[test]
fn channels_work_side_by_side() {
    let config = EngineConfig {
        channels: 8,
        ..EngineConfig::new(CbVer::V3_4)
    };
    let rig = Rig::probed(config);
    let data = pattern(65536);
    rig.write(DATA, &data);
    for n in 0..8 {
        let at = |k: u64| DATA + 0x10_0000 + (n as u64 * 4 + k) * 0x1_0000;
        let chain: Vec<_> = (0..4).map(|k| copy(DATA, at(k), 65536)).collect();
        rig.submit(n, &chain);
    }
    for n in 0..8 {
        assert_eq!(rig.settle(n), State::Idle);
        for k in 0..4 {
            assert_eq!(
                rig.bytes(DATA + 0x10_0000 + (n as u64 * 4 + k) * 0x1_0000, 65536),
                data
            );
        }
    }
}

#[test]
fn bus_mastering_off_stops_all_access_and_on_goes_on() {
    let rig = Rig::probed(EngineConfig::default());
    let data = pattern(1 << 20);
    rig.write(SRC, &data);
    // More than can be done while the test looks: a descriptor that follows itself.
    let slot = Rig::slot(0, 0);
    rig.put(
        slot,
        Descriptor::copy(Control::empty(), 1 << 20, SRC, DST, slot),
    );
    rig.arm(0);
    rig.ring(0, 65_535);
    until("the first", || rig.engine.statistics().descriptors > 0);
    rig.bus_master(false);
    let before = rig.machine.events().len();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(rig.machine.events().len(), before, "nothing moves");
    assert_eq!(rig.state(0), State::Active);
    let done = rig.engine.statistics().descriptors;
    rig.bus_master(true);
    until("more", || rig.engine.statistics().descriptors > done);
    assert_eq!(rig.bytes(DST, data.len()), data);
}

#[test]
fn work_waits_for_bus_mastering_and_is_then_done_once() {
    let rig = Rig::probed(EngineConfig::default());
    rig.bus_master(false);
    rig.write(SRC, &[1, 2, 3, 4]);
    rig.submit(0, &[copy(SRC, DST, 4); 20]);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(rig.state(0), State::Active);
    assert_eq!(rig.bytes(DST, 4), [0; 4]);
    rig.bus_master(true);
    assert_eq!(rig.settle(0), State::Idle);
    assert_eq!(rig.bytes(DST, 4), [1, 2, 3, 4]);
    assert_eq!(rig.engine.statistics().descriptors, 20);
}

#[test]
fn low_power_states_stop_dma_too() {
    let rig = Rig::probed(EngineConfig::default());
    rig.config_write(0xe4, 3);
    rig.submit(0, &[copy(SRC, DST, 8)]);
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert_eq!(rig.state(0), State::Active);
    rig.config_write(0xe4, 0);
    assert_eq!(rig.settle(0), State::Idle);
}

#[test]
fn sizes_beyond_the_limit_of_a_small_xfercap_fail() {
    let config = EngineConfig {
        faults: vec![Fault::XferCap(12)],
        ..EngineConfig::default()
    };
    let rig = Rig::probed(config);
    assert_eq!(rig.r8(ioat_spec::device::XFERCAP), 12);
    assert_eq!(rig.run(0, &[copy(SRC, DST, 4096)]), State::Idle);
    assert_eq!(rig.run(0, &[copy(SRC, DST, 4097)]), State::Halted);
    assert_eq!(rig.errors(0), ChanErr::LENGTH.bits());
}

#[test]
fn the_last_byte_of_memory_can_be_copied() {
    let rig = Rig::probed(EngineConfig::default());
    let end = BASE + LEN as u64;
    rig.write(SRC, &[1, 2, 3, 4]);
    assert_eq!(rig.run(0, &[copy(SRC, end - 4, 4)]), State::Idle);
    assert_eq!(rig.bytes(end - 4, 4), [1, 2, 3, 4]);
    assert_eq!(rig.run(0, &[copy(SRC, end - 4, 5)]), State::Halted);
    assert_eq!(rig.errors(0), ChanErr::WRITE_DATA.bits());
}
