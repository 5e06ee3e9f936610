//! Interrupts by entries: what a device sends names an entry, which says where it goes, and who may
//! send it. Sections 5 and 9.9.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hal::dma::Coherent;
use spin::Mutex;

use crate::capabilities::Features;
use crate::error::Error;
use crate::invalidate::Forget;
use crate::registers::{gcmd, irte, reg};
use crate::unit::{Unit, command};

/// Entries in a table: more than there are vectors on all CPUs that anybody binds.
const ENTRIES: usize = 4096;
const BYTES: usize = ENTRIES * irte::BYTES;

/// Where an interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The CPU, by its local APIC.
    pub apic_id: u32,
    /// The vector.
    pub vector: u8,
    /// Whether the line is level-triggered: an I/O APIC's.
    pub level: bool,
}

/// What a device is to write to raise an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where.
    pub address: u64,
    /// What.
    pub data: u32,
}

impl Message {
    /// The message that names entry `index`. 5.1.2.2.
    pub fn of(index: u16) -> Self {
        let (low, high) = (u64::from(index & 0x7fff), u64::from(index >> 15));
        Self {
            address: 0xfee0_0000 | low << 5 | 1 << 4 | high << 2,
            data: 0,
        }
    }
}

/// The entries of a unit.
pub(crate) struct Remapper {
    memory: Coherent,
    snooped: bool,
    /// Whether destinations have 32 bits.
    extended: bool,
    used: Mutex<Vec<bool>>,
}

impl Remapper {
    fn write(&self, index: u16, low: u64, high: u64) {
        let at = usize::from(index) * irte::BYTES;
        // Not present while it is half another.
        self.memory.store64(at, 0, Ordering::Release);
        self.memory.store64(at + 8, high, Ordering::Release);
        self.memory.store64(at, low, Ordering::Release);
        if !self.snooped {
            self.memory.write_back(at..at + irte::BYTES);
        }
    }

    fn entry(&self, source: u16, target: Target) -> (u64, u64) {
        let destination = if self.extended {
            u64::from(target.apic_id)
        } else {
            u64::from(target.apic_id & 0xff) << 8
        };
        let level = if target.level { irte::LEVEL } else { 0 };
        let low = irte::PRESENT
            | level
            | u64::from(target.vector) << irte::VECTOR_SHIFT
            | destination << irte::DESTINATION_SHIFT;
        (low, irte::VERIFY_SOURCE | u64::from(source))
    }
}

impl Unit {
    /// Turns interrupt remapping on: from here on a device interrupts by an entry of its own alone.
    /// `extended` is whether CPUs have x2APIC on.
    pub fn remap_interrupts(&self, extended: bool) -> Result<(), Error> {
        let capabilities = self.capabilities();
        if !capabilities.has(Features::INTERRUPTS) {
            return Err(Error::NoRemapping);
        }
        let extended = extended && capabilities.has(Features::EXTENDED_INTERRUPTS);
        let memory = self.memory().coherent(BYTES, BYTES)?;
        let snooped = capabilities.has(Features::COHERENT);
        if !snooped {
            memory.write_back(0..BYTES);
        }
        let mut value = memory.addr().bits() | u64::from(ENTRIES.ilog2() - 1);
        if extended {
            value |= irte::EXTENDED;
        }
        self.registers().write64(reg::IRTA, value);
        let remapper = Arc::new(Remapper {
            memory,
            snooped,
            extended,
            used: Mutex::new(alloc::vec![false; ENTRIES]),
        });
        *self.remapping.lock() = Some(remapper);
        command(self.registers(), gcmd::SIRTP, true, "the interrupt table")?;
        self.forget(&[Forget::Interrupts(None)])?;
        // No others than those that name an entry: 5.1.4.
        if self.registers().read32(reg::GSTS) & gcmd::CFI != 0 {
            command(self.registers(), gcmd::CFI, false, "compatible interrupts")?;
        }
        command(self.registers(), gcmd::IRE, true, "interrupt remapping")
    }

    /// Whether it remaps interrupts.
    pub fn remaps_interrupts(&self) -> bool {
        self.remapping.lock().is_some()
    }

    /// How many interrupt entries are in use.
    pub fn interrupts(&self) -> usize {
        let used = |remapper: &Arc<Remapper>| {
            let used = remapper.used.lock();
            used.iter().filter(|used| **used).count()
        };
        self.remapping.lock().as_ref().map_or(0, used)
    }

    /// An entry by which `source` alone interrupts.
    pub fn bind_interrupt(&self, source: u16, target: Target) -> Result<u16, Error> {
        let remapper = self.remapper()?;
        let index = {
            let mut used = remapper.used.lock();
            let index = used.iter().position(|used| !used);
            let index = index.ok_or(Error::Exhausted)?;
            used[index] = true;
            index as u16
        };
        self.set_interrupt(index, source, target)?;
        Ok(index)
    }

    /// Sends the interrupt of entry `index`, which is `source`'s, to `target` from now on.
    pub fn set_interrupt(&self, index: u16, source: u16, target: Target) -> Result<(), Error> {
        let remapper = self.remapper()?;
        let (low, high) = remapper.entry(source, target);
        remapper.write(index, low, high);
        self.forget(&[Forget::Interrupts(Some(index))])
    }

    /// Takes an entry back: nobody interrupts by it.
    pub fn unbind_interrupt(&self, index: u16) {
        let Ok(remapper) = self.remapper() else {
            return;
        };
        remapper.write(index, 0, 0);
        // An entry that the unit may remember is not handed out again.
        if self.forget(&[Forget::Interrupts(Some(index))]).is_ok() {
            remapper.used.lock()[usize::from(index)] = false;
        }
    }

    fn remapper(&self) -> Result<Arc<Remapper>, Error> {
        self.remapping.lock().clone().ok_or(Error::NoRemapping)
    }
}
