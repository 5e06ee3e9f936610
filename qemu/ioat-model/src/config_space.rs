//! The function's configuration space: 4 KiB.
//!
//! PCI Express Base 7.5 and 7.6 for the header and the capabilities; where they lie, and the
//! registers from 148h on, as in [`ioat_spec::pci`].

use ioat_spec::{CbVer, pci};

use crate::fault::Fault;
use crate::options::{EngineConfig, Irq, MAX_CHANNELS};
use crate::registers::{Register, RegisterSet, covers, ro, rw, w1c};

/// Bytes of configuration space.
pub(crate) const LEN: usize = 4096;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u64 = 1 << 1;
const COMMAND_BUS_MASTER: u64 = 1 << 2;
const COMMAND_PARITY: u64 = 1 << 6;
const COMMAND_SERR: u64 = 1 << 8;
const COMMAND_INTX_DISABLE: u64 = 1 << 10;
const STATUS: usize = 0x06;
const STATUS_INTERRUPT: u64 = 1 << 3;
const STATUS_CAPABILITIES: u64 = 1 << 4;
const STATUS_ERRORS: u64 = 0xf900;
const BAR0: usize = 0x10;
const BAR_64BIT: u64 = 2 << 1;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;

/// Where the MSI or MSI-X capability lies: the parts have MSI-X there.
const IRQ_CAP: usize = pci::MSIX_CAP;
const CAP_MSI: u64 = 0x05;
const CAP_MSIX: u64 = 0x11;
const CAP_PM: u64 = 0x01;
const CAP_PCIE: u64 = 0x10;
const MSI_CONTROL: usize = IRQ_CAP + 2;
const MSI_ENABLE: u64 = 1 << 0;
const MSI_64BIT: u64 = 1 << 7;
const MSIX_CONTROL: usize = IRQ_CAP + 2;
const MSIX_ENABLE: u64 = 1 << 15;
const MSIX_FUNCTION_MASK: u64 = 1 << 14;

const DEVCAP: usize = pci::PCIE_CAP + 0x04;
const DEVCAP_FLR: u64 = 1 << 28;
const DEVCAP_ROLE_BASED_ERRORS: u64 = 1 << 15;
const DEVCTL: usize = pci::PCIE_CAP + 0x08;
const DEVCTL_FLR: u8 = 1 << 7;
const DEVSTA: usize = pci::PCIE_CAP + 0x0a;
const LNKCAP: usize = pci::PCIE_CAP + 0x0c;
const LNKCTL: usize = pci::PCIE_CAP + 0x10;
const LNKSTA: usize = pci::PCIE_CAP + 0x12;
const DEVCAP2: usize = pci::PCIE_CAP + 0x24;
const LINK_2_5GT_X1: u64 = 1 << 4 | 1;

const PM_CONTROL: usize = pci::PM_CAP + 4;
const PM_STATE: u64 = 0x3;
const PM_NO_SOFT_RESET: u64 = 1 << 3;

const AER: usize = 0x100;
const AER_ID: u64 = 0x0001;
const AER_UNCORRECTABLE: u64 = 0x07ff_f030;
const AER_CORRECTABLE: u64 = 0xf1c1;

/// What the configuration space says about interrupts and DMA at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gates {
    /// The function may write memory: bus mastering is on and it is in D0.
    pub(crate) dma: bool,
    /// How it interrupts.
    pub(crate) irq: Mode,
}

/// How the function interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    MsiX,
    Msi,
    Intx,
    /// The pin, and it is disabled.
    Off,
}

/// The configuration space of an engine.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    registers: RegisterSet,
    irq: Irq,
    bar_len: u64,
    /// What each channel has raised in CHANERR_INT. The parts have one channel a function; with
    /// more, one channel's error must not keep another from starting.
    raised: [u32; MAX_CHANNELS],
}

/// Where the MSI-X table and its pending bits are in BAR0. 3.3 parts have them elsewhere (Linux).
pub(crate) fn msix_layout(cbver: CbVer) -> (usize, usize) {
    if cbver == CbVer::V3_3 {
        (0x1000, 0x1800)
    } else {
        (pci::MSIX_TABLE, pci::MSIX_PBA)
    }
}

/// A writable 16-bit register with a reset value.
const fn rw_reset(offset: usize, width: usize, reset: u64, mask: u64) -> Register {
    Register {
        reset,
        ..rw(offset, width, mask)
    }
}

fn table(config: &EngineConfig, bar_len: u64) -> Vec<Register> {
    let looping = config.faults.contains(&Fault::CapabilityLoop);
    let pcie_next = if config.irq == Irq::Intx {
        0
    } else {
        IRQ_CAP as u64
    };
    let irq_next = if looping { pci::PM_CAP as u64 } else { 0 };
    let aer_next = if looping { AER as u64 } else { 0 };
    let bar_mask = !(bar_len - 1);
    let mut table = vec![
        ro(0x00, 2, pci::VENDOR_INTEL.into()),
        ro(0x02, 2, config.device_id.into()),
        rw(
            COMMAND,
            2,
            COMMAND_MEMORY
                | COMMAND_BUS_MASTER
                | COMMAND_PARITY
                | COMMAND_SERR
                | COMMAND_INTX_DISABLE,
        ),
        Register {
            reset: STATUS_CAPABILITIES,
            ..w1c(STATUS, 2, STATUS_ERRORS)
        },
        ro(0x09, 3, pci::CLASS.into()),
        rw(0x0c, 1, 0xff),
        rw_reset(BAR0, 8, BAR_64BIT, bar_mask),
        ro(0x2c, 2, pci::VENDOR_INTEL.into()),
        ro(0x2e, 2, config.device_id.into()),
        ro(CAPABILITIES, 1, pci::PM_CAP as u64),
        rw(INTERRUPT_LINE, 1, 0xff),
        ro(INTERRUPT_PIN, 1, 1),
        // Power management: PCI Express Base 7.5.2.
        ro(pci::PM_CAP, 2, CAP_PM | (pci::PCIE_CAP as u64) << 8),
        ro(pci::PM_CAP + 2, 2, 3),
        rw_reset(PM_CONTROL, 2, PM_NO_SOFT_RESET, PM_STATE),
        // PCI Express: 7.5.3. An endpoint, capability version 2.
        ro(pci::PCIE_CAP, 2, CAP_PCIE | pcie_next << 8),
        ro(pci::PCIE_CAP + 2, 2, 2),
        ro(DEVCAP, 4, DEVCAP_FLR | DEVCAP_ROLE_BASED_ERRORS),
        rw_reset(DEVCTL, 2, 0x2810, 0x7fff),
        w1c(DEVSTA, 2, 0xf),
        ro(LNKCAP, 4, LINK_2_5GT_X1),
        rw(LNKCTL, 2, 0x00c3),
        ro(LNKSTA, 2, LINK_2_5GT_X1),
        ro(DEVCAP2, 4, 0),
        // Advanced error reporting, 7.8.4, version 2: 48h bytes.
        ro(AER, 4, AER_ID | 2 << 16 | aer_next << 20),
        w1c(AER + 0x04, 4, AER_UNCORRECTABLE),
        rw(AER + 0x08, 4, AER_UNCORRECTABLE),
        rw_reset(AER + 0x0c, 4, 0x0046_2030, AER_UNCORRECTABLE),
        w1c(AER + 0x10, 4, AER_CORRECTABLE),
        rw_reset(AER + 0x14, 4, 0x2000, AER_CORRECTABLE),
        // The engine's own.
        w1c(pci::DMAUNCERRSTS, 4, 0xffff_ffff),
        w1c(pci::CHANERR_INT, 4, 0xffff_ffff),
        rw(pci::CHANERRMSK_INT, 4, 0xffff_ffff),
    ];
    let channels = config.channels as u64;
    let (msix_table, msix_pba) = msix_layout(config.cbver);
    match config.irq {
        Irq::Intx => {}
        Irq::Msi => table.extend([
            ro(IRQ_CAP, 2, CAP_MSI | irq_next << 8),
            rw_reset(MSI_CONTROL, 2, MSI_64BIT, MSI_ENABLE | 0x70),
            rw(IRQ_CAP + 4, 8, !0x3),
            rw(IRQ_CAP + 12, 2, 0xffff),
        ]),
        Irq::MsiX => table.extend([
            ro(IRQ_CAP, 2, CAP_MSIX | irq_next << 8),
            rw_reset(
                MSIX_CONTROL,
                2,
                channels - 1,
                MSIX_ENABLE | MSIX_FUNCTION_MASK,
            ),
            ro(IRQ_CAP + 4, 4, msix_table as u64),
            ro(IRQ_CAP + 8, 4, msix_pba as u64),
        ]),
    }
    table
}

impl ConfigSpace {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        let bar_len = config
            .faults
            .iter()
            .find_map(|fault| match fault {
                Fault::Bar(len) => Some(*len),
                _ => None,
            })
            .unwrap_or(pci::BAR0_LEN as u64);
        Self {
            registers: RegisterSet::new(LEN, &table(config, bar_len)),
            irq: config.irq,
            bar_len,
            raised: [0; MAX_CHANNELS],
        }
    }

    /// Bytes of address space that BAR0 asks for.
    pub(crate) fn bar_len(&self) -> u64 {
        self.bar_len
    }

    pub(crate) fn read(&mut self, offset: usize, bytes: &mut [u8]) {
        self.registers.read(offset, bytes);
    }

    /// Writes; `true` where that asks for a function-level reset.
    #[must_use]
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        self.registers.write(offset, bytes);
        let left = self.registers.get(pci::CHANERR_INT, 4) as u32;
        self.raised.iter_mut().for_each(|bits| *bits &= left);
        let flr = DEVCTL + 1;
        covers(offset, bytes.len(), flr) && bytes[flr - offset] & DEVCTL_FLR != 0
    }

    /// Power-on state.
    pub(crate) fn reset(&mut self) {
        self.registers.reset_all();
        self.raised = [0; MAX_CHANNELS];
    }

    pub(crate) fn gates(&self) -> Gates {
        let command = self.registers.get(COMMAND, 2);
        let d0 = self.registers.get(PM_CONTROL, 2) & PM_STATE == 0;
        let msi = self.irq == Irq::Msi && self.registers.get(MSI_CONTROL, 2) & MSI_ENABLE != 0;
        let msix = self.irq == Irq::MsiX && self.registers.get(MSIX_CONTROL, 2) & MSIX_ENABLE != 0;
        Gates {
            dma: command & COMMAND_BUS_MASTER != 0 && d0,
            irq: if msix {
                Mode::MsiX
            } else if msi {
                Mode::Msi
            } else if command & COMMAND_INTX_DISABLE != 0 {
                Mode::Off
            } else {
                Mode::Intx
            },
        }
    }

    /// What channel `n` has raised in CHANERR_INT and nobody has cleared.
    pub(crate) fn chanerr_int(&self, n: usize) -> u32 {
        self.raised[n]
    }

    /// Channel `n` sets bits of CHANERR_INT.
    pub(crate) fn raise_chanerr_int(&mut self, n: usize, bits: u32) {
        self.raised[n] |= bits;
        let all = self.raised.iter().fold(0, |all, bits| all | bits);
        self.registers.set(pci::CHANERR_INT, 4, all.into());
    }

    /// Shows in the status register whether an interrupt waits for the pin.
    pub(crate) fn set_interrupt_status(&mut self, pending: bool) {
        let status = self.registers.get(STATUS, 2) & !STATUS_INTERRUPT;
        let bit = if pending { STATUS_INTERRUPT } else { 0 };
        self.registers.set(STATUS, 2, status | bit);
    }

    /// What RESET does on the 3.3 parts: MSI-X is as after power-on.
    pub(crate) fn lose_msix(&mut self) {
        if self.irq == Irq::MsiX {
            self.registers.reset(MSIX_CONTROL, 2);
        }
    }
}
