//! What the channels of one function share.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use hal::dma::DmaSpace;
use hal::irq::Interrupts;
use hal::mmio::MmioRegion;
use hal::pci::{Address, Config};
use hal::time::{Duration, poll_until};
use ioat_spec::pci::{CHANERR_INT, Part, Quirks};
use ioat_spec::{CbVer, DmaCap, IntrCtrl, device};

use crate::options::Options;
use crate::presence::{Presence, Reach};
use crate::regs::Regs;

/// How long it is waited for that a slot reports itself off or empty: power may take a second to go
/// (PCI Express Base 6.7.1.8).
const ISOLATE_LIMIT: Duration = Duration::from_secs(1);
const ISOLATE_STEP: Duration = Duration::from_millis(10);

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

    /// The engine does not stop: its channels are lost, all of them.
    pub(crate) fn set_broken(&self) {
        self.presence.set_broken();
    }

    /// Keeps the engine from memory for good, so that buffers and rings can be given to others;
    /// whether that has come true. The first call does it, others wait for what comes of it. Bounded
    /// in time.
    ///
    /// Bus mastering is cleared and read back. That its configuration space does not answer either
    /// is the one look at an engine that is gone: whoever has something above it is asked to isolate
    /// it then, and it is not touched again.
    pub(crate) async fn cut_off(&self) -> bool {
        let presence = &self.presence;
        if presence.close() {
            // Where something stands between the engine and memory, that needs no answer of it. What
            // it has under way is kept from memory all the same.
            self.dma.revoke();
            let closed = self.config.set_bus_master(false) || self.isolate().await;
            presence.set_reach(if closed {
                Reach::Closed
            } else {
                Reach::Exposed
            });
        }
        let decided = || presence.reach() != Reach::Closing;
        // Who does it takes no longer.
        let _ = poll_until(2 * ISOLATE_LIMIT, ISOLATE_STEP, decided).await;
        presence.reach() == Reach::Closed
    }

    async fn isolate(&self) -> bool {
        if self.is_gone() {
            self.config.set_absent();
        }
        let isolated = || self.dma.isolate();
        poll_until(ISOLATE_LIMIT, ISOLATE_STEP, isolated)
            .await
            .is_ok()
    }

    /// Whether the engine was to be cut off from memory, and may write it all the same.
    pub(crate) fn is_exposed(&self) -> bool {
        self.presence.reach() == Reach::Exposed
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
