//! Which devices there are.

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::time::{Duration, Instant};
use litemap::LiteMap;
use spin::{Mutex, Once};

use crate::async_tx::{self, Copied, CopyError};
use crate::capability::Capabilities;
use crate::chan::{Chan, DmaChan};
use crate::device::{DeviceInfo, DmaDevice, Phase};
use crate::life;
use crate::operation::Operation;
use crate::provider::ChannelOps;
use crate::public::{Public, Tables, Withdrawn};
use crate::request::Names;
use crate::wait::WaitList;
use crate::{cpu, failover};

/// How long who has waited for the last operations may take to put its reference. Under Miri, whose
/// clock goes by what it executes, a task takes longer to wake.
const LAST_PUT: Duration = Duration::from_millis(if cfg!(miri) { 2000 } else { 20 });

/// The devices of a machine. Cloning it gives another handle to the same.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    /// Those of `public`, nearer to a find.
    pub(crate) tables: Tables,
    pub(crate) public: Arc<Public>,
}

struct Inner {
    devices: Mutex<LiteMap<u32, DmaDevice>>,
    cpu: Arc<Chan>,
    names: Names,
    /// Devices registered so far, and who waits for more.
    arrivals: AtomicU64,
    arrived: WaitList,
}

/// The machine's registry.
pub fn registry() -> &'static Registry {
    static REGISTRY: Once<Registry> = Once::new();
    REGISTRY.call_once(Registry::new)
}

/// Why a device was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// It has no channels.
    NoChannels,
    /// It can do nothing.
    NoCapabilities,
    /// One of its channels does not take this work.
    NoPrep(Capabilities),
    /// Its operations would move no bytes.
    NoTransferSize,
    /// It has exclusive or, but takes less than two sources.
    XorSources,
    /// It has parities, but takes less than two sources.
    PqSources,
    /// It needs an alignment of more than a page.
    Alignment,
    /// It has no address lines, or more than 64.
    AddressBits,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPrep(caps) => {
                return write!(f, "a DMA device whose channels do not prepare {caps}");
            }
            Self::NoChannels => "a DMA device without channels",
            Self::NoCapabilities => "a DMA device without capabilities",
            Self::NoTransferSize => "a DMA device whose operations move no bytes",
            Self::XorSources => "a DMA device whose exclusive or takes less than two sources",
            Self::PqSources => "a DMA device whose parities take less than two sources",
            Self::Alignment => "a DMA device that needs more than page alignment",
            Self::AddressBits => "a DMA device without address lines",
        })
    }
}

/// A device was not unloaded: clients need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse {
    /// How many clients do.
    pub clients: usize,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the device is in use by {} clients", self.clients)
    }
}

/// How a removal went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Operations that were in flight when it began.
    pub in_flight: usize,
    /// Those of them that another device did instead.
    pub failed_over: usize,
    /// Those that the CPU did instead.
    pub by_cpu: usize,
    /// Those that ended with an error, or hold their buffers for good.
    pub lost: usize,
    /// References to its public channels that outlived the removal.
    pub leaked: usize,
    /// What it took until all references were put, or were not waited for any more.
    pub drained: Duration,
    /// Clients whose channels were revoked: they were told by [`DmaChan::removed`] and held on to
    /// them beyond the deadline. They meet [`crate::SubmitReason::Gone`].
    pub revoked: usize,
}

/// A device that is as good as gone: its channels have stopped, nobody can use them, and what they
/// had not finished waits for [`Quiesced::detach`].
#[must_use = "the operations that were in flight wait to be finished"]
pub struct Quiesced {
    registry: Registry,
    device: DmaDevice,
    withdrawn: Withdrawn,
    unfinished: Vec<Operation>,
    /// Operations that had failed without a client's asking when nothing could enter any more.
    failures: u64,
    removal: Removal,
}

impl Quiesced {
    /// Has other devices, or the CPU, finish what the device has left. Call it when the device can
    /// reach no memory any more. Dropping the future abandons what is left.
    pub async fn detach(self) -> Removal {
        let Self {
            registry,
            device,
            mut withdrawn,
            unfinished,
            failures,
            mut removal,
        } = self;
        let outcome = failover::run(&registry, unfinished).await;
        removal.failed_over = outcome.failed_over;
        removal.by_cpu = outcome.by_cpu;
        let chans = device.chans();
        let stuck: usize = chans.iter().map(|chan| chan.in_flight()).sum();
        removal.lost = outcome.lost + stuck + (failed(&device) - failures) as usize;
        removal.leaked = withdrawn.drain(LAST_PUT, || {}).await.leaked;
        device.enter(Phase::Detached);
        removal
    }
}

impl fmt::Debug for Quiesced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quiesced({} {:?})", self.device, self.removal)
    }
}

/// Operations of the device that ended with an error that no client asked for.
fn failed(device: &DmaDevice) -> u64 {
    device.chans().iter().map(|chan| chan.failures()).sum()
}

impl Registry {
    /// A registry without devices.
    pub fn new() -> Self {
        let tables = Tables::new();
        Self {
            public: Public::new(tables.clone()),
            tables,
            inner: Arc::new(Inner {
                devices: Mutex::default(),
                cpu: Arc::new(cpu::channel()),
                names: Names::default(),
                arrivals: AtomicU64::new(0),
                arrived: WaitList::default(),
            }),
        }
    }

    /// Lists a device with all its channels at once, under the lowest free number.
    pub fn register(
        &self,
        info: DeviceInfo,
        channels: Vec<Arc<dyn ChannelOps>>,
    ) -> Result<DmaDevice, RegisterError> {
        check(&info, &channels)?;
        let info = Arc::new(info);
        let mut devices = self.inner.devices.lock();
        // As many numbers are taken as there are devices, so one of these is free.
        let number = (0..=devices.len() as u32)
            .find(|number| !devices.contains_key(number))
            .unwrap_or(devices.len() as u32);
        let chans = channels
            .into_iter()
            .enumerate()
            .map(|(index, ops)| {
                let name = format!("dma{number}chan{index}");
                Chan::new(name, info.clone(), ops).listed()
            })
            .collect();
        let device = DmaDevice::new(number, info, chans);
        for chan in device.chans() {
            chan.registry.call_once(|| self.downgrade());
        }
        devices.insert(number, device.clone());
        self.public.add(&device);
        drop(devices);
        self.inner.arrivals.fetch_add(1, Ordering::Release);
        self.inner.arrived.wake_all();
        Ok(device)
    }

    /// Unregisters a device that nobody needs: no client is interested in public channels, if it
    /// has such, and none holds one of its channels. As [`Registry::unregister`] for a driver that
    /// is asked to leave.
    pub async fn unload(&self, device: &DmaDevice, limit: Duration) -> Result<Removal, InUse> {
        let withdrawn = self.public.withdraw_idle(device);
        let withdrawn = withdrawn.map_err(|clients| InUse { clients })?;
        Ok(self.stop(device, withdrawn, limit).await.detach().await)
    }

    /// Removes a device: [`Registry::quiesce`] and [`Quiesced::detach`] in one. Run it in a task of
    /// its own: dropping the future leaves the device closed but running.
    pub async fn unregister(&self, device: &DmaDevice, limit: Duration) -> Removal {
        self.quiesce(device, limit).await.detach().await
    }

    /// Takes a device out of use. Its public channels are not found any more; who holds a channel
    /// for itself is told ([`DmaChan::removed`]). Both may go on for at most `limit`; then their
    /// channels are revoked. The channels stop where they are and free their resources: what is in
    /// flight is finished elsewhere, so that a full ring delays a removal no more than an empty one.
    ///
    /// Removal cannot be refused. [`DmaDevice::hurry`] has it wait for nobody any more.
    pub async fn quiesce(&self, device: &DmaDevice, limit: Duration) -> Quiesced {
        let withdrawn = self.public.withdraw(device);
        self.stop(device, withdrawn, limit).await
    }

    async fn stop(&self, device: &DmaDevice, withdrawn: Withdrawn, limit: Duration) -> Quiesced {
        let deadline = Instant::now() + limit;
        let mut withdrawn = withdrawn;
        self.delist(device);
        device.enter(Phase::Draining);
        let chans = device.chans();
        for chan in chans {
            chan.life.depart();
            chan.notice.give(deadline);
        }
        let poll = || chans.iter().for_each(|chan| chan.ops.poll());
        let begin = Instant::now();
        let drain = withdrawn.drain(limit, poll);
        let drained = device.unless_hurried(drain).await;
        let drained = drained.map_or_else(|| begin.elapsed(), |drained| drained.took);
        for chan in chans {
            let _ = device.unless_hurried(chan.life.released(deadline)).await;
        }
        chans.iter().for_each(|chan| chan.close());
        let failures = failed(device);
        let removal = Removal {
            in_flight: chans.iter().map(|chan| chan.in_flight()).sum(),
            revoked: chans.iter().map(|chan| chan.life.holders()).sum(),
            drained,
            ..Removal::default()
        };
        if removal.revoked > 0 {
            log::warn!("{device}: revoked from {} clients", removal.revoked);
        }
        chans.iter().for_each(life::remove);
        let mut unfinished = Vec::new();
        for chan in chans {
            life::settled(chan).await;
            unfinished.append(&mut chan.unfinished.lock());
            unfinished.extend(chan.ops.reclaim());
        }
        // Now that the channels have stopped for good, letting go stops nothing.
        withdrawn.holds.clear();
        device.enter(Phase::Quiet);
        Quiesced {
            registry: self.clone(),
            device: device.clone(),
            withdrawn,
            unfinished,
            failures,
            removal,
        }
    }

    /// Takes a device off the list. Its number is free then.
    pub(crate) fn delist(&self, device: &DmaDevice) {
        let mut devices = self.inner.devices.lock();
        let number = device.number();
        if devices.get(&number).is_some_and(|listed| listed.is(device)) {
            devices.remove(&number);
        }
    }

    /// Takes the device of a channel off the list: it says that it is gone. Its driver removes it
    /// when it finds out.
    pub(crate) fn delist_of(&self, chan: &Arc<Chan>) {
        let of = |device: &DmaDevice| device.chans().iter().any(|other| Arc::ptr_eq(other, chan));
        if let Some(device) = self.devices().into_iter().find(of) {
            log::error!("{device}: gone, not used any more");
            self.delist(&device);
        }
    }

    fn downgrade(&self) -> WeakRegistry {
        WeakRegistry {
            inner: Arc::downgrade(&self.inner),
            tables: self.tables.clone(),
            public: Arc::downgrade(&self.public),
        }
    }

    /// The devices, by number.
    pub fn devices(&self) -> Vec<DmaDevice> {
        self.inner.devices.lock().values().cloned().collect()
    }

    /// The channels of all devices, in order. The CPU is not among them.
    pub fn channels(&self) -> Vec<DmaChan> {
        let devices = self.devices();
        devices.iter().flat_map(DmaDevice::channels).collect()
    }

    /// The channel that the CPU works itself.
    pub fn cpu(&self) -> DmaChan {
        DmaChan {
            inner: self.inner.cpu.clone(),
        }
    }

    /// The channel of that name: `dma0chan0`, …, or `cpu`.
    pub fn channel(&self, name: &str) -> Option<DmaChan> {
        if name == self.inner.cpu.name {
            return Some(self.cpu());
        }
        self.channels().into_iter().find(|chan| chan.name() == name)
    }

    /// Starts everything that was submitted to public channels and not issued.
    pub fn issue_pending_all(&self) {
        for chan in self.channels() {
            if !chan.info().capabilities.contains(Capabilities::PRIVATE) {
                chan.inner.issue_pending();
            }
        }
    }

    /// How many devices have been registered so far.
    pub fn arrivals(&self) -> u64 {
        self.inner.arrivals.load(Ordering::Acquire)
    }

    /// Waits until more than `seen` devices have been registered.
    pub async fn arrival_after(&self, seen: u64) {
        let more = || (self.arrivals() > seen).then_some(());
        self.inner.arrived.until(more).await;
    }

    pub(crate) fn names(&self) -> &Names {
        &self.inner.names
    }

    /// Copies all of `src` to `dst`, by this CPU's public channel, else by the CPU: see
    /// [`crate::AsyncTx::copy`]. Channels are found only while somebody is interested.
    pub async fn copy(
        &self,
        dst: hal::dma::Destination,
        src: hal::dma::Source,
    ) -> Result<Copied, CopyError> {
        async_tx::copy(self, None, dst, src).await
    }
}

/// A channel's way back to its registry.
pub(crate) struct WeakRegistry {
    inner: Weak<Inner>,
    tables: Tables,
    public: Weak<Public>,
}

impl WeakRegistry {
    pub(crate) fn upgrade(&self) -> Option<Registry> {
        Some(Registry {
            inner: self.inner.upgrade()?,
            tables: self.tables.clone(),
            public: self.public.upgrade()?,
        })
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.devices()).finish()
    }
}

/// Whether `name` could be a channel's: for error messages.
pub(crate) fn names(registry: &Registry) -> String {
    let mut names = String::new();
    for chan in registry.channels() {
        names.push_str(chan.name());
        names.push(' ');
    }
    names.push_str("cpu");
    names
}

fn check(info: &DeviceInfo, channels: &[Arc<dyn ChannelOps>]) -> Result<(), RegisterError> {
    let work = info.capabilities.difference(Capabilities::PRIVATE);
    let xor = Capabilities::XOR | Capabilities::XOR_VAL;
    let pq = Capabilities::PQ | Capabilities::PQ_VAL;
    if channels.is_empty() {
        return Err(RegisterError::NoChannels);
    }
    if work.is_empty() {
        return Err(RegisterError::NoCapabilities);
    }
    let mut missing = channels.iter().map(|ops| work.difference(ops.kinds()));
    if let Some(missing) = missing.find(|missing| !missing.is_empty()) {
        return Err(RegisterError::NoPrep(missing));
    }
    if info.max_transfer == 0 {
        return Err(RegisterError::NoTransferSize);
    }
    if work.intersects(xor) && info.max_xor < 2 {
        return Err(RegisterError::XorSources);
    }
    if work.intersects(pq) && info.max_pq < 2 {
        return Err(RegisterError::PqSources);
    }
    if info.copy_align > 12 {
        return Err(RegisterError::Alignment);
    }
    if info.address_bits == 0 || info.address_bits > 64 {
        return Err(RegisterError::AddressBits);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use crate::{Channel, RequestError};
    use crate::{Flags, SubmitReason};
    use dma_fence::FenceError;
    use hal::dma::{Destination, Memory, Source};
    use hal::host::block_on;
    use std::string::ToString;
    use std::vec;

    const SOON: Duration = Duration::from_millis(20);

    fn copy(channel: &Channel) -> crate::Submitted<crate::Memcpy> {
        let mut src = Memory::new(64).unwrap();
        src.fill(7);
        let src = Source::new(Arc::new(src), 0..64).unwrap();
        let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        channel.submit(descriptor).unwrap()
    }

    #[test]
    fn nonsense_is_refused() {
        let registry = Registry::new();
        let refused = |change: fn(&mut DeviceInfo)| {
            let mut info = mock::info();
            change(&mut info);
            registry.register(info, vec![Mock::new(1)]).unwrap_err()
        };
        assert_eq!(
            registry.register(mock::info(), vec![]).unwrap_err(),
            RegisterError::NoChannels
        );
        assert_eq!(
            refused(|info| info.max_transfer = 0),
            RegisterError::NoTransferSize
        );
        assert_eq!(
            refused(|info| info.copy_align = 13),
            RegisterError::Alignment
        );
        assert_eq!(
            refused(|info| info.address_bits = 0),
            RegisterError::AddressBits
        );
        assert_eq!(
            refused(|info| info.address_bits = 65),
            RegisterError::AddressBits
        );
        assert_eq!(
            refused(|info| info.capabilities = Capabilities::PRIVATE),
            RegisterError::NoCapabilities
        );
        assert_eq!(
            refused(|info| {
                info.capabilities |= Capabilities::XOR;
                info.max_xor = 1;
            }),
            RegisterError::XorSources
        );
        assert_eq!(
            refused(|info| {
                info.capabilities |= Capabilities::PQ_VAL;
                info.max_pq = 1;
            }),
            RegisterError::PqSources
        );
        assert!(registry.devices().is_empty());
        assert_eq!(registry.rebuilds(), 0, "the tables never heard of it");
        let device = registry.register(mock::info(), vec![Mock::new(1)]).unwrap();
        assert_eq!(device.number(), 0, "no number was spent");
    }

    #[test]
    fn a_capability_without_its_prep_function_is_refused() {
        let registry = Registry::new();
        let less = Mock::new(1);
        less.state.lock().refused = Capabilities::INTERRUPT;
        let error = registry
            .register(mock::info(), vec![Mock::new(1), less.clone()])
            .unwrap_err();
        assert_eq!(error, RegisterError::NoPrep(Capabilities::INTERRUPT));
        assert_eq!(
            error.to_string(),
            "a DMA device whose channels do not prepare interrupt"
        );
        assert!(registry.devices().is_empty());
        assert_eq!(Arc::strong_count(&less), 1, "nobody holds the channel");
        let info = DeviceInfo {
            capabilities: Capabilities::MEMSET | Capabilities::PRIVATE,
            ..mock::info()
        };
        assert!(registry.register(info, vec![less]).is_ok(), "less is fine");
    }

    #[test]
    fn devices_and_channels_are_numbered() {
        let registry = Registry::new();
        let two: Vec<Arc<dyn ChannelOps>> = vec![Mock::new(1), Mock::new(1)];
        let first = registry.register(mock::info(), two).unwrap();
        registry.register(mock::info(), vec![Mock::new(1)]).unwrap();
        let names = |registry: &Registry| {
            let chans = registry.channels();
            chans
                .iter()
                .map(|chan| chan.name().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&registry), ["dma0chan0", "dma0chan1", "dma1chan0"]);
        assert!(registry.channel("dma1chan0").is_some());
        assert!(registry.channel("dma1chan1").is_none());
        assert_eq!(registry.channel("cpu").unwrap().name(), "cpu");
        block_on(registry.unregister(&first, SOON));
        assert_eq!(names(&registry), ["dma1chan0"]);
        registry.register(mock::info(), vec![Mock::new(1)]).unwrap();
        assert_eq!(names(&registry), ["dma0chan0", "dma1chan0"]);
        let shown = registry.channel("dma0chan0").unwrap().to_string();
        assert_eq!(
            shown,
            "dma0chan0 clients=0 refs=0 copies=0 bytes=0 errors=0"
        );
    }

    #[test]
    fn a_removal_drains_what_is_in_flight() {
        let registry = Registry::new();
        let mock = Mock::eager(4);
        let device = registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        let submitted = copy(&channel);
        let removal = block_on(registry.unregister(&device, SOON));
        assert_eq!(
            (removal.in_flight, removal.failed_over, removal.lost),
            (1, 0, 0)
        );
        assert_eq!(removal.revoked, 1, "the client still has its handle");
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
        assert!(channel.is_gone());
        assert_eq!(
            channel.prep_interrupt(Flags::empty()).unwrap_err().reason,
            crate::PrepReason::Gone
        );
        assert_eq!(mock.state.lock().stops, 1, "stopped although held");
        drop(channel);
        assert_eq!(
            block_on(device.channels().next().unwrap().request()).unwrap_err(),
            RequestError::Gone
        );
    }

    #[test]
    fn what_does_not_drain_is_done_by_the_cpu() {
        let registry = Registry::new();
        let mock = Mock::new(4);
        let device = registry.register(mock::info(), vec![mock.clone()]).unwrap();
        let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        let submitted = copy(&channel);
        let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let late = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        let removal = block_on(registry.unregister(&device, SOON));
        let expected = Removal {
            in_flight: 1,
            by_cpu: 1,
            revoked: 1,
            ..Removal::default()
        };
        assert_eq!(removal, expected);
        let finished = block_on(submitted.finish());
        assert_eq!(finished.result, Ok(()));
        assert!(
            finished
                .buffers
                .unwrap()
                .0
                .into_memory()
                .iter()
                .all(|&byte| byte == 7)
        );
        assert_eq!(registry.cpu().counters().copies, 1);
        let error = channel.submit(late).unwrap_err();
        assert_eq!(error.reason, SubmitReason::Gone);
        drop(error.descriptor.into_buffers());
    }

    #[test]
    fn what_does_not_drain_is_done_in_order_by_another_device() {
        let registry = Registry::new();
        let stuck = Mock::new(8);
        stuck.state.lock().stuck = true;
        let device = registry.register(mock::info(), vec![stuck]).unwrap();
        let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        let other = Mock::eager(1);
        registry
            .register(mock::info(), vec![other.clone()])
            .unwrap();
        let submitted: Vec<_> = (0..5).map(|_| copy(&channel)).collect();
        channel.issue_pending();
        let removal = block_on(registry.unregister(&device, SOON));
        let expected = Removal {
            in_flight: 5,
            failed_over: 5,
            revoked: 1,
            ..Removal::default()
        };
        assert_eq!(removal, expected);
        for submitted in submitted {
            let finished = block_on(submitted.finish());
            assert_eq!(finished.result, Ok(()));
            assert!(
                finished
                    .buffers
                    .unwrap()
                    .0
                    .into_memory()
                    .iter()
                    .all(|&byte| byte == 7)
            );
        }
        assert_eq!(registry.channel("dma1chan0").unwrap().counters().copies, 5);
        assert_eq!(other.state.lock().stops, 1, "let go again");
    }

    #[test]
    fn a_device_that_needs_more_alignment_is_passed_over() {
        let registry = Registry::new();
        let device = registry.register(mock::info(), vec![Mock::new(4)]).unwrap();
        let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        let coarse = DeviceInfo {
            copy_align: 7,
            ..mock::info()
        };
        registry.register(coarse, vec![Mock::eager(1)]).unwrap();
        let submitted = copy(&channel);
        let removal = block_on(registry.unregister(&device, SOON));
        assert_eq!(
            (removal.failed_over, removal.by_cpu, removal.lost),
            (0, 1, 0)
        );
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
    }

    #[test]
    fn an_operation_that_no_device_can_do_right_is_counted_as_lost() {
        let registry = Registry::new();
        let device = registry.register(mock::info(), vec![Mock::new(4)]).unwrap();
        let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        let failing = Mock::eager(1);
        failing.state.lock().fail = true;
        registry.register(mock::info(), vec![failing]).unwrap();
        let submitted = copy(&channel);
        let removal = block_on(registry.unregister(&device, SOON));
        assert_eq!(
            (removal.failed_over, removal.by_cpu, removal.lost),
            (0, 0, 1)
        );
        assert_eq!(
            block_on(submitted.finish()).result,
            Err(FenceError::Device(1))
        );
    }

    #[test]
    fn requests_find_a_free_channel_that_can() {
        let registry = Registry::new();
        assert_eq!(
            block_on(registry.request(Capabilities::MEMCPY)).unwrap_err(),
            RequestError::NoChannel
        );
        let two: Vec<Arc<dyn ChannelOps>> = vec![Mock::new(1), Mock::new(1)];
        registry.register(mock::info(), two).unwrap();
        let first = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        let second = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
        assert_ne!(first.name(), second.name());
        assert_eq!(
            block_on(registry.request(Capabilities::MEMCPY)).unwrap_err(),
            RequestError::Busy
        );
        assert_eq!(
            block_on(registry.request(Capabilities::XOR)).unwrap_err(),
            RequestError::NoChannel
        );
    }
}
