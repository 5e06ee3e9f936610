//! A memory-management unit that is played: tables, and a cache of translations that keeps what it
//! has seen until it is flushed, as hardware may.

use alloc::sync::Arc;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use hal::dma::Extent;

use crate::{Access, Mmu, MmuError, PageSize, PageSizes, Physical, Run, Vcm};

pub(crate) const K: u64 = PageSize::Kib4.bytes();
pub(crate) const M: u64 = PageSize::Mib2.bytes();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    phys: u64,
    page: PageSize,
    access: Access,
}

#[derive(Debug)]
pub(crate) struct Fake {
    sizes: PageSizes,
    range: Range<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Pages, of any size, by their first address.
    tables: BTreeMap<u64, Entry>,
    /// Small pages; `None` is an absence that was cached.
    cache: BTreeMap<u64, Option<Entry>>,
    /// How the unit was turned on and off.
    pub(crate) toggles: Vec<bool>,
    pub(crate) reserved: Vec<Range<u64>>,
    pub(crate) unreserved: Vec<Range<u64>>,
    pub(crate) flushes: usize,
    /// It does not answer any more.
    pub(crate) deaf: bool,
    /// It refuses reservations.
    pub(crate) full: bool,
    /// How many runs it maps before it has no memory left.
    pub(crate) runs_left: Option<usize>,
    /// It caches what is not there.
    pub(crate) caching_mode: bool,
}

impl Fake {
    pub(crate) fn new(range: Range<u64>, sizes: PageSizes) -> Arc<Self> {
        Arc::new(Self {
            sizes,
            range,
            state: Mutex::default(),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Where an access at `at` ends; it is a fault if nowhere.
    pub(crate) fn access(&self, at: u64, access: Access) -> Option<u64> {
        let state = &mut *self.state();
        if state.toggles.last() != Some(&true) {
            return None;
        }
        let page = at & !(K - 1);
        let entry = state.cache.get(&page).copied().unwrap_or_else(|| {
            let found = lookup(&state.tables, at);
            if found.is_some() || state.caching_mode {
                state.cache.insert(page, found);
            }
            found
        })?;
        let inside = at & (entry.page.bytes() - 1);
        entry.access.contains(access).then_some(entry.phys + inside)
    }

    pub(crate) fn read(&self, at: u64) -> Option<u64> {
        self.access(at, Access::READ)
    }

    /// Whether memory in this piece can still be reached.
    pub(crate) fn reaches(&self, piece: Extent) -> bool {
        let all = piece.phys..piece.phys + piece.len as u64;
        let hits =
            |entry: &Entry| entry.phys < all.end && all.start < entry.phys + entry.page.bytes();
        let state = self.state();
        state.tables.values().any(hits) || state.cache.values().flatten().any(hits)
    }

    /// Bytes that the tables map.
    pub(crate) fn mapped(&self) -> u64 {
        let state = self.state();
        state.tables.values().map(|entry| entry.page.bytes()).sum()
    }

    /// Pages in the tables, by size.
    pub(crate) fn pages(&self) -> [usize; 3] {
        let state = self.state();
        PageSize::ALL.map(|size| {
            let entries = state.tables.values();
            entries.filter(|entry| entry.page == size).count()
        })
    }
}

fn lookup(tables: &BTreeMap<u64, Entry>, at: u64) -> Option<Entry> {
    let (start, entry) = tables.range(..=at).next_back()?;
    (at - start < entry.page.bytes()).then_some(*entry)
}

impl Mmu for Fake {
    fn page_sizes(&self) -> PageSizes {
        self.sizes
    }

    fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    fn map(&self, run: Run, access: Access) -> Result<(), MmuError> {
        let state = &mut *self.state();
        if let Some(left) = &mut state.runs_left {
            *left = left.checked_sub(1).ok_or(MmuError::NoMemory)?;
        }
        let bytes = run.page.bytes();
        assert!(self.sizes.sizes().any(|size| size == run.page) && run.len > 0);
        assert!(
            (run.at | run.phys | run.len).is_multiple_of(bytes),
            "{run:x?}"
        );
        assert!(self.range.start <= run.at && run.at + run.len <= self.range.end);
        for n in 0..run.pages() {
            let (at, phys) = (run.at + n * bytes, run.phys + n * bytes);
            let above = lookup(&state.tables, at + bytes - 1);
            assert_eq!((lookup(&state.tables, at), above), (None, None), "twice");
            let page = run.page;
            state.tables.insert(at, Entry { phys, page, access });
        }
        Ok(())
    }

    fn sync_map(&self, range: &Range<u64>) -> Result<(), MmuError> {
        let mut state = self.state();
        state
            .cache
            .retain(|at, entry| entry.is_some() || !range.contains(at));
        Ok(())
    }

    fn unmap(&self, range: &Range<u64>) {
        let tables = &mut self.state().tables;
        let gone: Vec<_> = tables
            .range(range.clone())
            .map(|(at, entry)| (*at, *entry))
            .collect();
        let bytes: u64 = gone.iter().map(|(_, entry)| entry.page.bytes()).sum();
        assert_eq!(bytes, range.end - range.start, "not as it was mapped");
        for (at, _) in gone {
            tables.remove(&at);
        }
    }

    fn flush(&self, ranges: &[Range<u64>]) -> Result<(), MmuError> {
        let state = &mut *self.state();
        if state.deaf {
            return Err(MmuError::TimedOut);
        }
        state.flushes += 1;
        let stale = |at: &u64| ranges.iter().any(|range| range.contains(at));
        state.cache.retain(|at, _| !stale(at));
        Ok(())
    }

    fn activate(&self) -> Result<(), MmuError> {
        let mut state = self.state();
        if state.deaf {
            return Err(MmuError::TimedOut);
        }
        state.toggles.push(true);
        Ok(())
    }

    fn deactivate(&self) {
        let mut state = self.state();
        state.toggles.push(false);
        state.cache.clear();
    }

    fn reserve(&self, range: &Range<u64>) -> Result<(), MmuError> {
        let mut state = self.state();
        if state.full {
            return Err(MmuError::NoMemory);
        }
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        assert!(!state.reserved.iter().any(overlaps), "{range:x?}");
        state.reserved.push(range.clone());
        Ok(())
    }

    fn unreserve(&self, range: &Range<u64>) {
        let mut state = self.state();
        let at = state.reserved.iter().position(|other| other == range);
        state.reserved.swap_remove(at.expect("reserved before"));
        state.unreserved.push(range.clone());
    }
}

/// A context over a new fake of 1 GiB, and the fake, turned on.
pub(crate) fn context() -> (Arc<Vcm>, Arc<Fake>) {
    let fake = Fake::new(0..1 << 30, PageSizes::KIB4 | PageSizes::MIB2);
    let vcm = Vcm::new("fake", fake.clone()).unwrap();
    vcm.activate().unwrap();
    (vcm, fake)
}

pub(crate) fn piece(phys: u64, len: u64) -> Extent {
    Extent {
        phys,
        len: len as usize,
    }
}

/// `count` frames of `size`, no two of them neighbours.
pub(crate) fn scattered(count: u64, size: u64) -> Physical {
    let nth = |n: u64| piece((1 << 32) + (count - n) * 2 * size, size);
    Physical::new((0..count).map(nth))
}

/// Memory that sees to it that nobody reaches it when it is freed.
pub(crate) struct Frames {
    fake: Arc<Fake>,
    pieces: Vec<Extent>,
    freed: Arc<Mutex<Vec<Extent>>>,
}

impl Frames {
    /// `memory` with an owner that notes in `freed` what it frees.
    pub(crate) fn own(
        memory: Physical,
        fake: &Arc<Fake>,
        freed: &Arc<Mutex<Vec<Extent>>>,
    ) -> Physical {
        let pieces = memory.pieces().to_vec();
        memory.kept_by(Arc::new(Self {
            fake: fake.clone(),
            pieces,
            freed: freed.clone(),
        }))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        for piece in &self.pieces {
            assert!(
                !self.fake.reaches(*piece),
                "{piece:x?} is freed while reached"
            );
        }
        self.freed.lock().unwrap().extend(&self.pieces);
    }
}
