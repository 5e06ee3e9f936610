//! Slots as their ports' registers show them.

use alloc::vec::Vec;
use core::fmt;

use hal::pci::{Address, Config};
use pciehp::Port;

use super::scan::Found;

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
pub fn read(address: Address, bus: u8, config: &Config) -> Option<Slot> {
    let port = Port::new(address, config.clone())?;
    let levels = port.levels().unwrap_or_default();
    Some(Slot {
        port: address,
        bus,
        number: port.slot().number(),
        hotplug: port.is_hot_plug(),
        present: levels.present,
        powered: port.is_powered(),
        link: levels.link != Some(false),
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
