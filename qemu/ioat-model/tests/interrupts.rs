//! Interrupts: who sends them when, by message and by pin.

#![forbid(unsafe_code)]

mod rig;

use std::time::{Duration, Instant};

use ioat_model::{EngineConfig, Irq};
use ioat_spec::{CbVer, Control, Descriptor, State, channel, device};
use rig::{Event, Rig, until};

fn config(irq: Irq) -> EngineConfig {
    EngineConfig {
        irq,
        ..EngineConfig::default()
    }
}

fn null() -> Descriptor {
    Descriptor::null(Control::COMPLETION | Control::INT_EN, 0)
}

/// One descriptor that interrupts, on channel `n`.
fn interrupt(rig: &Rig, n: usize) {
    assert_eq!(rig.run(n, &[null()]), State::Idle);
}

/// A second one, without re-arming: the chain goes on.
fn interrupt_again(rig: &Rig, n: usize, slot: usize) {
    rig.put(Rig::slot(n, slot), null());
    rig.write(
        Rig::slot(n, slot - 1) + 24,
        &Rig::slot(n, slot).to_le_bytes(),
    );
    rig.ring(n, slot as u16 + 1);
    rig.settle(n);
}

#[test]
fn msix_sends_vector_n_for_channel_n_with_either_bit() {
    for intrctrl in [0x01, 0x08, 0x09] {
        let rig = Rig::probed(config(Irq::MsiX));
        rig.enable_messages();
        rig.w8(device::INTRCTRL, intrctrl);
        interrupt(&rig, 2);
        interrupt(&rig, 0);
        assert_eq!(rig.machine.messages(), [2, 0], "INTRCTRL {intrctrl:#x}");
        assert!(!rig.machine.pin());
    }
}

#[test]
fn msi_sends_one_message_for_all_channels() {
    let rig = Rig::probed(config(Irq::Msi));
    rig.enable_messages();
    interrupt(&rig, 3);
    interrupt(&rig, 1);
    assert_eq!(rig.machine.messages(), [0, 0]);
    assert_eq!(rig.r32(device::ATTNSTATUS), 0b1010);
    assert_eq!(rig.r32(device::ATTNSTATUS), 0, "cleared by the read");
}

#[test]
fn nothing_is_sent_while_masked_and_everything_after() {
    for irq in [Irq::Msi, Irq::MsiX] {
        let rig = Rig::probed(config(irq));
        rig.enable_messages();
        rig.w8(device::INTRCTRL, 0);
        interrupt(&rig, 1);
        assert_eq!(rig.machine.messages(), []);
        rig.w8(device::INTRCTRL, 0x09);
        assert_eq!(rig.machine.messages().len(), 1, "{irq:?}");
    }
}

#[test]
fn what_the_guest_has_read_in_attnstatus_is_not_sent_again() {
    let rig = Rig::probed(config(Irq::Msi));
    rig.enable_messages();
    rig.w8(device::INTRCTRL, 0);
    interrupt(&rig, 1);
    assert_eq!(rig.r32(device::ATTNSTATUS), 2);
    rig.w8(device::INTRCTRL, 1);
    assert_eq!(rig.machine.messages(), []);
}

#[test]
fn intrctrl_is_cleared_by_reading_and_tells_what_waits() {
    let rig = Rig::probed(config(Irq::Intx));
    assert_eq!(rig.r8(device::INTRCTRL), 0x09);
    assert_eq!(rig.r8(device::INTRCTRL), 0x08);
    rig.w8(device::INTRCTRL, 0x01);
    interrupt(&rig, 0);
    assert_eq!(rig.r8(device::INTRCTRL), 0x07, "enabled, status, asserted");
    assert_eq!(rig.r8(device::INTRCTRL), 0x02, "status alone");
}

#[test]
fn the_pin_follows_the_handler_of_linux() {
    let rig = Rig::probed(config(Irq::Intx));
    rig.w8(device::INTRCTRL, 0x01);
    interrupt(&rig, 2);
    assert!(rig.machine.pin());
    assert_ne!(rig.config(4) >> 16 & 8, 0, "the status register shows it");
    assert_eq!(rig.r8(device::INTRCTRL), 0x07);
    assert!(!rig.machine.pin(), "withdrawn by the read");
    assert_eq!(rig.r32(device::ATTNSTATUS), 4);
    rig.w8(device::INTRCTRL, 0x01);
    assert!(!rig.machine.pin(), "nothing waits");
    rig.rearm(2);
    interrupt_again(&rig, 2, 1);
    assert!(rig.machine.pin());
    assert_eq!(rig.machine.messages(), []);
}

#[test]
fn the_pin_follows_the_handler_of_freebsd() {
    // It reads neither register: re-arming alone quiets the device.
    let rig = Rig::probed(config(Irq::Intx));
    rig.w8(device::INTRCTRL, 0x01);
    interrupt(&rig, 0);
    assert!(rig.machine.pin());
    rig.rearm(0);
    assert!(!rig.machine.pin());
    interrupt_again(&rig, 0, 1);
    assert!(rig.machine.pin());
}

#[test]
fn the_pin_falls_with_its_disable_bit_and_with_messages() {
    let rig = Rig::probed(config(Irq::Msi));
    interrupt(&rig, 0);
    assert!(rig.machine.pin(), "no message capability is on");
    rig.config_write(4, 0x0406);
    assert!(!rig.machine.pin());
    rig.config_write(4, 0x0006);
    assert!(rig.machine.pin());
    rig.enable_messages();
    assert!(!rig.machine.pin());
}

#[test]
fn a_channel_holds_its_next_interrupt_until_it_is_rearmed() {
    let rig = Rig::probed(config(Irq::MsiX));
    rig.enable_messages();
    interrupt(&rig, 0);
    let control = channel::base(0) + channel::CHANCTRL;
    assert_eq!(rig.r16(control) & 1, 1, "INT_DISABLE is set by hardware");
    interrupt_again(&rig, 0, 1);
    interrupt_again(&rig, 0, 2);
    assert_eq!(rig.machine.messages(), [0]);
    rig.w16(control, 0x1c);
    assert_eq!(rig.machine.messages(), [0], "a 0 does not re-arm");
    rig.rearm(0);
    assert_eq!(rig.machine.messages(), [0, 0], "one for all that was held");
    rig.rearm(0);
    assert_eq!(rig.machine.messages(), [0, 0]);
    assert_eq!(rig.r16(control) & 1, 0, "the written 1 never disables");
}

#[test]
fn descriptors_without_the_bit_do_not_interrupt() {
    let rig = Rig::probed(config(Irq::MsiX));
    rig.enable_messages();
    rig.run(0, &[Descriptor::null(Control::COMPLETION, 0)]);
    assert_eq!(rig.machine.messages(), []);
    assert_eq!(rig.r32(device::ATTNSTATUS), 0);
}

#[test]
fn no_message_is_sent_without_bus_mastering() {
    let rig = Rig::probed(config(Irq::Msi));
    rig.enable_messages();
    rig.w8(device::INTRCTRL, 0);
    interrupt(&rig, 0);
    rig.bus_master(false);
    rig.w8(device::INTRCTRL, 1);
    assert_eq!(rig.machine.messages(), []);
    rig.bus_master(true);
    assert_eq!(rig.machine.messages(), [0]);
}

#[test]
fn intrdelay_gathers_interrupts() {
    let rig = Rig::probed(config(Irq::Msi));
    rig.enable_messages();
    rig.w16(device::INTRDELAY, 10_000);
    let start = Instant::now();
    rig.run(0, &[null(); 100]);
    assert!(start.elapsed() > Duration::from_millis(10) || rig.machine.messages().is_empty());
    until("the interrupt", || !rig.machine.messages().is_empty());
    assert!(start.elapsed() >= Duration::from_millis(10));
    std::thread::sleep(Duration::from_millis(15));
    assert_eq!(rig.machine.messages(), [0]);
}

#[test]
fn a_reset_withdraws_the_interrupt() {
    let rig = Rig::probed(config(Irq::Intx));
    interrupt(&rig, 0);
    assert!(rig.machine.pin());
    rig.command(0, 0x20);
    assert!(!rig.machine.pin());
    assert_eq!(rig.r32(device::ATTNSTATUS), 0);
}

#[test]
fn attnstatus_never_names_a_channel_that_is_not_there() {
    let rig = Rig::probed(config(Irq::Intx));
    rig.w32(device::ATTNSTATUS, u32::MAX);
    assert_eq!(rig.r32(device::ATTNSTATUS), 0);
    for n in 0..4 {
        interrupt(&rig, n);
    }
    assert_eq!(rig.r32(device::ATTNSTATUS), 0b1111);
}

#[test]
fn reset_loses_msix_on_version_3_3_alone() {
    for (cbver, lost) in [
        (CbVer::V3_2, false),
        (CbVer::V3_3, true),
        (CbVer::V3_4, false),
    ] {
        let config = EngineConfig {
            irq: Irq::MsiX,
            ..EngineConfig::new(cbver)
        };
        let rig = Rig::probed(config);
        let table = rig.config(0x84) as usize;
        rig.w64(table, 0xfee0_0000);
        rig.w32(table + 12, 0);
        rig.enable_messages();
        rig.command(0, 0x20);
        assert_eq!(rig.config(0x80) >> 31 == 0, lost, "{cbver:?}");
        assert_eq!(rig.r64(table) == 0, lost);
        assert_eq!(rig.r32(table + 12) == 1, lost, "masked");
        interrupt(&rig, 0);
        assert_eq!(rig.machine.messages().is_empty(), lost);
    }
}

#[test]
fn rises_of_the_pin_and_messages_are_counted() {
    let rig = Rig::probed(config(Irq::Msi));
    rig.enable_messages();
    interrupt(&rig, 0);
    rig.rearm(0);
    interrupt_again(&rig, 0, 1);
    assert_eq!(rig.engine.statistics().interrupts, 2);
    assert!(rig.machine.events().contains(&Event::Message(0)));
}
