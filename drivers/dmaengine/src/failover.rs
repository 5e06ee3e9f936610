//! Finishing elsewhere what a removed device has left.
//!
//! An operation owns its buffers: nobody has written its source since it was submitted, and nobody
//! reads its destination before its fence. So it runs again, whole, whatever the device had done
//! of it, and even if it wrote the same once more. But after the fence the destination is the
//! client's: so the device must be kept from memory by then, or the operation is not run at all
//! ([`Operation::expose`]). Operations enter one ring in the order of their submission, or run one after the other:
//! what depended on its predecessor in the ring still does.

use alloc::sync::Arc;
use alloc::vec::Vec;

use dma_fence::{Fence, FenceError};
use hal::task::yield_now;
use hal::time::{Duration, Instant, pause, poll_until};

use crate::capability::Capabilities;
use crate::chan::{Chan, DmaChan};
use crate::client::Client;
use crate::life::{Hold, RequestError, Sharing};
use crate::operation::Operation;
use crate::provider::{Rejected, SubmitReason};
use crate::registry::Registry;

/// How long another engine may take for one operation; then the client's own timeout decides.
const LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const STEP: Duration = Duration::from_micros(50);

/// What became of the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Done by another device.
    pub(crate) failed_over: usize,
    /// Done by the CPU.
    pub(crate) by_cpu: usize,
    /// Ended with an error.
    pub(crate) lost: usize,
}

/// Runs `operations` on other devices of `registry`, or on the CPU. Those that the removed device
/// may still write for end with an error, which their channels count.
pub(crate) async fn run(registry: &Registry, operations: Vec<Operation>) -> Outcome {
    let mut outcome = Outcome::default();
    let (exposed, operations): (Vec<_>, Vec<_>) =
        operations.into_iter().partition(Operation::is_exposed);
    if !exposed.is_empty() {
        log::error!(
            "{} operations fail: a device that is gone may still write, their buffers are withheld",
            exposed.len()
        );
    }
    for operation in exposed {
        operation.complete(Err(FenceError::Gone));
    }
    let mut other: Option<Other> = None;
    let mut failed = Vec::new();
    for operation in operations {
        let Some(operation) = hand_on(&mut other, operation).await else {
            continue;
        };
        // It does not fit there: those before it come first.
        if let Some(other) = other.take() {
            other.finish(&mut outcome).await;
        }
        match choose(registry, &mut failed, operation).await {
            Ok(next) => other = Some(next),
            Err(operation) => {
                by_cpu(registry, operation);
                outcome.by_cpu += 1;
                // One may be as long as a device's longest.
                yield_now().await;
            }
        }
    }
    if let Some(other) = other {
        other.finish(&mut outcome).await;
    }
    outcome
}

/// A channel that takes over, and what it has taken.
struct Other {
    hold: Hold,
    taken: Vec<Fence>,
}

impl Other {
    /// Gives it an operation that fits; `Err` with it where the channel does not take it: then it is
    /// counted where it was.
    fn give(&mut self, operation: Operation) -> Result<(), Rejected> {
        let (fence, from) = (operation.fence(), operation.chan());
        let adopted = self.hold.chan.adopt(operation);
        adopted.map_err(|mut rejected| {
            if let Some(from) = &from {
                rejected.operation.move_to(from);
            }
            rejected
        })?;
        self.taken.extend(fence);
        Ok(())
    }

    /// Waits for what it has taken.
    async fn finish(self, outcome: &mut Outcome) {
        self.hold.chan.issue_pending();
        let ops = &self.hold.chan.ops;
        for fence in self.taken {
            // Polled for: the client may not have asked for an interrupt.
            let ended = || {
                ops.poll();
                fence.is_signalled()
            };
            let _ = poll_until(LIMIT, STEP, ended).await;
            match fence.result() {
                Some(Ok(())) => outcome.failed_over += 1,
                _ => outcome.lost += 1,
            }
        }
        self.hold.release().await;
    }
}

/// Gives `operation` to the channel that took the last one, if it can. Else gives it back.
async fn hand_on(other: &mut Option<Other>, mut operation: Operation) -> Option<Operation> {
    let Some(other) = other else {
        return Some(operation);
    };
    if !fits(&other.hold.chan, &operation) {
        return Some(operation);
    }
    // Where its ring is full, room is awaited: others wait for it as well.
    let start = Instant::now();
    loop {
        let rejected = match other.give(operation) {
            Ok(()) => return None,
            Err(rejected) => rejected,
        };
        operation = rejected.operation;
        if rejected.reason != SubmitReason::Full || start.elapsed() > LIMIT {
            return Some(operation);
        }
        other.hold.chan.issue_pending();
        other.hold.chan.ops.poll();
        pause(STEP).await;
    }
}

/// Finds a channel that can and will take `operation`. Else gives it back. Those that `failed` to
/// start are not asked again: that takes long.
async fn choose(
    registry: &Registry,
    failed: &mut Vec<Arc<Chan>>,
    mut operation: Operation,
) -> Result<Other, Operation> {
    let client = Client::new("failover");
    for DmaChan { inner: chan } in registry.channels() {
        if !fits(&chan, &operation) || failed.iter().any(|other| Arc::ptr_eq(other, &chan)) {
            continue;
        }
        let hold = match Hold::take(&chan, &client, Sharing::Routed).await {
            Ok(hold) => hold,
            Err(error) => {
                if matches!(error, RequestError::Start(_) | RequestError::Bind(_)) {
                    failed.push(chan);
                }
                continue;
            }
        };
        let taken = Vec::new();
        let mut next = Other { hold, taken };
        match next.give(operation) {
            Ok(()) => return Ok(next),
            Err(rejected) => operation = rejected.operation,
        }
    }
    Err(operation)
}

fn fits(chan: &Arc<Chan>, operation: &Operation) -> bool {
    let info = &chan.info;
    let shape = operation.work().shape();
    !info.capabilities.contains(Capabilities::PRIVATE)
        && shape.is_ok_and(|shape| shape.fits(info).is_ok())
}

fn by_cpu(registry: &Registry, mut operation: Operation) {
    operation.work_mut().run_by_cpu();
    operation.move_to(&registry.cpu().inner);
    operation.complete(Ok(()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Flags;
    use crate::mock::{self, Mock};
    use crate::{Channel, Finished, Submitted, Work};
    use core::future::Future;
    use hal::dma::withheld;
    use hal::dma::{Destination, Memory, Source};
    use hal::host::block_on;
    use std::vec;
    use std::vec::Vec;

    fn copy(channel: &Channel) -> Submitted<crate::Memcpy> {
        let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        channel.submit(descriptor).unwrap()
    }

    /// A device that may still write when it has gone, and one that could do its work.
    fn exposing() -> (Registry, crate::DmaDevice, Channel) {
        let registry = Registry::new();
        let mock = Mock::new(4);
        mock.state.lock().exposes = true;
        let device = registry.register(mock::info(), vec![mock]).unwrap();
        registry
            .register(mock::info(), vec![Mock::eager(4)])
            .unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        (registry, device, channel)
    }

    #[test]
    fn what_a_device_may_still_write_is_not_done_elsewhere() {
        let (registry, device, channel) = exposing();
        let copies: Vec<_> = (0..3).map(|_| copy(&channel)).collect();
        channel.issue_pending();
        let before = withheld();
        let removal = block_on(registry.unregister(&device, Duration::from_millis(5)));
        let done = removal.failed_over + removal.by_cpu;
        assert_eq!((removal.in_flight, done, removal.lost), (3, 0, 3));
        for copy in copies {
            let Finished { buffers, result } = block_on(copy.finish());
            assert_eq!(result, Err(FenceError::Gone));
            assert!(buffers.is_none(), "the destination stays behind");
        }
        assert!(withheld() >= before + 3);
        let other = registry.channel("dma1chan0").unwrap();
        assert_eq!(other.counters().copies, 0);
    }

    /// Two engines, and a client of the first with operations under way in it.
    struct Leaving {
        registry: Registry,
        mock: Arc<Mock>,
        _channel: Channel,
        copies: Vec<Submitted<crate::Memcpy>>,
    }

    fn leaving(other: &Arc<Mock>, copies: usize) -> Leaving {
        let registry = Registry::new();
        let mock = Mock::new(8);
        let device = registry.register(mock::info(), vec![mock.clone()]).unwrap();
        registry
            .register(mock::info(), vec![other.clone()])
            .unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        let copies = (0..copies).map(|_| copy(&channel)).collect();
        channel.issue_pending();
        Leaving {
            registry,
            mock,
            _channel: channel,
            copies,
        }
    }

    fn remove_first(registry: &Registry) -> crate::Removal {
        let device = registry.devices().remove(0);
        block_on(registry.unregister(&device, Duration::from_millis(5)))
    }

    #[test]
    fn a_channel_that_does_not_start_is_asked_once() {
        let mock = Mock::new(8);
        mock.state.lock().refuse_start = Some(crate::StartError::Gone);
        let leaving = leaving(&mock, 4);
        let removal = remove_first(&leaving.registry);
        assert_eq!((removal.by_cpu, removal.lost), (4, 0));
        assert_eq!(mock.state.lock().starts, 1);
        for copy in leaving.copies {
            assert_eq!(block_on(copy.finish()).result, Ok(()));
        }
    }

    #[test]
    fn what_a_channel_refuses_is_not_counted_there() {
        let mock = Mock::new(8);
        let leaving = leaving(&mock, 1);
        mock.state.lock().refused = Capabilities::MEMCPY;
        let registry = &leaving.registry;
        let [from, to] = [0, 1].map(|index| registry.channels()[index].inner.clone());
        let hold = block_on(Hold::take(&to, &Client::default(), Sharing::Routed)).unwrap();
        let taken = Vec::new();
        let mut other = Other { hold, taken };
        let operation = leaving.mock.state.lock().ring.pop_front().unwrap();
        let rejected = other.give(operation).unwrap_err();
        assert_eq!((from.in_flight(), to.in_flight()), (1, 0));
        by_cpu(registry, rejected.operation);
        assert_eq!(from.in_flight(), 0);
    }

    #[test]
    fn others_run_between_what_the_cpu_does() {
        let mock = Mock::new(8);
        let leaving = leaving(&mock, 4);
        let alone = Registry::new();
        let operations = leaving.mock.state.lock().ring.drain(..).collect();
        let mut run = core::pin::pin!(run(&alone, operations));
        let ended = || {
            leaving
                .copies
                .iter()
                .filter(|copy| copy.fence().is_signalled())
        };
        let mut rounds = 0;
        let outcome = block_on(core::future::poll_fn(|cx| {
            rounds += 1;
            let before = ended().count();
            let polled = run.as_mut().poll(cx);
            assert!(ended().count() <= before + 1);
            polled
        }));
        assert_eq!(outcome.by_cpu, 4);
        assert!(rounds > 4);
    }

    /// The other engine has work of its own, which never ends by itself here.
    #[test]
    fn room_in_a_full_ring_is_awaited_and_no_more() {
        let registry = Registry::new();
        let leaving = registry.register(mock::info(), vec![Mock::new(4)]).unwrap();
        let mock = Mock::new(3);
        registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let channel = block_on(leaving.channels().next().unwrap().request()).unwrap();
        let other = registry.channel("dma1chan0").unwrap();
        let other = block_on(other.share()).unwrap();
        let own = [copy(&other), copy(&other)];
        other.issue_pending();
        let left: Vec<_> = (0..2).map(|_| copy(&channel)).collect();
        let fence = left[1].fence().clone();
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| block_on(registry.unregister(&leaving, STEP)));
            let holds = |wanted: usize| {
                let full = || mock.state.lock().ring.len() == wanted;
                block_on(poll_until(LIMIT, STEP, full)).unwrap();
            };
            holds(3);
            // One leaves, and the second comes in behind the first.
            mock.finish(Ok(()));
            holds(3);
            assert!(!fence.is_signalled() && !own[1].fence().is_signalled());
            while !fence.is_signalled() {
                mock.finish(Ok(()));
            }
            let removal = removal.join().unwrap();
            assert_eq!((removal.failed_over, removal.by_cpu), (2, 0));
        });
    }

    #[test]
    fn who_lets_go_of_what_may_still_be_written_does_not_get_it_back() {
        let (_registry, _device, channel) = exposing();
        let copy = copy(&channel);
        channel.issue_pending();
        let before = withheld();
        block_on(channel.release());
        let Finished { buffers, result } = block_on(copy.finish());
        assert_eq!(result, Err(FenceError::Terminated));
        assert!(buffers.is_none());
        assert!(withheld() > before);
    }

    #[test]
    fn every_destination_of_an_operation_is_withheld() {
        let dst = || Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let src = || Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let srcs = crate::Sources::from_iter([src(), src()]);
        let weighted = crate::Weighted::from_iter([(src(), 1)]);
        let works = [
            (
                1,
                Work::Memcpy {
                    dst: dst(),
                    src: src(),
                },
            ),
            (
                1,
                Work::Memset {
                    dst: dst(),
                    value: 0,
                },
            ),
            (1, Work::Xor(Box::new(crate::Xor { dst: dst(), srcs }))),
            (
                2,
                Work::Pq(Box::new(crate::Pq {
                    p: Some(dst()),
                    q: Some(dst()),
                    srcs: weighted,
                })),
            ),
            (0, Work::Interrupt),
        ];
        for (destinations, mut work) in works {
            work.withhold();
            let before = withheld();
            drop(work);
            assert!(withheld() >= before + destinations);
        }
    }

    #[test]
    fn private_channels_take_over_nothing() {
        let registry = Registry::new();
        let device = registry.register(mock::info(), vec![Mock::new(4)]).unwrap();
        let mut info = mock::info();
        info.capabilities |= Capabilities::PRIVATE;
        let private = registry.register(info, vec![Mock::eager(4)]).unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        let submitted = channel.submit(descriptor).unwrap();
        let removal = block_on(registry.unregister(&device, Duration::from_millis(5)));
        assert_eq!((removal.failed_over, removal.by_cpu), (0, 1));
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
        assert_eq!(private.channels().next().unwrap().counters().copies, 0);
    }
}
