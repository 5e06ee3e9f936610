//! Descriptors: 64 bytes, 64-byte aligned, eight little-endian 64-bit words; and their kinds.
//!
//! The driver owns a descriptor until DMACOUNT announces it, the engine until the completion word
//! has passed it. Source: SPDK `ioat_spec.h`; FreeBSD `ioat_hw.h`; Linux ioatdma `hw.h`.

use bitflags::bitflags;

/// Bytes of a descriptor, and its alignment.
pub const LEN: usize = 64;
/// 64-bit words of a descriptor.
pub const WORDS: usize = 8;
/// Bits of the source and destination addresses that an engine accepts (FreeBSD).
pub const ADDRESS_BITS: u32 = 48;

/// Offsets of fields in bytes, where they are the same in every kind.
pub mod offset {
    /// Size in bytes, 32 bits: 1 to 2^XFERCAP, in a null descriptor too.
    pub const SIZE: usize = 0;
    /// Control word, 32 bits.
    pub const CONTROL: usize = 4;
    /// First source address; the pattern in a fill.
    pub const SRC: usize = 8;
    /// Destination address; P in PQ.
    pub const DST: usize = 16;
    /// Address of the next descriptor.
    pub const NEXT: usize = 24;
    /// Copy: where the source goes on after a page break.
    pub const NEXT_SRC: usize = 32;
    /// Copy: where the destination goes on after a page break.
    pub const NEXT_DST: usize = 40;
    /// XOR, PQ: second source.
    pub const SRC2: usize = 32;
    /// XOR, PQ: third source.
    pub const SRC3: usize = 40;
    /// XOR: fourth source.
    pub const XOR_SRC4: usize = 48;
    /// XOR: fifth source.
    pub const XOR_SRC5: usize = 56;
    /// XOR extension: sixth source.
    pub const XOR_EXT_SRC6: usize = 0;
    /// XOR extension: seventh source.
    pub const XOR_EXT_SRC7: usize = 8;
    /// XOR extension: eighth source.
    pub const XOR_EXT_SRC8: usize = 16;
    /// PQ: eight coefficients.
    pub const PQ_COEF: usize = 48;
    /// PQ: Q.
    pub const PQ_Q: usize = 56;
    /// PQ extension: fourth source.
    pub const PQ_EXT_SRC4: usize = 0;
    /// PQ extension: fifth source.
    pub const PQ_EXT_SRC5: usize = 8;
    /// PQ extension: sixth source.
    pub const PQ_EXT_SRC6: usize = 16;
    /// PQ extension: seventh source.
    pub const PQ_EXT_SRC7: usize = 32;
    /// PQ extension: eighth source.
    pub const PQ_EXT_SRC8: usize = 40;
    /// PQ with 9 to 16 sources: address of the super-extended descriptor.
    pub const PQ16_SED: usize = 40;
    /// PQ update: P as it was.
    pub const PQ_UPDATE_P_SRC: usize = 40;
    /// PQ update: Q as it was.
    pub const PQ_UPDATE_Q_SRC: usize = 48;
    /// CRC: seed, 32 bits.
    pub const CRC_SEED: usize = 48;
    /// CRC: address of the CRC.
    pub const CRC_ADDR: usize = 56;
}

/// Most sources that one XOR descriptor holds; more need an extension.
pub const XOR_BASE_SOURCES: usize = 5;
/// Most sources of an XOR.
pub const XOR_MAX_SOURCES: usize = 8;
/// Most sources that one PQ descriptor holds; more need an extension.
pub const PQ_BASE_SOURCES: usize = 3;
/// Most sources of a PQ without a super-extended descriptor.
pub const PQ_MAX_SOURCES: usize = 8;

bitflags! {
    /// The control word without opcode and source count.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Control: u32 {
        /// Interrupt when done.
        const INT_EN = 1 << 0;
        /// Read the source without snooping caches.
        const SRC_NO_SNOOP = 1 << 1;
        /// Write the destination without snooping caches.
        const DST_NO_SNOOP = 1 << 2;
        /// Write the completion word when done.
        const COMPLETION = 1 << 3;
        /// Complete before the next descriptor starts.
        const FENCE = 1 << 4;
        /// Copy: no data is moved.
        const NULL = 1 << 5;
        /// Copy: the source goes on at the next source after a page.
        const SRC_PAGE_BREAK = 1 << 6;
        /// Copy and fill: the destination goes on at the next destination after a page.
        const DST_PAGE_BREAK = 1 << 7;
        /// Bundle.
        const BUNDLE = 1 << 8;
        /// Write the destination by direct cache access.
        const DST_DCA = 1 << 9;
        /// Hint.
        const HINT = 1 << 10;
        /// PQ: P is neither written nor compared. CRC: use the seed.
        const P_DISABLE = 1 << 11;
        /// PQ: Q is neither written nor compared. CRC: inline.
        const Q_DISABLE = 1 << 12;
        /// PQ validate: write the result into the descriptor instead of halting.
        const DWBES_EN = 1 << 15;
        /// PQ: prl.
        const PRL = 1 << 16;
    }
}

/// Control word, XOR and PQ: where the number of sources minus 2 (PQ16: minus 9) is.
pub const CONTROL_SRC_COUNT_SHIFT: u32 = 5;
/// Control word, XOR and PQ: the bits of the source count.
pub const CONTROL_SRC_COUNT_MASK: u32 = 0x7 << CONTROL_SRC_COUNT_SHIFT;
/// Control word, PQ update: where the coefficient is.
pub const CONTROL_COEF_SHIFT: u32 = 16;
/// Control word: where the opcode is.
pub const CONTROL_OP_SHIFT: u32 = 24;

/// Opcode: control word bits 31:24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op(pub u8);

impl Op {
    /// Copy, and null.
    pub const COPY: Self = Self(0x00);
    /// Fill with a pattern of eight bytes.
    pub const FILL: Self = Self(0x01);
    /// Copy with CRC.
    pub const MOVE_CRC: Self = Self(0x41);
    /// Copy with CRC, tested.
    pub const MOVE_CRC_TEST: Self = Self(0x42);
    /// Copy with CRC, stored.
    pub const MOVE_CRC_STORE: Self = Self(0x43);
    /// CRC.
    pub const CRC: Self = Self(0x81);
    /// CRC, tested.
    pub const CRC_TEST: Self = Self(0x82);
    /// CRC, stored.
    pub const CRC_STORE: Self = Self(0x83);
    /// Marker.
    pub const MARKER: Self = Self(0x84);
    /// XOR of version 2.
    pub const XOR_OLD: Self = Self(0x85);
    /// XOR validation of version 2.
    pub const XOR_VAL_OLD: Self = Self(0x86);
    /// XOR.
    pub const XOR: Self = Self(0x87);
    /// XOR validation.
    pub const XOR_VAL: Self = Self(0x88);
    /// P and Q.
    pub const PQ: Self = Self(0x89);
    /// P and Q validation.
    pub const PQ_VAL: Self = Self(0x8a);
    /// P and Q update.
    pub const PQ_UPDATE: Self = Self(0x8b);
    /// P and Q, 9 to 16 sources.
    pub const PQ16: Self = Self(0xa0);
    /// P and Q validation, 9 to 16 sources.
    pub const PQ16_VAL: Self = Self(0xa1);
}

/// A descriptor as eight words, each little-endian in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor(pub [u64; WORDS]);

impl Descriptor {
    /// A descriptor with the fields that every kind has.
    pub const fn new(op: Op, control: Control, size: u32, next: u64) -> Self {
        let control = control.bits() | (op.0 as u32) << CONTROL_OP_SHIFT;
        Self([size as u64 | (control as u64) << 32, 0, 0, next, 0, 0, 0, 0])
    }

    /// Copies `size` bytes from `src` to `dst`.
    pub const fn copy(control: Control, size: u32, src: u64, dst: u64, next: u64) -> Self {
        let mut words = Self::new(Op::COPY, control, size, next).0;
        words[offset::SRC / 8] = src;
        words[offset::DST / 8] = dst;
        Self(words)
    }

    /// Moves no data; for its completion, interrupt or fence. Its size must not be 0, so it is 1.
    pub const fn null(control: Control, next: u64) -> Self {
        Self::new(Op::COPY, control.union(Control::NULL), 1, next)
    }

    /// Fills `size` bytes at `dst` with `pattern`: its low byte first.
    pub const fn fill(control: Control, size: u32, pattern: u64, dst: u64, next: u64) -> Self {
        let mut words = Self::new(Op::FILL, control, size, next).0;
        words[offset::SRC / 8] = pattern;
        words[offset::DST / 8] = dst;
        Self(words)
    }

    /// The word at byte `offset`, one of those in [`mod@offset`].
    pub const fn word(&self, offset: usize) -> u64 {
        self.0[offset / 8]
    }

    /// Size in bytes.
    pub const fn size(&self) -> u32 {
        self.0[0] as u32
    }

    /// The whole control word.
    pub const fn control_word(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// The flags of the control word; for XOR and PQ, bits 7:5 are the source count.
    pub const fn control(&self) -> Control {
        Control::from_bits_truncate(self.control_word())
    }

    /// The opcode.
    pub const fn op(&self) -> Op {
        Op((self.control_word() >> CONTROL_OP_SHIFT) as u8)
    }

    /// Address of the next descriptor.
    pub const fn next(&self) -> u64 {
        self.word(offset::NEXT)
    }
}

const _: () = assert!(size_of::<Descriptor>() == LEN);
