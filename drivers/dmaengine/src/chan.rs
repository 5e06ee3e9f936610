//! A channel as the layer keeps it, and the handle by which everybody may look at it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dma_fence::{Fence, FenceError, next_context};
use hal::time::{Duration, Elapsed, Instant};
use spin::{Mutex, Once};

use crate::capability::Flags;
use crate::client::Client;
use crate::depend::Depend;
use crate::descriptor::Descriptor;
use crate::device::DeviceInfo;
use crate::life::Life;
use crate::operation::{Cookie, Duty, Operation, Record};
use crate::pace::Pace;
use crate::provider::{ChannelOps, Rejected, SubmitReason};
use crate::registry::{Registry, WeakRegistry};
use crate::silent::{IN_RING, Listing, Outside};
use crate::submitted::{Receipt, Submitted};
use crate::virt::Pump;
use crate::wait::WaitList;
use crate::work::{Kind, Work};

/// How often a task that polls looks before it lets others run: for about as long as a short copy
/// takes.
const LOOKS: usize = 128;
/// So much at most counts of the time between two looks of a task that polls: a machine that stood
/// still for longer may have given the engine as little.
const STAND: Duration = Duration::from_millis(50);

/// What a channel has done since it was registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Copies completed without error.
    pub copies: u64,
    /// Fills completed without error.
    pub fills: u64,
    /// Exclusive ors, parities and their checks, completed without error.
    pub parities: u64,
    /// Bytes of each buffer of all these.
    pub bytes: u64,
    /// Operations that ended with an error.
    pub errors: u64,
}

pub(crate) struct Chan {
    pub(crate) name: String,
    pub(crate) info: Arc<DeviceInfo>,
    pub(crate) ops: Arc<dyn ChannelOps>,
    pub(crate) life: Life,
    /// Where its device is registered.
    pub(crate) registry: Once<WeakRegistry>,
    /// Of the fences of this channel's operations.
    context: Listing,
    /// Its lock orders submissions, so that cookies follow the ring.
    submit: Mutex<Order>,
    pub(crate) depend: Depend,
    /// Set under the submit lock: nothing enters afterwards.
    closed: AtomicBool,
    /// Operations that have entered the ring, and were not refused.
    entered: AtomicU64,
    /// What a removed device has not finished, for others to do.
    pub(crate) unfinished: Mutex<Vec<Operation>>,
    /// Operations that have left the ring: tells who waits for room that there may be some.
    left: AtomicU64,
    room: WaitList,
    copies: AtomicU64,
    fills: AtomicU64,
    parities: AtomicU64,
    bytes: AtomicU64,
    /// Operations that ended with an error that no client asked for.
    failures: AtomicU64,
    /// Those that a client gave up.
    terminated: AtomicU64,
    pub(crate) notice: Notice,
    pub(crate) pace: Pace,
    /// See [`ChannelOps::ends_silently`].
    pub(crate) silent: bool,
    /// Somebody waits for what ends silently.
    pub(crate) wanted: AtomicBool,
    /// The channel whose ring it uses, where it is a virtual one.
    parent: Option<Arc<Chan>>,
    /// What fills its ring from the virtual channels on it.
    pub(crate) pump: Mutex<Weak<Pump>>,
}

/// Tells clients that their channel's device is leaving.
#[derive(Default)]
pub(crate) struct Notice {
    deadline: Once<Instant>,
    told: WaitList,
}

impl Notice {
    /// Tells them that they have time until `deadline`.
    pub(crate) fn give(&self, deadline: Instant) {
        self.deadline.call_once(|| deadline);
        self.told.wake_all();
    }
}

struct Order {
    /// The next cookie.
    next: u64,
    /// The last operation in the ring that later ones start after.
    fenced: u64,
    /// The last one that interrupts.
    interrupting: u64,
}

impl Chan {
    pub(crate) fn new(name: String, info: Arc<DeviceInfo>, ops: Arc<dyn ChannelOps>) -> Self {
        Self {
            silent: ops.ends_silently(),
            name,
            info,
            ops,
            life: Life::default(),
            registry: Once::new(),
            context: Listing::new(),
            submit: Mutex::new(Order {
                next: 1,
                fenced: 0,
                interrupting: 0,
            }),
            depend: Depend::default(),
            closed: AtomicBool::new(false),
            entered: AtomicU64::new(0),
            unfinished: Mutex::default(),
            left: AtomicU64::new(0),
            room: WaitList::default(),
            copies: AtomicU64::new(0),
            fills: AtomicU64::new(0),
            parities: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            terminated: AtomicU64::new(0),
            notice: Notice::default(),
            pace: Pace::default(),
            wanted: AtomicBool::new(false),
            parent: None,
            pump: Mutex::default(),
        }
    }

    /// A virtual channel on `parent`.
    pub(crate) fn on(
        parent: &Arc<Self>,
        name: String,
        info: DeviceInfo,
        ops: Arc<dyn ChannelOps>,
    ) -> Self {
        Self {
            parent: Some(parent.clone()),
            ..Self::new(name, Arc::new(info), ops)
        }
    }

    /// The channel with the ring: itself, unless it is a virtual one.
    pub(crate) fn physical(self: &Arc<Self>) -> &Arc<Self> {
        self.parent.as_ref().unwrap_or(self)
    }

    /// Where its device is registered. `None` for the CPU, and when the registry is gone.
    pub(crate) fn registry(&self) -> Option<Registry> {
        let chan = self.parent.as_deref().unwrap_or(self);
        chan.registry.get().and_then(WeakRegistry::upgrade)
    }

    pub(crate) fn is_closed(&self) -> bool {
        let chan = self.parent.as_deref().unwrap_or(self);
        chan.closed.load(Ordering::Acquire)
    }

    /// Lets nothing enter any more. On return every operation that entered before is counted.
    pub(crate) fn close(&self) {
        {
            let _order = self.submit.lock();
            self.closed.store(true, Ordering::Release);
        }
        self.room.wake_all();
        let pump = self.pump.lock().upgrade();
        if let Some(pump) = pump {
            pump.close();
        }
    }

    /// Of its operations' fences.
    pub(crate) fn context(&self) -> u64 {
        self.context.number()
    }

    /// The last operation in the ring that interrupts.
    pub(crate) fn interrupting(&self) -> u64 {
        self.submit.lock().interrupting
    }

    pub(crate) fn in_flight(&self) -> usize {
        // In this order: what leaves meanwhile counts as in flight.
        let left = self.left();
        self.entered.load(Ordering::Acquire).wrapping_sub(left) as usize
    }

    /// Submits, or gives the descriptor back.
    #[inline(always)]
    pub(crate) fn submit<K: Kind>(
        self: &Arc<Self>,
        descriptor: Descriptor<K>,
    ) -> Result<Submitted<K>, (Descriptor<K>, SubmitReason)> {
        let Descriptor { chan, record, .. } = descriptor;
        if !Arc::ptr_eq(self, &chan) {
            return Err((Descriptor::new(chan, record), SubmitReason::Foreign));
        }
        match self.submit_record(chan, record) {
            Ok(receipt) => Ok(Submitted::new(receipt)),
            Err((record, reason)) => Err((Descriptor::new(self.clone(), record), reason)),
        }
    }

    /// The same for all kinds of work. `chan` is this channel.
    pub(crate) fn submit_record(
        self: &Arc<Self>,
        chan: Arc<Self>,
        mut record: Box<Record>,
    ) -> Result<Receipt, (Box<Record>, SubmitReason)> {
        let mut order = self.submit.lock();
        if self.is_closed() {
            return Err((record, SubmitReason::Gone));
        }
        let cookie = Cookie(order.next);
        let completion = &mut record.completion;
        completion.cookie = cookie;
        let terms = &mut completion.terms;
        let flags = terms.flags;
        terms.update();
        let in_ring = |fence: &Fence| !fence.is_signalled() && fence.context() == self.context();
        let kept = |fence: &Fence| in_ring(fence) && fence.seqno() <= order.fenced;
        let waits = !terms.after().iter().all(kept);
        let (signaler, fence) = if waits {
            // It ends when others do, not in the order of this channel.
            let chan = self.clone();
            Fence::with_ops(next_context(), 1, Arc::new(Outside { chan, cookie }))
        } else if self.silent && !flags.contains(Flags::INTERRUPT) {
            Fence::with_ops(self.context(), cookie.0, &IN_RING)
        } else {
            Fence::new(self.context(), cookie.0)
        };
        completion.waits = waits;
        completion.duty = Some(Duty { chan, signaler });
        let operation = Operation::new(record);
        let receipt = Receipt::new(cookie, fence);
        if waits {
            order.next += 1;
            drop(order);
            self.wait_for(operation);
            return Ok(receipt);
        }
        self.enter();
        match self.ops.submit(operation) {
            Ok(()) => {
                order.next += 1;
                if flags.contains(Flags::FENCE) {
                    order.fenced = cookie.0;
                }
                if flags.contains(Flags::INTERRUPT) {
                    order.interrupting = cookie.0;
                }
                Ok(receipt)
            }
            Err(rejected) => {
                drop(order);
                Err((rejected.operation.refuse(), rejected.reason))
            }
        }
    }

    /// As [`Chan::submit`], but waits for room. What waits in the ring is issued: else there
    /// might never be any.
    pub(crate) async fn submit_wait<K: Kind>(
        self: &Arc<Self>,
        mut descriptor: Descriptor<K>,
    ) -> Result<Submitted<K>, (Descriptor<K>, SubmitReason)> {
        loop {
            let left = self.left();
            match self.submit(descriptor) {
                Err((back, SubmitReason::Full)) => descriptor = back,
                other => return other,
            }
            self.issue_pending();
            self.room_since(left).await;
        }
    }

    /// How many operations have left the ring so far.
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Waits until more than `left` operations have left the ring, or none enters any more.
    pub(crate) async fn room_since(&self, left: u64) {
        let changed = || self.left() != left || self.is_closed();
        self.room.until(|| changed().then_some(())).await;
    }

    /// Counts an operation that has ended.
    #[inline]
    pub(crate) fn count(&self, work: &Work, result: Result<(), FenceError>) {
        if let Err(error) = result {
            let counter = match error {
                FenceError::Terminated => &self.terminated,
                _ => &self.failures,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match work {
            Work::Memcpy { .. } => self.copies.fetch_add(1, Ordering::Relaxed),
            Work::Memset { .. } => self.fills.fetch_add(1, Ordering::Relaxed),
            Work::Interrupt => return,
            _ => self.parities.fetch_add(1, Ordering::Relaxed),
        };
        self.bytes.fetch_add(work.len() as u64, Ordering::Relaxed);
    }

    /// Takes over an operation whose own channel is gone, or gives it back.
    pub(crate) fn adopt(self: &Arc<Self>, mut operation: Operation) -> Result<(), Rejected> {
        let _order = self.submit.lock();
        if self.is_closed() {
            return Err(Rejected::new(operation, SubmitReason::Gone));
        }
        operation.move_to(self);
        self.ops.submit(operation)
    }

    /// An operation enters the ring.
    pub(crate) fn enter(&self) {
        self.entered.fetch_add(1, Ordering::Relaxed);
    }

    /// An operation was refused: it makes no room for others.
    pub(crate) fn withdraw(&self) {
        self.entered.fetch_sub(1, Ordering::Release);
    }

    /// An operation has left the ring.
    #[inline]
    pub(crate) fn leave(&self) {
        self.left.fetch_add(1, Ordering::Release);
        self.room.wake_all();
    }

    /// Operations that ended with an error that no client asked for. It only grows.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            copies: self.copies.load(Ordering::Relaxed),
            fills: self.fills.load(Ordering::Relaxed),
            parities: self.parities.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.failures() + self.terminated.load(Ordering::Relaxed),
        }
    }
}

/// A handle to look at a channel, or to request it. It keeps nothing running.
#[derive(Clone)]
pub struct DmaChan {
    pub(crate) inner: Arc<Chan>,
}

impl DmaChan {
    /// Its name, such as `dma0chan0`, or `cpu`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The device it belongs to.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// What it has done.
    pub fn counters(&self) -> Counters {
        self.inner.counters()
    }

    /// How many clients hold it.
    pub fn clients(&self) -> usize {
        self.inner.life.clients()
    }

    /// Whether the provider's resources for it are allocated: it has a ring.
    pub fn is_running(&self) -> bool {
        self.inner.life.is_running()
    }

    /// How many operations are in its ring.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    /// The names of its clients, in the order in which they came.
    pub fn client_names(&self) -> Vec<Client> {
        self.inner.life.client_names()
    }

    /// Whether its device is being removed, or was.
    pub fn is_leaving(&self) -> bool {
        self.inner.physical().notice.deadline.is_completed()
    }

    /// Waits until its device is being removed. Gives the moment until which a holder of the
    /// channel may go on to use it; then it is revoked: what is in flight is finished elsewhere,
    /// and what is submitted later is refused. Giving the channel up before lets the removal go
    /// on at once.
    pub async fn removed(&self) -> Instant {
        let notice = &self.inner.physical().notice;
        let deadline = || notice.deadline.get().copied();
        notice.told.until(deadline).await
    }

    /// Polls for the end of an operation that this channel was given, for `limit` at most, of which
    /// time that the CPU was away counts for little. Other tasks of this CPU run now and then; no
    /// timer is set.
    pub async fn poll_for(
        &self,
        fence: &Fence,
        limit: Duration,
    ) -> Result<Result<(), FenceError>, Elapsed> {
        let (mut last, mut spent) = (None, Duration::ZERO);
        loop {
            for _ in 0..LOOKS {
                self.inner.ops.poll();
                if let Some(result) = fence.result() {
                    return Ok(result);
                }
            }
            let now = Instant::now();
            spent += last
                .replace(now)
                .map_or(Duration::ZERO, |last| (now - last).min(STAND));
            if spent > limit {
                return Err(Elapsed);
            }
            hal::task::yield_now().await;
        }
    }

    /// Whether its device was removed: nothing can be submitted any more.
    pub fn is_gone(&self) -> bool {
        self.inner.is_closed()
    }
}

/// `NAME clients=N refs=N copies=N bytes=N errors=N`, the console's line.
impl fmt::Display for DmaChan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counters {
            copies,
            bytes,
            errors,
            ..
        } = self.counters();
        write!(
            f,
            "{} clients={} refs={} copies={copies} bytes={bytes} errors={errors}",
            self.name(),
            self.clients(),
            self.in_flight(),
        )
    }
}

impl fmt::Debug for DmaChan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaChan({self})")
    }
}
