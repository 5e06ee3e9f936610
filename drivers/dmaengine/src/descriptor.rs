//! A prepared operation.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::{fmt, mem};

use dma_fence::{Fence, FenceError};

use crate::capability::Flags;
use crate::chan::Chan;
use crate::operation::Record;
use crate::work::Kind;

/// What a client leaves to be run when an operation has ended.
pub(crate) type Callback = Box<dyn FnOnce(Result<(), FenceError>) + Send>;

/// A prepared operation: checked against its channel, owning its buffers, holding nothing of the
/// channel's. Dropping it frees the buffers.
pub struct Descriptor<K: Kind> {
    pub(crate) chan: Arc<Chan>,
    pub(crate) record: Box<Record>,
    pub(crate) kind: PhantomData<fn() -> K>,
}

/// What a client asks of an operation beside its work.
#[derive(Default)]
pub(crate) struct Terms {
    pub(crate) flags: Flags,
    /// Seldom there.
    more: Option<Box<More>>,
}

#[derive(Default)]
struct More {
    callback: Option<Callback>,
    /// What it depends on.
    after: Vec<Fence>,
}

impl Terms {
    pub(crate) fn new(flags: Flags) -> Self {
        Self { flags, more: None }
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub(crate) fn take_callback(&mut self) -> Option<Callback> {
        self.more.as_mut()?.callback.take()
    }

    /// What the operation depends on.
    pub(crate) fn after(&self) -> &[Fence] {
        self.more.as_ref().map_or(&[], |more| &more.after)
    }

    pub(crate) fn take_after(&mut self) -> Vec<Fence> {
        let more = self.more.as_mut();
        more.map_or_else(Vec::new, |more| mem::take(&mut more.after))
    }

    /// Drops the dependencies that have ended well.
    pub(crate) fn update(&mut self) {
        if let Some(more) = &mut self.more {
            more.after.retain(|fence| fence.result() != Some(Ok(())));
        }
    }
}

impl<K: Kind> Descriptor<K> {
    pub(crate) fn new(chan: Arc<Chan>, record: Box<Record>) -> Self {
        Self {
            chan,
            record,
            kind: PhantomData,
        }
    }

    pub(crate) fn flags(&self) -> Flags {
        self.record.completion.terms.flags
    }

    fn more(&mut self) -> &mut More {
        self.record.completion.terms.more()
    }

    /// Has `callback` run when the operation has ended, however it ends: once, in a task, outside
    /// all locks, after the operation was counted, its buffers went back and its fence was
    /// signalled; in the order in which operations end. It must be short, and may submit. A later
    /// callback takes the place of an earlier one; one of an operation that is never submitted is
    /// dropped with its descriptor.
    pub fn callback(
        mut self,
        callback: impl FnOnce(Result<(), FenceError>) + Send + 'static,
    ) -> Self {
        self.more().callback = Some(Box::new(callback));
        self
    }

    /// Has the operation start after the work behind `fence` has ended: an operation of this channel,
    /// of another, or anything else. Submitting does not wait for that. Where the work stands before
    /// it in the same ring and carries [`Flags::FENCE`], the engine keeps the order; else the
    /// operation waits outside the ring and is issued by itself. If the work ends with an error, so
    /// does the operation, with the same one.
    pub fn after(mut self, fence: &Fence) -> Self {
        self.more().after.push(fence.clone());
        self
    }

    /// The buffers, instead of the operation.
    pub fn into_buffers(self) -> K::Buffers {
        match K::unwrap(self.record) {
            Some(buffers) => buffers,
            None => unreachable!("a descriptor's kind is its operation's"),
        }
    }
}

impl<K: Kind> fmt::Debug for Descriptor<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({} {:?})", self.chan.name, self.record.work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use crate::{Channel, Memcpy, Registry, SubmitReason, Submitted};
    use hal::dma::{Destination, Memory, Source};
    use hal::host::block_on;
    use hal::time::Duration;
    use spin::Mutex;
    use std::vec;

    type Ends = Arc<Mutex<Vec<(u64, Result<(), FenceError>)>>>;

    fn channel_of(mock: &Arc<Mock>) -> Channel {
        let device = Registry::new()
            .register(mock::info(), vec![mock.clone()])
            .unwrap();
        block_on(device.channels().next().unwrap().request()).unwrap()
    }

    fn copy(channel: &Channel, number: u64, ends: &Ends) -> Descriptor<Memcpy> {
        let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let ends = ends.clone();
        channel
            .prep_memcpy(dst, src, Flags::empty())
            .unwrap()
            .callback(move |result| ends.lock().push((number, result)))
    }

    #[test]
    fn callbacks_run_once_in_the_order_of_completion() {
        let mock = Mock::new(4);
        let channel = channel_of(&mock);
        let ends = Ends::default();
        for number in 1..=3 {
            channel.submit(copy(&channel, number, &ends)).unwrap();
        }
        channel.issue_pending();
        assert!(ends.lock().is_empty());
        mock.finish(Ok(()));
        mock.finish(Err(FenceError::Device(7)));
        assert_eq!(*ends.lock(), [(1, Ok(())), (2, Err(FenceError::Device(7)))]);
        mock.finish(Ok(()));
        assert_eq!(ends.lock().len(), 3);
        assert_eq!(Arc::strong_count(&ends), 1, "the callbacks are gone");
    }

    #[test]
    fn a_callback_finds_all_done_and_may_submit() {
        let mock = Mock::new(1);
        let channel = Arc::new(channel_of(&mock));
        let first: Arc<Mutex<Option<Submitted<Memcpy>>>> = Arc::default();
        let (seen, user) = (first.clone(), channel.clone());
        let ends = Ends::default();
        let next = copy(&channel, 2, &ends);
        let descriptor = copy(&channel, 1, &ends).callback(move |result| {
            assert_eq!(result, Ok(()));
            assert_eq!(user.counters().copies, 1);
            let finished = seen.lock().take().unwrap().try_finish().unwrap();
            assert!(finished.buffers.is_some());
            user.submit(next).unwrap();
            user.issue_pending();
        });
        *first.lock() = Some(channel.submit(descriptor).unwrap());
        channel.issue_pending();
        assert!(mock.finish(Ok(())));
        assert!(first.lock().is_none(), "it ran");
        assert!(mock.finish(Ok(())));
        assert_eq!(*ends.lock(), [(2, Ok(()))], "a later callback replaces");
        assert_eq!(channel.in_flight(), 0);
    }

    #[test]
    fn callbacks_run_for_terminated_and_abandoned_operations() {
        let mock = Mock::new(4);
        let channel = channel_of(&mock);
        let ends = Ends::default();
        channel.submit(copy(&channel, 1, &ends)).unwrap();
        channel.submit(copy(&channel, 2, &ends)).unwrap();
        channel.terminate_all();
        channel.submit(copy(&channel, 3, &ends)).unwrap();
        mock.state.lock().ring.clear();
        let terminated = Err(FenceError::Terminated);
        assert_eq!(
            *ends.lock(),
            [
                (1, terminated),
                (2, terminated),
                (3, Err(FenceError::Abandoned))
            ]
        );
    }

    #[test]
    fn callbacks_run_for_what_another_does_instead() {
        let registry = Registry::new();
        let mock = Mock::new(4);
        let device = registry.register(mock::info(), vec![mock]).unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        let ends = Ends::default();
        channel.submit(copy(&channel, 1, &ends)).unwrap();
        let removal = block_on(registry.unregister(&device, Duration::from_millis(5)));
        assert_eq!(removal.by_cpu, 1);
        assert_eq!(*ends.lock(), [(1, Ok(()))]);
    }

    #[test]
    fn a_refused_descriptor_keeps_its_callback() {
        let mock = Mock::new(1);
        let channel = channel_of(&mock);
        let ends = Ends::default();
        channel.submit(copy(&channel, 1, &ends)).unwrap();
        let error = channel.submit(copy(&channel, 2, &ends)).unwrap_err();
        assert_eq!(error.reason, SubmitReason::Full);
        channel.issue_pending();
        mock.finish(Ok(()));
        channel.submit(error.descriptor).unwrap();
        drop(copy(&channel, 3, &ends));
        channel.issue_pending();
        mock.finish(Ok(()));
        assert_eq!(*ends.lock(), [(1, Ok(())), (2, Ok(()))]);
    }
}
