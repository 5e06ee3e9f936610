//! The machine's PCI functions, and the resources that their drivers get.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use hal::dma::DmaSpace;
use hal::irq::Interrupts;
use hal::mmio::{MmioOps, MmioRegion, Width};
use hal::pci::{Address, Function, header};
use spin::{Mutex, Once};

use super::access::Fabric;
use super::assign::{self, Window};
use super::bars::{self, Bar};
use super::interrupts::{self, FunctionInterrupts};
use super::isolation;
use super::scan::{self, Found, Header};
use crate::acpi::tables::platform;
use crate::arch::x86_64::physical_address_bits;
use crate::boot_info::BootInfo;
use crate::events::{self, Event};
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;

/// A function with its BARs.
#[derive(Clone, Debug)]
pub struct Device {
    /// What the scan found.
    pub found: Found,
    /// Its memory BARs, placed or not.
    pub bars: Vec<Bar>,
}

struct Bus {
    fabric: Fabric,
    root_windows: Vec<Window>,
    /// What the memory map lists, usable or not.
    listed: Vec<Range<u64>>,
    devices: BTreeMap<Address, Device>,
}

static BUS: Once<Mutex<Bus>> = Once::new();

/// No hardware decodes above this by a 32-bit window: I/O APICs, local APICs and flash follow.
const LOW_WINDOW_END: u64 = 0xfec0_0000;

/// Finds all functions and gives addresses to BARs that have none.
pub fn init(info: &BootInfo) {
    BUS.call_once(|| {
        let fabric = Fabric::new(&platform().ecam);
        if !fabric.is_ecam() {
            log::warn!("no ECAM: extended configuration space is out of reach");
        }
        let listed = info
            .regions()
            .iter()
            .map(|r| r.start..r.start + r.len)
            .collect();
        let mut bus = Bus {
            fabric,
            root_windows: root_windows(info),
            listed,
            devices: BTreeMap::new(),
        };
        bus.scan();
        bus.assign();
        Mutex::new(bus)
    });
}

/// The host bridge's windows: what lies between memory and the fixed addresses below 4 GiB, and
/// what lies above all memory. Firmware's own statement is AML (`_CRS`), which is not interpreted.
fn root_windows(info: &BootInfo) -> Vec<Window> {
    let memory_end = |limit: u64| {
        let ends = info.usable().map(|(_, end)| end);
        ends.filter(|&end| end <= limit).max().unwrap_or(0)
    };
    let top = 1 << physical_address_bits();
    let low = memory_end(LOW_WINDOW_END).next_multiple_of(1 << 20);
    let high = memory_end(top).max(1 << 32).next_multiple_of(1 << 30);
    let mut windows = Vec::new();
    if low < LOW_WINDOW_END {
        windows.push(Window {
            range: low..LOW_WINDOW_END,
            prefetchable: false,
        });
    }
    if high < top {
        windows.push(Window {
            range: high..top,
            prefetchable: true,
        });
        windows.push(Window {
            range: high..top,
            prefetchable: false,
        });
    }
    windows
}

impl Bus {
    fn scan(&mut self) {
        for (segment, buses) in self.fabric.ranges() {
            for found in scan::segment(&self.fabric, segment, *buses.start(), *buses.end()) {
                // What is known may be in use: its BARs are not sized again.
                if self.devices.contains_key(&found.address) {
                    continue;
                }
                let count = match found.header {
                    Header::Endpoint => 6,
                    Header::Bridge => 2,
                    Header::Other => 0,
                };
                // Nobody owns it yet. A pin that firmware left asserted would hold up whoever
                // shares its line.
                if found.header == Header::Endpoint {
                    found.config.update_command(header::COMMAND_INTX_DISABLE, 0);
                }
                let bars = bars::size(&found.config, count);
                self.devices.insert(found.address, Device { found, bars });
            }
        }
    }

    /// The windows in which a device's BARs must lie.
    fn windows(&self, device: &Device) -> Vec<Window> {
        match device
            .found
            .above
            .first()
            .and_then(|bridge| self.devices.get(bridge))
        {
            Some(bridge) => assign::bridge_windows(&bridge.found.config),
            None => self.root_windows.clone(),
        }
    }

    /// What nothing else may be placed over: all BARs but `except`, the windows of the bridges
    /// that do not lead to `address`, configuration space, and what the memory map lists.
    fn taken(&self, address: Address) -> Vec<Range<u64>> {
        let leads = self
            .devices
            .get(&address)
            .map_or(&[][..], |device| &device.found.above);
        let mut taken = self.listed.clone();
        for device in self.devices.values() {
            taken.extend(
                device
                    .bars
                    .iter()
                    .filter(|b| b.address != 0)
                    .map(|b| b.address..b.end()),
            );
            if device.found.bridge.is_some() && !leads.contains(&device.found.address) {
                let windows = assign::bridge_windows(&device.found.config);
                taken.extend(windows.into_iter().map(|window| window.range));
            }
        }
        taken.extend(platform().ecam.iter().map(|window| {
            let (first, last) = (u64::from(window.buses.0), u64::from(window.buses.1));
            window.base + (first << 20)..window.base + ((last + 1) << 20)
        }));
        taken
    }

    fn assign(&mut self) {
        let addresses: Vec<_> = self.devices.keys().copied().collect();
        for address in addresses {
            self.assign_one(address);
        }
    }

    fn assign_one(&mut self, address: Address) {
        let Some(device) = self.devices.get(&address) else {
            return;
        };
        let windows = self.windows(device);
        for slot in 0..device.bars.len() {
            let Some(device) = self.devices.get_mut(&address) else {
                return;
            };
            let bar = device.bars[slot];
            // On the root bus firmware knows windows that we do not: any address of its stands.
            let fine = if device.found.above.is_empty() {
                bar.address != 0
            } else {
                assign::is_assigned(&bar, &windows)
            };
            if fine {
                continue;
            }
            device.bars[slot].address = 0;
            let place = assign::place(&bar, &windows, &self.taken(address));
            let Some(device) = self.devices.get_mut(&address) else {
                return;
            };
            match place {
                Some(at) => {
                    let config = device.found.config.clone();
                    // Half an address must not be decoded; whoever takes the function turns
                    // decoding on.
                    config.update_command(0, header::COMMAND_MEMORY);
                    device.bars[slot].set_address(&config, at);
                    log::info!("{address}: BAR {} placed at {at:#x}", bar.index);
                }
                None => log::warn!(
                    "{address}: BAR {} of {} KiB finds no room, left out",
                    bar.index,
                    bar.size >> 10
                ),
            }
        }
    }
}

fn bus() -> Option<spin::MutexGuard<'static, Bus>> {
    BUS.get().map(Mutex::lock)
}

/// All functions, by address.
pub fn devices() -> Vec<Device> {
    bus().map_or_else(Vec::new, |bus| bus.devices.values().cloned().collect())
}

/// Hands the function at `address` over: memory decoding on, bus mastering off, BARs mapped.
/// `name` names its interrupts. `None` where there is no such function.
pub fn take(address: Address, name: &'static str) -> Option<Function> {
    let bus = bus()?;
    let device = bus.devices.get(&address)?.clone();
    // The south bridge of an ICH9 machine is its LPC interface at 00:1f.0.
    let ich9 = bus.devices.values().any(|d| {
        d.found.identity.vendor == 0x8086 && (0x2910..=0x2919).contains(&d.found.identity.device)
    });
    if device.found.config.is_absent() {
        log::warn!("{address}: not handed out: it did not answer");
        return None;
    }
    if device.bars.iter().any(|bar| bar.address == 0) {
        log::warn!("{address}: not handed out: a BAR has no address");
        return None;
    }
    // Bridges pass memory accesses down, and DMA and interrupt messages up, only when told to.
    for bridge in device
        .found
        .above
        .iter()
        .rev()
        .filter_map(|at| bus.devices.get(at))
    {
        let both = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;
        bridge.found.config.update_command(both, 0);
    }
    drop(bus);
    let found = device.found;
    found
        .config
        .update_command(header::COMMAND_MEMORY, header::COMMAND_BUS_MASTER);
    let mut bars: [Option<MmioRegion>; 6] = Default::default();
    for bar in device.bars.iter().filter(|bar| bar.address != 0) {
        bars[bar.index] = map(bar);
    }
    let input = interrupts::input(address, &found.config, &found.above, ich9);
    let irqs = FunctionInterrupts::new(name, found.config.clone(), &bars, input);
    Some(Function {
        address,
        identity: found.identity,
        config: found.config,
        bars,
        dma: DmaSpace::new(Arc::new(crate::drivers::dma::Direct(address))),
        interrupts: Interrupts::new(irqs),
        node: crate::numa::of_function(address),
    })
}

/// Forgets the function at `address`, which no driver has any more: it decodes nothing and reaches
/// nothing until it is found again. Says whether there was one.
pub fn forget(address: Address) -> bool {
    let Some(device) = bus().and_then(|mut bus| bus.devices.remove(&address)) else {
        return false;
    };
    let both = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;
    device
        .found
        .config
        .update_command(header::COMMAND_INTX_DISABLE, both);
    true
}

/// Keeps the function at `address`, which does not answer, from all memory, if that can be:
/// [`isolation::isolate`]. [`take`] has ports pass things on again.
pub fn isolate(address: Address) -> bool {
    bus().is_some_and(|bus| isolation::isolate(bus.devices.values().map(|d| &d.found), address))
}

/// Looks for functions that are not known yet, and gives them addresses. Returns theirs.
pub fn rescan() -> Vec<Address> {
    let Some(mut bus) = bus() else {
        return Vec::new();
    };
    let known: Vec<_> = bus.devices.keys().copied().collect();
    bus.scan();
    let new: Vec<_> = bus
        .devices
        .keys()
        .copied()
        .filter(|at| !known.contains(at))
        .collect();
    for &address in &new {
        bus.assign_one(address);
    }
    new
}

/// More than any engine's registers; larger BARs are for others.
const MAP_MAX: u64 = 64 << 20;

fn map(bar: &Bar) -> Option<MmioRegion> {
    let len = bar.size.min(MAP_MAX) as usize;
    let mapping = PhysicalMapping::new(bar.address, len, Access::Device).ok()?;
    Some(MmioRegion::new(Arc::new(Mapped(mapping)), len))
}

struct Mapped(PhysicalMapping);

impl MmioOps for Mapped {
    fn read(&self, offset: usize, width: Width) -> u64 {
        events::count(Event::MmioRead);
        self.0.read_width(offset, width)
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        events::count(Event::MmioWrite);
        self.0.write_width(offset, width, value);
    }
}
