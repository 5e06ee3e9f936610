//! What strays can aim at: what the engine may reach, what it could reach before, where it has
//! written. Pure bookkeeping; nothing is accessed here.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::{Aim, PATTERN};

/// How many of the ranges that were taken back last are kept, of each kind.
const KEPT: usize = 64;
/// What is shorter than this is no memory of the machine's.
const SHORTEST_RAM: u64 = 1 << 20;
/// Where interrupt messages go that name an entry of an IOMMU's table, whose number is in bits 5 to 19
/// (Intel VT-d specification, "Interrupt Requests in Remappable Format").
const MESSAGES: u64 = 0xfee0_0010;
/// Entries from here on are nobody's: interrupts are given out from the first on.
const FREE_ENTRIES: u64 = 0x1000;

const LEN: u64 = PATTERN.len() as u64;

#[derive(Default)]
pub(crate) struct Targets {
    /// What the engine may reach: start and end.
    windows: BTreeMap<u64, u64>,
    /// What it could reach, the latest last.
    unmapped: VecDeque<Range<u64>>,
    /// Where it has written, the latest last.
    completed: VecDeque<Range<u64>>,
    /// The machine's memory, in order.
    ram: Vec<Range<u64>>,
    ram_is_known: bool,
    foreign: Vec<Range<u64>>,
}

impl Targets {
    /// The engine may reach this. What it may reach before a guest first lets it work, in long
    /// stretches, is the machine's memory.
    pub(crate) fn announce(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.cut(&range);
        self.windows.insert(range.start, range.end);
        if !self.ram_is_known && range.end - range.start >= SHORTEST_RAM {
            self.ram.push(range);
            self.ram.sort_by_key(|ram| ram.start);
            self.ram.dedup_by(|next, ram| {
                let meet = next.start <= ram.end;
                ram.end = if meet { ram.end.max(next.end) } else { ram.end };
                meet
            });
        }
    }

    /// The guest lets the engine work.
    pub(super) fn close_ram(&mut self) {
        self.ram_is_known = true;
    }

    /// The engine may not reach this any more.
    pub(crate) fn withdraw(&mut self, range: Range<u64>) {
        self.cut(&range);
        keep(&mut self.unmapped, range);
    }

    /// The engine may reach nothing any more.
    pub(crate) fn withdraw_all(&mut self) {
        for (start, end) in std::mem::take(&mut self.windows) {
            keep(&mut self.unmapped, start..end);
        }
    }

    /// The engine has written this, and said so.
    pub(crate) fn complete(&mut self, range: Range<u64>) {
        keep(&mut self.completed, range);
    }

    /// Another engine may reach these.
    pub(crate) fn set_foreign(&mut self, ranges: Vec<Range<u64>>) {
        self.foreign = ranges;
    }

    /// What the access of this number, from 0, goes to.
    pub(super) fn aim(&self, aim: Aim, number: u64) -> Option<Range<u64>> {
        match aim {
            Aim::Unmapped => self.inside(self.unmapped.iter().rev(), number),
            Aim::Edge => self.edge(number),
            Aim::Foreign => self.inside(self.foreign.iter(), number),
            Aim::Raw => self.raw(number),
            Aim::Completed => self.inside(self.completed.iter().rev(), number),
            Aim::Removed => {
                let aims = [Aim::Completed, Aim::Unmapped, Aim::Raw, Aim::Edge];
                (0..4).find_map(|n| self.aim(aims[((number + n) % 4) as usize], number / 4))
            }
            Aim::Interrupt => {
                let at = MESSAGES | (FREE_ENTRIES + number % FREE_ENTRIES) << 5;
                Some(at..at + 4)
            }
        }
    }

    /// Whether an address that was none of the engine's is so now.
    pub(super) fn is_regained(&self, range: &Range<u64>) -> bool {
        self.is_confined() && self.overlaps(range)
    }

    /// Whether the guest has confined the engine: most of memory is out of its reach. A little is so by
    /// the machine itself.
    fn is_confined(&self) -> bool {
        let reached: u64 = self.ram.iter().map(|ram| self.reached(ram)).sum();
        reached <= len_of(&self.ram) / 2
    }

    /// Whether an access may go there.
    fn is_astray(&self, range: &Range<u64>) -> bool {
        !self.is_confined() || !self.overlaps(range)
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        let below = self.windows.range(..range.end).next_back();
        below.is_some_and(|(_, end)| *end > range.start)
    }

    /// How many bytes of `range` the engine may reach.
    fn reached(&self, range: &Range<u64>) -> u64 {
        let windows = self.windows.range(..range.end).rev();
        windows
            .take_while(|(_, end)| **end > range.start)
            .map(|(start, end)| *end.min(&range.end) - *start.max(&range.start))
            .sum()
    }

    /// A word in one of `ranges`, each of which is tried.
    fn inside<'a>(
        &self,
        ranges: impl ExactSizeIterator<Item = &'a Range<u64>> + Clone,
        number: u64,
    ) -> Option<Range<u64>> {
        let len = ranges.len();
        let first = (number % len.max(1) as u64) as usize;
        let in_turn = ranges.clone().skip(first).chain(ranges.take(first));
        in_turn
            .map(|range| word_in(range, mix(number)))
            .find(|word| self.is_astray(word))
    }

    /// A word of the machine's memory. Of several tries one misses what the engine may reach, if that
    /// is not nearly all.
    fn raw(&self, number: u64) -> Option<Range<u64>> {
        let total = len_of(&self.ram);
        (0..16).find_map(|attempt| {
            let mut at = mix(number ^ attempt << 60).checked_rem(total)?;
            for ram in &self.ram {
                let len = ram.end - ram.start;
                if at < len {
                    let word = word_in(ram, at);
                    return self.is_astray(&word).then_some(word);
                }
                at -= len;
            }
            None
        })
    }

    /// The byte before or behind a window, each of which is tried. Where no window is left, those that
    /// were taken back last.
    fn edge(&self, number: u64) -> Option<Range<u64>> {
        let windows = self.windows.iter().map(|(start, end)| (*start, *end));
        let unmapped = self
            .unmapped
            .iter()
            .rev()
            .map(|range| (range.start, range.end));
        let none_left = self.windows.is_empty();
        let count = if none_left {
            unmapped.len()
        } else {
            windows.len()
        };
        let first = (number / 2 % count.max(1) as u64) as usize;
        let all = windows.chain(unmapped.filter(|_| none_left));
        let in_turn = all.clone().skip(first).chain(all.take(first));
        in_turn
            .flat_map(|(start, end)| {
                let before = start.checked_sub(1).map(|at| at..start);
                let behind = end.checked_add(1).map(|next| end..next);
                if number.is_multiple_of(2) {
                    [before, behind]
                } else {
                    [behind, before]
                }
            })
            .flatten()
            .find(|byte| !self.overlaps(byte))
    }

    /// Removes a range; what is left of a window on either side stays.
    fn cut(&mut self, range: &Range<u64>) {
        let hit: Vec<_> = self
            .windows
            .range(..range.end)
            .rev()
            .take_while(|(_, end)| **end > range.start)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in hit {
            self.windows.remove(&start);
            if start < range.start {
                self.windows.insert(start, range.start);
            }
            if end > range.end {
                self.windows.insert(range.end, end);
            }
        }
    }
}

fn keep(ranges: &mut VecDeque<Range<u64>>, range: Range<u64>) {
    if range.is_empty() {
        return;
    }
    if ranges.len() == KEPT {
        ranges.pop_front();
    }
    ranges.push_back(range);
}

fn len_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// A word in `range`, aligned where the range is long enough.
fn word_in(range: &Range<u64>, at: u64) -> Range<u64> {
    let len = (range.end - range.start).min(LEN);
    let start = range.start + at % (range.end - range.start - len + 1);
    let aligned = start / LEN * LEN;
    let start = if aligned >= range.start {
        aligned
    } else {
        start
    };
    start..start + len
}

/// Spreads numbers that follow each other (SplitMix64).
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Four MiB of memory, and the guest has confined the engine to three pages, two of which lie
    /// together, and taken back a fourth.
    fn confined() -> Targets {
        let mut targets = Targets::default();
        targets.announce(0..4 * MIB);
        targets.withdraw_all();
        targets.close_ram();
        for page in [0x10, 0x11, 0x20, 0x30] {
            targets.announce(page << 12..(page + 1) << 12);
        }
        targets.withdraw(0x30 << 12..0x31 << 12);
        targets
    }

    fn all(targets: &Targets, aim: Aim) -> Vec<Range<u64>> {
        (0..1000).filter_map(|n| targets.aim(aim, n)).collect()
    }

    #[test]
    fn nothing_aims_at_what_the_engine_may_reach() {
        let mut targets = confined();
        targets.complete(0x30 << 12..(0x30 << 12) + 100);
        targets.complete(0x10 << 12..0x11 << 12);
        targets.set_foreign(vec![0x1f << 12..0x22 << 12, 0x4000..0x4003]);
        for aim in [
            Aim::Unmapped,
            Aim::Edge,
            Aim::Foreign,
            Aim::Raw,
            Aim::Completed,
            Aim::Removed,
            Aim::Interrupt,
        ] {
            let aimed = all(&targets, aim);
            assert_eq!(aimed.len(), 1000, "{aim}");
            for range in aimed {
                assert!(!targets.overlaps(&range), "{aim} {range:x?}");
                assert!((1..=LEN).contains(&(range.end - range.start)), "{range:x?}");
            }
        }
    }

    #[test]
    fn edges_are_one_byte_before_and_behind() {
        let edges = all(&confined(), Aim::Edge);
        let mut seen = edges.clone();
        seen.sort_by_key(|range| range.start);
        seen.dedup();
        let starts: Vec<_> = seen.iter().map(|range| range.start).collect();
        assert_eq!(starts, [0xffff, 0x12000, 0x1ffff, 0x21000]);
        assert!(seen.iter().all(|range| range.end - range.start == 1));
        // Of those that were, where none is left.
        let mut targets = confined();
        targets.withdraw_all();
        let edges = all(&targets, Aim::Edge);
        assert_eq!(edges.len(), 1000);
        assert!(edges.contains(&(0xffff..0x10000)) && edges.contains(&(0x31000..0x31001)));
    }

    #[test]
    fn the_latest_is_aimed_at_first() {
        let mut targets = confined();
        assert!(targets.aim(Aim::Unmapped, 0).unwrap().start >> 12 == 0x30);
        targets.withdraw(0x20 << 12..0x21 << 12);
        assert!(targets.aim(Aim::Unmapped, 0).unwrap().start >> 12 == 0x20);
        assert_eq!(targets.aim(Aim::Completed, 0), None);
        assert_eq!(targets.aim(Aim::Foreign, 0), None);
        targets.complete(0x50..0x51);
        assert_eq!(targets.aim(Aim::Completed, 7), Some(0x50..0x51));
        for page in 0x100..0x200 {
            targets.withdraw(page << 12..(page + 1) << 12);
        }
        let pages = all(&targets, Aim::Unmapped);
        assert!(pages.iter().all(|range| range.start >> 12 >= 0x1c0));
    }

    #[test]
    fn raw_addresses_are_spread_over_memory_and_the_same_each_time() {
        let mut targets = confined();
        let raw = all(&targets, Aim::Raw);
        assert_eq!(raw, all(&targets, Aim::Raw));
        for quarter in 0..4 {
            let inside = |range: &&Range<u64>| range.start / MIB == quarter;
            assert!(raw.iter().filter(inside).count() > 100, "{quarter}");
        }
        // Later windows are no memory.
        targets.announce(64 * MIB..128 * MIB);
        assert!(all(&targets, Aim::Raw).iter().all(|at| at.end <= 4 * MIB));
    }

    #[test]
    fn an_engine_that_may_reach_everything_aims_at_it() {
        let mut targets = Targets::default();
        assert_eq!(targets.aim(Aim::Raw, 0), None, "no memory is known");
        targets.announce(3 * MIB..4 * MIB);
        targets.announce(0..2 * MIB);
        targets.announce(MIB..3 * MIB + 4096);
        targets.close_ram();
        assert_eq!(targets.ram.len(), 1);
        assert_eq!(targets.ram[0], 0..4 * MIB);
        targets.withdraw(0..4096);
        targets.complete(0x1000..0x2000);
        assert_eq!(all(&targets, Aim::Raw).len(), 1000);
        let done = targets.aim(Aim::Completed, 0).unwrap();
        assert!(targets.overlaps(&done) && !targets.is_regained(&done));
        targets.withdraw(MIB..4 * MIB);
        assert_eq!(targets.aim(Aim::Completed, 0), None, "it is confined");
        assert!(targets.is_regained(&(0x1000..0x1008)));
    }

    #[test]
    fn windows_are_cut_and_joined() {
        let mut targets = Targets::default();
        targets.announce(0x1000..0x9000);
        targets.withdraw(0x2000..0x3000);
        targets.announce(0x8000..0xa000);
        let windows: Vec<_> = targets.windows.iter().map(|(a, b)| (*a, *b)).collect();
        let expected = [(0x1000, 0x2000), (0x3000, 0x8000), (0x8000, 0xa000)];
        assert_eq!(windows, expected);
        assert_eq!(targets.reached(&(0x1800..0x4000)), 0x1800);
        targets.withdraw(0..0x1_0000);
        assert!(targets.windows.is_empty());
        assert!(!targets.overlaps(&(0..u64::MAX)));
    }
}
