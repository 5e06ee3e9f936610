//! Transfers for whoever does not care by what they are made: an engine, another one when that
//! leaves, or the CPU. Linux: async_tx.
//!
//! A client that submits here has no retry of its own. What is in flight when an engine leaves is
//! finished elsewhere by the removal; what is submitted then goes to another channel at once.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use dma_fence::{Fence, FenceError};
use hal::dma::{Destination, Source};
use hal::time::{Duration, Instant};
use spin::Mutex;

use crate::capability::Flags;
use crate::chan::DmaChan;
use crate::channel::Channel;
use crate::client::Client;
use crate::descriptor::Descriptor;
use crate::life::{RequestError, Sharing};
use crate::prep::{PrepError, PrepReason};
use crate::provider::StartError;
use crate::public::{Interest, Transaction};
use crate::raid::{Pq, PqVal, Xor, XorVal};
use crate::registry::Registry;
use crate::submitted::{Finished, Submitted};
use crate::work::{Kind, Memcpy, Memset};

/// How long a transfer may be expected to take for it to be polled for. An interrupt and a change
/// of tasks take about as long.
const POLL_LIMIT: Duration = Duration::from_micros(25);

/// A client's way to transfers.
pub struct AsyncTx {
    registry: Registry,
    /// The channel to use as long as its device stays.
    preferred: Mutex<Option<Arc<Channel>>>,
    /// Taken where no channel is preferred: only while somebody is interested are channels found.
    interest: Mutex<Option<Interest>>,
}

/// An operation under way, and who was given it.
#[derive(Debug)]
pub struct Sent<K: Kind> {
    /// The operation.
    pub submitted: Submitted<K>,
    /// The channel that took it. Its device may leave, and another finish the operation.
    pub via: DmaChan,
}

impl<K: Kind> Sent<K> {
    /// Issues it, and what stands before it on its channel, unless that has been done. Needed where
    /// it has [`Flags::MORE`], and nothing came after it.
    pub fn issue(&self) {
        self.via.inner.issue_pending();
    }
}

/// A copy that was made.
#[derive(Debug)]
pub struct Copied {
    /// The destination, written.
    pub dst: Destination,
    /// The source, unchanged.
    pub src: Source,
    /// By which channel, unless that left meanwhile.
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

impl AsyncTx {
    /// Transfers by `preferred`, shared with others, as long as its device stays; by public channels
    /// where none is preferred, or it has left. `client` is who the provider hears of.
    pub async fn new(
        registry: &Registry,
        client: &Client,
        preferred: Option<&DmaChan>,
    ) -> Result<Self, RequestError> {
        let tx = Self {
            registry: registry.clone(),
            preferred: Mutex::default(),
            interest: Mutex::default(),
        };
        if let Some(chan) = preferred {
            match chan.take(client, Sharing::Routed).await {
                Ok(channel) => {
                    *tx.preferred.lock() = Some(Arc::new(channel));
                    return Ok(tx);
                }
                // The first client of an engine that has vanished while idle finds out.
                Err(RequestError::Gone | RequestError::Start(StartError::Gone)) => {}
                Err(error) => return Err(error),
            }
        }
        tx.become_interested().await;
        Ok(tx)
    }

    /// Gives everything up and waits until channels that nobody else needs have stopped.
    pub async fn close(self) {
        let preferred = self.preferred.lock().take();
        if let Some(channel) = preferred.and_then(Arc::into_inner) {
            channel.release().await;
        }
        let interest = self.interest.lock().take();
        if let Some(interest) = interest {
            interest.put().await;
        }
    }

    /// Has all of `src` copied to `dst`, and issued: by what is there, in the end by the CPU. Waits
    /// where a ring is full.
    pub async fn memcpy(
        &self,
        dst: Destination,
        src: Source,
        flags: Flags,
    ) -> Result<Sent<Memcpy>, PrepError<Memcpy>> {
        self.send((dst, src), |channel, (dst, src)| {
            channel.prep_memcpy(dst, src, flags)
        })
        .await
    }

    /// As [`AsyncTx::memcpy`], of a copy that starts after the work behind `fence` has ended; see
    /// [`Descriptor::after`].
    pub async fn memcpy_after(
        &self,
        dst: Destination,
        src: Source,
        flags: Flags,
        fence: &Fence,
    ) -> Result<Sent<Memcpy>, PrepError<Memcpy>> {
        self.send((dst, src), |channel, (dst, src)| {
            let descriptor = channel.prep_memcpy(dst, src, flags)?;
            Ok(descriptor.after(fence))
        })
        .await
    }

    /// Has `dst` filled with `value`, as [`AsyncTx::memcpy`] copies.
    pub async fn memset(
        &self,
        dst: Destination,
        value: u8,
        flags: Flags,
    ) -> Result<Sent<Memset>, PrepError<Memset>> {
        self.send(dst, |channel, dst| channel.prep_memset(dst, value, flags))
            .await
    }

    /// Has an exclusive or made, as [`AsyncTx::memcpy`] copies.
    pub async fn xor(
        &self,
        xor: impl Into<Box<Xor>>,
        flags: Flags,
    ) -> Result<Sent<Xor>, PrepError<Xor>> {
        self.send(xor.into(), |channel, xor| channel.prep_xor(xor, flags))
            .await
    }

    /// Has an exclusive or checked, as [`AsyncTx::memcpy`] copies.
    pub async fn xor_val(
        &self,
        xor: impl Into<Box<XorVal>>,
        flags: Flags,
    ) -> Result<Sent<XorVal>, PrepError<XorVal>> {
        self.send(xor.into(), |channel, xor| channel.prep_xor_val(xor, flags))
            .await
    }

    /// Has the parities of RAID 6 computed, as [`AsyncTx::memcpy`] copies.
    pub async fn pq(
        &self,
        pq: impl Into<Box<Pq>>,
        flags: Flags,
    ) -> Result<Sent<Pq>, PrepError<Pq>> {
        self.send(pq.into(), |channel, pq| channel.prep_pq(pq, flags))
            .await
    }

    /// Has the parities of RAID 6 checked, as [`AsyncTx::memcpy`] copies.
    pub async fn pq_val(
        &self,
        pq: impl Into<Box<PqVal>>,
        flags: Flags,
    ) -> Result<Sent<PqVal>, PrepError<PqVal>> {
        self.send(pq.into(), |channel, pq| channel.prep_pq_val(pq, flags))
            .await
    }

    /// Copies all of `src` to `dst` and waits for it: polling where it is expected to be short, else
    /// by interrupt. What an engine fails, the CPU does.
    pub async fn copy(&self, dst: Destination, src: Source) -> Result<Copied, CopyError> {
        if let Some(channel) = self.preferred().await {
            return copy(&self.registry, Some(&channel), dst, src).await;
        }
        copy(&self.registry, None, dst, src).await
    }

    async fn send<K: Kind>(
        &self,
        buffers: K::Buffers,
        prep: impl Fn(&Channel, K::Buffers) -> Result<Descriptor<K>, PrepError<K>>,
    ) -> Result<Sent<K>, PrepError<K>> {
        let preferred = self.preferred().await;
        send(&self.registry, preferred.as_deref(), buffers, &prep).await
    }

    /// The preferred channel, which is let go of when its device leaves.
    async fn preferred(&self) -> Option<Arc<Channel>> {
        match self.preferred.lock().as_ref() {
            Some(channel) if !channel.is_leaving() => return Some(channel.clone()),
            Some(_) => {}
            None => return None,
        }
        // First: who gives up meanwhile leaves it to the next transfer.
        self.become_interested().await;
        let left = self.preferred.lock().take();
        drop(left);
        None
    }

    async fn become_interested(&self) {
        let interest = self.registry.get_interest().await;
        let before = self.interest.lock().replace(interest);
        drop(before);
    }
}

impl fmt::Debug for AsyncTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncTx")
            .field(&*self.preferred.lock())
            .finish()
    }
}

/// As [`AsyncTx::copy`], by a public channel where one is found.
pub(crate) async fn copy(
    registry: &Registry,
    preferred: Option<&Channel>,
    dst: Destination,
    src: Source,
) -> Result<Copied, CopyError> {
    let len = dst.len();
    // Decided once: who is not polled for must interrupt.
    let polled = AtomicBool::new(false);
    let prep = |channel: &Channel, (dst, src): (Destination, Source)| {
        let short = channel.chan().pace.expected(len) <= POLL_LIMIT;
        polled.store(short, Ordering::Relaxed);
        let flags = if short {
            Flags::empty()
        } else {
            Flags::INTERRUPT
        };
        channel.prep_memcpy(dst, src, flags)
    };
    let sent = send::<Memcpy>(registry, preferred, (dst, src), &prep).await;
    let Sent { submitted, via } = sent.map_err(refused)?;
    let Finished { buffers, result } = finish(submitted, &via, len, polled.into_inner()).await;
    match (result, buffers) {
        (Ok(()), Some((dst, src))) => Ok(Copied { dst, src, via }),
        (Err(_), Some((dst, src))) => by_cpu(registry, dst, src).await,
        (result, None) => Err(CopyError::Failed(
            result.err().unwrap_or(FenceError::Abandoned),
        )),
    }
}

/// Submits to the first that takes it, and issues: the preferred channel, the one in this CPU's
/// table, the CPU.
async fn send<K: Kind>(
    registry: &Registry,
    preferred: Option<&Channel>,
    mut buffers: K::Buffers,
    prep: &impl Fn(&Channel, K::Buffers) -> Result<Descriptor<K>, PrepError<K>>,
) -> Result<Sent<K>, PrepError<K>> {
    if let Some(channel) = preferred {
        match attempt(channel, buffers, prep).await {
            Ok(sent) => return Ok(sent),
            Err(error) => buffers = error.buffers,
        }
    }
    if let Some(found) = Transaction::of(K::CAPABILITY).and_then(|what| registry.find(what))
        && let Ok(opened) = found.open()
    {
        match attempt(&opened, buffers, prep).await {
            Ok(sent) => return Ok(sent),
            Err(error) => buffers = error.buffers,
        }
    }
    attempt(&Channel::unheld(registry.cpu()), buffers, prep).await
}

async fn attempt<K: Kind>(
    channel: &Channel,
    buffers: K::Buffers,
    prep: &impl Fn(&Channel, K::Buffers) -> Result<Descriptor<K>, PrepError<K>>,
) -> Result<Sent<K>, PrepError<K>> {
    let descriptor = prep(channel, buffers)?;
    let more = descriptor.flags().contains(Flags::MORE);
    match channel.submit_wait(descriptor).await {
        Ok(submitted) => {
            if !more {
                channel.issue_pending();
            }
            let via = (**channel).clone();
            Ok(Sent { submitted, via })
        }
        Err(error) => Err(PrepError {
            reason: PrepReason::Gone,
            buffers: error.descriptor.into_buffers(),
        }),
    }
}

/// Waits for an operation of `len` bytes. One that is `polled` for is so for as long as it may be
/// expected to take.
async fn finish<K: Kind>(
    submitted: Submitted<K>,
    via: &DmaChan,
    len: usize,
    polled: bool,
) -> Finished<K> {
    let pace = &via.inner.pace;
    let begin = Instant::now();
    if polled {
        let limit = (pace.expected(len) * 2).max(POLL_LIMIT);
        // What takes longer is waited for, and interrupts.
        let _ = via.poll_for(submitted.fence(), limit).await;
    }
    let finished = submitted.finish().await;
    pace.learn(len, begin.elapsed());
    finished
}

async fn by_cpu(registry: &Registry, dst: Destination, src: Source) -> Result<Copied, CopyError> {
    let prep = |channel: &Channel, (dst, src): (Destination, Source)| {
        channel.prep_memcpy(dst, src, Flags::empty())
    };
    let cpu = Channel::unheld(registry.cpu());
    let sent = attempt::<Memcpy>(&cpu, (dst, src), &prep).await;
    let Sent { submitted, via } = sent.map_err(refused)?;
    match submitted.finish().await {
        Finished {
            buffers: Some((dst, src)),
            result: Ok(()),
        } => Ok(Copied { dst, src, via }),
        Finished { result, .. } => Err(CopyError::Failed(
            result.err().unwrap_or(FenceError::Abandoned),
        )),
    }
}

fn refused(error: PrepError<Memcpy>) -> CopyError {
    let (dst, src) = error.buffers;
    CopyError::Refused(error.reason, dst, src)
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
        assert_eq!(
            copied(&registry, 100).via.name(),
            "cpu",
            "nobody is interested"
        );
        let _interest = block_on(registry.get_interest());
        assert_eq!(copied(&registry, 100).via.name(), "dma0chan0");
        assert_eq!(
            copied(&registry, 2 << 20).via.name(),
            "cpu",
            "longer than it can"
        );
    }

    #[test]
    #[cfg(feature = "hotplug")]
    fn a_channel_that_somebody_has_alone_is_not_used() {
        let registry = Registry::new();
        registry
            .register(mock::info(), vec![Mock::eager(2)])
            .unwrap();
        let _interest = block_on(registry.get_interest());
        assert_eq!(copied(&registry, 100).via.name(), "dma0chan0");
        let _exclusive = block_on(registry.request(crate::Capabilities::MEMCPY)).unwrap();
        assert_eq!(
            copied(&registry, 100).via.name(),
            "cpu",
            "somebody has it alone"
        );
    }

    #[test]
    #[cfg(feature = "hotplug")]
    fn a_transfer_that_is_given_up_while_its_channel_leaves_is_not_the_last_by_an_engine() {
        let registry = Registry::new();
        let leaving = registry
            .register(mock::info(), vec![Mock::eager(2)])
            .unwrap();
        registry
            .register(mock::info(), vec![Mock::eager(2)])
            .unwrap();
        let chan = registry.channel("dma0chan0").unwrap();
        let client = Client::new("tx");
        let tx = block_on(AsyncTx::new(&registry, &client, Some(&chan))).unwrap();
        block_on(registry.unregister(&leaving, Duration::from_millis(5)));
        let (dst, src) = buffers(64);
        let mut given_up = Box::pin(tx.copy(dst, src));
        let mut context = core::task::Context::from_waker(core::task::Waker::noop());
        // While the other engine's channels start, unless they are very quick.
        let _ = given_up.as_mut().poll(&mut context);
        drop(given_up);
        let (dst, src) = buffers(64);
        assert_eq!(block_on(tx.copy(dst, src)).unwrap().via.name(), "dma1chan0");
    }

    #[test]
    fn what_an_engine_fails_the_cpu_does() {
        let registry = Registry::new();
        let mock = Mock::new(2);
        registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let _interest = block_on(registry.get_interest());
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

    /// What is in the mock's ring, and whether it interrupts.
    fn ring(mock: &Mock) -> std::vec::Vec<(usize, bool)> {
        let state = mock.state.lock();
        let each = state.ring.iter();
        each.map(|op| (op.work().len(), op.flags().contains(Flags::INTERRUPT)))
            .collect()
    }

    /// Finishes what is issued once the ring holds what it should.
    fn finish_at(mock: Arc<Mock>, wanted: &'static [(usize, bool)]) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            while ring(&mock) != wanted || mock.state.lock().issued < wanted.len() {
                std::thread::sleep(Duration::from_millis(1));
            }
            while mock.finish(Ok(())) {}
        })
    }

    #[test]
    fn short_copies_are_polled_for_and_late_ones_interrupt() {
        let registry = Registry::new();
        let mock = Mock::new(4);
        mock.state.lock().silent = true;
        registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let _interest = block_on(registry.get_interest());
        let chan = registry.channels()[0].clone();
        // Expected to be short, it is polled for; when it is late, an interrupt follows it.
        let late = finish_at(mock.clone(), &[(100, false), (0, true)]);
        assert_eq!(copied(&registry, 100).via.name(), "dma0chan0");
        late.join().unwrap();
        let expected = chan.inner.pace.expected(100);
        assert!(expected > POLL_LIMIT, "{expected:?}");
        // The next one is expected to be late, and interrupts itself.
        let long = finish_at(mock.clone(), &[(100, true)]);
        copied(&registry, 100);
        long.join().unwrap();
        assert_eq!(chan.counters().copies, 2);
    }

    #[test]
    fn a_copy_that_is_short_asks_for_no_interrupt() {
        let registry = Registry::new();
        let mock = Mock::eager(4);
        registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let _interest = block_on(registry.get_interest());
        copied(&registry, 100);
        assert_eq!(
            mock.state.lock().doorbells,
            1,
            "no interrupt was sent after it"
        );
    }

    #[test]
    fn transfers_go_elsewhere_when_their_channel_leaves() {
        let registry = Registry::new();
        let first = registry
            .register(mock::info(), vec![Mock::eager(4)])
            .unwrap();
        registry
            .register(mock::info(), vec![Mock::eager(4)])
            .unwrap();
        let preferred = first.channels().next().unwrap();
        let client = Client::new("test");
        let tx = block_on(AsyncTx::new(&registry, &client, Some(&preferred))).unwrap();
        let via = |tx: &AsyncTx| {
            let (dst, src) = buffers(100);
            let copied = block_on(tx.copy(dst, src)).unwrap();
            assert!(copied.dst.into_memory().iter().all(|&byte| byte == 0x5a));
            std::string::String::from(copied.via.name())
        };
        assert_eq!(via(&tx), "dma0chan0");
        let removal = block_on(registry.unregister(&first, Duration::from_secs(20)));
        assert_eq!((removal.revoked, removal.lost), (0, 0));
        assert!(
            removal.drained < Duration::from_secs(5),
            "it need not be waited for"
        );
        assert_eq!(via(&tx), "dma1chan0");
        let second = registry.devices()[0].clone();
        block_on(registry.unregister(&second, Duration::from_secs(20)));
        assert_eq!(via(&tx), "cpu");
        block_on(tx.close());
        assert_eq!(registry.interest(), 0);
    }

    #[test]
    fn transfers_go_elsewhere_when_their_channel_turns_out_to_be_gone() {
        let registry = Registry::new();
        let gone = Mock::eager(2);
        gone.state.lock().refuse_start = Some(StartError::Gone);
        for mock in [gone, Mock::eager(2)] {
            registry.register(mock::info(), vec![mock]).unwrap();
        }
        let preferred = registry.channel("dma0chan0").unwrap();
        let client = Client::new("first");
        let tx = block_on(AsyncTx::new(&registry, &client, Some(&preferred))).unwrap();
        let (dst, src) = buffers(64);
        let copied = block_on(tx.copy(dst, src)).unwrap();
        assert_eq!(copied.via.name(), "dma1chan0");
        block_on(tx.close());
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
