//! Waiting for a fence in a task.

use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll};

use crate::error::FenceError;
use crate::fence::Fence;

/// Completes when its fence is signalled. Dropping it takes the task off the fence's list.
pub struct Wait {
    fence: Fence,
    key: Option<u64>,
}

impl Wait {
    pub(crate) fn new(fence: Fence) -> Self {
        Self { fence, key: None }
    }
}

/// The limit of a wait was there before the end of what was awaited, which goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl TimedOut {
    /// The number that Linux would use for it, negative.
    pub const fn errno(self) -> i32 {
        -110 // ETIMEDOUT
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl Fence {
    /// Waits for the signal until `limit` completes: a timer, or whatever else ends the wait. With
    /// a limit that is there from the start this is a question, which arms nothing.
    pub async fn wait_until(&self, limit: impl Future) -> Result<Result<(), FenceError>, TimedOut> {
        let (mut wait, mut limit) = (self.wait(), pin!(limit));
        poll_fn(|cx| {
            if let Some(result) = self.result() {
                return Poll::Ready(Ok(result));
            }
            if limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(TimedOut));
            }
            Pin::new(&mut wait).poll(cx).map(Ok)
        })
        .await
    }
}

impl Future for Wait {
    type Output = Result<(), FenceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.fence.result() {
            return Poll::Ready(result);
        }
        match self.fence.register(self.key, cx.waker()) {
            Ok(key) => {
                self.key = Some(key);
                Poll::Pending
            }
            Err(result) => Poll::Ready(result),
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.fence.deregister(key);
        }
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wait({:?})", self.fence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Count, poll};
    use std::pin::pin;
    use std::string::ToString;
    use std::sync::Arc;
    use std::task::{Wake, Waker};

    #[test]
    fn wakes_each_waiting_task_once() {
        let (signaler, fence) = Fence::new(1, 1);
        let (a, b) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (mut first, mut second) = (fence.wait(), fence.wait());
        assert!(poll(&mut first, &a).is_pending());
        assert!(
            poll(&mut first, &a).is_pending(),
            "polled twice, listed once"
        );
        assert!(poll(&mut second, &b).is_pending());
        assert_eq!(fence.to_string(), "1:1 pending err=0 cbs=2");
        signaler.signal(Ok(()));
        assert_eq!(a.get(), 1);
        assert_eq!(b.get(), 1);
        assert_eq!(poll(&mut first, &a), Poll::Ready(Ok(())));
        assert_eq!(poll(&mut second, &b), Poll::Ready(Ok(())));
    }

    #[test]
    fn a_task_that_moved_is_woken_by_its_new_waker() {
        let (signaler, fence) = Fence::new(1, 1);
        let (old, new) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut wait = fence.wait();
        assert!(poll(&mut wait, &old).is_pending());
        assert!(poll(&mut wait, &new).is_pending());
        signaler.signal(Ok(()));
        assert_eq!(old.get(), 0);
        assert_eq!(new.get(), 1);
    }

    #[test]
    fn a_dropped_wait_leaves_nothing_behind() {
        let (signaler, fence) = Fence::new(1, 1);
        let count = Arc::new(Count::default());
        {
            let mut wait = fence.wait();
            assert!(poll(&mut wait, &count).is_pending());
        }
        assert_eq!(Arc::strong_count(&count), 1);
        assert_eq!(fence.to_string(), "1:1 pending err=0 cbs=0");
        signaler.signal(Ok(()));
        assert_eq!(count.get(), 0);
    }

    #[test]
    fn threads_that_wait_all_return() {
        let (signaler, fence) = Fence::new(1, 1);
        let (sent, received) = std::sync::mpsc::channel();
        for _ in 0..4 {
            let (fence, sent) = (fence.clone(), sent.clone());
            std::thread::spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                let mut wait = pin!(fence.into_future());
                loop {
                    match wait.as_mut().poll(&mut Context::from_waker(&waker)) {
                        Poll::Ready(result) => break sent.send(result),
                        Poll::Pending => std::thread::park(),
                    }
                }
            });
        }
        drop(sent);
        drop(signaler);
        let results: std::vec::Vec<_> = received.iter().collect();
        assert_eq!(results, [Err(FenceError::Abandoned); 4]);
    }

    struct Unpark(std::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
}
