//! When a channel runs: from its first client to its last, or until its device is removed.
//!
//! Starting and stopping take time, and a client may give up meanwhile. So neither happens in a
//! client's future: a task of its own brings the channel from the state it is in to the state
//! that is wanted, and clients wait for what they need.

use alloc::sync::Arc;
use core::fmt;

use dma_fence::FenceError;
use spin::Mutex;

use crate::chan::Chan;
use crate::provider::StartError;
use crate::public;
use crate::wait::WaitList;

/// Why a channel could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// No channel has that name, or none has those capabilities.
    NoChannel,
    /// Another client has it for itself.
    Busy,
    /// It could not be started.
    Start(StartError),
    /// Its device was removed.
    Gone,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoChannel => f.write_str("no such channel"),
            Self::Busy => f.write_str("the channel is busy"),
            Self::Start(error) => error.fmt(f),
            Self::Gone => f.write_str("the device is gone"),
        }
    }
}

#[derive(Clone, Debug, Default)]
enum Phase {
    #[default]
    Stopped,
    Running,
    /// The start failed; tried again when a first client comes anew.
    Failed(StartError),
}

#[derive(Default)]
struct State {
    clients: usize,
    exclusive: bool,
    removed: bool,
    phase: Phase,
    /// A task is on its way to the wanted state.
    settling: bool,
}

/// A channel's life, as [`Chan`] embeds it.
#[derive(Default)]
pub(crate) struct Life {
    state: Mutex<State>,
    changed: WaitList,
}

enum Step {
    Start,
    Stop,
}

impl Life {
    pub(crate) fn clients(&self) -> usize {
        self.state.lock().clients
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Running)
    }

    /// Whether it runs and is not about to stop.
    pub(crate) fn is_ready(&self) -> bool {
        let state = self.state.lock();
        matches!(state.phase, Phase::Running) && !state.settling
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        self.state.lock().exclusive
    }
}

/// A client's reference to a channel, running or not. Dropping it gives the channel up.
pub(crate) struct Hold {
    pub(crate) chan: Arc<Chan>,
    exclusive: bool,
}

impl Hold {
    /// Takes a reference and waits until the channel runs. An exclusive one keeps out other
    /// exclusive ones, and new shared ones.
    pub(crate) async fn take(chan: &Arc<Chan>, exclusive: bool) -> Result<Self, RequestError> {
        let hold = Self::join(chan, exclusive)?;
        if exclusive {
            public::changed(chan);
            public::reserve(chan).await?;
        }
        started(chan).await?;
        Ok(hold)
    }

    /// Takes a reference; the channel is on its way to run.
    pub(crate) fn join(chan: &Arc<Chan>, exclusive: bool) -> Result<Self, RequestError> {
        {
            let mut state = chan.life.state.lock();
            if state.removed {
                return Err(RequestError::Gone);
            }
            if state.exclusive {
                return Err(RequestError::Busy);
            }
            state.clients += 1;
            state.exclusive = exclusive;
        }
        let hold = Self {
            chan: chan.clone(),
            exclusive,
        };
        settle(chan);
        Ok(hold)
    }

    /// Gives the channel up and waits, where this was its last client, until it has stopped.
    pub(crate) async fn release(self) {
        let chan = self.chan.clone();
        drop(self);
        settled(&chan).await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        {
            let mut state = self.chan.life.state.lock();
            state.clients -= 1;
            if self.exclusive {
                state.exclusive = false;
            }
        }
        settle(&self.chan);
        if self.exclusive {
            public::changed(&self.chan);
        }
    }
}

/// Waits until the channel runs, as its clients want it.
pub(crate) async fn started(chan: &Arc<Chan>) -> Result<(), RequestError> {
    let started = || {
        let state = chan.life.state.lock();
        match &state.phase {
            _ if state.removed => Some(Err(RequestError::Gone)),
            _ if state.settling => None,
            Phase::Running => Some(Ok(())),
            Phase::Failed(error) => Some(Err(RequestError::Start(error.clone()))),
            // The caller has let go of it meanwhile, or somebody will start it.
            Phase::Stopped => (state.clients == 0).then_some(Err(RequestError::NoChannel)),
        }
    };
    chan.life.changed.until(started).await
}

/// Ends the channel's life: it stops, whoever still holds it, and never starts again.
pub(crate) async fn remove(chan: &Arc<Chan>) {
    chan.life.state.lock().removed = true;
    settle(chan);
    chan.life.changed.wake_all();
    settled(chan).await;
}

async fn settled(chan: &Arc<Chan>) {
    let settled = || (!chan.life.state.lock().settling).then_some(());
    chan.life.changed.until(settled).await;
}

/// Starts the task that brings the channel where it should be, if it is elsewhere.
fn settle(chan: &Arc<Chan>) {
    {
        let mut state = chan.life.state.lock();
        if state.settling || next_step(&mut state).is_none() {
            return;
        }
        state.settling = true;
    }
    let chan = chan.clone();
    hal::task::spawn("dma-settle", async move {
        loop {
            let step = {
                let mut state = chan.life.state.lock();
                let step = next_step(&mut state);
                state.settling = step.is_some();
                step
            };
            match step {
                None => break,
                Some(Step::Start) => {
                    let result = chan.ops.start().await;
                    chan.life.state.lock().phase = match result {
                        Ok(()) => Phase::Running,
                        Err(error) => Phase::Failed(error),
                    };
                }
                Some(Step::Stop) => {
                    chan.ops.stop().await;
                    let removed = {
                        let mut state = chan.life.state.lock();
                        state.phase = Phase::Stopped;
                        state.removed
                    };
                    let reclaimed = chan.ops.reclaim();
                    if removed {
                        chan.unfinished.lock().extend(reclaimed);
                        continue;
                    }
                    for operation in reclaimed {
                        operation.complete(Err(FenceError::Terminated));
                    }
                }
            }
        }
        chan.life.changed.wake_all();
    });
}

fn next_step(state: &mut State) -> Option<Step> {
    let wanted = state.clients > 0 && !state.removed;
    match state.phase {
        Phase::Stopped if wanted => Some(Step::Start),
        Phase::Running if !wanted => Some(Step::Stop),
        Phase::Failed(_) if !wanted => {
            state.phase = Phase::Stopped;
            None
        }
        _ => None,
    }
}
