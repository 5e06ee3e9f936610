//! The client's end of an operation under way.

use alloc::boxed::Box;
use core::fmt;
use core::future::IntoFuture;
use core::marker::PhantomData;

use dma_fence::{Fence, FenceError};

use crate::operation::{Cookie, Record};
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
    /// The parcel that comes with the fence is ours to collect, still.
    due: bool,
}

impl Receipt {
    pub(crate) fn new(cookie: Cookie, fence: Fence) -> Self {
        Self {
            cookie,
            fence,
            due: true,
        }
    }

    /// The operation's record, once the fence is signalled.
    #[inline(always)]
    fn collect(&mut self) -> Option<Box<Record>> {
        self.due = false;
        self.fence.collect()?.downcast().ok()
    }
}

/// Others may observe the fence for long: they do not keep the buffers.
impl Drop for Receipt {
    #[inline]
    fn drop(&mut self) {
        if self.due {
            self.fence.decline();
        }
    }
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

    #[inline(always)]
    fn taken(mut self, result: Result<(), FenceError>) -> Finished<K> {
        let buffers = match self.receipt.collect() {
            Some(record) => K::unwrap(record),
            None => None,
        };
        Finished { buffers, result }
    }
}

impl<K: Kind> IntoFuture for Submitted<K> {
    type Output = Finished<K>;
    type IntoFuture = BoxFuture<'static, Finished<K>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.finish())
    }
}

impl<K: Kind> fmt::Debug for Submitted<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Submitted({})", self.receipt.fence)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hal::dma::{Destination, Memory, Source};
    use hal::host::block_on;

    use super::*;
    use crate::mock::{self, Mock};
    use crate::{Flags, Memcpy, Registry};

    #[test]
    fn who_keeps_the_fence_keeps_no_buffers() {
        let mock = Mock::new(8);
        let ring = [mock.clone() as Arc<_>].into();
        let device = Registry::new().register(mock::info(), ring).unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        let memory = Arc::new(Memory::new(64).unwrap());
        let copy = || -> Submitted<Memcpy> {
            let src = Source::new(memory.clone(), 0..64).unwrap();
            let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
            let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
            channel.submit(descriptor).unwrap()
        };
        let (early, late) = (copy(), copy());
        let fences = [early.fence().clone(), late.fence().clone()];
        channel.issue_pending();
        drop(early);
        assert_eq!(Arc::strong_count(&memory), 3, "both are under way");
        mock.finish(Ok(()));
        assert_eq!(Arc::strong_count(&memory), 2, "given up before it ended");
        mock.finish(Ok(()));
        assert_eq!(Arc::strong_count(&memory), 2, "not collected yet");
        drop(late);
        assert_eq!(Arc::strong_count(&memory), 1, "given up afterwards");
        assert_eq!(fences.map(|fence| fence.result()), [Some(Ok(())); 2]);
    }
}
