//! CPUs, I/O APICs and the wiring of legacy interrupts. ACPI 6.5, 5.2.12.

use alloc::vec::Vec;

use super::bytes::{entries, u8_at, u16_at, u32_at};

/// How an interrupt line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// By level rather than edge.
    pub level: bool,
    /// Active low rather than high.
    pub low: bool,
}

impl Trigger {
    /// As legacy interrupts of the ISA bus do.
    pub const ISA: Self = Self {
        level: false,
        low: false,
    };
    /// As PCI pins do.
    pub const PCI: Self = Self {
        level: true,
        low: true,
    };
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicInfo {
    /// Its ID.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// Its first input's global number.
    pub first_gsi: u32,
}

/// A legacy interrupt that does not go to the input of its own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The legacy number.
    pub isa: u8,
    /// The input's global number.
    pub gsi: u32,
    /// How it signals.
    pub trigger: Trigger,
}

/// What the table tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Madt {
    /// APIC IDs of the CPUs that can be used, in the table's order, each once.
    pub cpus: Vec<u32>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApicInfo>,
    /// Legacy interrupts that are wired otherwise.
    pub overrides: Vec<Override>,
    /// Whether legacy interrupt controllers exist, which must be silenced.
    pub has_8259: bool,
}

const HEADER: usize = 44;
/// Bit 1, of CPUs that could be brought online as the machine runs, changes nothing: they are not there
/// yet.
const ENABLED: u32 = 1;
/// No more CPUs are ever started; I/O APICs have IDs of 8 bits, legacy interrupts numbers up to 15.
const CPUS_MAX: usize = 512;
const IO_APICS_MAX: usize = 256;
const ISA_INTERRUPTS: u8 = 16;

impl Madt {
    /// Reads the table's bytes, its header included. Entries that are too short, or too many, are left
    /// out.
    pub fn parse(table: &[u8]) -> Self {
        let mut madt = Self {
            has_8259: u32_at(table, 40).unwrap_or(1) & 1 != 0,
            ..Self::default()
        };
        for (kind, entry) in entries(table.get(HEADER..).unwrap_or_default()) {
            madt.entry(kind, entry);
        }
        madt
    }

    fn entry(&mut self, kind: u8, entry: &[u8]) -> Option<()> {
        match kind {
            // All ones address every CPU: they name none.
            0 if u32_at(entry, 4)? & ENABLED != 0 => match u8_at(entry, 3)? {
                u8::MAX => {}
                id => self.add_cpu(id.into()),
            },
            9 if u32_at(entry, 8)? & ENABLED != 0 => match u32_at(entry, 4)? {
                u32::MAX => {}
                id => self.add_cpu(id),
            },
            1 if self.io_apics.len() < IO_APICS_MAX => self.io_apics.push(IoApicInfo {
                id: u8_at(entry, 2)?,
                address: u32_at(entry, 4)?.into(),
                first_gsi: u32_at(entry, 8)?,
            }),
            2 => {
                let flags = u16_at(entry, 8)?;
                // 00 conforms to the bus, which for ISA is edge and high.
                let trigger = Trigger {
                    low: flags & 3 == 3,
                    level: flags >> 2 & 3 == 3,
                };
                let (isa, gsi) = (u8_at(entry, 3)?, u32_at(entry, 4)?);
                let known = self.overrides.iter().any(|o| o.isa == isa);
                if isa < ISA_INTERRUPTS && !known {
                    self.overrides.push(Override { isa, gsi, trigger });
                }
            }
            _ => {}
        }
        Some(())
    }

    fn add_cpu(&mut self, apic_id: u32) {
        if self.cpus.len() < CPUS_MAX && !self.cpus.contains(&apic_id) {
            self.cpus.push(apic_id);
        }
    }

    /// The input and trigger of a legacy interrupt.
    pub fn isa(&self, isa: u8) -> (u32, Trigger) {
        self.overrides
            .iter()
            .find(|o| o.isa == isa)
            .map_or((isa.into(), Trigger::ISA), |o| (o.gsi, o.trigger))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[&[u8]]) -> Vec<u8> {
        let mut table = alloc::vec![0; HEADER];
        table[40] = 1;
        entries
            .iter()
            .for_each(|entry| table.extend_from_slice(entry));
        table
    }

    #[test]
    fn cpus_io_apics_and_overrides_are_read() {
        let madt = Madt::parse(&table(&[
            &[0, 8, 0, 0, 1, 0, 0, 0],
            &[0, 8, 1, 5, 1, 0, 0, 0],
            &[0, 8, 2, 6, 0, 0, 0, 0],
            &[0, 8, 3, 7, 2, 0, 0, 0],
            &[9, 16, 0, 0, 1, 1, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0],
            &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0],
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0],
            &[2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0],
        ]));
        assert_eq!(madt.cpus, [0, 5, 256]);
        assert_eq!(
            madt.io_apics,
            [IoApicInfo {
                id: 0,
                address: 0xfec0_0000,
                first_gsi: 24
            }]
        );
        assert_eq!(
            madt.isa(9),
            (
                9,
                Trigger {
                    level: true,
                    low: false
                }
            )
        );
        assert_eq!(madt.isa(4), (4, Trigger::ISA));
        assert!(madt.has_8259);
    }

    #[test]
    fn all_ones_name_no_cpu() {
        let madt = Madt::parse(&table(&[
            &[0, 8, 0, 0xff, 1, 0, 0, 0],
            &[9, 16, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 1, 0, 0, 0],
            &[9, 16, 0, 0, 0xff, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0],
        ]));
        assert_eq!(madt.cpus, [0xff]);
    }

    #[test]
    fn a_table_of_any_length_names_a_bounded_number() {
        let entry = |id: u32| {
            let mut entry = [9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
            entry[4..8].copy_from_slice(&id.to_le_bytes());
            entry
        };
        let entries: Vec<_> = (0x100..0x1_0000).map(entry).collect();
        let entries: Vec<_> = entries.iter().map(|entry| &entry[..]).collect();
        assert_eq!(Madt::parse(&table(&entries)).cpus.len(), CPUS_MAX);
    }

    #[test]
    fn malformed_tables_end_early() {
        assert_eq!(Madt::parse(&[]).cpus, [0; 0]);
        for bad in [
            &[0u8, 0][..],
            &[0, 1],
            &[0, 200, 0],
            &[0, 4, 0, 0],
            &[9, 8, 0, 0, 1, 0, 0, 0],
        ] {
            assert_eq!(Madt::parse(&table(&[bad])).cpus, [0; 0], "{bad:?}");
        }
        assert_eq!(
            Madt::parse(&table(&[&[0, 8, 0, 0, 1, 0, 0, 0][..]; 3])).cpus,
            [0]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            Madt::parse(&bytes);
        }
    }
}
