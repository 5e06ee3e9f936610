//! A prepared operation.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;

use crate::capability::Flags;
use crate::chan::Chan;
use crate::work::{Kind, Work};

/// A prepared operation: checked against its channel, owning its buffers, holding nothing of the
/// channel's. Dropping it frees the buffers.
pub struct Descriptor<K: Kind> {
    pub(crate) chan: Arc<Chan>,
    pub(crate) work: Work,
    pub(crate) flags: Flags,
    pub(crate) kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Descriptor<K> {
    /// The buffers, instead of the operation.
    pub fn into_buffers(self) -> K::Buffers {
        match K::unwrap(self.work) {
            Some(buffers) => buffers,
            None => unreachable!("a descriptor's kind is its operation's"),
        }
    }
}

impl<K: Kind> fmt::Debug for Descriptor<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({} {:?})", self.chan.name, self.work)
    }
}
