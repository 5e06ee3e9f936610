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
}

impl Committed {
    pub(crate) fn new(signaler: Signaler, fence: Fence, earlier: Earlier) -> Self {
        Self {
            signaler: Some(signaler),
            fence,
            earlier,
        }
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
        self.finish(result);
    }

    fn finish(&mut self, result: Result<(), FenceError>) {
        let Some(signaler) = self.signaler.take() else {
            return;
        };
        if self.earlier.has_ended() {
            return signaler.signal(result);
        }
        // A task, not a callback: a long row of such fences must not be one deep stack.
        let earlier = core::mem::take(&mut self.earlier);
        hal::task::spawn("resv-late", async move {
            let _ = earlier.wait().await;
            signaler.signal(result);
        });
    }
}

impl Drop for Committed {
    fn drop(&mut self) {
        self.finish(Err(FenceError::Abandoned));
    }
}

impl fmt::Debug for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Committed({}, after {:?})", self.fence, self.earlier)
    }
}
