//! Operations that depend on others, of their own channel or of any.
//!
//! Only an operation whose dependencies have ended, or stand before it in the same ring, enters a
//! ring: so rings always drain. A dependency stands before it if it is in the ring and an operation
//! from there on carries [`Flags::FENCE`](crate::Flags::FENCE): then the engine keeps the order
//! itself. Any other operation waits here, outside the ring, and its last dependency hands it over
//! on the stack of whoever completes that: it enters the ring and is issued; a task of its own
//! waits where the ring is full. It cannot wait for ever: a fence exists before what depends on it,
//! so that no circle comes about, and every fence is signalled.
//!
//! A dependency that ended with an error gives it to what depends on it, which does not run. (What
//! stands behind it in the same ring may have run by then; it ends with the error all the same.)
//!
//! Waiting operations own their buffers, as all do, and are counted apart from those in flight: a
//! removal does not wait for them. Where their channel takes them no more when their turn comes,
//! they run elsewhere. They end in the order of their dependencies, not of their channel: each has
//! a fence context of its own.
//!
//! Handing over is iterative: who finds another at it leaves its operation to that one, and what is
//! not to run is left to a task; so that a chain of any length, over any number of channels, needs no
//! stack. All in task context.
//! Lock order: this module's lists → a channel's submit lock.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;
use core::sync::atomic::{AtomicUsize, Ordering};

use dma_fence::{AlreadySignalled, FenceError};
use spin::Mutex;

use crate::chan::{Chan, DmaChan};
use crate::failover;
use crate::operation::{Cookie, Operation};
use crate::provider::SubmitReason;

/// Operations handed over in one go, before the rest is left to a task that yields.
const BATCH: usize = 64;

/// Of all channels, those of removed devices too.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Operations that wait for their dependencies, outside all rings. Each has a fence and owns its
/// buffers: what an audit finds of both has a reason then.
pub fn waiting() -> usize {
    WAITING.load(Ordering::Acquire)
}

/// A channel's operations that wait for others.
#[derive(Default)]
pub(crate) struct Depend {
    count: AtomicUsize,
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    /// By cookie, which no two of a channel share.
    waiting: BTreeMap<Cookie, Waiting>,
    /// Their dependencies have ended, in this order.
    ready: VecDeque<Ready>,
    /// Somebody works `ready` off.
    busy: bool,
}

struct Waiting {
    operation: Operation,
    /// Dependencies that have not ended.
    left: usize,
    /// The first error among those that have.
    result: Result<(), FenceError>,
}

struct Ready {
    operation: Operation,
    /// What its dependencies came to.
    result: Result<(), FenceError>,
}

/// What became of the oldest operation that was ready.
enum Next {
    Entered,
    /// It ends without having run.
    Ended(Ready),
    /// The channel does not take it any more.
    Refused(Operation),
    /// It waits for room; until then `left` operations had left the ring.
    Full {
        left: u64,
    },
}

/// How far a turn of handing over came.
enum Turn {
    Done,
    More,
    Full { left: u64 },
}

impl Depend {
    /// An operation waits from now on.
    pub(crate) fn enter(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        WAITING.fetch_add(1, Ordering::Relaxed);
    }

    /// It does not any more.
    pub(crate) fn leave(&self) {
        self.count.fetch_sub(1, Ordering::Release);
        WAITING.fetch_sub(1, Ordering::Release);
    }
}

impl DmaChan {
    /// How many of its operations wait for others, outside its ring.
    pub fn waiting(&self) -> usize {
        self.inner.depend.count.load(Ordering::Acquire)
    }
}

impl Chan {
    /// Keeps `operation` until all that it depends on has ended.
    pub(crate) fn wait_for(self: &Arc<Self>, mut operation: Operation) {
        self.depend.enter();
        let after = operation.take_after();
        let cookie = operation.cookie();
        let waiting = Waiting {
            operation,
            // One for the caller: it is not ready before all callbacks are in place.
            left: after.len() + 1,
            result: Ok(()),
        };
        self.depend.lists.lock().waiting.insert(cookie, waiting);
        for fence in after {
            let chan = self.clone();
            let listed = fence.add_callback(move |result| chan.ended(cookie, result, true));
            if let Err(AlreadySignalled(result)) = listed {
                self.ended(cookie, result, false);
            }
        }
        self.ended(cookie, Ok(()), false);
    }

    /// A dependency of the operation `cookie` has ended; `told` by its fence, on the stack of who
    /// ended it.
    fn ended(self: &Arc<Self>, cookie: Cookie, result: Result<(), FenceError>, told: bool) {
        let runs = {
            let mut lists = self.depend.lists.lock();
            let Some(waiting) = lists.waiting.get_mut(&cookie) else {
                return; // It was terminated.
            };
            waiting.left -= 1;
            waiting.result = waiting.result.and(result);
            if waiting.left > 0 {
                return;
            }
            let runs = waiting.result.is_ok();
            if let Some(Waiting {
                operation, result, ..
            }) = lists.waiting.remove(&cookie)
            {
                lists.ready.push_back(Ready { operation, result });
            }
            if mem::replace(&mut lists.busy, true) {
                return;
            }
            runs
        };
        // What does not run ends at once, and what depends on it would on this stack as well.
        let turn = if told && !runs {
            Turn::More
        } else {
            self.turn()
        };
        if matches!(turn, Turn::Done) {
            return;
        }
        let chan = self.clone();
        hal::task::spawn("dma-depend", chan.go_on(turn));
    }

    /// Hands over what is left, and what comes meanwhile.
    async fn go_on(self: Arc<Self>, mut turn: Turn) {
        loop {
            match turn {
                Turn::Done => return,
                Turn::More => hal::task::yield_now().await,
                Turn::Full { left } => self.room_since(left).await,
            }
            turn = self.turn();
        }
    }

    /// Hands over what is ready. The caller is the busy one, and stays so unless all is done.
    fn turn(self: &Arc<Self>) -> Turn {
        let mut refused = Vec::new();
        let turn = self.hand_over(&mut refused);
        if !refused.is_empty() {
            let chan = self.clone();
            hal::task::spawn("dma-depend", async move {
                chan.finish_elsewhere(refused).await;
            });
        }
        turn
    }

    fn hand_over(self: &Arc<Self>, refused: &mut Vec<Operation>) -> Turn {
        let mut entered = false;
        for _ in 0..BATCH {
            match self.next_ready() {
                Some(Next::Entered) => entered = true,
                Some(Next::Ended(Ready { operation, result })) => operation.complete(result),
                Some(Next::Refused(operation)) => refused.push(operation),
                Some(Next::Full { left }) => {
                    self.issue_pending();
                    return Turn::Full { left };
                }
                // One doorbell for all. It may complete some, and make others ready.
                None if mem::take(&mut entered) => self.issue_pending(),
                None => {
                    let mut lists = self.depend.lists.lock();
                    if lists.ready.is_empty() {
                        lists.busy = false;
                        return Turn::Done;
                    }
                }
            }
        }
        if entered {
            self.issue_pending();
        }
        Turn::More
    }

    /// Puts the oldest operation that is ready into the ring, if it is to run. Under the lock, so
    /// that a termination finds it here or there.
    fn next_ready(self: &Arc<Self>) -> Option<Next> {
        let mut lists = self.depend.lists.lock();
        let ready = lists.ready.pop_front()?;
        if ready.result.is_err() {
            return Some(Next::Ended(ready));
        }
        let left = self.left();
        let Err(rejected) = self.adopt(ready.operation) else {
            return Some(Next::Entered);
        };
        let mut operation = rejected.operation;
        operation.wait();
        if rejected.reason != SubmitReason::Full {
            return Some(Next::Refused(operation));
        }
        lists.ready.push_front(Ready {
            operation,
            result: Ok(()),
        });
        Some(Next::Full { left })
    }

    /// Whether an operation waits for others to end.
    pub(crate) fn is_waiting(&self, cookie: Cookie) -> bool {
        self.depend.lists.lock().waiting.contains_key(&cookie)
    }

    /// Has others do what this channel does not take.
    pub(crate) async fn finish_elsewhere(&self, operations: Vec<Operation>) {
        if let Some(registry) = self.registry() {
            failover::run(&registry, operations).await;
            return;
        }
        for operation in operations {
            operation.complete(Err(FenceError::Gone));
        }
    }

    /// Ends all operations that wait, without running them.
    pub(crate) fn terminate_waiting(&self) {
        let (waiting, ready) = {
            let mut lists = self.depend.lists.lock();
            (mem::take(&mut lists.waiting), mem::take(&mut lists.ready))
        };
        for Ready { operation, result } in ready {
            operation.complete(result.and(Err(FenceError::Terminated)));
        }
        for waiting in waiting.into_values() {
            waiting.operation.complete(Err(FenceError::Terminated));
        }
    }
}

#[cfg(test)]
mod tests;
