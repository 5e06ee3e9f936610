//! Registers printed for people.

use std::sync::atomic::Ordering;

use dmaengine::{Channel, Flags};
use hal::host::block_on;
use ioat::Options;
use ioat_model::{EngineConfig, Irq};
use ioat_spec::{CbVer, ChanCtrl, IntrCtrl, channel, device};

use crate::buffers::filled;
use crate::rig::{Driven, Rig, config};

fn copy_and_compare(channel: &Channel) {
    let (dst, src) = filled(4096, 0x5a);
    let copy = channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap();
    let copy = channel.submit(copy).unwrap();
    channel.issue_pending();
    let finished = block_on(copy.finish());
    assert_eq!(finished.result, Ok(()));
    let memory = finished.buffers.unwrap().0.into_memory();
    assert!(memory.iter().all(|&byte| byte == 0x5a));
}

/// What a 16-bit register of the engine holds, by a read of its own.
fn peek(driven: &Driven, offset: usize) -> u16 {
    let mut bytes = [0; 2];
    driven.rig.engine.bar_read(offset as u64, &mut bytes);
    u16::from_le_bytes(bytes)
}

#[test]
fn registers_are_printed_and_stay_as_they_are() {
    for version in [CbVer::V3_2, CbVer::V3_3, CbVer::V3_4] {
        let driven = Driven::new(config(version, Irq::Intx), Options::default());
        let channel = block_on(driven.chan(0).request()).unwrap();
        copy_and_compare(&channel);
        let text = driven.driver.registers().to_string();
        assert_eq!(text, driven.driver.registers().to_string());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1 + driven.driver.device().channels().count());
        let has = |line: &str, word: &str| line.split(' ').any(|one| one == word);
        assert!(has(lines[0], &format!("CBVER={:#x}", version.0)), "{text}");
        assert!(has(lines[0], "INTRCTRL=unread"), "{text}");
        let prefetch = lines[0].contains("CHWPREFLMT=");
        assert_eq!(prefetch, version == CbVer::V3_4, "{text}");
        // Idle after the copy; the others have not started since RESET.
        let state = |line: &str| {
            let word = line.split(" CHANSTS=0x").nth(1).unwrap();
            let word = word.split(' ').next().unwrap();
            u64::from_str_radix(word, 16).unwrap() & 7
        };
        assert_eq!((state(lines[1]), state(lines[2])), (1, 3), "{text}");
        // The first read of it since it was written takes it, and returns that it was free.
        let control = peek(&driven, channel::base(0) + channel::CHANCTRL);
        assert!(!ChanCtrl::from_bits_retain(control).contains(ChanCtrl::IN_USE));
        let mut byte = [0];
        let offset = device::INTRCTRL as u64;
        driven.rig.engine.bar_read(offset, &mut byte);
        assert!(IntrCtrl::from_bits_retain(byte[0]).contains(IntrCtrl::MASTER_INT_EN));
        driven.rig.engine.bar_write(offset, &byte);
        copy_and_compare(&channel);
        block_on(channel.release());
        driven.remove();
    }
}

/// One look finds out; nothing more is read.
#[test]
fn nothing_is_read_of_an_engine_that_is_gone() {
    let driven = Rig::new(EngineConfig::default()).probe(Options::default());
    driven.rig.tricks.deaf.store(true, Ordering::Relaxed);
    let text = driven.driver.registers().to_string();
    assert_eq!(text.lines().next(), Some("regs: 01:00.0 gone: not read"));
    assert_eq!(
        text.matches('=').count(),
        4,
        "the channels' numbers: {text}"
    );
    assert!(driven.driver.is_gone());
    driven.rig.tricks.deaf.store(false, Ordering::Relaxed);
    let before = driven.rig.engine.statistics().mmio_reads;
    assert_eq!(driven.driver.registers().to_string(), text);
    assert_eq!(driven.rig.engine.statistics().mmio_reads, before);
}

#[test]
fn errata_are_those_of_the_part() {
    let errata = |device_id, version| {
        let config = EngineConfig {
            device_id,
            ..EngineConfig::new(version)
        };
        let driven = Driven::new(config, Options::default());
        let errata = driven.driver.errata();
        driven.remove();
        errata
    };
    assert_eq!(errata(0x2021, CbVer::V3_2), "");
    let e7 = errata(0x0e20, CbVer::V3_2);
    assert!(e7.starts_with("CF4,") && e7.contains("; CF5,"), "{e7}");
    assert!(errata(0x6f50, CbVer::V3_3).contains("MSI-X"));
    assert!(errata(0x3710, CbVer::V3_2).contains("40 address bits"));
}
