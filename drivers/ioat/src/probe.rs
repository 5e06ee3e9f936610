//! From a PCI function to a registered engine, and back.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};

use dma_fence::{Context, Fence, Signaler};
use dmaengine::{Capabilities, ChannelOps, DeviceInfo, DmaDevice, Quiesced, Registry, Removal};
use hal::irq::{IrqKind, IrqLine};
use hal::pci::{Config, Function, Identity};
use hal::time::Duration;
use ioat_spec::pci::{BAR, ERRATA, PARTS, Part, Quirks, VENDOR_INTEL};
use ioat_spec::{CbVer, DmaCap, IntrCtrl, channel, descriptor, device};

use crate::chan::Chan;
use crate::device::Device;
use crate::error::ProbeError;
use crate::hardware;
use crate::options::{Interrupt, Options};

/// PCI Express capability: its ID, Device Control, and the bit that lets the function's writes
/// pass each other. PCI Express Base 7.5.3.4.
const CAP_EXPRESS: u8 = 0x10;
const DEVCTL: usize = 0x08;
const DEVCTL_RELAXED_ORDERING: u16 = 1 << 4;

/// The engine that a PCI identity names, for people; `None` where it is none that this driver
/// takes.
pub fn matches(identity: &Identity) -> Option<&'static str> {
    part(identity).map(|part| part.name)
}

fn part(identity: &Identity) -> Option<Part> {
    let ours = |part: &&Part| identity.vendor == VENDOR_INTEL && identity.device == part.device;
    PARTS.iter().find(ours).copied()
}

/// A probed engine. Drop it and nobody can remove it any more: keep it until [`Engine::remove`].
#[must_use = "an engine that is dropped cannot be removed"]
pub struct Engine {
    pub(crate) device: Arc<Device>,
    channels: Vec<Arc<Chan>>,
    registered: DmaDevice,
    registry: Registry,
    /// The task that serves an interrupt shared by all channels.
    dispatcher: Option<Dispatcher>,
    interrupt: Option<IrqKind>,
}

struct Dispatcher {
    stop: Signaler,
    stopped: Fence,
}

/// Takes an engine and registers its channels, with the default options.
pub async fn probe(function: Function, registry: &Registry) -> Result<Engine, ProbeError> {
    probe_with(function, registry, Options::default()).await
}

/// Takes an engine and registers its channels. The function is left alone, without bus mastering,
/// where that fails.
pub async fn probe_with(
    function: Function,
    registry: &Registry,
    options: Options,
) -> Result<Engine, ProbeError> {
    let device = Arc::new(identify(function, options)?);
    // Whoever had the engine before may have left it running. It comes to rest before it may
    // reach memory again.
    for index in 0..device.channels {
        hardware::reset(&device, &device.regs(index))
            .await
            .map_err(|error| ProbeError::Reset {
                channel: index,
                error,
            })?;
    }
    forbid_relaxed_ordering(&device.config);
    let (interrupt, lines) = bind(&device)?;
    device.set_interrupts(control(interrupt));
    device.config.set_bus_master(true);
    let shared = interrupt.is_some_and(|kind| kind != IrqKind::MsiX);
    let mut lines = lines.into_iter();
    let mut common = if shared { lines.next() } else { None };
    device
        .interrupting
        .store(interrupt.is_some(), Ordering::Relaxed);
    let channels: Vec<_> = (0..device.channels)
        .map(|index| Chan::new(device.clone(), index, lines.next()))
        .collect();
    let ops = channels
        .iter()
        .map(|chan| chan.clone() as Arc<dyn ChannelOps>)
        .collect();
    let registered = registry.register(info(&device), ops).map_err(|error| {
        device.set_interrupts(IntrCtrl::empty());
        device.config.set_bus_master(false);
        ProbeError::Register(error)
    })?;
    let dispatcher = common.take().map(|line| dispatch(line, &channels));
    Ok(Engine {
        device,
        channels,
        registered,
        registry: registry.clone(),
        dispatcher,
        interrupt,
    })
}

impl Engine {
    /// The device as the layer knows it.
    pub fn device(&self) -> &DmaDevice {
        &self.registered
    }

    /// Where it sits.
    pub fn address(&self) -> hal::pci::Address {
        self.device.address
    }

    /// What is known to be wrong with parts such as this one, and what is done about it; empty where
    /// nothing is.
    pub fn errata(&self) -> String {
        let mut errata = String::new();
        for (_, words) in ERRATA
            .iter()
            .filter(|one| self.device.part.quirks.contains(one.0))
        {
            errata.push_str(if errata.is_empty() { "" } else { "; " });
            errata.push_str(words);
        }
        errata
    }

    /// How its completions are announced; `None` where they are polled for.
    pub fn interrupt(&self) -> Option<IrqKind> {
        self.interrupt
    }

    /// Whether its registers read all ones.
    pub fn is_gone(&self) -> bool {
        self.device.is_gone()
    }

    /// How often its doorbells have rung for operations.
    pub fn doorbells(&self) -> u64 {
        let of = |chan: &Arc<Chan>| chan.doorbells.load(Ordering::Relaxed);
        self.channels.iter().map(of).sum()
    }

    /// Whether it is of no use any more: gone, or cut off from memory because it did not stop.
    pub fn is_lost(&self) -> bool {
        !self.device.is_usable()
    }

    /// Waits until the engine is lost: its registers read all ones, or it did not stop when it had
    /// to and was cut off from memory. What its channels had waits for [`Engine::remove`] then, for
    /// at most [`Options::lost_limit`]. `false` where it is removed before. For one task at a time.
    pub fn lost(&self) -> impl Future<Output = bool> + Send + use<> {
        let presence = self.device.presence.clone();
        async move { presence.lost().await }
    }

    /// Lets the engine go, whether it still answers or not: its clients have at most `limit` to let
    /// go of it, then the channels stop; interrupts and bus mastering are off, rings, vectors and
    /// timers freed; what was in flight is finished elsewhere. Not cancel-safe: run it in a task of
    /// its own.
    pub async fn remove(self, limit: Duration) -> Removal {
        let Self {
            device,
            channels,
            registered,
            registry,
            dispatcher,
            ..
        } = self;
        device.presence.set_leaving();
        let quiesced = quiesce(&registry, &registered, &device, limit).await;
        device.set_interrupts(IntrCtrl::empty());
        if let Some(Dispatcher { stop, stopped }) = dispatcher {
            stop.signal(Ok(()));
            let _ = stopped.wait().await;
        }
        // From here on it reaches no memory: others may write where it would have. If it does all
        // the same, what it had was marked when its channels stopped.
        device.cut_off().await;
        for chan in channels {
            let line = chan.line.lock().take();
            drop(line);
        }
        quiesced.detach().await
    }
}

/// Takes it out of use. Its clients are waited for no longer than it is there.
async fn quiesce(
    registry: &Registry,
    registered: &DmaDevice,
    device: &Device,
    limit: Duration,
) -> Quiesced {
    let mut quiesced = pin!(registry.quiesce(registered, limit));
    let mut unusable = pin!(device.presence.unusable());
    let mut hurried = false;
    poll_fn(|cx| {
        if !hurried && unusable.as_mut().poll(cx).is_ready() {
            hurried = true;
            registered.hurry();
        }
        quiesced.as_mut().poll(cx)
    })
    .await
}

/// Reads who the engine is, and refuses what cannot be driven.
fn identify(function: Function, options: Options) -> Result<Device, ProbeError> {
    let Function {
        address,
        identity,
        config,
        bars,
        dma,
        interrupts,
        ..
    } = function;
    let Some(part) = part(&identity) else {
        let Identity { vendor, device, .. } = identity;
        return Err(ProbeError::Unknown { vendor, device });
    };
    let Some(Some(region)) = bars.into_iter().nth(BAR) else {
        return Err(ProbeError::NoBar);
    };
    let len = region.len();
    let large_enough = |channels| match channel::base(channels) {
        needed if needed > len => Err(ProbeError::SmallBar { len, needed }),
        _ => Ok(()),
    };
    large_enough(1)?;
    let version = region.read8(device::CBVER);
    let count = region.read8(device::CHANCNT);
    let xfercap = region.read8(device::XFERCAP);
    if version == u8::MAX && count == u8::MAX {
        return Err(ProbeError::Gone);
    }
    if !(CbVer::V3_2.0..=CbVer::V3_4.0).contains(&version) {
        return Err(ProbeError::Version(version));
    }
    let version = CbVer(version);
    match count {
        0 => return Err(ProbeError::NoChannels),
        count if count & !device::CHANCNT_MASK != 0 => {
            return Err(ProbeError::TooManyChannels(count));
        }
        _ => {}
    }
    let channels = usize::from(count);
    large_enough(channels)?;
    let xfercap = xfercap & device::XFERCAP_MASK;
    if xfercap < device::XFERCAP_MIN {
        return Err(ProbeError::TransferCapacity(xfercap));
    }
    if version < CbVer::V3_4 && !config.has_extended() {
        return Err(ProbeError::NoExtendedConfig);
    }
    let bits = address_bits(&part);
    Ok(Device {
        address,
        name: format!("ioat {address}"),
        part,
        version,
        channels,
        xfercap,
        capabilities: DmaCap::from_bits_retain(region.read32(device::DMACAPABILITY)),
        region,
        config,
        dma: dma.with_address_bits(bits),
        interrupts,
        node: function.node,
        options,
        presence: Arc::default(),
        interrupting: AtomicBool::new(false),
    })
}

/// Address lines. Newer parts reach 48 bits for data; C5500 says 40 for all (its datasheet).
fn address_bits(part: &Part) -> u32 {
    if part.quirks.contains(Quirks::ADDRESS_40) {
        40
    } else {
        descriptor::ADDRESS_BITS
    }
}

/// The completion word may not overtake the data it reports.
fn forbid_relaxed_ordering(config: &Config) {
    if let Some(cap) = config.capability(CAP_EXPRESS) {
        let control = config.read16(cap + DEVCTL);
        config.write16(cap + DEVCTL, control & !DEVCTL_RELAXED_ORDERING);
    }
}

/// Binds interrupts: MSI-X with a vector per channel, else one for all.
fn bind(device: &Device) -> Result<(Option<IrqKind>, Vec<IrqLine>), ProbeError> {
    let bind = |kind| {
        let count = match kind {
            IrqKind::MsiX => device.channels,
            IrqKind::Msi | IrqKind::Intx => 1,
        };
        device.interrupts.bind(kind, count)
    };
    match device.options.interrupt {
        Interrupt::Polling => Ok((None, Vec::new())),
        Interrupt::Kind(kind) => match bind(kind) {
            Ok(lines) => Ok((Some(kind), lines)),
            Err(error) => Err(ProbeError::Interrupts(kind, error)),
        },
        Interrupt::Auto => {
            let kinds = [IrqKind::MsiX, IrqKind::Msi, IrqKind::Intx];
            let bound = kinds
                .into_iter()
                .find_map(|kind| Some((kind, bind(kind).ok()?)));
            Ok(match bound {
                Some((kind, lines)) => (Some(kind), lines),
                None => (None, Vec::new()),
            })
        }
    }
}

fn control(interrupt: Option<IrqKind>) -> IntrCtrl {
    match interrupt {
        None => IntrCtrl::empty(),
        Some(IrqKind::MsiX) => IntrCtrl::MASTER_INT_EN | IntrCtrl::MSIX_VECTOR_CONTROL,
        Some(IrqKind::Msi | IrqKind::Intx) => IntrCtrl::MASTER_INT_EN,
    }
}

fn info(device: &Device) -> DeviceInfo {
    let mut capabilities = Capabilities::MEMCPY | Capabilities::INTERRUPT;
    capabilities.set(
        Capabilities::MEMSET,
        device.capabilities.contains(DmaCap::FILL_BLOCK),
    );
    let slots = device.options.slots() as usize - 1;
    DeviceInfo {
        provider: device.name.clone(),
        capabilities,
        copy_align: 0,
        max_transfer: slots.saturating_mul(device.transfer_limit()),
        max_xor: 0,
        max_pq: 0,
        address_bits: address_bits(&device.part) as u8,
        node: device.node,
    }
}

/// Serves an interrupt that all channels share. Which of them interrupted is not asked: that would
/// be a register read, and looking at each one's memory costs less.
fn dispatch(mut line: IrqLine, channels: &[Arc<Chan>]) -> Dispatcher {
    let channels: Vec<_> = channels.iter().map(Arc::downgrade).collect();
    let context = Context::new();
    let (stop, stopping) = context.fence();
    let (done, stopped) = context.fence();
    hal::task::spawn("ioat-irq", async move {
        while line.wait_unless(stopping.wait()).await {
            for chan in channels.iter().filter_map(|chan| chan.upgrade()) {
                // One that starts too: nobody else re-arms it, and it would hold the level of INTx.
                if chan.is_awake() {
                    chan.interrupted();
                }
            }
        }
        drop(line);
        done.signal(Ok(()));
    });
    Dispatcher { stop, stopped }
}

/// Identity and state, a line for the engine and one for each channel.
impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        let interrupt = match self.interrupt {
            None => "polling",
            Some(IrqKind::MsiX) => "msix",
            Some(IrqKind::Msi) => "msi",
            Some(IrqKind::Intx) => "intx",
        };
        write!(
            f,
            "{} {} CBVER={}.{} CHANCNT={} XFERCAP={} DMACAPABILITY={:#x} irq={interrupt}",
            device.name,
            device.part.name,
            device.version.major(),
            device.version.minor(),
            device.channels,
            device.xfercap,
            device.capabilities.bits(),
        )?;
        if !device.is_usable() {
            let state = if device.is_gone() { "gone" } else { "broken" };
            write!(f, " {state}")?;
        }
        for chan in &self.channels {
            let state = if chan.is_running() {
                "running"
            } else {
                "stopped"
            };
            write!(
                f,
                "\n  channel {}: {state} ring={} in_flight={} doorbells={} interrupts={} recoveries={}",
                chan.index,
                device.options.slots(),
                chan.issued() - chan.tail().min(chan.issued()),
                chan.doorbells.load(Ordering::Relaxed),
                chan.interrupts.load(Ordering::Relaxed),
                chan.recoveries.load(Ordering::Relaxed),
            )?;
            let clients = chan.clients.lock().clone();
            for (index, client) in clients.iter().enumerate() {
                let before = if index == 0 { " clients=" } else { "," };
                write!(f, "{before}{client}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name: &String = &self.device.name;
        write!(f, "Engine({name})")
    }
}
