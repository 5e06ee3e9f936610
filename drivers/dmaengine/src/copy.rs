//! A copy for whoever does not care by what.

use core::fmt;

use dma_fence::FenceError;
use hal::dma::{Destination, Source};

use crate::capability::{Capabilities, Flags};
use crate::chan::DmaChan;
use crate::prep::PrepReason;
use crate::registry::Registry;

/// A copy that was made.
#[derive(Debug)]
pub struct Copied {
    /// The destination, written.
    pub dst: Destination,
    /// The source, unchanged.
    pub src: Source,
    /// By which channel.
    pub via: DmaChan,
}

/// A copy that was not made; the destination's bytes are undefined.
#[derive(Debug)]
pub enum CopyError {
    /// It could not be prepared; the buffers come back.
    Refused(PrepReason, Destination, Source),
    /// It failed, and its buffers are lost with the device.
    Failed(FenceError),
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason, ..) => reason.fmt(f),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// What became of an attempt.
enum Attempt {
    Done(Copied),
    /// Not here; the buffers, untouched or to be overwritten anew.
    Elsewhere(Destination, Source),
    Lost(FenceError),
}

pub(crate) async fn copy(
    registry: &Registry,
    mut dst: Destination,
    mut src: Source,
) -> Result<Copied, CopyError> {
    if dst.len() != src.len() {
        return Err(CopyError::Refused(PrepReason::LengthMismatch, dst, src));
    }
    let mut chans = registry.channels();
    chans.retain(|chan| {
        let caps = chan.info().capabilities;
        caps.contains(Capabilities::MEMCPY) && !caps.contains(Capabilities::PRIVATE)
    });
    // CPUs start at different channels, to spread the load.
    if !chans.is_empty() {
        let start = hal::cpu::current() % chans.len();
        chans.rotate_left(start);
    }
    chans.push(registry.cpu());
    for chan in chans {
        match attempt(&chan, dst, src).await {
            Attempt::Done(copied) => return Ok(copied),
            Attempt::Lost(error) => return Err(CopyError::Failed(error)),
            Attempt::Elsewhere(back, from) => (dst, src) = (back, from),
        }
    }
    // The CPU refuses only while its queue is being terminated.
    Err(CopyError::Refused(PrepReason::Gone, dst, src))
}

async fn attempt(chan: &DmaChan, dst: Destination, src: Source) -> Attempt {
    if chan.inner.life.is_exclusive() {
        return Attempt::Elsewhere(dst, src);
    }
    let Ok(channel) = chan.share().await else {
        return Attempt::Elsewhere(dst, src);
    };
    let descriptor = match channel.prep_memcpy(dst, src, Flags::INTERRUPT) {
        Ok(descriptor) => descriptor,
        Err(error) => return Attempt::Elsewhere(error.buffers.0, error.buffers.1),
    };
    let submitted = match channel.submit_wait(descriptor).await {
        Ok(submitted) => submitted,
        Err(error) => {
            return match error.descriptor.into_buffers() {
                Some((dst, src)) => Attempt::Elsewhere(dst, src),
                None => Attempt::Lost(FenceError::Abandoned),
            };
        }
    };
    channel.issue_pending();
    let finished = submitted.finish().await;
    match (finished.result, finished.buffers) {
        (Ok(()), Some((dst, src))) => Attempt::Done(Copied {
            dst,
            src,
            via: chan.clone(),
        }),
        (Err(_), Some((dst, src))) => Attempt::Elsewhere(dst, src),
        (result, None) => Attempt::Lost(result.err().unwrap_or(FenceError::Abandoned)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use hal::dma::Memory;
    use hal::host::block_on;
    use hal::time::Duration;
    use std::sync::Arc;

    fn buffers(len: usize) -> (Destination, Source) {
        let mut memory = Memory::new(len).unwrap();
        memory.fill(0x5a);
        let src = Source::new(Arc::new(memory), 0..len).unwrap();
        (
            Destination::new(Memory::new(len).unwrap(), 0..len).unwrap(),
            src,
        )
    }

    fn copied(registry: &Registry, len: usize) -> Copied {
        let (dst, src) = buffers(len);
        block_on(registry.copy(dst, src)).unwrap()
    }

    #[test]
    fn without_engines_the_cpu_copies() {
        let copied = copied(&Registry::new(), 5000);
        assert_eq!(copied.via.name(), "cpu");
        assert!(copied.dst.into_memory().iter().all(|&byte| byte == 0x5a));
    }

    #[test]
    fn an_engine_copies_where_it_can() {
        let registry = Registry::new();
        let mock = Mock::eager(2);
        registry.register(mock::info(), vec![mock]).unwrap();
        assert_eq!(copied(&registry, 100).via.name(), "dma0chan0");
        assert_eq!(
            copied(&registry, 2 << 20).via.name(),
            "cpu",
            "longer than it can"
        );
        let _exclusive = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        assert_eq!(
            copied(&registry, 100).via.name(),
            "cpu",
            "somebody has it alone"
        );
    }

    #[test]
    fn what_an_engine_fails_the_cpu_does() {
        let registry = Registry::new();
        let mock = Mock::new(2);
        registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let thread = std::thread::spawn(move || {
            while !mock.finish(Err(FenceError::Device(1))) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let copied = copied(&registry, 64);
        assert_eq!(copied.via.name(), "cpu");
        assert_eq!(registry.channels()[0].counters().errors, 1);
        thread.join().unwrap();
    }

    #[test]
    fn unequal_lengths_are_refused() {
        let (dst, _) = buffers(10);
        let (_, src) = buffers(11);
        let error = block_on(Registry::new().copy(dst, src)).unwrap_err();
        assert!(matches!(
            error,
            CopyError::Refused(PrepReason::LengthMismatch, ..)
        ));
    }
}
