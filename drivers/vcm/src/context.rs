//! Contexts: address spaces, each behind one memory-management unit.

use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::ops::Range;
use core::slice;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hal::dma::Extent;
use litemap::LiteMap;
use spin::Mutex;

use crate::error::{Error, MmuError};
use crate::mmu::{Access, Mmu};
use crate::pages::{PageSize, PageSizes};
use crate::physical::{Physical, check};
use crate::request::Request;
use crate::reservation::{Info, Inner, Reservation};
use crate::space::Space;

/// An address space whose ranges are reserved, and lead to memory by one memory-management unit.
pub struct Vcm {
    id: u32,
    name: String,
    mmu: Arc<dyn Mmu>,
    sizes: PageSizes,
    page: PageSize,
    book: Mutex<Book>,
    /// By their starts. Outside the book: only who asks for reservations by name pays for it.
    reservations: Mutex<LiteMap<u64, Weak<Inner>>>,
    /// Who wants it active.
    active: Mutex<usize>,
    pages: [AtomicU64; PageSize::ALL.len()],
}

struct Book {
    space: Space,
    bound: u64,
    maps: u64,
    unmaps: u64,
    withheld: u64,
}

/// What a context has, and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Reservations that exist.
    pub reservations: usize,
    /// Bytes of addresses that somebody has: reservations with their guards, streaming mappings,
    /// what was excluded or withheld.
    pub taken: u64,
    /// Bytes of memory that are mapped.
    pub bound: u64,
    /// How often memory was mapped, and unmapped again.
    pub maps: u64,
    /// See `maps`.
    pub unmaps: u64,
    /// Pages that were ever mapped, by size: 4 KiB, 2 MiB, 1 GiB.
    pub pages: [u64; PageSize::ALL.len()],
    /// Bytes of addresses, and of the memory behind them, that nobody gets any more, for the unit did
    /// not say that it had let go of them.
    pub withheld: u64,
    /// How many want it active.
    pub active: usize,
}

static NEXT: AtomicU32 = AtomicU32::new(0);
static CONTEXTS: Mutex<Vec<Weak<Vcm>>> = Mutex::new(Vec::new());

/// The contexts that exist, the oldest first.
pub fn contexts() -> Vec<Arc<Vcm>> {
    let all = CONTEXTS.lock();
    all.iter().filter_map(Weak::upgrade).collect()
}

/// What became of pieces that could not be mapped.
pub(crate) struct Failed {
    pub(crate) error: MmuError,
    /// The unit may still use some of them.
    pub(crate) dirty: bool,
}

impl Vcm {
    /// The whole address space of `mmu`. `None` where that has no pages.
    pub fn new(name: impl Into<String>, mmu: Arc<dyn Mmu>) -> Option<Arc<Self>> {
        let sizes = mmu.page_sizes();
        let page = sizes.sizes().next()?;
        let space = Space::new(mmu.range(), page, mmu.gap());
        if space.all().is_empty() {
            return None;
        }
        let vcm = Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            mmu,
            sizes,
            page,
            book: Mutex::new(Book {
                space,
                bound: 0,
                maps: 0,
                unmaps: 0,
                withheld: 0,
            }),
            reservations: Mutex::new(LiteMap::new()),
            active: Mutex::new(0),
            pages: Default::default(),
        });
        let mut all = CONTEXTS.lock();
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&vcm));
        drop(all);
        Some(vcm)
    }

    /// Its number: no two contexts ever have the same.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size of its smallest pages.
    pub fn page(&self) -> u64 {
        self.page.bytes()
    }

    /// All its addresses.
    pub fn range(&self) -> Range<u64> {
        self.book.lock().space.all().clone()
    }

    /// Reserves addresses for the caller, who owns them: to begin with, alone. `request` is a number
    /// of bytes, or a [`Request`].
    pub fn reserve(self: &Arc<Self>, request: impl Into<Request>) -> Result<Reservation, Error> {
        let request = request.into();
        let align = self.largest(request.size);
        self.reserve_for(&request, align, 0)
    }

    /// Reserves addresses for `memory`, and binds it. Where the unit leaves no choice, at the address
    /// that the memory needs.
    pub fn map(self: &Arc<Self>, memory: Physical, access: Access) -> Result<Reservation, Error> {
        let len = check(memory.pieces(), self.page)?;
        let first = memory.pieces()[0];
        let align = self.largest(first.len as u64);
        let request = Request {
            at: self.mmu.fixed(first.phys),
            ..Request::new(len)
        };
        let reservation = self.reserve_for(&request, align, first.phys & (align - 1))?;
        reservation.bind(memory, access)?;
        Ok(reservation)
    }

    /// Maps memory for a moment: `pieces`, in whole pages, are seen as one range, whose start is
    /// returned. The caller keeps the memory until [`Vcm::unmap_streaming`] has succeeded.
    pub fn map_streaming(&self, pieces: &[Extent], access: Access) -> Result<u64, Error> {
        let len = check(pieces, self.page)?;
        let first = pieces[0];
        let align = self.largest(first.len as u64);
        let fixed = self.mmu.fixed(first.phys);
        let range = {
            let mut book = self.book.lock();
            let range = match fixed {
                None => book.take(len, align, first.phys & (align - 1), self.page)?,
                Some(at) => book.take_at(at..at.checked_add(len).ok_or(Error::OutOfRange)?)?,
            };
            book.maps += 1;
            book.bound += len;
            range
        };
        let Err(failed) = self.map_pieces(range.start, pieces, access) else {
            return Ok(range.start);
        };
        let mut book = self.book.lock();
        book.unmaps += 1;
        book.bound -= len;
        if failed.dirty {
            book.withheld += len;
        } else {
            book.space.give(range);
        }
        Err(failed.error.into())
    }

    /// Takes streaming mappings away, each as it was made, by one flush for all of them. Whoever maps
    /// gives each back once; on an error their memory is withheld, as their addresses are.
    pub fn unmap_streaming(&self, ranges: &[Range<u64>]) -> Result<(), Error> {
        for range in ranges {
            self.mmu.unmap(range);
        }
        let flushed = self.mmu.flush(ranges);
        let mut book = self.book.lock();
        for range in ranges {
            let len = range.end - range.start;
            book.unmaps += 1;
            book.bound -= len;
            match flushed {
                Ok(()) => book.space.give(range.clone()),
                Err(_) => book.withheld += len,
            }
        }
        Ok(flushed?)
    }

    /// Takes addresses out of the space for good, where something else answers.
    pub fn exclude(&self, range: Range<u64>) -> Result<(), Error> {
        let page = self.page.bytes();
        let end = range.end.checked_next_multiple_of(page);
        let start = range.start & !(page - 1);
        let end = end.ok_or(Error::OutOfRange)?;
        self.book.lock().exclude(start..end)
    }

    /// Lets it translate. Each success has its [`Vcm::deactivate`]; the first and the last of them
    /// turn the unit on and off.
    pub fn activate(&self) -> Result<(), Error> {
        let mut active = self.active.lock();
        if *active == 0 {
            self.mmu.activate()?;
        }
        *active += 1;
        Ok(())
    }

    /// The counterpart of [`Vcm::activate`]; an error where there is none.
    pub fn deactivate(&self) -> Result<(), Error> {
        let mut active = self.active.lock();
        *active = active.checked_sub(1).ok_or(Error::NotActive)?;
        if *active == 0 {
            self.mmu.deactivate();
        }
        Ok(())
    }

    /// Lets it translate as long as the answer lives.
    pub fn active(self: &Arc<Self>) -> Result<Active, Error> {
        self.activate()?;
        Ok(Active(self.clone()))
    }

    /// What it has, and has done.
    pub fn statistics(&self) -> Statistics {
        let reservations = self.reservations.lock().len();
        let active = *self.active.lock();
        let book = self.book.lock();
        Statistics {
            reservations,
            taken: book.space.taken(),
            bound: book.bound,
            maps: book.maps,
            unmaps: book.unmaps,
            pages: self
                .pages
                .each_ref()
                .map(|pages| pages.load(Ordering::Relaxed)),
            withheld: book.withheld,
            active,
        }
    }

    /// Its reservations, by address.
    pub fn reservations(&self) -> Vec<Info> {
        // The count first: who looks is no owner.
        let known = |weak: &Weak<Inner>| (weak.strong_count(), weak.upgrade());
        let all: Vec<_> = self.reservations.lock().values().map(known).collect();
        all.into_iter()
            .filter_map(|(refs, inner)| Some(inner?.info(refs)))
            .collect()
    }

    /// The largest page that `len` bytes fill.
    fn largest(&self, len: u64) -> u64 {
        let fits = |size: &PageSize| size.bytes() <= len;
        let page = self.sizes.sizes().rfind(fits);
        page.unwrap_or(self.page).bytes()
    }

    fn reserve_for(
        self: &Arc<Self>,
        request: &Request,
        align: u64,
        offset: u64,
    ) -> Result<Reservation, Error> {
        let page = self.page.bytes();
        if request.size == 0 {
            return Err(Error::Empty);
        }
        let size = request.size.checked_next_multiple_of(page);
        let size = size.ok_or(Error::TooLarge)?;
        let guard = if request.guard { page } else { 0 };
        let whole = size.checked_add(guard).ok_or(Error::TooLarge)?;
        if request.align.is_some_and(|align| !align.is_power_of_two()) {
            return Err(Error::Misaligned);
        }
        let wanted = request.align.unwrap_or(page).max(page);
        let taken = {
            let mut book = self.book.lock();
            match request.at {
                Some(at) if !at.is_multiple_of(wanted) => return Err(Error::Misaligned),
                Some(at) => book.take_at(at..at.checked_add(whole).ok_or(Error::OutOfRange)?)?,
                None if request.align.is_some() => book.take_aligned(whole, wanted, 0)?,
                None => book.take(whole, align, offset, self.page)?,
            }
        };
        let range = taken.start..taken.start + size;
        if let Err(error) = self.mmu.reserve(&range) {
            self.give(taken);
            return Err(error.into());
        }
        let inner = Arc::new(Inner::new(self.clone(), range.clone(), taken));
        let weak = Arc::downgrade(&inner);
        self.reservations.lock().insert(range.start, weak);
        Ok(Reservation::new(inner))
    }

    /// Maps all of `pieces` from `at` on, or nothing.
    pub(crate) fn map_pieces(
        &self,
        at: u64,
        pieces: &[Extent],
        access: Access,
    ) -> Result<(), Failed> {
        // What is mapped, and what of it and behind it a cache may have seen.
        let (mut end, mut seen) = (at, at);
        let mut pages = [0; PageSize::ALL.len()];
        let mapped = pieces.iter().try_for_each(|piece| {
            for run in self.sizes.runs(end, piece.phys, piece.len as u64) {
                seen = end + run.len;
                self.mmu.map(run, access)?;
                end = seen;
                pages[run.page as usize] += run.pages();
            }
            Ok(())
        });
        let Err(error) = mapped.and_then(|()| self.mmu.sync_map(&(at..end))) else {
            for (all, new) in self.pages.iter().zip(pages) {
                if new > 0 {
                    all.fetch_add(new, Ordering::Relaxed);
                }
            }
            return Ok(());
        };
        if end > at {
            self.mmu.unmap(&(at..end));
        }
        let flushed = self.mmu.flush(slice::from_ref(&(at..seen)));
        let dirty = flushed.is_err();
        Err(Failed { error, dirty })
    }

    /// Unmaps a range; on an error the unit may still use it.
    pub(crate) fn unmap_range(&self, range: Range<u64>) -> Result<(), MmuError> {
        self.mmu.unmap(&range);
        self.mmu.flush(&[range])
    }

    pub(crate) fn note_map(&self, len: u64) {
        let mut book = self.book.lock();
        book.maps += 1;
        book.bound += len;
    }

    pub(crate) fn note_unmap(&self, len: u64) {
        let mut book = self.book.lock();
        book.unmaps += 1;
        book.bound -= len;
    }

    /// The unit may still use `len` bytes of what `memory` is: both are never used again.
    pub(crate) fn withhold(&self, len: u64, memory: Physical) {
        self.book.lock().withheld += len;
        mem::forget(memory);
    }

    pub(crate) fn smallest(&self) -> PageSize {
        self.page
    }

    pub(crate) fn mmu(&self) -> &dyn Mmu {
        &*self.mmu
    }

    pub(crate) fn strike(&self, start: u64) {
        self.reservations.lock().remove(&start);
    }

    pub(crate) fn give(&self, taken: Range<u64>) {
        self.book.lock().space.give(taken);
    }
}

impl Book {
    /// Aligned, or, where no such range is free, not.
    fn take(
        &mut self,
        len: u64,
        align: u64,
        offset: u64,
        page: PageSize,
    ) -> Result<Range<u64>, Error> {
        match self.take_aligned(len, align, offset) {
            Err(Error::Exhausted) if align > page.bytes() => {
                self.take_aligned(len, page.bytes(), 0)
            }
            taken => taken,
        }
    }

    fn take_aligned(&mut self, len: u64, align: u64, offset: u64) -> Result<Range<u64>, Error> {
        let all = self.space.all();
        if len > all.end - all.start {
            return Err(Error::TooLarge);
        }
        self.space.take(len, align, offset).ok_or(Error::Exhausted)
    }

    fn take_at(&mut self, range: Range<u64>) -> Result<Range<u64>, Error> {
        self.is_inside(&range)?;
        let free = self.space.take_at(range.clone());
        free.then_some(range).ok_or(Error::Overlap)
    }

    fn exclude(&mut self, range: Range<u64>) -> Result<(), Error> {
        self.is_inside(&range)?;
        self.space
            .exclude(range)
            .then_some(())
            .ok_or(Error::Overlap)
    }

    fn is_inside(&self, range: &Range<u64>) -> Result<(), Error> {
        let all = self.space.all();
        let inside = all.start <= range.start && range.end <= all.end;
        inside.then_some(()).ok_or(Error::OutOfRange)
    }
}

impl Drop for Vcm {
    fn drop(&mut self) {
        if *self.active.get_mut() > 0 {
            log::warn!("WARN active vcm {} dropped", self.name);
            self.mmu.deactivate();
        }
    }
}

impl fmt::Debug for Vcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vcm({} {})", self.id, self.name)
    }
}

/// Keeps a context active.
#[derive(Debug)]
pub struct Active(Arc<Vcm>);

impl Drop for Active {
    fn drop(&mut self) {
        // An unpaired `deactivate` elsewhere may have been faster: that was told there.
        let _ = self.0.deactivate();
    }
}
