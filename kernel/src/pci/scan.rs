//! Finding every function behind every bridge.

use alloc::vec::Vec;

use hal::pci::{Address, Config, Identity};
use pci_types::{ConfigRegionAccess, HeaderType, PciAddress, PciHeader};

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

/// What its configuration header describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A device: type 0, six BARs.
    Endpoint,
    /// A bridge to another PCI bus: type 1, two BARs.
    Bridge,
    /// Anything else, such as a bridge to CardBus. Its BARs are left alone.
    Other,
}

/// A function that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where.
    pub address: Address,
    /// What it says it is.
    pub identity: Identity,
    /// Which header it has.
    pub header: Header,
    /// The buses behind it, if it is a bridge that leads anywhere.
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
/// then those buses that no bridge led to (root buses of further host bridges); by address. Bridges to which
/// firmware gave no bus numbers get some that nobody has.
pub fn segment(space: &impl ConfigSpace, segment: u16, first: u8, last: u8) -> Vec<Found> {
    let mut scan = Scan {
        space,
        segment,
        seen: [false; 256],
        promised: [false; 256],
        found: Vec::new(),
    };
    for bus in first..=last {
        if !scan.seen[usize::from(bus)] {
            scan.bus(bus, last, &[]);
        }
    }
    scan.found.sort_by_key(|found| found.address);
    scan.found
}

/// Scans what is behind a bridge, which has bus numbers. Those that `taken` names are others'.
pub fn behind(space: &impl ConfigSpace, bridge: &Found, taken: impl Fn(u8) -> bool) -> Vec<Found> {
    let Some(buses) = bridge.bridge else {
        return Vec::new();
    };
    let mut promised = [false; 256];
    for bus in 0..=u8::MAX {
        let inside = (buses.secondary..=buses.subordinate).contains(&bus);
        promised[usize::from(bus)] = !inside || taken(bus);
    }
    let mut scan = Scan {
        space,
        segment: bridge.address.segment,
        seen: [false; 256],
        promised,
        found: Vec::new(),
    };
    let path: Vec<_> = [bridge.address]
        .into_iter()
        .chain(bridge.above.clone())
        .collect();
    scan.bus(buses.secondary, buses.subordinate, &path);
    scan.found
}

/// Gives a bridge behind which nothing is in use other bus numbers: the first run of free ones up to
/// `last`, so many as bridges behind it may want. Says whether there is one longer than what it has.
pub fn widen(bridge: &mut Found, last: u8, taken: impl Fn(u8) -> bool) -> bool {
    let Some(buses) = bridge.bridge else {
        return false;
    };
    let own = |bus: u8| (buses.secondary..=buses.subordinate).contains(&bus);
    let free = |bus: u8| bus > bridge.address.bus && (own(bus) || !taken(bus));
    let run = |first: u8| (first..=last).take_while(|&bus| free(bus)).count();
    let length = |first: u8| run(first).min(OPEN_MAX.into());
    let now = usize::from(buses.subordinate - buses.secondary) + 1;
    let longest = (0..=last).rev().max_by_key(|&first| length(first));
    let Some(secondary) = longest.filter(|&first| length(first) > now) else {
        return false;
    };
    let subordinate = secondary + (length(secondary) - 1) as u8;
    write_buses(&bridge.config, bridge.address.bus, secondary, subordinate);
    bridge.bridge = Some(Buses {
        secondary,
        subordinate,
    });
    true
}

/// The most buses that are kept open while the bridges behind a new one are looked at.
const OPEN_MAX: u8 = 16;

/// The most bridges one behind the other: each is a call, and stacks have an end.
const NESTED_MAX: usize = 32;

struct Scan<'s, S> {
    space: &'s S,
    segment: u16,
    /// Buses that were scanned.
    seen: [bool; 256],
    /// Buses that firmware gave to a bridge other than those that lead to where the scan is.
    promised: [bool; 256],
    found: Vec<Found>,
}

impl<S: ConfigSpace> Scan<'_, S> {
    /// Scans a bus whose bridges may have buses up to `last`.
    fn bus(&mut self, bus: u8, last: u8, above: &[Address]) {
        self.seen[usize::from(bus)] = true;
        let start = self.found.len();
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
        // First what firmware has decided, for all bridges of this bus; then what is behind them.
        let bridges: Vec<_> = (start..self.found.len())
            .filter(|&i| self.found[i].header == Header::Bridge)
            .collect();
        for &index in &bridges {
            let buses = buses(&self.found[index].config);
            let free = |bus: u8| !self.seen[usize::from(bus)] && !self.promised[usize::from(bus)];
            let sane = buses.secondary > bus
                && buses.secondary <= buses.subordinate
                && buses.subordinate <= last
                && (buses.secondary..=buses.subordinate).all(free);
            if sane {
                self.promise(buses, true);
                self.found[index].bridge = Some(buses);
            }
        }
        for index in bridges {
            let Found {
                address,
                config,
                bridge,
                ..
            } = self.found[index].clone();
            let path: Vec<_> = [address].iter().chain(above).copied().collect();
            if path.len() > NESTED_MAX {
                log::warn!(
                    "{address}: {NESTED_MAX} bridges above it, what is behind it stays unknown"
                );
                self.found[index].bridge = None;
                continue;
            }
            match bridge {
                Some(buses) => {
                    // Open to the bridges behind this one, and to nobody else.
                    self.promise(buses, false);
                    self.bus(buses.secondary, buses.subordinate, &path);
                    self.promise(buses, true);
                }
                None => self.found[index].bridge = self.open(bus, last, &config, &path),
            }
        }
    }

    fn promise(&mut self, buses: Buses, promised: bool) {
        let range = usize::from(buses.secondary)..=usize::from(buses.subordinate);
        self.promised[range].fill(promised);
    }

    /// Notes a function; says whether its device has several.
    fn function(&mut self, address: Address, config: Config, above: &[Address]) -> bool {
        let name = PciAddress::new(
            address.segment,
            address.bus,
            address.device,
            address.function,
        );
        let header = PciHeader::new(name);
        let access = Access(&config);
        let (vendor, device) = header.id(&access);
        let (revision, base, sub, interface) = header.revision_and_class(&access);
        let class = u32::from(base) << 16 | u32::from(sub) << 8 | u32::from(interface);
        let many = header.has_multiple_functions(&access);
        let header = match header.header_type(&access) {
            HeaderType::Endpoint => Header::Endpoint,
            HeaderType::PciPciBridge => Header::Bridge,
            _ => Header::Other,
        };
        self.found.push(Found {
            address,
            identity: Identity {
                vendor,
                device,
                class,
                revision,
            },
            header,
            bridge: None,
            above: above.to_vec(),
            config,
        });
        many
    }

    /// Gives bus numbers to a bridge that has none: the first run between `bus` and `last` that
    /// nobody has. `None` where there is none left, and nothing behind it can be reached.
    fn open(&mut self, bus: u8, last: u8, config: &Config, path: &[Address]) -> Option<Buses> {
        let taken = |bus: u8| self.seen[usize::from(bus)] || self.promised[usize::from(bus)];
        let Some(secondary) = (bus..=last).find(|&other| other > bus && !taken(other)) else {
            log::warn!("{}: no bus number left for the bridge", path[0]);
            return None;
        };
        let end = last.min(secondary.saturating_add(OPEN_MAX - 1));
        let end = (secondary..=end)
            .take_while(|&bus| !taken(bus))
            .last()
            .unwrap_or(secondary);
        write_buses(config, bus, secondary, end);
        self.bus(secondary, end, path);
        let highest = (secondary..=end)
            .rev()
            .find(|&bus| self.seen[usize::from(bus)]);
        let subordinate = highest.unwrap_or(secondary);
        write_buses(config, bus, secondary, subordinate);
        Some(Buses {
            secondary,
            subordinate,
        })
    }
}

/// The bus numbers that a bridge has now.
fn buses(config: &Config) -> Buses {
    let numbers = config.read32(BUS_NUMBERS);
    Buses {
        secondary: (numbers >> 8) as u8,
        subordinate: (numbers >> 16) as u8,
    }
}

/// Primary, secondary and subordinate bus number and the latency timer. PCI-to-PCI Bridge 1.2,
/// 3.2.
const BUS_NUMBERS: usize = 0x18;

fn write_buses(config: &Config, primary: u8, secondary: u8, subordinate: u8) {
    let timer = config.read32(BUS_NUMBERS) & 0xff00_0000;
    let numbers = u32::from(subordinate) << 16 | u32::from(secondary) << 8 | u32::from(primary);
    config.write32(BUS_NUMBERS, timer | numbers);
}

#[cfg(test)]
mod tests {
    use super::super::bars::tests::FakeFunction;
    use super::*;
    use crate::acpi::mcfg::{self, EcamWindow};
    use alloc::collections::BTreeMap;
    use alloc::string::ToString;

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
            found[1].bridge,
            Some(Buses {
                secondary: 2,
                subordinate: 2
            })
        );
        assert_eq!(found[0].config.read32(0x18), 0x0001_0100);
    }

    #[test]
    fn bridges_behind_bridges_are_followed_so_far_and_no_further() {
        let nested = |bus: u8| ((bus, 0, 0), bridge(bus + 1, 255));
        let fabric = Fabric((0..255).map(nested).collect());
        let found = segment(&fabric, 0, 0, 255);
        let deepest = found.iter().map(|found| found.above.len()).max();
        assert_eq!(deepest, Some(NESTED_MAX));
        let closed = found.iter().find(|found| found.above.len() == NESTED_MAX);
        assert_eq!(closed.and_then(|found| found.bridge), None);
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
        let found = segment(&fabric, 0, 0, 1);
        assert!(
            found
                .iter()
                .all(|f| f.bridge.is_none() || f.address.bus == 0)
        );
    }

    #[test]
    fn new_numbers_keep_clear_of_those_that_firmware_gave() {
        let fabric = Fabric(BTreeMap::from([
            ((0, 1, 0), bridge(0, 0)),
            ((0, 2, 0), bridge(1, 3)),
            ((2, 0, 0), endpoint(0x2021_8086)),
            ((0, 3, 0), bridge(4, 5)),
            ((4, 0, 0), bridge(0, 0)),
        ]));
        let found = segment(&fabric, 0, 0, 255);
        let buses = |device, bus| {
            let at = |f: &&Found| (f.address.bus, f.address.device) == (bus, device);
            found
                .iter()
                .find(at)
                .unwrap()
                .bridge
                .map(|b| (b.secondary, b.subordinate))
        };
        assert_eq!(buses(2, 0), Some((1, 3)));
        assert_eq!(buses(1, 0), Some((6, 6)), "after all that was given");
        assert_eq!(buses(0, 4), Some((5, 5)), "within its parent's range");
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

    #[test]
    fn what_comes_into_a_slot_gets_numbers_within_its_ports() {
        let fabric = Fabric(BTreeMap::from([
            ((0, 1, 0), bridge(1, 1)),
            ((0, 2, 0), bridge(2, 2)),
        ]));
        let mut ports = segment(&fabric, 0, 0, 255);
        // A switch with two ports comes, and an engine behind each of them.
        let fabric = Fabric(BTreeMap::from([
            ((1, 0, 0), bridge(0, 0)),
            ((3, 0, 0), bridge(0, 0)),
            ((4, 0, 0), bridge(0, 0)),
            ((4, 1, 0), bridge(0, 0)),
            ((5, 0, 0), endpoint(0x2021_8086)),
            ((6, 0, 0), endpoint(0x2021_8086)),
        ]));
        let taken = |bus| bus <= 2;
        let found = behind(&fabric, &ports[0], taken);
        assert_eq!(addresses(&found), [(1, 0, 0)]);
        assert_eq!(found[0].bridge, None, "the port has one bus");
        assert!(widen(&mut ports[0], 255, taken));
        assert_eq!(ports[0].config.read32(0x18), 0x0012_0300);
        let found = behind(&fabric, &ports[0], taken);
        let there = [(3, 0, 0), (4, 0, 0), (4, 1, 0), (5, 0, 0), (6, 0, 0)];
        assert_eq!(addresses(&found), there);
        let path: Vec<_> = found[4].above.iter().map(|a| (a.bus, a.device)).collect();
        assert_eq!(path, [(4, 1), (3, 0), (0, 1)]);
        // There are no more than 255.
        assert!(!widen(&mut ports[1], 255, |_| true));
        assert_eq!(ports[1].bridge.unwrap().secondary, 2);
    }

    /// Functions within reach of windows.
    struct Windows {
        functions: BTreeMap<(u16, u8, u8), Config>,
        windows: Vec<EcamWindow>,
    }

    impl ConfigSpace for Windows {
        fn config(&self, a: Address) -> Option<Config> {
            let covers = |window: &EcamWindow| {
                let (first, last) = window.buses;
                window.segment == a.segment && (first..=last).contains(&a.bus)
            };
            if !self.windows.iter().any(covers) {
                return None;
            }
            let there = self.functions.get(&(a.segment, a.bus, a.device));
            let there = there.filter(|_| a.function == 0).cloned();
            Some(there.unwrap_or_else(|| FakeFunction::config(&[(0, u32::MAX)], &[])))
        }
    }

    #[test]
    fn segments_are_apart_and_buses_in_holes_out_of_reach() {
        let window = |segment, buses| EcamWindow {
            base: 1 << 32,
            segment,
            buses,
        };
        let windows = [
            window(0, (0, 255)),
            window(1, (0x10, 0x1f)),
            window(1, (0x40, 0x4f)),
            window(7, (0, 0)),
        ];
        let functions = BTreeMap::from([
            ((0, 0, 1), bridge(1, 1)),
            ((0, 1, 0), endpoint(0x2021_8086)),
            // A bridge that leads over the hole into the second window, and one into the hole.
            ((1, 0x10, 0), bridge(0x40, 0x40)),
            ((1, 0x10, 1), bridge(0x20, 0x2f)),
            ((1, 0x20, 0), endpoint(0x2021_8086)),
            ((1, 0x40, 0), endpoint(0x6f50_8086)),
            // A root bus that no bridge leads to.
            ((1, 0x4f, 3), endpoint(0x0b00_8086)),
            // A bridge for which its segment has no bus left.
            ((7, 0, 2), bridge(0, 0)),
        ]);
        let space = Windows {
            functions,
            windows: windows.to_vec(),
        };
        let mut found = Vec::new();
        for (number, buses) in mcfg::segments(&space.windows) {
            found.extend(segment(&space, number, *buses.start(), *buses.end()));
        }
        let places: Vec<_> = found.iter().map(|f| f.address.to_string()).collect();
        let expected = [
            "00:01.0",
            "01:00.0",
            "0001:10:00.0",
            "0001:10:01.0",
            "0001:40:00.0",
            "0001:4f:03.0",
            "0007:00:02.0",
        ];
        assert_eq!(places, expected);
        let above = |index: usize| found[index].above.first().map(|a| (a.segment, a.bus));
        assert_eq!([1, 4, 5].map(above), [Some((0, 0)), Some((1, 0x10)), None]);
        assert_eq!(found[6].bridge, None);
    }
}
