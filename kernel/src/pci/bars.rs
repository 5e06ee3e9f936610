//! Base address registers. PCI Express Base 7.5.1.2.1.

use alloc::vec::Vec;

use hal::pci::{Config, header};

/// Offset of the first register.
const BAR0: usize = 0x10;

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which register, 0 to 5; the lower one of a 64-bit pair.
    pub index: usize,
    /// Where it is; 0 where nobody assigned an address.
    pub address: u64,
    /// Bytes, a power of two.
    pub size: u64,
    /// Two registers wide.
    pub wide: bool,
    /// Reads have no side effect.
    pub prefetchable: bool,
}

impl Bar {
    /// The first address after it, saturating.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.size)
    }

    /// Writes its address.
    pub fn set_address(&mut self, config: &Config, address: u64) {
        config.write32(BAR0 + 4 * self.index, address as u32);
        if self.wide {
            config.write32(BAR0 + 4 * self.index + 4, (address >> 32) as u32);
        }
        self.address = address;
    }
}

/// Sizes the memory BARs among the first `count` registers (6 for endpoints, 2 for bridges), with
/// decoding off meanwhile. I/O BARs, and those of reserved types, are left out.
pub fn size(config: &Config, count: usize) -> Vec<Bar> {
    let command = config.read16(header::COMMAND);
    config.write16(header::COMMAND, command & !(header::COMMAND_MEMORY | 1));
    let mut bars = Vec::new();
    let mut index = 0;
    while index < count {
        let at = BAR0 + 4 * index;
        let low = config.read32(at);
        let (io, kind) = (low & 1 != 0, low >> 1 & 3);
        let wide = !io && kind == 2 && index + 1 < count;
        if !io && (kind == 0 || wide) {
            let high = if wide { config.read32(at + 4) } else { 0 };
            config.write32(at, u32::MAX);
            let mut mask = u64::from(config.read32(at) & !0xf);
            config.write32(at, low);
            if wide {
                config.write32(at + 4, u32::MAX);
                mask |= u64::from(config.read32(at + 4)) << 32;
                config.write32(at + 4, high);
            } else {
                mask |= 0xffff_ffff_0000_0000;
            }
            // The lowest bit that sticks is the size; a BAR without any is not there.
            if mask & !0xffff_ffff_0000_0000 != 0 || (wide && mask != 0) {
                let address = u64::from(high) << 32 | u64::from(low & !0xf);
                let size = 1 << mask.trailing_zeros();
                let prefetchable = low & 8 != 0;
                bars.push(Bar {
                    index,
                    address,
                    size,
                    wide,
                    prefetchable,
                });
            }
        }
        index += if wide { 2 } else { 1 };
    }
    config.write16(header::COMMAND, command);
    bars
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::sync::Arc;
    use hal::mmio::Width;
    use hal::pci::ConfigOps;
    use spin::Mutex;

    /// A function whose registers hold what is written, but for bits that a mask keeps.
    pub(crate) struct FakeFunction {
        bytes: Mutex<Vec<u8>>,
        fixed: Vec<(usize, u32, u32)>,
    }

    impl FakeFunction {
        /// `words` are (offset, value); `fixed` are (offset, read-only bits, their value).
        pub(crate) fn config(words: &[(usize, u32)], fixed: &[(usize, u32, u32)]) -> Config {
            let mut bytes = alloc::vec![0u8; 4096];
            for &(offset, value) in words.iter().chain(
                fixed
                    .iter()
                    .map(|&(offset, _, value)| (offset, value))
                    .collect::<Vec<_>>()
                    .iter(),
            ) {
                bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            }
            Config::new(Arc::new(Self {
                bytes: Mutex::new(bytes),
                fixed: fixed.to_vec(),
            }))
        }
    }

    impl ConfigOps for FakeFunction {
        fn len(&self) -> usize {
            4096
        }
        fn read(&self, offset: usize, width: Width) -> u32 {
            let bytes = self.bytes.lock();
            (0..width.bytes())
                .rev()
                .fold(0, |v, i| v << 8 | u32::from(bytes[offset + i]))
        }
        fn write(&self, offset: usize, width: Width, value: u32) {
            let mut bytes = self.bytes.lock();
            for i in 0..width.bytes() {
                bytes[offset + i] = (value >> (8 * i)) as u8;
            }
            let word = offset & !3;
            if let Some(&(at, mask, kept)) = self.fixed.iter().find(|f| f.0 == word) {
                let now = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                bytes[at..at + 4].copy_from_slice(&(now & !mask | kept).to_le_bytes());
            }
        }
    }

    #[test]
    fn sizes_come_from_the_bits_that_stick() {
        let config = FakeFunction::config(
            &[(4, 7)],
            &[
                (0x10, 0x3fff, 0x4),      // 64-bit, 16 KiB
                (0x18, 0xfff, 0x8),       // 32-bit, prefetchable, 4 KiB
                (0x1c, 0xff, 0x1),        // I/O
                (0x20, 0xffff_ffff, 0x4), // 64-bit, 1 TiB
                (0x24, 0xff, 0),
            ],
        );
        let bars = size(&config, 6);
        let sizes: Vec<_> = bars
            .iter()
            .map(|b| (b.index, b.size, b.wide, b.prefetchable))
            .collect();
        assert_eq!(
            sizes,
            [
                (0, 16 << 10, true, false),
                (2, 4 << 10, false, true),
                (4, 1 << 40, true, false)
            ]
        );
        assert_eq!(config.read16(header::COMMAND), 7, "decoding is on again");
    }

    #[test]
    fn nonsense_has_no_bars() {
        // Reserved types, registers that are not there, a 64-bit type in the last register.
        let config = FakeFunction::config(
            &[],
            &[(0x10, 0xff, 0x6), (0x14, u32::MAX, 0), (0x24, 0xfff, 0x4)],
        );
        assert!(
            size(&config, 6)
                .iter()
                .all(|bar| bar.index != 0 && bar.index != 1 && bar.index != 5)
        );
        let absent = FakeFunction::config(&[], &[(0x10, u32::MAX, u32::MAX)]);
        assert!(size(&absent, 1).is_empty());
    }

    #[test]
    fn both_halves_of_an_address_are_written() {
        let config = FakeFunction::config(&[], &[(0x10, 0xfff, 0x4)]);
        let mut bar = size(&config, 2)[0];
        bar.set_address(&config, 0x12_3456_7000);
        assert_eq!(size(&config, 2)[0].address, 0x12_3456_7000);
    }
}
