//! Root and context tables: which device has which domain. Sections 3.4, 9.1 and 9.3.

use alloc::collections::BTreeMap;

use hal::dma::DmaSpace;

use crate::error::Error;
use crate::registers::entry;
use crate::tables::Frame;

/// Words in an entry.
const WORDS: usize = 2;

/// The root table, and a context table for each bus that has had a device with a domain. A device
/// without an entry reaches nothing.
pub(crate) struct Contexts {
    memory: DmaSpace,
    snooped: bool,
    root: Frame,
    buses: BTreeMap<u8, Frame>,
}

fn split(source: u16) -> (u8, usize) {
    ((source >> 8) as u8, usize::from(source & 0xff) * WORDS)
}

impl Contexts {
    pub(crate) fn new(memory: &DmaSpace, snooped: bool) -> Result<Self, Error> {
        Ok(Self {
            memory: memory.clone(),
            snooped,
            root: Frame::new(memory, snooped)?,
            buses: BTreeMap::new(),
        })
    }

    pub(crate) fn root(&self) -> u64 {
        self.root.phys()
    }

    pub(crate) fn tables(&self) -> usize {
        1 + self.buses.len()
    }

    /// Whether a device has a domain.
    pub(crate) fn is_present(&self, source: u16) -> bool {
        let (bus, at) = split(source);
        self.buses
            .get(&bus)
            .is_some_and(|table| table.get(at) & entry::PRESENT != 0)
    }

    /// Gives a device, which has none, the domain `id` with these tables.
    pub(crate) fn set(
        &mut self,
        source: u16,
        id: u16,
        tables: u64,
        levels: u8,
    ) -> Result<(), Error> {
        if self.is_present(source) {
            return Err(Error::Attached);
        }
        let (bus, at) = split(source);
        if !self.buses.contains_key(&bus) {
            let table = Frame::new(&self.memory, self.snooped)?;
            let root = usize::from(bus) * WORDS;
            self.root.set(root, table.phys() | entry::PRESENT);
            self.root.publish(root..root + WORDS);
            self.buses.insert(bus, table);
        }
        let table = self.buses.get(&bus).ok_or(Error::Exhausted)?;
        // The width of addresses is coded as levels less two. Present comes last.
        let high = u64::from(levels - 2) | u64::from(id) << entry::DID_SHIFT;
        table.set(at + 1, high);
        table.set(at, tables | entry::PRESENT);
        table.publish(at..at + WORDS);
        Ok(())
    }

    /// Takes the domain `id` from a device, if it has that.
    pub(crate) fn clear(&mut self, source: u16, id: u16) {
        let (bus, at) = split(source);
        let Some(table) = self.buses.get(&bus) else {
            return;
        };
        if table.get(at + 1) >> entry::DID_SHIFT == u64::from(id) {
            table.set(at, 0);
            table.set(at + 1, 0);
            table.publish(at..at + WORDS);
        }
    }
}
