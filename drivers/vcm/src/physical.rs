//! Physical memory that is bound to reservations.

use alloc::sync::Arc;
use core::any::Any;
use core::fmt;

use hal::dma::Extent;
use smallvec::SmallVec;

use crate::error::Error;
use crate::pages::PageSize;

/// Pieces of physical memory, in the order in which they shall be seen, and who keeps them.
///
/// While it is bound, the context holds the owner: the memory cannot be freed. Memory without one is
/// the binder's to keep until [`Reservation::unbind`](crate::Reservation::unbind) has succeeded.
#[derive(Clone)]
pub struct Physical {
    pieces: SmallVec<[Extent; 1]>,
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl Physical {
    /// Memory in these pieces; neighbours become one.
    pub fn new(pieces: impl IntoIterator<Item = Extent>) -> Self {
        let mut all: SmallVec<[Extent; 1]> = SmallVec::new();
        for piece in pieces {
            match all.last_mut() {
                Some(last) if last.phys.checked_add(last.len as u64) == Some(piece.phys) => {
                    // A sum that is no number belongs to pieces that `check` refuses.
                    last.len = last.len.saturating_add(piece.len);
                }
                _ => all.push(piece),
            }
        }
        Self {
            pieces: all,
            owner: None,
        }
    }

    /// The same memory, which `owner` frees when it is dropped.
    pub fn kept_by(mut self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        self.owner = Some(owner);
        self
    }

    /// The pieces.
    pub fn pieces(&self) -> &[Extent] {
        &self.pieces
    }

    /// Bytes in all of them.
    pub fn len(&self) -> u64 {
        let lens = self.pieces.iter().map(|piece| piece.len as u64);
        lens.fold(0, u64::saturating_add)
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Extent> for Physical {
    fn from(piece: Extent) -> Self {
        Self::new([piece])
    }
}

impl fmt::Debug for Physical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Physical({} bytes, {} pieces)",
            self.len(),
            self.pieces.len()
        )
    }
}

/// Bytes in `pieces`, which are whole pages, none of them empty, and end with the address space.
pub(crate) fn check(pieces: &[Extent], page: PageSize) -> Result<u64, Error> {
    let mut all = 0u64;
    for piece in pieces {
        let len = piece.len as u64;
        if len == 0 {
            return Err(Error::Empty);
        }
        if !(piece.phys | len).is_multiple_of(page.bytes()) {
            return Err(Error::Misaligned);
        }
        piece.phys.checked_add(len).ok_or(Error::TooLarge)?;
        all = all.checked_add(len).ok_or(Error::TooLarge)?;
    }
    if all == 0 {
        return Err(Error::Empty);
    }
    Ok(all)
}
