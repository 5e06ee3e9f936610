//! The fence and its two ends.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::alloc::Layout;
use core::fmt;
use core::future::IntoFuture;
use core::mem;
use core::task::Waker;

use smallvec::SmallVec;

use crate::error::{FenceError, PENDING, decode, encode};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wait::Wait;

type Callback = Box<dyn FnOnce(Result<(), FenceError>) + Send>;

/// An observer of work in progress. Cloning it is a reference more to the same fence.
#[derive(Clone)]
pub struct Fence {
    inner: Arc<Inner>,
}

/// The end that signals, exactly once. There is one per fence.
pub struct Signaler {
    /// Empty once it has signalled.
    inner: Option<Arc<Inner>>,
}

// Of a size and alignment that no other heap block has: see `Fence::block`.
#[repr(align(64))]
struct Inner {
    context: u64,
    seqno: u64,
    /// `PENDING`, then for good an encoded result. Written once, under the lock of `waiters`: who
    /// finds it pending there is on the lists before they are run.
    status: AtomicU64,
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    next: u64,
    wakers: SmallVec<[(u64, Waker); 1]>,
    callbacks: SmallVec<[(CallbackId, Callback); 1]>,
}

/// Names a callback, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallbackId(u64);

/// The fence was signalled before; this is how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadySignalled(pub Result<(), FenceError>);

impl fmt::Display for AlreadySignalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("already signalled")
    }
}

impl Fence {
    /// The heap block behind a fence, told apart from others by its size and alignment: so a
    /// kernel's allocator can keep a ledger of fences that this crate does not write.
    pub fn block() -> Layout {
        let counts = Layout::new::<[usize; 2]>();
        counts
            .extend(Layout::new::<Inner>())
            .map_or(counts, |(block, _)| block.pad_to_align())
    }

    /// A pending fence numbered `context:seqno`. For those who number their fences themselves;
    /// others ask a [`crate::Context`].
    #[allow(clippy::new_ret_no_self)]
    pub fn new(context: u64, seqno: u64) -> (Signaler, Fence) {
        let inner = Arc::new(Inner {
            context,
            seqno,
            status: AtomicU64::new(PENDING),
            waiters: Mutex::default(),
        });
        let signaler = Signaler {
            inner: Some(inner.clone()),
        };
        (signaler, Fence { inner })
    }

    /// A fence that is signalled from the start.
    pub fn signalled(context: u64, seqno: u64, result: Result<(), FenceError>) -> Fence {
        let (signaler, fence) = Self::new(context, seqno);
        signaler.signal(result);
        fence
    }

    /// Which context it belongs to.
    pub fn context(&self) -> u64 {
        self.inner.context
    }

    /// Its number in the context.
    pub fn seqno(&self) -> u64 {
        self.inner.seqno
    }

    /// Whether the work has ended. What the work wrote is visible to who saw `true`.
    pub fn is_signalled(&self) -> bool {
        self.result().is_some()
    }

    /// How the work ended; `None` while it goes on.
    pub fn result(&self) -> Option<Result<(), FenceError>> {
        decode(self.inner.status.load(Ordering::Acquire))
    }

    /// Waits for the signal. Cancel-safe: dropping the future leaves nothing behind.
    pub fn wait(&self) -> Wait {
        Wait::new(self.clone())
    }

    /// Runs `callback` when the fence is signalled, on the signaler's stack: it must be short, and
    /// may take any lock that the signaler does not hold.
    pub fn add_callback(
        &self,
        callback: impl FnOnce(Result<(), FenceError>) + Send + 'static,
    ) -> Result<CallbackId, AlreadySignalled> {
        let callback = Box::new(callback);
        let mut waiters = self.inner.waiters.lock();
        if let Some(result) = self.result() {
            return Err(AlreadySignalled(result));
        }
        let id = CallbackId(waiters.number());
        waiters.callbacks.push((id, callback));
        Ok(id)
    }

    /// Takes a callback back. Whether it was still there: `false` says that it has run, or runs.
    pub fn remove_callback(&self, id: CallbackId) -> bool {
        let removed = {
            let mut waiters = self.inner.waiters.lock();
            let found = waiters.callbacks.iter().position(|(other, _)| *other == id);
            found.map(|at| waiters.callbacks.remove(at))
        };
        // The closure is dropped here, outside the lock: it may own fences.
        removed.is_some()
    }

    /// Registers `waker` under `key`, or replaces what `key` names; `Err` when signalled.
    pub(crate) fn register(
        &self,
        key: Option<u64>,
        waker: &Waker,
    ) -> Result<u64, Result<(), FenceError>> {
        let mut waiters = self.inner.waiters.lock();
        if let Some(result) = self.result() {
            return Err(result);
        }
        if let Some(key) = key
            && let Some((_, old)) = waiters.wakers.iter_mut().find(|(other, _)| *other == key)
        {
            old.clone_from(waker);
            return Ok(key);
        }
        let key = waiters.number();
        waiters.wakers.push((key, waker.clone()));
        Ok(key)
    }

    pub(crate) fn deregister(&self, key: u64) {
        let removed = {
            let mut waiters = self.inner.waiters.lock();
            let found = waiters.wakers.iter().position(|(other, _)| *other == key);
            found.map(|at| waiters.wakers.remove(at))
        };
        drop(removed);
    }
}

impl Signaler {
    /// Signals: `result` is seen by all observers from now on, callbacks and waiting tasks run.
    pub fn signal(mut self, result: Result<(), FenceError>) {
        self.finish(result);
    }

    /// An observer of this fence.
    pub fn fence(&self) -> Option<Fence> {
        self.inner.clone().map(|inner| Fence { inner })
    }

    fn finish(&mut self, result: Result<(), FenceError>) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        let Waiters {
            wakers, callbacks, ..
        } = {
            let mut waiters = inner.waiters.lock();
            inner.status.store(encode(result), Ordering::Release);
            if waiters.wakers.is_empty() && waiters.callbacks.is_empty() {
                return;
            }
            mem::take(&mut *waiters)
        };
        for (_, callback) in callbacks {
            callback(result);
        }
        for (_, waker) in wakers {
            waker.wake();
        }
    }
}

impl Drop for Signaler {
    fn drop(&mut self) {
        self.finish(Err(FenceError::Abandoned));
    }
}

impl Waiters {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl IntoFuture for Fence {
    type Output = Result<(), FenceError>;
    type IntoFuture = Wait;

    fn into_future(self) -> Wait {
        Wait::new(self)
    }
}

impl IntoFuture for &Fence {
    type Output = Result<(), FenceError>;
    type IntoFuture = Wait;

    fn into_future(self) -> Wait {
        self.wait()
    }
}

/// `CONTEXT:SEQNO STATE err=N cbs=N`; waiting tasks and callbacks both count as `cbs`.
impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, errno) = match self.result() {
            None => ("pending", 0),
            Some(Ok(())) => ("signalled", 0),
            Some(Err(error)) => ("signalled", error.errno()),
        };
        let waiters = self.inner.waiters.lock();
        let callbacks = waiters.wakers.len() + waiters.callbacks.len();
        drop(waiters);
        let (context, seqno) = (self.context(), self.seqno());
        write!(f, "{context}:{seqno} {state} err={errno} cbs={callbacks}")
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({self})")
    }
}

impl fmt::Debug for Signaler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signaler({:?})", self.fence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::AtomicUsize;
    use std::string::ToString;

    #[test]
    fn signals_once_and_for_all_clones() {
        let (signaler, fence) = Fence::new(7, 1);
        let other = fence.clone();
        assert!(!fence.is_signalled());
        signaler.signal(Err(FenceError::Device(3)));
        assert_eq!(fence.result(), Some(Err(FenceError::Device(3))));
        assert_eq!(other.result(), fence.result());
    }

    #[test]
    fn a_dropped_signaler_signals_an_error() {
        let (signaler, fence) = Fence::new(7, 1);
        drop(signaler);
        assert_eq!(fence.result(), Some(Err(FenceError::Abandoned)));
    }

    #[test]
    fn callbacks_run_once_outside_the_lock() {
        let (signaler, fence) = Fence::new(7, 1);
        let runs = Arc::new(AtomicUsize::new(0));
        let (seen, inside) = (runs.clone(), fence.clone());
        fence
            .add_callback(move |result| {
                assert_eq!(result, Ok(()));
                // Would deadlock under the fence's lock.
                assert!(inside.add_callback(|_| ()).is_err());
                seen.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        signaler.signal(Ok(()));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&runs), 1, "the callback is gone");
    }

    #[test]
    fn a_late_callback_is_told_so() {
        let fence = Fence::signalled(1, 2, Ok(()));
        assert_eq!(fence.add_callback(|_| ()), Err(AlreadySignalled(Ok(()))));
    }

    #[test]
    fn a_removed_callback_does_not_run() {
        let (signaler, fence) = Fence::new(7, 1);
        let kept = Arc::new(AtomicUsize::new(0));
        let (first, second) = (kept.clone(), kept.clone());
        let id = fence
            .add_callback(move |_| {
                first.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        fence
            .add_callback(move |_| {
                second.fetch_add(10, Ordering::Relaxed);
            })
            .unwrap();
        assert!(fence.remove_callback(id));
        assert!(!fence.remove_callback(id));
        signaler.signal(Ok(()));
        assert_eq!(kept.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn prints_as_the_console_shows_it() {
        let (signaler, fence) = Fence::new(3, 14);
        fence.add_callback(|_| ()).unwrap();
        assert_eq!(fence.to_string(), "3:14 pending err=0 cbs=1");
        signaler.signal(Err(FenceError::Timeout));
        assert_eq!(fence.to_string(), "3:14 signalled err=-110 cbs=0");
        let done = Fence::signalled(3, 15, Ok(()));
        assert_eq!(done.to_string(), "3:15 signalled err=0 cbs=0");
    }
}
