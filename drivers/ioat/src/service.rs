//! A channel's task, from start to stop: it serves the interrupt, watches for an engine that makes
//! no progress, and alone resets the channel. Whatever a client drops, a reset runs to its end.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::mem;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering, fence};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use dma_fence::{Fence, FenceError, Signaler};
use dmaengine::Operation;
use hal::irq::IrqLine;
use hal::time::{Duration, Instant, sleep_until};
use ioat_spec::State;
use spin::Mutex;

use crate::chan::{Chan, hand_back};
use crate::error::ResetError;
use crate::hardware;
use crate::queue::Scope;

/// How often the watchdog looks at the memory of an engine that has work, for completions whose
/// interrupt was lost.
const LOOK: Duration = Duration::from_millis(25);
/// After how long without any it looks at the registers, and how often from then on: an engine that
/// vanished at its work is known after this time and one look more. Linux's completion timeout is
/// 200 ms.
const ASK: Duration = Duration::from_millis(100);
/// How often an engine without interrupts is looked at while it has work.
const POLL: Duration = Duration::from_millis(1);

/// Why a channel is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It halted with an error.
    Halted,
    /// It reported the completion of a descriptor that was not in flight.
    Foreign,
    /// It has work and makes no progress.
    Hang,
    /// A client gives up what it submitted.
    Terminated,
    /// It is to rest, and SUSPEND does not bring it there.
    Restless,
    /// The registers read all ones.
    Gone,
}

/// What the channel's task is asked for.
#[derive(Default)]
pub(crate) struct Requests {
    pending: Mutex<Pending>,
    waker: AtomicWaker,
    /// The watchdog runs, or is asked to.
    watching: AtomicBool,
}

#[derive(Default)]
struct Pending {
    /// The task is there to serve them.
    open: bool,
    fault: Option<Fault>,
    /// More may be done than was retired.
    look: bool,
    terminations: Vec<Signaler>,
    /// The engine shall rest, and who waits until it does.
    paused: bool,
    pauses: Vec<Signaler>,
    stop: Option<Signaler>,
}

impl Requests {
    pub(crate) fn open(&self) {
        {
            let mut pending = self.pending.lock();
            pending.open = true;
            pending.paused = false;
        }
        self.watching.store(false, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.pending.lock().fault.get_or_insert(fault);
        self.waker.wake();
    }

    /// Has the task retire what whoever retired last has left.
    pub(crate) fn look(&self) {
        self.pending.lock().look = true;
        self.waker.wake();
    }

    /// Has the watchdog look after what was just announced.
    pub(crate) fn watch(&self) {
        // Sequentially consistent: if it was watching, it has yet to look whether it may stop.
        if !self.watching.swap(true, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    pub(crate) fn terminate(&self, context: &dma_fence::Context) -> Fence {
        self.ask(context, |pending, signaler| {
            pending.terminations.push(signaler);
        })
    }

    pub(crate) fn pause(&self, context: &dma_fence::Context) -> Fence {
        self.ask(context, |pending, signaler| {
            pending.paused = true;
            pending.pauses.push(signaler);
        })
    }

    pub(crate) fn resume(&self) {
        self.pending.lock().paused = false;
        self.waker.wake();
    }

    pub(crate) fn stop(&self, context: &dma_fence::Context) -> Fence {
        self.ask(context, |pending, signaler| pending.stop = Some(signaler))
    }

    fn is_stopping(&self) -> bool {
        self.pending.lock().stop.is_some()
    }

    fn ask(&self, context: &dma_fence::Context, put: impl FnOnce(&mut Pending, Signaler)) -> Fence {
        let (signaler, fence) = context.fence();
        {
            let mut pending = self.pending.lock();
            if pending.open {
                put(&mut pending, signaler);
            } else {
                drop(pending);
                signaler.signal(Ok(()));
            }
        }
        self.waker.wake();
        fence
    }
}

enum Event {
    Interrupt,
    Look,
    Watch,
    Tick,
    Fault(Fault),
    Terminate(Vec<Signaler>),
    Pause(Vec<Signaler>),
    Resume,
    Stop(Signaler),
}

/// The task of `chan`, with its own interrupt where it has one.
pub(crate) async fn run(chan: Arc<Chan>, mut line: Option<IrqLine>) {
    let mut watchdog = Watchdog::new(&chan);
    loop {
        match next(&chan, &mut line, &watchdog).await {
            Event::Interrupt => chan.interrupted(),
            Event::Look => {
                // Other tasks of this CPU first: this may go on for as long as the engine is fed.
                hal::task::yield_now().await;
                chan.retire();
            }
            Event::Watch => watchdog.start(&chan),
            Event::Tick => {
                if let Some(fault) = watchdog.tick(&chan) {
                    recover(&chan, fault, watchdog.paused).await;
                    watchdog.start(&chan);
                }
            }
            Event::Fault(fault) => {
                recover(&chan, fault, watchdog.paused).await;
                watchdog.start(&chan);
            }
            Event::Terminate(signalers) => {
                recover(&chan, Fault::Terminated, watchdog.paused).await;
                chan.abandon(FenceError::Terminated);
                watchdog.start(&chan);
                signal_all(signalers);
            }
            Event::Pause(signalers) => {
                if !mem::replace(&mut watchdog.paused, true) {
                    pause(&chan).await;
                    watchdog.start(&chan);
                }
                signal_all(signalers);
            }
            Event::Resume => {
                watchdog.paused = false;
                resume(&chan).await;
                watchdog.start(&chan);
            }
            Event::Stop(signaler) => {
                shut_down(&chan).await;
                *chan.line.lock() = line;
                signaler.signal(Ok(()));
                return;
            }
        }
    }
}

/// What comes first. Cancel-safe in all its parts.
async fn next(chan: &Chan, line: &mut Option<IrqLine>, watchdog: &Watchdog) -> Event {
    let mut interrupt = pin!(async {
        match line {
            Some(line) => line.wait().await,
            None => core::future::pending().await,
        }
    });
    let mut tick = pin!(async {
        match watchdog.deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => core::future::pending().await,
        }
    });
    let ready = |cx: &mut Context<'_>| {
        let requests = &chan.requests;
        requests.waker.register(cx.waker());
        {
            let mut pending = requests.pending.lock();
            if let Some(signaler) = pending.stop.take() {
                pending.open = false;
                return Some(Event::Stop(signaler));
            }
            if !pending.terminations.is_empty() {
                return Some(Event::Terminate(mem::take(&mut pending.terminations)));
            }
            if !pending.pauses.is_empty() {
                return Some(Event::Pause(mem::take(&mut pending.pauses)));
            }
            if watchdog.paused && !pending.paused {
                return Some(Event::Resume);
            }
            if let Some(fault) = pending.fault.take() {
                return Some(Event::Fault(fault));
            }
            if mem::take(&mut pending.look) {
                return Some(Event::Look);
            }
        }
        let watch = requests.watching.load(Ordering::SeqCst);
        (watch && watchdog.is_asleep() && chan.is_running()).then_some(Event::Watch)
    };
    poll_fn(|cx| {
        if let Some(event) = ready(cx) {
            return Poll::Ready(event);
        }
        if interrupt.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Event::Interrupt);
        }
        tick.as_mut().poll(cx).map(|()| Event::Tick)
    })
    .await
}

/// Looks after a channel that has work.
struct Watchdog {
    /// When to look next; `None` while there is nothing to look after.
    deadline: Option<Instant>,
    /// The engine rests, and nothing is expected of it.
    paused: bool,
    step: Duration,
    hang_limit: Duration,
    /// The tail, and CHANSTS' address, when progress was last seen, and when that was.
    tail: u64,
    address: u64,
    since: Instant,
    /// When the registers were last looked at, or need not be.
    looked: Instant,
}

impl Watchdog {
    fn new(chan: &Chan) -> Self {
        let now = Instant::now();
        Self {
            deadline: None,
            paused: false,
            step: if chan.device.has_interrupts() {
                LOOK
            } else {
                POLL
            },
            hang_limit: chan.device.options.hang_limit,
            tail: 0,
            address: 0,
            since: now,
            looked: now,
        }
    }

    /// Nothing is looked after, though it might be.
    fn is_asleep(&self) -> bool {
        self.deadline.is_none() && !self.paused
    }

    fn start(&mut self, chan: &Chan) {
        let now = Instant::now();
        self.deadline = if !chan.is_running() {
            Some(now + chan.device.options.lost_limit)
        } else if self.paused {
            None
        } else {
            Some(now + self.step)
        };
        self.tail = chan.tail();
        self.address = 0;
        self.since = now;
        self.looked = now;
    }

    /// The deadline has come: what is wrong with the channel, if anything.
    fn tick(&mut self, chan: &Chan) -> Option<Fault> {
        if !chan.is_running() {
            self.deadline = None;
            // A removal that was under way already gets what is left, in its own time.
            if chan.device.presence.is_leaving() {
                return None;
            }
            chan.abandon(if chan.device.is_gone() {
                FenceError::Gone
            } else {
                FenceError::Timeout
            });
            return None;
        }
        let before = chan.tail();
        chan.retire();
        if chan.tail() != before {
            // Found by looking: an interrupt was lost, and the channel holds back the next ones.
            chan.regs.arm();
            chan.retire();
        }
        let now = Instant::now();
        self.deadline = Some(now + self.step);
        let tail = chan.tail();
        if chan.issued() == tail {
            chan.requests.watching.store(false, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if chan.issued() == chan.tail() {
                self.deadline = None;
            } else {
                chan.requests.watching.store(true, Ordering::Relaxed);
            }
            return None;
        }
        if tail != self.tail {
            (self.tail, self.address) = (tail, 0);
            (self.since, self.looked) = (now, now);
            return None;
        }
        if now - self.looked < ASK {
            return None;
        }
        let _turn = chan.device.presence.turn()?;
        self.looked = now;
        let Some(status) = chan.regs.status() else {
            return Some(Fault::Gone);
        };
        if status.state() == Some(State::Halted) {
            return Some(Fault::Halted);
        }
        if !chan.device.is_usable() {
            return Some(Fault::Hang);
        }
        if status.address() != self.address {
            (self.address, self.since) = (status.address(), now);
            return None;
        }
        (now - self.since >= self.hang_limit).then_some(Fault::Hang)
    }
}

/// Brings the engine to rest, between two descriptors. What it has not finished stays in the ring.
async fn pause(chan: &Chan) {
    chan.silence();
    let status = hardware::suspend(&chan.regs).await;
    let fault = match status.map(|status| status.state()) {
        Some(Some(State::Suspended)) => return chan.retire(),
        Some(Some(State::Halted)) => Fault::Halted,
        Some(_) => Fault::Restless,
        None => Fault::Gone,
    };
    recover(chan, fault, true).await;
}

/// Goes on with what is in the ring, from its oldest operation on: one that was interrupted is done
/// again, whole.
async fn resume(chan: &Chan) {
    let nothing = take(chan, Scope::None, false).await;
    chan.restart();
    drop(nothing);
    chan.delivered();
    // What was issued meanwhile is looked after from now on.
    chan.requests.watching.store(true, Ordering::SeqCst);
}

/// Resets the channel, fails the operations that the fault concerns, and goes on with the rest,
/// unless it is `paused`. Each recovery from a fault of the engine's fails at least one operation,
/// so that they end. But who stops the channel gets all that is left in it, and so does who removes
/// an engine that is lost.
async fn recover(chan: &Chan, fault: Fault, paused: bool) {
    chan.recoveries.fetch_add(1, Ordering::Relaxed);
    chan.silence();
    let reset = hardware::reset(&chan.device, &chan.regs).await;
    // Whoever has taken its memory has it removed: what it failed at then is done elsewhere.
    if chan.device.dma.is_revoked() {
        chan.device.presence.set_broken();
    }
    let (scope, error) = match (reset, fault) {
        (Err(ResetError::Gone), _) => (Scope::All, FenceError::Gone),
        (Err(ResetError::Stuck), _) => (Scope::All, FenceError::Timeout),
        (Err(ResetError::Errors(errors)), _) => (Scope::All, FenceError::Device(errors)),
        (Ok(_), Fault::Terminated) => (Scope::All, FenceError::Terminated),
        (Ok(_), Fault::Restless) => (Scope::None, FenceError::Timeout),
        (Ok(_), Fault::Hang) => (Scope::Issued, FenceError::Timeout),
        (Ok(errors), Fault::Halted | Fault::Foreign | Fault::Gone) => {
            (Scope::First, FenceError::Device(errors.bits()))
        }
    };
    if fault != Fault::Terminated && chan.requests.is_stopping() {
        return;
    }
    // Another channel may have taken the engine down meanwhile: then nothing here will run.
    let usable = reset.is_ok() && chan.device.is_usable();
    let exposed = is_exposed(chan).await;
    let taken = take(chan, if usable { scope } else { Scope::All }, !usable).await;
    // What the engine said of itself before the reset has been dealt with.
    chan.requests.pending.lock().fault = None;
    if !usable {
        chan.free_ring();
    } else if !paused {
        chan.restart();
    }
    let lost = !chan.device.is_usable() && fault != Fault::Terminated;
    for operation in taken {
        let operation = hand_back(operation, exposed);
        if lost {
            chan.keep(operation);
        } else {
            operation.complete(Err(error));
        }
    }
    chan.delivered();
}

/// Whether the engine, if it is lost, may still write memory.
async fn is_exposed(chan: &Chan) -> bool {
    !chan.device.is_usable() && !chan.device.cut_off().await
}

/// Stops the channel for good, and keeps what it has not finished.
async fn shut_down(chan: &Chan) {
    chan.silence();
    if chan.is_running() {
        // Whatever it answers, it is over.
        let _ = hardware::reset(&chan.device, &chan.regs).await;
    }
    let exposed = is_exposed(chan).await;
    let taken = take(chan, Scope::All, true).await;
    chan.free_ring();
    for operation in taken {
        chan.keep(hand_back(operation, exposed));
    }
    let left = {
        let mut pending = chan.requests.pending.lock();
        pending.fault = None;
        let mut left = mem::take(&mut pending.terminations);
        left.append(&mut pending.pauses);
        left
    };
    signal_all(left);
    chan.delivered();
}

fn signal_all(signalers: Vec<Signaler>) {
    for signaler in signalers {
        signaler.signal(Ok(()));
    }
}

/// Completes what the engine finished before it was stopped, which it has reported in memory; then
/// takes out of the ring what it has not.
async fn take(chan: &Chan, scope: Scope, closing: bool) -> Vec<Operation> {
    loop {
        chan.retire();
        if let Some(taken) = chan.take(scope, closing) {
            return taken;
        }
        // Another CPU is completing operations: it does not wait for anything.
        hal::task::yield_now().await;
    }
}
