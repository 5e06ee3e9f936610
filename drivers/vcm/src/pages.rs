//! Page sizes, and how a stretch of addresses falls into pages.

/// A size of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    Kib4,
    /// 2 MiB.
    Mib2,
    /// 1 GiB.
    Gib1,
}

impl PageSize {
    /// All, the smallest first.
    pub const ALL: [Self; 3] = [Self::Kib4, Self::Mib2, Self::Gib1];

    /// Bytes in such a page.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// How many address bits lie inside.
    pub const fn shift(self) -> u32 {
        match self {
            Self::Kib4 => 12,
            Self::Mib2 => 21,
            Self::Gib1 => 30,
        }
    }
}

bitflags::bitflags! {
    /// The page sizes of a memory-management unit.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageSizes: u8 {
        /// [`PageSize::Kib4`].
        const KIB4 = 1 << PageSize::Kib4 as u8;
        /// [`PageSize::Mib2`].
        const MIB2 = 1 << PageSize::Mib2 as u8;
        /// [`PageSize::Gib1`].
        const GIB1 = 1 << PageSize::Gib1 as u8;
    }
}

impl PageSizes {
    /// They, the smallest first.
    pub fn sizes(self) -> impl DoubleEndedIterator<Item = PageSize> {
        let here = move |size: &PageSize| self.bits() & 1 << *size as u8 != 0;
        PageSize::ALL.into_iter().filter(here)
    }

    /// How `len` bytes from `at` on, which lead to `phys`, fall into the largest pages. All three
    /// are multiples of the smallest page.
    pub fn runs(self, at: u64, phys: u64, len: u64) -> impl Iterator<Item = Run> {
        let mut left = Run {
            at,
            phys,
            len,
            page: PageSize::Kib4,
        };
        core::iter::from_fn(move || {
            let run = self.first(left)?;
            left.at += run.len;
            left.phys += run.len;
            left.len -= run.len;
            Some(run)
        })
    }

    fn first(self, all: Run) -> Option<Run> {
        let both = all.at | all.phys;
        let fits = |size: &PageSize| both.is_multiple_of(size.bytes()) && size.bytes() <= all.len;
        let page = self.sizes().rfind(fits)?;
        // To where larger pages begin, if they do.
        let larger = self.sizes().filter(|&size| size > page).find_map(|size| {
            let alike = (all.at ^ all.phys).is_multiple_of(size.bytes());
            let before = all.at.wrapping_neg() & (size.bytes() - 1);
            (alike && all.len.checked_sub(before)? >= size.bytes()).then_some(before)
        });
        let whole = all.len & !(page.bytes() - 1);
        Some(Run {
            len: larger.unwrap_or(whole),
            page,
            ..all
        })
    }
}

/// Pages of one size in a row, contiguous on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first address, a multiple of the page.
    pub at: u64,
    /// Where it leads, a multiple of the page.
    pub phys: u64,
    /// Bytes, a multiple of the page.
    pub len: u64,
    /// How large each page is.
    pub page: PageSize,
}

impl Run {
    /// How many pages these are.
    pub fn pages(&self) -> u64 {
        self.len >> self.page.shift()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const K: u64 = PageSize::Kib4.bytes();
    const M: u64 = PageSize::Mib2.bytes();
    const G: u64 = PageSize::Gib1.bytes();

    fn runs(sizes: PageSizes, at: u64, phys: u64, len: u64) -> Vec<(u64, PageSize)> {
        sizes
            .runs(at, phys, len)
            .map(|run| (run.len, run.page))
            .collect()
    }

    #[test]
    fn large_pages_are_used_where_both_sides_allow() {
        use PageSize::{Gib1, Kib4, Mib2};
        let all = PageSizes::all();
        assert_eq!(runs(all, 0, M, M), [(M, Mib2)]);
        assert_eq!(runs(all, K, M, M), [(M, Kib4)], "never aligned alike");
        assert_eq!(
            runs(all, M - K, 3 * M - K, M + 2 * K),
            [(K, Kib4), (M, Mib2), (K, Kib4)]
        );
        assert_eq!(
            runs(all, G - M - K, 5 * G - M - K, G + 2 * M),
            [(K, Kib4), (M, Mib2), (G, Gib1), (M - K, Kib4)]
        );
        assert_eq!(runs(PageSizes::KIB4, 0, 0, 2 * M), [(2 * M, Kib4)]);
        let no_medium = PageSizes::KIB4 | PageSizes::GIB1;
        assert_eq!(runs(no_medium, 0, 0, G + M), [(G, Gib1), (M, Kib4)]);
        assert_eq!(runs(all, 0, 0, 0), []);
        assert_eq!(runs(PageSizes::MIB2, 0, 0, K), [], "no page is as small");
    }

    proptest! {
        #[test]
        fn runs_cover_everything_once(
            bits in 0u8..4, at in 0u64..1 << 20, phys in 0u64..1 << 20, len in 0u64..1 << 20,
        ) {
            let sizes = PageSizes::KIB4 | PageSizes::from_bits_truncate(bits << 1);
            let (mut at, mut phys, end) = (at * K, phys * K, (at + len) * K);
            for run in sizes.runs(at, phys, len * K) {
                prop_assert_eq!((run.at, run.phys), (at, phys));
                prop_assert!(run.len > 0 && (run.at | run.phys | run.len) % run.page.bytes() == 0);
                (at, phys) = (at + run.len, phys + run.len);
            }
            prop_assert_eq!(at, end);
        }
    }
}
