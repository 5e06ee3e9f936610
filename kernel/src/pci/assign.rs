//! Giving addresses to BARs that firmware left without.
//!
//! Firmware assigns nearly everything. What is left is placed into the free room of the windows
//! that lead to the function: those of the bridge above it, or the host bridge's.

use alloc::vec::Vec;
use core::ops::Range;

use hal::pci::Config;

use super::bars::Bar;

/// Room for memory BARs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The addresses.
    pub range: Range<u64>,
    /// Only for BARs that are prefetchable.
    pub prefetchable: bool,
}

/// The windows that a bridge lets through; empty ones are left out. PCI Express Base 7.5.1.3.
pub fn bridge_windows(config: &Config) -> Vec<Window> {
    let mut windows = Vec::new();
    let memory = config.read32(0x20);
    let base = u64::from(memory & 0xfff0) << 16;
    let limit = u64::from(memory & 0xfff0_0000) | 0xf_ffff;
    if base <= limit && base != 0 {
        windows.push(Window {
            range: base..limit + 1,
            prefetchable: false,
        });
    }
    let prefetchable = config.read32(0x24);
    let wide = prefetchable & 0xf == 1;
    let high = |offset| {
        if wide {
            u64::from(config.read32(offset)) << 32
        } else {
            0
        }
    };
    let base = high(0x28) | u64::from(prefetchable & 0xfff0) << 16;
    let limit = high(0x2c) | u64::from(prefetchable & 0xfff0_0000) | 0xf_ffff;
    if base <= limit && base != 0 && limit < 1 << 52 {
        windows.push(Window {
            range: base..limit + 1,
            prefetchable: true,
        });
    }
    windows
}

/// A window of at least a mebibyte, and at most this, is what a bridge gets.
const WINDOW_MAX: u64 = 256 << 20;

/// The window that a bridge needs for so many bytes behind it, as a BAR that is to be placed: a
/// power of two, so that whatever is placed inside finds its alignment. `None` where that is more
/// than anybody has.
pub fn demand(bytes: u64) -> Option<Bar> {
    let size = bytes.max(1 << 20).checked_next_power_of_two()?;
    (size <= WINDOW_MAX).then_some(Bar {
        index: 0,
        address: 0,
        size,
        wide: false,
        prefetchable: false,
    })
}

/// Has a bridge let through what lies in `range`, a multiple of a mebibyte below 4 GiB, not
/// prefetchable. PCI Express Base 7.5.1.3.8.
pub fn open_window(config: &Config, range: Range<u64>) {
    let base = (range.start >> 16) as u32 & 0xfff0;
    let limit = (range.end - 1) as u32 & 0xfff0_0000;
    config.write32(0x20, limit | base);
}

/// A place for `bar` in `windows` that overlaps nothing in `taken`, the lowest there is. A
/// prefetchable BAR prefers a prefetchable window; a 32-bit BAR stays below 4 GiB.
pub fn place(bar: &Bar, windows: &[Window], taken: &[Range<u64>]) -> Option<u64> {
    let reach = if bar.wide { u64::MAX } else { 1 << 32 };
    let mut ordered: Vec<_> = windows
        .iter()
        .filter(|window| bar.prefetchable || !window.prefetchable)
        .collect();
    ordered.sort_by_key(|window| (window.prefetchable != bar.prefetchable, window.range.start));
    ordered.into_iter().find_map(|window| {
        let mut at = window.range.start.checked_next_multiple_of(bar.size)?;
        loop {
            let end = at.checked_add(bar.size)?;
            if end > window.range.end.min(reach) {
                return None;
            }
            match taken
                .iter()
                .find(|taken| taken.start < end && at < taken.end)
            {
                Some(taken) => at = taken.end.checked_next_multiple_of(bar.size)?,
                None => return Some(at),
            }
        }
    })
}

/// Whether a BAR's address can work: assigned, aligned, and inside a window.
pub fn is_assigned(bar: &Bar, windows: &[Window]) -> bool {
    bar.address != 0
        && bar.address.is_multiple_of(bar.size)
        && windows
            .iter()
            .any(|w| w.range.start <= bar.address && bar.end() <= w.range.end)
}

#[cfg(test)]
mod tests {
    use super::super::bars::tests::FakeFunction;
    use super::*;

    fn bar(size: u64, wide: bool, prefetchable: bool) -> Bar {
        Bar {
            index: 0,
            address: 0,
            size,
            wide,
            prefetchable,
        }
    }

    /// One range, as a list.
    fn only(range: Range<u64>) -> Vec<Range<u64>> {
        Vec::from([range])
    }

    fn window(range: Range<u64>, prefetchable: bool) -> Window {
        Window {
            range,
            prefetchable,
        }
    }

    #[test]
    fn windows_are_read_as_bridges_keep_them() {
        let config = FakeFunction::config(
            &[
                (0x20, 0xfe90_fe80),
                (0x24, 0x0011_0001 | 0xfff1_0001),
                (0x28, 8),
                (0x2c, 8),
            ],
            &[],
        );
        assert_eq!(
            bridge_windows(&config),
            [
                window(0xfe80_0000..0xfea0_0000, false),
                window(0x8_0000_0000..0x9_0000_0000, true)
            ]
        );
        let closed = FakeFunction::config(&[(0x20, 0x0000_fff0), (0x24, 0x0001_fff1)], &[]);
        assert!(bridge_windows(&closed).is_empty());
    }

    #[test]
    fn bridges_get_windows_for_what_is_behind_them() {
        assert_eq!(demand(0).map(|bar| bar.size), Some(1 << 20));
        assert_eq!(demand(0x30_0000).map(|bar| bar.size), Some(4 << 20));
        assert_eq!(demand(1 << 40), None);
        assert_eq!(demand(u64::MAX), None);
        let config = FakeFunction::config(&[(0x20, 0x0000_fff0)], &[]);
        open_window(&config, 0xfe80_0000..0xfea0_0000);
        assert_eq!(config.read32(0x20), 0xfe90_fe80);
        let open = window(0xfe80_0000..0xfea0_0000, false);
        assert!(bridge_windows(&config).contains(&open));
    }

    #[test]
    fn places_are_aligned_free_and_within_reach() {
        let windows = [
            window(0xc000_0000..0xc100_0000, false),
            window(1 << 34..1 << 36, true),
        ];
        assert_eq!(
            place(&bar(0x4000, true, false), &windows, &[]),
            Some(0xc000_0000)
        );
        let taken = [0xc000_0000..0xc000_1000, 0xc000_4000..0xc000_8000];
        assert_eq!(
            place(&bar(0x4000, true, false), &windows, &taken),
            Some(0xc000_8000)
        );
        assert_eq!(
            place(&bar(0x4000, true, true), &windows, &[]),
            Some(1 << 34)
        );
        assert_eq!(
            place(&bar(0x4000, false, true), &windows, &[]),
            Some(0xc000_0000)
        );
    }

    #[test]
    fn what_does_not_fit_gets_no_place() {
        let windows = [window(0xc000_0000..0xc100_0000, false)];
        assert_eq!(place(&bar(1 << 40, true, false), &windows, &[]), None);
        assert_eq!(
            place(
                &bar(0x4000, true, false),
                &windows,
                &only(0xc000_0000..0xc100_0000)
            ),
            None
        );
        assert_eq!(
            place(
                &bar(1 << 63, true, false),
                &[window(1..u64::MAX, false)],
                &only(0..u64::MAX)
            ),
            None
        );
        assert_eq!(
            place(
                &bar(0x4000, true, false),
                &[window(1 << 40..1 << 41, true)],
                &[]
            ),
            None
        );
    }

    #[test]
    fn an_address_outside_every_window_does_not_count() {
        let windows = [window(0xc000_0000..0xc100_0000, false)];
        let at = |address| Bar {
            address,
            ..bar(0x4000, true, false)
        };
        assert!(is_assigned(&at(0xc000_4000), &windows));
        for address in [0, 0xc000_1000, 0xc0ff_e000, 0xd000_0000] {
            assert!(!is_assigned(&at(address), &windows), "{address:#x}");
        }
    }
}
