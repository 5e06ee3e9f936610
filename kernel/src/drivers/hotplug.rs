//! Slots: a task for each port whose cards may come and go. What is on a card that comes is found,
//! given addresses and bound to its driver; what is on one that leaves is taken from its driver, all
//! at once, and forgotten.

use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::pin;

use hal::irq::{IrqKind, IrqLine};
use hal::pci::Address;
use hal::time::{Duration, poll_until};
use pciehp::{Card, Handle, How, Occupants, Options, Port, Slot, State};
use spin::{Mutex, Once};

use super::{engines, removal};
use crate::acpi::tables::platform;
use crate::iommu;
use crate::pci::bus;
use crate::task;

struct Served {
    port: Address,
    handle: Handle,
    interrupts: bool,
}

static SLOTS: Mutex<Vec<Served>> = Mutex::new(Vec::new());
static OPTIONS: Once<Options> = Once::new();

/// Serves the slots of all ports, once what is in them has been bound. A press of an attention
/// button can be taken back for as long as `window`.
pub fn start(window: Duration) {
    OPTIONS.call_once(|| Options {
        window,
        ..Options::default()
    });
    bus::ports(None).into_iter().for_each(serve);
    let slots = SLOTS.lock().len();
    if slots > 0 {
        log::info!("{slots} slots: {}", native());
    }
}

/// On what terms slots are served. Firmware that has hot-plug in its own hands gives it away by _OSC
/// (PCI Firmware 3.3, 4.5.1), a method in AML.
pub fn native() -> &'static str {
    if platform().has_osc {
        "native hot-plug is taken unasked: firmware's _OSC is AML, which is not interpreted"
    } else {
        "native hot-plug is taken: firmware has no _OSC to ask"
    }
}

/// The state of the slot of the port at `address`, if it is served.
pub fn state(address: Address) -> Option<State> {
    find(address).map(|handle| handle.state())
}

/// The function at `address` may have been silenced, and the port above it as well: has its slot
/// looked at.
pub fn look(address: Address) {
    for served in SLOTS.lock().iter() {
        if bus::behind(served.port).contains(&address) {
            served.handle.look();
        }
    }
}

/// How many vectors the ports have reason for.
pub fn vectors() -> usize {
    SLOTS.lock().iter().filter(|slot| slot.interrupts).count()
}

fn find(address: Address) -> Option<Handle> {
    let slots = SLOTS.lock();
    let served = slots.iter().find(|served| served.port == address)?;
    Some(served.handle.clone())
}

/// Serves the slots of new ports, at `addresses`.
pub fn serve_new(addresses: &[Address]) {
    let ports = bus::ports(None).into_iter();
    ports
        .filter(|port| addresses.contains(&port.address()))
        .for_each(serve);
}

fn serve(port: Port) {
    let address = port.address();
    if !port.is_hot_plug() || find(address).is_some() {
        return;
    }
    let line = interrupt(&port);
    let options = OPTIONS.get().copied().unwrap_or_default();
    let in_use = !bus::behind(address).is_empty();
    let interrupts = line.is_some();
    match &line {
        Some(line) => log::debug!("{port}: {line:?}"),
        None => log::debug!("{port}: polled"),
    }
    let slot = Slot::new(port, Behind(address), line, options, in_use);
    let served = Served {
        port: address,
        handle: slot.handle(),
        interrupts,
    };
    SLOTS.lock().push(served);
    let run = async move {
        slot.run().await;
        SLOTS.lock().retain(|served| served.port != address);
    };
    task::spawn("slot", None, run).detach();
}

/// The port's interrupt for events. Without one the slot is polled.
fn interrupt(port: &Port) -> Option<IrqLine> {
    let interrupts = bus::port_interrupts(port.address(), "slot")?;
    let number = port.message_number();
    let message = || interrupts.bind(IrqKind::MsiX, number + 1).ok()?.pop();
    // One message of several is message 0, whatever number was said.
    let single = || interrupts.bind(IrqKind::Msi, 1).ok()?.pop();
    message().or_else(single)
}

/// How long a slot may take to come to an end: its card may be leaving.
const STOP_LIMIT: Duration = Duration::from_secs(60);
const STOP_STEP: Duration = Duration::from_millis(1);

/// Serves the slot of the port at `address` no more.
pub async fn stop(address: Address) {
    let Some(handle) = find(address) else {
        return;
    };
    handle.stop();
    let stopped = || find(address).is_none();
    if poll_until(STOP_LIMIT, STOP_STEP, stopped).await.is_err() {
        log::error!("{address}: its slot does not come to an end");
    }
}

/// What is behind the port at an address.
struct Behind(Address);

impl Occupants for Behind {
    fn answers(&self) -> bool {
        // What is new reaches no memory yet.
        bus::wake_port(self.0);
        bus::answers_behind(self.0)
    }

    async fn arrive(&self, _card: &Card) -> bool {
        let found = bus::arrive(self.0);
        serve_new(&found);
        for &address in &found {
            match engines::name(address) {
                Some(_) => {
                    if let Err(error) = removal::bind(address).await {
                        log::error!("{address}: not used: {error}");
                    }
                }
                None => log::info!("{address}: found, no driver for it"),
            }
        }
        !found.is_empty()
    }

    async fn leave(&self, how: How, card: &Card) {
        let surprise = how == How::Surprise;
        if surprise {
            bus::vanish(self.0);
            // What was pulled, or is still about to be, reaches nothing from here on.
            bus::behind(self.0).into_iter().for_each(|address| {
                iommu::revoke(address);
            });
        }
        let behind = bus::retire(self.0);
        for &port in &behind {
            stop(port).await;
        }
        let engine = |&address: &Address| Some((address, engines::device(address)?));
        let engines: Vec<_> = behind.iter().filter_map(engine).collect();
        let leave = |&address: &Address| {
            let from_slot = removal::from_slot(address, surprise);
            task::spawn("hot-removal", None, from_slot)
        };
        let leaving: Vec<_> = behind.iter().map(leave).collect();
        let all = async {
            for one in leaving {
                one.await;
            }
        };
        let (mut all, mut gone) = (pin!(all), pin!(card.gone()));
        let mut hurried = surprise;
        poll_fn(|cx| {
            if !hurried && gone.as_mut().poll(cx).is_ready() {
                hurried = true;
                bus::vanish(self.0);
                for (address, device) in &engines {
                    removal::hurry(*address, device);
                }
            }
            all.as_mut().poll(cx)
        })
        .await;
        for &address in behind.iter().rev() {
            bus::forget(address);
        }
        // Who kept a card from memory that did not answer has silenced the port.
        if bus::is_dead_behind(self.0) {
            bus::wake_port(self.0);
        }
    }
}
