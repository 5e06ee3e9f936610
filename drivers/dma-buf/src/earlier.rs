//! The fences that a use waits for: a snapshot, each of them once.

use dma_fence::{Fence, FenceError};
use smallvec::SmallVec;

/// What stood in reservations when they were used, as far as the use waits for it. It holds a
/// reference to each fence, and no reservation.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    fences: SmallVec<[Awaited; 16]>,
}

#[derive(Clone, Debug)]
struct Awaited {
    fence: Fence,
    /// Its work writes: where it failed, what it wrote is undefined.
    writer: bool,
    /// The use reads that.
    read: bool,
}

impl Earlier {
    /// Adds `fence`, unless it is there or nobody minds how it has ended. Its work may be a `writer`
    /// of what the use may `read`.
    pub(crate) fn add(&mut self, fence: &Fence, writer: bool, read: bool) {
        match fence.result() {
            Some(Err(_)) if writer => {}
            Some(_) => return,
            None => {}
        }
        let read = writer && read;
        let mut known = self.fences.iter_mut();
        if let Some(known) = known.find(|known| known.fence.is_same(fence)) {
            known.writer |= writer;
            known.read |= read;
            return;
        }
        let fence = fence.clone();
        self.fences.push(Awaited {
            fence,
            writer,
            read,
        });
    }

    /// The fences.
    pub fn fences(&self) -> impl Iterator<Item = &Fence> {
        self.fences.iter().map(|awaited| &awaited.fence)
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.fences.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.fences.is_empty()
    }

    /// The same without `fence`.
    pub(crate) fn without(&self, fence: Option<&Fence>) -> Self {
        let mut left = self.clone();
        if let Some(fence) = fence {
            left.fences.retain(|awaited| !awaited.fence.is_same(fence));
        }
        left
    }

    /// Whether who waits for the one waits for the other.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let within = |one: &Self, other: &Self| {
            let has = |fence: &Fence| other.fences().any(|of| of.is_same(fence));
            one.fences().all(|fence| has(fence) || fence.is_signalled())
        };
        within(self, other) && within(other, self)
    }

    /// Whether all have been signalled.
    pub fn has_ended(&self) -> bool {
        self.fences().all(Fence::is_signalled)
    }

    /// Waits for all of them, and tells the first error in what the use reads. Cancel-safe. It listens
    /// to one after the other, which ends no later than listening to all, and takes no memory.
    pub async fn wait(&self) -> Result<(), FenceError> {
        for fence in self.fences() {
            let _ = fence.wait().await;
        }
        self.failure(|awaited| awaited.read)
    }

    /// How those who wrote have ended, once all have.
    pub(crate) fn written(&self) -> Result<(), FenceError> {
        self.failure(|awaited| awaited.writer)
    }

    fn failure(&self, of: impl Fn(&Awaited) -> bool) -> Result<(), FenceError> {
        let fences = self.fences.iter().filter(|awaited| of(awaited));
        fences
            .filter_map(|awaited| awaited.fence.result())
            .collect()
    }
}
