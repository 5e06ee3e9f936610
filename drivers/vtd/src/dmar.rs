//! The firmware's table of remapping units: which there are, and what stands below each.
//! Section 8, "BIOS Considerations".
//!
//! Firmware cannot be trusted: every access is bounded. A structure that makes no sense is left out
//! and told as a [`Complaint`]; a length that does not lead on ends the table.

use alloc::vec::Vec;
use core::fmt;

use hal::pci::Address;

/// What the table tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dmar {
    /// How many address bits the platform has.
    pub address_bits: u8,
    /// Whether the platform can remap interrupts.
    pub interrupt_remapping: bool,
    /// Whether firmware asks for x2APIC mode to be left off.
    pub x2apic_opt_out: bool,
    /// The units, in the table's order (DRHD).
    pub units: Vec<UnitInfo>,
    /// Memory that devices go on using on behalf of firmware (RMRR).
    pub reserved: Vec<Reserved>,
    /// Root ports that translate for devices that cache translations (ATSR).
    pub ats: Vec<AtsPorts>,
    /// What was left out, and why.
    pub complaints: Vec<Complaint>,
}

/// A remapping unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// The PCI segment that it serves.
    pub segment: u16,
    /// Physical address of its registers.
    pub base: u64,
    /// Whether everything in the segment that no other unit names stands below it.
    pub include_all: bool,
    /// What stands below it by name.
    pub scopes: Vec<Scope>,
}

/// Memory that its devices must reach as if nothing were translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The PCI segment.
    pub segment: u16,
    /// First byte.
    pub base: u64,
    /// Last byte.
    pub last: u64,
    /// The devices.
    pub scopes: Vec<Scope>,
}

/// Root ports with translation services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtsPorts {
    /// The PCI segment.
    pub segment: u16,
    /// Whether all root ports of the segment have them.
    pub all: bool,
    /// Or these.
    pub scopes: Vec<Scope>,
}

/// What a scope names. Table 8-17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// A function.
    Endpoint,
    /// A bridge, and everything behind it.
    Bridge,
    /// An I/O APIC, by its ID.
    IoApic,
    /// A timer that sends messages.
    Hpet,
    /// A device that only ACPI knows.
    Namespace,
    /// One that is not known here.
    Other(u8),
}

/// A device, or a bridge with all behind it, by the way that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// What it is.
    pub kind: ScopeKind,
    /// Which one: the ID of an I/O APIC, the number of a timer.
    pub id: u8,
    /// The bus on which the way begins.
    pub bus: u8,
    /// Device and function at each hop: all but the last are bridges.
    pub path: Vec<(u8, u8)>,
}

/// Why a part of the table was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Where in the table it begins.
    pub offset: usize,
    /// What is wrong with it.
    pub why: Why,
}

/// What is wrong with a part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The table is shorter than its header.
    NoHeader,
    /// A structure's length leads nowhere, or out of the table: what follows is unknown.
    Length(u16),
    /// The structure is shorter than its kind.
    Short(u16),
    /// A unit's registers lie nowhere, or not on a page.
    Base(u64),
    /// Two units have the same registers.
    Twice(u64),
    /// Reserved memory ends before it begins, or does not consist of pages.
    Range(u64, u64),
    /// A scope's length leads nowhere, out of its structure, or to half a hop.
    ScopeLength(u8),
    /// A device or function number that there is not.
    Hop(u8, u8),
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:#x}: ", self.offset)?;
        match self.why {
            Why::NoHeader => f.write_str("shorter than its header"),
            Why::Length(len) => write!(f, "a structure of {len} bytes, the rest is unknown"),
            Why::Short(kind) => write!(f, "a structure of type {kind} that is too short"),
            Why::Base(base) => write!(f, "a unit with registers at {base:#x}"),
            Why::Twice(base) => write!(f, "a second unit with registers at {base:#x}"),
            Why::Range(base, last) => write!(f, "reserved memory {base:#x}-{last:#x}"),
            Why::ScopeLength(len) => write!(f, "a device scope of {len} bytes"),
            Why::Hop(device, function) => write!(f, "device {device:#x}, function {function:#x}"),
        }
    }
}

/// Length of the table's header, and what follows it before the first structure.
const HEADER: usize = 48;
const PAGE: u64 = 4096;

fn take<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    take(bytes, offset).map(u16::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    take(bytes, offset).map(u64::from_le_bytes)
}

impl Dmar {
    /// Reads the table's bytes, its header included.
    pub fn parse(table: &[u8]) -> Self {
        let mut dmar = Self::default();
        let Some(&[width, flags]) = table.get(36..38).filter(|_| table.len() >= HEADER) else {
            dmar.complain(0, Why::NoHeader);
            return dmar;
        };
        dmar.address_bits = width.saturating_add(1);
        dmar.interrupt_remapping = flags & 1 != 0;
        dmar.x2apic_opt_out = flags & 2 != 0;
        let mut offset = HEADER;
        while let Some(rest) = table.get(offset..).filter(|rest| !rest.is_empty()) {
            let (Some(kind), Some(len)) = (u16_at(rest, 0), u16_at(rest, 2)) else {
                dmar.complain(offset, Why::Length(rest.len() as u16));
                break;
            };
            let structure = rest.get(..len.into()).filter(|_| len >= 4);
            let Some(structure) = structure else {
                dmar.complain(offset, Why::Length(len));
                break;
            };
            if dmar.structure(kind, structure, offset).is_none() {
                dmar.complain(offset, Why::Short(kind));
            }
            offset += usize::from(len);
        }
        dmar
    }

    fn complain(&mut self, offset: usize, why: Why) {
        self.complaints.push(Complaint { offset, why });
    }

    /// `None` where the structure is too short for its kind. Kinds that concern nobody here (the
    /// affinity of units, devices that only ACPI knows) are passed over.
    fn structure(&mut self, kind: u16, bytes: &[u8], offset: usize) -> Option<()> {
        match kind {
            0 => {
                let (segment, base) = (u16_at(bytes, 6)?, u64_at(bytes, 8)?);
                let scopes = self.scopes(bytes.get(16..)?, offset + 16);
                if base == 0 || base % PAGE != 0 || base >= 1 << 52 {
                    self.complain(offset, Why::Base(base));
                } else if self.units.iter().any(|unit| unit.base == base) {
                    self.complain(offset, Why::Twice(base));
                } else {
                    self.units.push(UnitInfo {
                        segment,
                        base,
                        include_all: bytes.get(4)? & 1 != 0,
                        scopes,
                    });
                }
            }
            1 => {
                let segment = u16_at(bytes, 6)?;
                let (base, last) = (u64_at(bytes, 8)?, u64_at(bytes, 16)?);
                let scopes = self.scopes(bytes.get(24..)?, offset + 24);
                let pages = base % PAGE == 0 && last % PAGE == PAGE - 1;
                if pages && base < last && last < 1 << 52 {
                    self.reserved.push(Reserved {
                        segment,
                        base,
                        last,
                        scopes,
                    });
                } else {
                    self.complain(offset, Why::Range(base, last));
                }
            }
            2 => {
                let segment = u16_at(bytes, 6)?;
                let scopes = self.scopes(bytes.get(8..)?, offset + 8);
                self.ats.push(AtsPorts {
                    segment,
                    all: bytes.get(4)? & 1 != 0,
                    scopes,
                });
            }
            // A proximity domain, which nobody asks for.
            3 => return (bytes.len() >= 20).then_some(()),
            _ => {}
        }
        Some(())
    }

    fn scopes(&mut self, mut rest: &[u8], mut offset: usize) -> Vec<Scope> {
        let mut scopes = Vec::new();
        while let Some(&len) = rest.get(1) {
            let scope = rest.get(..len.into());
            // A way has one hop at least, and hops of two bytes.
            let Some(scope) = scope.filter(|_| len >= 8 && len % 2 == 0) else {
                self.complain(offset, Why::ScopeLength(len));
                return scopes;
            };
            let path: Vec<_> = scope[6..].chunks_exact(2).map(|h| (h[0], h[1])).collect();
            let wrong = path.iter().find(|(dev, fun)| *dev >= 32 || *fun >= 8);
            match wrong {
                Some(&(device, function)) => self.complain(offset, Why::Hop(device, function)),
                None => scopes.push(Scope {
                    kind: match scope[0] {
                        1 => ScopeKind::Endpoint,
                        2 => ScopeKind::Bridge,
                        3 => ScopeKind::IoApic,
                        4 => ScopeKind::Hpet,
                        5 => ScopeKind::Namespace,
                        other => ScopeKind::Other(other),
                    },
                    id: scope[4],
                    bus: scope[5],
                    path,
                }),
            }
            rest = &rest[usize::from(len)..];
            offset += usize::from(len);
        }
        if !rest.is_empty() {
            self.complain(offset, Why::ScopeLength(0));
        }
        scopes
    }

    /// Which of [`Dmar::units`] the function at `address` stands below; `above` are the bridges that
    /// lead to it, nearest first.
    pub fn unit_of(&self, address: Address, above: &[Address]) -> Option<usize> {
        let serves = |unit: &&UnitInfo| unit.segment == address.segment;
        let named = |unit: &UnitInfo| unit.scopes.iter().any(|scope| scope.covers(address, above));
        let of = |wanted: &dyn Fn(&UnitInfo) -> bool| {
            self.units
                .iter()
                .position(|unit| serves(&unit) && wanted(unit))
        };
        of(&named).or_else(|| of(&|unit| unit.include_all))
    }

    /// The memory that the function at `address` must go on reaching: first and last byte.
    pub fn reserved_for<'a>(
        &'a self,
        address: Address,
        above: &'a [Address],
    ) -> impl Iterator<Item = (u64, u64)> + 'a {
        let concerns = move |reserved: &&Reserved| {
            reserved.segment == address.segment
                && reserved
                    .scopes
                    .iter()
                    .any(|scope| scope.covers(address, above))
        };
        let range = |reserved: &Reserved| (reserved.base, reserved.last);
        self.reserved.iter().filter(concerns).map(range)
    }

    /// The unit that remaps the interrupts of the I/O APIC with this ID, and as whom they come.
    pub fn io_apic(&self, id: u8) -> Option<(usize, u16)> {
        self.units.iter().enumerate().find_map(|(index, unit)| {
            let is = |scope: &&Scope| scope.kind == ScopeKind::IoApic && scope.id == id;
            let scope = unit.scopes.iter().find(is)?;
            let &[(device, function)] = &scope.path[..] else {
                return None;
            };
            let place = u16::from(device) << 3 | u16::from(function);
            Some((index, u16::from(scope.bus) << 8 | place))
        })
    }
}

impl Scope {
    /// Whether it names the function at `address`, behind the bridges `above`, nearest first: the
    /// function itself, or one of the bridges. Bus numbers behind bridges are not in the way, so
    /// that it holds whoever gave them out.
    pub fn covers(&self, address: Address, above: &[Address]) -> bool {
        let is_bridge = match self.kind {
            ScopeKind::Endpoint => false,
            ScopeKind::Bridge => true,
            _ => return false,
        };
        let chain: Vec<_> = above.iter().rev().copied().chain([address]).collect();
        let hops = self.path.len();
        let first = chain.iter().position(|hop| hop.bus == self.bus);
        let Some(way) = first.and_then(|first| chain.get(first..first + hops)) else {
            return false;
        };
        let same = |(at, hop): (&Address, &(u8, u8))| (at.device, at.function) == *hop;
        let ends = first.map(|first| first + hops) == Some(chain.len());
        way.iter().zip(&self.path).all(same) && (is_bridge || ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn at(bus: u8, device: u8, function: u8) -> Address {
        Address {
            segment: 0,
            bus,
            device,
            function,
        }
    }

    fn scope(kind: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
        let mut bytes = vec![kind, 6 + 2 * path.len() as u8, 0, 0, id, bus];
        bytes.extend(path.iter().flat_map(|&(dev, fun)| [dev, fun]));
        bytes
    }

    fn structure(kind: u16, fixed: &[u8], scopes: &[Vec<u8>]) -> Vec<u8> {
        let scopes = scopes.concat();
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((4 + fixed.len() as u16 + scopes.len() as u16).to_le_bytes());
        bytes.extend(fixed);
        bytes.extend(scopes);
        bytes
    }

    fn drhd(all: bool, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
        let mut fixed = vec![u8::from(all), 0, 0, 0];
        fixed.extend(base.to_le_bytes());
        structure(0, &fixed, scopes)
    }

    fn rmrr(base: u64, last: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
        let mut fixed = vec![0; 4];
        fixed.extend(base.to_le_bytes());
        fixed.extend(last.to_le_bytes());
        structure(1, &fixed, scopes)
    }

    fn table(structures: &[Vec<u8>]) -> Vec<u8> {
        let mut table = vec![0; HEADER];
        (table[36], table[37]) = (47, 0b11);
        table.extend(structures.concat());
        table
    }

    fn whys(dmar: &Dmar) -> Vec<Why> {
        dmar.complaints
            .iter()
            .map(|complaint| complaint.why)
            .collect()
    }

    #[test]
    fn a_table_of_every_kind_is_read() {
        let dmar = Dmar::parse(&table(&[
            drhd(false, 0xfed9_0000, &[scope(1, 0, 0, &[(2, 0)])]),
            rmrr(0x7b80_0000, 0x7fff_ffff, &[scope(1, 0, 0, &[(2, 0)])]),
            drhd(true, 0xfed9_1000, &[scope(3, 8, 0xff, &[(0, 0)])]),
            structure(2, &[0, 0, 0, 0], &[scope(2, 0, 0, &[(1, 0)])]),
            structure(3, &[0; 16], &[]),
            structure(9, &[1, 2], &[]),
        ]));
        assert!(dmar.complaints.is_empty(), "{:?}", dmar.complaints);
        assert_eq!(dmar.address_bits, 48);
        assert!(dmar.interrupt_remapping && dmar.x2apic_opt_out);
        assert_eq!(dmar.units.len(), 2);
        assert!(!dmar.ats[0].all);
        assert_eq!(dmar.unit_of(at(0, 2, 0), &[]), Some(0));
        assert_eq!(dmar.unit_of(at(0, 3, 0), &[]), Some(1));
        let other = Address {
            segment: 1,
            ..at(0, 2, 0)
        };
        assert_eq!(dmar.unit_of(other, &[]), None);
        let reserved: Vec<_> = dmar.reserved_for(at(0, 2, 0), &[]).collect();
        assert_eq!(reserved, [(0x7b80_0000, 0x7fff_ffff)]);
        assert_eq!(dmar.reserved_for(at(0, 3, 0), &[]).count(), 0);
        assert_eq!(dmar.io_apic(8), Some((1, 0xff00)));
        assert_eq!(dmar.io_apic(9), None);
    }

    #[test]
    fn a_way_of_several_hops_is_followed() {
        let dmar = Dmar::parse(&table(&[
            drhd(false, 0x1000, &[scope(2, 0, 0, &[(1, 0), (4, 1)])]),
            drhd(false, 0x2000, &[scope(1, 0, 0, &[(1, 0), (5, 0), (0, 2)])]),
            drhd(true, 0x3000, &[]),
        ]));
        let (port, bridge, other) = (at(0, 1, 0), at(7, 4, 1), at(7, 5, 0));
        assert_eq!(dmar.unit_of(bridge, &[port]), Some(0), "the bridge itself");
        assert_eq!(dmar.unit_of(at(9, 0, 0), &[bridge, port]), Some(0));
        assert_eq!(dmar.unit_of(at(8, 0, 2), &[other, port]), Some(1));
        assert_eq!(dmar.unit_of(at(8, 0, 1), &[other, port]), Some(2));
        assert_eq!(dmar.unit_of(port, &[]), Some(2), "only on the way");
        // What is behind a function that is no bridge is not named by it.
        let deeper = dmar.unit_of(at(9, 0, 0), &[at(8, 0, 2), other, port]);
        assert_eq!(deeper, Some(2));
    }

    #[test]
    fn what_makes_no_sense_is_told_and_left_out() {
        for len in 0..HEADER {
            let dmar = Dmar::parse(&table(&[])[..len]);
            assert_eq!(whys(&dmar), [Why::NoHeader]);
        }
        let dmar = Dmar::parse(&table(&[
            drhd(true, 0, &[]),
            drhd(true, 0x1234, &[]),
            drhd(true, 0x1000, &[]),
            drhd(true, 0x1000, &[]),
            rmrr(0x3000, 0x2fff, &[]),
            rmrr(0x3000, 0x3ffe, &[]),
            rmrr(0, u64::MAX, &[]),
            drhd(
                true,
                0x5000,
                &[scope(1, 0, 0, &[(32, 0)]), scope(1, 0, 0, &[(1, 1)])],
            ),
            drhd(true, 0x6000, &[vec![1, 7, 0, 0, 0, 0, 1]]),
            drhd(true, 0x7000, &[vec![1, 0, 0, 0, 0, 0, 1, 1]]),
            drhd(true, 0x8000, &[vec![1]]),
            structure(0, &[0; 4], &[]),
            structure(3, &[0; 4], &[]),
            vec![0, 0, 3, 0],
            drhd(true, 0x9000, &[]),
        ]));
        let found: Vec<_> = dmar.units.iter().map(|unit| unit.base).collect();
        assert_eq!(found, [0x1000, 0x5000, 0x6000, 0x7000, 0x8000]);
        assert_eq!(dmar.units[1].scopes.len(), 1);
        assert!(dmar.reserved.is_empty());
        assert_eq!(
            whys(&dmar),
            [
                Why::Base(0),
                Why::Base(0x1234),
                Why::Twice(0x1000),
                Why::Range(0x3000, 0x2fff),
                Why::Range(0x3000, 0x3ffe),
                Why::Range(0, u64::MAX),
                Why::Hop(32, 0),
                Why::ScopeLength(7),
                Why::ScopeLength(0),
                Why::ScopeLength(0),
                Why::Short(0),
                Why::Short(3),
                Why::Length(3),
            ]
        );
        assert!(
            dmar.complaints
                .iter()
                .all(|c| !alloc::format!("{c}").is_empty())
        );
    }

    #[test]
    fn a_table_cut_anywhere_is_read_as_far_as_it_goes() {
        let whole = table(&[
            drhd(false, 0x1000, &[scope(2, 0, 0, &[(1, 0), (4, 1)])]),
            rmrr(0x3000, 0x3fff, &[scope(1, 0, 0, &[(2, 0)])]),
            structure(2, &[1, 0, 0, 0], &[]),
        ]);
        let all = Dmar::parse(&whole);
        for len in 0..whole.len() {
            let dmar = Dmar::parse(&whole[..len]);
            assert!(dmar.units.len() <= all.units.len());
            let parts = dmar.units.len() + dmar.reserved.len() + dmar.ats.len();
            assert!(parts < 3, "something is missing");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_at_all_are_too_much(
            head in proptest::collection::vec(any::<u8>(), HEADER),
            body in proptest::collection::vec(
                prop_oneof![Just(0u8), Just(1), Just(8), Just(16), Just(24), any::<u8>()], 0..600),
        ) {
            let dmar = Dmar::parse(&[head, body].concat());
            for unit in &dmar.units {
                prop_assert!(unit.base != 0 && unit.base % PAGE == 0);
                for scope in &unit.scopes {
                    prop_assert!(!scope.path.is_empty());
                }
            }
            let _ = dmar.unit_of(at(0, 1, 0), &[at(0, 0, 0)]);
            let _ = dmar.io_apic(0);
        }
    }
}
