//! A device's memory-mapped registers.

use alloc::sync::Arc;
use core::fmt;

/// How many bytes one access moves. Devices give meaning to the width of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    B1,
    /// Two bytes.
    B2,
    /// Four bytes.
    B4,
    /// Eight bytes.
    B8,
}

impl Width {
    /// The width in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::B1 => 1,
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }

    /// All ones in this width: what a read of an absent device returns.
    pub const fn ones(self) -> u64 {
        match self {
            Self::B8 => u64::MAX,
            narrower => (1 << (narrower.bytes() * 8)) - 1,
        }
    }
}

/// How a bus reaches a region of registers. Offsets are in range and naturally aligned.
pub trait MmioOps: Send + Sync {
    /// One read of exactly `width`.
    fn read(&self, offset: usize, width: Width) -> u64;
    /// One write of exactly `width`. Ordered after all earlier writes of this CPU to memory that
    /// devices read.
    fn write(&self, offset: usize, width: Width, value: u64);
}

/// A region of a device's registers, such as a BAR.
///
/// Accesses outside the region, or not naturally aligned, do not reach the device: reads return
/// all ones, as from an absent device, and writes vanish.
#[derive(Clone)]
pub struct MmioRegion {
    ops: Arc<dyn MmioOps>,
    len: usize,
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $width:expr) => {
        /// Reads a register; all ones where `offset` is outside the region.
        pub fn $read(&self, offset: usize) -> $type {
            self.read(offset, $width) as $type
        }

        /// Writes a register.
        pub fn $write(&self, offset: usize, value: $type) {
            self.write(offset, $width, u64::from(value));
        }
    };
}

impl MmioRegion {
    /// A region of `len` bytes behind `ops`.
    pub fn new(ops: Arc<dyn MmioOps>, len: usize) -> Self {
        Self { ops, len }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no registers at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads `width` at `offset`; all ones outside the region.
    pub fn read(&self, offset: usize, width: Width) -> u64 {
        if self.covers(offset, width) {
            self.ops.read(offset, width)
        } else {
            width.ones()
        }
    }

    /// Writes the low bytes of `value`, `width` wide, at `offset`.
    pub fn write(&self, offset: usize, width: Width, value: u64) {
        if self.covers(offset, width) {
            self.ops.write(offset, width, value);
        }
    }

    access!(read8, write8, u8, Width::B1);
    access!(read16, write16, u16, Width::B2);
    access!(read32, write32, u32, Width::B4);
    access!(read64, write64, u64, Width::B8);

    fn covers(&self, offset: usize, width: Width) -> bool {
        let bytes = width.bytes();
        offset.is_multiple_of(bytes) && offset.checked_add(bytes).is_some_and(|end| end <= self.len)
    }
}

impl fmt::Debug for MmioRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmioRegion({:#x} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zeroes;

    impl MmioOps for Zeroes {
        fn read(&self, _: usize, _: Width) -> u64 {
            0
        }
        fn write(&self, offset: usize, _: Width, _: u64) {
            assert!(offset < 16);
        }
    }

    #[test]
    fn accesses_outside_do_not_reach_the_device() {
        let region = MmioRegion::new(Arc::new(Zeroes), 16);
        assert_eq!(region.read64(8), 0);
        assert_eq!(region.read64(16), u64::MAX);
        assert_eq!(region.read32(13), u32::MAX, "misaligned");
        assert_eq!(region.read8(usize::MAX), u8::MAX);
        region.write16(16, 0);
    }
}
