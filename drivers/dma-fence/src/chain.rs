//! Chains: points on a line, each reached when the work that was added for it, and for all points
//! before it, has ended.
//!
//! A chain keeps the work of points that are not known to be reached, and forgets it whenever it is
//! asked or added to. It listens to the oldest of it alone, and only while somebody waits for a
//! point; so points without number cost no stack. Points keep the chain's list, not its owner: what
//! was added ends by itself when the owner has gone, what was not never comes.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::context::next_context;
use crate::error::FenceError;
use crate::fence::{Fence, Signaler};
use crate::ops::FenceOps;
use crate::sync::Mutex;

/// The owner's end of a chain. Dropping it closes it.
pub struct Chain {
    shared: Arc<Shared>,
}

struct Shared {
    /// Of the points' fences.
    context: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The newest point.
    last: u64,
    /// The newest that is known to be reached.
    reached: u64,
    /// Points with their work, the oldest first.
    pending: VecDeque<(u64, Fence)>,
    /// Points that somebody waits for.
    waiting: Vec<(u64, Fence, Signaler)>,
    /// The oldest work has a callback of ours.
    listening: bool,
    /// For those who wait until there are more points.
    coming: Option<(Signaler, Fence)>,
    closed: bool,
}

/// The operations of a point's fence.
struct Point {
    shared: Arc<Shared>,
    work: Fence,
}

/// The chain takes no such point: it has one with this number or a higher one, is closed, or the
/// work is itself a point of a chain, or made of some: chains would keep each other for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPoint;

impl BadPoint {
    /// The number that Linux would use for it, negative.
    pub const fn errno(self) -> i32 {
        -22 // EINVAL
    }
}

impl fmt::Display for BadPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such point")
    }
}

impl Chain {
    /// A chain without points, of a context of its own.
    pub fn new() -> Self {
        let shared = Shared {
            context: next_context(),
            state: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Adds the point `seqno`, for `work`. Gives its fence, which ends as the work does, but not
    /// before all points before it have ended.
    pub fn add(&self, seqno: u64, work: Fence) -> Result<Fence, BadPoint> {
        self.shared.prune();
        let coming = {
            let mut state = self.shared.state.lock();
            if state.closed || seqno <= state.last || is_of_points(&work) {
                return Err(BadPoint);
            }
            state.last = seqno;
            state.pending.push_back((seqno, work.clone()));
            state.coming.take()
        };
        if let Some((signaler, _)) = coming {
            signaler.signal(Ok(()));
        }
        Ok(self.point_of(seqno, work))
    }

    /// The fence of the first point that is at `seqno` or behind it. `None` while there is none. A
    /// point that was reached before it was asked for is signalled without error, however its work
    /// ended.
    pub fn point(&self, seqno: u64) -> Option<Fence> {
        self.shared.prune();
        let (point, work) = {
            let state = self.shared.state.lock();
            if seqno <= state.reached {
                return Some(Fence::signalled(self.shared.context, seqno, Ok(())));
            }
            let at = state.pending.partition_point(|(point, _)| *point < seqno);
            state.pending.get(at)?.clone()
        };
        Some(self.point_of(point, work))
    }

    /// Waits for the point at `seqno`, also before it is added. Cancel-safe.
    pub async fn wait(&self, seqno: u64) -> Result<(), FenceError> {
        loop {
            // Before it is looked for: nothing is added in between without being heard.
            let coming = self.shared.coming();
            if let Some(point) = self.point(seqno) {
                return point.wait().await;
            }
            coming.wait().await?;
        }
    }

    /// No more points come: who waits for one gets [`FenceError::Closed`].
    pub fn close(&self) {
        let coming = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            state.coming.take()
        };
        if let Some((signaler, _)) = coming {
            signaler.signal(Err(FenceError::Closed));
        }
    }

    /// Points that are not known to be reached.
    pub fn pending(&self) -> usize {
        self.shared.prune();
        self.shared.state.lock().pending.len()
    }

    fn point_of(&self, seqno: u64, work: Fence) -> Fence {
        let shared = self.shared.clone();
        Fence::lazy(self.shared.context, seqno, Arc::new(Point { shared, work }))
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.shared.state.lock().last;
        write!(f, "Chain({}:{last})", self.shared.context)
    }
}

/// Whether it is a point of a chain, or made of some.
fn is_of_points(work: &Fence) -> bool {
    work.ops::<Point>().is_some()
        || work
            .members()
            .iter()
            .any(|member| !member.is_same(work) && is_of_points(member))
}

impl Shared {
    /// Is signalled when the next point is added.
    fn coming(&self) -> Fence {
        let mut state = self.state.lock();
        if state.closed {
            return Fence::signalled(self.context, 0, Err(FenceError::Closed));
        }
        let new = || Fence::new(next_context(), 1);
        state.coming.get_or_insert_with(new).1.clone()
    }

    /// Forgets the points that have been reached. Gives the oldest of the others. The work is asked
    /// outside the lock: it may belong to other chains.
    fn prune(&self) -> Option<(u64, Fence)> {
        loop {
            let (seqno, work) = self.state.lock().pending.front().cloned()?;
            if !work.is_signalled() {
                return Some((seqno, work));
            }
            let reached = {
                let mut state = self.state.lock();
                state.reached = state.reached.max(seqno);
                state.pending.pop_front_if(|(front, _)| *front == seqno)
            };
            drop(reached);
        }
    }

    /// Signals the points that have been reached, and listens for the next if somebody waits.
    fn advance(self: &Arc<Self>) {
        loop {
            self.prune();
            let (due, listen) = {
                let mut state = self.state.lock();
                // Looked at here: points may have been added since.
                let oldest = state.pending.front().cloned();
                let reached = |seqno| oldest.as_ref().is_none_or(|(oldest, _)| seqno < *oldest);
                let due: Vec<_> = state
                    .waiting
                    .extract_if(.., |(seqno, ..)| reached(*seqno))
                    .collect();
                let wanted = !state.waiting.is_empty() && !state.listening;
                let listen = oldest.filter(|_| wanted);
                state.listening |= listen.is_some();
                (due, listen)
            };
            for (_, work, signaler) in due {
                signaler.signal(work.result().unwrap_or(Err(FenceError::Abandoned)));
            }
            let Some((_, work)) = listen else {
                return;
            };
            let shared = self.clone();
            let listed = work.add_callback(move |_| {
                shared.state.lock().listening = false;
                shared.advance();
            });
            if listed.is_ok() {
                return;
            }
            self.state.lock().listening = false;
        }
    }
}

impl FenceOps for Point {
    fn enable_signaling(&self, fence: &Fence, signaler: Option<Signaler>) {
        let Some(signaler) = signaler else { return };
        let entry = (fence.seqno(), self.work.clone(), signaler);
        self.shared.state.lock().waiting.push(entry);
        self.shared.advance();
    }

    fn poll(&self, fence: &Fence) -> Option<Result<(), FenceError>> {
        let result = self.work.result()?;
        let oldest = self.shared.prune();
        let reached = oldest.is_none_or(|(oldest, _)| fence.seqno() < oldest);
        reached.then_some(result)
    }

    fn set_deadline(&self, fence: &Fence, deadline: Duration) {
        let before: Vec<_> = {
            let state = self.shared.state.lock();
            let before = |(seqno, _): &&(u64, Fence)| *seqno <= fence.seqno();
            let points = state.pending.iter().take_while(before);
            points.map(|(_, work)| work.clone()).collect()
        };
        for work in before {
            work.set_deadline(deadline);
        }
    }
}
