//! Strays, on a board whose memory can be mapped for the engine page by page: none hits what is not
//! mapped, those of an engine that nobody confines do, and the counters tell.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioat_model::{
    Aim, Engine, EngineConfig, Fault, GuestMemory, InterruptSink, MemoryError, Refusal, Requests,
    STRAY_PATTERN, Stray, StrayCount, Way,
};
use ioat_spec::{Control, Descriptor, channel};

const LEN: u64 = 4 << 20;
const PAGE: u64 = 4096;
const RING: u64 = 0x10_0000;
const DONE: u64 = 0x10_1000;
const SRC: u64 = 0x20_0000;
const DST: u64 = 0x20_2000;

const AIMS: [Aim; 7] = [
    Aim::Unmapped,
    Aim::Edge,
    Aim::Foreign,
    Aim::Raw,
    Aim::Completed,
    Aim::Removed,
    Aim::Interrupt,
];

/// Memory whose every byte tells its place, what of it is mapped, and an IOMMU that may fail.
struct Board {
    bytes: Mutex<Vec<u8>>,
    windows: Mutex<Vec<Range<u64>>>,
    /// Requests reach all of memory.
    leaks: AtomicBool,
    /// Requests are not answered.
    mute: AtomicBool,
    /// Requests map, as another request of the guest's would, what they ask for.
    maps: AtomicBool,
    engine: Mutex<Option<Arc<Engine>>>,
    requests: AtomicUsize,
}

fn guard(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}

impl Board {
    fn access(&self, range: &Range<u64>, all: bool, with: impl FnOnce(&mut [u8])) -> bool {
        let inside = |window: &Range<u64>| window.start <= range.start && range.end <= window.end;
        let mapped = self.windows.lock().unwrap().iter().any(inside);
        let there = mapped || all && range.end <= LEN;
        if there {
            let mut bytes = self.bytes.lock().unwrap();
            with(&mut bytes[range.start as usize..range.end as usize]);
        }
        there
    }

    fn ask(&self, range: &Range<u64>, with: impl FnOnce(&mut [u8])) -> Result<(), Refusal> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.mute.load(Ordering::Relaxed) {
            return Err(Refusal::Unanswered);
        }
        if self.maps.load(Ordering::Relaxed) {
            let engine = self.engine.lock().unwrap().clone().unwrap();
            engine.announce(range.clone());
            self.windows.lock().unwrap().push(range.clone());
        }
        let there = self.access(range, self.leaks.load(Ordering::Relaxed), with);
        there.then_some(()).ok_or(Refusal::Refused)
    }

    /// Where memory is not as it was: the engine's own page for the completion word and the destination
    /// of its copy aside.
    fn damage(&self) -> Vec<u64> {
        let own = [DONE..DONE + 8, DST..DST + PAGE, RING..RING + PAGE];
        let bytes = self.bytes.lock().unwrap();
        (0..LEN)
            .filter(|at| bytes[*at as usize] != guard(*at))
            .filter(|at| !own.iter().any(|own| own.contains(at)))
            .collect()
    }
}

impl GuestMemory for Board {
    fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let range = addr..addr + bytes.len() as u64;
        let there = self.access(&range, false, |found| bytes.copy_from_slice(found));
        there.then_some(()).ok_or(MemoryError)
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let range = addr..addr + bytes.len() as u64;
        let there = self.access(&range, false, |found| found.copy_from_slice(bytes));
        there.then_some(()).ok_or(MemoryError)
    }

    fn load64(&self, addr: u64) -> Result<u64, MemoryError> {
        let mut word = [0; 8];
        self.read(addr, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn store64(&self, addr: u64, value: u64) -> Result<(), MemoryError> {
        self.write(addr, &value.to_le_bytes())
    }
}

impl Requests for Board {
    fn request_read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), Refusal> {
        let range = addr..addr + bytes.len() as u64;
        self.ask(&range, |found| bytes.copy_from_slice(found))
    }

    fn request_write(&self, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let range = addr..addr + bytes.len() as u64;
        self.ask(&range, |found| found.copy_from_slice(bytes))
    }
}

impl InterruptSink for Board {
    fn message(&self, _: usize) {}
    fn set_intx(&self, _: bool) {}
}

struct Rig {
    board: Arc<Board>,
    engine: Arc<Engine>,
}

fn stray(aim: Aim, way: Way, count: u64) -> Fault {
    Fault::Stray(Stray {
        from: 1,
        aim,
        way,
        count,
        pause_us: 0,
    })
}

impl Rig {
    /// An engine at power-on that may reach all of memory.
    fn new(faults: Vec<Fault>) -> Self {
        let board = Arc::new(Board {
            bytes: Mutex::new((0..LEN).map(guard).collect()),
            windows: Mutex::default(),
            leaks: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            maps: AtomicBool::new(false),
            engine: Mutex::default(),
            requests: AtomicUsize::new(0),
        });
        let config = EngineConfig {
            faults,
            ..EngineConfig::default()
        };
        let engine = Engine::new(config, board.clone(), board.clone()).unwrap();
        engine.set_requests(board.clone());
        *board.engine.lock().unwrap() = Some(engine.clone());
        let rig = Self { board, engine };
        rig.map(0..LEN);
        rig
    }

    fn map(&self, range: Range<u64>) {
        self.engine.announce(range.clone());
        self.board.windows.lock().unwrap().push(range);
    }

    fn unmap(&self, range: Range<u64>) {
        self.board
            .windows
            .lock()
            .unwrap()
            .retain(|window| *window != range);
        self.engine.withdraw(range);
    }

    /// What a guest with an IOMMU maps: ring, completion word, and two buffers, each by itself.
    fn confine(&self) {
        self.unmap(0..LEN);
        for at in [RING, DONE, SRC, DST] {
            self.map(at..at + PAGE);
        }
    }

    fn bus_master(&self, on: bool) {
        self.engine.config_write(4, &[2 | u8::from(on) << 2, 0]);
    }

    /// One copy, begun and done.
    fn copy(&self) {
        let descriptor = Descriptor::copy(Control::COMPLETION, 256, SRC, DST, RING);
        for (n, word) in (0..).zip(descriptor.0) {
            self.board.write(RING + 8 * n, &word.to_le_bytes()).unwrap();
        }
        self.bus_master(true);
        let base = channel::base(0);
        let write = |at: usize, bytes: &[u8]| self.engine.bar_write((base + at) as u64, bytes);
        write(channel::CHANCMP, &DONE.to_le_bytes());
        write(channel::CHAINADDR, &RING.to_le_bytes());
        write(channel::DMACOUNT, &[1, 0]);
        until("the copy", || self.engine.statistics().completions == 1);
    }

    fn count(&self, aim: Aim) -> StrayCount {
        let counts = self.engine.strays();
        *counts.iter().find(|count| count.aim == aim).unwrap()
    }

    fn await_attempts(&self, aim: Aim, count: u64) -> StrayCount {
        until("all attempts", || self.count(aim).attempted == count);
        self.count(aim)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.board.engine.lock().unwrap().take();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn no_stray_of_a_confined_engine_lands() {
    for way in [Way::Mapped, Way::Read, Way::Write] {
        let rig = Rig::new(AIMS.map(|aim| stray(aim, way, 10_000)).to_vec());
        rig.confine();
        rig.engine
            .set_foreign(vec![0x30_0000..0x30_4000, 0x31_0000..0x31_0004]);
        rig.copy();
        for page in [SRC, DST] {
            rig.unmap(page..page + PAGE);
        }
        rig.bus_master(false);
        for aim in AIMS {
            let count = rig.await_attempts(aim, 10_000);
            assert_eq!((count.refused, count.landed), (10_000, 0), "{aim} {way}");
        }
        assert_eq!(rig.board.damage(), []);
        let asked = rig.board.requests.load(Ordering::Relaxed);
        assert_eq!(asked, if way == Way::Mapped { 0 } else { 70_000 });
    }
}

/// Without an IOMMU there is nothing between a stray and memory.
#[test]
fn strays_of_an_engine_that_nobody_confines_land() {
    for way in [Way::Mapped, Way::Write] {
        for aim in [Aim::Raw, Aim::Completed] {
            let rig = Rig::new(vec![stray(aim, way, 100)]);
            rig.copy();
            let count = rig.await_attempts(aim, 100);
            assert_eq!((count.refused, count.landed), (0, 100), "{aim} {way}");
            let bytes = rig.board.bytes.lock().unwrap();
            let hits = bytes.windows(8).filter(|word| **word == STRAY_PATTERN);
            assert!(hits.count() > 0, "{aim} {way}");
        }
    }
}

#[test]
fn an_iommu_that_leaks_is_found_out() {
    for aim in [Aim::Unmapped, Aim::Edge, Aim::Raw] {
        let rig = Rig::new(vec![stray(aim, Way::Write, 1000)]);
        rig.confine();
        rig.board.leaks.store(true, Ordering::Relaxed);
        rig.copy();
        rig.unmap(SRC..SRC + PAGE);
        let count = rig.await_attempts(aim, 1000);
        assert_eq!(count.landed, 1000, "{aim}");
        assert_ne!(rig.board.damage(), [], "{aim}");
    }
}

#[test]
fn what_is_mapped_anew_meanwhile_is_no_stray() {
    let rig = Rig::new(vec![stray(Aim::Unmapped, Way::Read, 5)]);
    rig.confine();
    rig.board.maps.store(true, Ordering::Relaxed);
    rig.copy();
    let count = rig.await_attempts(Aim::Unmapped, 5);
    assert_eq!((count.remapped, count.landed), (5, 0));
}

#[test]
fn requests_without_an_answer_are_counted_by_themselves() {
    let rig = Rig::new(vec![stray(Aim::Interrupt, Way::Write, 5)]);
    rig.board.mute.store(true, Ordering::Relaxed);
    rig.copy();
    let count = rig.await_attempts(Aim::Interrupt, 5);
    assert_eq!((count.unanswered, count.refused), (5, 0));
    let named: Vec<_> = count.iter().collect();
    assert_eq!(named[0], ("stray_interrupt_write_attempted".into(), 5));
    assert_eq!(named[3], ("stray_interrupt_write_unanswered".into(), 5));
}

#[test]
fn an_engine_that_was_taken_away_strays_from_then_on() {
    let rig = Rig::new(vec![
        stray(Aim::Removed, Way::Mapped, 50),
        stray(Aim::Removed, Way::Mapped, 20),
    ]);
    rig.confine();
    rig.bus_master(true);
    rig.bus_master(false);
    rig.copy();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(rig.count(Aim::Removed).attempted, 0);
    rig.bus_master(false);
    assert_eq!(rig.await_attempts(Aim::Removed, 70).landed, 0);
}

#[test]
fn a_slot_that_is_empty_lets_strays_end() {
    let rig = Rig::new(vec![stray(Aim::Removed, Way::Read, 300)]);
    rig.confine();
    rig.copy();
    rig.engine.withdraw_all();
    rig.engine.unplug(Duration::from_secs(20));
    assert_eq!(rig.count(Aim::Removed).attempted, 300);
    // One that never worked has nothing to do.
    let idle = Rig::new(vec![stray(Aim::Removed, Way::Read, 300)]);
    idle.engine.unplug(Duration::from_secs(20));
    assert_eq!(idle.count(Aim::Removed).attempted, 0);
}

#[test]
fn strays_begin_with_the_descriptor_that_is_named_and_end_with_the_engine() {
    let from = |from| {
        Fault::Stray(Stray {
            from,
            aim: Aim::Interrupt,
            way: Way::Mapped,
            count: u64::MAX,
            pause_us: 100,
        })
    };
    let rig = Rig::new(vec![from(2)]);
    rig.copy();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(rig.count(Aim::Interrupt).attempted, 0);
    for end in [Engine::vanish, Engine::freeze, Engine::shutdown] {
        let rig = Rig::new(vec![from(1)]);
        rig.copy();
        until("some", || rig.count(Aim::Interrupt).attempted > 2);
        end(&rig.engine);
        // One may be under way.
        std::thread::sleep(Duration::from_millis(2));
        let ended = rig.count(Aim::Interrupt).attempted;
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(rig.count(Aim::Interrupt).attempted, ended);
    }
}
