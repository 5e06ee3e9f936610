//! Registers of one channel: 128 bytes at BAR0 + 80h·(n+1), offsets relative to that.
//!
//! Source: Intel Xeon E7 v2 datasheet vol. 2; SPDK `ioat_spec.h`; FreeBSD `ioat_hw.h`. The offsets
//! are those of versions 2 and 3; version 1 differs.

use bitflags::bitflags;

/// Bytes of registers per channel.
pub const STRIDE: usize = 0x80;

/// Where channel `n`'s registers start in BAR0.
pub const fn base(n: usize) -> usize {
    STRIDE * (n + 1)
}

/// CHANCTRL, 16 bits: [`ChanCtrl`].
pub const CHANCTRL: usize = 0x00;
/// DMA_COMP, 16 bits, read-only: bit 0 version 1, bit 1 version 2 compatible.
pub const DMA_COMP: usize = 0x02;
/// DMA_COMP: works as version 1.
pub const DMA_COMP_V1: u16 = 1 << 0;
/// DMA_COMP: works as version 2.
pub const DMA_COMP_V2: u16 = 1 << 1;
/// CHANCMD, 8 bits: [`ChanCmd`].
pub const CHANCMD: usize = 0x04;
/// DMACOUNT, 16 bits: descriptor slots submitted since CHAINADDR was written, modulo 2^16. The
/// doorbell.
pub const DMACOUNT: usize = 0x06;
/// CHANSTS, 64 bits, read-only: [`ChanSts`].
pub const CHANSTS: usize = 0x08;
/// CHAINADDR, 64 bits: address of the first descriptor, 64-byte aligned. Writing it arms the
/// channel and restarts the count of DMACOUNT at 0.
pub const CHAINADDR: usize = 0x10;
/// CHANCMP, 64 bits: where the completion word is written, 8-byte aligned; 0 for nowhere.
pub const CHANCMP: usize = 0x18;
/// CDAR, 64 bits, read-only: the current descriptor (Linux; no driver uses it).
pub const CDAR: usize = 0x20;
/// CHANERR, 32 bits, write-1-to-clear: [`ChanErr`].
pub const CHANERR: usize = 0x28;
/// CHANERRMSK, 32 bits: a 1 keeps that error from halting or interrupting.
pub const CHANERRMSK: usize = 0x2c;
/// DCACTRL, 32 bits: direct cache access.
pub const DCACTRL: usize = 0x30;
/// DCACTRL: direct cache access is on.
pub const DCACTRL_ENABLE: u32 = 1 << 16;
/// DRSCTL, 16 bits, version 3.4: descriptor ring size, where Linux writes it (B6h behind the
/// channel's base).
pub const DRSCTL: usize = 0xb6;
/// LTR_SWSEL, 8 bits, version 3.4, where Linux writes it: latency tolerance 0 active, 1 idle.
pub const LTR_SWSEL: usize = 0xbc;
/// LTR_ACTIVE, 32 bits, version 3.4, where Linux writes it.
pub const LTR_ACTIVE: usize = 0xc0;
/// LTR_IDLE, 32 bits, version 3.4, where Linux writes it.
pub const LTR_IDLE: usize = 0xc4;

bitflags! {
    /// CHANCTRL.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ChanCtrl: u16 {
        /// Hardware sets it when it interrupts and then holds further interrupts back; writing 1
        /// clears it.
        const INT_DISABLE = 1 << 0;
        /// An error writes the completion word.
        const ERR_COMPLETION_EN = 1 << 2;
        /// Any unmasked error halts the channel.
        const ANY_ERR_ABORT_EN = 1 << 3;
        /// An error interrupts.
        const ERR_INT_EN = 1 << 4;
        /// Descriptors are read without snooping caches.
        const DESC_NO_SNOOP = 1 << 5;
        /// Somebody uses the channel: the first read returns 0 and sets it; writing 0 releases.
        const IN_USE = 1 << 8;
        /// The completion word goes by direct cache access.
        const COMPL_DCA_EN = 1 << 9;
        /// Priority, by the headers; reserved in the Xeon E7 v2 datasheet.
        const PRIORITY = 0xf << 12;
    }
}

bitflags! {
    /// CHANCMD. One bit at a time.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ChanCmd: u8 {
        /// Version 1: start at CHAINADDR. Unused since.
        const START = 1 << 0;
        /// Version 1: look for appended descriptors. Unused since.
        const APPEND = 1 << 1;
        /// Finish what is under way, then stop.
        const SUSPEND = 1 << 2;
        /// Version 1: abort. Unused since.
        const ABORT = 1 << 3;
        /// Version 1: go on after SUSPEND. Unused since.
        const RESUME = 1 << 4;
        /// Return to HALTED. Reads 1 until done.
        const RESET = 1 << 5;
    }
}

/// What a channel is doing: CHANSTS bits 2:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Works on descriptors.
    Active = 0,
    /// All that DMACOUNT announced is done.
    Idle = 1,
    /// Stopped by SUSPEND.
    Suspended = 2,
    /// Stopped by an error or by RESET; so at power-on.
    Halted = 3,
    /// CHAINADDR is written, no descriptor announced.
    Armed = 4,
}

/// CHANSTS as a register, and the completion word in memory, which has the same layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChanSts(pub u64);

impl ChanSts {
    /// Bits 63:6: address of the last completed descriptor.
    pub const ADDRESS: u64 = !0x3f;
    /// Bit 4: a soft error.
    pub const SOFT_ERROR: u64 = 1 << 4;
    /// Bit 3: an error that belongs to no descriptor.
    pub const UNAFFILIATED: u64 = 1 << 3;
    /// Bits 2:0: the state.
    pub const STATE: u64 = 0x7;

    /// The word for a last completed descriptor and a state.
    pub const fn new(address: u64, state: State) -> Self {
        Self(address & Self::ADDRESS | state as u64)
    }

    /// Address of the last completed descriptor; 0 where none is complete since CHAINADDR.
    pub const fn address(self) -> u64 {
        self.0 & Self::ADDRESS
    }

    /// The state; `None` where the bits name none, as in a word of all ones.
    pub const fn state(self) -> Option<State> {
        match self.0 & Self::STATE {
            0 => Some(State::Active),
            1 => Some(State::Idle),
            2 => Some(State::Suspended),
            3 => Some(State::Halted),
            4 => Some(State::Armed),
            _ => None,
        }
    }
}

bitflags! {
    /// CHANERR, CHANERRMSK, and CHANERR_INT in configuration space.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ChanErr: u32 {
        /// Source address.
        const SRC_ADDR = 1 << 0;
        /// Destination address.
        const DST_ADDR = 1 << 1;
        /// Address of the next descriptor.
        const NEXT_ADDR = 1 << 2;
        /// Descriptor fetch (Linux names it the alignment of the next descriptor).
        const DESCRIPTOR = 1 << 3;
        /// Value of CHAINADDR.
        const CHAINADDR = 1 << 4;
        /// Command in CHANCMD.
        const CHANCMD = 1 << 5;
        /// Data integrity in the chipset.
        const CHIPSET = 1 << 6;
        /// Data integrity in the engine.
        const DMA_INTEGRITY = 1 << 7;
        /// Reading data.
        const READ_DATA = 1 << 8;
        /// Writing data.
        const WRITE_DATA = 1 << 9;
        /// Control word of a descriptor.
        const CONTROL = 1 << 10;
        /// Length in a descriptor.
        const LENGTH = 1 << 11;
        /// Address in CHANCMP.
        const COMPLETION_ADDR = 1 << 12;
        /// Configuration of interrupts.
        const INT_CONFIG = 1 << 13;
        /// Address of the super-extended descriptor.
        const SED_ADDR = 1 << 14;
        /// Belongs to no descriptor.
        const UNAFFILIATED = 1 << 15;
        /// CRC, XOR or P does not match.
        const CRC_XOR_P = 1 << 16;
        /// Q does not match.
        const Q = 1 << 17;
        /// DMACOUNT ends between a descriptor and its extension.
        const DESCRIPTOR_COUNT = 1 << 18;
        /// DIF: all of the tag is ones.
        const DIF_ALL_F = 1 << 19;
        /// DIF: guard tag.
        const DIF_GUARD = 1 << 20;
        /// DIF: application tag.
        const DIF_APP = 1 << 21;
        /// DIF: reference tag.
        const DIF_REF = 1 << 22;
        /// Bundle.
        const BUNDLE = 1 << 23;
        /// Result DIF: all of the tag is ones.
        const RESULT_DIF_ALL_F = 1 << 24;
        /// Result DIF: guard tag.
        const RESULT_DIF_GUARD = 1 << 25;
        /// Result DIF: application tag.
        const RESULT_DIF_APP = 1 << 26;
        /// Result DIF: reference tag.
        const RESULT_DIF_REF = 1 << 27;
    }
}
