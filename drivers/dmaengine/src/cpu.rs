//! The CPU as a provider: one channel, `cpu`, that every machine has.
//!
//! It does the work of an operation on the stack of whoever issues it. Completions follow the
//! order of submission, as fences of one context must: while one task works the queue off, others
//! that issue leave their operations to it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::mem;

use dma_fence::{Context, Fence, FenceError};
use spin::Mutex;

use crate::capability::Capabilities;
use crate::chan::Chan;
use crate::client::Client;
use crate::device::DeviceInfo;
use crate::operation::Operation;
use crate::provider::{BoxFuture, ChannelOps, Rejected, StartError, SubmitReason};

/// Operations that wait at most.
const QUEUE: usize = 1024;
/// Operations done in one go, before the rest is left to a task that yields.
const BATCH: usize = 64;

/// Everything.
const KINDS: Capabilities = Capabilities::all().difference(Capabilities::PRIVATE);

/// The channel `cpu`.
pub(crate) fn channel() -> Chan {
    let info = DeviceInfo {
        provider: String::from("cpu"),
        capabilities: KINDS,
        copy_align: 0,
        max_transfer: isize::MAX as usize,
        max_xor: u8::MAX,
        max_pq: u8::MAX,
        address_bits: 64,
        node: None,
    };
    let ops = Arc::new_cyclic(|this| Cpu {
        this: this.clone(),
        state: Mutex::default(),
        terminations: Context::new(),
    });
    Chan::new(String::from("cpu"), Arc::new(info), ops)
}

struct Cpu {
    this: Weak<Cpu>,
    state: Mutex<State>,
    terminations: Context,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Operation>,
    /// Somebody works the queue off.
    busy: bool,
}

impl Cpu {
    /// Works off up to [`BATCH`] operations; whether some are left. The caller is the busy one.
    fn work(&self) -> bool {
        for _ in 0..BATCH {
            let next = {
                let mut state = self.state.lock();
                let next = state.queue.pop_front();
                state.busy = next.is_some();
                next
            };
            let Some(mut operation) = next else {
                return false;
            };
            operation.work_mut().run_by_cpu();
            operation.complete(Ok(()));
        }
        true
    }
}

impl ChannelOps for Cpu {
    fn kinds(&self) -> Capabilities {
        KINDS
    }

    fn start<'a>(&'a self, _client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.terminate_all()) })
    }

    fn submit(&self, operation: Operation) -> Result<(), Box<Rejected>> {
        let mut state = self.state.lock();
        if state.queue.len() >= QUEUE {
            return Err(Rejected::new(operation, SubmitReason::Full));
        }
        state.queue.push_back(operation);
        Ok(())
    }

    fn issue_pending(&self) {
        if mem::replace(&mut self.state.lock().busy, true) {
            return;
        }
        if self.work()
            && let Some(this) = self.this.upgrade()
        {
            hal::task::spawn("dma-cpu", async move {
                while this.work() {
                    hal::task::yield_now().await;
                }
            });
        }
    }

    fn poll(&self) {
        self.issue_pending();
    }

    fn terminate_all(&self) -> Fence {
        let queue = mem::take(&mut self.state.lock().queue);
        for operation in queue {
            operation.complete(Err(FenceError::Terminated));
        }
        let (signaler, fence) = self.terminations.fence();
        signaler.signal(Ok(()));
        fence
    }
}

#[cfg(test)]
mod tests {
    use crate::{Flags, Registry};
    use hal::host::block_on;

    #[test]
    fn more_than_one_batch_completes_in_order() {
        let registry = Registry::new();
        let channel = block_on(registry.cpu().share()).unwrap();
        let fences: std::vec::Vec<_> = (0..super::BATCH * 3)
            .map(|_| {
                let descriptor = channel.prep_interrupt(Flags::empty()).unwrap();
                channel.submit(descriptor).unwrap().fence().clone()
            })
            .collect();
        assert!(
            !fences[0].is_signalled(),
            "nothing runs before it is issued"
        );
        channel.issue_pending();
        assert!(fences[super::BATCH - 1].is_signalled());
        assert_eq!(block_on(fences[fences.len() - 1].wait()), Ok(()));
        assert!(fences.iter().all(|fence| fence.is_signalled()));
    }
}
