//! A remapping unit: brought up, asked for domains, told what to forget.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use hal::dma::DmaSpace;
use hal::mmio::MmioRegion;
use hal::pci::Address;
use hal::time::{Duration, Instant};
use spin::Mutex;

use crate::capabilities::{Capabilities, Features};
use crate::contexts::Contexts;
use crate::error::Error;
use crate::fault::{self, Fault};
use crate::invalidate::{Forget, Invalidator};
use crate::registers::{frcd, gcmd, pmen, reg};
use crate::remap::Remapper;
use crate::tables::{Stale, Tables};

/// How long a unit may take for an answer. One that takes longer is left alone from then on.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Registers before those that capabilities place.
const FIXED: usize = 0xc0;

/// The bus, device and function by which a device's requests come.
pub fn source_id(device: Address) -> u16 {
    u16::from(device.bus) << 8 | u16::from(device.device) << 3 | u16::from(device.function)
}

/// The device of a segment whose requests come so.
pub fn device_of(segment: u16, source: u16) -> Address {
    Address {
        segment,
        bus: (source >> 8) as u8,
        device: (source >> 3) as u8 & 0x1f,
        function: source as u8 & 7,
    }
}

/// Waits until `done` says yes, at most for [`ANSWER_LIMIT`]. A unit answers in microseconds, and
/// whoever asks it goes on only then: there is nothing to be done meanwhile.
pub(crate) fn within(what: &'static str, mut done: impl FnMut() -> bool) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        let last = start.elapsed() >= ANSWER_LIMIT;
        if done() {
            return Ok(());
        }
        if last {
            return Err(Error::Silent(what));
        }
        core::hint::spin_loop();
    }
}

/// Switches `bit` of the global command, and waits until the status has it. 10.4.4.
pub(crate) fn command(
    registers: &MmioRegion,
    bit: u32,
    on: bool,
    what: &'static str,
) -> Result<(), Error> {
    let kept = registers.read32(reg::GSTS) & gcmd::KEPT & !bit;
    registers.write32(reg::GCMD, if on { kept | bit } else { kept });
    within(what, || {
        let status = registers.read32(reg::GSTS);
        (status & bit != 0) == on && status != u32::MAX
    })
}

/// How many bytes of registers a unit has, of which `first` shows a page: those that its
/// capabilities place may lie behind that.
pub fn register_bytes(first: &MmioRegion) -> Result<usize, Error> {
    let capabilities = read_capabilities(first)?;
    let (faults, count) = capabilities.faults;
    let end = (faults + count * frcd::BYTES).max(capabilities.iotlb + 16);
    Ok(end.max(FIXED))
}

fn read_capabilities(registers: &MmioRegion) -> Result<Capabilities, Error> {
    let version = registers.read32(reg::VER);
    let (cap, ecap) = (registers.read64(reg::CAP), registers.read64(reg::ECAP));
    if version == u32::MAX || cap == u64::MAX {
        return Err(Error::Absent);
    }
    // Major versions 1 to 6 are known: tables of old are in all of them. 10.4.1.
    if !(1..=6).contains(&(version >> 4 & 0xf)) {
        return Err(Error::Version(version));
    }
    Capabilities::decode(cap, ecap)
}

/// A remapping unit.
pub struct Unit {
    segment: u16,
    registers: MmioRegion,
    memory: DmaSpace,
    capabilities: Capabilities,
    contexts: Mutex<Contexts>,
    invalidator: Mutex<Invalidator>,
    ids: Mutex<Ids>,
    enabled: AtomicBool,
    failed: AtomicBool,
    /// What a unit that failed may still read.
    buried: Mutex<Vec<(Arc<Mutex<Tables>>, Stale)>>,
    pub(crate) remapping: Mutex<Option<Arc<Remapper>>>,
}

impl Unit {
    /// Takes the unit behind `registers` over, which serves `segment`: what firmware has left on is
    /// off, and its tables give nobody a domain. `memory` is the unit's own space: addresses in it
    /// are physical.
    pub fn new(segment: u16, registers: MmioRegion, memory: DmaSpace) -> Result<Arc<Self>, Error> {
        let capabilities = read_capabilities(&registers)?;
        if register_bytes(&registers)? > registers.len() {
            return Err(Error::Registers);
        }
        for (bit, what) in [
            (gcmd::TE, "translation off"),
            (gcmd::IRE, "interrupt remapping off"),
            (gcmd::QIE, "the queue off"),
        ] {
            if registers.read32(reg::GSTS) & bit != 0 {
                command(&registers, bit, false, what)?;
            }
        }
        let snooped = capabilities.has(Features::COHERENT);
        let contexts = Contexts::new(&memory, snooped)?;
        registers.write64(reg::RTADDR, contexts.root());
        command(&registers, gcmd::SRTP, true, "the root table")?;
        let mut invalidator = Invalidator::new(&registers, &capabilities, &memory)?;
        invalidator.forget(&[Forget::Contexts, Forget::Translations])?;
        fault::clear(&registers, &capabilities);
        Ok(Arc::new(Self {
            segment,
            registers,
            memory,
            capabilities,
            contexts: Mutex::new(contexts),
            invalidator: Mutex::new(invalidator),
            ids: Mutex::new(Ids::new(capabilities.domains)),
            enabled: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            buried: Mutex::new(Vec::new()),
            remapping: Mutex::new(None),
        }))
    }

    /// Turns translation on: from here on devices reach what their domains map, and nothing else.
    pub fn enable(&self) -> Result<(), Error> {
        command(&self.registers, gcmd::TE, true, "translation")?;
        // Memory that firmware had protected from devices meanwhile: 10.4.16.
        if self.capabilities.has(Features::PROTECTED_MEMORY)
            && self.registers.read32(reg::PMEN) & pmen::STATUS != 0
        {
            self.registers.write32(reg::PMEN, 0);
            within("protected memory", || {
                self.registers.read32(reg::PMEN) & pmen::STATUS == 0
            })?;
        }
        self.enabled.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it translates.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Whether it did not answer, or refused, once: what it remembers is not known any more, and
    /// nothing more is asked of it. Its tables are kept from then on.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// What it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The PCI segment that it serves.
    pub fn segment(&self) -> u16 {
        self.segment
    }

    /// How many root and context tables it has.
    pub fn tables(&self) -> usize {
        self.contexts.lock().tables()
    }

    /// How many domains there are.
    pub fn domains(&self) -> usize {
        self.ids.lock().used
    }

    pub(crate) fn memory(&self) -> &DmaSpace {
        &self.memory
    }

    pub(crate) fn registers(&self) -> &MmioRegion {
        &self.registers
    }

    pub(crate) fn take_id(&self) -> Result<u16, Error> {
        if self.failed() {
            return Err(Error::Failed);
        }
        self.ids.lock().take().ok_or(Error::Exhausted)
    }

    pub(crate) fn give_id(&self, id: u16) {
        self.ids.lock().give(id);
    }

    pub(crate) fn bury(&self, tables: Arc<Mutex<Tables>>, stale: Stale) {
        self.buried.lock().push((tables, stale));
    }

    pub(crate) fn forget(&self, wanted: &[Forget]) -> Result<(), Error> {
        let result = self.invalidator.lock().forget(wanted);
        self.note(result)
    }

    pub(crate) fn forget_stale(&self, domain: u16, stale: &Stale) -> Result<(), Error> {
        let result = self.invalidator.lock().forget_stale(domain, stale);
        self.note(result)
    }

    fn note(&self, result: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = result
            && !self.failed.swap(true, Ordering::AcqRel)
        {
            log::error!("{self}: {error}; it is left alone from here on");
        }
        result
    }

    pub(crate) fn attach(
        &self,
        device: Address,
        id: u16,
        tables: u64,
        levels: u8,
    ) -> Result<(), Error> {
        let source = source_id(device);
        let mut contexts = self.contexts.lock();
        contexts.set(source, id, tables, levels)?;
        let told = Features::CACHING_MODE | Features::WRITE_BUFFER;
        if !self.capabilities.features.intersects(told) {
            return Ok(());
        }
        // What is not there is remembered for domain 0, which nobody gets: 6.1.
        let seen = self.forget(&[Forget::Context { domain: 0, source }, Forget::Domain(id)]);
        if seen.is_err() {
            contexts.clear(source, id);
        }
        seen
    }

    pub(crate) fn detach(&self, device: Address, id: u16) -> Result<(), Error> {
        let source = source_id(device);
        let mut contexts = self.contexts.lock();
        contexts.clear(source, id);
        self.forget(&[Forget::Context { domain: id, source }, Forget::Domain(id)])
    }

    /// Has faults raise an interrupt: the unit writes `data` to `address`. It is not remapped.
    pub fn set_fault_message(&self, address: u64, data: u32) {
        fault::set_message(&self.registers, address, data);
    }

    /// Reads the faults that the unit has recorded, and makes room for more; says as well whether
    /// some found none and are lost. Bounded by what the unit records.
    pub fn take_faults(&self) -> (Vec<Fault>, bool) {
        fault::take(&self.registers, &self.capabilities, self.segment)
    }

    /// Whether a fault waits to be read.
    pub fn has_faults(&self) -> bool {
        fault::pending(&self.registers)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit of segment {}", self.segment)
    }
}

/// Domain identifiers. 0 stands for what is not there: 6.1.
struct Ids {
    taken: Vec<u64>,
    used: usize,
    /// Where the search goes on: identifiers come again as late as they can.
    next: u32,
    count: u32,
}

impl Ids {
    fn new(count: u32) -> Self {
        Self {
            taken: alloc::vec![0; (count as usize).div_ceil(64)],
            used: 0,
            next: 1,
            count,
        }
    }

    fn take(&mut self) -> Option<u16> {
        let order = (self.next..self.count).chain(1..self.next);
        for id in order {
            let (word, bit) = (id as usize / 64, id % 64);
            if self.taken[word] >> bit & 1 == 0 {
                self.taken[word] |= 1 << bit;
                self.used += 1;
                self.next = if id + 1 == self.count { 1 } else { id + 1 };
                return Some(id as u16);
            }
        }
        None
    }

    fn give(&mut self, id: u16) {
        self.taken[usize::from(id) / 64] &= !(1 << (id % 64));
        self.used -= 1;
    }
}
