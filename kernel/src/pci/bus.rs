//! The machine's PCI functions, and the resources that their drivers get.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use hal::dma::DmaSpace;
use hal::irq::Interrupts;
use hal::mmio::{MmioOps, MmioRegion, Width};
use hal::pci::{Address, Function, header};
use litemap::LiteMap;
use pciehp::Port;
use spin::{Mutex, Once};

use super::access::Fabric;
use super::assign::{self, Window};
use super::bars::{self, Bar};
use super::interrupts::{self, FunctionInterrupts};
use super::isolation;
use super::scan::{self, ConfigSpace, Found, Header};
use crate::acpi::mcfg;
use crate::acpi::tables::platform;
use crate::arch::x86_64::physical_address_bits;
use crate::boot_info::BootInfo;
use crate::drivers;
use crate::events::{self, Event};
use crate::iommu::{self, Remapping};
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;

/// A function with its BARs.
#[derive(Clone, Debug)]
pub struct Device {
    /// What the scan found.
    pub found: Found,
    /// Its memory BARs, placed or not.
    pub bars: Vec<Bar>,
    /// It is about to be forgotten: nobody gets it any more.
    leaving: bool,
}

struct Bus {
    fabric: Fabric,
    root_windows: Vec<Window>,
    /// What the memory map lists, usable or not.
    listed: Vec<Range<u64>>,
    devices: LiteMap<Address, Device>,
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
            devices: LiteMap::new(),
        };
        bus.scan();
        let all: Vec<_> = bus.devices.keys().copied().collect();
        bus.assign(&all);
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
        for (segment, buses) in mcfg::segments(&platform().ecam) {
            for found in scan::segment(&self.fabric, segment, *buses.start(), *buses.end()) {
                self.admit(found);
            }
        }
    }

    /// Takes in what was found.
    fn admit(&mut self, found: Found) {
        // What is known may be in use: its BARs are not sized again.
        if self.devices.contains_key(&found.address) {
            return;
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
            // Firmware may hand over an engine that runs. It reaches no memory until its driver has
            // stopped it. Others stay as they are: firmware may need them, as for USB keyboards.
            let on = found.config.read16(header::COMMAND) & header::COMMAND_BUS_MASTER != 0;
            if on && drivers::takes(&found.identity) {
                found.config.set_bus_master(false);
                let address = found.address;
                log::info!("{address}: found with bus mastering on: cut off until it is stopped");
            }
        }
        let device = Device {
            bars: bars::size(&found.config, count),
            found,
            leaving: false,
        };
        self.devices.insert(device.found.address, device);
    }

    /// What is known behind a bridge, nearest first: buses have higher numbers than those above.
    fn behind(&self, bridge: Address) -> Vec<Address> {
        let devices = self.devices.values().map(|device| &device.found);
        let behind = devices.filter(|found| found.above.contains(&bridge));
        behind.map(|found| found.address).collect()
    }

    /// Finds what has come behind a port. Bridges that find no numbers within the port's, which
    /// was empty, have it get others.
    fn find_behind(&mut self, port: Address) {
        let Some(Device { found: port, .. }) = self.devices.get(&port) else {
            return;
        };
        let mut port = port.clone();
        let leads = |address| port.address == address || port.above.contains(&address);
        let mut taken = [false; 256];
        for device in self.devices.values().map(|device| &device.found) {
            if device.address.segment != port.address.segment {
                continue;
            }
            taken[usize::from(device.address.bus)] = true;
            if let (Some(buses), false) = (device.bridge, leads(device.address)) {
                taken[usize::from(buses.secondary)..=usize::from(buses.subordinate)].fill(true);
            }
        }
        let taken = |bus: u8| taken[usize::from(bus)];
        let mut found = scan::behind(&self.fabric, &port, taken);
        let stranded = |found: &Found| found.header == Header::Bridge && found.bridge.is_none();
        let above = port.above.first().and_then(|above| self.devices.get(above));
        let last = match above {
            Some(above) => above.found.bridge.map_or(0, |buses| buses.subordinate),
            None => mcfg::segments(&platform().ecam)
                .into_iter()
                .find(|(segment, _)| *segment == port.address.segment)
                .map_or(0, |(_, buses)| *buses.end()),
        };
        if found.iter().any(stranded) && scan::widen(&mut port, last, taken) {
            found = scan::behind(&self.fabric, &port, taken);
        }
        let address = port.address;
        if let Some(device) = self.devices.get_mut(&address) {
            device.found = port;
        }
        for found in found {
            self.admit(found);
        }
    }

    /// The south bridge of an ICH9 machine is its LPC interface at 00:1f.0.
    fn is_ich9(&self) -> bool {
        self.devices.values().any(|device| {
            let identity = device.found.identity;
            identity.vendor == 0x8086 && (0x2910..=0x2919).contains(&identity.device)
        })
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

    /// Gives addresses to what has none: windows first, those above before those behind, then what
    /// lies in them.
    fn assign(&mut self, addresses: &[Address]) {
        for &address in addresses {
            self.open_window(address);
        }
        for &address in addresses {
            self.assign_one(address);
        }
    }

    /// Gives a bridge a window, if firmware gave it none and something is behind it, or may come.
    fn open_window(&mut self, address: Address) {
        let Some(device) = self.devices.get(&address) else {
            return;
        };
        if device.found.bridge.is_none() {
            return;
        }
        let config = device.found.config.clone();
        let bytes = self.bytes_behind(address);
        let may_come = || Port::new(address, config.clone()).is_some_and(|port| port.is_hot_plug());
        let windows = assign::bridge_windows(&config);
        if windows.iter().any(|window| !window.prefetchable) || bytes == 0 && !may_come() {
            return;
        }
        let window = assign::demand(bytes);
        let place = window.and_then(|window| {
            let at = assign::place(&window, &self.windows(device), &self.taken(address))?;
            Some(at..at + window.size)
        });
        match place {
            Some(range) => {
                log::info!(
                    "{address}: window at {:#x}-{:#x}",
                    range.start,
                    range.end - 1
                );
                assign::open_window(&config, range);
            }
            None => log::warn!("{address}: finds no room for a window"),
        }
    }

    /// The room that BARs and windows behind a bridge need.
    fn bytes_behind(&self, bridge: Address) -> u64 {
        let near = self
            .devices
            .values()
            .filter(|device| device.found.above.first() == Some(&bridge));
        near.map(|device| {
            let bars: u64 = device.bars.iter().map(|bar| bar.size.min(1 << 40)).sum();
            let window = match device.found.bridge {
                Some(_) => assign::demand(self.bytes_behind(device.found.address)),
                None => None,
            };
            bars + window.map_or(0, |window| window.size)
        })
        .sum()
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
    if device.found.config.is_absent() {
        log::warn!("{address}: not handed out: it did not answer");
        return None;
    }
    if device.leaving {
        log::warn!("{address}: not handed out: it leaves");
        return None;
    }
    let ich9 = bus.is_ich9();
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
    let remapping = Remapping::of(address, &found.above);
    let irqs = FunctionInterrupts::new(name, found.config.clone(), &bars, input, remapping);
    Some(Function {
        address,
        identity: found.identity,
        config: found.config,
        bars,
        dma: DmaSpace::new(iommu::space(address, &found.above)?),
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
    iommu::forget(address);
    let config = device.found.config;
    // One that is not there any more is left alone.
    if config.is_present() {
        config.update_command(header::COMMAND_INTX_DISABLE, header::COMMAND_MEMORY);
        config.set_bus_master(false);
    }
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
    bus.assign(&new);
    new
}

/// The ports behind `above`, or all, by address.
pub fn ports(above: Option<Address>) -> Vec<Port> {
    let Some(bus) = bus() else {
        return Vec::new();
    };
    let devices = bus.devices.values().map(|device| &device.found);
    devices
        .filter(|found| found.bridge.is_some())
        .filter(|found| above.is_none_or(|above| found.above.contains(&above)))
        .filter_map(|found| Port::new(found.address, found.config.clone()))
        .collect()
}

/// The interrupts of the port at `address`, which issues messages and passes things on from here
/// on. `name` names them.
pub fn port_interrupts(address: Address, name: &'static str) -> Option<Interrupts> {
    let bus = bus()?;
    let device = bus.devices.get(&address)?.clone();
    let ich9 = bus.is_ich9();
    drop(bus);
    let Device { found, bars, .. } = device;
    let both = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;
    found.config.update_command(both, 0);
    let mut mapped: [Option<MmioRegion>; 6] = Default::default();
    for bar in bars.iter().filter(|bar| bar.address != 0) {
        mapped[bar.index] = map_region(bar).map(|(mapping, len)| {
            // Not counted: those who count mean what drivers do to their devices.
            MmioRegion::new(Arc::new(mapping), len)
        });
    }
    let input = interrupts::input(address, &found.config, &found.above, ich9);
    let remapping = Remapping::of(address, &found.above);
    let irqs = FunctionInterrupts::new(name, found.config.clone(), &mapped, input, remapping);
    Some(Interrupts::new(irqs))
}

/// Has the port at `address` issue messages again, if whoever cut off what was behind it has
/// silenced it too. Behind it there is nothing, or nothing with power.
pub fn wake_port(address: Address) {
    if let Some(port) = bus().and_then(|bus| bus.devices.get(&address).cloned()) {
        port.found.config.set_bus_master(true);
    }
}

/// Whether nothing behind the port at `address` can reach memory: its slot is off or empty.
pub fn is_dead_behind(address: Address) -> bool {
    let port = bus().and_then(|bus| Some(bus.devices.get(&address)?.found.clone()));
    port.is_some_and(|port| isolation::is_dead(&port))
}

/// Whether function 0 right behind the port at `address` answers.
pub fn answers_behind(address: Address) -> bool {
    let config = bus().and_then(|bus| {
        let buses = bus.devices.get(&address)?.found.bridge?;
        bus.fabric.config(Address {
            segment: address.segment,
            bus: buses.secondary,
            device: 0,
            function: 0,
        })
    });
    config.is_some_and(|config| pciehp::answers(&config))
}

/// Finds what has come behind the port at `address`, and gives it addresses. Returns theirs, nearest
/// first.
pub fn arrive(address: Address) -> Vec<Address> {
    let Some(mut bus) = bus() else {
        return Vec::new();
    };
    bus.find_behind(address);
    let new = bus.behind(address);
    bus.assign(&new);
    new
}

/// What is known behind the port at `address`, nearest first.
pub fn behind(address: Address) -> Vec<Address> {
    bus().map_or_else(Vec::new, |bus| bus.behind(address))
}

/// What is behind the port at `address` leaves: nobody gets any of it until it has been forgotten
/// and found again. Returns the addresses, nearest first.
pub fn retire(address: Address) -> Vec<Address> {
    let Some(mut bus) = bus() else {
        return Vec::new();
    };
    let behind = bus.behind(address);
    for address in &behind {
        if let Some(device) = bus.devices.get_mut(address) {
            device.leaving = true;
        }
    }
    behind
}

/// What is behind the port at `address` is not there any more: nothing of it is touched again.
pub fn vanish(address: Address) {
    if let Some(bus) = bus() {
        for device in bus
            .behind(address)
            .iter()
            .filter_map(|at| bus.devices.get(at))
        {
            device.found.config.set_absent();
        }
    }
}

/// More than any engine's registers; larger BARs are for others.
const MAP_MAX: u64 = 64 << 20;

/// The registers behind a BAR; `None` where there is no room for them.
pub(crate) fn map(bar: &Bar) -> Option<MmioRegion> {
    let (mapping, len) = map_region(bar)?;
    Some(MmioRegion::new(Arc::new(Counted(mapping)), len))
}

fn map_region(bar: &Bar) -> Option<(Mapped, usize)> {
    let len = bar.size.min(MAP_MAX) as usize;
    let mapping = PhysicalMapping::new(bar.address, len, Access::Device).ok()?;
    Some((Mapped(mapping), len))
}

struct Mapped(PhysicalMapping);

impl MmioOps for Mapped {
    fn read(&self, offset: usize, width: Width) -> u64 {
        self.0.read_width(offset, width)
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        self.0.write_width(offset, width, value);
    }
}

/// A driver's: its accesses are counted.
struct Counted(Mapped);

impl MmioOps for Counted {
    fn read(&self, offset: usize, width: Width) -> u64 {
        events::count(Event::MmioRead);
        self.0.read(offset, width)
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        events::count(Event::MmioWrite);
        self.0.write(offset, width, value);
    }
}
