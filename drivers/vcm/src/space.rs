//! Free addresses.
//!
//! A tree of free ranges by address, which merges neighbours, and one by size, which finds the
//! smallest that fits: both in logarithmic time. Before them stand short queues of ranges of a few
//! pages, one for each size: transfers take and give the same sizes all the time, by a push and a pop.
//! What is in a queue is free, and rests: a range is somebody's again after so many others of its size
//! have been given, so that a device that is late meets nothing there. When the trees have nothing, the
//! queues are emptied into them.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use core::array;
use core::ops::Range;

use crate::pages::PageSize;

/// Ranges of up to so many pages are kept in queues: 64 KiB that begin within a page, and a gap.
const QUEUED: usize = 18;
/// How many a queue keeps at most.
const DEPTH: usize = 128;
/// How many rest in it while there are others.
const RESTING: usize = 64;
/// How many ranges that are long enough, but may lie badly, are tried before a longer one is taken.
const TRIES: usize = 8;

/// The free addresses of one address space.
#[derive(Debug)]
pub(crate) struct Space {
    page: PageSize,
    /// Bytes behind each range that are nobody's while it is taken.
    gap: u64,
    /// All that there are.
    all: Range<u64>,
    /// Start and end; neighbours are merged.
    by_start: BTreeMap<u64, u64>,
    /// The same ranges: length and start.
    by_len: BTreeSet<(u64, u64)>,
    /// Starts of free ranges of one page, of two, and so on, what was given first in front.
    queues: [VecDeque<u64>; QUEUED],
    taken: u64,
}

impl Space {
    /// All whole pages of `range` are free. Behind what is taken of them `gap` bytes, whole pages, stay
    /// unused.
    pub(crate) fn new(range: Range<u64>, page: PageSize, gap: u64) -> Self {
        let bytes = page.bytes();
        let start = range.start.checked_next_multiple_of(bytes);
        let end = range.end & !(bytes - 1);
        let all = start
            .filter(|&start| start < end)
            .map_or(0..0, |start| start..end);
        let mut space = Self {
            page,
            gap,
            all: all.clone(),
            by_start: BTreeMap::new(),
            by_len: BTreeSet::new(),
            queues: array::from_fn(|_| VecDeque::new()),
            taken: 0,
        };
        if !all.is_empty() {
            space.insert(all);
        }
        space
    }

    /// All addresses, free or not.
    pub(crate) fn all(&self) -> &Range<u64> {
        &self.all
    }

    /// Bytes that are taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// A range of `len` bytes whose start is `offset` above a multiple of `align`. All are in whole
    /// pages, `len` is not 0, and `align` is a power of two above `offset`.
    #[inline]
    pub(crate) fn take(&mut self, len: u64, align: u64, offset: u64) -> Option<Range<u64>> {
        let whole = len.checked_add(self.gap)?;
        let anywhere = align <= self.page.bytes();
        let queue = self.queue(whole).filter(|_| anywhere);
        let rested = queue.filter(|queue| queue.len() > RESTING);
        let start = match rested.and_then(VecDeque::pop_front) {
            Some(start) => start,
            None => self.search(whole, align, offset)?,
        };
        self.taken += len;
        Some(start..start + len)
    }

    /// Takes back what was taken.
    #[inline]
    pub(crate) fn give(&mut self, range: Range<u64>) {
        self.taken -= range.end - range.start;
        let whole = range.start..range.end + self.gap;
        let len = whole.end - whole.start;
        let Some(queue) = self.queue(len) else {
            return self.insert(whole);
        };
        debug_assert!(!queue.contains(&range.start), "{range:#x?} is free");
        queue.push_back(range.start);
        if queue.len() > DEPTH
            && let Some(start) = queue.pop_front()
        {
            self.insert(start..start + len);
        }
    }

    /// Takes exactly `range`; whether it was free as a whole, its gap with it.
    pub(crate) fn take_at(&mut self, range: Range<u64>) -> bool {
        self.take_with(range, self.gap)
    }

    /// Takes exactly `range` for good, without a gap; whether it was free as a whole.
    pub(crate) fn exclude(&mut self, range: Range<u64>) -> bool {
        self.take_with(range, 0)
    }

    fn take_with(&mut self, range: Range<u64>, gap: u64) -> bool {
        self.empty_queues();
        let below = self.by_start.range(..=range.start).next_back();
        let (Some((&start, &end)), Some(whole)) = (below, range.end.checked_add(gap)) else {
            return false;
        };
        let free = end >= whole && !range.is_empty();
        if free {
            self.carve(start..end, range.start..whole);
            self.taken += range.end - range.start;
        }
        free
    }

    fn queue(&mut self, len: u64) -> Option<&mut VecDeque<u64>> {
        let pages = (len >> self.page.shift()) as usize;
        self.queues.get_mut(pages.wrapping_sub(1))
    }

    #[cold]
    fn search(&mut self, len: u64, align: u64, offset: u64) -> Option<u64> {
        if let Some(start) = self.fit(len, align, offset) {
            return Some(start);
        }
        self.empty_queues().then(|| self.fit(len, align, offset))?
    }

    fn fit(&mut self, len: u64, align: u64, offset: u64) -> Option<u64> {
        let inside = |&(size, start): &(u64, u64)| {
            let at = start.checked_add(offset.wrapping_sub(start) & (align - 1))?;
            let end = at.checked_add(len)?;
            (end <= start + size).then_some((start..start + size, at..end))
        };
        // The smallest range that is long enough; one that is wherever it lies; any that lies well.
        let wanted = self.by_len.range((len, 0)..);
        let sure = (len.saturating_add(align - self.page.bytes().min(align)), 0);
        let found = wanted.clone().take(TRIES).find_map(inside);
        let found = found.or_else(|| self.by_len.range(sure..).find_map(inside));
        let (free, taken) = found.or_else(|| wanted.skip(TRIES).find_map(inside))?;
        let start = taken.start;
        self.carve(free, taken);
        Some(start)
    }

    /// Takes `part` out of the free range `free`.
    fn carve(&mut self, free: Range<u64>, part: Range<u64>) {
        self.remove(&free);
        for left in [free.start..part.start, part.end..free.end] {
            if !left.is_empty() {
                self.add(left);
            }
        }
    }

    /// Empties the queues into the trees; whether there was anything.
    fn empty_queues(&mut self) -> bool {
        let mut any = false;
        for pages in 1..=QUEUED {
            let len = (pages as u64) << self.page.shift();
            while let Some(start) = self.queues[pages - 1].pop_front() {
                self.insert(start..start + len);
                any = true;
            }
        }
        any
    }

    /// Frees a range in the trees.
    fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        let below = self.by_start.range(..start).next_back();
        if let Some((&lower, _)) = below.filter(|&(_, &lower_end)| lower_end == start) {
            self.remove(&(lower..start));
            start = lower;
        }
        if let Some(&upper_end) = self.by_start.get(&end) {
            self.remove(&(end..upper_end));
            end = upper_end;
        }
        self.add(start..end);
    }

    fn add(&mut self, range: Range<u64>) {
        self.by_start.insert(range.start, range.end);
        self.by_len.insert((range.end - range.start, range.start));
    }

    fn remove(&mut self, range: &Range<u64>) {
        self.by_start.remove(&range.start);
        self.by_len.remove(&(range.end - range.start, range.start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const K: u64 = PageSize::Kib4.bytes();
    const M: u64 = PageSize::Mib2.bytes();

    fn space(range: Range<u64>) -> Space {
        Space::new(range, PageSize::Kib4, 0)
    }

    #[test]
    fn what_was_given_rests_until_many_others_were() {
        let mut space = space(0..1 << 30);
        let first = space.take(K, K, 0).unwrap();
        assert_eq!(first, 0..K);
        space.give(first.clone());
        for given in 0..RESTING {
            let other = space.take(K, K, 0).unwrap();
            assert_ne!(other, first, "after {given} others");
            space.give(other);
        }
        assert_eq!(space.take(K, K, 0), Some(first));
        assert_eq!(space.taken(), K);
    }

    #[test]
    fn nothing_rests_where_there_is_nothing_else() {
        let mut space = space(0..4 * K);
        for _ in 0..3 {
            let all = [(); 4].map(|()| space.take(K, K, 0).unwrap());
            assert_eq!(space.take(K, K, 0), None);
            all.into_iter().for_each(|range| space.give(range));
        }
    }

    #[test]
    fn a_gap_is_nobodys() {
        let mut space = Space::new(0..64 * K, PageSize::Kib4, K);
        let (one, two) = (space.take(2 * K, K, 0), space.take(K, K, 0));
        assert_eq!((one.clone(), two), (Some(0..2 * K), Some(3 * K..4 * K)));
        assert_eq!(space.taken(), 3 * K);
        assert!(!space.take_at(2 * K..3 * K) && !space.take_at(4 * K..5 * K));
        assert!(space.take_at(5 * K..6 * K));
        assert!(!space.take_at(63 * K..64 * K), "no gap behind it");
        assert!(space.exclude(61 * K..62 * K) && space.exclude(62 * K..64 * K));
        space.give(one.unwrap());
        assert!(space.take_at(K..2 * K));
        assert_eq!(space.taken(), 6 * K);
        assert_eq!(space.take(!(K - 1), K, 0), None);
    }

    #[test]
    fn a_full_queue_gives_to_the_trees() {
        let mut space = space(0..1 << 30);
        let all: Vec<_> = (0..3 * DEPTH)
            .map(|_| space.take(K, K, 0).unwrap())
            .collect();
        all.into_iter().for_each(|range| space.give(range));
        assert_eq!((space.queues[0].len(), space.taken()), (DEPTH, 0));
        assert_eq!(space.take(1 << 30, K, 0), Some(0..1 << 30), "merged again");
    }

    #[test]
    fn what_lies_badly_is_not_taken() {
        let mut space = space(K..8 * M);
        assert_eq!(space.take(M, M, 0), Some(M..2 * M));
        assert_eq!(space.take(M, M, 3 * K), Some(2 * M + 3 * K..3 * M + 3 * K));
        assert_eq!(space.take(4 * M, M, 0), Some(4 * M..8 * M));
        assert_eq!(space.take(M, M, 0), None);
        // Two pages less than two pages before the end, and one byte too many for what is left.
        assert_eq!(space.take(M - K, K, 0), Some(K..M));
    }

    #[test]
    fn a_good_place_is_found_among_many_bad_ones() {
        let mut space = space(0..64 * M);
        assert!(space.take_at(0..64 * M));
        // Eleven ranges of two pages, of which one is aligned.
        for n in 0..11 {
            let start = n * 4 * M + if n == 10 { 0 } else { K };
            space.insert(start..start + 2 * K);
        }
        assert_eq!(space.take(2 * K, M, 0), Some(40 * M..40 * M + 2 * K));
        assert_eq!(space.take(2 * K, M, 0), None);
    }

    #[test]
    fn an_exact_range_is_taken_out_of_the_queues_too() {
        let mut space = space(0..16 * K);
        let first = space.take(4 * K, K, 0).unwrap();
        space.give(first);
        assert!(space.take_at(2 * K..6 * K));
        assert!(!space.take_at(5 * K..7 * K) && !space.take_at(0..3 * K));
        assert!(!space.take_at(15 * K..17 * K) && !space.take_at(7 * K..7 * K));
        assert_eq!(space.taken(), 4 * K);
    }

    #[test]
    fn absurd_spaces_have_nothing() {
        for range in [
            0..0,
            1..K,
            u64::MAX - 5..u64::MAX,
            Range { start: 9, end: 3 },
        ] {
            assert_eq!(space(range.clone()).take(K, K, 0), None, "{range:?}");
        }
        let mut whole = space(0..u64::MAX);
        assert_eq!(whole.take(u64::MAX - 5, 1 << 63, 0), None);
        assert_eq!(whole.all(), &(0..0u64.wrapping_sub(K)));
    }

    proptest! {
        #[test]
        fn taken_ranges_never_overlap_and_all_come_back(
            steps in prop::collection::vec((0u8..4, 1u64..40, 0u32..6, any::<u8>()), 1..120)
        ) {
            let all = 7 * K..600 * K;
            let mut space = space(all.clone());
            let mut taken: Vec<Range<u64>> = Vec::new();
            for (what, pages, align, which) in steps {
                let (len, align) = (pages * K, K << align);
                let new = match what {
                    0 | 1 => space.take(len, align, (u64::from(which) * K) & (align - 1)),
                    2 => {
                        let at = (u64::from(which) * 3 + 1) * K;
                        let free = taken.iter().all(|t| t.end <= at || at + len <= t.start);
                        let free = free && all.start <= at && at + len <= all.end;
                        prop_assert_eq!(space.take_at(at..at + len), free);
                        free.then_some(at..at + len)
                    }
                    _ if taken.is_empty() => None,
                    _ => {
                        let range = taken.swap_remove(usize::from(which) % taken.len());
                        space.give(range);
                        None
                    }
                };
                if let Some(new) = new {
                    prop_assert!(all.start <= new.start && new.end <= all.end);
                    prop_assert_eq!(new.end - new.start, len);
                    prop_assert!(taken.iter().all(|t| t.end <= new.start || new.end <= t.start));
                    taken.push(new);
                }
                let bytes: u64 = taken.iter().map(|range| range.end - range.start).sum();
                prop_assert_eq!(space.taken(), bytes);
            }
            taken.into_iter().for_each(|range| space.give(range));
            prop_assert_eq!(space.take(593 * K, K, 0), Some(all));
        }
    }
}
