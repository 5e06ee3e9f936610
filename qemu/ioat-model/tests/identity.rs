//! What the engine says it is, and registers that only store.

#![forbid(unsafe_code)]

mod rig;

use ioat_model::{Engine, EngineConfig, Fault, Irq};
use ioat_spec::{CbVer, DmaCap, State, channel, device, pci};
use rig::Rig;

#[test]
fn identity_follows_the_version() {
    for (cbver, id, xfercap) in [
        (CbVer::V3_2, 0x2021, 21),
        (CbVer::V3_3, 0x6f50, 20),
        (CbVer::V3_4, 0x0b00, 20),
    ] {
        let rig = Rig::new(EngineConfig::new(cbver));
        assert_eq!(rig.config(0), id << 16 | 0x8086);
        assert_eq!(rig.config(8) >> 8, 0x088000);
        assert_eq!(rig.r8(device::CBVER), cbver.0);
        assert_eq!(rig.r8(device::CHANCNT), 4);
        assert_eq!(rig.r8(device::XFERCAP), xfercap);
        let caps = DmaCap::from_bits_retain(rig.r32(device::DMACAPABILITY));
        assert!(caps.contains(DmaCap::PAGE_BREAK | DmaCap::FILL_BLOCK));
        assert!(!caps.intersects(DmaCap::XOR | DmaCap::PQ | DmaCap::CRC));
        assert_eq!(caps.contains(DmaCap::DPS), cbver == CbVer::V3_4);
    }
}

#[test]
fn every_channel_is_halted_at_power_on() {
    let config = EngineConfig {
        channels: 8,
        ..EngineConfig::default()
    };
    let rig = Rig::new(config);
    for n in 0..8 {
        assert_eq!(rig.status(n).0, State::Halted as u64);
        assert_eq!(rig.errors(n), 0);
    }
}

#[test]
fn bar_asks_for_16_kib_of_64_bit_memory() {
    let rig = Rig::new(EngineConfig::default());
    rig.config_write(0x10, u32::MAX);
    rig.config_write(0x14, u32::MAX);
    assert_eq!(
        (rig.config(0x10), rig.config(0x14)),
        (0xffff_c004, u32::MAX)
    );
    assert_eq!(rig.engine.bar_len(), 16 << 10);
}

#[test]
fn capabilities_are_listed_and_end() {
    for (irq, id) in [
        (Irq::Msi, Some(0x05)),
        (Irq::MsiX, Some(0x11)),
        (Irq::Intx, None),
    ] {
        let config = EngineConfig {
            irq,
            ..EngineConfig::default()
        };
        let rig = Rig::new(config);
        let mut found = Vec::new();
        let mut at = rig.config(0x34) as usize & 0xff;
        while at != 0 {
            let word = rig.config(at);
            found.push((word & 0xff) as u8);
            at = (word >> 8 & 0xff) as usize;
            assert!(found.len() < 10);
        }
        let expected: Vec<u8> = [Some(0x01), Some(0x10), id].into_iter().flatten().collect();
        assert_eq!(found, expected);
        assert_eq!(
            rig.config(0x100),
            0x0002_0001,
            "error reporting, and no more"
        );
        assert_eq!(rig.config(0x3c) >> 8 & 0xff, 1, "pin A");
    }
}

#[test]
fn msix_has_a_vector_for_each_channel_where_the_version_puts_it() {
    for (cbver, table, pba) in [(CbVer::V3_2, 0x2000, 0x3000), (CbVer::V3_3, 0x1000, 0x1800)] {
        let config = EngineConfig {
            irq: Irq::MsiX,
            ..EngineConfig::new(cbver)
        };
        let rig = Rig::new(config);
        assert_eq!(rig.config(0x80) >> 16 & 0x7ff, 3);
        assert_eq!((rig.config(0x84), rig.config(0x88)), (table, pba));
        assert_eq!(rig.r32(table as usize + 12), 1, "masked at first");
        rig.w64(table as usize + 16, 0xfee0_1000);
        assert_eq!(rig.r64(table as usize + 16), 0xfee0_1000);
    }
}

#[test]
fn extended_configuration_registers_obey_their_attributes() {
    let rig = Rig::new(EngineConfig {
        faults: vec![Fault::Dirty],
        ..EngineConfig::default()
    });
    assert_ne!(rig.config(pci::CHANERR_INT), 0);
    rig.config_write(pci::CHANERR_INT, 0);
    assert_ne!(rig.config(pci::CHANERR_INT), 0, "zeroes clear nothing");
    rig.config_write(pci::CHANERR_INT, u32::MAX);
    assert_eq!(rig.config(pci::CHANERR_INT), 0, "ones clear");
    rig.config_write(pci::CHANERRMSK_INT, pci::CHANERRMSK_INT_DEFAULT);
    assert_eq!(rig.config(pci::CHANERRMSK_INT), pci::CHANERRMSK_INT_DEFAULT);
    rig.config_write(pci::DMAUNCERRSTS, u32::MAX);
    assert_eq!(rig.config(pci::DMAUNCERRSTS), 0);
}

#[test]
fn identity_cannot_be_written() {
    let rig = Rig::new(EngineConfig::default());
    let before: Vec<u32> = [0x00, 0x08, 0x2c, 0x34].map(|at| rig.config(at)).to_vec();
    for at in (0..0x40).step_by(4).filter(|at| *at != 4) {
        rig.config_write(at, u32::MAX);
    }
    for at in [device::CHANCNT, device::XFERCAP, device::CBVER] {
        let value = rig.r8(at);
        rig.w8(at, !value);
        assert_eq!(rig.r8(at), value);
    }
    let after: Vec<u32> = [0x00, 0x08, 0x2c, 0x34].map(|at| rig.config(at)).to_vec();
    assert_eq!(before, after);
}

#[test]
fn in_use_is_taken_by_reading_and_given_back_by_writing_zero() {
    let rig = Rig::new(EngineConfig::default());
    let control = channel::base(1) + channel::CHANCTRL;
    assert_eq!(rig.r16(control), 0);
    assert_eq!(rig.r16(control), 0x100);
    rig.w16(control, 0x11c);
    assert_eq!(rig.r16(control), 0x11c);
    rig.w16(control, 0x01c);
    assert_eq!(rig.r16(control), 0x01c, "released, and taken by this read");
    assert_eq!(rig.r16(control), 0x11c);
}

#[test]
fn interrupt_delay_keeps_its_read_only_bit() {
    let rig = Rig::new(EngineConfig::default());
    assert_eq!(rig.r16(device::INTRDELAY), 0x8000);
    rig.w16(device::INTRDELAY, 0x7fff);
    assert_eq!(rig.r16(device::INTRDELAY), 0xbfff);
    rig.w16(device::INTRDELAY, 0);
    assert_eq!(rig.r16(device::INTRDELAY), 0x8000);
}

#[test]
fn version_3_4_registers_are_accepted_wherever_linux_writes_them() {
    let rig = Rig::new(EngineConfig::new(CbVer::V3_4));
    rig.w8(device::CHWPREFLMT, 5);
    assert_eq!(rig.r8(device::CHWPREFLMT), 5);
    for n in 0..4 {
        let base = channel::base(n);
        rig.w32(base + channel::DCACTRL, u32::MAX);
        rig.w16(base + channel::DRSCTL, 0x0109);
        rig.w8(base + channel::LTR_SWSEL, 0);
        rig.w32(base + channel::LTR_ACTIVE, 0x8800);
        rig.w32(base + channel::LTR_IDLE, 0x8a58);
        assert_eq!(rig.r16(base + channel::DRSCTL), 0x0109);
        assert_eq!(rig.state(n), State::Halted);
        // The same registers, if their offsets were meant from the start of BAR0's first channel.
        rig.w16(base + channel::DRSCTL - 0x80, 0x0109);
    }
}

#[test]
fn accesses_of_any_shape_are_answered() {
    let rig = Rig::new(EngineConfig::default());
    for offset in (0..0x600).chain([0x3ff0, 0x4000, u64::MAX - 3, u64::MAX]) {
        for len in [1, 2, 3, 4, 8, 64, 200] {
            rig.engine.bar_read(offset, &mut vec![0; len]);
            rig.engine.config_read(offset, &mut vec![0; len]);
        }
    }
    for offset in [0x3ff0, 0x4000, u64::MAX - 3, u64::MAX] {
        rig.engine.bar_write(offset, &[0xff; 16]);
        rig.engine.config_write(offset, &[0xff; 16]);
    }
    let mut both = [0; 0x100];
    rig.engine.bar_read(0, &mut both);
    assert_eq!(both[8], 0x32, "one access over two blocks");
    assert_eq!(both[0x88], State::Halted as u8);
}

#[test]
fn configurations_that_no_engine_has_are_refused() {
    let machine = std::sync::Arc::new(rig::Machine::default());
    let refused = |config| Engine::new(config, machine.clone(), machine.clone()).is_err();
    let good = EngineConfig::default;
    assert!(refused(EngineConfig {
        channels: 0,
        ..good()
    }));
    assert!(refused(EngineConfig {
        channels: 9,
        ..good()
    }));
    assert!(refused(EngineConfig {
        xfercap_log2: 11,
        ..good()
    }));
    assert!(refused(EngineConfig {
        capabilities: DmaCap::XOR,
        ..good()
    }));
    assert!(!refused(good()));
}
