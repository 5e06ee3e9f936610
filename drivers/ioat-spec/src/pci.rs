//! PCI identity and configuration space.
//!
//! Sources: Intel Xeon E7 v2 datasheet vol. 2 (BAR, capabilities), the device tables of Linux
//! ioatdma, FreeBSD ioat(4), SPDK and DPDK (identities).

use crate::device::CbVer;

/// Intel's vendor ID.
pub const VENDOR_INTEL: u16 = 0x8086;
/// Class code 08h (system peripheral), sub-class 80h (other), interface 0: `0xBBSSPP`. No driver
/// matches it; the device ID alone identifies an engine.
pub const CLASS: u32 = 0x08_80_00;
/// Size of BAR0, a 64-bit memory BAR, in bytes.
pub const BAR0_LEN: usize = 16 << 10;
/// The BAR that holds the registers.
pub const BAR: usize = 0;

/// DMAUNCERRSTS, 32 bits, write-1-to-clear, in extended configuration space.
pub const DMAUNCERRSTS: usize = 0x148;
/// DMAUNCERRSTS: parity error in the configuration space.
pub const DMAUNCERRSTS_CONFIG_PARITY: u32 = 1 << 4;
/// CHANERR_INT, 32 bits, write-1-to-clear, in extended configuration space; its bits are those of
/// [`crate::ChanErr`]. A channel leaves HALTED only when this and CHANERR are clear (SPDK).
pub const CHANERR_INT: usize = 0x180;
/// CHANERRMSK_INT, 32 bits, in extended configuration space.
pub const CHANERRMSK_INT: usize = 0x184;
/// What FreeBSD ioat(4) writes to CHANERRMSK_INT at every reset of a 3.2 channel.
pub const CHANERRMSK_INT_DEFAULT: u32 = 0x3e07;

/// Offset of the PCI Express capability in the Xeon parts.
pub const PCIE_CAP: usize = 0x90;
/// Offset of the power-management capability in the Xeon parts.
pub const PM_CAP: usize = 0xe0;
/// Offset of the MSI-X capability in the Xeon parts.
pub const MSIX_CAP: usize = 0x80;
/// Offset of the MSI-X table in BAR0 (Xeon E7 v2).
pub const MSIX_TABLE: usize = 0x2000;
/// Offset of the MSI-X pending-bit array in BAR0 (Xeon E7 v2).
pub const MSIX_PBA: usize = 0x3000;

/// One engine that Intel built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// PCI device ID.
    pub device: u16,
    /// Platform.
    pub name: &'static str,
    /// The CBVER that its register holds.
    pub cbver: CbVer,
    /// What a driver must know of it.
    pub quirks: Quirks,
}

bitflags::bitflags! {
    /// What sets a part apart from others of its version.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Quirks: u8 {
        /// RESET wipes the MSI-X table and control word: save and restore them (Linux, FreeBSD).
        const RESET_LOSES_MSIX = 1 << 0;
        /// Has the RAID operations (XOR, PQ) that its siblings lack.
        const RAID = 1 << 1;
        /// Reaches 40 address bits only (Xeon C5500 datasheet).
        const ADDRESS_40 = 1 << 2;
        /// Bus locks hang it while it works (Xeon E7 v2 specification update, January 2015, CF4).
        const LOCK_HANGS = 1 << 3;
        /// SUSPEND or RESET of a channel with XOR work spoils what other channels copy (the same,
        /// CF5).
        const XOR_DISTURBS = 1 << 4;
    }
}

const fn part(device: u16, name: &'static str, cbver: CbVer, quirks: Quirks) -> Part {
    Part {
        device,
        name,
        cbver,
        quirks,
    }
}

const NONE: Quirks = Quirks::empty();
/// CF4 and CF5: whether the siblings that the E7's document does not speak of have them is not known.
const E7_V2: Quirks = Quirks::LOCK_HANGS.union(Quirks::XOR_DISTURBS);

/// Every engine of versions 3.2 to 3.4, by rising device ID.
pub const PARTS: &[Part] = &[
    part(0x0b00, "Ice Lake-SP", CbVer::V3_4, NONE),
    part(
        0x0c50,
        "Atom S1200",
        CbVer::V3_3,
        Quirks::RESET_LOSES_MSIX.union(Quirks::RAID),
    ),
    part(
        0x0c51,
        "Atom S1200",
        CbVer::V3_3,
        Quirks::RESET_LOSES_MSIX.union(Quirks::RAID),
    ),
    part(0x0c52, "Atom S1200", CbVer::V3_3, Quirks::RESET_LOSES_MSIX),
    part(0x0c53, "Atom S1200", CbVer::V3_3, Quirks::RESET_LOSES_MSIX),
    part(0x0e20, "Xeon E5/E7 v2", CbVer::V3_2, E7_V2),
    part(0x0e21, "Xeon E5/E7 v2", CbVer::V3_2, E7_V2),
    part(0x0e22, "Xeon E5/E7 v2", CbVer::V3_2, E7_V2),
    part(0x0e23, "Xeon E5/E7 v2", CbVer::V3_2, E7_V2),
    part(0x0e24, "Xeon E5/E7 v2", CbVer::V3_2, E7_V2),
    part(0x0e25, "Xeon E5/E7 v2", CbVer::V3_2, E7_V2),
    part(0x0e26, "Xeon E5/E7 v2", CbVer::V3_2, E7_V2),
    part(0x0e27, "Xeon E5/E7 v2", CbVer::V3_2, E7_V2),
    part(
        0x0e2e,
        "Xeon E5/E7 v2",
        CbVer::V3_2,
        Quirks::RAID.union(E7_V2),
    ),
    part(
        0x0e2f,
        "Xeon E5/E7 v2",
        CbVer::V3_2,
        Quirks::RAID.union(E7_V2),
    ),
    part(0x2021, "Xeon Scalable", CbVer::V3_2, NONE),
    part(0x2f20, "Xeon E5/E7 v3", CbVer::V3_2, NONE),
    part(0x2f21, "Xeon E5/E7 v3", CbVer::V3_2, NONE),
    part(0x2f22, "Xeon E5/E7 v3", CbVer::V3_2, NONE),
    part(0x2f23, "Xeon E5/E7 v3", CbVer::V3_2, NONE),
    part(0x2f24, "Xeon E5/E7 v3", CbVer::V3_2, NONE),
    part(0x2f25, "Xeon E5/E7 v3", CbVer::V3_2, NONE),
    part(0x2f26, "Xeon E5/E7 v3", CbVer::V3_2, NONE),
    part(0x2f27, "Xeon E5/E7 v3", CbVer::V3_2, NONE),
    part(0x2f2e, "Xeon E5/E7 v3", CbVer::V3_2, Quirks::RAID),
    part(0x2f2f, "Xeon E5/E7 v3", CbVer::V3_2, Quirks::RAID),
    part(0x3710, "Xeon C5500/C3500", CbVer::V3_2, Quirks::ADDRESS_40),
    part(0x3711, "Xeon C5500/C3500", CbVer::V3_2, Quirks::ADDRESS_40),
    part(0x3712, "Xeon C5500/C3500", CbVer::V3_2, Quirks::ADDRESS_40),
    part(0x3713, "Xeon C5500/C3500", CbVer::V3_2, Quirks::ADDRESS_40),
    part(0x3714, "Xeon C5500/C3500", CbVer::V3_2, Quirks::ADDRESS_40),
    part(0x3715, "Xeon C5500/C3500", CbVer::V3_2, Quirks::ADDRESS_40),
    part(0x3716, "Xeon C5500/C3500", CbVer::V3_2, Quirks::ADDRESS_40),
    part(0x3717, "Xeon C5500/C3500", CbVer::V3_2, Quirks::ADDRESS_40),
    part(
        0x3718,
        "Xeon C5500/C3500",
        CbVer::V3_2,
        Quirks::RAID.union(Quirks::ADDRESS_40),
    ),
    part(
        0x3719,
        "Xeon C5500/C3500",
        CbVer::V3_2,
        Quirks::RAID.union(Quirks::ADDRESS_40),
    ),
    part(0x3c20, "Xeon E5", CbVer::V3_2, NONE),
    part(0x3c21, "Xeon E5", CbVer::V3_2, NONE),
    part(0x3c22, "Xeon E5", CbVer::V3_2, NONE),
    part(0x3c23, "Xeon E5", CbVer::V3_2, NONE),
    part(0x3c24, "Xeon E5", CbVer::V3_2, NONE),
    part(0x3c25, "Xeon E5", CbVer::V3_2, NONE),
    part(0x3c26, "Xeon E5", CbVer::V3_2, NONE),
    part(0x3c27, "Xeon E5", CbVer::V3_2, NONE),
    part(0x3c2e, "Xeon E5", CbVer::V3_2, Quirks::RAID),
    part(0x3c2f, "Xeon E5", CbVer::V3_2, Quirks::RAID),
    part(0x6f20, "Xeon E5/E7 v4", CbVer::V3_2, NONE),
    part(0x6f21, "Xeon E5/E7 v4", CbVer::V3_2, NONE),
    part(0x6f22, "Xeon E5/E7 v4", CbVer::V3_2, NONE),
    part(0x6f23, "Xeon E5/E7 v4", CbVer::V3_2, NONE),
    part(0x6f24, "Xeon E5/E7 v4", CbVer::V3_2, NONE),
    part(0x6f25, "Xeon E5/E7 v4", CbVer::V3_2, NONE),
    part(0x6f26, "Xeon E5/E7 v4", CbVer::V3_2, NONE),
    part(0x6f27, "Xeon E5/E7 v4", CbVer::V3_2, NONE),
    part(0x6f2e, "Xeon E5/E7 v4", CbVer::V3_2, Quirks::RAID),
    part(0x6f2f, "Xeon E5/E7 v4", CbVer::V3_2, Quirks::RAID),
    part(0x6f50, "Xeon D-1500", CbVer::V3_3, Quirks::RESET_LOSES_MSIX),
    part(0x6f51, "Xeon D-1500", CbVer::V3_3, Quirks::RESET_LOSES_MSIX),
    part(0x6f52, "Xeon D-1500", CbVer::V3_3, Quirks::RESET_LOSES_MSIX),
    part(0x6f53, "Xeon D-1500", CbVer::V3_3, Quirks::RESET_LOSES_MSIX),
];

/// What is noted of a part when it is taken: the quirk, and in a few words what it does and what is
/// done about it.
pub const ERRATA: &[(Quirks, &str)] = &[
    (
        Quirks::RESET_LOSES_MSIX,
        "RESET wipes MSI-X: saved and restored",
    ),
    (
        Quirks::ADDRESS_40,
        "40 address bits: memory above stays out",
    ),
    (
        Quirks::LOCK_HANGS,
        "CF4, bus locks hang it: for firmware to mend",
    ),
    (
        Quirks::XOR_DISTURBS,
        "CF5, stopping XOR work spoils copies: it gets none",
    ),
];
