//! The kernel's own symbol table, put into the image after linking.
//!
//! Little endian: magic `LSYM`, the number of entries, then entries by rising address (offset of
//! the function from the image's start, offset of its name from the table's start), then names
//! (length in 16 bits, UTF-8).

use crate::acpi::bytes::{u16_at, u32_at};

const MAGIC: u32 = u32::from_le_bytes(*b"LSYM");

/// A symbol table in memory.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'t> {
    table: &'t [u8],
    base: u64,
    count: usize,
}

impl<'t> Symbols<'t> {
    /// Reads `table`, whose offsets count from `base`. `None` where nothing was put there.
    pub fn new(table: &'t [u8], base: u64) -> Option<Self> {
        let count = u32_at(table, 4)? as usize;
        let fits = count.checked_mul(8)?.checked_add(8)? <= table.len();
        (u32_at(table, 0)? == MAGIC && fits).then_some(Self { table, base, count })
    }

    /// Where a function starts, counted from the base, and its name.
    fn entry(&self, index: usize) -> Option<(u64, &'t str)> {
        let at = 8 + 8 * index;
        let start = u64::from(u32_at(self.table, at)?);
        let name_at = u32_at(self.table, at + 4)? as usize;
        let len = usize::from(u16_at(self.table, name_at)?);
        let name = self.table.get(name_at + 2..)?.get(..len)?;
        Some((start, core::str::from_utf8(name).ok()?))
    }

    /// The function that covers `address`, and how far into it the address is.
    pub fn find(&self, address: u64) -> Option<(&'t str, u64)> {
        let offset = address.checked_sub(self.base)?;
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.0 <= offset {
                low = middle + 1
            } else {
                high = middle
            }
        }
        let (start, name) = self.entry(low.checked_sub(1)?)?;
        Some((name, offset - start))
    }
}

#[cfg(target_os = "none")]
unsafe extern "C" {
    static __ksyms_start: u8;
    static __ksyms_end: u8;
    static __kernel_start: u8;
}

/// The kernel's.
#[cfg(target_os = "none")]
pub fn kernel() -> Option<Symbols<'static>> {
    let (start, end) = (&raw const __ksyms_start, &raw const __ksyms_end);
    // SAFETY: the linker script's section, read-only.
    let table = unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) };
    Symbols::new(table, &raw const __kernel_start as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn table(symbols: &[(u32, &str)]) -> Vec<u8> {
        let mut table = MAGIC.to_le_bytes().to_vec();
        table.extend((symbols.len() as u32).to_le_bytes());
        let mut name_at = 8 + 8 * symbols.len() as u32;
        for (address, name) in symbols {
            table.extend(address.to_le_bytes());
            table.extend(name_at.to_le_bytes());
            name_at += 2 + name.len() as u32;
        }
        for (_, name) in symbols {
            table.extend((name.len() as u16).to_le_bytes());
            table.extend(name.as_bytes());
        }
        table
    }

    #[test]
    fn addresses_are_found_in_their_function() {
        let table = table(&[(0, "start"), (0x100, "middle"), (0x180, "end")]);
        let symbols = Symbols::new(&table, 0x1000).unwrap();
        assert_eq!(symbols.find(0x1000), Some(("start", 0)));
        assert_eq!(symbols.find(0x10ff), Some(("start", 0xff)));
        assert_eq!(symbols.find(0x1100), Some(("middle", 0)));
        assert_eq!(symbols.find(0x9999), Some(("end", 0x9999 - 0x1180)));
        assert_eq!(symbols.find(0xfff), None);
    }

    #[test]
    fn any_address_may_be_asked_for() {
        // As the image has it: the boot code lies 2 GiB beyond the base, around the end.
        let table = table(&[(0, "first"), (0x100, "last"), (0x8000_0000, "boot")]);
        let base = 0xffff_ffff_8010_0000;
        let symbols = Symbols::new(&table, base).unwrap();
        assert_eq!(symbols.find(base + 0x80), Some(("first", 0x80)));
        assert_eq!(
            symbols.find(u64::MAX),
            Some(("last", u64::MAX - base - 0x100))
        );
        assert_eq!(symbols.find(0), None);
    }

    #[test]
    fn an_unfilled_or_torn_table_is_no_table() {
        assert!(Symbols::new(&[0; 64], 0).is_none());
        assert!(Symbols::new(&table(&[(0, "a"), (8, "b")])[..20], 0).is_none());
        let mut torn = table(&[(0, "start")]);
        torn.truncate(18);
        assert_eq!(Symbols::new(&torn, 0).unwrap().find(0), None);
    }
}
