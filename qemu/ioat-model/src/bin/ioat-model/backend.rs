//! The vfio-user side: what QEMU asks of a device, passed on to the engine.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ioat_model::Engine;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE,
    VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS,
    VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
    vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};

use crate::guest_ram::GuestRam;
use crate::interrupts::Interrupts;

/// Bytes of configuration space that QEMU sees.
const CONFIG_LEN: u64 = 4096;

/// How often an engine that is frozen is looked at.
const THAW_STEP: Duration = Duration::from_millis(5);

/// An engine behind a vfio-user server.
pub(crate) struct Backend {
    pub(crate) engine: Arc<Engine>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) interrupts: Arc<Interrupts>,
}

impl Backend {
    /// Returns once the engine answers; the program's other threads go on.
    fn hold_back(&self) {
        while self.engine.answers_in().is_none() {
            std::thread::sleep(THAW_STEP);
        }
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        std::thread::sleep(self.engine.answers_in().unwrap_or_default());
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => self.engine.bar_read(offset, data),
            VFIO_PCI_CONFIG_REGION_INDEX => self.engine.config_read(offset, data),
            _ => data.fill(0),
        }
        log::trace!("region {region} read {offset:#x} {data:02x?}");
        self.hold_back();
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        log::trace!("region {region} write {offset:#x} {data:02x?}");
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => self.engine.bar_write(offset, data),
            VFIO_PCI_CONFIG_REGION_INDEX => self.engine.config_write(offset, data),
            _ => {}
        }
        self.hold_back();
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let file = fd.is_some();
        log::debug!("dma map {address:#x}+{size:#x} {flags:?} file {file} at {offset:#x}");
        self.engine.announce(address..address.saturating_add(size));
        let writable = flags.contains(DmaMapFlags::WRITE);
        self.ram
            .announce(address, size, writable, fd.map(|fd| (fd, offset)));
        Ok(())
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        log::debug!("dma unmap {address:#x}+{size:#x} {flags:?}");
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            self.ram.withdraw_all();
            self.engine.withdraw_all();
        } else {
            self.ram.withdraw(address, size);
            self.engine.withdraw(address..address.saturating_add(size));
        }
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        log::debug!("reset");
        self.engine.reset();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        let files = fds.len();
        log::debug!("interrupt {index} flags {flags:#x} vectors {start}+{count} files {files}");
        self.interrupts.set(index, flags, start, count, fds);
        Ok(())
    }
}

/// The regions: BAR0 and configuration space, both trapped.
pub(crate) fn regions(bar_len: u64) -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = match index {
                VFIO_PCI_BAR0_REGION_INDEX => bar_len,
                VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_LEN,
                _ => 0,
            };
            let flags = if size > 0 {
                VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE
            } else {
                0
            };
            ServerRegion {
                region_info: vfio_region_info {
                    argsz: size_of::<vfio_region_info>() as u32,
                    flags,
                    index,
                    size,
                    ..Default::default()
                },
                sparse_areas: Vec::new(),
                mmap_fd: None,
            }
        })
        .collect()
}

/// The interrupts: the pin, and `vectors` messages of the kind that the engine has.
pub(crate) fn irqs(irq: ioat_model::Irq, vectors: usize) -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| {
            let (count, flags) = match (index, irq) {
                (VFIO_PCI_INTX_IRQ_INDEX, _) => (
                    1,
                    VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
                ),
                (VFIO_PCI_MSI_IRQ_INDEX, ioat_model::Irq::Msi)
                | (VFIO_PCI_MSIX_IRQ_INDEX, ioat_model::Irq::MsiX) => (
                    vectors as u32,
                    VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
                ),
                _ => (0, 0),
            };
            IrqInfo {
                index,
                flags,
                count,
            }
        })
        .collect()
}
