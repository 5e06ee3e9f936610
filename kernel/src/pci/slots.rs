//! Hot-plug slots as their ports' registers show them. PCI Express Base 7.5.3.

use alloc::vec::Vec;
use core::fmt;

use hal::pci::{Address, Config};

use super::scan::Found;

const CAPABILITY_PCIE: u8 = 0x10;
const PCIE_CAPS: usize = 0x02;
const LINK_STATUS: usize = 0x12;
const SLOT_CAPS: usize = 0x14;
const SLOT_CONTROL: usize = 0x18;
const SLOT_STATUS: usize = 0x1a;
const SLOT_IMPLEMENTED: u16 = 1 << 8;

/// A slot's registers at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The port that it belongs to.
    pub port: Address,
    /// The bus behind it.
    pub bus: u8,
    /// Its physical number.
    pub number: u16,
    /// Can be hot-plugged.
    pub hotplug: bool,
    /// Something is in it.
    pub present: bool,
    /// Its power is on, or it has no power controller.
    pub powered: bool,
    /// Its link is active, or does not tell.
    pub link: bool,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |is: bool, yes: &'static str, no: &'static str| if is { yes } else { no };
        write!(
            f,
            "slot {} port={} bus={:02x} {} power={} link={} {}",
            self.number,
            self.port,
            self.bus,
            word(self.present, "occupied", "empty"),
            word(self.powered, "on", "off"),
            word(self.link, "up", "down"),
            word(self.hotplug, "hot-plug", "fixed"),
        )
    }
}

/// Reads the slot of a port, where it has one.
pub fn read(port: Address, bus: u8, config: &Config) -> Option<Slot> {
    let cap = config.capability(CAPABILITY_PCIE)?;
    if config.read16(cap + PCIE_CAPS) & SLOT_IMPLEMENTED == 0 {
        return None;
    }
    let caps = config.read32(cap + SLOT_CAPS);
    let control = config.read16(cap + SLOT_CONTROL);
    let has_power_controller = caps & 1 << 1 != 0;
    let reports_link = config.read32(cap + 0x0c) & 1 << 20 != 0;
    Some(Slot {
        port,
        bus,
        number: (caps >> 19) as u16,
        hotplug: caps & 1 << 6 != 0,
        present: config.read16(cap + SLOT_STATUS) & 1 << 6 != 0,
        powered: !has_power_controller || control & 1 << 10 == 0,
        link: !reports_link || config.read16(cap + LINK_STATUS) & 1 << 13 != 0,
    })
}

/// All slots among the functions that were found.
pub fn list(found: &[Found]) -> Vec<Slot> {
    found
        .iter()
        .filter_map(|f| read(f.address, f.bridge?.secondary, &f.config))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::bars::tests::FakeFunction;
    use super::*;

    fn port(caps: u32, control_status: u32) -> Config {
        FakeFunction::config(
            &[
                (0x04, 0x0010_0000),
                (0x34, 0x40),
                (0x40, 0x0142_0010),
                (0x4c, 1 << 20),
                (0x50, 1 << 29),
                (0x54, caps),
                (0x58, control_status),
            ],
            &[],
        )
    }

    #[test]
    fn registers_are_read_as_a_state() {
        let at = Address {
            segment: 0,
            bus: 0,
            device: 2,
            function: 0,
        };
        let slot = read(at, 1, &port(5 << 19 | 1 << 6 | 1 << 1, 1 << 22)).unwrap();
        assert_eq!((slot.number, slot.hotplug, slot.present), (5, true, true));
        assert!(slot.powered && slot.link);
        let off = read(at, 1, &port(1 << 1, 1 << 10)).unwrap();
        assert!(!off.powered && !off.present && !off.hotplug);
        assert_eq!(
            alloc::format!("{slot}"),
            "slot 5 port=00:02.0 bus=01 occupied power=on link=up hot-plug"
        );
        assert!(read(at, 1, &FakeFunction::config(&[], &[])).is_none());
    }
}
