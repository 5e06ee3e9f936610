//! What a unit did not let pass: who, where, why. Section 7.
//!
//! A unit has a few records, and one event when there is one. [`take`] reads and clears them; those
//! that come while all are full are lost, which the unit tells. [`Reporter`] counts by device and
//! keeps a device that does nothing else from filling the log.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use hal::mmio::MmioRegion;
use hal::pci::Address;
use hal::time::{Duration, Instant};

use crate::capabilities::Capabilities;
use crate::registers::{FECTL_MASKED, frcd, fsts, reg};
use crate::unit::device_of;

/// What a device wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read memory.
    Read,
    /// To write memory.
    Write,
    /// To interrupt, by the entry of this number.
    Interrupt(u16),
}

/// What a unit did not let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who.
    pub device: Address,
    /// What.
    pub access: Access,
    /// Where: the page. Of interrupts, nothing.
    pub page: u64,
    /// Why, as the unit says it.
    pub reason: u8,
}

/// Reasons from here on concern interrupts. Table 25.
const INTERRUPT_REASONS: u8 = 0x20;

impl Fault {
    fn decode(segment: u16, low: u64, high: u64) -> Self {
        let reason = (high >> frcd::REASON_SHIFT) as u8;
        let access = if (INTERRUPT_REASONS..INTERRUPT_REASONS + 0x10).contains(&reason) {
            Access::Interrupt((low >> 48) as u16)
        } else if high & frcd::READ != 0 {
            Access::Read
        } else {
            Access::Write
        };
        let page = match access {
            Access::Interrupt(_) => 0,
            _ => low & !0xfff,
        };
        Self {
            device: device_of(segment, high as u16),
            access,
            page,
            reason,
        }
    }

    /// The reason in words. Tables 25 and 26.
    pub fn why(&self) -> &'static str {
        match self.reason {
            0x01 | 0x02 => "it has no domain",
            0x03 | 0x0a | 0x0b | 0x0c => "a table's entry is malformed",
            0x04 => "beyond its address space",
            0x05 => match self.access {
                Access::Read => "nothing is mapped for reading there",
                _ => "nothing is mapped for writing there",
            },
            0x06 => "nothing is mapped for reading there",
            0x07..=0x09 => "a table could not be read",
            0x0d | 0x0e => "it translates by itself, which is blocked",
            0x20 | 0x24 => "reserved bits are set",
            0x21 => "there is no such entry",
            0x22 => "the entry is free",
            0x23 => "the table of entries could not be read",
            0x25 => "it is not remapped",
            0x26 => "the entry is another device's",
            _ => "unknown",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device;
        match self.access {
            Access::Read => write!(f, "{device} reads {:#x}", self.page)?,
            Access::Write => write!(f, "{device} writes {:#x}", self.page)?,
            Access::Interrupt(index) => write!(f, "{device} interrupts by entry {index}")?,
        }
        write!(f, ": {} ({:#x})", self.why(), self.reason)
    }
}

/// Clears what was recorded before anybody asked.
pub(crate) fn clear(registers: &MmioRegion, capabilities: &Capabilities) {
    let (base, count) = capabilities.faults;
    for record in 0..count {
        let upper = base + record * frcd::BYTES + 8;
        if registers.read64(upper) & frcd::FAULT != 0 {
            registers.write64(upper, frcd::FAULT);
        }
    }
    registers.write32(reg::FSTS, fsts::OVERFLOW);
}

pub(crate) fn pending(registers: &MmioRegion) -> bool {
    let status = registers.read32(reg::FSTS);
    status != u32::MAX && status & (fsts::PENDING | fsts::OVERFLOW) != 0
}

/// Reads and clears all records, the oldest first, and whether some are lost. 7.3.1.
pub(crate) fn take(
    registers: &MmioRegion,
    capabilities: &Capabilities,
    segment: u16,
) -> (Vec<Fault>, bool) {
    let mut faults = Vec::new();
    let status = registers.read32(reg::FSTS);
    if status == u32::MAX {
        return (faults, false);
    }
    let (base, count) = capabilities.faults;
    let first = (status >> fsts::FIRST_SHIFT) as usize & 0xff;
    for record in 0..count {
        let at = base + (first + record) % count * frcd::BYTES;
        let high = registers.read64(at + 8);
        if high & frcd::FAULT == 0 {
            break;
        }
        faults.push(Fault::decode(segment, registers.read64(at), high));
        registers.write64(at + 8, frcd::FAULT);
    }
    let lost = status & fsts::OVERFLOW != 0;
    if lost {
        registers.write32(reg::FSTS, fsts::OVERFLOW);
    }
    (faults, lost)
}

/// 10.4.10 to 10.4.13.
pub(crate) fn set_message(registers: &MmioRegion, address: u64, data: u32) {
    registers.write32(reg::FECTL, FECTL_MASKED);
    registers.write32(reg::FEDATA, data);
    registers.write32(reg::FEADDR, address as u32);
    registers.write32(reg::FEUADDR, (address >> 32) as u32);
    registers.write32(reg::FECTL, 0);
}

/// So many faults of a device are told in [`WINDOW`]; the rest is counted.
const TOLD: u32 = 5;
/// For how long what a device may say holds.
const WINDOW: Duration = Duration::from_secs(1);

/// Faults counted by device, and what of them is worth a line.
#[derive(Debug, Default)]
pub struct Reporter {
    devices: BTreeMap<u32, Device>,
    lost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Device {
    count: u64,
    last: Fault,
    since: Instant,
    told: u32,
    untold: u64,
}

/// What to say of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// The fault itself, and how many before it were not told.
    Line(u64),
    /// Nothing, for now.
    Nothing,
}

fn key(device: Address) -> u32 {
    u32::from(device.segment) << 16 | u32::from(crate::unit::source_id(device))
}

impl Reporter {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            devices: BTreeMap::new(),
            lost: 0,
        }
    }

    /// Counts a fault, and says whether to tell it.
    pub fn note(&mut self, fault: Fault, now: Instant) -> Telling {
        let device = self.devices.entry(key(fault.device)).or_insert(Device {
            count: 0,
            last: fault,
            since: now,
            told: 0,
            untold: 0,
        });
        device.count += 1;
        device.last = fault;
        if now - device.since >= WINDOW {
            (device.since, device.told) = (now, 0);
        }
        if device.told == TOLD {
            device.untold += 1;
            return Telling::Nothing;
        }
        device.told += 1;
        Telling::Line(core::mem::take(&mut device.untold))
    }

    /// A unit had no room for some.
    pub fn lose(&mut self) {
        self.lost += 1;
    }

    /// How often a unit had no room.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// How many faults there were of `device`.
    pub fn count(&self, device: Address) -> u64 {
        self.devices.get(&key(device)).map_or(0, |d| d.count)
    }

    /// How many there were of all.
    pub fn total(&self) -> u64 {
        self.devices.values().map(|device| device.count).sum()
    }

    /// Each device's count and its last fault.
    pub fn devices(&self) -> impl Iterator<Item = (u64, Fault)> + '_ {
        self.devices
            .values()
            .map(|device| (device.count, device.last))
    }
}
