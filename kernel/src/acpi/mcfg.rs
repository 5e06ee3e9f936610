//! Where the configuration spaces of PCI segments are mapped. PCI Firmware 3.3, 4.1.2.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::bytes::{u8_at, u16_at, u64_at};

/// One window of configuration space (ECAM).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamWindow {
    /// Physical address of bus 0's space, whether or not the window begins there.
    pub base: u64,
    /// The segment.
    pub segment: u16,
    /// First and last bus.
    pub buses: (u8, u8),
}

impl EcamWindow {
    /// Where its first bus begins, and bytes.
    pub fn range(&self) -> (u64, u64) {
        let (first, last) = (u64::from(self.buses.0), u64::from(self.buses.1));
        (self.base + (first << 20), (last - first + 1) << 20)
    }

    /// Whether both claim to be the same bus, or at the same addresses.
    pub fn collides(&self, other: &Self) -> bool {
        let ((a, a_len), (b, b_len)) = (self.range(), other.range());
        let buses = self.buses.0 <= other.buses.1 && other.buses.0 <= self.buses.1;
        self.segment == other.segment && buses || a < b + b_len && b < a + a_len
    }
}

const HEADER: usize = 44;
const ENTRY: usize = 16;
/// No machine has more.
const WINDOWS_MAX: usize = 256;

/// The windows that make sense: aligned, buses in order, inside the address space.
pub fn parse(table: &[u8]) -> Vec<EcamWindow> {
    let entries = table.get(HEADER..).unwrap_or_default().chunks_exact(ENTRY);
    entries
        .filter_map(|entry| {
            let (base, segment) = (u64_at(entry, 0)?, u16_at(entry, 8)?);
            let buses = (u8_at(entry, 10)?, u8_at(entry, 11)?);
            let sane = base != 0 && base % (1 << 20) == 0 && base < 1 << 51 && buses.0 <= buses.1;
            sane.then_some(EcamWindow {
                base,
                segment,
                buses,
            })
        })
        .take(WINDOWS_MAX)
        .collect()
}

/// The buses of each segment that a scan goes over, each segment once: the windows of a segment may
/// leave holes between them, where nothing answers. All buses of segment 0 are within reach, by the
/// legacy ports where by no window.
pub fn segments(windows: &[EcamWindow]) -> Vec<(u16, RangeInclusive<u8>)> {
    let mut segments = alloc::vec![(0, 0..=u8::MAX)];
    for window in windows {
        let (first, last) = window.buses;
        match segments.iter_mut().find(|known| known.0 == window.segment) {
            Some((_, buses)) => *buses = first.min(*buses.start())..=last.max(*buses.end()),
            None => segments.push((window.segment, first..=last)),
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(base: u64, segment: u16, first: u8, last: u8) -> Vec<u8> {
        let mut entry = base.to_le_bytes().to_vec();
        entry.extend(segment.to_le_bytes());
        entry.extend([first, last, 0, 0, 0, 0]);
        entry
    }

    #[test]
    fn several_segments_are_found() {
        let mut table = alloc::vec![0; HEADER];
        table.extend(entry(0xb000_0000, 0, 0, 255));
        table.extend(entry(0x40_0000_0000, 1, 16, 31));
        let windows = parse(&table);
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[1].buses, (16, 31));
    }

    #[test]
    fn each_segment_is_scanned_once_and_the_first_one_always() {
        let whole = (0, 0..=255);
        let none = segments(&[]);
        assert!(none == alloc::vec![whole.clone()], "{none:?}");
        let mut table = alloc::vec![0; HEADER];
        table.extend(entry(0xb000_0000, 1, 0x40, 0x7f));
        table.extend(entry(0x40_0000_0000, 7, 0, 0));
        table.extend(entry(0x80_0000_0000, 1, 0x10, 0x1f));
        let expected = [whole, (1, 0x10..=0x7f), (7, 0..=0)];
        assert_eq!(segments(&parse(&table)), expected);
    }

    #[test]
    fn windows_without_sense_are_left_out() {
        let mut table = alloc::vec![0; HEADER];
        table.extend(entry(0, 0, 0, 255));
        table.extend(entry(0xb000_0001, 0, 0, 255));
        table.extend(entry(u64::MAX << 20, 0, 0, 255));
        table.extend(entry(0xb000_0000, 0, 9, 3));
        table.push(1);
        assert!(parse(&table).is_empty());
        assert!(parse(&[]).is_empty());
    }
}
