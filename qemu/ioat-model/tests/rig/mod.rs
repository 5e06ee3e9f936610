//! A machine of bytes around an engine: guest memory that can fail, interrupts that are counted,
//! and a log of what became visible in which order.

#![allow(dead_code, reason = "each test file uses a part of the rig")]

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ioat_model::{Engine, EngineConfig, GuestMemory, InterruptSink, MemoryError};
use ioat_spec::{ChanSts, Control, Descriptor, State, channel, device, pci};

/// Guest address of the first byte of memory.
pub(crate) const BASE: u64 = 0x10_0000;
/// Bytes of guest memory.
pub(crate) const LEN: usize = 8 << 20;
/// Where the rig puts descriptors: 64 bytes each.
pub(crate) const RING: u64 = BASE;
/// Where the rig puts completion words: 64 bytes a channel.
pub(crate) const DONE: u64 = BASE + 0x8_0000;
/// From here on memory is the test's own.
pub(crate) const DATA: u64 = BASE + 0x10_0000;

/// What became visible outside the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Bytes were written to this address.
    Data(u64),
    /// A word was stored.
    Word(u64, u64),
    /// A message of this vector.
    Message(usize),
    /// The pin.
    Pin(bool),
}

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    unreadable: Vec<Range<u64>>,
    unwritable: Vec<Range<u64>>,
    events: Vec<Event>,
}

/// Memory and interrupts.
#[derive(Default)]
pub(crate) struct Machine(Mutex<Inner>);

impl Machine {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    pub(crate) fn messages(&self) -> Vec<usize> {
        self.events()
            .iter()
            .filter_map(|event| match event {
                Event::Message(n) => Some(*n),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn pin(&self) -> bool {
        let last = |event: &Event| matches!(event, Event::Pin(_)).then_some(*event);
        self.events().iter().rev().find_map(last) == Some(Event::Pin(true))
    }

    pub(crate) fn deny_reads(&self, range: Range<u64>) {
        self.lock().unreadable.push(range);
    }

    pub(crate) fn deny_writes(&self, range: Range<u64>) {
        self.lock().unwritable.push(range);
    }
}

fn place(addr: u64, len: usize, denied: &[Range<u64>]) -> Result<usize, MemoryError> {
    let at = addr.checked_sub(BASE).ok_or(MemoryError)? as usize;
    let end = at.checked_add(len).filter(|end| *end <= LEN);
    end.ok_or(MemoryError)?;
    let hit = |range: &Range<u64>| addr < range.end && range.start < addr + len as u64;
    if denied.iter().any(hit) {
        return Err(MemoryError);
    }
    Ok(at)
}

impl GuestMemory for Machine {
    fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let inner = self.lock();
        let at = place(addr, bytes.len(), &inner.unreadable)?;
        bytes.copy_from_slice(&inner.bytes[at..at + bytes.len()]);
        Ok(())
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let mut inner = self.lock();
        let at = place(addr, bytes.len(), &inner.unwritable)?;
        inner.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        inner.events.push(Event::Data(addr));
        Ok(())
    }

    fn load64(&self, addr: u64) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn store64(&self, addr: u64, value: u64) -> Result<(), MemoryError> {
        assert!(addr.is_multiple_of(8), "a completion is one aligned word");
        let mut inner = self.lock();
        let at = place(addr, 8, &inner.unwritable)?;
        inner.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        inner.events.push(Event::Word(addr, value));
        Ok(())
    }
}

impl InterruptSink for Machine {
    fn message(&self, vector: usize) {
        self.lock().events.push(Event::Message(vector));
    }

    fn set_intx(&self, asserted: bool) {
        self.lock().events.push(Event::Pin(asserted));
    }
}

/// An engine in its machine.
pub(crate) struct Rig {
    pub(crate) engine: Arc<Engine>,
    pub(crate) machine: Arc<Machine>,
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        pub(crate) fn $read(&self, offset: usize) -> $type {
            let mut bytes = [0; size_of::<$type>()];
            self.engine.bar_read(offset as u64, &mut bytes);
            <$type>::from_le_bytes(bytes)
        }

        pub(crate) fn $write(&self, offset: usize, value: $type) {
            self.engine.bar_write(offset as u64, &value.to_le_bytes());
        }
    };
}

impl Rig {
    /// An engine at power-on.
    pub(crate) fn new(config: EngineConfig) -> Self {
        let machine = Arc::new(Machine::default());
        machine.lock().bytes = vec![0; LEN];
        let engine = Engine::new(config, machine.clone(), machine.clone()).unwrap();
        Self { engine, machine }
    }

    /// An engine with bus mastering and interrupts on, as a driver leaves it after probing.
    pub(crate) fn probed(config: EngineConfig) -> Self {
        let rig = Self::new(config);
        rig.bus_master(true);
        rig.w8(device::INTRCTRL, 0x09);
        rig
    }

    access!(r8, w8, u8);
    access!(r16, w16, u16);
    access!(r32, w32, u32);
    access!(r64, w64, u64);

    pub(crate) fn config(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.engine.config_read(offset as u64, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn config_write(&self, offset: usize, value: u32) {
        self.engine
            .config_write(offset as u64, &value.to_le_bytes());
    }

    pub(crate) fn bus_master(&self, on: bool) {
        let command = 0x2u16 | u16::from(on) << 2;
        self.engine.config_write(4, &command.to_le_bytes());
    }

    /// Turns the MSI (or MSI-X) capability on.
    pub(crate) fn enable_messages(&self) {
        let control = self.config(pci::MSIX_CAP);
        let bit = if control & 0xff == 0x05 {
            1 << 16
        } else {
            1 << 31
        };
        self.config_write(pci::MSIX_CAP, control | bit);
    }

    pub(crate) fn status(&self, n: usize) -> ChanSts {
        ChanSts(self.r64(channel::base(n) + channel::CHANSTS))
    }

    pub(crate) fn state(&self, n: usize) -> State {
        self.status(n).state().expect("a state")
    }

    pub(crate) fn errors(&self, n: usize) -> u32 {
        self.r32(channel::base(n) + channel::CHANERR)
    }

    pub(crate) fn command(&self, n: usize, value: u8) {
        self.w8(channel::base(n) + channel::CHANCMD, value);
    }

    pub(crate) fn rearm(&self, n: usize) {
        self.w16(channel::base(n) + channel::CHANCTRL, 0x1d);
    }

    /// Where slot `slot` of channel `n`'s ring is.
    pub(crate) fn slot(n: usize, slot: usize) -> u64 {
        RING + (n as u64 * 0x1_0000) + slot as u64 * 64
    }

    pub(crate) fn done(n: usize) -> u64 {
        DONE + n as u64 * 64
    }

    pub(crate) fn put(&self, addr: u64, descriptor: Descriptor) {
        for (n, word) in (0..).zip(descriptor.0) {
            self.machine
                .write(addr + 8 * n, &word.to_le_bytes())
                .unwrap();
        }
    }

    /// Arms channel `n` at the first slot of its ring, as a driver's start does without its null
    /// descriptor.
    pub(crate) fn arm(&self, n: usize) {
        let base = channel::base(n);
        self.rearm(n);
        self.w64(base + channel::CHANCMP, Self::done(n));
        self.w64(base + channel::CHAINADDR, Self::slot(n, 0));
    }

    pub(crate) fn ring(&self, n: usize, count: u16) {
        self.w16(channel::base(n) + channel::DMACOUNT, count);
    }

    /// Puts a chain of descriptors into channel `n`'s ring from its first slot on, links them, arms
    /// the channel and rings. Returns the address of the last.
    pub(crate) fn submit(&self, n: usize, descriptors: &[Descriptor]) -> u64 {
        for (slot, descriptor) in descriptors.iter().enumerate() {
            let mut linked = *descriptor;
            linked.0[3] = Self::slot(n, slot + 1);
            self.put(Self::slot(n, slot), linked);
        }
        self.arm(n);
        self.ring(n, descriptors.len() as u16);
        Self::slot(n, descriptors.len() - 1)
    }

    /// As [`Rig::submit`], and waits until the channel is no longer ACTIVE.
    pub(crate) fn run(&self, n: usize, descriptors: &[Descriptor]) -> State {
        self.submit(n, descriptors);
        self.settle(n)
    }

    pub(crate) fn settle(&self, n: usize) -> State {
        until("the channel settles", || self.state(n) != State::Active);
        self.state(n)
    }

    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.machine.read(addr, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.machine.write(addr, bytes).unwrap();
    }
}

/// Waits until `done`, for two seconds.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(2), "never: {what}");
        std::thread::yield_now();
    }
}

/// A copy with completion.
pub(crate) fn copy(src: u64, dst: u64, size: u32) -> Descriptor {
    Descriptor::copy(Control::COMPLETION, size, src, dst, 0)
}

/// Bytes that tell their place.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}
