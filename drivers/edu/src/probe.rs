//! From a PCI function to a registered channel, and back.

use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::fmt;
use core::sync::atomic::Ordering;

use dma_fence::{Context, Fence, Signaler};
use dmaengine::{Capabilities, ChannelOps, DeviceInfo, DmaDevice, Registry, Removal};
use hal::irq::{IrqKind, IrqLine};
use hal::pci::{self, Function, Identity};
use hal::time::Duration;

use crate::chan::{Chan, MAX_TRANSFER};
use crate::error::ProbeError;
use crate::hardware::{DEVICE, Hardware, VENDOR, reg};
use crate::options::Options;
use crate::service;

/// What the liveness register is asked to invert.
const PROBE: u32 = 0x1057_5704;

/// The device that a PCI identity names, for people; `None` where it is not this one.
pub fn matches(identity: &Identity) -> Option<&'static str> {
    let ours = (identity.vendor, identity.device) == (VENDOR, DEVICE);
    ours.then_some("QEMU educational device")
}

/// A probed device. Drop it and nobody can remove it any more: keep it until [`Device::remove`].
#[must_use = "a device that is dropped cannot be removed"]
pub struct Device {
    hardware: Arc<Hardware>,
    chan: Arc<Chan>,
    registered: DmaDevice,
    registry: Registry,
    /// The task that answers the interrupt.
    listener: Option<Listener>,
    interrupt: Option<IrqKind>,
}

struct Listener {
    stop: Signaler,
    stopped: Fence,
}

/// Takes a device and registers its channel, with the default options.
pub async fn probe(function: Function, registry: &Registry) -> Result<Device, ProbeError> {
    probe_with(function, registry, Options::default()).await
}

/// Takes a device and registers its channel. The function is left alone, without bus mastering,
/// where that fails.
pub async fn probe_with(
    function: Function,
    registry: &Registry,
    options: Options,
) -> Result<Device, ProbeError> {
    let Function {
        address,
        identity,
        config,
        bars: [region, ..],
        dma,
        interrupts,
        node,
    } = function;
    if matches(&identity).is_none() {
        let Identity { vendor, device, .. } = identity;
        return Err(ProbeError::Unknown { vendor, device });
    }
    let region = region.ok_or(ProbeError::NoBar)?;
    if region.len() < reg::END {
        return Err(ProbeError::SmallBar { len: region.len() });
    }
    let mut hardware = Hardware::new(address, region, config, dma, options);
    hardware.version = identify(&hardware)?;
    // Whoever had the device before may have left a transfer under way.
    service::idle(&hardware)
        .await
        .map_err(|_| match hardware.is_gone() {
            true => ProbeError::Gone,
            false => ProbeError::Busy,
        })?;
    hardware.quiet();
    let kinds: &[IrqKind] = match options.polling {
        true => &[],
        false => &[IrqKind::Msi, IrqKind::Intx],
    };
    let line = kinds
        .iter()
        .find_map(|&kind| interrupts.bind(kind, 1).ok()?.pop());
    let interrupt = line.as_ref().map(IrqLine::kind);
    hardware.interrupting = line.is_some();
    let hardware = Arc::new(hardware);
    let chan = Chan::new(hardware.clone());
    let info = DeviceInfo {
        provider: hardware.name.clone(),
        capabilities: Capabilities::MEMCPY | Capabilities::PRIVATE,
        copy_align: 0,
        max_transfer: MAX_TRANSFER,
        max_xor: 0,
        max_pq: 0,
        address_bits: u8::try_from(options.address_bits).unwrap_or(u8::MAX),
        node,
    };
    let ops: Arc<dyn ChannelOps> = chan.clone();
    let registered = registry
        .register(info, alloc::vec![ops])
        .map_err(ProbeError::Register)?;
    let listener = line.map(|line| listen(line, hardware.clone(), Arc::downgrade(&chan)));
    Ok(Device {
        hardware,
        chan,
        registered,
        registry: registry.clone(),
        listener,
        interrupt,
    })
}

fn identify(hardware: &Hardware) -> Result<(u8, u8), ProbeError> {
    let (major, minor) = hardware.identify().map_err(|value| match value {
        u32::MAX => ProbeError::Gone,
        value => ProbeError::Identification(value),
    })?;
    if major != 1 {
        return Err(ProbeError::Version { major, minor });
    }
    let read = hardware.answer(PROBE);
    if read != !PROBE {
        return Err(ProbeError::NotAlive { wrote: PROBE, read });
    }
    Ok((major, minor))
}

/// Answers the interrupt as long as the device is ours, whether its channel runs or not: others
/// may share the line.
fn listen(mut line: IrqLine, hardware: Arc<Hardware>, chan: Weak<Chan>) -> Listener {
    let context = Context::new();
    let (stop, stopping) = context.fence();
    let (done, stopped) = context.fence();
    hal::task::spawn("edu-irq", async move {
        while line.wait_unless(stopping.wait()).await {
            if hardware.acknowledge() != 0
                && let Some(chan) = chan.upgrade()
            {
                chan.interrupted();
            }
        }
        drop(line);
        done.signal(Ok(()));
    });
    Listener { stop, stopped }
}

impl Device {
    /// The device as the layer knows it.
    pub fn device(&self) -> &DmaDevice {
        &self.registered
    }

    /// Where it sits.
    pub fn address(&self) -> pci::Address {
        self.hardware.address
    }

    /// How the end of a transfer is announced; `None` where it is polled for.
    pub fn interrupt(&self) -> Option<IrqKind> {
        self.interrupt
    }

    /// Whether its registers read all ones.
    pub fn is_gone(&self) -> bool {
        self.hardware.is_gone()
    }

    /// Lets the device go, whether it still answers or not: its clients have at most `limit` to let
    /// go of it, then the channel stops after the transfer in progress, which nothing can stop; bus
    /// mastering is off, the bounce buffer, the vector and timers freed; what was in flight is
    /// finished elsewhere. Not cancel-safe: run it in a task of its own.
    pub async fn remove(self, limit: Duration) -> Removal {
        let quiesced = self.registry.quiesce(&self.registered, limit).await;
        self.hardware.quiet();
        if let Some(Listener { stop, stopped }) = self.listener {
            stop.signal(Ok(()));
            let _ = stopped.wait().await;
        }
        self.hardware.set_bus_master(false);
        quiesced.detach().await
    }
}

/// Identity and state, a line for the device and one for its channel.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hardware, chan) = (&self.hardware, &self.chan);
        let (major, minor) = hardware.version;
        let interrupt = match self.interrupt {
            None => "polling",
            Some(IrqKind::MsiX) => "msix",
            Some(IrqKind::Msi) => "msi",
            Some(IrqKind::Intx) => "intx",
        };
        write!(
            f,
            "{} QEMU educational device version={major}.{minor} bits={} irq={interrupt}",
            hardware.name, hardware.options.address_bits
        )?;
        if hardware.is_gone() {
            f.write_str(" gone")?;
        } else if hardware.is_stalled() {
            f.write_str(" stalled")?;
        }
        let state = if chan.is_running() {
            "running"
        } else {
            "stopped"
        };
        write!(
            f,
            "\n  channel 0: {state} waiting={} transfers={} bounced={} interrupts={} timeouts={}",
            chan.waiting(),
            chan.transfers.load(Ordering::Relaxed),
            chan.bounced.load(Ordering::Relaxed),
            chan.interrupts.load(Ordering::Relaxed),
            chan.timeouts.load(Ordering::Relaxed),
        )
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name: &String = &self.hardware.name;
        write!(f, "Device({name})")
    }
}
