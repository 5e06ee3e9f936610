//! Reservations: ranges of addresses, and who owns them.

use alloc::sync::{Arc, Weak};
use core::fmt;
use core::mem;
use core::ops::Range;

use spin::Mutex;

use crate::context::Vcm;
use crate::error::Error;
use crate::mmu::Access;
use crate::physical::{Physical, check};

/// A range of addresses that nobody else gets. Each clone owns it.
///
/// An owner is whoever created it, keeps it in a structure, was given it, or has fetched it from
/// where all can reach it: a clone is made exactly there, and dropped where that ends. Handing it on
/// is a move. The last drop unreserves; memory that is still bound then is warned of and unbound.
#[must_use = "a reservation that is dropped is unreserved"]
pub struct Reservation(Arc<Inner>);

/// What leads to a reservation without owning it.
#[derive(Clone)]
pub struct WeakReservation(Weak<Inner>);

/// A reservation as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its addresses.
    pub range: Range<u64>,
    /// Bytes of memory behind them.
    pub bound: u64,
    /// How many own it.
    pub refs: usize,
}

pub(crate) struct Inner {
    vcm: Arc<Vcm>,
    range: Range<u64>,
    /// With its guard.
    taken: Range<u64>,
    state: Mutex<State>,
}

enum State {
    Unbound,
    Bound(Physical, u64),
    /// The unit may still use what was bound.
    Withheld,
    Unreserved,
}

impl Inner {
    pub(crate) fn new(vcm: Arc<Vcm>, range: Range<u64>, taken: Range<u64>) -> Self {
        Self {
            vcm,
            range,
            taken,
            state: Mutex::new(State::Unbound),
        }
    }

    pub(crate) fn info(&self, refs: usize) -> Info {
        Info {
            range: self.range.clone(),
            bound: self.bound(),
            refs,
        }
    }

    fn bound(&self) -> u64 {
        match *self.state.lock() {
            State::Bound(_, len) => len,
            _ => 0,
        }
    }

    /// The end, once.
    fn unreserve(&self) {
        let last = mem::replace(&mut *self.state.lock(), State::Unreserved);
        let vcm = &self.vcm;
        let withheld = match last {
            State::Unreserved => return,
            State::Unbound => false,
            State::Withheld => true,
            State::Bound(memory, len) => {
                log::warn!(
                    "WARN bound vcm {} {:#x?} is unbound",
                    vcm.name(),
                    self.range
                );
                self.unmap(memory, len).is_err()
            }
        };
        vcm.strike(self.range.start);
        vcm.mmu().unreserve(&self.range);
        if !withheld {
            vcm.give(self.taken.clone());
        }
    }

    fn unmap(&self, memory: Physical, len: u64) -> Result<Physical, Error> {
        let start = self.range.start;
        let flushed = self.vcm.unmap_range(start..start + len);
        self.vcm.note_unmap(len);
        match flushed {
            Ok(()) => Ok(memory),
            Err(error) => {
                self.vcm.withhold(len, memory);
                Err(error.into())
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.unreserve();
    }
}

impl Reservation {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// Its context.
    pub fn vcm(&self) -> &Arc<Vcm> {
        &self.0.vcm
    }

    /// The first address.
    pub fn start(&self) -> u64 {
        self.0.range.start
    }

    /// Bytes that were reserved, in whole pages.
    pub fn size(&self) -> u64 {
        self.0.range.end - self.0.range.start
    }

    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.0.range.clone()
    }

    /// Bytes of memory behind them, from the first address on.
    pub fn bound(&self) -> u64 {
        self.0.bound()
    }

    /// How many own it.
    pub fn refs(&self) -> usize {
        #[cfg(feature = "refcount")]
        return Arc::strong_count(&self.0);
        // One, until it is unreserved.
        #[cfg(not(feature = "refcount"))]
        return usize::from(!matches!(*self.0.state.lock(), State::Unreserved));
    }

    /// Lets its addresses, from the first one on, lead to `memory`, which the context keeps from now
    /// on.
    pub fn bind(&self, memory: Physical, access: Access) -> Result<(), Error> {
        let Inner { vcm, range, .. } = &*self.0;
        // Dropped outside the lock: it may free memory.
        let refused;
        let result = {
            let mut state = self.0.state.lock();
            let asked = self.may_bind(&state, &memory);
            let mapped =
                asked.and_then(
                    |len| match vcm.map_pieces(range.start, memory.pieces(), access) {
                        Ok(()) => Ok(len),
                        Err(failed) if failed.dirty => {
                            *state = State::Withheld;
                            vcm.withhold(len, memory.clone());
                            Err(failed.error.into())
                        }
                        Err(failed) => Err(failed.error.into()),
                    },
                );
            match mapped {
                Ok(len) => {
                    *state = State::Bound(memory, len);
                    vcm.note_map(len);
                    refused = None;
                    Ok(())
                }
                Err(error) => {
                    refused = Some(memory);
                    Err(error)
                }
            }
        };
        drop(refused);
        result
    }

    fn may_bind(&self, state: &State, memory: &Physical) -> Result<u64, Error> {
        match state {
            State::Unbound => {}
            State::Bound(..) => return Err(Error::Bound),
            State::Withheld => return Err(Error::Withheld),
            State::Unreserved => return Err(Error::Unreserved),
        }
        let len = check(memory.pieces(), self.0.vcm.smallest())?;
        if len > self.size() {
            return Err(Error::TooLarge);
        }
        Ok(len)
    }

    /// Takes the memory back: on success nothing reaches it by these addresses any more.
    pub fn unbind(&self) -> Result<Physical, Error> {
        let mut state = self.0.state.lock();
        match mem::replace(&mut *state, State::Unbound) {
            State::Bound(memory, len) => {
                let unmapped = self.0.unmap(memory, len);
                if unmapped.is_err() {
                    *state = State::Withheld;
                }
                unmapped
            }
            other => {
                let error = match other {
                    State::Withheld => Error::Withheld,
                    State::Unreserved => Error::Unreserved,
                    State::Unbound | State::Bound(..) => Error::NotBound,
                };
                *state = other;
                Err(error)
            }
        }
    }

    /// The counterpart of [`Vcm::map`]: unbinds, and lets go of the reservation.
    pub fn unmap(self) -> Result<Physical, Error> {
        self.unbind()
    }

    /// What leads here without owning it.
    pub fn downgrade(&self) -> WeakReservation {
        WeakReservation(Arc::downgrade(&self.0))
    }

    /// Whether these are the same reservation.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Another owner.
impl Clone for Reservation {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The first who lets go ends it: nobody counts.
#[cfg(not(feature = "refcount"))]
impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.unreserve();
    }
}

impl WeakReservation {
    /// Becomes an owner. A reservation that is unreserved stays so: that is
    /// [`Error::Unreserved`].
    pub fn upgrade(&self) -> Result<Reservation, Error> {
        let inner = self.0.upgrade().ok_or(Error::Unreserved)?;
        #[cfg(not(feature = "refcount"))]
        if matches!(*inner.state.lock(), State::Unreserved) {
            return Err(Error::Unreserved);
        }
        Ok(Reservation(inner))
    }

    /// How many own it.
    pub fn refs(&self) -> usize {
        self.0.strong_count()
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({:#x?}, refs={})", self.0.range, self.refs())
    }
}

impl fmt::Debug for WeakReservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeakReservation(refs={})", self.refs())
    }
}
