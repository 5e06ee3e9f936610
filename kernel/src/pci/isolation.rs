//! Keeping a function from memory that does not answer, and so cannot be told.
//!
//! The port above it passes its requests on while its Bus Master Enable is set (PCI Express Base
//! 7.5.1.1.3), which concerns all that stands behind the port, and the port's own messages: who
//! waits for its interrupts has to look as long as nothing new was handed out from there.

use hal::pci::Address;
use pciehp::Port;

use super::scan::Found;

/// Keeps the function at `address` from all memory; whether that is so. Its slot is empty; or the port
/// right above it is told to pass nothing on and says that it does not, if nothing else stands behind
/// it that still works: nothing does in a slot that is switched off, which may take it a second (PCI
/// Express Base 6.7.1.8). Other functions of its device go with it. On a root bus there
/// is nothing that could be told.
pub fn isolate<'a>(found: impl Iterator<Item = &'a Found> + Clone, address: Address) -> bool {
    let at = |address| found.clone().find(move |found| found.address == address);
    let port = at(address).and_then(|function| at(*function.above.first()?));
    let Some(port) = port else {
        return false;
    };
    let slot = Port::new(port.address, port.config.clone());
    if let Some(slot) = slot.filter(Port::is_dead) {
        return slot.is_empty() || port.config.set_bus_master(false);
    }
    let device = |address: Address| (address.segment, address.bus, address.device);
    let works = |other: &Found| {
        other.above.contains(&port.address)
            && device(other.address) != device(address)
            && !other.config.is_absent()
    };
    !found.clone().any(works) && port.config.set_bus_master(false)
}

/// Whether a port has a slot, and that is off or empty.
pub fn is_dead(port: &Found) -> bool {
    Port::new(port.address, port.config.clone()).is_some_and(|slot| slot.is_dead())
}

#[cfg(test)]
mod tests {
    use super::super::bars::tests::FakeFunction;
    use super::super::scan::{Buses, Header};
    use super::*;
    use alloc::vec::Vec;
    use hal::pci::{Config, Identity, header};

    const BUS_MASTER: u32 = header::COMMAND_BUS_MASTER as u32;
    /// Slot status: something is in it. Slot control: power is off. Both in one word.
    const PRESENT: u32 = 1 << 22;
    const POWER_OFF: u32 = 1 << 10;

    fn address(bus: u8, device: u8, function: u8) -> Address {
        Address {
            segment: 0,
            bus,
            device,
            function,
        }
    }

    fn found(address: Address, above: &[Address], config: Config) -> Found {
        Found {
            address,
            identity: Identity {
                vendor: 0x8086,
                device: 0x2021,
                class: 0x088000,
                revision: 0,
            },
            header: Header::Endpoint,
            bridge: None,
            above: above.to_vec(),
            config,
        }
    }

    /// A port with a power controller and bus mastering on, whose slot says `slot`.
    fn port(at: Address, above: &[Address], slot: u32, fixed: &[(usize, u32, u32)]) -> Found {
        let words = [
            (0x00, 0x1234_1b36),
            (0x04, 0x0010_0000 | BUS_MASTER),
            (0x34, 0x40),
            (0x40, 0x0142_0010),
            (0x54, 1 << 1),
            (0x58, slot),
        ];
        let mut port = found(at, above, FakeFunction::config(&words, fixed));
        port.header = Header::Bridge;
        port.bridge = Some(Buses {
            secondary: at.device,
            subordinate: 9,
        });
        port
    }

    fn gone(at: Address, above: &[Address]) -> Found {
        let found = found(at, above, FakeFunction::config(&[], &[]));
        found.config.set_absent();
        found
    }

    fn alive(at: Address, above: &[Address]) -> Found {
        found(at, above, FakeFunction::config(&[(0, 0x2021_8086)], &[]))
    }

    fn passes(port: &Found) -> bool {
        port.config.read16(header::COMMAND) & header::COMMAND_BUS_MASTER != 0
    }

    const PORT: Address = Address {
        segment: 0,
        bus: 0,
        device: 1,
        function: 0,
    };

    /// The port, and behind it an engine that is gone and what `others` stand there.
    fn behind(slot: u32, others: &[Found]) -> Vec<Found> {
        let mut all = [port(PORT, &[], slot, &[]), gone(address(1, 0, 0), &[PORT])].to_vec();
        all.extend_from_slice(others);
        all
    }

    #[test]
    fn the_port_passes_nothing_on() {
        let all = behind(PRESENT, &[]);
        assert!(passes(&all[0]));
        assert!(isolate(all.iter(), address(1, 0, 0)));
        assert!(!passes(&all[0]));
    }

    #[test]
    fn a_slot_that_is_empty_needs_nothing() {
        let all = behind(0, &[]);
        assert!(isolate(all.iter(), address(1, 0, 0)));
        assert!(passes(&all[0]), "it is left alone");
    }

    #[test]
    fn a_slot_that_is_switched_off_may_have_power_still() {
        let all = behind(PRESENT | POWER_OFF, &[]);
        assert!(isolate(all.iter(), address(1, 0, 0)));
        assert!(!passes(&all[0]));
    }

    #[test]
    fn a_port_without_a_slot_has_none_that_is_off() {
        let bridge = found(PORT, &[], FakeFunction::config(&[(0, 0x1b36)], &[]));
        let all = [bridge, gone(address(1, 0, 0), &[PORT])];
        assert!(isolate(all.iter(), address(1, 0, 0)));
        let stubborn = [(0x04, BUS_MASTER, BUS_MASTER)];
        let words = [
            (0x00, 0x1234_1b36),
            (0x04, 0x0010_0000),
            (0x34, 0x40),
            (0x40, 0x0042_0010),
            (0x54, 1 << 1),
        ];
        let soldered = found(PORT, &[], FakeFunction::config(&words, &stubborn));
        let all = [soldered, gone(address(1, 0, 0), &[PORT])];
        assert!(!isolate(all.iter(), address(1, 0, 0)));
    }

    #[test]
    fn what_works_behind_the_same_port_is_spared() {
        // Another device on a bus of old, and one behind a switch.
        for other in [address(1, 3, 0), address(2, 0, 0)] {
            let all = behind(PRESENT, &[alive(other, &[address(1, 1, 0), PORT])]);
            assert!(!isolate(all.iter(), address(1, 0, 0)));
            assert!(passes(&all[0]));
            all[2].config.set_absent();
            assert!(isolate(all.iter(), address(1, 0, 0)), "all are gone");
        }
    }

    #[test]
    fn functions_of_one_device_go_together() {
        let all = behind(PRESENT, &[alive(address(1, 0, 1), &[PORT])]);
        assert!(isolate(all.iter(), address(1, 0, 0)));
    }

    #[test]
    fn the_nearest_port_is_told() {
        let near = address(1, 1, 0);
        let all = [
            port(PORT, &[], PRESENT, &[]),
            port(near, &[PORT], PRESENT, &[]),
            gone(address(2, 0, 0), &[near, PORT]),
        ];
        assert!(isolate(all.iter(), address(2, 0, 0)));
        assert!(passes(&all[0]) && !passes(&all[1]));
    }

    #[test]
    fn who_does_not_obey_or_is_not_there_isolates_nothing() {
        let stubborn = port(PORT, &[], PRESENT, &[(0x04, BUS_MASTER, BUS_MASTER)]);
        let all = [stubborn, gone(address(1, 0, 0), &[PORT])];
        assert!(!isolate(all.iter(), address(1, 0, 0)));
        let root = [gone(address(0, 4, 0), &[])];
        assert!(!isolate(root.iter(), address(0, 4, 0)), "on a root bus");
        assert!(!isolate([].iter(), address(0, 4, 0)), "unknown");
        let all = behind(PRESENT, &[]);
        all[0].config.set_absent();
        assert!(!isolate(all.iter(), address(1, 0, 0)), "the port is gone");
    }
}
