//! The client's end of an operation under way.

use core::fmt;
use core::future::IntoFuture;
use core::marker::PhantomData;

use dma_fence::{Fence, FenceError};

use crate::operation::{Back, Cookie};
use crate::provider::BoxFuture;
use crate::work::Kind;

/// A submitted operation. Dropping it gives up the buffers, not the operation: they are freed
/// when it has completed.
pub struct Submitted<K: Kind> {
    receipt: Receipt,
    kind: PhantomData<fn() -> K>,
}

/// What a client has of an operation, whatever its kind.
pub(crate) struct Receipt {
    pub(crate) cookie: Cookie,
    pub(crate) fence: Fence,
    pub(crate) back: Back,
}

/// How an operation ended.
#[derive(Debug)]
pub struct Finished<K: Kind> {
    /// Its buffers. `None` where they cannot come back: the provider dropped the operation, or its
    /// device is gone and may still write them.
    pub buffers: Option<K::Buffers>,
    /// Whether it did what it should; where it did not, the destination's bytes are undefined.
    pub result: Result<(), FenceError>,
}

impl<K: Kind> Submitted<K> {
    pub(crate) fn new(receipt: Receipt) -> Self {
        Self {
            receipt,
            kind: PhantomData,
        }
    }

    /// Its number in its channel.
    pub fn cookie(&self) -> Cookie {
        self.receipt.cookie
    }

    /// Signalled when it completes.
    pub fn fence(&self) -> &Fence {
        &self.receipt.fence
    }

    /// Waits for its end and takes the buffers back.
    pub async fn finish(self) -> Finished<K> {
        let result = self.receipt.fence.wait().await;
        self.taken(result)
    }

    /// Takes the buffers back if it has ended already, else itself.
    pub fn try_finish(self) -> Result<Finished<K>, Self> {
        match self.receipt.fence.result() {
            Some(result) => Ok(self.taken(result)),
            None => Err(self),
        }
    }

    fn taken(self, result: Result<(), FenceError>) -> Finished<K> {
        let record = self.receipt.back.lock().take();
        Finished {
            buffers: record.and_then(|record| K::unwrap(record.work)),
            result,
        }
    }
}

impl<K: Kind> IntoFuture for Submitted<K> {
    type Output = Finished<K>;
    type IntoFuture = BoxFuture<'static, Finished<K>>;

    fn into_future(self) -> Self::IntoFuture {
        alloc::boxed::Box::pin(self.finish())
    }
}

impl<K: Kind> fmt::Debug for Submitted<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Submitted({})", self.receipt.fence)
    }
}
