//! What a client asks of a channel as a whole: give up, wait, pause, go on.

use core::fmt;

use dma_fence::{Fence, FenceError};

use crate::channel::Channel;

/// Why a channel does not pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseError {
    /// Others use it, and would wait for who has it paused.
    Shared,
    /// The provider gave up.
    Provider(FenceError),
}

impl fmt::Display for PauseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared => f.write_str("the channel is shared"),
            Self::Provider(error) => error.fmt(f),
        }
    }
}

impl Channel {
    /// Gives up everything submitted so far by all of this channel's clients. Returns at once;
    /// the operations complete, with an error, when the hardware has let go of them. A pause goes
    /// on.
    pub fn terminate_all(&self) -> Fence {
        self.chan().terminate_waiting();
        self.chan().ops.terminate_all()
    }

    /// Waits until nothing is in flight or waits for others, polling: everything submitted before
    /// the call has completed or failed. Bounded by the provider's limits, and by what operations
    /// depend on; a pause is waited out.
    pub async fn synchronize(&self) {
        self.issue_pending();
        while self.in_flight() + self.waiting() > 0 {
            self.poll();
            hal::task::yield_now().await;
        }
    }

    /// Waits until the hardware processes nothing more. What is submitted and issued before or
    /// meanwhile waits for [`Channel::resume`], for the channel's stop, which hands it back or
    /// ends it, or for [`Channel::terminate_all`], which does not end the pause. An operation that
    /// was under way may have been done in part, and is done again. Dropping the future leaves the
    /// channel to pause. The pause ends with the client's hold of the channel, which stops then, or
    /// goes on for others.
    ///
    /// Only who holds the channel alone may do so.
    pub async fn pause(&self) -> Result<(), PauseError> {
        if !self.chan().life.is_exclusive() {
            return Err(PauseError::Shared);
        }
        let paused = self.chan().ops.pause();
        paused.wait().await.map_err(PauseError::Provider)
    }

    /// Ends a pause. Nothing where there is none.
    pub fn resume(&self) {
        self.chan().ops.resume();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use crate::{Flags, Memcpy, Registry, Submitted};
    use hal::dma::{Destination, Memory, Source};
    use hal::host::block_on;
    use hal::time::Duration;
    use std::sync::Arc;

    fn copy(channel: &Channel) -> Submitted<Memcpy> {
        let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        channel.submit(descriptor).unwrap()
    }

    fn paused() -> (Registry, Channel) {
        let registry = Registry::new();
        let device = registry.register(mock::info(), vec![Mock::eager(8)]);
        let chan = device.unwrap().channels().next().unwrap();
        let channel = block_on(chan.request()).unwrap();
        assert_eq!(block_on(channel.pause()), Ok(()));
        (registry, channel)
    }

    #[test]
    fn a_pause_holds_back_what_is_issued_until_it_ends() {
        let (_registry, channel) = paused();
        let first = copy(&channel);
        channel.issue_pending();
        let second = copy(&channel);
        assert!(!first.fence().is_signalled());
        assert_eq!(channel.in_flight(), 2);
        channel.resume();
        assert_eq!(block_on(first.finish()).result, Ok(()));
        assert!(!second.fence().is_signalled(), "nobody has issued it");
        channel.resume();
        channel.issue_pending();
        assert_eq!(block_on(second.finish()).result, Ok(()));
    }

    #[test]
    fn termination_ends_operations_and_not_the_pause() {
        let (_registry, channel) = paused();
        let given_up = copy(&channel);
        channel.issue_pending();
        assert_eq!(block_on(channel.terminate_all().wait()), Ok(()));
        let result = block_on(given_up.finish()).result;
        assert_eq!(result, Err(FenceError::Terminated));
        let held = copy(&channel);
        channel.issue_pending();
        assert!(!held.fence().is_signalled());
        channel.resume();
        assert_eq!(block_on(held.finish()).result, Ok(()));
    }

    #[test]
    fn a_removal_does_not_wait_for_a_pause_to_end() {
        let (registry, channel) = paused();
        let held = copy(&channel);
        channel.issue_pending();
        let device = registry.devices().remove(0);
        let removal = block_on(registry.unregister(&device, Duration::from_millis(5)));
        assert_eq!((removal.by_cpu, removal.lost), (1, 0));
        assert_eq!(block_on(held.finish()).result, Ok(()));
    }

    #[test]
    fn the_pause_of_one_client_is_not_the_next_ones() {
        let (registry, channel) = paused();
        block_on(channel.release());
        let channel = block_on(registry.channel("dma0chan0").unwrap().request()).unwrap();
        let submitted = copy(&channel);
        channel.issue_pending();
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
    }

    #[test]
    fn a_pause_ends_with_its_client_also_where_the_channel_does_not_stop() {
        let registry = Registry::new();
        let mock = Mock::eager(8);
        registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let channel = block_on(registry.channel("dma0chan0").unwrap().request()).unwrap();
        let chan = channel.chan().clone();
        let others = chan.life.force(&chan, &crate::Client::default());
        assert_eq!(block_on(channel.pause()), Ok(()));
        let held = copy(&channel);
        channel.issue_pending();
        drop(channel);
        assert_eq!(block_on(held.finish()).result, Ok(()));
        assert_eq!(mock.state.lock().stops, 0);
        block_on(others.release());
    }

    #[test]
    fn who_comes_before_a_paused_channel_stops_finds_it_awake() {
        for _ in 0..mock::times(200) {
            let (registry, channel) = paused();
            let chan = registry.channel("dma0chan0").unwrap();
            drop(channel);
            let next = block_on(chan.request()).unwrap();
            let submitted = copy(&next);
            next.issue_pending();
            assert_eq!(block_on(submitted.finish()).result, Ok(()));
        }
    }

    #[test]
    fn who_shares_a_channel_cannot_pause_it() {
        let registry = Registry::new();
        registry
            .register(mock::info(), vec![Mock::eager(8)])
            .unwrap();
        let chan = registry.channel("dma0chan0").unwrap();
        let channel = block_on(chan.share()).unwrap();
        assert_eq!(block_on(channel.pause()), Err(PauseError::Shared));
        let submitted = copy(&channel);
        channel.issue_pending();
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
    }
}
