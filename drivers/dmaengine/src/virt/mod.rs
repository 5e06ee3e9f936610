//! Virtual channels: many clients on one physical channel, each as if it had one of its own.
//!
//! A virtual channel is a channel like any other, with cookies, fences, counters, dependencies and
//! termination of its own, whose provider is this module. An operation of it passes through the
//! lists that Linux's virt-dma has:
//!
//! - *allocated*: prepared; the descriptor is still the client's own;
//! - *submitted*, until the client issues;
//! - *issued*, until the [`pump`] puts it into the physical ring, round robin between clients;
//! - *completed*, behind those of the same client that are under way, until they have ended.
//!
//! So a client's operations end in its own order whatever happens to them: they may end in the
//! ring, elsewhere where the ring refuses them or the device is removed, or unrun. One that goes
//! elsewhere goes when all before it have ended, and those behind it wait for it: what the ring
//! would have kept in order stays so.
//!
//! Terminating ends what is in the client's lists, unrun; what is in the ring runs out, for the ring
//! is others' too, and ends as terminated whatever it has done; in the client's order, so that who
//! waits in a list ends at once only where nothing is in the ring before it. A pause holds back
//! what is issued. Neither touches another client.
//!
//! Task context. Lock order: a virtual channel's submit lock → its lists → the physical channel's
//! submit lock, or the pump's.

mod lists;
mod pump;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;

use dma_fence::{Context, Fence, FenceError};
use spin::Mutex;

use crate::capability::Capabilities;
use crate::chan::{Chan, DmaChan};
use crate::channel::Channel;
use crate::client::Client;
use crate::device::DeviceInfo;
use crate::life::{Hold, RequestError, Sharing};
use crate::operation::{Ended, Operation};
use crate::provider::{BoxFuture, ChannelOps, Rejected, StartError, SubmitReason};
use crate::work::Work;
use lists::{Lists, Slot};
use pump::Fill;
pub(crate) use pump::Pump;

/// Operations that wait in one client's lists at most.
const LIMIT: usize = if cfg!(miri) { 96 } else { 1024 };

/// The provider's side of a virtual channel.
pub(crate) struct Virt {
    this: Weak<Virt>,
    pump: Arc<Pump>,
    lists: Mutex<Lists>,
    /// Of the physical channel, while this one runs.
    hold: Mutex<Option<Hold>>,
    /// Of the fences by which others wait for what is under way.
    marks: Context,
}

/// An operation's seat in another channel's ring.
pub(crate) struct Ride {
    virt: Arc<Virt>,
    slot: u64,
    /// Whose ring it is in, if in any.
    pub(crate) ring: Option<Arc<Chan>>,
}

impl Ride {
    /// The operation has ended in the ring, and leaves it.
    pub(crate) fn count(&self, work: &Work, result: Result<(), FenceError>) {
        if let Some(ring) = &self.ring {
            ring.count(work, result);
            ring.leave();
        }
    }

    /// The operation comes back, however it has ended.
    pub(crate) fn end(self, ended: Ended) {
        self.virt.ended(self.slot, ended);
    }
}

impl DmaChan {
    /// Requests a virtual channel on this one, for `client`: with others, but as if alone. Fails
    /// where a client has the physical channel for itself.
    pub async fn virtual_for(&self, client: &Client) -> Result<Channel, RequestError> {
        let physical = self.inner.physical();
        let hold = Hold::take(physical, client, Sharing::Shared).await?;
        let inner = channel(physical, client, hold);
        DmaChan { inner }.request_for(client).await
    }
}

fn channel(physical: &Arc<Chan>, client: &Client, hold: Hold) -> Arc<Chan> {
    let pump = {
        let mut pump = physical.pump.lock();
        pump.upgrade().unwrap_or_else(|| {
            let new = Pump::new(physical.clone());
            *pump = Arc::downgrade(&new);
            new
        })
    };
    let ops = Arc::new_cyclic(|this| Virt {
        this: this.clone(),
        pump,
        lists: Mutex::default(),
        hold: Mutex::new(Some(hold)),
        marks: Context::new(),
    });
    let mut info = DeviceInfo::clone(&physical.info);
    // No table lists it, and nobody is to be told that it is not free.
    info.capabilities |= Capabilities::PRIVATE;
    let name = format!("{}/{client}", physical.name);
    Chan::on(physical, name, info, ops).listed()
}

impl Virt {
    /// Puts up to `limit` issued operations into the ring.
    fn fill(self: &Arc<Self>, limit: usize) -> Fill {
        for entered in 0..limit {
            let mut lists = self.lists.lock();
            if lists.paused || lists.detour {
                return Fill::Some(entered);
            }
            let Some(operation) = lists.issued.pop_front() else {
                return Fill::Some(entered);
            };
            let operation = self.board(&mut lists, operation);
            let Err(rejected) = self.pump.adopt(operation) else {
                continue;
            };
            let mut operation = rejected.operation;
            operation.alight();
            lists.slots.pop_last();
            lists.issued.push_front(operation);
            if rejected.reason == SubmitReason::Full {
                return Fill::Full(entered);
            }
            lists.detour = true;
            hal::task::spawn("dma-virt", self.clone().detour());
            return Fill::Some(entered);
        }
        Fill::Some(limit)
    }

    fn board(self: &Arc<Self>, lists: &mut Lists, mut operation: Operation) -> Operation {
        operation.board(Ride {
            virt: self.clone(),
            slot: lists.slots.push(Slot::UnderWay),
            ring: None,
        });
        operation
    }

    /// An operation that was under way has ended.
    fn ended(self: &Arc<Self>, slot: u64, ended: Ended) {
        self.lists.lock().slots.end(slot, ended);
        self.pump.left();
        self.deliver();
    }

    /// Ends operations, and signals those who wait for them, in order. One does so at a time.
    fn deliver(&self) {
        let mut mine = false;
        loop {
            let next = {
                let mut lists = self.lists.lock();
                if lists.delivering && !mine {
                    return;
                }
                let next = lists.slots.pop_first();
                mine = next.is_some();
                lists.delivering = mine;
                next
            };
            match next {
                Some(Slot::Ended(ended)) => ended.deliver(),
                Some(Slot::Mark(signaler)) => signaler.signal(Ok(())),
                Some(Slot::UnderWay) | None => return,
            }
        }
    }

    /// Signalled when everything that is under way, or completed behind it, has ended; after
    /// `change`.
    fn mark(&self, change: impl FnOnce(&mut Lists)) -> Fence {
        let fence = {
            let mut lists = self.lists.lock();
            change(&mut lists);
            // Numbered under the lock: marks are signalled in their order.
            let (signaler, fence) = self.marks.fence();
            lists.slots.push(Slot::Mark(signaler));
            fence
        };
        self.deliver();
        fence
    }

    /// Waits until nothing is under way. Marks are always signalled.
    async fn drained(&self) {
        let _ = self.mark(|_| {}).wait().await;
    }

    /// Has others do what the ring has refused, or all that is left when it takes nothing more.
    async fn detour(self: Arc<Self>) {
        self.drained().await;
        let operations = {
            let mut lists = self.lists.lock();
            let all = lists.issued.len();
            let count = match (lists.open, lists.paused) {
                (false, _) => all,
                (true, true) => 0,
                (true, false) => all.min(1),
            };
            let refused: Vec<_> = lists.issued.drain(..count).collect();
            let board = |operation| self.board(&mut lists, operation);
            refused.into_iter().map(board).collect::<Vec<_>>()
        };
        self.pump.entered(operations.len());
        self.pump.chan.finish_elsewhere(operations).await;
        self.drained().await;
        self.lists.lock().detour = false;
        self.pump.kick();
    }

    /// The physical channel takes nothing any more: what is in the lists goes elsewhere.
    fn close(&self) {
        let mut lists = self.lists.lock();
        lists.open = false;
        lists.paused = false;
        lists.issue();
    }
}

impl ChannelOps for Virt {
    fn kinds(&self) -> Capabilities {
        self.pump.chan.ops.kinds()
    }

    fn start<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async move {
            let held = self.hold.lock().is_some();
            if !held {
                let hold = Hold::take(&self.pump.chan, client, Sharing::Shared).await;
                *self.hold.lock() = Some(hold.map_err(|error| match error {
                    RequestError::Start(error) | RequestError::Bind(error) => error,
                    _ => StartError::Gone,
                })?);
            }
            {
                let mut lists = self.lists.lock();
                lists.open = true;
                lists.paused = false;
            }
            if let Some(this) = self.this.upgrade() {
                self.pump.add(this);
            }
            Ok(())
        })
    }

    /// Nobody waits for what is in the lists: it is handed back. What is in the ring runs out.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.lists.lock().stop();
            self.drained().await;
            self.pump.remove(self);
            let hold = self.hold.lock().take();
            if let Some(hold) = hold {
                hold.release().await;
            }
        })
    }

    fn submit(&self, operation: Operation) -> Result<(), Rejected> {
        let mut lists = self.lists.lock();
        if !lists.open {
            return Err(Rejected::new(operation, SubmitReason::Gone));
        }
        if lists.submitted.len() + lists.issued.len() >= LIMIT {
            return Err(Rejected::new(operation, SubmitReason::Full));
        }
        lists.submitted.push_back(operation);
        Ok(())
    }

    fn issue_pending(&self) {
        self.lists.lock().issue();
        self.pump.kick();
    }

    fn ends_silently(&self) -> bool {
        self.pump.chan.silent
    }

    fn has_unissued(&self) -> bool {
        !self.lists.lock().submitted.is_empty()
    }

    fn poll(&self) {
        self.pump.chan.ops.poll();
    }

    fn terminate_all(&self) -> Fence {
        self.mark(Lists::terminate)
    }

    /// Holds back what is issued. What is in the ring, which is others' too, runs out.
    fn pause(&self) -> Fence {
        self.mark(|lists| lists.paused = lists.open)
    }

    fn resume(&self) {
        self.lists.lock().paused = false;
        self.pump.kick();
    }

    fn reclaim(&self) -> Vec<Operation> {
        mem::take(&mut self.lists.lock().unfinished)
    }
}
