//! Memory in many pieces. The arena is contiguous for the process, so that it is the physical
//! addresses that are scattered: each piece has one of its own, far above the arena, with nothing
//! between it and the next. The bus leads it to the arena.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::machine::{Machine, RawMemory, RawScattered};

/// Where the pieces' addresses begin.
const START: u64 = 1 << 40;

struct Pieces {
    /// Addresses are never used twice.
    next: u64,
    /// Start, length, and where the arena has it.
    live: BTreeMap<u64, (u64, u64)>,
}

static PIECES: Mutex<Pieces> = Mutex::new(Pieces {
    next: START,
    live: BTreeMap::new(),
});

/// Gives the first `len` bytes of a block addresses by chunks, each below that of the chunk before it.
pub(super) fn scatter(block: RawMemory, len: usize, chunk: usize) -> RawScattered {
    let size = chunk as u64;
    let mut pieces = PIECES.lock().unwrap_or_else(PoisonError::into_inner);
    let base = pieces.next.next_multiple_of(size);
    let count = len as u64 / size;
    pieces.next = base + 2 * count * size;
    let mine: Box<[u64]> = (0..count)
        .map(|n| base + 2 * (count - 1 - n) * size)
        .collect();
    for (n, &phys) in (0..).zip(&mine) {
        pieces.live.insert(phys, (size, block.phys + n * size));
    }
    RawScattered {
        ptr: block.ptr,
        chunk,
        pieces: mine.to_vec(),
        owner: Box::new(Owner { block, mine }),
    }
}

/// Where the arena has `len` bytes at `phys`, which are in one piece; an address below all pieces is
/// the arena's own.
pub(super) fn resolve(phys: u64, len: usize) -> Option<u64> {
    if phys < START {
        return Some(phys);
    }
    let pieces = PIECES.lock().unwrap_or_else(PoisonError::into_inner);
    let (start, (size, arena)) = pieces.live.range(..=phys).next_back()?;
    let inside = phys - start;
    (inside.checked_add(len as u64)? <= *size).then_some(arena + inside)
}

struct Owner {
    block: RawMemory,
    mine: Box<[u64]>,
}

// SAFETY: the pointer is to memory that this alone gives back.
unsafe impl Send for Owner {}
// SAFETY: nothing is done by a shared reference.
unsafe impl Sync for Owner {}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut pieces = PIECES.lock().unwrap_or_else(PoisonError::into_inner);
        for phys in &self.mine {
            pieces.live.remove(phys);
        }
        drop(pieces);
        // SAFETY: it came from the host's `alloc_memory`; by the contract of `RawScattered` nobody
        // uses it any more.
        unsafe { super::host().free_memory(self.block) };
    }
}
