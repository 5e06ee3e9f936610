//! Finding every function behind every bridge.

use alloc::vec::Vec;

use hal::pci::{Address, Config, Identity};
use pci_types::{ConfigRegionAccess, HeaderType, PciAddress, PciHeader, PciPciBridgeHeader};

/// How a scan reaches configuration space.
pub trait ConfigSpace {
    /// The configuration space of the function at `address`, where that can be reached at all. An
    /// absent function reads all ones.
    fn config(&self, address: Address) -> Option<Config>;
}

/// A bridge's bus numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buses {
    /// The bus right behind it.
    pub secondary: u8,
    /// The highest bus behind it.
    pub subordinate: u8,
}

/// A function that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where.
    pub address: Address,
    /// What it says it is.
    pub identity: Identity,
    /// The buses behind it, if it is a bridge.
    pub bridge: Option<Buses>,
    /// The bridges above it, nearest first.
    pub above: Vec<Address>,
    /// Its configuration space.
    pub config: Config,
}

/// Lets `pci_types` read through [`Config`].
struct Access<'c>(&'c Config);

impl ConfigRegionAccess for Access<'_> {
    unsafe fn read(&self, _: PciAddress, offset: u16) -> u32 {
        self.0.read32(offset.into())
    }
    unsafe fn write(&self, _: PciAddress, offset: u16, value: u32) {
        self.0.write32(offset.into(), value);
    }
}

/// Scans the buses `first..=last` of a segment: from the first one down through all bridges, and
/// then those buses that no bridge led to (root buses of further host bridges). Bridges to which
/// firmware gave no bus numbers get some.
pub fn segment(space: &impl ConfigSpace, segment: u16, first: u8, last: u8) -> Vec<Found> {
    let mut scan = Scan {
        space,
        segment,
        last,
        seen: [false; 256],
        found: Vec::new(),
    };
    for bus in first..=last {
        if !scan.seen[usize::from(bus)] {
            scan.bus(bus, &[]);
        }
    }
    scan.found
}

struct Scan<'s, S> {
    space: &'s S,
    segment: u16,
    last: u8,
    seen: [bool; 256],
    found: Vec<Found>,
}

impl<S: ConfigSpace> Scan<'_, S> {
    fn bus(&mut self, bus: u8, above: &[Address]) {
        self.seen[usize::from(bus)] = true;
        for device in 0..32 {
            for function in 0..8 {
                let address = Address {
                    segment: self.segment,
                    bus,
                    device,
                    function,
                };
                let many = match self.space.config(address) {
                    Some(config) if config.is_present() => self.function(address, config, above),
                    _ => false,
                };
                if function == 0 && !many {
                    break;
                }
            }
        }
    }

    /// Notes a function, and what is behind it; says whether its device has several.
    fn function(&mut self, address: Address, config: Config, above: &[Address]) -> bool {
        let name = PciAddress::new(
            address.segment,
            address.bus,
            address.device,
            address.function,
        );
        let header = PciHeader::new(name);
        let access = Access(&config);
        let many = header.has_multiple_functions(&access);
        let (vendor, device) = header.id(&access);
        let (revision, base, sub, interface) = header.revision_and_class(&access);
        let class = u32::from(base) << 16 | u32::from(sub) << 8 | u32::from(interface);
        let identity = Identity {
            vendor,
            device,
            class,
            revision,
        };
        let is_bridge = matches!(header.header_type(&access), HeaderType::PciPciBridge);
        let index = self.found.len();
        self.found.push(Found {
            address,
            identity,
            bridge: None,
            above: above.to_vec(),
            config: config.clone(),
        });
        if is_bridge && let Some(bridge) = PciPciBridgeHeader::from_header(header, &access) {
            let buses = Buses {
                secondary: bridge.secondary_bus_number(&access),
                subordinate: bridge.subordinate_bus_number(&access),
            };
            self.found[index].bridge = self.behind(address, &config, buses, above);
        }
        many
    }

    fn behind(
        &mut self,
        address: Address,
        config: &Config,
        buses: Buses,
        above: &[Address],
    ) -> Option<Buses> {
        let sane = buses.secondary > address.bus
            && buses.secondary <= buses.subordinate
            && buses.subordinate <= self.last
            && !self.seen[usize::from(buses.secondary)];
        let mut path = Vec::with_capacity(above.len() + 1);
        path.push(address);
        path.extend_from_slice(above);
        if sane {
            self.bus(buses.secondary, &path);
            return Some(buses);
        }
        // Firmware left it alone, or its numbers make no sense: the next free bus is its own. All
        // numbers after it stay open while what lies behind is looked at.
        let secondary = (address.bus..=self.last).find(|&bus| {
            bus > address.bus && (bus..=self.last).all(|bus| !self.seen[usize::from(bus)])
        })?;
        write_buses(config, address.bus, secondary, self.last);
        self.bus(secondary, &path);
        let highest = (secondary..=self.last)
            .rev()
            .find(|&bus| self.seen[usize::from(bus)]);
        let subordinate = highest.unwrap_or(secondary);
        write_buses(config, address.bus, secondary, subordinate);
        Some(Buses {
            secondary,
            subordinate,
        })
    }
}

/// Primary, secondary and subordinate bus numbers share a word with the latency timer.
fn write_buses(config: &Config, primary: u8, secondary: u8, subordinate: u8) {
    const BUS_NUMBERS: usize = 0x18;
    let timer = config.read32(BUS_NUMBERS) & 0xff00_0000;
    let numbers = u32::from(subordinate) << 16 | u32::from(secondary) << 8 | u32::from(primary);
    config.write32(BUS_NUMBERS, timer | numbers);
}

#[cfg(test)]
mod tests {
    use super::super::bars::tests::FakeFunction;
    use super::*;
    use alloc::collections::BTreeMap;

    struct Fabric(BTreeMap<(u8, u8, u8), Config>);

    impl ConfigSpace for Fabric {
        fn config(&self, a: Address) -> Option<Config> {
            // Buses are reached as the bridges' numbers say at the time.
            self.0.get(&(a.bus, a.device, a.function)).cloned()
        }
    }

    fn endpoint(id: u32) -> Config {
        FakeFunction::config(&[(0, id), (8, 0x0880_0000)], &[])
    }

    fn bridge(secondary: u8, subordinate: u8) -> Config {
        let numbers = u32::from(subordinate) << 16 | u32::from(secondary) << 8;
        FakeFunction::config(
            &[
                (0, 0x000c_1b36),
                (8, 0x0604_0000),
                (0xc, 0x0001_0000),
                (0x18, numbers),
            ],
            &[],
        )
    }

    fn addresses(found: &[Found]) -> Vec<(u8, u8, u8)> {
        found
            .iter()
            .map(|f| (f.address.bus, f.address.device, f.address.function))
            .collect()
    }

    #[test]
    fn functions_behind_switches_are_found_with_their_path() {
        let fabric = Fabric(BTreeMap::from([
            ((0, 0, 0), endpoint(0x1237_8086)),
            ((0, 3, 0), bridge(1, 3)),
            ((1, 0, 0), bridge(2, 3)),
            ((2, 4, 0), bridge(3, 3)),
            ((3, 0, 0), endpoint(0x2021_8086)),
        ]));
        let found = segment(&fabric, 0, 0, 255);
        assert_eq!(
            addresses(&found),
            [(0, 0, 0), (0, 3, 0), (1, 0, 0), (2, 4, 0), (3, 0, 0)]
        );
        let path: Vec<_> = found[4].above.iter().map(|a| (a.bus, a.device)).collect();
        assert_eq!(path, [(2, 4), (1, 0), (0, 3)]);
        assert_eq!(found[4].identity.device, 0x2021);
        assert_eq!(found[4].identity.class, 0x08_8000);
    }

    #[test]
    fn bridges_without_numbers_get_some() {
        let fabric = Fabric(BTreeMap::from([
            ((0, 1, 0), bridge(0, 0)),
            ((0, 2, 0), bridge(0, 0)),
            ((1, 0, 0), endpoint(0x2021_8086)),
        ]));
        let found = segment(&fabric, 0, 0, 255);
        assert_eq!(
            found[0].bridge,
            Some(Buses {
                secondary: 1,
                subordinate: 1
            })
        );
        assert_eq!(
            found[2].bridge,
            Some(Buses {
                secondary: 2,
                subordinate: 2
            })
        );
        assert_eq!(found[0].config.read32(0x18), 0x0001_0100);
    }

    #[test]
    fn numbers_that_lead_in_a_circle_end() {
        let fabric = Fabric(BTreeMap::from([
            ((0, 1, 0), bridge(1, 255)),
            ((1, 0, 0), bridge(1, 1)),
            ((1, 1, 0), bridge(0, 5)),
        ]));
        assert_eq!(segment(&fabric, 0, 0, 255).len(), 3);
        // No bus left to give.
        assert!(
            segment(&fabric, 0, 0, 1)
                .iter()
                .all(|f| f.bridge.is_none() || f.address.bus == 0)
        );
    }

    #[test]
    fn root_buses_that_no_bridge_leads_to_are_scanned() {
        let fabric = Fabric(BTreeMap::from([
            ((0, 0, 0), endpoint(1)),
            ((0x40, 4, 0), endpoint(2)),
            ((0x40, 4, 1), endpoint(3)),
        ]));
        // Function 1 belongs to a device that does not claim to have several.
        assert_eq!(
            addresses(&segment(&fabric, 0, 0, 255)),
            [(0, 0, 0), (0x40, 4, 0)]
        );
    }
}
