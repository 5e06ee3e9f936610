//! What the channels of one function share.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use hal::dma::DmaSpace;
use hal::irq::Interrupts;
use hal::mmio::MmioRegion;
use hal::pci::{Address, Config};
use ioat_spec::pci::{CHANERR_INT, Part, Quirks};
use ioat_spec::{CbVer, DmaCap, IntrCtrl, device};

use crate::options::Options;
use crate::presence::Presence;
use crate::regs::Regs;

pub(crate) struct Device {
    pub(crate) address: Address,
    pub(crate) name: String,
    pub(crate) part: Part,
    pub(crate) version: CbVer,
    pub(crate) channels: usize,
    pub(crate) xfercap: u8,
    pub(crate) capabilities: DmaCap,
    pub(crate) region: MmioRegion,
    pub(crate) config: Config,
    pub(crate) dma: DmaSpace,
    pub(crate) interrupts: Interrupts,
    pub(crate) node: Option<u32>,
    pub(crate) options: Options,
    /// Interrupts are bound: who has none must be looked at more often.
    pub(crate) interrupting: AtomicBool,
    pub(crate) presence: Arc<Presence>,
}

impl Device {
    pub(crate) fn regs(&self, n: usize) -> Regs {
        let halves = self.version < CbVer::V3_3;
        Regs::new(self.region.clone(), n, halves, self.presence.clone())
    }

    /// The longest transfer of one descriptor, in bytes.
    pub(crate) fn transfer_limit(&self) -> usize {
        1 << self.xfercap
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.presence.is_gone()
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.presence.is_usable()
    }

    pub(crate) fn has_interrupts(&self) -> bool {
        self.interrupting.load(Ordering::Relaxed)
    }

    /// Registers read all ones: nothing touches them any more.
    pub(crate) fn set_gone(&self) {
        self.presence.set_gone();
    }

    /// The engine does not stop. Without bus mastering it reaches no memory, so that buffers and
    /// rings can be freed; its other channels are lost with it.
    pub(crate) fn cut_off(&self) {
        self.set_bus_master(false);
        self.presence.set_broken();
    }

    /// Lets the engine reach memory, or not. One whose registers read all ones may reach it still,
    /// if its configuration space answers: it is cut off all the same.
    pub(crate) fn set_bus_master(&self, on: bool) {
        if !on || !self.is_gone() {
            self.config.set_bus_master(on);
        }
    }

    /// Clears CHANERR_INT, which else keeps a channel in HALTED (SPDK).
    pub(crate) fn clear_config_errors(&self) {
        if self.is_gone() || !self.config.has_extended() {
            return;
        }
        let errors = self.config.read32(CHANERR_INT);
        if errors != 0 && errors != u32::MAX {
            self.config.write32(CHANERR_INT, errors);
        }
    }

    /// Writes lost interrupt routes anew, on parts whose RESET wipes them.
    pub(crate) fn restore_interrupts(&self) {
        if !self.is_gone() && self.part.quirks.contains(Quirks::RESET_LOSES_MSIX) {
            self.interrupts.restore();
        }
    }

    pub(crate) fn set_interrupts(&self, control: IntrCtrl) {
        if !self.is_gone() {
            self.region.write8(device::INTRCTRL, control.bits());
        }
    }
}
