//! Interrupts for those who wait, and only for them.
//!
//! An operation without [`Flags::INTERRUPT`](crate::Flags::INTERRUPT) ends silently: who polls sees
//! it, and in the end the provider's watchdog does. As soon as somebody waits for its fence, an
//! operation that does nothing but interrupt follows it into the ring, unless an interrupt is to
//! come anyway: at once, or with the next issue where the ring holds what is not issued yet. Nothing
//! is issued earlier than its client wants. What waits outside the ring for others interrupts by
//! itself if somebody waits for it when it enters.
//!
//! Where there is no room for one more operation, or a fence's work was handed to another channel
//! before anybody waited for it, the watchdog has to do. Task context, no locks held.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::Ordering;

use dma_fence::{Fence, FenceOps, Signaler, next_context};
use litemap::LiteMap;
use spin::Mutex;

use crate::capability::Flags;
use crate::chan::Chan;
use crate::operation::{Cookie, Record};
use crate::work::Work;

/// Channels by the contexts of their fences. A fence of a ring's operation says by its numbers where
/// it belongs: a reference would be counted for each operation.
static CHANNELS: Mutex<LiteMap<u64, Weak<Chan>>> = Mutex::new(LiteMap::new());

/// A channel's context, and its place on the list.
pub(crate) struct Listing(u64);

impl Listing {
    pub(crate) fn new() -> Self {
        Self(next_context())
    }

    pub(crate) fn number(&self) -> u64 {
        self.0
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        CHANNELS.lock().remove(&self.0);
    }
}

/// The operations of fences whose numbers are a channel's and a cookie.
pub(crate) struct InRing;

pub(crate) static IN_RING: InRing = InRing;

impl FenceOps for InRing {
    fn enable_signaling(&self, fence: &Fence, _: Option<Signaler>) {
        let chan = CHANNELS.lock().get(&fence.context()).cloned();
        if let Some(chan) = chan.as_ref().and_then(Weak::upgrade) {
            chan.interrupt_after(Some(Cookie(fence.seqno())));
        }
    }
}

/// The operations of the fence of what waits outside the ring, at first.
pub(crate) struct Outside {
    pub(crate) chan: Arc<Chan>,
    pub(crate) cookie: Cookie,
}

impl FenceOps for Outside {
    fn enable_signaling(&self, _: &Fence, _: Option<Signaler>) {
        if !self.chan.is_waiting(self.cookie) {
            self.chan.interrupt_after(None);
        }
    }
}

impl Chan {
    /// Lets fences find the channel.
    pub(crate) fn listed(self) -> Arc<Self> {
        let chan = Arc::new(self);
        let weak = Arc::downgrade(&chan);
        CHANNELS.lock().insert(chan.context(), weak);
        chan
    }

    /// Has an interrupt come after the operation `cookie`, or after what is in the ring.
    fn interrupt_after(self: &Arc<Self>, cookie: Option<Cookie>) {
        if !self.silent || cookie.is_some_and(|cookie| cookie.0 <= self.interrupting()) {
            return;
        }
        self.wanted.store(true, Ordering::Release);
        // Who issues what is not issued yet looks afterwards.
        if !self.ops.has_unissued() {
            self.issue_pending();
        }
    }

    /// Starts everything that was submitted, and has an interrupt come where one is wanted.
    pub(crate) fn issue_pending(self: &Arc<Self>) {
        self.interrupt_if_wanted();
        self.ops.issue_pending();
        if self.interrupt_if_wanted() {
            self.ops.issue_pending();
        }
    }

    /// Whether something has been submitted.
    fn interrupt_if_wanted(self: &Arc<Self>) -> bool {
        if !self.wanted.load(Ordering::Acquire) || !self.wanted.swap(false, Ordering::AcqRel) {
            return false;
        }
        let record = Record::new(Work::Interrupt, Flags::INTERRUPT);
        self.submit_record(self.clone(), record).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use crate::{Channel, Descriptor, Memset, Registry, Submitted};
    use hal::dma::{Destination, Memory};
    use hal::host::block_on;
    use std::vec::Vec;

    fn silent(slots: usize) -> (Arc<Mock>, Channel) {
        let mock = Mock::new(slots);
        mock.state.lock().silent = true;
        let device = Registry::new()
            .register(mock::info(), [mock.clone() as Arc<_>].into())
            .unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        (mock, channel)
    }

    fn prepared(channel: &Channel, flags: Flags) -> Descriptor<Memset> {
        let dst = Destination::new(Memory::new(8).unwrap(), 0..8).unwrap();
        channel.prep_memset(dst, 1, flags).unwrap()
    }

    fn fill(channel: &Channel, flags: Flags) -> Submitted<Memset> {
        channel.submit(prepared(channel, flags)).unwrap()
    }

    fn wait(fence: &Fence) {
        assert!(fence.add_callback(|_| ()).is_ok());
    }

    /// Of each operation in the ring, whether it has work and whether it interrupts.
    fn ring(mock: &Mock) -> Vec<(bool, bool)> {
        let state = mock.state.lock();
        let told = |op: &crate::Operation| {
            let interrupts = op.flags().contains(Flags::INTERRUPT);
            (!op.work().is_empty(), interrupts)
        };
        state.ring.iter().map(told).collect()
    }

    const SILENT: (bool, bool) = (true, false);
    const LOUD: (bool, bool) = (true, true);
    const FOLLOWS: (bool, bool) = (false, true);

    #[test]
    fn s4_34_nothing_interrupts_for_who_only_asks() {
        let (mock, channel) = silent(4);
        let fill = fill(&channel, Flags::empty());
        channel.issue_pending();
        assert!(!fill.fence().is_signalled());
        channel.issue_pending();
        assert_eq!(ring(&mock), [SILENT]);
        mock.finish(Ok(()));
        assert!(fill.try_finish().is_ok());
        assert_eq!(mock.state.lock().doorbells, 1);
    }

    #[test]
    fn s4_34_an_interrupt_follows_what_is_waited_for() {
        let (mock, channel) = silent(8);
        let fills = [(); 3].map(|()| fill(&channel, Flags::empty()));
        channel.issue_pending();
        wait(fills[0].fence());
        assert_eq!(ring(&mock), [SILENT, SILENT, SILENT, FOLLOWS]);
        assert_eq!(mock.state.lock().issued, 4);
        // It is behind them all.
        wait(fills[2].fence());
        assert_eq!(ring(&mock).len(), 4);
        let next = fill(&channel, Flags::empty());
        channel.issue_pending();
        wait(next.fence());
        assert_eq!(ring(&mock)[4..], [SILENT, FOLLOWS]);
    }

    #[test]
    fn s4_34_nothing_is_issued_for_who_waits_early() {
        let (mock, channel) = silent(8);
        let first = fill(&channel, Flags::empty());
        wait(first.fence());
        assert_eq!((ring(&mock).len(), mock.state.lock().doorbells), (1, 0));
        let second = fill(&channel, Flags::empty());
        wait(second.fence());
        channel.issue_pending();
        assert_eq!(ring(&mock), [SILENT, SILENT, FOLLOWS]);
        let state = mock.state.lock();
        assert_eq!((state.issued, state.doorbells), (3, 1));
    }

    #[test]
    fn s4_34_an_interrupt_that_comes_anyway_is_enough() {
        let (mock, channel) = silent(8);
        let silent = fill(&channel, Flags::empty());
        let loud = fill(&channel, Flags::INTERRUPT);
        channel.issue_pending();
        wait(silent.fence());
        wait(loud.fence());
        assert_eq!(ring(&mock), [SILENT, LOUD]);
    }

    #[test]
    fn s4_34_what_waits_for_others_interrupts_if_it_is_waited_for() {
        let (mock, channel) = silent(8);
        let context = dma_fence::Context::new();
        let waits = |channel: &Channel| {
            let (signaler, before) = context.fence();
            let fill = prepared(channel, Flags::empty()).after(&before);
            (signaler, channel.submit(fill).unwrap())
        };
        let (signaler, early) = waits(&channel);
        wait(early.fence());
        assert_eq!(ring(&mock), []);
        signaler.signal(Ok(()));
        assert_eq!(ring(&mock), [LOUD]);
        let (signaler, late) = waits(&channel);
        signaler.signal(Ok(()));
        assert_eq!(ring(&mock), [LOUD, SILENT]);
        wait(late.fence());
        assert_eq!(ring(&mock), [LOUD, SILENT, FOLLOWS]);
    }

    #[test]
    fn a_full_ring_is_left_to_the_watchdog() {
        let (mock, channel) = silent(1);
        let fill = fill(&channel, Flags::empty());
        channel.issue_pending();
        wait(fill.fence());
        assert_eq!(ring(&mock), [SILENT]);
        mock.finish(Ok(()));
        assert!(fill.try_finish().is_ok());
    }

    #[test]
    fn who_waits_while_another_issues_misses_nothing() {
        for _ in 0..mock::times(500) {
            let (mock, channel) = silent(8);
            let fill = fill(&channel, Flags::empty());
            std::thread::scope(|scope| {
                scope.spawn(|| channel.issue_pending());
                wait(fill.fence());
            });
            assert_eq!(ring(&mock), [SILENT, FOLLOWS]);
            assert_eq!(mock.state.lock().issued, 2);
        }
    }

    #[test]
    fn fences_outlive_their_channel() {
        let (mock, channel) = silent(8);
        let fill = fill(&channel, Flags::empty());
        let fence = fill.fence().clone();
        mock.state.lock().ring.clear();
        drop((fill, channel));
        assert!(fence.is_signalled());
        let (_signaler, lost) = Fence::with_ops(fence.context(), 2, &IN_RING);
        wait(&lost);
    }
}
