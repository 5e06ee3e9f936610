//! The CPU as a provider: one channel, `cpu`, that every machine has.
//!
//! It does the work of an operation on the stack of whoever issues it. Completions follow the
//! order of submission, as fences of one context must: while one task works the queue off, others
//! that issue leave their operations to it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;

use dma_fence::{Context, Fence, FenceError, Signaler};
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
        requests: Context::new(),
    });
    Chan::new(String::from("cpu"), Arc::new(info), ops)
}

struct Cpu {
    this: Weak<Cpu>,
    state: Mutex<State>,
    requests: Context,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Operation>,
    /// How many of them are issued.
    issued: usize,
    /// Somebody works the queue off.
    busy: bool,
    /// Nothing is begun.
    paused: bool,
    /// What is given up, and who waits until the operation in progress has ended.
    given_up: VecDeque<Operation>,
    waiting: Vec<Signaler>,
}

/// What the busy one does next.
enum Turn {
    Run(Operation),
    GiveUp(VecDeque<Operation>, Vec<Signaler>),
    End,
}

impl Cpu {
    /// Changes the state, and has somebody act on it: the busy one, or else the caller.
    fn change(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.state.lock();
            change(&mut state);
            if mem::replace(&mut state.busy, true) {
                return;
            }
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

    /// As [`Cpu::change`]; signalled once no operation that was begun before is in progress.
    fn ask(&self, change: impl FnOnce(&mut State)) -> Fence {
        let (signaler, fence) = self.requests.fence();
        self.change(|state| {
            change(state);
            state.waiting.push(signaler);
        });
        fence
    }

    /// Works off up to [`BATCH`] operations; whether some are left. The caller is the busy one.
    fn work(&self) -> bool {
        for _ in 0..BATCH {
            match self.turn() {
                Turn::Run(mut operation) => {
                    operation.work_mut().run_by_cpu();
                    operation.complete(Ok(()));
                }
                Turn::GiveUp(operations, waiting) => {
                    for operation in operations {
                        operation.complete(Err(FenceError::Terminated));
                    }
                    for signaler in waiting {
                        signaler.signal(Ok(()));
                    }
                }
                Turn::End => return false,
            }
        }
        true
    }

    fn turn(&self) -> Turn {
        let mut state = self.state.lock();
        if !state.waiting.is_empty() {
            let given_up = mem::take(&mut state.given_up);
            return Turn::GiveUp(given_up, mem::take(&mut state.waiting));
        }
        if state.issued > 0
            && !state.paused
            && let Some(operation) = state.queue.pop_front()
        {
            state.issued -= 1;
            return Turn::Run(operation);
        }
        state.busy = false;
        Turn::End
    }
}

impl ChannelOps for Cpu {
    fn kinds(&self) -> Capabilities {
        KINDS
    }

    fn start<'a>(&'a self, _client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        self.state.lock().paused = false;
        Box::pin(async { Ok(()) })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        // What is in the queue may be anybody's: who falls back to the CPU is no client of it. It is
        // done, and nothing here is freed that it needs.
        self.change(|state| {
            state.paused = false;
            state.issued = state.queue.len();
        });
        Box::pin(async {})
    }

    fn submit(&self, operation: Operation) -> Result<(), Rejected> {
        let mut state = self.state.lock();
        if state.queue.len() >= QUEUE {
            return Err(Rejected::new(operation, SubmitReason::Full));
        }
        state.queue.push_back(operation);
        Ok(())
    }

    fn issue_pending(&self) {
        self.change(|state| state.issued = state.queue.len());
    }

    fn poll(&self) {
        self.change(|_| {});
    }

    fn terminate_all(&self) -> Fence {
        self.ask(|state| {
            state.issued = 0;
            let queue = mem::take(&mut state.queue);
            state.given_up.extend(queue);
        })
    }

    /// Takes effect after the operation in progress.
    fn pause(&self) -> Fence {
        self.ask(|state| state.paused = true)
    }

    fn resume(&self) {
        self.change(|state| state.paused = false);
    }
}

#[cfg(test)]
mod tests {
    use crate::{Channel, Flags, Registry};
    use core::future::Future;
    use core::pin::pin;
    use core::task::{Context, Waker};
    use dma_fence::{Fence, FenceError};
    use hal::dma::{Destination, Memory, Source};
    use hal::host::block_on;
    use spin::Mutex;
    use std::sync::Arc;

    #[test]
    fn termination_and_pause_wait_for_the_operation_in_progress() {
        let registry = Registry::new();
        let channel = Arc::new(block_on(registry.cpu().request()).unwrap());
        let submit = || {
            let descriptor = channel.prep_interrupt(Flags::empty()).unwrap();
            channel.submit(descriptor).unwrap().fence().clone()
        };
        // Asks from inside an operation's completion: that it ends is still to come.
        let during = |ask: fn(&Channel) -> Fence| {
            let (first, second) = (submit(), submit());
            let (asking, fence) = (channel.clone(), Arc::new(Mutex::new(None)));
            let asked = fence.clone();
            let callback = move |_| {
                let fence = ask(&asking);
                assert!(!fence.is_signalled(), "its operation is in progress");
                *asked.lock() = Some(fence);
            };
            first.add_callback(callback).unwrap();
            channel.issue_pending();
            let fence = fence.lock().take().unwrap();
            assert_eq!(fence.result(), Some(Ok(())));
            second
        };
        let terminated = during(|channel| channel.chan().ops.terminate_all());
        assert_eq!(terminated.result(), Some(Err(FenceError::Terminated)));
        let held = during(|channel| channel.chan().ops.pause());
        assert!(!held.is_signalled());
        let late = submit();
        channel.chan().ops.resume();
        assert_eq!(held.result(), Some(Ok(())));
        assert!(!late.is_signalled(), "nobody has issued it");
    }

    #[test]
    fn who_fell_back_is_not_given_up_with_the_last_client() {
        let registry = Registry::new();
        let client = block_on(registry.cpu().request()).unwrap();
        block_on(client.pause()).unwrap();
        let source = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let destination = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let mut copy = pin!(registry.copy(destination, source));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(
            copy.as_mut().poll(&mut cx).is_pending(),
            "held by the pause"
        );
        block_on(client.release());
        assert!(block_on(copy).is_ok());
    }

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
