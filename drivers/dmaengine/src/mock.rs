//! A provider whose hardware is the test: operations stay in its ring until told to finish.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dma_fence::{Context, Fence, FenceError};
use spin::Mutex;

use crate::capability::Capabilities;
use crate::client::Client;
use crate::device::DeviceInfo;
use crate::operation::Operation;
use crate::provider::{BoxFuture, ChannelOps, Rejected, StartError, SubmitReason};
use crate::work::Work;

/// How often a test tries what it tries at random: Miri, a thousand times slower, does so less.
pub(crate) const fn times(count: usize) -> usize {
    if cfg!(miri) {
        count.div_ceil(32)
    } else {
        count
    }
}

/// How much it tries at a time.
pub(crate) const fn size(count: usize) -> usize {
    if cfg!(miri) { count.div_ceil(4) } else { count }
}

pub(crate) struct Mock {
    pub(crate) state: Mutex<State>,
    slots: usize,
    context: Context,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) ring: VecDeque<Operation>,
    pub(crate) issued: usize,
    pub(crate) doorbells: usize,
    pub(crate) starts: usize,
    pub(crate) stops: usize,
    pub(crate) refuse_start: Option<StartError>,
    pub(crate) refuse_client: Option<StartError>,
    /// Drops the oldest operation when it is stopped.
    pub(crate) forgetful: bool,
    /// What the layer called, in order.
    pub(crate) trace: Vec<String>,
    /// Finishes everything that is issued at once.
    pub(crate) eager: bool,
    /// Rests; issues that come meanwhile count all the same.
    pub(crate) paused: bool,
    /// May still write what it has not finished, when it is stopped.
    pub(crate) exposes: bool,
    /// Does not terminate, as hardware that is stuck.
    pub(crate) stuck: bool,
    /// Ends everything with an error.
    pub(crate) fail: bool,
    /// Flips a bit of every copy, exclusive or, and Q.
    pub(crate) corrupt: bool,
    /// Announces operations that ask for it alone. To be set before it is registered.
    pub(crate) silent: bool,
    /// Work that it refuses.
    pub(crate) refused: Capabilities,
}

impl Mock {
    pub(crate) fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            slots,
            context: Context::new(),
        })
    }

    pub(crate) fn eager(slots: usize) -> Arc<Self> {
        let mock = Self::new(slots);
        mock.state.lock().eager = true;
        mock
    }

    fn trace(&self, line: String) {
        self.state.lock().trace.push(line);
    }

    /// Finishes the oldest issued operation; whether there was one.
    pub(crate) fn finish(&self, result: Result<(), FenceError>) -> bool {
        let (next, corrupt) = {
            let mut state = self.state.lock();
            if state.issued == 0 || state.paused {
                return false;
            }
            state.issued -= 1;
            (state.ring.pop_front(), state.corrupt)
        };
        let Some(mut operation) = next else {
            return false;
        };
        if result.is_ok() {
            operation.work_mut().run_by_cpu();
            let written = match operation.work_mut() {
                Work::Memcpy { dst, .. } => Some(dst),
                Work::Xor(xor) => Some(&mut xor.dst),
                Work::Pq(pq) => pq.q.as_mut(),
                _ => None,
            };
            if let Some(dst) = written.filter(|_| corrupt) {
                dst.bytes_mut()[0] ^= 1;
            }
        }
        operation.complete(result);
        true
    }
}

pub(crate) fn info() -> DeviceInfo {
    DeviceInfo {
        provider: String::from("mock"),
        capabilities: Capabilities::MEMCPY | Capabilities::MEMSET | Capabilities::INTERRUPT,
        copy_align: 0,
        max_transfer: 1 << 20,
        max_xor: 0,
        max_pq: 0,
        address_bits: 64,
        node: None,
    }
}

impl ChannelOps for Mock {
    fn kinds(&self) -> Capabilities {
        self.state.lock().refused.complement()
    }

    fn start<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async move {
            self.trace(format!("alloc {client}"));
            hal::task::yield_now().await;
            let mut state = self.state.lock();
            state.starts += 1;
            state.paused = false;
            state.refuse_start.clone().map_or(Ok(()), Err)
        })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            hal::task::yield_now().await;
            self.trace(String::from("free"));
            self.state.lock().stops += 1;
        })
    }

    fn set_client<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async move {
            hal::task::yield_now().await;
            self.trace(format!("set {client}"));
            self.state.lock().refuse_client.clone().map_or(Ok(()), Err)
        })
    }

    fn release_client<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            hal::task::yield_now().await;
            self.trace(format!("release {client}"));
        })
    }

    fn submit(&self, operation: Operation) -> Result<(), Rejected> {
        let mut state = self.state.lock();
        if state.refused.contains(operation.work().capability()) {
            return Err(Rejected::new(operation, SubmitReason::Unsupported));
        }
        if state.ring.len() == self.slots {
            return Err(Rejected::new(operation, SubmitReason::Full));
        }
        state.trace.push(String::from("submit"));
        state.ring.push_back(operation);
        Ok(())
    }

    fn issue_pending(&self) {
        let eager = {
            let mut state = self.state.lock();
            if state.issued != state.ring.len() {
                state.issued = state.ring.len();
                state.doorbells += 1;
            }
            state.eager
        };
        let fail = self.state.lock().fail;
        let result = if fail {
            Err(FenceError::Device(1))
        } else {
            Ok(())
        };
        while eager && self.finish(result) {}
    }

    fn ends_silently(&self) -> bool {
        self.state.lock().silent
    }

    fn has_unissued(&self) -> bool {
        let state = self.state.lock();
        state.issued < state.ring.len()
    }

    fn poll(&self) {}

    fn terminate_all(&self) -> Fence {
        let operations = {
            let mut state = self.state.lock();
            if state.stuck {
                return Fence::signalled(0, 0, Err(FenceError::Timeout));
            }
            state.issued = 0;
            core::mem::take(&mut state.ring)
        };
        for operation in operations {
            operation.complete(Err(FenceError::Terminated));
        }
        let (signaler, fence) = self.context.fence();
        signaler.signal(Ok(()));
        fence
    }

    fn pause(&self) -> Fence {
        self.state.lock().paused = true;
        Fence::signalled(0, 0, Ok(()))
    }

    fn resume(&self) {
        let eager = {
            let mut state = self.state.lock();
            state.paused = false;
            state.eager
        };
        while eager && self.finish(Ok(())) {}
    }

    fn reclaim(&self) -> Vec<Operation> {
        let mut state = self.state.lock();
        if core::mem::take(&mut state.forgetful) {
            let forgotten = state.ring.pop_front();
            drop(state);
            drop(forgotten);
            state = self.state.lock();
        }
        let exposes = state.exposes;
        let mut left: Vec<_> = state.ring.drain(..).collect();
        left.iter_mut()
            .filter(|_| exposes)
            .for_each(Operation::expose);
        left
    }
}

/// The warnings that were logged, by everybody.
pub(crate) struct Warnings;

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(crate) fn warnings() -> &'static Warnings {
    // The first caller installs it; the others find it installed.
    let _ = log::set_logger(&Warnings);
    log::set_max_level(log::LevelFilter::Warn);
    &Warnings
}

impl Warnings {
    /// How many of them have this in their text.
    pub(crate) fn about(&self, what: &str) -> usize {
        let warnings = WARNINGS.lock();
        warnings.iter().filter(|line| line.contains(what)).count()
    }
}

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Warn {
            WARNINGS.lock().push(format!("{}", record.args()));
        }
    }

    fn flush(&self) {}
}
