//! Registers, entries and descriptors: offsets and bits. Section 10.4 (registers), 9 (entries),
//! 6.5.2 (descriptors).

#![allow(dead_code, reason = "the layout is stated whole, used or not")]

/// Offsets of registers. Table 33.
pub(crate) mod reg {
    pub(crate) const VER: usize = 0x00;
    pub(crate) const CAP: usize = 0x08;
    pub(crate) const ECAP: usize = 0x10;
    pub(crate) const GCMD: usize = 0x18;
    pub(crate) const GSTS: usize = 0x1c;
    pub(crate) const RTADDR: usize = 0x20;
    pub(crate) const CCMD: usize = 0x28;
    pub(crate) const FSTS: usize = 0x34;
    pub(crate) const FECTL: usize = 0x38;
    pub(crate) const FEDATA: usize = 0x3c;
    pub(crate) const FEADDR: usize = 0x40;
    pub(crate) const FEUADDR: usize = 0x44;
    pub(crate) const PMEN: usize = 0x64;
    pub(crate) const IQH: usize = 0x80;
    pub(crate) const IQT: usize = 0x88;
    pub(crate) const IQA: usize = 0x90;
    pub(crate) const IRTA: usize = 0xb8;
    /// Behind `ECAP.IRO`: the address register, then the command register.
    pub(crate) const IVA: usize = 0x0;
    pub(crate) const IOTLB: usize = 0x8;
}

/// Global command, and the status bits of the same places. 10.4.4, 10.4.5.
pub(crate) mod gcmd {
    pub(crate) const TE: u32 = 1 << 31;
    pub(crate) const SRTP: u32 = 1 << 30;
    pub(crate) const WBF: u32 = 1 << 27;
    pub(crate) const QIE: u32 = 1 << 26;
    pub(crate) const IRE: u32 = 1 << 25;
    pub(crate) const SIRTP: u32 = 1 << 24;
    pub(crate) const CFI: u32 = 1 << 23;
    /// What stays as it is written, and is written again with each command: not the commands that
    /// are done once.
    pub(crate) const KEPT: u32 = TE | QIE | IRE | CFI | 1 << 28;
}

/// Context command. 10.4.7.
pub(crate) mod ccmd {
    pub(crate) const ICC: u64 = 1 << 63;
    pub(crate) const GLOBAL: u64 = 1 << 61;
    pub(crate) const DOMAIN: u64 = 2 << 61;
    pub(crate) const DEVICE: u64 = 3 << 61;
    /// Which granularity it was; none where the command was refused.
    pub(crate) const ACTUAL: u64 = 3 << 59;
    pub(crate) const SID_SHIFT: u32 = 16;
}

/// IOTLB invalidation command and its address. 10.4.8.1, 10.4.8.2.
pub(crate) mod iotlb {
    pub(crate) const IVT: u64 = 1 << 63;
    pub(crate) const GLOBAL: u64 = 1 << 60;
    pub(crate) const DOMAIN: u64 = 2 << 60;
    pub(crate) const PAGES: u64 = 3 << 60;
    pub(crate) const ACTUAL: u64 = 3 << 57;
    pub(crate) const DRAIN_READS: u64 = 1 << 49;
    pub(crate) const DRAIN_WRITES: u64 = 1 << 48;
    pub(crate) const DID_SHIFT: u32 = 32;
    /// Only leaves have changed.
    pub(crate) const HINT: u64 = 1 << 6;
}

/// Fault status. 10.4.9.
pub(crate) mod fsts {
    pub(crate) const OVERFLOW: u32 = 1 << 0;
    pub(crate) const PENDING: u32 = 1 << 1;
    pub(crate) const QUEUE_ERROR: u32 = 1 << 4;
    pub(crate) const COMPLETION_ERROR: u32 = 1 << 5;
    pub(crate) const TIMEOUT_ERROR: u32 = 1 << 6;
    pub(crate) const QUEUE_ERRORS: u32 = QUEUE_ERROR | COMPLETION_ERROR | TIMEOUT_ERROR;
    pub(crate) const FIRST_SHIFT: u32 = 8;
}

/// Fault event control. 10.4.10.
pub(crate) const FECTL_MASKED: u32 = 1 << 31;

/// The upper half of a fault record. 10.4.14.
pub(crate) mod frcd {
    pub(crate) const BYTES: usize = 16;
    pub(crate) const FAULT: u64 = 1 << 63;
    pub(crate) const READ: u64 = 1 << 62;
    pub(crate) const REASON_SHIFT: u32 = 32;
}

/// Protected memory enable. 10.4.16.
pub(crate) mod pmen {
    pub(crate) const ENABLE: u32 = 1 << 31;
    pub(crate) const STATUS: u32 = 1;
}

/// Root and context entries: 16 bytes each. 9.1, 9.3.
pub(crate) mod entry {
    pub(crate) const PRESENT: u64 = 1;
    pub(crate) const DID_SHIFT: u32 = 8;
}

/// Second-stage paging entries. 9.8.
pub(crate) mod pte {
    pub(crate) const READ: u64 = 1 << 0;
    pub(crate) const WRITE: u64 = 1 << 1;
    pub(crate) const LARGE: u64 = 1 << 7;
    pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Invalidation descriptors: 16 bytes. 6.5.2.
pub(crate) mod qi {
    pub(crate) const BYTES: usize = 16;
    pub(crate) const CONTEXT: u64 = 1;
    pub(crate) const IOTLB: u64 = 2;
    pub(crate) const INTERRUPT: u64 = 4;
    pub(crate) const WAIT: u64 = 5;
    pub(crate) const GLOBAL: u64 = 1 << 4;
    pub(crate) const DOMAIN: u64 = 2 << 4;
    /// Pages of an IOTLB descriptor, a device of a context descriptor.
    pub(crate) const FINE: u64 = 3 << 4;
    pub(crate) const DRAIN_WRITES: u64 = 1 << 6;
    pub(crate) const DRAIN_READS: u64 = 1 << 7;
    pub(crate) const DID_SHIFT: u32 = 16;
    pub(crate) const SID_SHIFT: u32 = 32;
    pub(crate) const HINT: u64 = 1 << 6;
    /// One interrupt entry, not all.
    pub(crate) const INDEXED: u64 = 1 << 4;
    pub(crate) const INDEX_SHIFT: u32 = 32;
    /// A wait descriptor writes its data.
    pub(crate) const STATUS_WRITE: u64 = 1 << 5;
    pub(crate) const STATUS_SHIFT: u32 = 32;
}

/// Interrupt remapping entries: 16 bytes. 9.9. And the register for their table, 10.4.29.
pub(crate) mod irte {
    pub(crate) const BYTES: usize = 16;
    pub(crate) const PRESENT: u64 = 1;
    pub(crate) const LEVEL: u64 = 1 << 4;
    pub(crate) const VECTOR_SHIFT: u32 = 16;
    pub(crate) const DESTINATION_SHIFT: u32 = 32;
    /// In the upper half: the source is compared, all of it.
    pub(crate) const VERIFY_SOURCE: u64 = 1 << 18;
    pub(crate) const EXTENDED: u64 = 1 << 11;
}
