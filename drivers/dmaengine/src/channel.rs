//! A channel in a client's hands.

use core::fmt;
use core::ops::Deref;

use crate::chan::{Chan, DmaChan};
use crate::client::Client;
use crate::descriptor::Descriptor;
use crate::life::{Hold, RequestError, Sharing};
use crate::provider::SubmitReason;
use crate::submitted::Submitted;
use crate::work::Kind;

/// A running channel, held by a client. Dropping it gives the channel up; operations under way
/// complete, or are terminated when the channel stops.
pub struct Channel {
    /// None for a public channel, whose finder holds it by other means.
    hold: Option<Hold>,
    handle: DmaChan,
}

/// An operation that was not submitted; its descriptor comes back.
#[derive(Debug)]
pub struct SubmitError<K: Kind> {
    /// Why.
    pub reason: SubmitReason,
    /// The descriptor.
    pub descriptor: Descriptor<K>,
}

impl<K: Kind> fmt::Display for SubmitError<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl DmaChan {
    /// Requests the channel for one client alone, and starts it. Fails where another has asked
    /// for it.
    pub async fn request_for(&self, client: &Client) -> Result<Channel, RequestError> {
        self.take(client, Sharing::Exclusive).await
    }

    /// Requests the channel together with others, and starts it.
    pub async fn share_for(&self, client: &Client) -> Result<Channel, RequestError> {
        self.take(client, Sharing::Shared).await
    }

    /// As [`DmaChan::request_for`], for a client without a name.
    pub async fn request(&self) -> Result<Channel, RequestError> {
        self.request_for(&Client::default()).await
    }

    /// As [`DmaChan::share_for`], for a client without a name.
    pub async fn share(&self) -> Result<Channel, RequestError> {
        self.share_for(&Client::default()).await
    }

    pub(crate) async fn take(
        &self,
        client: &Client,
        sharing: Sharing,
    ) -> Result<Channel, RequestError> {
        Ok(Channel {
            hold: Some(Hold::take(&self.inner, client, sharing).await?),
            handle: self.clone(),
        })
    }
}

impl Channel {
    pub(crate) fn unheld(handle: DmaChan) -> Self {
        Self { hold: None, handle }
    }

    /// Puts an operation into the ring. It starts with the next [`Channel::issue_pending`].
    pub fn submit<K: Kind>(
        &self,
        descriptor: Descriptor<K>,
    ) -> Result<Submitted<K>, SubmitError<K>> {
        self.chan().submit(descriptor).map_err(refused)
    }

    /// As [`Channel::submit`], but where the ring is full, issues what it holds and waits for
    /// room. Dropping the future frees the buffers; nothing was submitted.
    pub async fn submit_wait<K: Kind>(
        &self,
        descriptor: Descriptor<K>,
    ) -> Result<Submitted<K>, SubmitError<K>> {
        self.chan().submit_wait(descriptor).await.map_err(refused)
    }

    /// Starts everything submitted since the last call.
    pub fn issue_pending(&self) {
        self.chan().issue_pending();
    }

    /// Completes what has finished, now, on the caller's stack: for clients that do not wait for
    /// interrupts.
    pub fn poll(&self) {
        self.chan().ops.poll();
    }

    /// Gives the channel up and, where no other client holds it, waits until it has stopped and
    /// its ring is freed.
    pub async fn release(self) {
        if let Some(hold) = self.hold {
            hold.release().await;
        }
    }

    pub(crate) fn chan(&self) -> &alloc::sync::Arc<Chan> {
        &self.handle.inner
    }
}

fn refused<K: Kind>((descriptor, reason): (Descriptor<K>, SubmitReason)) -> SubmitError<K> {
    SubmitError { reason, descriptor }
}

impl Deref for Channel {
    type Target = DmaChan;

    fn deref(&self) -> &DmaChan {
        &self.handle
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use crate::registry::Registry;
    use crate::{Capabilities, DeviceInfo, Finished, Flags, Memcpy, PrepReason};
    use dma_fence::FenceError;
    use hal::dma::{Destination, Memory, Source};
    use hal::host::block_on;
    use hal::time::{Duration, sleep, timeout};
    use std::sync::Arc;

    fn buffers(len: usize) -> (Destination, Source) {
        let mut memory = Memory::new(len).unwrap();
        for (i, byte) in memory.iter_mut().enumerate() {
            *byte = i as u8;
        }
        let src = Source::new(Arc::new(memory), 0..len).unwrap();
        let dst = Destination::new(Memory::new(len).unwrap(), 0..len).unwrap();
        (dst, src)
    }

    fn channel_of(info: DeviceInfo, mock: &Arc<Mock>) -> Channel {
        let device = Registry::new().register(info, vec![mock.clone()]).unwrap();
        block_on(device.channels().next().unwrap().request()).unwrap()
    }

    fn copy(channel: &Channel, len: usize) -> Submitted<Memcpy> {
        let (dst, src) = buffers(len);
        let descriptor = channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap();
        channel.submit(descriptor).unwrap()
    }

    #[test]
    fn a_copy_comes_back_with_its_buffers() {
        let mock = Mock::new(4);
        let channel = channel_of(mock::info(), &mock);
        let submitted = copy(&channel, 100);
        assert_eq!(submitted.cookie().0, 1);
        assert!(!mock.finish(Ok(())), "nothing runs before it is issued");
        channel.issue_pending();
        assert!(mock.finish(Ok(())));
        let Finished { buffers, result } = block_on(submitted.finish());
        let (dst, src) = buffers.unwrap();
        assert_eq!(result, Ok(()));
        assert_eq!(dst.into_memory()[..], *src.bytes());
        let counters = channel.counters();
        assert_eq!((counters.copies, counters.bytes), (1, 100));
        assert_eq!(channel.in_flight(), 0);
    }

    #[test]
    fn one_doorbell_serves_a_batch() {
        let mock = Mock::new(8);
        let channel = channel_of(mock::info(), &mock);
        let batch: Vec<_> = (0..8).map(|_| copy(&channel, 64)).collect();
        channel.issue_pending();
        channel.issue_pending();
        assert_eq!(mock.state.lock().doorbells, 1);
        while mock.finish(Ok(())) {}
        for (i, submitted) in batch.into_iter().enumerate() {
            assert_eq!(submitted.cookie().0, i as u64 + 1);
            assert!(block_on(submitted.finish()).result.is_ok());
        }
    }

    #[test]
    fn errors_come_back_with_the_buffers() {
        let mock = Mock::new(4);
        let channel = channel_of(mock::info(), &mock);
        let submitted = copy(&channel, 64);
        channel.issue_pending();
        mock.finish(Err(FenceError::Device(0x400)));
        let finished = block_on(submitted.finish());
        assert_eq!(finished.result, Err(FenceError::Device(0x400)));
        assert!(finished.buffers.is_some());
        assert_eq!(channel.counters().errors, 1);
        assert_eq!(channel.counters().copies, 0);
    }

    #[test]
    fn what_a_device_cannot_do_is_refused_with_the_buffers() {
        let mock = Mock::new(4);
        let channel = channel_of(
            DeviceInfo {
                capabilities: Capabilities::MEMCPY,
                copy_align: 3,
                max_transfer: 128,
                ..mock::info()
            },
            &mock,
        );
        let (dst, src) = buffers(256);
        let error = channel.prep_memcpy(dst, src, Flags::empty()).unwrap_err();
        assert_eq!(error.reason, PrepReason::TooLong { limit: 128 });
        let (dst, src) = error.buffers;
        let memory = dst.into_memory();
        let src = Source::new(src.memory().clone(), 1..65).unwrap();
        let dst = Destination::new(memory, 0..64).unwrap();
        let error = channel.prep_memcpy(dst, src, Flags::empty()).unwrap_err();
        assert_eq!(error.reason, PrepReason::Misaligned { align: 8 });
        let (dst, src) = error.buffers;
        let src = Source::new(src.memory().clone(), 0..32).unwrap();
        let error = channel.prep_memcpy(dst, src, Flags::empty()).unwrap_err();
        assert_eq!(error.reason, PrepReason::LengthMismatch);
        let error = channel.prep_memset(error.buffers.0, 1, Flags::empty());
        assert_eq!(error.unwrap_err().reason, PrepReason::Unsupported);
        let error = channel.prep_interrupt(Flags::empty()).unwrap_err();
        assert_eq!(error.reason, PrepReason::Unsupported);
    }

    #[test]
    fn a_full_ring_gives_back_or_makes_wait() {
        let mock = Mock::new(2);
        let channel = channel_of(mock::info(), &mock);
        let first = copy(&channel, 64);
        let _second = copy(&channel, 64);
        let (dst, src) = buffers(64);
        let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        let error = channel.submit(descriptor).unwrap_err();
        assert_eq!(error.reason, SubmitReason::Full);
        assert_eq!(channel.in_flight(), 2);
        let mut waiting = Box::pin(channel.submit_wait(error.descriptor));
        let early = block_on(timeout(Duration::from_millis(5), waiting.as_mut()));
        assert!(early.is_err(), "there is no room yet");
        assert_eq!(
            mock.state.lock().doorbells,
            1,
            "what fills the ring was issued"
        );
        assert!(mock.finish(Ok(())));
        let third = block_on(waiting).unwrap();
        assert_eq!(third.cookie().0, 3, "a refusal takes no number");
        assert!(block_on(first.finish()).result.is_ok());
    }

    #[test]
    fn a_dropped_awaiter_frees_nothing_in_flight() {
        let mock = Mock::new(2);
        let channel = channel_of(mock::info(), &mock);
        let (dst, src) = buffers(64);
        let memory = src.memory().clone();
        let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        let submitted = channel.submit(descriptor).unwrap();
        channel.issue_pending();
        drop(submitted);
        assert_eq!(Arc::strong_count(&memory), 2, "the ring holds the source");
        assert!(mock.finish(Ok(())));
        assert_eq!(Arc::strong_count(&memory), 1);
        assert_eq!(channel.counters().copies, 1);
    }

    #[test]
    fn an_operation_that_the_provider_drops_is_abandoned() {
        let mock = Mock::new(2);
        let channel = channel_of(mock::info(), &mock);
        let submitted = copy(&channel, 64);
        mock.state.lock().ring.clear();
        let finished = block_on(submitted.finish());
        assert_eq!(finished.result, Err(FenceError::Abandoned));
        assert!(finished.buffers.is_none());
        assert_eq!(channel.in_flight(), 0);
        assert_eq!(channel.counters().errors, 1);
    }

    #[test]
    fn termination_ends_what_is_in_flight() {
        let mock = Mock::new(4);
        let channel = channel_of(mock::info(), &mock);
        let submitted = copy(&channel, 64);
        assert_eq!(block_on(channel.terminate_all().wait()), Ok(()));
        let finished = block_on(submitted.finish());
        assert_eq!(finished.result, Err(FenceError::Terminated));
        assert!(finished.buffers.is_some());
        block_on(channel.synchronize());
    }

    #[test]
    fn descriptors_do_not_change_channels() {
        let (a, b) = (Mock::new(2), Mock::new(2));
        let (a, b) = (channel_of(mock::info(), &a), channel_of(mock::info(), &b));
        let (dst, src) = buffers(64);
        let descriptor = a.prep_memcpy(dst, src, Flags::empty()).unwrap();
        let error = b.submit(descriptor).unwrap_err();
        assert_eq!(error.reason, SubmitReason::Foreign);
        assert!(a.submit(error.descriptor).is_ok());
    }

    #[test]
    fn fills_and_interrupts_complete() {
        let mock = Mock::eager(4);
        let channel = channel_of(mock::info(), &mock);
        let dst = Destination::new(Memory::new(64).unwrap(), 8..16).unwrap();
        let fill = channel.prep_memset(dst, 0xa5, Flags::empty()).unwrap();
        let fill = channel.submit(fill).unwrap();
        let interrupt = channel.prep_interrupt(Flags::INTERRUPT).unwrap();
        let interrupt = channel.submit(interrupt).unwrap();
        channel.issue_pending();
        let memory = block_on(fill.finish()).buffers.unwrap().into_memory();
        assert_eq!(
            memory[7..17],
            [0, 165, 165, 165, 165, 165, 165, 165, 165, 0]
        );
        let finished = interrupt.try_finish().unwrap();
        assert_eq!((finished.result, finished.buffers), (Ok(()), Some(())));
        assert_eq!(channel.counters().fills, 1);
    }

    #[test]
    fn s0_4_last_release_frees_once() {
        let mock = Mock::new(2);
        let channel = channel_of(mock::info(), &mock);
        let handle = (*channel).clone();
        assert!(handle.is_running());
        assert_eq!(handle.clients(), 1);
        assert_eq!(block_on(handle.request()).unwrap_err(), RequestError::Busy);
        assert_eq!(block_on(handle.share()).unwrap_err(), RequestError::Busy);
        block_on(channel.release());
        assert!(!handle.is_running());
        let state = mock.state.lock();
        assert_eq!((state.starts, state.stops), (1, 1));
    }

    #[test]
    fn s0_3_a_failed_start_leaves_no_client() {
        let mock = Mock::new(2);
        let error = crate::StartError::NotReady {
            status: 3,
            errors: 1,
        };
        mock.state.lock().refuse_start = Some(error.clone());
        let device = Registry::new()
            .register(mock::info(), vec![mock.clone()])
            .unwrap();
        let chan = device.channels().next().unwrap();
        assert_eq!(
            block_on(chan.request()).unwrap_err(),
            RequestError::Start(error)
        );
        assert_eq!(chan.clients(), 0);
        mock.state.lock().refuse_start = None;
        assert!(
            block_on(chan.request()).is_ok(),
            "the next client tries anew"
        );
    }

    #[test]
    fn shared_clients_keep_it_running() {
        let mock = Mock::new(2);
        let device = Registry::new()
            .register(mock::info(), vec![mock.clone()])
            .unwrap();
        let chan = device.channels().next().unwrap();
        let first = block_on(chan.share()).unwrap();
        let second = block_on(chan.share()).unwrap();
        block_on(first.release());
        assert!(chan.is_running());
        drop(second);
        block_on(async {
            while chan.is_running() {
                sleep(Duration::from_millis(1)).await;
            }
        });
        assert_eq!(mock.state.lock().stops, 1);
    }
}
