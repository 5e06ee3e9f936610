//! The I/OAT engines that were found.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

use dmaengine::{Removal, registry};
use hal::irq::IrqKind;
use hal::pci::Address;
use hal::time::Duration;
use ioat::Engine;
use spin::Mutex;

use crate::pci::bus;
use crate::task;

/// How its interrupts are named.
const NAME: &str = "ioat";

static ENGINES: Mutex<BTreeMap<Address, Engine>> = Mutex::new(BTreeMap::new());

/// Whether there is a driver for the function at `address`.
pub fn knows(address: Address) -> bool {
    let device = bus::devices()
        .into_iter()
        .find(|device| device.found.address == address);
    device.is_some_and(|device| ioat::matches(&device.found.identity).is_some())
}

/// Hands every function that the driver knows to the driver. An engine that it does not take is
/// reported.
pub async fn probe_all() {
    for device in bus::devices() {
        if knows(device.found.address) {
            probe(device.found.address).await;
        }
    }
}

async fn probe(address: Address) {
    if let Err(error) = bind(address).await {
        log::error!("{address}: not used: {error}");
    }
}

/// Hands the function at `address` to the driver, where it is free. The error is one line.
pub(super) async fn bind(address: Address) -> Result<(), String> {
    if ENGINES.lock().contains_key(&address) {
        return Err("its driver has it already".into());
    }
    let function = bus::take(address, NAME).ok_or("no such function, or a BAR without address")?;
    let engine = ioat::probe(function, registry())
        .await
        .map_err(|error| error.to_string())?;
    let text = engine.to_string();
    log::info!("{}", text.lines().next().unwrap_or_default());
    ENGINES.lock().insert(address, engine);
    Ok(())
}

/// Takes the engine at `address` from its driver; what is in flight drains for at most `limit`.
/// `None` where the driver has no such engine. Runs to its end even when dropped.
pub(super) async fn unbind(address: Address, limit: Duration) -> Option<Removal> {
    let engine = ENGINES.lock().remove(&address)?;
    Some(task::complete("removal", engine.remove(limit)).await)
}

/// What the driver says of the engine at `address`, where it has taken one.
pub fn describe(address: Address) -> Option<String> {
    ENGINES.lock().get(&address).map(ToString::to_string)
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
