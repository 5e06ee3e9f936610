//! The device's registers, and what is done with them. QEMU, docs/specs/edu.rst.

use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

use hal::dma::DmaSpace;
use hal::mmio::MmioRegion;
use hal::pci::{Address, Config};

use crate::options::Options;

/// PCI vendor ID, QEMU's own.
pub(crate) const VENDOR: u16 = 0x1234;
/// PCI device ID.
pub(crate) const DEVICE: u16 = 0x11e8;

/// Register offsets in BAR0. Those from [`reg::DMA_SOURCE`] on take accesses of 4 or 8 bytes, the
/// others of 4.
pub(crate) mod reg {
    /// Read only: `0xRRrr00ed`, major and minor version.
    pub(crate) const IDENTIFICATION: usize = 0x00;
    /// Reads the inverse of what was written.
    pub(crate) const LIVENESS: usize = 0x04;
    /// Read only: why the device interrupts, a bit for each reason.
    pub(crate) const INTERRUPT_STATUS: usize = 0x24;
    /// Write only: clears the bits written in the interrupt status.
    pub(crate) const INTERRUPT_ACKNOWLEDGE: usize = 0x64;
    /// Where a transfer reads.
    pub(crate) const DMA_SOURCE: usize = 0x80;
    /// Where a transfer writes.
    pub(crate) const DMA_DESTINATION: usize = 0x88;
    /// Bytes of a transfer.
    pub(crate) const DMA_COUNT: usize = 0x90;
    /// Starts a transfer. While one is under way, writes to all DMA registers are ignored.
    pub(crate) const DMA_COMMAND: usize = 0x98;
    /// Bytes that the registers take.
    pub(crate) const END: usize = 0xa0;
}

/// Bits of the DMA command.
pub(crate) mod command {
    /// Starts; reads as set until the transfer has ended.
    pub(crate) const START: u32 = 1 << 0;
    /// From the buffer to memory; else from memory to the buffer.
    pub(crate) const TO_MEMORY: u32 = 1 << 1;
    /// Interrupts at the end.
    pub(crate) const INTERRUPT: u32 = 1 << 2;
}

/// Where the device sees its own buffer.
pub(crate) const BUFFER: u64 = 0x40000;
/// Bytes in it.
pub(crate) const BUFFER_LEN: usize = 4096;

/// What identification registers end in.
const MAGIC: u32 = 0x00ed;

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From this device address into the buffer.
    From(u64),
    /// From the buffer to this device address.
    To(u64),
}

/// A probed function.
pub(crate) struct Hardware {
    pub(crate) address: Address,
    pub(crate) name: String,
    pub(crate) version: (u8, u8),
    pub(crate) dma: DmaSpace,
    pub(crate) options: Options,
    pub(crate) interrupting: bool,
    region: MmioRegion,
    config: Config,
    /// Registers read all ones: no access follows.
    gone: AtomicBool,
    /// A transfer did not end in time: bus mastering is off until it has.
    stalled: AtomicBool,
}

impl Hardware {
    pub(crate) fn new(
        address: Address,
        region: MmioRegion,
        config: Config,
        dma: DmaSpace,
        options: Options,
    ) -> Self {
        Self {
            address,
            name: alloc::format!("edu {address}"),
            version: (0, 0),
            dma: dma.with_address_bits(options.address_bits),
            options,
            interrupting: false,
            region,
            config,
            gone: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
        }
    }

    /// Major and minor version, or what the register reads instead.
    pub(crate) fn identify(&self) -> Result<(u8, u8), u32> {
        let value = self.region.read32(reg::IDENTIFICATION);
        let [_, _, minor, major] = value.to_le_bytes();
        if value & 0xffff == MAGIC {
            Ok((major, minor))
        } else {
            Err(value)
        }
    }

    /// What the liveness register makes of `value`; its inverse if the device lives.
    pub(crate) fn answer(&self, value: u32) -> u32 {
        self.region.write32(reg::LIVENESS, value);
        self.region.read32(reg::LIVENESS)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// Whether a transfer is under way; `None` where the device is gone.
    pub(crate) fn is_running(&self) -> Option<bool> {
        Some(self.read(reg::DMA_COMMAND)? & command::START != 0)
    }

    /// Clears what the device interrupts for; 0 where that is nothing.
    pub(crate) fn acknowledge(&self) -> u32 {
        let status = self.read(reg::INTERRUPT_STATUS).unwrap_or(0);
        if status != 0 {
            self.region.write32(reg::INTERRUPT_ACKNOWLEDGE, status);
        }
        status
    }

    /// Clears every reason to interrupt, whatever it is.
    pub(crate) fn quiet(&self) {
        if !self.is_gone() {
            self.region.write32(reg::INTERRUPT_ACKNOWLEDGE, u32::MAX);
        }
    }

    /// Starts a transfer of `len` bytes, at most [`BUFFER_LEN`]; none is under way.
    pub(crate) fn start(&self, way: Way, len: usize) {
        if self.is_gone() {
            return;
        }
        let (source, destination, direction) = match way {
            Way::From(memory) => (memory, BUFFER, 0),
            Way::To(memory) => (BUFFER, memory, command::TO_MEMORY),
        };
        let interrupt = if self.interrupting {
            command::INTERRUPT
        } else {
            0
        };
        self.region.write64(reg::DMA_SOURCE, source);
        self.region.write64(reg::DMA_DESTINATION, destination);
        self.region.write32(reg::DMA_COUNT, len as u32);
        self.region
            .write32(reg::DMA_COMMAND, command::START | direction | interrupt);
    }

    /// A transfer does not end. Without bus mastering it reaches no memory, whenever it ends.
    pub(crate) fn stall(&self) {
        self.stalled.store(true, Ordering::Relaxed);
        self.set_bus_master(false);
    }

    /// The transfer that had stalled has ended.
    pub(crate) fn resume(&self) {
        self.stalled.store(false, Ordering::Relaxed);
        self.set_bus_master(true);
    }

    /// One whose registers read all ones may reach memory still: it is cut off all the same.
    pub(crate) fn set_bus_master(&self, on: bool) {
        if !on || !self.is_gone() {
            self.config.set_bus_master(on);
        }
    }

    fn read(&self, offset: usize) -> Option<u32> {
        if self.is_gone() {
            return None;
        }
        let value = self.region.read32(offset);
        if value == u32::MAX {
            self.gone.store(true, Ordering::Relaxed);
            return None;
        }
        Some(value)
    }
}
