//! What is near to what: CPUs, memory and devices by proximity domain. ACPI 6.5, 5.2.16.

use alloc::vec::Vec;

use hal::pci::Address;

use super::bytes::{entries, u8_at, u16_at, u32_at, u64_at};

/// Memory of one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Physical address of its first byte.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// The domain.
    pub node: u32,
}

/// What the table tells, as far as it is enabled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Srat {
    /// APIC ID and domain of each CPU.
    cpus: Vec<(u32, u32)>,
    /// Address and domain of PCI functions that access memory by themselves.
    functions: Vec<(Address, u32)>,
    /// Memory, in the table's order.
    pub memory: Vec<MemoryRange>,
}

const HEADER: usize = 48;
const ENABLED: u32 = 1;
/// A generic initiator's handle is that of a PCI function.
const HANDLE_PCI: u8 = 1;

impl Srat {
    /// Reads the table's bytes, its header included. Entries that are too short end the table.
    pub fn parse(table: &[u8]) -> Self {
        let mut srat = Self::default();
        // Revision 1 has domains of 8 bits, and leaves undefined where later ones have the rest.
        let wide = u8_at(table, 8).is_some_and(|revision| revision >= 2);
        for (kind, entry) in entries(table.get(HEADER..).unwrap_or_default()) {
            srat.entry(kind, entry, wide);
        }
        srat
    }

    fn entry(&mut self, kind: u8, entry: &[u8], wide: bool) -> Option<()> {
        match kind {
            0 if u32_at(entry, 4)? & ENABLED != 0 => {
                let low = u32::from(u8_at(entry, 2)?);
                let high = if wide { u32_at(entry, 8)? & !0xff } else { 0 };
                self.cpus.push((u8_at(entry, 3)?.into(), high | low));
            }
            1 if u32_at(entry, 28)? & ENABLED != 0 => {
                let node = u32_at(entry, 2)?;
                let range = MemoryRange {
                    base: u64_at(entry, 8)?,
                    len: u64_at(entry, 16)?,
                    node: if wide { node } else { node & 0xff },
                };
                let ends = range.base.checked_add(range.len).is_some();
                if ends && range.len > 0 {
                    self.memory.push(range);
                }
            }
            2 if u32_at(entry, 12)? & ENABLED != 0 => {
                self.cpus.push((u32_at(entry, 8)?, u32_at(entry, 4)?));
            }
            5 if u32_at(entry, 24)? & ENABLED != 0 && u8_at(entry, 3)? == HANDLE_PCI => {
                let place = u8_at(entry, 11)?;
                let address = Address {
                    segment: u16_at(entry, 8)?,
                    bus: u8_at(entry, 10)?,
                    device: place >> 3,
                    function: place & 7,
                };
                self.functions.push((address, u32_at(entry, 4)?));
            }
            _ => {}
        }
        Some(())
    }

    /// The domain of the CPU with this APIC ID.
    pub fn cpu(&self, apic_id: u32) -> Option<u32> {
        find(&self.cpus, apic_id)
    }

    /// The domain of a PCI function.
    pub fn function(&self, address: Address) -> Option<u32> {
        find(&self.functions, address)
    }
}

fn find<T: Copy + PartialEq>(entries: &[(T, u32)], wanted: T) -> Option<u32> {
    let entry = entries.iter().find(|(name, _)| *name == wanted)?;
    Some(entry.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(revision: u8, entries: &[Vec<u8>]) -> Vec<u8> {
        let mut table = alloc::vec![0; HEADER];
        table[8] = revision;
        for entry in entries {
            table.extend_from_slice(entry);
        }
        table
    }

    /// An entry of `len` bytes, with these numbers in it.
    fn entry(kind: u8, len: u8, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut entry = alloc::vec![0; len.into()];
        (entry[0], entry[1]) = (kind, len);
        for (offset, bytes) in fields {
            entry[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        entry
    }

    fn apic(id: u8, node: [u8; 4], flags: u8) -> Vec<u8> {
        let [low, high @ ..] = node;
        entry(0, 16, &[(2, &[low, id]), (4, &[flags]), (9, &high)])
    }

    fn memory(base: u64, len: u64, flags: u8) -> Vec<u8> {
        let (base, len) = (base.to_le_bytes(), len.to_le_bytes());
        entry(1, 40, &[(2, &[3]), (8, &base), (16, &len), (28, &[flags])])
    }

    fn function(handle: u8, flags: u8) -> Vec<u8> {
        let place = [1, 0, 0x17, 4 << 3 | 2];
        entry(
            5,
            32,
            &[(3, &[handle]), (4, &[9]), (8, &place), (24, &[flags])],
        )
    }

    const FUNCTION: Address = Address {
        segment: 1,
        bus: 0x17,
        device: 4,
        function: 2,
    };

    #[test]
    fn cpus_memory_and_functions_are_found() {
        let x2apic = entry(2, 24, &[(4, &[2]), (8, &[0, 1]), (12, &[1])]);
        let srat = Srat::parse(&table(
            3,
            &[
                apic(0, [0, 0, 0, 0], 1),
                apic(5, [1, 2, 0, 0], 1),
                apic(6, [1, 0, 0, 0], 0),
                x2apic,
                memory(1 << 32, 1 << 30, 1),
                function(1, 1),
            ],
        ));
        let cpus = [0, 5, 6, 256, 1].map(|id| srat.cpu(id));
        assert_eq!(cpus, [Some(0), Some(0x201), None, Some(2), None]);
        let range = MemoryRange {
            base: 1 << 32,
            len: 1 << 30,
            node: 3,
        };
        assert_eq!(srat.memory, [range]);
        assert_eq!(srat.function(FUNCTION), Some(9));
        let other = Address {
            function: 3,
            ..FUNCTION
        };
        assert_eq!(srat.function(other), None);
    }

    #[test]
    fn the_first_revision_has_domains_of_8_bits() {
        let srat = Srat::parse(&table(1, &[apic(5, [1, 2, 3, 4], 1)]));
        assert_eq!(srat.cpu(5), Some(1));
    }

    #[test]
    fn what_is_off_or_makes_no_sense_is_left_out() {
        let srat = Srat::parse(&table(
            3,
            &[
                memory(0, 4096, 0),
                memory(0, 0, 1),
                memory(u64::MAX, 2, 1),
                function(0, 1),
                function(1, 0),
                entry(77, 6, &[]),
            ],
        ));
        assert_eq!(srat, Srat::default());
    }

    #[test]
    fn malformed_tables_end_early() {
        assert_eq!(Srat::parse(&[]), Srat::default());
        let (no_length, too_long) = (entry(0, 2, &[(1, &[0])]), entry(0, 16, &[(1, &[17])]));
        for bad in [no_length, too_long] {
            let srat = Srat::parse(&table(3, &[apic(1, [1, 0, 0, 0], 1), bad]));
            assert_eq!((srat.cpu(1), srat.cpu(0)), (Some(1), None));
        }
        // An entry that is shorter than its kind is passed over.
        for kind in [0, 1, 2, 5] {
            let short = entry(kind, 8, &[(4, &[1])]);
            let srat = Srat::parse(&table(3, &[short, apic(1, [1, 0, 0, 0], 1)]));
            assert_eq!(srat.cpu(1), Some(1));
            assert_eq!((srat.cpu(0), srat.memory.len()), (None, 0), "{kind}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            Srat::parse(&bytes);
        }

        #[test]
        fn any_entries_are_survived(bytes: Vec<u8>, revision: u8) {
            Srat::parse(&table(revision, &[bytes]));
        }
    }
}
