//! When a channel runs, and for whom: from its first client to its last, or until its device is
//! removed.
//!
//! Starting, stopping and binding clients take time, and a client may give up meanwhile. So
//! neither happens in a client's future: a task of its own brings the channel, step by step, from
//! the state it is in to the state that is wanted, and clients wait for what they need. The order
//! is start → a client is set … it is released → stop, whatever comes between.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use dma_fence::FenceError;
use hal::time::{Instant, timeout};
use spin::Mutex;

use crate::chan::Chan;
use crate::client::Client;
use crate::provider::StartError;
use crate::public;
use crate::wait::WaitList;

/// Why a channel could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// No channel has that name, or none has those capabilities.
    NoChannel,
    /// The channel that is meant for the client belongs to a device that is not there yet: to be
    /// asked for again when one has been registered.
    Defer,
    /// Another client has it for itself, or it is shared and wanted for one client alone.
    Busy,
    /// It could not be started.
    Start(StartError),
    /// Its provider does not take the client.
    Bind(StartError),
    /// Its device was removed.
    Gone,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoChannel => f.write_str("no such channel"),
            Self::Defer => f.write_str("the channel's device is not there yet"),
            Self::Busy => f.write_str("the channel is busy"),
            Self::Start(error) => error.fmt(f),
            Self::Bind(error) => write!(f, "the client was not taken: {error}"),
            Self::Gone => f.write_str("the device is gone"),
        }
    }
}

/// How a client holds a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// By its interest in all public channels.
    Public,
    /// Together with others, by a part of this layer that finds another way when the device
    /// leaves: a removal need not wait for it.
    Routed,
    /// Together with others.
    Shared,
    /// For itself alone.
    Exclusive,
}

#[derive(Clone, Debug, Default)]
enum Phase {
    #[default]
    Stopped,
    Running,
    Stopping,
    /// The start failed; tried again when a first client comes anew.
    Failed(StartError),
}

/// How far a client is with the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Binding {
    Unset,
    /// The provider is being asked.
    Asked,
    Set,
    Refused(StartError),
}

/// A client of the channel.
struct Bound {
    id: u64,
    client: Client,
    sharing: Sharing,
    binding: Binding,
    /// Its [`Hold`] exists. One that does not is on its way out.
    held: bool,
}

#[derive(Default)]
struct State {
    next: u64,
    clients: Vec<Bound>,
    /// Takes no new clients: its device is leaving.
    leaving: bool,
    /// Its device is being removed: what it has not finished is for others to do.
    departing: bool,
    removed: bool,
    phase: Phase,
    /// A task is on its way to the wanted state.
    settling: bool,
}

impl State {
    fn held(&self) -> impl Iterator<Item = &Bound> {
        self.clients.iter().filter(|bound| bound.held)
    }

    fn has(&self, sharing: Sharing) -> bool {
        self.held().any(|bound| bound.sharing == sharing)
    }

    /// Whether somebody asked for this very channel, and not for itself alone.
    fn is_shared(&self) -> bool {
        self.has(Sharing::Shared) || self.has(Sharing::Routed)
    }

    fn find(&mut self, id: u64) -> Option<&mut Bound> {
        self.clients.iter_mut().find(|bound| bound.id == id)
    }

    fn bind(&mut self, id: u64, binding: Binding) {
        if let Some(bound) = self.find(id) {
            bound.binding = binding;
        }
    }
}

/// A channel's life, as [`Chan`] embeds it.
#[derive(Default)]
pub(crate) struct Life {
    state: Mutex<State>,
    changed: WaitList,
}

/// What brings a channel nearer to where it should be.
enum Step {
    Start(Client),
    Set(u64, Client),
    Release(u64, Client),
    Stop,
}

impl Life {
    pub(crate) fn clients(&self) -> usize {
        self.state.lock().held().count()
    }

    /// The names of its clients, in the order in which they came.
    pub(crate) fn client_names(&self) -> Vec<Client> {
        let state = self.state.lock();
        state.held().map(|bound| bound.client.clone()).collect()
    }

    /// Clients that would lose what they hold if the channel went.
    pub(crate) fn holders(&self) -> usize {
        let state = self.state.lock();
        let own = |bound: &&Bound| matches!(bound.sharing, Sharing::Shared | Sharing::Exclusive);
        state.held().filter(own).count()
    }

    pub(crate) fn is_running(&self) -> bool {
        let state = self.state.lock();
        matches!(state.phase, Phase::Running | Phase::Stopping)
    }

    /// Whether it runs and stays.
    pub(crate) fn is_ready(&self) -> bool {
        let state = self.state.lock();
        matches!(state.phase, Phase::Running) && !state.removed && state.held().next().is_some()
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        self.state.lock().has(Sharing::Exclusive)
    }

    /// A hold in spite of an exclusive one.
    #[cfg(test)]
    pub(crate) fn force(&self, chan: &Arc<Chan>, client: &Client) -> Hold {
        let others = core::mem::take(&mut self.state.lock().clients);
        let hold = Hold::join(chan, client, Sharing::Shared).unwrap();
        self.state.lock().clients.extend(others);
        hold
    }

    /// Takes no new clients from now on, or does so again.
    pub(crate) fn set_leaving(&self, leaving: bool) {
        self.state.lock().leaving = leaving;
    }

    /// Its device is being removed: takes no new clients, and keeps what it has not finished when it
    /// stops, whoever makes it stop.
    pub(crate) fn depart(&self) {
        let mut state = self.state.lock();
        state.leaving = true;
        state.departing = true;
    }

    fn is_departing(&self) -> bool {
        self.state.lock().departing
    }

    /// Waits until nobody would lose it, at most until `deadline`.
    pub(crate) async fn released(&self, deadline: Instant) {
        let none = || (self.holders() == 0).then_some(());
        let limit = deadline - Instant::now();
        // Who is late is revoked by the caller.
        let _ = timeout(limit, self.changed.until(none)).await;
    }
}

/// A client's reference to a channel, running or not. Dropping it gives the channel up.
pub(crate) struct Hold {
    pub(crate) chan: Arc<Chan>,
    id: u64,
    sharing: Sharing,
}

impl Hold {
    /// Takes a reference and waits until the channel runs and its provider has taken the client.
    /// An exclusive one keeps out all others but those that are interested in public channels,
    /// whom it makes do without.
    pub(crate) async fn take(
        chan: &Arc<Chan>,
        client: &Client,
        sharing: Sharing,
    ) -> Result<Self, RequestError> {
        let hold = Self::join(chan, client, sharing)?;
        if sharing == Sharing::Exclusive {
            public::changed(chan);
            public::reserve(chan).await?;
        }
        hold.bound().await?;
        Ok(hold)
    }

    /// Takes a reference; the channel is on its way to run.
    pub(crate) fn join(
        chan: &Arc<Chan>,
        client: &Client,
        sharing: Sharing,
    ) -> Result<Self, RequestError> {
        let (id, kept) = {
            let mut state = chan.life.state.lock();
            if state.leaving || state.removed {
                return Err(RequestError::Gone);
            }
            let busy = state.has(Sharing::Exclusive)
                || (sharing == Sharing::Exclusive && state.is_shared());
            if busy {
                return Err(RequestError::Busy);
            }
            let kept = state.held().next().is_none() && matches!(state.phase, Phase::Running);
            state.next += 1;
            let id = state.next;
            state.clients.push(Bound {
                id,
                client: client.clone(),
                sharing,
                binding: Binding::Unset,
                held: true,
            });
            (id, kept)
        };
        if kept {
            // It was about to stop, and perhaps paused by who had it last.
            chan.ops.resume();
        }
        settle(chan);
        Ok(Self {
            chan: chan.clone(),
            id,
            sharing,
        })
    }

    /// Waits until the channel runs and the provider has taken the client.
    async fn bound(&self) -> Result<(), RequestError> {
        let bound = || {
            let mut state = self.chan.life.state.lock();
            if state.removed {
                return Some(Err(RequestError::Gone));
            }
            if let (Phase::Failed(error), false) = (&state.phase, state.settling) {
                return Some(Err(RequestError::Start(error.clone())));
            }
            match &state.find(self.id)?.binding {
                Binding::Set => Some(Ok(())),
                Binding::Refused(error) => Some(Err(RequestError::Bind(error.clone()))),
                Binding::Unset | Binding::Asked => None,
            }
        };
        self.chan.life.changed.until(bound).await
    }

    /// Gives the channel up and waits until the provider has let go of the client and, where it
    /// was the last, the channel has stopped.
    pub(crate) async fn release(self) {
        let chan = self.chan.clone();
        drop(self);
        settled(&chan).await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.sharing == Sharing::Exclusive && self.chan.life.clients() > 1 {
            // It does not stop. While nobody else can have paused it.
            self.chan.ops.resume();
        }
        let others = {
            let mut state = self.chan.life.state.lock();
            if let Some(bound) = state.find(self.id) {
                bound.held = false;
            }
            state.clients.retain(|bound| bound.held || bound.is_known());
            state.held().count()
        };
        if self.sharing == Sharing::Exclusive && others > 0 {
            log::warn!(
                "{}: released by its only client, but {others} more hold it",
                self.chan.name
            );
        }
        settle(&self.chan);
        self.chan.life.changed.wake_all();
        if self.sharing == Sharing::Exclusive {
            public::changed(&self.chan);
        }
    }
}

impl Bound {
    /// Whether the provider knows it, or is about to.
    fn is_known(&self) -> bool {
        matches!(self.binding, Binding::Asked | Binding::Set)
    }
}

/// Waits until the channel runs, for all its clients.
pub(crate) async fn started(chan: &Arc<Chan>) -> Result<(), RequestError> {
    let started = || {
        let state = chan.life.state.lock();
        match &state.phase {
            _ if state.removed => Some(Err(RequestError::Gone)),
            _ if state.settling => None,
            Phase::Running => {
                let refused = state.held().find_map(|bound| match &bound.binding {
                    Binding::Refused(error) if bound.sharing == Sharing::Public => Some(error),
                    _ => None,
                });
                Some(refused.map_or(Ok(()), |error| Err(RequestError::Bind(error.clone()))))
            }
            Phase::Failed(error) => Some(Err(RequestError::Start(error.clone()))),
            // The caller has let go of it meanwhile, or somebody will start it.
            Phase::Stopped | Phase::Stopping => {
                (state.held().count() == 0).then_some(Err(RequestError::NoChannel))
            }
        }
    };
    chan.life.changed.until(started).await
}

/// Ends the channel's life: it stops, whoever still holds it, and never starts again.
pub(crate) fn remove(chan: &Arc<Chan>) {
    chan.life.state.lock().removed = true;
    settle(chan);
    chan.life.changed.wake_all();
}

/// Waits until the channel is where it should be.
pub(crate) async fn settled(chan: &Arc<Chan>) {
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
                match &step {
                    Some(Step::Stop) => state.phase = Phase::Stopping,
                    Some(Step::Set(id, _)) => state.bind(*id, Binding::Asked),
                    Some(Step::Start(_) | Step::Release(..)) | None => {}
                }
                step
            };
            let Some(step) = step else { break };
            take(&chan, step).await;
            chan.life.changed.wake_all();
        }
        chan.life.changed.wake_all();
    });
}

async fn take(chan: &Arc<Chan>, step: Step) {
    let life = &chan.life;
    match step {
        Step::Start(client) => {
            let result = chan.ops.start(&client).await;
            life.state.lock().phase = match result {
                Ok(()) => Phase::Running,
                Err(error) => Phase::Failed(error),
            };
        }
        Step::Set(id, client) => {
            let result = chan.ops.set_client(&client).await;
            let binding = result.map_or_else(Binding::Refused, |()| Binding::Set);
            life.state.lock().bind(id, binding);
        }
        Step::Release(id, client) => {
            chan.ops.release_client(&client).await;
            life.state.lock().bind(id, Binding::Unset);
        }
        Step::Stop => {
            chan.ops.stop().await;
            let departing = {
                let mut state = life.state.lock();
                state.phase = Phase::Stopped;
                state.departing
            };
            let reclaimed = chan.ops.reclaim();
            if departing {
                chan.unfinished.lock().extend(reclaimed);
                return;
            }
            // The removal knows nothing of the lists of a virtual channel.
            if chan.physical().life.is_departing() {
                return chan.finish_elsewhere(reclaimed).await;
            }
            for operation in reclaimed {
                operation.complete(Err(FenceError::Terminated));
            }
        }
    }
}

fn next_step(state: &mut State) -> Option<Step> {
    state.clients.retain(|bound| bound.held || bound.is_known());
    let wanted = state.held().count() > 0 && !state.removed;
    match state.phase {
        Phase::Stopped => {
            let first = state.held().next().filter(|_| wanted)?;
            Some(Step::Start(first.client.clone()))
        }
        Phase::Running => {
            let stays = |bound: &Bound| bound.held && wanted;
            let step = |bound: &Bound| match bound.binding {
                Binding::Set if !stays(bound) => {
                    Some(Step::Release(bound.id, bound.client.clone()))
                }
                Binding::Unset if stays(bound) => Some(Step::Set(bound.id, bound.client.clone())),
                _ => None,
            };
            let step = state.clients.iter().find_map(step);
            step.or_else(|| (!wanted).then_some(Step::Stop))
        }
        Phase::Stopping => None,
        Phase::Failed(_) => {
            if !wanted {
                state.phase = Phase::Stopped;
            }
            None
        }
    }
}
