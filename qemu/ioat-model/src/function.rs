//! What the channels share: configuration space, the device's registers, interrupts.
//!
//! A channel raises its interrupt here; whether and how it leaves is decided by the rules below,
//! in one place. An interrupt is *held* as long as something keeps it from leaving (MASTER_INT_EN
//! clear, bus mastering off), and leaves when that has changed, unless the guest has seen it
//! otherwise by then.
//!
//! | kind | leaves when | as |
//! |---|---|---|
//! | MSI-X | INTRCTRL bit 0 or 3, bus master | message n of channel n |
//! | MSI | INTRCTRL bit 0, bus master | message 0 |
//! | INTx | INTRCTRL bit 0, pin not disabled | level, while ATTNSTATUS is not 0 |
//!
//! Sources: Intel Xeon E7 v2 datasheet vol. 2 (INTRCTRL, ATTNSTATUS); the interrupt handlers of
//! Linux ioatdma (reads both) and FreeBSD ioat(4) (reads neither, and only re-arms the channel:
//! so a re-arm withdraws the channel's part of the level).

use std::sync::Arc;

use ioat_spec::{IntrCtrl, channel, device};

use crate::channel_registers::ACCEPTED;
use crate::config_space::{ConfigSpace, Gates, Mode, msix_layout};
use crate::fault::Fault;
use crate::memory::InterruptSink;
use crate::options::EngineConfig;
use crate::registers::{Register, RegisterSet, covers, ro, rw};
use crate::statistics::{Counters, add};

/// The registers of no channel that BAR0 holds, and the interrupts.
pub(crate) struct Function {
    pub(crate) config: ConfigSpace,
    device: RegisterSet,
    /// Behind the last channel: where Linux writes the 3.4 registers of the last channel.
    behind: RegisterSet,
    behind_at: usize,
    msix: RegisterSet,
    msix_at: usize,
    sink: Arc<dyn InterruptSink>,
    counters: Arc<Counters>,
    /// Channels whose interrupt has not left yet.
    held: u32,
    pin: bool,
}

fn device_table(config: &EngineConfig) -> Vec<Register> {
    let mut chancnt = config.channels as u64;
    let mut xfercap = config.xfercap_log2;
    for fault in &config.faults {
        match *fault {
            Fault::ChanCnt(count) => chancnt = count.into(),
            Fault::XferCap(log2) => xfercap = log2,
            _ => {}
        }
    }
    vec![
        ro(device::CHANCNT, 1, chancnt),
        ro(device::XFERCAP, 1, xfercap.into()),
        rw(device::GENCTRL, 1, 1),
        Register {
            rw: 0x09,
            read_clears: 0x01,
            ..ro(device::INTRCTRL, 1, 0)
        },
        Register {
            read_clears: 0xffff_ffff,
            ..ro(device::ATTNSTATUS, 4, 0)
        },
        ro(device::CBVER, 1, config.cbver.0.into()),
        ro(device::PERPORTOFFSET, 2, 0),
        Register {
            reset: device::INTRDELAY_SUPPORTED.into(),
            ..rw(device::INTRDELAY, 2, device::INTRDELAY_MASK.into())
        },
        ro(device::CS_STATUS, 2, 0),
        ro(device::DMACAPABILITY, 4, config.capabilities.bits().into()),
        ro(device::DCAOFFSET, 2, 0),
        ro(device::CBPRIO, 1, 0),
        rw(device::CHWPREFLMT, 1, 0xff),
    ]
}

/// An MSI-X table entry: address, data, and a vector control that comes up masked.
fn msix_table(vectors: usize) -> Vec<Register> {
    (0..vectors)
        .flat_map(|n| {
            [
                rw(16 * n, 8, !0x3),
                rw(16 * n + 8, 4, 0xffff_ffff),
                Register {
                    reset: 1,
                    ..rw(16 * n + 12, 4, 1)
                },
            ]
        })
        .collect()
}

impl Function {
    pub(crate) fn new(
        config: &EngineConfig,
        sink: Arc<dyn InterruptSink>,
        counters: Arc<Counters>,
    ) -> Self {
        let (msix_at, _) = msix_layout(config.cbver);
        Self {
            config: ConfigSpace::new(config),
            device: RegisterSet::new(channel::STRIDE, &device_table(config)),
            behind: RegisterSet::new(channel::STRIDE, &ACCEPTED),
            behind_at: channel::base(config.channels),
            msix: RegisterSet::new(16 * config.channels, &msix_table(config.channels)),
            msix_at,
            sink,
            counters,
            held: 0,
            pin: false,
        }
    }

    /// Reads registers of the device, or of none; `offset` is in BAR0.
    pub(crate) fn read(&mut self, offset: usize, bytes: &mut [u8]) {
        let Some((kind, at)) = self.find(offset) else {
            bytes.fill(0);
            return;
        };
        if kind != Block::Device {
            self.block(kind).read(at, bytes);
            return;
        }
        self.show_status();
        self.device.read(at, bytes);
        if covers(at, bytes.len(), device::ATTNSTATUS) && self.config.gates().irq != Mode::MsiX {
            // The guest knows of them now.
            self.held = 0;
        }
        self.deliver();
    }

    /// Writes registers of the device, or of none.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        if let Some((kind, at)) = self.find(offset) {
            self.block(kind).write(at, bytes);
            self.deliver();
        }
    }

    /// Channel `n` interrupts.
    pub(crate) fn raise(&mut self, n: usize) {
        let bit = 1 << n;
        self.set_attention(self.attention() | bit);
        self.held |= bit;
        self.deliver();
    }

    /// Channel `n` may interrupt again: what it raised before is done with.
    pub(crate) fn rearm(&mut self, n: usize) {
        let bit = 1 << n;
        self.set_attention(self.attention() & !bit);
        self.held &= !bit;
        self.deliver();
    }

    /// Lets what is held leave, where it may, and sets the pin. After every change of what decides
    /// that.
    pub(crate) fn deliver(&mut self) {
        let Gates { dma, irq } = self.config.gates();
        let control = IntrCtrl::from_bits_truncate(self.device.get(device::INTRCTRL, 1) as u8);
        let master = control.contains(IntrCtrl::MASTER_INT_EN);
        let attention = self.attention();
        match irq {
            Mode::MsiX if dma && (master || control.contains(IntrCtrl::MSIX_VECTOR_CONTROL)) => {
                for n in (0..32).filter(|n| self.held & 1 << n != 0) {
                    add(&self.counters.interrupts, 1);
                    self.sink.message(n);
                }
                self.held = 0;
            }
            Mode::Msi if dma && master => {
                if self.held != 0 {
                    add(&self.counters.interrupts, 1);
                    self.sink.message(0);
                }
                self.held = 0;
            }
            Mode::Intx | Mode::Off if master => self.held = 0,
            _ => {}
        }
        let pending = master && attention != 0;
        self.config
            .set_interrupt_status(pending && matches!(irq, Mode::Intx | Mode::Off));
        let pin = pending && irq == Mode::Intx;
        if pin != self.pin {
            self.pin = pin;
            add(&self.counters.interrupts, pin.into());
            self.sink.set_intx(pin);
        }
    }

    /// How long a channel waits before it interrupts, in microseconds.
    pub(crate) fn interrupt_delay(&self) -> u64 {
        self.device.get(device::INTRDELAY, 2) & u64::from(device::INTRDELAY_MASK)
    }

    /// What RESET of a channel does to the 3.3 parts.
    pub(crate) fn lose_msix(&mut self) {
        self.msix.reset_all();
        self.config.lose_msix();
    }

    /// Power-on state.
    pub(crate) fn reset(&mut self) {
        self.config.reset();
        self.device.reset_all();
        self.behind.reset_all();
        self.msix.reset_all();
        self.held = 0;
        self.deliver();
    }

    fn attention(&self) -> u32 {
        self.device.get(device::ATTNSTATUS, 4) as u32
    }

    fn set_attention(&mut self, bits: u32) {
        self.device.set(device::ATTNSTATUS, 4, bits.into());
    }

    /// Puts the read-only bits of INTRCTRL in place.
    fn show_status(&mut self) {
        let mut control = IntrCtrl::from_bits_truncate(self.device.get(device::INTRCTRL, 1) as u8);
        let status = self.attention() != 0;
        let int = status && control.contains(IntrCtrl::MASTER_INT_EN);
        control.set(IntrCtrl::INT_STATUS, status);
        control.set(IntrCtrl::INT, int);
        self.device.set(device::INTRCTRL, 1, control.bits().into());
    }

    fn find(&self, offset: usize) -> Option<(Block, usize)> {
        let inside = |start: usize, len: usize| offset.checked_sub(start).filter(|at| *at < len);
        inside(0, self.device.len())
            .map(|at| (Block::Device, at))
            .or_else(|| inside(self.behind_at, self.behind.len()).map(|at| (Block::Behind, at)))
            .or_else(|| inside(self.msix_at, self.msix.len()).map(|at| (Block::MsiX, at)))
    }

    fn block(&mut self, kind: Block) -> &mut RegisterSet {
        match kind {
            Block::Device => &mut self.device,
            Block::Behind => &mut self.behind,
            Block::MsiX => &mut self.msix,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Device,
    Behind,
    MsiX,
}
