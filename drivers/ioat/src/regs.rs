//! One channel's registers.

use alloc::sync::Arc;

use hal::mmio::MmioRegion;
use ioat_spec::channel::{CHAINADDR, CHANCMD, CHANCMP, CHANCTRL, CHANERR, CHANSTS, DMACOUNT, base};
use ioat_spec::{ChanCmd, ChanCtrl, ChanErr, ChanSts};

use crate::presence::Presence;

/// What CHANCTRL holds while a channel runs: an error halts it, writes the completion word and
/// interrupts. Writing it also re-arms the interrupt, and so drops the channel's bit in ATTNSTATUS
/// and the level of INTx, without a read (FreeBSD ioat(4) does no more in its handler).
const RUNNING: ChanCtrl = ChanCtrl::INT_DISABLE
    .union(ChanCtrl::ERR_COMPLETION_EN)
    .union(ChanCtrl::ANY_ERR_ABORT_EN)
    .union(ChanCtrl::ERR_INT_EN);

/// The registers of channel `n`. A read of all ones, which no register here can hold, says that
/// the engine is gone: no access reaches it afterwards.
#[derive(Clone)]
pub(crate) struct Regs {
    region: MmioRegion,
    base: usize,
    /// Before 3.3 the 64-bit registers take two 32-bit writes, low half first (Linux, FreeBSD).
    halves: bool,
    presence: Arc<Presence>,
}

impl Regs {
    pub(crate) fn new(region: MmioRegion, n: usize, halves: bool, presence: Arc<Presence>) -> Self {
        Self {
            region,
            base: base(n),
            halves,
            presence,
        }
    }

    fn is_gone(&self) -> bool {
        self.presence.is_gone()
    }

    /// What was read, unless it was all ones.
    fn present<T>(&self, present: bool, value: T) -> Option<T> {
        if !present {
            self.presence.set_gone();
        }
        present.then_some(value)
    }

    /// CHANSTS. `None` where it reads all ones: the engine is gone.
    ///
    /// One read of 64 bits: only the state is used where it matters, which is in the low half, so
    /// that a torn read does no harm; addresses are taken from memory.
    pub(crate) fn status(&self) -> Option<ChanSts> {
        if self.is_gone() {
            return None;
        }
        let word = self.region.read64(self.base + CHANSTS);
        self.present(word != u64::MAX, ChanSts(word))
    }

    /// CHANERR. `None` where the engine is gone.
    pub(crate) fn errors(&self) -> Option<ChanErr> {
        if self.is_gone() {
            return None;
        }
        let word = self.region.read32(self.base + CHANERR);
        self.present(word != u32::MAX, ChanErr::from_bits_retain(word))
    }

    /// Clears the bits `errors` of CHANERR.
    pub(crate) fn clear_errors(&self, errors: ChanErr) {
        if !self.is_gone() {
            self.region.write32(self.base + CHANERR, errors.bits());
        }
    }

    /// CHANCMD: commands still under way. `None` where the engine is gone.
    pub(crate) fn commands(&self) -> Option<ChanCmd> {
        if self.is_gone() {
            return None;
        }
        let byte = self.region.read8(self.base + CHANCMD);
        if byte == u8::MAX {
            // So few bits prove nothing: CHANSTS tells.
            self.status()?;
        }
        Some(ChanCmd::from_bits_retain(byte))
    }

    pub(crate) fn command(&self, command: ChanCmd) {
        if !self.is_gone() {
            self.region.write8(self.base + CHANCMD, command.bits());
        }
    }

    /// Sets how the channel behaves, and re-arms its interrupt.
    pub(crate) fn arm(&self) {
        if !self.is_gone() {
            self.region.write16(self.base + CHANCTRL, RUNNING.bits());
        }
    }

    /// Rings the doorbell: `count` descriptors since CHAINADDR, modulo 2^16.
    pub(crate) fn doorbell(&self, count: u64) {
        if !self.is_gone() {
            self.region.write16(self.base + DMACOUNT, count as u16);
        }
    }

    pub(crate) fn set_chain(&self, address: u64) {
        self.write64(CHAINADDR, address);
    }

    pub(crate) fn set_completion(&self, address: u64) {
        self.write64(CHANCMP, address);
    }

    fn write64(&self, offset: usize, value: u64) {
        if self.is_gone() {
            return;
        }
        let offset = self.base + offset;
        if self.halves {
            self.region.write32(offset, value as u32);
            self.region.write32(offset + 4, (value >> 32) as u32);
        } else {
            self.region.write64(offset, value);
        }
    }
}
