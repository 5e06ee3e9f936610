//! Configuration space by ECAM, or by the legacy ports where there is none.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use hal::mmio::Width;
use hal::pci::{Address, Config, ConfigOps};
use spin::Mutex;
use x86_64::instructions::port::Port;

use super::scan::ConfigSpace;
use crate::acpi::mcfg::EcamWindow;
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;

/// How this machine reaches configuration space.
#[derive(Debug)]
pub struct Fabric {
    windows: Vec<Window>,
}

#[derive(Debug)]
struct Window {
    segment: u16,
    buses: RangeInclusive<u8>,
    mapping: Arc<PhysicalMapping>,
}

impl Fabric {
    /// Maps the windows. What of segment 0 lies in none is reached by the legacy ports.
    pub fn new(windows: &[EcamWindow]) -> Self {
        let windows = windows
            .iter()
            .filter_map(|window| {
                let (first, last) = window.buses;
                let base = window.base + (u64::from(first) << 20);
                let len = (usize::from(last - first) + 1) << 20;
                match PhysicalMapping::new(base, len, Access::Device).map(Arc::new) {
                    Ok(mapping) if (window.segment, first) == (0, 0) && !agrees(&mapping) => {
                        log::warn!("no configuration space at {base:#x}");
                        None
                    }
                    Ok(mapping) => Some(Window {
                        segment: window.segment,
                        buses: first..=last,
                        mapping,
                    }),
                    Err(_) => {
                        log::error!("no memory to map the configuration space at {base:#x}");
                        None
                    }
                }
            })
            .collect();
        Self { windows }
    }

    /// Whether extended configuration space is within reach, anywhere.
    pub fn is_ecam(&self) -> bool {
        !self.windows.is_empty()
    }
}

/// Whether bus 0 is the same in this window as by the ports, which every PC has.
fn agrees(window: &Arc<PhysicalMapping>) -> bool {
    (0..32).all(|device| {
        let address = Address {
            segment: 0,
            bus: 0,
            device,
            function: 0,
        };
        let start = usize::from(device) << 15;
        Legacy { address }.read(0, Width::B4) == window.read::<u32>(start)
    })
}

impl ConfigSpace for Fabric {
    fn config(&self, a: Address) -> Option<Config> {
        let covers =
            |window: &&Window| window.segment == a.segment && window.buses.contains(&a.bus);
        let Some(window) = self.windows.iter().find(covers) else {
            return (a.segment == 0).then(|| Config::new(Arc::new(Legacy { address: a })));
        };
        let start = (usize::from(a.bus - window.buses.start()) << 20)
            | (usize::from(a.device) << 15)
            | (usize::from(a.function) << 12);
        let window = window.mapping.clone();
        Some(Config::new(Arc::new(Ecam { window, start })))
    }
}

/// One function's 4 KiB. PCI Express Base 7.2.2.
struct Ecam {
    window: Arc<PhysicalMapping>,
    /// Where in the window the function's space begins.
    start: usize,
}

impl ConfigOps for Ecam {
    fn len(&self) -> usize {
        4096
    }

    fn read(&self, offset: usize, width: Width) -> u32 {
        self.window.read_width(self.start + offset, width) as u32
    }

    fn write(&self, offset: usize, width: Width, value: u32) {
        self.window
            .write_width(self.start + offset, width, value.into());
    }
}

/// The first 256 bytes, by the address and data ports. PCI Local Bus 3.0, 3.2.2.3.2.
struct Legacy {
    address: Address,
}

static PORTS: Mutex<()> = Mutex::new(());

impl Legacy {
    fn select(&self, offset: usize) {
        let a = self.address;
        let value = 1 << 31
            | u32::from(a.bus) << 16
            | u32::from(a.device) << 11
            | u32::from(a.function) << 8
            | (offset as u32 & 0xfc);
        // SAFETY: the address port of every PC with PCI; `PORTS` is held.
        unsafe { Port::<u32>::new(0xcf8).write(value) };
    }
}

impl ConfigOps for Legacy {
    fn len(&self) -> usize {
        256
    }

    fn read(&self, offset: usize, width: Width) -> u32 {
        let _ports = PORTS.lock();
        self.select(offset);
        let port = 0xcfc + (offset as u16 & 3);
        // SAFETY: the data port, for the function just selected.
        unsafe {
            match width {
                Width::B1 => Port::<u8>::new(port).read().into(),
                Width::B2 => Port::<u16>::new(port).read().into(),
                _ => Port::<u32>::new(port).read(),
            }
        }
    }

    fn write(&self, offset: usize, width: Width, value: u32) {
        let _ports = PORTS.lock();
        self.select(offset);
        let port = 0xcfc + (offset as u16 & 3);
        // SAFETY: as in `read`.
        unsafe {
            match width {
                Width::B1 => Port::<u8>::new(port).write(value as u8),
                Width::B2 => Port::<u16>::new(port).write(value as u16),
                _ => Port::<u32>::new(port).write(value),
            }
        }
    }
}
