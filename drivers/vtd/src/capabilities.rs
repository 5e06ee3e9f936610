//! What a unit can do, as it says of itself. Sections 10.4.2 and 10.4.3.

use core::fmt;

use crate::error::Error;

bitflags::bitflags! {
    /// Yes or no.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// It reads its tables through the CPUs' caches.
        const COHERENT = 1 << 0;
        /// It takes invalidations from a queue.
        const QUEUE = 1 << 1;
        /// It remaps interrupts.
        const INTERRUPTS = 1 << 2;
        /// Interrupts reach APIC IDs of 32 bits.
        const EXTENDED_INTERRUPTS = 1 << 3;
        /// It may remember what is not there.
        const CACHING_MODE = 1 << 4;
        /// It must be told to look at what was written.
        const WRITE_BUFFER = 1 << 5;
        /// It can forget single pages.
        const PAGE_SELECTIVE = 1 << 6;
        /// It can wait for writes that it has let pass.
        const DRAIN_WRITES = 1 << 7;
        /// And for reads.
        const DRAIN_READS = 1 << 8;
        /// Pages of 2 MiB.
        const PAGES_2M = 1 << 9;
        /// Pages of 1 GiB.
        const PAGES_1G = 1 << 10;
        /// It has memory ranges of its own to protect.
        const PROTECTED_MEMORY = 1 << 11;
    }
}

/// What a unit can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Yes or no.
    pub features: Features,
    /// Levels of paging tables that it is used with: 3, 4 or 5.
    pub levels: u8,
    /// Address bits that devices have.
    pub address_bits: u8,
    /// How many domains there can be.
    pub domains: u32,
    /// The largest mask of a page-selective invalidation: so many low bits of the page number.
    pub largest_mask: u8,
    /// Where fault records are, in bytes, and how many.
    pub(crate) faults: (usize, usize),
    /// Where the IOTLB registers are, in bytes.
    pub(crate) iotlb: usize,
}

fn field(value: u64, low: u32, bits: u32) -> u64 {
    value >> low & ((1 << bits) - 1)
}

impl Capabilities {
    /// Reads CAP and ECAP. An error where no paging tables that are known here suit the unit, or
    /// values are reserved on which everything rests.
    pub(crate) fn decode(cap: u64, ecap: u64) -> Result<Self, Error> {
        let mut features = Features::empty();
        let mut has = |feature, word: u64, bit: u32| {
            features.set(feature, word >> bit & 1 != 0);
        };
        has(Features::WRITE_BUFFER, cap, 4);
        has(Features::CACHING_MODE, cap, 7);
        has(Features::PAGES_2M, cap, 34);
        has(Features::PAGES_1G, cap, 35);
        has(Features::PAGE_SELECTIVE, cap, 39);
        has(Features::DRAIN_WRITES, cap, 54);
        has(Features::DRAIN_READS, cap, 55);
        has(Features::COHERENT, ecap, 0);
        has(Features::QUEUE, ecap, 1);
        has(Features::INTERRUPTS, ecap, 3);
        has(Features::EXTENDED_INTERRUPTS, ecap, 4);
        features.set(Features::PROTECTED_MEMORY, field(cap, 5, 2) != 0);
        // Interrupt entries are invalidated by the queue alone.
        if !features.contains(Features::QUEUE) {
            features.remove(Features::INTERRUPTS | Features::EXTENDED_INTERRUPTS);
        }
        // SAGAW: bit 1 is 39 address bits in 3 levels, bit 2 is 48 in 4, bit 3 is 57 in 5.
        let widths = field(cap, 8, 5);
        let levels = [4, 3, 5]
            .into_iter()
            .find(|levels| widths >> (levels - 2) & 1 != 0);
        let levels = levels.ok_or(Error::Widths(widths as u8))?;
        // The widest address that a device may send, which tables may fall short of.
        let said = field(cap, 16, 6) as u8 + 1;
        let address_bits = said.min(12 + 9 * levels);
        if address_bits < 30 {
            return Err(Error::AddressBits(said));
        }
        let identifiers = 4 + 2 * field(cap, 0, 3) as u32;
        if identifiers > 16 {
            return Err(Error::DomainBits(identifiers));
        }
        Ok(Self {
            features,
            levels,
            address_bits,
            domains: 1 << identifiers,
            largest_mask: field(cap, 48, 6) as u8,
            faults: (
                field(cap, 24, 10) as usize * 16,
                field(cap, 40, 8) as usize + 1,
            ),
            iotlb: field(ecap, 8, 10) as usize * 16,
        })
    }

    /// Whether it has all of `features`.
    pub fn has(&self, features: Features) -> bool {
        self.features.contains(features)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "levels={} bits={} domains={}",
            self.levels, self.address_bits, self.domains
        )?;
        for (name, _) in self.features.iter_names() {
            f.write_str(" ")?;
            for c in name.chars() {
                let c = if c == '_' {
                    '-'
                } else {
                    c.to_ascii_lowercase()
                };
                fmt::Write::write_char(f, c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    /// What QEMU's unit of 48 bits says.
    const CAP: u64 = 0x00d2_0084_222f_0686;
    const ECAP: u64 = 0x00f0_0f5a;

    #[test]
    fn a_unit_as_they_are_is_understood() {
        let capabilities = Capabilities::decode(CAP, ECAP).unwrap();
        assert_eq!((capabilities.levels, capabilities.address_bits), (4, 48));
        assert_eq!(capabilities.domains, 1 << 16);
        assert_eq!(capabilities.faults, (0x220, 1));
        assert_eq!(capabilities.iotlb, 0xf0);
        assert_eq!(capabilities.largest_mask, 0x12);
        let queue = Features::QUEUE | Features::INTERRUPTS | Features::CACHING_MODE;
        assert!(capabilities.has(queue) && !capabilities.has(Features::COHERENT));
        assert!(format!("{capabilities}").contains("caching-mode"));
    }

    #[test]
    fn reserved_values_are_refused() {
        let with = |low: u32, bits: u32, value: u64| {
            let mask = ((1u64 << bits) - 1) << low;
            Capabilities::decode(CAP & !mask | value << low, ECAP)
        };
        assert_eq!(with(8, 5, 0), Err(Error::Widths(0)));
        assert_eq!(with(8, 5, 0b10001), Err(Error::Widths(0b10001)));
        assert_eq!(with(0, 3, 7), Err(Error::DomainBits(18)));
        assert_eq!(with(16, 6, 11), Err(Error::AddressBits(12)));
        assert_eq!(with(8, 5, 0b00010).unwrap().address_bits, 39);
        let five = with(8, 5, 0b01000).unwrap();
        assert_eq!((five.levels, five.address_bits), (5, 48));
        let no_queue = Capabilities::decode(CAP, ECAP & !2).unwrap();
        assert!(!no_queue.has(Features::INTERRUPTS));
    }
}
