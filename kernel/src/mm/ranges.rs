//! Ranges of numbers, handed out and taken back.

use alloc::collections::BTreeMap;
use core::ops::Range;

/// The free parts of a range, by start; neighbours are merged.
#[derive(Debug, Default)]
pub struct Ranges {
    free: BTreeMap<u64, u64>,
}

impl Ranges {
    /// All of `range` is free.
    pub fn new(range: Range<u64>) -> Self {
        Self {
            free: BTreeMap::from([(range.start, range.end)]),
        }
    }

    /// The lowest free range of `len`; `None` where there is none, or `len` is 0.
    pub fn take(&mut self, len: u64) -> Option<Range<u64>> {
        let (&start, &end) = self
            .free
            .iter()
            .find(|&(start, end)| len > 0 && end - start >= len)?;
        self.free.remove(&start);
        if end - start > len {
            self.free.insert(start + len, end);
        }
        Some(start..start + len)
    }

    /// Takes back what [`Ranges::take`] gave. What overlaps a free range is a mistake of the
    /// caller's, and is not taken: the answer is `false`.
    pub fn give(&mut self, range: Range<u64>) -> bool {
        let before = self
            .free
            .range(..=range.start)
            .next_back()
            .map(|(&s, &e)| (s, e));
        let after = self.free.range(range.start..).next().map(|(&s, &e)| (s, e));
        if range.is_empty()
            || before.is_some_and(|(_, end)| end > range.start)
            || after.is_some_and(|(start, _)| start < range.end)
        {
            return false;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((lower, _)) = before.filter(|&(_, e)| e == start) {
            start = lower;
        }
        if let Some((upper, upper_end)) = after.filter(|&(s, _)| s == end) {
            self.free.remove(&upper);
            end = upper_end;
        }
        self.free.insert(start, end);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn what_overlaps_a_free_range_is_not_taken() {
        let mut ranges = Ranges::new(0..100);
        assert_eq!(ranges.take(40), Some(0..40));
        assert!(!ranges.give(30..50));
        assert!(!ranges.give(10..10));
        assert!(ranges.give(0..40));
        assert!(!ranges.give(0..40), "twice");
        assert_eq!(
            (ranges.take(0), ranges.take(101), ranges.take(100)),
            (None, None, Some(0..100))
        );
    }

    proptest::proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(steps: Vec<(bool, u8, u8)>) {
            let mut ranges = Ranges::new(1000..3000);
            let mut taken: Vec<Range<u64>> = Vec::new();
            for (take, len, which) in steps {
                if take {
                    if let Some(range) = ranges.take(u64::from(len)) {
                        proptest::prop_assert!(range.start >= 1000 && range.end <= 3000);
                        let apart = |t: &Range<u64>| t.end <= range.start || range.end <= t.start;
                        proptest::prop_assert!(taken.iter().all(apart));
                        taken.push(range);
                    }
                } else if !taken.is_empty() {
                    let range = taken.swap_remove(usize::from(which) % taken.len());
                    proptest::prop_assert!(ranges.give(range));
                }
            }
            for range in taken {
                proptest::prop_assert!(ranges.give(range));
            }
            proptest::prop_assert_eq!(ranges.take(2000), Some(1000..3000));
        }
    }
}
