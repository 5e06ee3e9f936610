//! A PCI function as a driver gets it: identity, configuration space, and its resources.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::dma::DmaSpace;
use crate::irq::Interrupts;
use crate::mmio::{MmioRegion, Width};

/// Where a function sits: segment, bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// PCI segment group.
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segment != 0 {
            write!(f, "{:04x}:", self.segment)?;
        }
        write!(
            f,
            "{:02x}:{:02x}.{:x}",
            self.bus, self.device, self.function
        )
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a function says it is: the identity words of its configuration header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, sub-class and programming interface: `0xBBSSPP`.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// How a bus reaches one function's configuration space.
#[expect(clippy::len_without_is_empty, reason = "the size of a window, never 0")]
pub trait ConfigOps: Send + Sync {
    /// Bytes that can be reached: 4096 by ECAM, 256 by the legacy ports.
    fn len(&self) -> usize;
    /// Reads; offsets are in range and naturally aligned. An absent function reads all ones.
    fn read(&self, offset: usize, width: Width) -> u32;
    /// Writes; offsets are in range and naturally aligned.
    fn write(&self, offset: usize, width: Width, value: u32);
}

/// One function's configuration space. Its clones know of each other that the function is absent.
#[derive(Clone)]
pub struct Config {
    ops: Arc<dyn ConfigOps>,
    absent: Arc<AtomicBool>,
}

/// Offsets of the type-independent header. PCI Express Base 7.5.1.1.
pub mod header {
    /// Vendor ID, 16 bits.
    pub const VENDOR: usize = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE: usize = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: usize = 0x04;
    /// Status, 16 bits.
    pub const STATUS: usize = 0x06;
    /// Command: responds to memory accesses.
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    /// Command: may issue memory requests, interrupts by message among them.
    pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
    /// Command: does not assert INTx.
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
    /// Status: a capability list exists.
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    /// Capabilities pointer, 8 bits.
    pub const CAPABILITIES: usize = 0x34;
}

/// Longest capability lists that fit: 4-byte entries after the header. Lists that loop end here.
const CAPABILITIES_MAX: usize = (256 - 64) / 4;
const EXTENDED_MAX: usize = (4096 - 256) / 4;

impl Config {
    /// The configuration space behind `ops`.
    pub fn new(ops: Arc<dyn ConfigOps>) -> Self {
        Self {
            ops,
            absent: Arc::default(),
        }
    }

    /// The function was found to be absent: no access follows, by any clone. What is read is all
    /// ones, what is written goes nowhere.
    pub fn set_absent(&self) {
        self.absent.store(true, Ordering::Relaxed);
    }

    /// Whether the function was found to be absent.
    pub fn is_absent(&self) -> bool {
        self.absent.load(Ordering::Relaxed)
    }

    /// Whether extended configuration space (offsets from 256 on) can be reached.
    pub fn has_extended(&self) -> bool {
        self.ops.len() > 256
    }

    /// Reads 8 bits.
    pub fn read8(&self, offset: usize) -> u8 {
        self.read(offset, Width::B1) as u8
    }

    /// Reads 16 bits.
    pub fn read16(&self, offset: usize) -> u16 {
        self.read(offset, Width::B2) as u16
    }

    /// Reads 32 bits.
    pub fn read32(&self, offset: usize) -> u32 {
        self.read(offset, Width::B4)
    }

    /// Writes 8 bits.
    pub fn write8(&self, offset: usize, value: u8) {
        self.write(offset, Width::B1, value.into());
    }

    /// Writes 16 bits.
    pub fn write16(&self, offset: usize, value: u16) {
        self.write(offset, Width::B2, value.into());
    }

    /// Writes 32 bits.
    pub fn write32(&self, offset: usize, value: u32) {
        self.write(offset, Width::B4, value);
    }

    /// Whether the function answers: its vendor ID reads neither all ones nor 0, which are nobody's.
    pub fn is_present(&self) -> bool {
        !matches!(self.read16(header::VENDOR), 0 | u16::MAX)
    }

    /// Sets the bits of `set` and clears those of `clear` in the command register.
    pub fn update_command(&self, set: u16, clear: u16) {
        let command = self.read16(header::COMMAND);
        self.write16(header::COMMAND, (command | set) & !clear);
    }

    /// Lets the function issue memory requests, or not; whether it is seen to obey. On return what
    /// it had issued before is on its way to memory, and nothing follows where it may not. An absent
    /// function is left alone.
    pub fn set_bus_master(&self, on: bool) -> bool {
        if !self.is_present() {
            return false;
        }
        let bit = header::COMMAND_BUS_MASTER;
        let (set, clear) = if on { (bit, 0) } else { (0, bit) };
        self.update_command(set, clear);
        // The read returns after writes that were on their way: it orders what follows.
        let command = self.read16(header::COMMAND);
        command != u16::MAX && (command & bit != 0) == on
    }

    /// The offset of the first capability `id`. PCI Express Base 7.5.3.
    pub fn capability(&self, id: u8) -> Option<usize> {
        self.capabilities().find(|cap| cap.1 == id).map(|cap| cap.0)
    }

    /// All capabilities as (offset, ID), in the list's order. A list that loops, or leaves the
    /// space, ends.
    pub fn capabilities(&self) -> impl Iterator<Item = (usize, u8)> + '_ {
        let listed = self.read16(header::STATUS);
        let mut next = if listed != u16::MAX && listed & header::STATUS_CAPABILITIES != 0 {
            self.read8(header::CAPABILITIES)
        } else {
            0
        };
        core::iter::from_fn(move || {
            let offset = usize::from(next & !3);
            if offset < 0x40 {
                return None;
            }
            let word = self.read16(offset);
            if word == u16::MAX {
                return None;
            }
            next = (word >> 8) as u8;
            Some((offset, word as u8))
        })
        .take(CAPABILITIES_MAX)
    }

    /// The offset of the first extended capability `id`. PCI Express Base 7.6.
    pub fn extended_capability(&self, id: u16) -> Option<usize> {
        self.extended_capabilities()
            .find(|cap| cap.1 == id)
            .map(|cap| cap.0)
    }

    /// All extended capabilities as (offset, ID), in the list's order, with the same bounds as
    /// [`Config::capabilities`].
    pub fn extended_capabilities(&self) -> impl Iterator<Item = (usize, u16)> + '_ {
        let mut next = if self.has_extended() { 0x100 } else { 0 };
        core::iter::from_fn(move || {
            let offset = next & !3;
            if offset < 0x100 {
                return None;
            }
            let word = self.read32(offset);
            if word == 0 || word == u32::MAX {
                return None;
            }
            next = (word >> 20) as usize;
            Some((offset, word as u16))
        })
        .take(EXTENDED_MAX)
    }

    fn read(&self, offset: usize, width: Width) -> u32 {
        if self.covers(offset, width) {
            self.ops.read(offset, width)
        } else {
            width.ones() as u32
        }
    }

    fn write(&self, offset: usize, width: Width, value: u32) {
        if self.covers(offset, width) {
            self.ops.write(offset, width, value);
        }
    }

    fn covers(&self, offset: usize, width: Width) -> bool {
        let bytes = width.bytes();
        bytes <= 4
            && !self.is_absent()
            && offset.is_multiple_of(bytes)
            && offset
                .checked_add(bytes)
                .is_some_and(|end| end <= self.ops.len())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({} bytes)", self.ops.len())
    }
}

/// A PCI function handed to a driver, which owns it until it drops it.
///
/// Memory decoding is on; bus mastering is off until the driver turns it on.
#[derive(Debug)]
pub struct Function {
    /// Where it sits.
    pub address: Address,
    /// What it is.
    pub identity: Identity,
    /// Its configuration space.
    pub config: Config,
    /// Its memory BARs; `None` where a BAR is absent, is an I/O BAR, or found no room.
    pub bars: [Option<MmioRegion>; 6],
    /// The address space in which it does DMA.
    pub dma: DmaSpace,
    /// Its interrupts.
    pub interrupts: Interrupts,
    /// The NUMA node it is near to, where that is known.
    pub node: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    struct Bytes(Vec<u8>);

    impl ConfigOps for Bytes {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn read(&self, offset: usize, width: Width) -> u32 {
            (0..width.bytes())
                .rev()
                .fold(0, |v, i| v << 8 | u32::from(self.0[offset + i]))
        }
        fn write(&self, _: usize, _: Width, _: u32) {
            assert!(self.0[0] != 0xff, "an absent function is left alone");
        }
    }

    fn space(len: usize, bytes: &[(usize, u8)]) -> Config {
        let mut space = alloc::vec![0; len];
        space[header::VENDOR] = 1;
        space[header::STATUS] = header::STATUS_CAPABILITIES as u8;
        for &(offset, value) in bytes {
            space[offset] = value;
        }
        Config::new(Arc::new(Bytes(space)))
    }

    #[test]
    fn capabilities_are_listed_in_order() {
        let config = space(256, &[(0x34, 0x40), (0x40, 5), (0x41, 0x60), (0x60, 0x11)]);
        assert_eq!(
            config.capabilities().collect::<Vec<_>>(),
            [(0x40, 5), (0x60, 0x11)]
        );
        assert_eq!(config.capability(0x11), Some(0x60));
        assert_eq!(config.capability(0x10), None);
        assert_eq!(config.extended_capability(1), None);
    }

    #[test]
    fn lists_that_loop_end() {
        let config = space(4096, &[(0x34, 0x40), (0x40, 5), (0x41, 0x40)]);
        assert_eq!(config.capability(0x10), None);
        let looping = space(4096, &[(0x100, 1), (0x102, 0x01), (0x103, 0x10)]);
        assert_eq!(looping.extended_capability(2), None);
    }

    #[test]
    fn an_absent_function_has_no_capabilities() {
        let config = Config::new(Arc::new(Bytes(alloc::vec![0xff; 4096])));
        assert!(!config.is_present());
        assert!(!space(256, &[(header::VENDOR, 0)]).is_present());
        assert!(!config.set_bus_master(false));
        assert_eq!(config.capabilities().count(), 0);
        assert_eq!(config.extended_capabilities().count(), 0);
    }

    #[test]
    fn a_function_found_absent_is_not_touched_again() {
        let config = space(256, &[(0x34, 0x40), (0x40, 5)]);
        let clone = config.clone();
        assert!(clone.is_present() && !clone.is_absent());
        config.set_absent();
        assert!(clone.is_absent() && !clone.is_present());
        assert_eq!(clone.capability(5), None);
        assert_eq!(clone.read32(0), u32::MAX);
    }

    #[test]
    fn bus_mastering_is_read_back() {
        // These bytes keep what they are: writes go nowhere.
        let stubborn = space(256, &[(header::COMMAND, 1 << 2)]);
        assert!(stubborn.set_bus_master(true));
        assert!(!stubborn.set_bus_master(false));
        assert!(space(256, &[]).set_bus_master(false));
    }

    #[test]
    fn addresses_print_as_people_write_them() {
        let mut address = Address {
            segment: 0,
            bus: 0x3a,
            device: 4,
            function: 7,
        };
        assert_eq!(alloc::format!("{address}"), "3a:04.7");
        address.segment = 1;
        assert_eq!(alloc::format!("{address}"), "0001:3a:04.7");
    }
}
