//! The channel: what is submitted, what is given up, and what it has done.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};

use atomic_waker::AtomicWaker;
use dma_fence::{Context, Fence, FenceError, Signaler};
use dmaengine::{
    BoxFuture, Capabilities, ChannelOps, Client, Operation, Rejected, StartError, SubmitReason,
    Work,
};
use spin::Mutex;

use crate::chunk::Mapped;
use crate::hardware::{BUFFER_LEN, Hardware};
use crate::service;

/// Operations that wait at most.
pub(crate) const SLOTS: usize = 64;
/// Bytes of one operation at most: it keeps the device for 3.2 seconds.
pub(crate) const MAX_TRANSFER: usize = 16 * BUFFER_LEN;

/// The device's one channel. Its task exists from start to stop.
pub(crate) struct Chan {
    this: Weak<Chan>,
    pub(crate) hardware: Arc<Hardware>,
    state: Mutex<State>,
    /// Wakes the channel's task, after a change of the state or an interrupt.
    pub(crate) waker: AtomicWaker,
    /// What a stopped channel has not finished.
    unfinished: Mutex<Vec<Operation>>,
    requests: Context,
    pub(crate) transfers: AtomicU64,
    pub(crate) bounced: AtomicU64,
    pub(crate) interrupts: AtomicU64,
    pub(crate) timeouts: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The task is there to work the queue off.
    running: bool,
    queue: VecDeque<InFlight>,
    /// The numbers of the last that was submitted, issued, given up; 0 before the first.
    submitted: u64,
    issued: u64,
    given_up: u64,
    terminations: Vec<Signaler>,
    /// No transfer is to begin, and who waits until none is under way.
    paused: bool,
    pauses: Vec<Signaler>,
    stop: Option<Signaler>,
}

/// An operation with what the device reaches of its memory.
pub(crate) struct InFlight {
    /// Counts the operations that have entered.
    pub(crate) number: u64,
    /// Bytes of it that are done.
    pub(crate) done: usize,
    pub(crate) operation: Operation,
    pub(crate) mapped: Mapped,
}

impl InFlight {
    /// Takes the device's access away, then ends the operation.
    pub(crate) fn finish(self, result: Result<(), FenceError>) {
        drop(self.mapped);
        self.operation.complete(result);
    }
}

/// What the task does next.
pub(crate) enum Next {
    /// An operation is to be worked on.
    Work(Box<InFlight>),
    /// These are given up; who asked for it waits.
    GiveUp(Vec<InFlight>, Vec<Signaler>),
    /// The device rests; these wait for it.
    Rest(Vec<Signaler>),
    /// The channel stops. Nothing enters any more.
    Stop(Signaler),
}

/// Why an operation that is being worked on goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// It fails.
    Failed(FenceError),
    /// The channel stops, and the operation can run elsewhere; or it pauses.
    NotNow,
}

impl Chan {
    pub(crate) fn new(hardware: Arc<Hardware>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            hardware,
            state: Mutex::default(),
            waker: AtomicWaker::new(),
            unfinished: Mutex::default(),
            requests: Context::new(),
            transfers: AtomicU64::new(0),
            bounced: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
        })
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.lock().running
    }

    /// Operations that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// An interrupt came, and the device was quieted.
    pub(crate) fn interrupted(&self) {
        self.interrupts.fetch_add(1, Ordering::Release);
        self.waker.wake();
    }

    /// What is to be done, if anything.
    pub(crate) fn next(&self) -> Option<Next> {
        let mut state = self.state.lock();
        if let Some(signaler) = state.stop.take() {
            state.running = false;
            return Some(Next::Stop(signaler));
        }
        if !state.terminations.is_empty() {
            let given_up = state.given_up;
            let gone = |entry: &&InFlight| entry.number <= given_up;
            let count = state.queue.iter().take_while(gone).count();
            let entries = state.queue.drain(..count).collect();
            return Some(Next::GiveUp(entries, mem::take(&mut state.terminations)));
        }
        if !state.pauses.is_empty() {
            return Some(Next::Rest(mem::take(&mut state.pauses)));
        }
        if state.paused {
            return None;
        }
        let issued = state.issued;
        let next = state.queue.pop_front_if(|entry| entry.number <= issued)?;
        Some(Next::Work(Box::new(next)))
    }

    /// Whether the operation `number`, which is being worked on, shall go on.
    pub(crate) fn goes_on(&self, number: u64) -> Result<(), Halt> {
        let state = self.state.lock();
        if number <= state.given_up {
            Err(Halt::Failed(FenceError::Terminated))
        } else if state.stop.is_some() || state.paused {
            Err(Halt::NotNow)
        } else {
            Ok(())
        }
    }

    /// Puts back the operation that was being worked on.
    pub(crate) fn put_back(&self, entry: InFlight) {
        self.state.lock().queue.push_front(entry);
    }

    /// Ends the life of a stopped channel: what it has not finished waits, unmapped, to be
    /// reclaimed; who waits for a termination or a pause need not any more.
    pub(crate) fn close(&self) {
        let (queue, waiting) = {
            let mut state = self.state.lock();
            let mut waiting = mem::take(&mut state.terminations);
            waiting.append(&mut state.pauses);
            (mem::take(&mut state.queue), waiting)
        };
        let operations = queue.into_iter().map(|entry| entry.operation);
        self.unfinished.lock().extend(operations);
        for signaler in waiting {
            signaler.signal(Ok(()));
        }
    }

    /// Asks the task for something; where there is none, it is done.
    fn ask(&self, put: impl FnOnce(&mut State, Signaler)) -> Fence {
        let (signaler, fence) = self.requests.fence();
        {
            let mut state = self.state.lock();
            if state.running {
                put(&mut state, signaler);
            } else {
                drop(state);
                signaler.signal(Ok(()));
            }
        }
        self.waker.wake();
        fence
    }

    async fn start(&self) -> Result<(), StartError> {
        let hardware = &self.hardware;
        let bounce = hardware
            .dma
            .coherent(BUFFER_LEN, 8)
            .map_err(StartError::Memory)?;
        service::idle(hardware).await?;
        hardware.resume();
        let Some(this) = self.this.upgrade() else {
            return Err(StartError::Gone);
        };
        {
            let mut state = self.state.lock();
            state.running = true;
            state.paused = false;
        }
        hal::task::spawn("edu", service::run(this, bounce));
        Ok(())
    }
}

impl ChannelOps for Chan {
    fn kinds(&self) -> Capabilities {
        Capabilities::MEMCPY
    }

    fn start<'a>(&'a self, _client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(self.start())
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // The task signals, or has ended before: both are an end.
            let _ = self
                .ask(|state, signaler| state.stop = Some(signaler))
                .wait()
                .await;
        })
    }

    fn submit(&self, operation: Operation) -> Result<(), Rejected> {
        let Work::Memcpy { dst, src } = operation.work() else {
            return Err(Rejected::new(operation, SubmitReason::Unsupported));
        };
        let mapped = match Mapped::new(&self.hardware.dma, src, dst) {
            Ok(mapped) => mapped,
            Err(error) => return Err(Rejected::new(operation, SubmitReason::Map(error))),
        };
        let mut state = self.state.lock();
        let reason = if !state.running || self.hardware.is_gone() {
            SubmitReason::Gone
        } else if state.queue.len() >= SLOTS {
            SubmitReason::Full
        } else {
            state.submitted += 1;
            let number = state.submitted;
            state.queue.push_back(InFlight {
                number,
                done: 0,
                operation,
                mapped,
            });
            return Ok(());
        };
        drop(state);
        drop(mapped);
        Err(Rejected::new(operation, reason))
    }

    fn issue_pending(&self) {
        {
            let mut state = self.state.lock();
            if state.issued == state.submitted {
                return;
            }
            state.issued = state.submitted;
        }
        self.waker.wake();
    }

    /// Completing takes further transfers, which the task alone starts.
    fn poll(&self) {}

    fn terminate_all(&self) -> Fence {
        self.ask(|state, signaler| {
            state.given_up = state.submitted;
            state.terminations.push(signaler);
        })
    }

    /// Takes effect after the transfer that is under way.
    fn pause(&self) -> Fence {
        self.ask(|state, signaler| {
            state.paused = true;
            state.pauses.push(signaler);
        })
    }

    fn resume(&self) {
        self.state.lock().paused = false;
        self.waker.wake();
    }

    fn reclaim(&self) -> Vec<Operation> {
        mem::take(&mut *self.unfinished.lock())
    }
}
