//! Registers common to all channels, at BAR0 + 0.
//!
//! Source: Intel Xeon E7 v2 datasheet vol. 2; SPDK `ioat_spec.h`; FreeBSD `ioat_hw.h`.

use bitflags::bitflags;

/// CHANCNT, 8 bits, read-only: number of channels in bits 4:0.
pub const CHANCNT: usize = 0x00;
/// CHANCNT: the bits that count.
pub const CHANCNT_MASK: u8 = 0x1f;
/// XFERCAP, 8 bits, read-only: log2 of the longest transfer in bytes, in bits 4:0; at least 12.
pub const XFERCAP: usize = 0x01;
/// XFERCAP: the bits that count.
pub const XFERCAP_MASK: u8 = 0x1f;
/// The smallest XFERCAP that makes sense: one page.
pub const XFERCAP_MIN: u8 = 12;
/// GENCTRL, 8 bits: bit 0 enables debugging.
pub const GENCTRL: usize = 0x02;
/// INTRCTRL, 8 bits: [`IntrCtrl`].
pub const INTRCTRL: usize = 0x03;
/// ATTNSTATUS, 32 bits: bit n is channel n's interrupt; a read clears it.
pub const ATTNSTATUS: usize = 0x04;
/// CBVER, 8 bits, read-only: [`CbVer`].
pub const CBVER: usize = 0x08;
/// PERPORTOFFSET, 16 bits, read-only: a relic of versions 1 and 2.
pub const PERPORTOFFSET: usize = 0x0a;
/// INTRDELAY, 16 bits: interrupt coalescing.
pub const INTRDELAY: usize = 0x0c;
/// INTRDELAY: the delay in microseconds.
pub const INTRDELAY_MASK: u16 = 0x3fff;
/// INTRDELAY: coalescing is supported; read-only.
pub const INTRDELAY_SUPPORTED: u16 = 1 << 15;
/// CS_STATUS, 16 bits, read-only.
pub const CS_STATUS: usize = 0x0e;
/// CS_STATUS: the interconnect runs degraded.
pub const CS_STATUS_DEGRADED: u16 = 1 << 0;
/// CS_STATUS: MMIO sources and destinations are restricted.
pub const CS_STATUS_MMIO_RESTRICTED: u16 = 1 << 1;
/// CS_STATUS: memory bypass is on.
pub const CS_STATUS_MEMORY_BYPASS: u16 = 1 << 2;
/// CS_STATUS: DMA remapping is on.
pub const CS_STATUS_REMAPPING: u16 = 1 << 3;
/// DMACAPABILITY, 32 bits, read-only: [`DmaCap`].
pub const DMACAPABILITY: usize = 0x10;
/// DCAOFFSET, 16 bits, read-only: where the block for direct cache access is; 0 where there is none.
pub const DCAOFFSET: usize = 0x14;
/// CBPRIO, 8 bits, read-only, unused (Xeon E7 v2 datasheet).
pub const CBPRIO: usize = 0x40;
/// CHWPREFLMT, 8 bits, version 3.4: prefetch limit (Linux).
pub const CHWPREFLMT: usize = 0x4c;
/// What Linux writes to CHWPREFLMT.
pub const CHWPREFLMT_DEFAULT: u8 = 5;

/// Version of the engine, as CBVER holds it: major version in the high, minor in the low digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CbVer(pub u8);

impl CbVer {
    /// Version 3.0.
    pub const V3_0: Self = Self(0x30);
    /// Version 3.2.
    pub const V3_2: Self = Self(0x32);
    /// Version 3.3.
    pub const V3_3: Self = Self(0x33);
    /// Version 3.4.
    pub const V3_4: Self = Self(0x34);

    /// Major version.
    pub const fn major(self) -> u8 {
        self.0 >> 4
    }

    /// Minor version.
    pub const fn minor(self) -> u8 {
        self.0 & 0xf
    }
}

bitflags! {
    /// INTRCTRL.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IntrCtrl: u8 {
        /// Interrupts are enabled. A read returns it and clears it; the handler writes it back.
        const MASTER_INT_EN = 1 << 0;
        /// A channel has an interrupt: ATTNSTATUS is not 0. Read-only.
        const INT_STATUS = 1 << 1;
        /// INT_STATUS while MASTER_INT_EN: the interrupt is asserted. Read-only.
        const INT = 1 << 2;
        /// MSI-X: each channel has a vector of its own.
        const MSIX_VECTOR_CONTROL = 1 << 3;
    }
}

bitflags! {
    /// DMACAPABILITY: what the engine can do beyond copies.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct DmaCap: u32 {
        /// Copies whose source or destination goes on elsewhere after a page.
        const PAGE_BREAK = 1 << 0;
        /// CRC generation.
        const CRC = 1 << 1;
        /// Marker skipping.
        const MARKER_SKIP = 1 << 2;
        /// XOR by the opcodes of version 2.
        const XOR_OLD = 1 << 3;
        /// Direct cache access.
        const DCA = 1 << 4;
        /// Copy with CRC.
        const MOVE_CRC = 1 << 5;
        /// Filling a block with a pattern.
        const FILL_BLOCK = 1 << 6;
        /// Extended APIC IDs.
        const EXT_APIC_ID = 1 << 7;
        /// XOR.
        const XOR = 1 << 8;
        /// P and Q syndromes.
        const PQ = 1 << 9;
        /// DIF operations.
        const DIF = 1 << 10;
        /// Descriptor write-back of error status.
        const DWBES = 1 << 13;
        /// Up to 16 sources in PQ.
        const RAID16SS = 1 << 17;
        /// Multicast.
        const MULTICAST = 1 << 18;
        /// Completion timeout.
        const COMPLETION_TIMEOUT = 1 << 19;
        /// Descriptor pre-fetch, version 3.4.
        const DPS = 1 << 23;
    }
}
