//! Second-stage paging tables of a domain. Sections 3.7 and 9.8.
//!
//! A tree of pages, each with 512 entries, which the unit walks by itself. Who changes it invalidates
//! afterwards ([`crate::invalidate`]); tables that were taken out are kept until then, in [`Stale`].
//! Present entries change to absent ones and back, never to other present ones: hardware between the
//! two would see neither, and emulations take the old pages away first, under running transfers. So
//! what is mapped at once gets as large pages as fit, but nothing is joined later; only a part of a
//! large page that is unmapped alone splits it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use hal::dma::{Coherent, DmaSpace};

use crate::capabilities::{Capabilities, Features};
use crate::error::Error;
use crate::registers::pte;

/// Bytes in a page, and in a table.
pub(crate) const PAGE: u64 = 4096;
const ENTRIES: usize = 512;

bitflags::bitflags! {
    /// What a device may do with memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Permissions: u8 {
        /// Read it.
        const READ = 1;
        /// Write it.
        const WRITE = 2;
    }
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub phys: u64,
    /// The size of the page that holds it.
    pub page: u64,
    /// What the device may do.
    pub permissions: Permissions,
}

/// One table: memory that the unit reads.
pub(crate) struct Frame {
    memory: Coherent,
    /// Whether the unit looks into the CPUs' caches.
    snooped: bool,
}

impl Frame {
    pub(crate) fn new(memory: &DmaSpace, snooped: bool) -> Result<Self, Error> {
        let memory = memory.coherent(PAGE as usize, PAGE as usize)?;
        let frame = Self { memory, snooped };
        frame.publish(0..ENTRIES);
        Ok(frame)
    }

    pub(crate) fn phys(&self) -> u64 {
        self.memory.addr().bits()
    }

    pub(crate) fn get(&self, index: usize) -> u64 {
        self.memory.load64(index * 8, Ordering::Relaxed)
    }

    /// Writes a word; [`Frame::publish`] shows it to the unit.
    pub(crate) fn set(&self, index: usize, value: u64) {
        self.memory.store64(index * 8, value, Ordering::Release);
    }

    /// The unit sees these words from here on, in its own time.
    pub(crate) fn publish(&self, words: Range<usize>) {
        if !self.snooped {
            self.memory.write_back(words.start * 8..words.end * 8);
        }
    }
}

struct Node {
    frame: Frame,
    /// Entries that are not zero.
    live: usize,
    /// The tables below, at the index of their entry; none at all in the lowest level.
    below: Vec<Option<Box<Node>>>,
}

impl Node {
    fn below(&self, index: usize) -> Option<&Node> {
        self.below.get(index)?.as_deref()
    }
}

/// What the unit may still use after an unmapping, until an invalidation.
#[derive(Default)]
pub(crate) struct Stale {
    /// Ranges whose pages were taken away, or came where a unit may remember that there was nothing.
    pub(crate) ranges: Vec<Range<u64>>,
    /// Whether entries above the leaves changed.
    pub(crate) tables_changed: bool,
    /// Tables that nothing leads to any more.
    tables: Vec<Node>,
}

impl Stale {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.ranges.extend(more.ranges);
        self.tables_changed |= more.tables_changed;
        self.tables.extend(more.tables);
    }

    /// How many tables wait for the invalidation.
    pub(crate) fn tables(&self) -> usize {
        self.tables.len()
    }
}

/// A domain's tables.
pub(crate) struct Tables {
    memory: DmaSpace,
    levels: u8,
    /// Bit `n`: entries of level `n` may be pages.
    page_levels: u8,
    snooped: bool,
    end: u64,
    root: Node,
}

fn entry_bytes(level: u8) -> u64 {
    PAGE << (9 * (level - 1))
}

fn index(level: u8, at: u64) -> usize {
    (at / entry_bytes(level)) as usize % ENTRIES
}

fn is_leaf(level: u8, entry: u64) -> bool {
    level == 1 || entry & pte::LARGE != 0
}

impl Tables {
    /// Tables that map nothing, for a unit that can do this.
    pub(crate) fn new(memory: &DmaSpace, unit: &Capabilities) -> Result<Self, Error> {
        let snooped = unit.has(Features::COHERENT);
        let mut page_levels = 1 << 1;
        if unit.has(Features::PAGES_2M) {
            page_levels |= 1 << 2;
        }
        if unit.has(Features::PAGES_1G) {
            page_levels |= 1 << 3;
        }
        Ok(Self {
            memory: memory.clone(),
            levels: unit.levels,
            page_levels,
            snooped,
            end: 1 << unit.address_bits,
            root: Node {
                frame: Frame::new(memory, snooped)?,
                live: 0,
                below: Vec::new(),
            },
        })
    }

    pub(crate) fn levels(&self) -> u8 {
        self.levels
    }

    pub(crate) fn root(&self) -> u64 {
        self.root.frame.phys()
    }

    fn check(&self, at: u64, len: u64) -> Result<(), Error> {
        let end = at.checked_add(len).ok_or(Error::Range)?;
        let pages = at.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        if len == 0 || !pages || end > self.end {
            return Err(Error::Range);
        }
        Ok(())
    }

    /// Maps `len` bytes at `iova` to those at `phys`: all, or none and an error. What came and went
    /// is added to `stale`: the device may have used it.
    pub(crate) fn map(
        &mut self,
        iova: u64,
        phys: u64,
        len: u64,
        permissions: Permissions,
        stale: &mut Stale,
    ) -> Result<(), Error> {
        self.check(iova, len)?;
        let end = phys.checked_add(len).ok_or(Error::Range)?;
        if !phys.is_multiple_of(PAGE) || end - 1 > pte::ADDRESS | 0xfff || permissions.is_empty() {
            return Err(Error::Range);
        }
        let mut map = Map {
            memory: &self.memory,
            page_levels: self.page_levels,
            snooped: self.snooped,
            flags: flags(permissions),
            done: 0,
            tables: false,
        };
        let result = map.fill(&mut self.root, self.levels, iova, phys, len);
        let done = map.done;
        // Who remembers what is not there may remember it of a table as well.
        stale.tables_changed |= map.tables;
        if result.is_err() {
            if done > 0 {
                clear(&mut self.root, self.levels, iova, done, stale);
            }
            prune(&mut self.root, self.levels, stale);
        }
        stale.ranges.push(iova..iova + len);
        result
    }

    /// Unmaps what is mapped in the `len` bytes at `iova`, and adds it to `stale`. Returns how many
    /// bytes were mapped. On an error nothing has changed: there is no memory to split a large page.
    pub(crate) fn unmap(&mut self, iova: u64, len: u64, stale: &mut Stale) -> Result<u64, Error> {
        self.check(iova, len)?;
        for edge in [iova, iova + len] {
            self.split(edge, stale)?;
        }
        let gone = clear(&mut self.root, self.levels, iova, len, stale);
        if gone > 0 {
            stale.ranges.push(iova..iova + len);
        }
        Ok(gone)
    }

    /// Sees to it that a page begins at `edge`, if one holds it.
    fn split(&mut self, edge: u64, stale: &mut Stale) -> Result<(), Error> {
        let mut node = &mut self.root;
        let mut level = self.levels;
        while level > 1 && edge < self.end {
            let size = entry_bytes(level);
            let at = index(level, edge);
            let entry = node.frame.get(at);
            if entry == 0 || edge.is_multiple_of(size) {
                return Ok(());
            }
            if is_leaf(level, entry) {
                let part = entry_bytes(level - 1);
                let frame = Frame::new(&self.memory, self.snooped)?;
                let keep = if level == 2 { !pte::LARGE } else { !0 };
                for below in 0..ENTRIES {
                    frame.set(below, (entry & keep) + below as u64 * part);
                }
                frame.publish(0..ENTRIES);
                node.frame.set(at, frame.phys() | pte::READ | pte::WRITE);
                node.frame.publish(at..at + 1);
                room(&mut node.below)[at] = Some(Box::new(Node {
                    frame,
                    live: ENTRIES,
                    below: Vec::new(),
                }));
                // The large page as a whole may be remembered.
                let start = edge - edge % size;
                stale.ranges.push(start..start + size);
                stale.tables_changed = true;
            }
            let Some(below) = node.below.get_mut(at).and_then(Option::as_deref_mut) else {
                return Ok(());
            };
            node = below;
            level -= 1;
        }
        Ok(())
    }

    /// Where `iova` leads, by the tables that the unit walks.
    pub(crate) fn translate(&self, iova: u64) -> Option<Translation> {
        if iova >= self.end {
            return None;
        }
        let mut node = &self.root;
        let mut level = self.levels;
        loop {
            let at = index(level, iova);
            let entry = node.frame.get(at);
            if entry == 0 {
                return None;
            }
            if is_leaf(level, entry) {
                let page = entry_bytes(level);
                return Some(Translation {
                    phys: (entry & pte::ADDRESS & !(page - 1)) + iova % page,
                    page,
                    permissions: Permissions::from_bits_truncate(entry as u8),
                });
            }
            node = node.below(at)?;
            level -= 1;
        }
    }

    /// How many pages of 4 KiB, 2 MiB and 1 GiB are mapped, counted in the tables, and how many
    /// tables there are.
    pub(crate) fn count(&self) -> ([usize; 3], usize) {
        let (mut pages, mut tables) = ([0; 3], 0);
        count(&self.root, self.levels, &mut pages, &mut tables);
        (pages, tables)
    }
}

fn flags(permissions: Permissions) -> u64 {
    let mut flags = 0;
    if permissions.contains(Permissions::READ) {
        flags |= pte::READ;
    }
    if permissions.contains(Permissions::WRITE) {
        flags |= pte::WRITE;
    }
    flags
}

fn room(below: &mut Vec<Option<Box<Node>>>) -> &mut [Option<Box<Node>>] {
    if below.is_empty() {
        below.resize_with(ENTRIES, || None);
    }
    below
}

struct Map<'a> {
    memory: &'a DmaSpace,
    page_levels: u8,
    snooped: bool,
    flags: u64,
    /// Bytes mapped so far, from the start on.
    done: u64,
    /// Tables have come.
    tables: bool,
}

impl Map<'_> {
    /// Maps what of the `len` bytes at `iova` lies in `node`.
    fn fill(
        &mut self,
        node: &mut Node,
        level: u8,
        iova: u64,
        phys: u64,
        len: u64,
    ) -> Result<(), Error> {
        let size = entry_bytes(level);
        let first = index(level, iova);
        let (mut at, mut done) = (first, 0);
        let mut result = Ok(());
        while done < len && at < ENTRIES {
            let part = (size - (iova + done) % size).min(len - done);
            let entry = node.frame.get(at);
            let whole = part == size && (phys + done).is_multiple_of(size);
            if whole && entry == 0 && self.page_levels >> level & 1 != 0 {
                let large = if level > 1 { pte::LARGE } else { 0 };
                node.frame.set(at, (phys + done) | self.flags | large);
                node.live += 1;
                self.done += part;
            } else if entry != 0 && is_leaf(level, entry) {
                result = Err(Error::Mapped);
                break;
            } else {
                result = self.descend(node, at, level, iova + done, phys + done, part);
                if result.is_err() {
                    break;
                }
            }
            done += part;
            at += 1;
        }
        node.frame.publish(first..at.max(first + 1).min(ENTRIES));
        result
    }

    fn descend(
        &mut self,
        node: &mut Node,
        at: usize,
        level: u8,
        iova: u64,
        phys: u64,
        len: u64,
    ) -> Result<(), Error> {
        let slot = &mut room(&mut node.below)[at];
        let below = match slot {
            Some(below) => below,
            None => {
                let frame = Frame::new(self.memory, self.snooped)?;
                let entry = frame.phys() | pte::READ | pte::WRITE;
                let below = slot.insert(Box::new(Node {
                    frame,
                    live: 0,
                    below: Vec::new(),
                }));
                node.frame.set(at, entry);
                node.live += 1;
                self.tables = true;
                below
            }
        };
        self.fill(below, level - 1, iova, phys, len)
    }
}

/// Clears all pages in the `len` bytes at `iova`, which begin and end with pages, and the tables that
/// are empty then. Returns how many bytes were mapped.
fn clear(node: &mut Node, level: u8, iova: u64, len: u64, stale: &mut Stale) -> u64 {
    let size = entry_bytes(level);
    let first = index(level, iova);
    let (mut at, mut done, mut gone) = (first, 0, 0);
    while done < len && at < ENTRIES {
        let part = (size - (iova + done) % size).min(len - done);
        let entry = node.frame.get(at);
        if entry != 0 && is_leaf(level, entry) {
            node.frame.set(at, 0);
            node.live -= 1;
            gone += part;
        } else if let Some(below) = node.below.get_mut(at).and_then(Option::as_deref_mut) {
            gone += clear(below, level - 1, iova + done, part, stale);
            if below.live == 0 {
                node.frame.set(at, 0);
                node.live -= 1;
                stale
                    .tables
                    .extend(node.below[at].take().map(|below| *below));
                stale.tables_changed = true;
            }
        }
        done += part;
        at += 1;
    }
    node.frame.publish(first..at.max(first + 1).min(ENTRIES));
    gone
}

/// Takes out the tables that a mapping which failed has left empty.
fn prune(node: &mut Node, level: u8, stale: &mut Stale) {
    if level == 1 {
        return;
    }
    for at in 0..node.below.len() {
        let Some(below) = node.below[at].as_deref_mut() else {
            continue;
        };
        prune(below, level - 1, stale);
        if below.live == 0 {
            node.frame.set(at, 0);
            node.frame.publish(at..at + 1);
            node.live -= 1;
            stale
                .tables
                .extend(node.below[at].take().map(|below| *below));
            stale.tables_changed = true;
        }
    }
}

fn count(node: &Node, level: u8, pages: &mut [usize; 3], tables: &mut usize) {
    *tables += 1;
    if node.live == 0 {
        return;
    }
    for at in 0..ENTRIES {
        let entry = node.frame.get(at);
        if entry == 0 {
            continue;
        }
        match node.below(at) {
            Some(below) => count(below, level - 1, pages, tables),
            None => pages[usize::from(level - 1).min(2)] += 1,
        }
    }
}
