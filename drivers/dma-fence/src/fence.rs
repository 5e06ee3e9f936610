//! The fence and its two ends.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::alloc::Layout;
use core::any::Any;
use core::fmt;
use core::future::IntoFuture;
use core::mem;
use core::task::Waker;
use core::time::Duration;

use smallvec::SmallVec;

use crate::error::{FenceError, PENDING, decode, encode};
use crate::ops::{FenceOps, Ops};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wait::Wait;

type Callback = Box<dyn FnOnce(Result<(), FenceError>) + Send>;

/// What the work behind a fence hands over when it ends, to the one observer who
/// [collects](Fence::collect) it: the buffers that it worked on.
pub type Parcel = Box<dyn Any + Send>;

/// An observer of work in progress. Cloning it is a reference more to the same fence.
#[derive(Clone)]
pub struct Fence {
    inner: Arc<Inner>,
}

/// The end that signals, exactly once. There is one per fence, and signalling uses it up:
///
/// ```compile_fail,E0382
/// let (signaler, fence) = dma_fence::Fence::new(1, 1);
/// signaler.signal(Ok(()));
/// signaler.signal(Ok(()));
/// ```
pub struct Signaler {
    inner: Arc<Inner>,
    signalled: bool,
}

// Of a size and alignment that no other heap block has: see `Fence::block`.
#[repr(align(64))]
struct Inner {
    context: u64,
    seqno: u64,
    /// `PENDING`, then for good an encoded result. Written once, under the lock of `waiters`: who
    /// finds it pending there is on the list before that is run.
    status: AtomicU64,
    /// Whose work it is, where that takes part.
    ops: Option<Ops>,
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    next: u64,
    /// It has no signaler before somebody waits.
    lazy: bool,
    /// Somebody has waited, and the fence's operations were told.
    enabled: bool,
    /// `status` is pending no more.
    settled: bool,
    /// Nobody will collect the parcel.
    declined: bool,
    parcel: Option<Parcel>,
    list: SmallVec<[(u64, Waiter); 1]>,
}

enum Waiter {
    Task(Waker),
    Callback(Callback),
}

/// Names a callback, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallbackId(u64);

/// The fence was signalled before; this is how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadySignalled(pub Result<(), FenceError>);

impl AlreadySignalled {
    /// The number that Linux would use for it, negative.
    pub const fn errno(self) -> i32 {
        -2 // ENOENT
    }
}

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

    /// A pending fence numbered `context:seqno`, signalled by software alone. For those who number
    /// their fences themselves; others ask a [`crate::Context`].
    #[allow(clippy::new_ret_no_self)]
    pub fn new(context: u64, seqno: u64) -> (Signaler, Fence) {
        let fence = Self::pending(context, seqno, None, false);
        (Signaler::of(&fence), fence)
    }

    /// A pending fence of a kind of its own, see [`FenceOps`].
    pub fn with_ops(context: u64, seqno: u64, ops: impl Into<Ops>) -> (Signaler, Fence) {
        let fence = Self::pending(context, seqno, Some(ops.into()), false);
        (Signaler::of(&fence), fence)
    }

    /// The same, whose signaler comes into being when somebody waits: while nobody does it costs
    /// its `ops` nothing, and may go before the work ends.
    pub fn lazy(context: u64, seqno: u64, ops: impl Into<Ops>) -> Fence {
        Self::pending(context, seqno, Some(ops.into()), true)
    }

    fn pending(context: u64, seqno: u64, ops: Option<Ops>, lazy: bool) -> Fence {
        let waiters = Waiters {
            lazy,
            ..Waiters::default()
        };
        let inner = Arc::new(Inner {
            context,
            seqno,
            status: AtomicU64::new(PENDING),
            ops,
            waiters: Mutex::new(waiters),
        });
        Fence { inner }
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

    /// Whether both observe the same work.
    pub fn is_same(&self, other: &Fence) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Its operations, if they are of this type: so a provider recognises fences of its own, whose
    /// order its hardware may keep by itself.
    pub fn ops<T: FenceOps>(&self) -> Option<&T> {
        let ops: &dyn Any = &**self.inner.ops.as_ref()?;
        ops.downcast_ref()
    }

    /// Whether the work has ended. What the work wrote is visible to who saw `true`.
    pub fn is_signalled(&self) -> bool {
        self.result().is_some()
    }

    /// How the work ended; `None` while it goes on. Runs nobody's callbacks.
    #[inline]
    pub fn result(&self) -> Option<Result<(), FenceError>> {
        self.inner.result().or_else(|| self.ask())
    }

    /// How the work ended, as far as the fence's own kind can see by itself.
    fn ask(&self) -> Option<Result<(), FenceError>> {
        let ops = self.inner.ops.as_ref()?;
        Some(self.inner.settle(ops.poll(self)?))
    }

    /// Says when somebody will need the work done, as time since the start of the machine's clock:
    /// a hint, which whoever does the work may follow.
    pub fn set_deadline(&self, deadline: Duration) {
        if let Some(ops) = &self.inner.ops
            && self.inner.result().is_none()
        {
            ops.set_deadline(self, deadline);
        }
    }

    /// Waits for the signal. Cancel-safe: dropping the future leaves nothing behind.
    pub fn wait(&self) -> Wait {
        Wait::new(self.clone())
    }

    /// Runs `callback` when the fence is signalled, on the signaler's stack: it must be short, and
    /// may take any lock that the signaler does not hold. Where the work has ended without anybody
    /// having said so, that may be before this returns. The caller's reference may go: the callback
    /// stays with who signals.
    pub fn add_callback(
        &self,
        callback: impl FnOnce(Result<(), FenceError>) + Send + 'static,
    ) -> Result<CallbackId, AlreadySignalled> {
        let waiter = Waiter::Callback(Box::new(callback));
        self.list(None, waiter)
            .map(CallbackId)
            .map_err(AlreadySignalled)
    }

    /// Takes a callback back. Whether it was still there: `false` says that it has run, or runs.
    pub fn remove_callback(&self, id: CallbackId) -> bool {
        self.unlist(id.0)
    }

    /// Takes the parcel, if it is there and nobody has taken it: whoever sees the signal finds it.
    #[inline]
    pub fn collect(&self) -> Option<Parcel> {
        self.inner.waiters.lock().parcel.take()
    }

    /// Nobody will collect the parcel: it is dropped, here or when it comes.
    pub fn decline(&self) {
        let parcel = {
            let mut waiters = self.inner.waiters.lock();
            waiters.declined = true;
            waiters.parcel.take()
        };
        // Outside the lock: it may own fences.
        drop(parcel);
    }

    /// Registers `waker` under `key`, or replaces what `key` names; `Err` when signalled.
    pub(crate) fn register(
        &self,
        key: Option<u64>,
        waker: &Waker,
    ) -> Result<u64, Result<(), FenceError>> {
        self.list(key, Waiter::Task(waker.clone()))
    }

    /// The list of a fence that was signalled is empty, unless nobody has said so yet.
    pub(crate) fn deregister(&self, key: u64) {
        if self.inner.result().is_none() || self.inner.ops.is_some() {
            self.unlist(key);
        }
    }

    /// Puts `waiter` on the list, in place of what `key` names there.
    fn list(&self, key: Option<u64>, waiter: Waiter) -> Result<u64, Result<(), FenceError>> {
        if let Some(result) = self.result() {
            return Err(result);
        }
        let (key, replaced, enable) = {
            let mut waiters = self.inner.waiters.lock();
            if let Some(result) = self.inner.result() {
                return Err(result);
            }
            let (key, replaced) = waiters.put(key, waiter);
            let first = !mem::replace(&mut waiters.enabled, true);
            (key, replaced, first.then_some(waiters.lazy))
        };
        // Outside the lock, as everything that runs code of others.
        drop(replaced);
        if let (Some(lazy), Some(ops)) = (enable, &self.inner.ops) {
            ops.enable_signaling(self, lazy.then(|| Signaler::of(self)));
        }
        Ok(key)
    }

    fn unlist(&self, key: u64) -> bool {
        let removed = {
            let mut waiters = self.inner.waiters.lock();
            let found = waiters.list.iter().position(|(other, _)| *other == key);
            found.map(|at| waiters.list.remove(at))
        };
        // The waiter is dropped here, outside the lock: it may own fences.
        removed.is_some()
    }
}

impl Signaler {
    fn of(fence: &Fence) -> Self {
        Self {
            inner: fence.inner.clone(),
            signalled: false,
        }
    }

    /// Signals: `result` is seen by all observers from now on, callbacks and waiting tasks run.
    pub fn signal(mut self, result: Result<(), FenceError>) {
        let _ = self.try_signal(result);
    }

    /// The same, and leaves a parcel.
    pub fn signal_with(mut self, result: Result<(), FenceError>, parcel: Option<Parcel>) {
        self.signalled = true;
        let _ = self.inner.finish(result, parcel);
    }

    /// The same, for who cannot give the signaler away. Fails, and changes nothing, where the fence
    /// was signalled before, or the work was seen to have ended.
    pub fn try_signal(&mut self, result: Result<(), FenceError>) -> Result<(), AlreadySignalled> {
        self.signalled = true;
        self.inner.finish(result, None)
    }

    /// Whether anybody has waited for the signal, with or without having given up since.
    pub fn is_awaited(&self) -> bool {
        self.inner.waiters.lock().enabled
    }

    /// An observer of this fence.
    pub fn fence(&self) -> Fence {
        let inner = self.inner.clone();
        Fence { inner }
    }
}

impl Drop for Signaler {
    fn drop(&mut self) {
        if !self.signalled {
            let _ = self.inner.finish(Err(FenceError::Abandoned), None);
        }
    }
}

impl Inner {
    /// What has been settled.
    #[inline]
    fn result(&self) -> Option<Result<(), FenceError>> {
        decode(self.status.load(Ordering::Acquire))
    }

    /// Settles how the work ended, unless that is settled; who is on the list is not told. Gives
    /// back what holds.
    fn settle(&self, result: Result<(), FenceError>) -> Result<(), FenceError> {
        let mut waiters = self.waiters.lock();
        self.store(&mut waiters, result)
            .map_or(result, |late| late.0)
    }

    /// Leaves the parcel, settles how the work ended, unless that is settled, and tells all who are
    /// on the list. A parcel that nobody wants is dropped outside the lock: it may own fences.
    fn finish(
        &self,
        result: Result<(), FenceError>,
        mut parcel: Option<Parcel>,
    ) -> Result<(), AlreadySignalled> {
        let (late, list) = {
            let mut waiters = self.waiters.lock();
            if !waiters.declined {
                mem::swap(&mut waiters.parcel, &mut parcel);
            }
            let late = self.store(&mut waiters, result);
            if waiters.list.is_empty() {
                return late.map_or(Ok(()), Err);
            }
            (late, mem::take(&mut waiters.list))
        };
        for (_, waiter) in list {
            match waiter {
                Waiter::Task(waker) => waker.wake(),
                Waiter::Callback(callback) => callback(late.map_or(result, |late| late.0)),
            }
        }
        late.map_or(Ok(()), Err)
    }

    fn store(
        &self,
        waiters: &mut Waiters,
        result: Result<(), FenceError>,
    ) -> Option<AlreadySignalled> {
        if mem::replace(&mut waiters.settled, true) {
            return self.result().map(AlreadySignalled);
        }
        self.status.store(encode(result), Ordering::Release);
        None
    }
}

impl Waiters {
    /// Puts `waiter` in the place that `key` names, or a new one. Gives back what was there.
    fn put(&mut self, key: Option<u64>, waiter: Waiter) -> (u64, Option<Waiter>) {
        if let Some(key) = key
            && let Some((_, old)) = self.list.iter_mut().find(|(other, _)| *other == key)
        {
            return (key, Some(mem::replace(old, waiter)));
        }
        self.next += 1;
        self.list.push((self.next, waiter));
        (self.next, None)
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
        let callbacks = self.inner.waiters.lock().list.len();
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
    fn a_fence_is_one_small_block() {
        assert!(Fence::block().size() <= 192);
        assert_eq!(size_of::<Fence>(), size_of::<usize>());
    }

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
