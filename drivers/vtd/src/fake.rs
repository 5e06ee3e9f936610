//! A unit that is played: it behaves as hardware may at its worst.
//!
//! It walks the tables in the host's memory by itself, and remembers whatever it has seen, contexts
//! and translations, until it is told to forget; in caching mode what is not there as well. Memory
//! that it does not see through caches it sees as it was written back last. It takes invalidations
//! from the queue or from its registers, records faults, and may stop answering.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;

use hal::dma::DmaSpace;
use hal::host;
use hal::mmio::{MmioOps, MmioRegion, Width};

use crate::registers::{ccmd, frcd, fsts, gcmd, iotlb, irte, pte, qi, reg};

/// Where the played capabilities put fault records and IOTLB registers.
const FAULTS: usize = 0x220;
const RECORDS: usize = 2;
const IOTLB: usize = 0xf0;
pub(crate) const LEN: usize = 0x300;

pub(crate) const ECAP_COHERENT: u64 = 1;
pub(crate) const ECAP_QUEUE: u64 = 2;
pub(crate) const ECAP: u64 = (IOTLB as u64 / 16) << 8 | ECAP_COHERENT | ECAP_QUEUE | 0b11 << 3;
pub(crate) const CAP_CACHING: u64 = 1 << 7;
pub(crate) const CAP_WRITE_BUFFER: u64 = 1 << 4;
pub(crate) const CAP_SELECTIVE: u64 = 1 << 39;
pub(crate) const CAP_LARGE: u64 = 0b11 << 34;
pub(crate) const CAP_MASK: u64 = 9 << 48;
const CAP_DRAIN: u64 = 0b11 << 54;
/// Domain identifiers of 8 bits, addresses of 48.
pub(crate) const CAP: u64 = 2
    | 47 << 16
    | (FAULTS as u64 / 16) << 24
    | (RECORDS as u64 - 1) << 40
    | CAP_DRAIN
    | CAP_SELECTIVE
    | CAP_LARGE
    | CAP_MASK;

/// Widths of tables, for `CAP`: 3, 4 or 5 levels.
pub(crate) fn levels(levels: u32) -> u64 {
    1 << (8 + levels - 2)
}

/// What a device's access came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It reaches this physical address.
    Reaches(u64),
    /// It is blocked, and recorded with this reason.
    Blocked(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    domain: u16,
    tables: u64,
    levels: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Translation {
    phys: u64,
    page: u64,
    flags: u64,
}

#[derive(Default)]
struct State {
    registers: BTreeMap<usize, u64>,
    root: u64,
    /// By source; `None` where there was none.
    contexts: BTreeMap<u16, Option<Context>>,
    /// By domain and page of 4 KiB; `None` where there was none.
    translations: BTreeMap<(u16, u64), Option<Translation>>,
    interrupts: BTreeMap<u16, (u64, u64)>,
    head: usize,
    next_record: usize,
}

/// The unit.
pub(crate) struct FakeUnit {
    cap: u64,
    ecap: u64,
    state: Mutex<State>,
    /// It does not answer any more.
    pub(crate) silent: AtomicBool,
    /// It says of each invalidation that it could not be done.
    pub(crate) refuses: AtomicBool,
    /// Waits that it has answered.
    pub(crate) waits: AtomicUsize,
    /// Invalidations of pages, and of domains.
    pub(crate) selective: AtomicUsize,
    pub(crate) domainwide: AtomicUsize,
}

struct Wire(Arc<FakeUnit>);

impl FakeUnit {
    pub(crate) fn new(cap: u64, ecap: u64) -> Arc<Self> {
        Arc::new(Self {
            cap,
            ecap,
            state: Mutex::new(State::default()),
            silent: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            waits: AtomicUsize::new(0),
            selective: AtomicUsize::new(0),
            domainwide: AtomicUsize::new(0),
        })
    }

    pub(crate) fn region(self: &Arc<Self>) -> MmioRegion {
        MmioRegion::new(Arc::new(Wire(self.clone())), LEN)
    }

    pub(crate) fn space() -> DmaSpace {
        host::direct_space()
    }

    fn caches_absence(&self) -> bool {
        self.cap & CAP_CACHING != 0
    }

    fn load(phys: u64) -> Option<u64> {
        host::bus_load64(phys).ok()
    }

    /// It remembers nothing any more, as hardware may at any time.
    pub(crate) fn forget_everything(&self) {
        let mut state = self.state.lock().unwrap();
        state.contexts.clear();
        state.translations.clear();
        state.interrupts.clear();
    }

    /// The device with this source accesses `iova`.
    pub(crate) fn access(&self, source: u16, iova: u64, write: bool) -> Outcome {
        let mut state = self.state.lock().unwrap();
        if state.register(reg::GSTS) as u32 & gcmd::TE == 0 {
            return Outcome::Reaches(iova);
        }
        match self.translate(&mut state, source, iova, write) {
            Ok(phys) => Outcome::Reaches(phys),
            Err(reason) => {
                self.record(&mut state, source, iova & !0xfff, reason, !write);
                Outcome::Blocked(reason)
            }
        }
    }

    fn translate(&self, state: &mut State, source: u16, iova: u64, write: bool) -> Result<u64, u8> {
        let context = match state.contexts.get(&source) {
            Some(context) => *context,
            None => {
                let context = Self::walk_context(state.root, source);
                if context.is_some() || self.caches_absence() {
                    state.contexts.insert(source, context);
                }
                context
            }
        };
        let context = context.ok_or(2u8)?;
        if iova >> (12 + 9 * context.levels) != 0 {
            return Err(4);
        }
        let key = (context.domain, iova >> 12);
        let translation = match state.translations.get(&key) {
            Some(translation) => *translation,
            None => {
                let translation = Self::walk(&context, iova);
                if translation.is_some() || self.caches_absence() {
                    state.translations.insert(key, translation);
                }
                translation
            }
        };
        let (reason, wanted) = if write {
            (5, pte::WRITE)
        } else {
            (6, pte::READ)
        };
        let translation = translation.filter(|found| found.flags & wanted != 0);
        let found = translation.ok_or(reason)?;
        Ok(found.phys + iova % found.page)
    }

    fn walk_context(root: u64, source: u16) -> Option<Context> {
        let bus = Self::load(root + u64::from(source >> 8) * 16)?;
        if bus & 1 == 0 {
            return None;
        }
        let at = (bus & pte::ADDRESS) + u64::from(source & 0xff) * 16;
        let (low, high) = (Self::load(at)?, Self::load(at + 8)?);
        (low & 1 != 0).then_some(Context {
            domain: (high >> 8) as u16,
            tables: low & pte::ADDRESS,
            levels: (high & 7) as u32 + 2,
        })
    }

    fn walk(context: &Context, iova: u64) -> Option<Translation> {
        let mut table = context.tables;
        let mut flags = pte::READ | pte::WRITE;
        for level in (0..context.levels).rev() {
            let shift = 12 + 9 * level;
            let entry = Self::load(table + (iova >> shift & 0x1ff) * 8)?;
            flags &= entry;
            if flags == 0 {
                return None;
            }
            assert!(level > 0 || entry & pte::LARGE == 0, "a reserved bit: 9.8");
            if level == 0 || entry & pte::LARGE != 0 {
                let page = 1 << shift;
                return Some(Translation {
                    phys: entry & pte::ADDRESS & !(page - 1),
                    page,
                    flags,
                });
            }
            table = entry & pte::ADDRESS;
        }
        None
    }

    fn record(&self, state: &mut State, source: u16, page: u64, reason: u8, read: bool) {
        let at = FAULTS + state.next_record * frcd::BYTES;
        if state.register(at + 8) & frcd::FAULT != 0 {
            let status = state.register(reg::FSTS) | u64::from(fsts::OVERFLOW);
            state.registers.insert(reg::FSTS, status);
            return;
        }
        let kind = if read { frcd::READ } else { 0 };
        let high = frcd::FAULT | kind | u64::from(reason) << frcd::REASON_SHIFT;
        state.registers.insert(at, page);
        state.registers.insert(at + 8, high | u64::from(source));
        state.next_record = (state.next_record + 1) % RECORDS;
    }

    /// A device writes `address` and `data`: where its interrupt arrives, as APIC ID and vector.
    pub(crate) fn interrupt(&self, source: u16, address: u64, data: u32) -> Result<(u32, u8), u8> {
        let mut state = self.state.lock().unwrap();
        if state.register(reg::GSTS) as u32 & gcmd::IRE == 0 {
            return Ok(((address >> 12) as u32 & 0xff, data as u8));
        }
        let result = Self::remapped(&mut state, source, address);
        if let Err((index, reason)) = result {
            let place = u64::from(index) << 48;
            self.record(&mut state, source, place, reason, false);
        }
        result.map_err(|(_, reason)| reason)
    }

    fn remapped(state: &mut State, source: u16, address: u64) -> Result<(u32, u8), (u16, u8)> {
        if address & 1 << 4 == 0 {
            return Err((0, 0x25));
        }
        let index = (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u16;
        let table = state.register(reg::IRTA);
        if u32::from(index) >= 2 << (table & 0xf) {
            return Err((index, 0x21));
        }
        let entry = *state.interrupts.entry(index).or_insert_with(|| {
            let at = (table & pte::ADDRESS) + u64::from(index) * 16;
            let half = |at| Self::load(at).unwrap_or(0);
            (half(at), half(at + 8))
        });
        let (low, high) = entry;
        if low & irte::PRESENT == 0 {
            return Err((index, 0x22));
        }
        if high & irte::VERIFY_SOURCE != 0 && high as u16 != source {
            return Err((index, 0x26));
        }
        let destination = (low >> irte::DESTINATION_SHIFT) as u32;
        let extended = table & irte::EXTENDED != 0;
        let apic_id = if extended {
            destination
        } else {
            destination >> 8
        };
        Ok((apic_id, (low >> irte::VECTOR_SHIFT) as u8))
    }

    fn forget_context(state: &mut State, granularity: u64, domain: u16, source: u16) {
        state.contexts.retain(|&at, context| match granularity {
            1 => false,
            2 => context.is_some_and(|context| context.domain != domain),
            // What was not there is remembered for domain 0.
            _ => at != source || context.map_or(0, |context| context.domain) != domain,
        });
    }

    fn forget_translations(&self, state: &mut State, granularity: u64, domain: u16, at: u64) {
        match granularity {
            1 => state.translations.clear(),
            2 => {
                self.domainwide.fetch_add(1, Ordering::Relaxed);
                state.translations.retain(|&(of, _), _| of != domain);
            }
            _ => {
                self.selective.fetch_add(1, Ordering::Relaxed);
                let mask = at & 0x3f;
                let first = at >> 12;
                assert!(first.is_multiple_of(1 << mask) && mask <= self.cap >> 48 & 0x3f);
                let pages = first..first + (1 << mask);
                state
                    .translations
                    .retain(|&(of, page), _| of != domain || !pages.contains(&page));
            }
        }
    }

    fn run_queue(&self, state: &mut State) {
        let base = state.register(reg::IQA) & pte::ADDRESS;
        let tail = state.register(reg::IQT) as usize;
        while state.head != tail {
            let at = base + state.head as u64;
            let half = |at| Self::load(at).unwrap_or(0);
            let (low, high) = (half(at), half(at + 8));
            if self.refuses.load(Ordering::Relaxed) {
                let status = state.register(reg::FSTS) | u64::from(fsts::QUEUE_ERROR);
                state.registers.insert(reg::FSTS, status);
                return;
            }
            let (granularity, domain) = (low >> 4 & 3, (low >> qi::DID_SHIFT) as u16);
            match low & 0xf {
                qi::CONTEXT => {
                    let source = (low >> qi::SID_SHIFT) as u16;
                    Self::forget_context(state, granularity, domain, source);
                }
                qi::IOTLB => self.forget_translations(state, granularity, domain, high),
                qi::INTERRUPT if low & qi::INDEXED != 0 => {
                    state.interrupts.remove(&((low >> qi::INDEX_SHIFT) as u16));
                }
                qi::INTERRUPT => state.interrupts.clear(),
                qi::WAIT => {
                    let status = u64::from((low >> qi::STATUS_SHIFT) as u32);
                    host::bus_store64(high, status).expect("an address for the answer");
                    self.waits.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("descriptor of type {other}"),
            }
            state.head = (state.head + qi::BYTES) % 4096;
        }
    }

    fn command(&self, state: &mut State, value: u32) {
        let old = state.register(reg::GSTS) as u32;
        let changed = (old ^ value) & gcmd::KEPT;
        let once = value & !gcmd::KEPT;
        assert!(
            changed.count_ones() + once.count_ones() <= 1,
            "one command at a time: {old:#x} → {value:#x}"
        );
        let mut status = old & !gcmd::KEPT | value & gcmd::KEPT;
        if once & gcmd::SRTP != 0 {
            state.root = state.register(reg::RTADDR) & pte::ADDRESS;
            status |= gcmd::SRTP;
        }
        if once & gcmd::SIRTP != 0 {
            status |= gcmd::SIRTP;
        }
        state.registers.insert(reg::GSTS, status.into());
    }
}

impl State {
    fn register(&self, offset: usize) -> u64 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }
}

impl MmioOps for Wire {
    fn read(&self, offset: usize, width: Width) -> u64 {
        let unit = &self.0;
        let state = unit.state.lock().unwrap();
        let value = match offset {
            reg::VER => 0x60,
            reg::CAP => unit.cap,
            reg::ECAP => unit.ecap,
            reg::FSTS => {
                let full =
                    |record| state.register(FAULTS + record * frcd::BYTES + 8) & frcd::FAULT != 0;
                // The oldest, which is the one that comes next where all are full.
                let first = (0..RECORDS)
                    .map(|record| (state.next_record + record) % RECORDS)
                    .find(|&record| full(record));
                let pending =
                    first.map_or(0, |first| u64::from(fsts::PENDING) | (first as u64) << 8);
                state.register(reg::FSTS) | pending
            }
            _ => state.register(offset),
        };
        value & width.ones()
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        let unit = &self.0;
        if unit.silent.load(Ordering::Relaxed) {
            return;
        }
        let mut state = unit.state.lock().unwrap();
        let value = value & width.ones();
        let refuses = unit.refuses.load(Ordering::Relaxed);
        match offset {
            reg::GCMD => unit.command(&mut state, value as u32),
            reg::FSTS => {
                let kept = state.register(reg::FSTS) & !value;
                state.registers.insert(reg::FSTS, kept);
            }
            reg::IQT => {
                state.registers.insert(offset, value);
                if state.register(reg::GSTS) as u32 & gcmd::QIE != 0 {
                    unit.run_queue(&mut state);
                } else {
                    state.head = 0;
                }
            }
            reg::CCMD => {
                let granularity = value >> 61 & 3;
                if !refuses {
                    let source = (value >> ccmd::SID_SHIFT) as u16;
                    FakeUnit::forget_context(&mut state, granularity, value as u16, source);
                }
                let actual = if refuses { 0 } else { granularity << 59 };
                let value = value & !(ccmd::ICC | ccmd::ACTUAL) | actual;
                state.registers.insert(offset, value);
            }
            at if at == IOTLB + reg::IOTLB => {
                let granularity = value >> 60 & 3;
                if !refuses {
                    let place = state.register(IOTLB + reg::IVA);
                    let domain = (value >> iotlb::DID_SHIFT) as u16;
                    unit.forget_translations(&mut state, granularity, domain, place);
                }
                let actual = if refuses { 0 } else { granularity << 57 };
                let value = value & !(iotlb::IVT | iotlb::ACTUAL) | actual;
                state.registers.insert(at, value);
            }
            at if at >= FAULTS && at % 16 == 8 => {
                let kept = state.register(at) & !(value & frcd::FAULT);
                state.registers.insert(at, kept);
            }
            _ => {
                state.registers.insert(offset, value);
            }
        }
    }
}
