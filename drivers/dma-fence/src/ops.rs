//! Fences of other kinds than those that software alone signals.

use alloc::sync::Arc;
use core::any::Any;
use core::ops::Deref;
use core::time::Duration;

use crate::error::FenceError;
use crate::fence::{Fence, Signaler};

/// What a kind of fences does by itself; one object may serve many fences, which their numbers tell
/// apart. It lives as long as the last of its fences: dropping it is the hook for their release.
///
/// All of this runs on the stack of who asks or waits, outside the fence's lock. Those who do may
/// hold locks of their own: [`poll`](FenceOps::poll) takes none that is held while fences are asked,
/// and runs no callbacks.
pub trait FenceOps: Any + Send + Sync {
    /// Somebody waits for `fence`, for the first time: it must be signalled as soon as its work has
    /// ended, also where that is so already. Called once at most; what nobody waits for needs no
    /// interrupt.
    ///
    /// `signaler` is that of a fence that was made [without](Fence::lazy). It keeps the fence until
    /// the signal; dropping it signals an error, so that whoever cannot notice the end has nothing
    /// else to do.
    fn enable_signaling(&self, fence: &Fence, signaler: Option<Signaler>);

    /// How the work of `fence` ended, as far as can be seen without having been told; `None` while
    /// it goes on. The first answer holds for good.
    fn poll(&self, fence: &Fence) -> Option<Result<(), FenceError>> {
        let _ = fence;
        None
    }

    /// Somebody will need the work of `fence` by `deadline`, a time since the start of the
    /// machine's clock.
    fn set_deadline(&self, fence: &Fence, deadline: Duration) {
        let _ = (fence, deadline);
    }
}

/// A fence's reference to its operations: counted, or for ever, which costs nothing.
pub enum Ops {
    /// For a kind with an owner.
    Shared(Arc<dyn FenceOps>),
    /// For a kind that tells its fences apart by their contexts.
    Static(&'static dyn FenceOps),
}

impl<T: FenceOps> From<Arc<T>> for Ops {
    fn from(ops: Arc<T>) -> Self {
        Self::Shared(ops)
    }
}

impl<T: FenceOps> From<&'static T> for Ops {
    fn from(ops: &'static T) -> Self {
        Self::Static(ops)
    }
}

impl Deref for Ops {
    type Target = dyn FenceOps;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Shared(ops) => &**ops,
            Self::Static(ops) => *ops,
        }
    }
}
