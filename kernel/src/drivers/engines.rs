//! The engines that were found, and which driver has each: `ioat`, or `edu` for the test device
//! of QEMU.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use dmaengine::{DmaDevice, Removal, registry};
use hal::irq::IrqKind;
use hal::pci::{Address, Identity};
use hal::time::Duration;
use ioat::Registers;
use litemap::LiteMap;
use spin::Mutex;

use super::removal;
use crate::iommu;
use crate::pci::bus;
use crate::{stages, task};

/// The drivers, in the order in which they number their devices.
const DRIVERS: [Driver; 2] = [Driver::Ioat, Driver::Edu];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Ioat,
    Edu,
}

impl Driver {
    fn of(identity: &Identity) -> Option<Self> {
        DRIVERS.into_iter().find(|driver| match driver {
            Self::Ioat => ioat::matches(identity).is_some(),
            Self::Edu => edu::matches(identity).is_some(),
        })
    }

    /// How its interrupts are named.
    fn name(self) -> &'static str {
        match self {
            Self::Ioat => "ioat",
            Self::Edu => "edu",
        }
    }
}

/// A device in its driver's hands.
enum Engine {
    Ioat(ioat::Engine),
    Edu(edu::Device),
}

impl Engine {
    fn device(&self) -> &DmaDevice {
        match self {
            Self::Ioat(engine) => engine.device(),
            Self::Edu(device) => device.device(),
        }
    }

    /// What is known to be wrong with it.
    fn errata(&self) -> String {
        match self {
            Self::Ioat(engine) => engine.errata(),
            Self::Edu(_) => String::new(),
        }
    }

    fn interrupt(&self) -> Option<IrqKind> {
        match self {
            Self::Ioat(engine) => engine.interrupt(),
            Self::Edu(device) => device.interrupt(),
        }
    }

    async fn remove(self, limit: Duration) -> Removal {
        match self {
            Self::Ioat(engine) => engine.remove(limit).await,
            Self::Edu(device) => device.remove(limit).await,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ioat(engine) => engine.fmt(f),
            Self::Edu(device) => device.fmt(f),
        }
    }
}

static ENGINES: Mutex<LiteMap<Address, Engine>> = Mutex::new(LiteMap::new());

/// Functions that somebody is about to bind or to remove: nobody else is meanwhile.
static BUSY: Mutex<Vec<Address>> = Mutex::new(Vec::new());

struct Busy(Address);

impl Busy {
    fn new(address: Address) -> Option<Self> {
        let mut busy = BUSY.lock();
        if busy.contains(&address) {
            return None;
        }
        busy.push(address);
        Some(Self(address))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.lock().retain(|busy| *busy != self.0);
    }
}

/// Whether somebody binds or removes the function at `address`.
pub(super) fn is_busy(address: Address) -> bool {
    BUSY.lock().contains(&address)
}

fn driver_at(address: Address) -> Option<Driver> {
    let devices = bus::devices();
    let device = devices
        .iter()
        .find(|device| device.found.address == address)?;
    Driver::of(&device.found.identity)
}

/// Whether there is a driver for such functions.
pub fn takes(identity: &Identity) -> bool {
    Driver::of(identity).is_some()
}

/// Whether there is a driver for the function at `address`.
pub fn knows(address: Address) -> bool {
    driver_at(address).is_some()
}

/// The driver for the function at `address`, by its name.
pub fn name(address: Address) -> Option<&'static str> {
    driver_at(address).map(Driver::name)
}

/// Hands every function that a driver knows to it. One that it does not take is reported.
pub async fn probe_all() {
    for driver in DRIVERS {
        for device in bus::devices() {
            if Driver::of(&device.found.identity) == Some(driver) {
                stages::progress();
                probe(device.found.address).await;
            }
        }
    }
}

async fn probe(address: Address) {
    if let Err(error) = bind(address).await {
        log::error!("{address}: not used: {error}");
    }
}

/// Hands the function at `address` to its driver, where it is free. The error is one line.
pub(super) async fn bind(address: Address) -> Result<(), String> {
    let _busy = Busy::new(address).ok_or("somebody else binds or removes it")?;
    if iommu::is_quarantined(address) {
        return Err("in quarantine: it has reached for memory that is not its own".into());
    }
    if ENGINES.lock().contains_key(&address) {
        return Err("its driver has it already".into());
    }
    let driver = driver_at(address).ok_or("no driver for it")?;
    let function =
        bus::take(address, driver.name()).ok_or("no such function, or a BAR without address")?;
    let engine = match driver {
        Driver::Ioat => ioat::probe(function, registry())
            .await
            .map(Engine::Ioat)
            .map_err(|error| error.to_string())?,
        Driver::Edu => edu::probe(function, registry())
            .await
            .map(Engine::Edu)
            .map_err(|error| error.to_string())?,
    };
    let text = engine.to_string();
    log::info!("{}", text.lines().next().unwrap_or_default());
    let errata = engine.errata();
    if !errata.is_empty() {
        log::info!("{address}: errata: {errata}");
    }
    let lost = match &engine {
        Engine::Ioat(engine) => Some(engine.lost()),
        Engine::Edu(_) => None,
    };
    ENGINES.lock().insert(address, engine);
    if let Some(lost) = lost {
        let watch = async move {
            if lost.await {
                removal::lost(address).await;
            }
        };
        task::spawn("engine-watch", None, watch).detach();
    }
    Ok(())
}

/// In a build that counts no references an engine leaves only when nobody uses it: takes it out of
/// use, or says in a line why not.
pub(super) async fn release(device: &DmaDevice, limit: Duration) -> Result<(), String> {
    if cfg!(feature = "hotplug") {
        return Ok(());
    }
    let device = device.clone();
    let unload = async move { registry().unload(&device, limit).await };
    match task::complete("removal", unload).await {
        Ok(_) => Ok(()),
        Err(error) => Err(alloc::format!(
            "{error}, and this build, without `hotplug`, takes only idle ones away"
        )),
    }
}

/// Whether the engine at `address` is of no use any more.
pub(super) fn is_lost(address: Address) -> bool {
    match ENGINES.lock().get(&address) {
        Some(Engine::Ioat(engine)) => engine.is_lost(),
        Some(Engine::Edu(device)) => device.is_gone(),
        None => false,
    }
}

/// Takes the engine at `address` from its driver; what is in flight drains for at most `limit`.
/// `None` where the driver has no such engine, or somebody else is at it. Runs to its end even when dropped.
pub(super) async fn unbind(address: Address, limit: Duration) -> Option<Removal> {
    let busy = Busy::new(address)?;
    let engine = ENGINES.lock().remove(&address)?;
    let remove = async move {
        let _busy = busy;
        let removal = engine.remove(limit).await;
        // Whoever still has a handle of it maps nothing any more.
        iommu::release(address);
        removal
    };
    Some(task::complete("removal", remove).await)
}

/// The device behind the engine at `address`, where a driver has taken one.
pub(super) fn device(address: Address) -> Option<DmaDevice> {
    Some(ENGINES.lock().get(&address)?.device().clone())
}

/// All engines that drivers have taken, by address.
pub fn all() -> Vec<(Address, DmaDevice)> {
    let engines = ENGINES.lock();
    let pair = |(address, engine): (&Address, &Engine)| (*address, engine.device().clone());
    engines.iter().map(pair).collect()
}

/// What the driver says of the engine at `address`, where it has taken one.
pub fn describe(address: Address) -> Option<String> {
    ENGINES.lock().get(&address).map(ToString::to_string)
}

/// The registers of the engine at `address`, for who prints them without holding anything up.
pub fn registers(address: Address) -> Option<Registers> {
    match ENGINES.lock().get(&address)? {
        Engine::Ioat(engine) => Some(engine.registers()),
        Engine::Edu(_) => None,
    }
}

/// What is known to be wrong with the engine at `address`; empty where nothing is.
pub fn errata(address: Address) -> String {
    let engines = ENGINES.lock();
    engines
        .get(&address)
        .map_or_else(String::new, Engine::errata)
}

/// How often the engines' drivers have rung a doorbell for operations.
pub fn doorbells() -> u64 {
    let of = |engine: &Engine| match engine {
        Engine::Ioat(engine) => engine.doorbells(),
        Engine::Edu(_) => 0,
    };
    ENGINES.lock().values().map(of).sum()
}

/// How many fences the engines have reason for: where all channels share an interrupt, the task
/// that serves it is stopped by one and answers by another.
pub fn fences() -> usize {
    let shared = |engine: &&Engine| engine.interrupt().is_some_and(|kind| kind != IrqKind::MsiX);
    2 * ENGINES.lock().values().filter(shared).count()
}

/// How many vectors the engines have reason for.
pub fn vectors() -> usize {
    let of = |engine: &Engine| match engine.interrupt() {
        None => 0,
        Some(IrqKind::MsiX) => engine.device().channels().count(),
        Some(IrqKind::Msi | IrqKind::Intx) => 1,
    };
    ENGINES.lock().values().map(of).sum()
}
