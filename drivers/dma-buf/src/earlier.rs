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
    /// What is behind it is read: where it failed there is nothing to read.
    read: bool,
}

impl Earlier {
    /// Adds `fence`, unless it is there or has ended in a way that nobody minds; `read` where its
    /// work writes what the use reads.
    pub(crate) fn add(&mut self, fence: &Fence, read: bool) {
        match fence.result() {
            Some(Err(_)) if read => {}
            Some(_) => return,
            None => {}
        }
        let name = |fence: &Fence| (fence.context(), fence.seqno());
        let mut known = self.fences.iter_mut();
        if let Some(known) = known.find(|known| name(&known.fence) == name(fence)) {
            known.read |= read;
            return;
        }
        let fence = fence.clone();
        self.fences.push(Awaited { fence, read });
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

    /// Whether all have been signalled.
    pub fn has_ended(&self) -> bool {
        self.fences().all(Fence::is_signalled)
    }

    /// Waits for all of them, and tells the first error in what the use reads. Cancel-safe.
    pub async fn wait(&self) -> Result<(), FenceError> {
        for fence in self.fences() {
            let _ = fence.wait().await;
        }
        let read = self.fences.iter().filter(|awaited| awaited.read);
        read.filter_map(|awaited| awaited.fence.result()).collect()
    }
}
