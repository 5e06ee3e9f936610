//! Work whose fence is published: others wait for it from now on.

use core::fmt;

use dma_fence::{Fence, FenceError, Signaler};

use crate::earlier::Earlier;

/// The duty to signal a published fence. It took the places of earlier ones, and so is not
/// signalled before them, whatever becomes of the work: dropped, it signals an error after them.
#[must_use = "dropping it fails the work"]
pub struct Committed {
    /// Empty once it has been handed on.
    signaler: Option<Signaler>,
    fence: Fence,
    earlier: Earlier,
    /// Dropped, nothing was written.
    harmless: bool,
}

impl Committed {
    pub(crate) fn new(signaler: Signaler, fence: Fence, earlier: Earlier) -> Self {
        Self {
            signaler: Some(signaler),
            fence,
            earlier,
            harmless: false,
        }
    }

    /// For a use that writes as it ends, or not at all: dropped, it leaves what was there.
    pub(crate) fn harmless(mut self) -> Self {
        self.harmless = true;
        self
    }

    /// The fence.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// What the work has to wait for.
    pub fn earlier(&self) -> &Earlier {
        &self.earlier
    }

    /// Waits until the work may begin. An error says that what it was to read is not there.
    pub async fn wait(&self) -> Result<(), FenceError> {
        self.earlier.wait().await
    }

    /// Signals the fence, or has it signalled once the earlier ones are.
    pub fn signal(mut self, result: Result<(), FenceError>) {
        self.finish(Some(result));
    }

    /// The same for who has changed nothing: who reads finds what was there, as those who wrote it
    /// left it.
    pub fn signal_unchanged(mut self) {
        self.finish(None);
    }

    fn finish(&mut self, result: Option<Result<(), FenceError>>) {
        let Some(signaler) = self.signaler.take() else {
            return;
        };
        let earlier = core::mem::take(&mut self.earlier);
        if earlier.has_ended() {
            return signaler.signal(result.unwrap_or_else(|| earlier.written()));
        }
        // A task, not a callback: a long row of such fences must not be one deep stack.
        hal::task::spawn("resv-late", async move {
            let _ = earlier.wait().await;
            signaler.signal(result.unwrap_or_else(|| earlier.written()));
        });
    }
}

impl Drop for Committed {
    fn drop(&mut self) {
        let result = (!self.harmless).then_some(Err(FenceError::Abandoned));
        self.finish(result);
    }
}

impl fmt::Debug for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Committed({}, after {:?})", self.fence, self.earlier)
    }
}
