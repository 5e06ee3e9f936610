//! Devices confined by VT-d, where the command line asks for it: `iommu=on`.
//!
//! From [`init`] on a function reaches nothing. One that is handed to a driver gets a domain of its
//! own ([`Confined`]), in which it reaches what is mapped for it; the domain ends when the function
//! is handed back, and with it all access: the next one begins empty, at other addresses. What firmware
//! says that a function must go on reaching (RMRR) it reaches from the beginning.
//!
//! Off means off: nothing of a unit is touched. On is strict: an unmapping returns when the unit has
//! forgotten it, and a function that no unit confines is not handed out.

mod confined;
mod faults;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use hal::dma::{Buffer, DmaOps, DmaSpace, MapError, PAGE, RawMapping};
use hal::mmio::{MmioOps, MmioRegion, Width};
use hal::pci::Address;
use spin::{Mutex, Once};
use vtd::{Dmar, Domain, Permissions, Target, Unit};

use crate::acpi::place;
use crate::acpi::tables::platform;
use crate::arch::x86_64::{apic, ioapic};
use crate::boot_info::BootInfo;
use crate::irq::Vector;
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;
use crate::pci::bus;

pub use confined::{Confined, all, forget, is_quarantined, release, revoke};
pub use faults::{reporter, serve, vectors};

/// What `iommu=on` has found.
struct Iommu {
    dmar: Dmar,
    /// By the table's numbers; `None` where one could not be used.
    units: Vec<Option<Arc<Unit>>>,
    /// Above all memory: where domains have their addresses.
    base: u64,
    /// Domains of functions that firmware goes on using, until a driver takes them.
    reserved: Mutex<Vec<Arc<Domain>>>,
}

static IOMMU: Once<Iommu> = Once::new();
/// Lines that are spent on a malformed table.
const COMPLAINTS_MAX: usize = 8;

/// Whether functions are confined.
pub fn is_on() -> bool {
    IOMMU.is_completed()
}

/// The units that are in use.
pub fn units() -> impl Iterator<Item = &'static Arc<Unit>> {
    IOMMU
        .get()
        .into_iter()
        .flat_map(|iommu| iommu.units.iter().flatten())
}

/// Takes all units over and turns translation on. All functions have been found, and nobody has one.
pub fn init(info: &BootInfo) {
    IOMMU.call_once(|| {
        let dmar = platform().dmar.clone().unwrap_or_default();
        for complaint in dmar.complaints.iter().take(COMPLAINTS_MAX) {
            log::warn!("ACPI table DMAR, {complaint}");
        }
        if dmar.units.is_empty() {
            log::error!("iommu=on, and there is no unit: no function is handed out");
        }
        let take = |unit: &vtd::dmar::UnitInfo| {
            let base = unit.base;
            // It stays in the list: what is below it is nobody else's, and is not handed out.
            if !place::holds_registers(info, base, PAGE as u64) {
                log::error!("unit at {base:#x}: there can be none");
                return None;
            }
            let taken = take(unit.segment, base);
            taken
                .inspect_err(|error| log::error!("unit at {base:#x}: {error}"))
                .ok()
        };
        let units: Vec<_> = dmar.units.iter().map(take).collect();
        let memory_end = info.usable().map(|(_, end)| end).max().unwrap_or(0);
        let iommu = Iommu {
            dmar,
            units,
            base: memory_end.max(1 << 32).next_multiple_of(confined::WINDOW),
            reserved: Mutex::new(Vec::new()),
        };
        iommu.reserve();
        for unit in iommu.units.iter().flatten() {
            iommu.enable(unit);
        }
        iommu
    });
    if let Some(iommu) = IOMMU.get() {
        iommu.remap_io_apics();
    }
}

fn take(segment: u16, base: u64) -> Result<Arc<Unit>, vtd::Error> {
    let map = |len| {
        let mapping = PhysicalMapping::new(base, len, Access::Device);
        let mapped = |mapping| MmioRegion::new(Arc::new(Registers(mapping)), len);
        mapping.map(mapped).map_err(|_| vtd::Error::Registers)
    };
    let len = vtd::register_bytes(&map(PAGE)?)?;
    Unit::new(
        segment,
        map(len.next_multiple_of(PAGE))?,
        DmaSpace::new(Arc::new(Tables)),
    )
}

impl Iommu {
    /// Gives functions that firmware goes on using their memory, before anything is translated.
    fn reserve(&self) {
        for device in bus::devices() {
            let (address, above) = (device.found.address, &device.found.above);
            if self.dmar.reserved_for(address, above).next().is_none() {
                continue;
            }
            let Some(unit) = self.unit(address, above) else {
                continue;
            };
            let domain = Domain::new(unit, address).and_then(|domain| {
                self.map_reserved(&domain, above)?;
                domain.attach()?;
                Ok(domain)
            });
            match domain {
                Ok(domain) => self.reserved.lock().push(domain),
                Err(error) => log::error!("{address}: reserved memory: {error}"),
            }
        }
    }

    /// Maps what the domain's function must reach, where it lies.
    fn map_reserved(&self, domain: &Domain, above: &[Address]) -> Result<(), vtd::Error> {
        for (base, last) in self.dmar.reserved_for(domain.device(), above) {
            log::info!(
                "{}: reaches reserved memory {base:#x}-{last:#x}",
                domain.device()
            );
            domain.map(base, base, last - base + 1, Permissions::all())?;
        }
        Ok(())
    }

    fn enable(&self, unit: &Arc<Unit>) {
        if self.dmar.interrupt_remapping {
            match unit.remap_interrupts(apic::is_x2apic()) {
                Ok(()) | Err(vtd::Error::NoRemapping) => {}
                Err(error) => log::error!("{unit}: interrupts: {error}"),
            }
        }
        match unit.enable() {
            Ok(()) => log::info!("{unit}: {}", unit.capabilities()),
            Err(error) => log::error!("{unit}: {error}"),
        }
    }

    fn unit(&self, address: Address, above: &[Address]) -> Option<&Arc<Unit>> {
        self.units.get(self.dmar.unit_of(address, above)?)?.as_ref()
    }

    /// Lines that come by an I/O APIC are remapped as well.
    fn remap_io_apics(&self) {
        let io_apics = platform().madt.iter().flat_map(|madt| &madt.io_apics);
        for io_apic in io_apics {
            let Some((unit, source)) = self.dmar.io_apic(io_apic.id) else {
                continue;
            };
            if let Some(Some(unit)) = self.units.get(unit)
                && unit.remaps_interrupts()
            {
                let unit = unit.clone();
                ioapic::remap(io_apic.first_gsi, Remapping { unit, source });
            }
        }
    }
}

/// As whom a function, or an I/O APIC, interrupts, where interrupts are remapped.
#[derive(Clone)]
pub struct Remapping {
    unit: Arc<Unit>,
    source: u16,
}

impl Remapping {
    /// Of the function at `address`, behind the bridges `above`. `None` where it interrupts by
    /// itself.
    pub fn of(address: Address, above: &[Address]) -> Option<Self> {
        let unit = IOMMU.get()?.unit(address, above)?;
        unit.remaps_interrupts().then(|| Self {
            unit: unit.clone(),
            source: vtd::unit::source_id(address),
        })
    }

    /// An entry that leads to `vector`.
    pub fn bind(&self, vector: Vector, level: bool) -> Option<u16> {
        let bound = self.unit.bind_interrupt(self.source, target(vector, level));
        let failed = |error: &vtd::Error| log::error!("an interrupt: {error}");
        bound.inspect_err(failed).ok()
    }

    /// Has the entry lead to `vector` from now on.
    pub fn retarget(&self, entry: u16, vector: Vector, level: bool) {
        let target = target(vector, level);
        if let Err(error) = self.unit.set_interrupt(entry, self.source, target) {
            log::error!("an interrupt: {error}");
        }
    }

    /// The entry leads nowhere.
    pub fn unbind(&self, entry: u16) {
        self.unit.unbind_interrupt(entry);
    }
}

fn target(vector: Vector, level: bool) -> Target {
    Target {
        apic_id: vector.apic_id,
        vector: vector.vector,
        level,
    }
}

/// The space in which the function at `address`, behind the bridges `above`, does DMA: a fresh one.
/// `None` where it is to be confined, and no unit does that.
pub fn space(address: Address, above: &[Address]) -> Option<Arc<dyn DmaOps>> {
    let Some(iommu) = IOMMU.get() else {
        return Some(Arc::new(crate::drivers::dma::Direct(address)));
    };
    let Some(unit) = iommu.unit(address, above).filter(|unit| unit.is_enabled()) else {
        log::error!("{address}: not handed out: no unit confines it");
        return None;
    };
    // A domain that it had before leads nowhere from here on.
    release(address);
    iommu
        .reserved
        .lock()
        .retain(|domain| domain.device() != address);
    let domain = Domain::new(unit, address).and_then(|domain| {
        iommu.map_reserved(&domain, above)?;
        domain.attach()?;
        Ok(domain)
    });
    match domain {
        Ok(domain) => {
            let reserved = iommu.dmar.reserved_for(address, above);
            let reserved = reserved.map(|(base, last)| base..last + 1).collect();
            Some(Confined::register(domain, reserved))
        }
        Err(error) => {
            log::error!("{address}: not handed out: {error}");
            None
        }
    }
}

/// A unit's registers.
struct Registers(PhysicalMapping);

impl MmioOps for Registers {
    fn read(&self, offset: usize, width: Width) -> u64 {
        self.0.read_width(offset, width)
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        self.0.write_width(offset, width, value);
    }
}

/// The units' own space: they see physical addresses, and their tables are counted here.
struct Tables;

/// Tables, queues and interrupt entries that exist.
static TABLES: AtomicUsize = AtomicUsize::new(0);

/// How many buffers the units have for tables, queues and interrupt entries.
pub fn buffers() -> usize {
    TABLES.load(Ordering::Relaxed)
}

impl DmaOps for Tables {
    fn map(&self, buffers: &[Buffer], mapping: &mut RawMapping) -> Result<(), MapError> {
        TABLES.fetch_add(1, Ordering::Relaxed);
        mapping.push_direct(buffers);
        Ok(())
    }

    fn unmap(&self, _: &RawMapping) {
        TABLES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What functions reach by the units' own tables, in pages of 4 KiB, what firmware reserved left out.
pub fn reachable() -> usize {
    all().iter().map(|confined| confined.reachable()).sum()
}
