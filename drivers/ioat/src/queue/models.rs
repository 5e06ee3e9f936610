//! Models of the hand-over, run by loom in every order that the memory model allows (`make loom`).

use super::*;
use loom::thread;

/// A ring of two slots, of which one can be in use, and its engine.
#[derive(Default)]
struct Engine {
    /// The descriptors: relaxed, so that only what the queue orders is seen.
    slots: [AtomicU64; 2],
    /// What the doorbell said last.
    bell: AtomicU64,
    /// The slot after the last one that was done.
    word: AtomicU64,
    /// What the engine moved: the numbers of all descriptors, added up.
    moved: AtomicU64,
}

impl Slots for Engine {
    fn capacity(&self) -> u64 {
        1
    }
}

impl Engine {
    /// Does the slots before `end`, from `first` on, as soon as they are announced.
    fn run(&self, first: u64, end: u64) {
        for slot in first..end {
            while self.bell.load(Ordering::Acquire) <= slot {
                thread::yield_now();
            }
            let descriptor = self.slots[slot as usize % 2].load(Ordering::Relaxed);
            assert_eq!(
                descriptor,
                slot + 10,
                "a slot is written before it is announced"
            );
            let moved = self.moved.load(Ordering::Relaxed) + descriptor;
            self.moved.store(moved, Ordering::Relaxed);
            self.word.store(slot + 1, Ordering::Release);
        }
    }

    fn look(&self, _: &mut u64, given: Range<u64>) -> u64 {
        let word = self.word.load(Ordering::Acquire);
        assert!(word <= given.end, "the engine does what it was given");
        word.max(given.start)
    }
}

/// What was delivered, in order: read by everybody, written by who delivers.
#[derive(Default)]
struct Delivered {
    count: AtomicU64,
}

struct Shared {
    queue: Queue<Engine, u64>,
    engine: Arc<Engine>,
    delivered: Delivered,
}

impl Shared {
    fn new() -> Arc<Self> {
        let shared = Self {
            queue: Queue::new(),
            engine: Arc::default(),
            delivered: Delivered::default(),
        };
        shared.queue.open(shared.engine.clone(), 0, 0);
        Arc::new(shared)
    }

    fn push(&self, number: u64) -> bool {
        let write = |engine: &Engine, free: Range<u64>, entry: &u64| {
            assert_eq!(free.start, *entry);
            if !free.is_empty() {
                engine.slots[*entry as usize % 2].store(entry + 10, Ordering::Relaxed);
            }
            Some(1)
        };
        self.queue.push(number, write).is_ok()
    }

    fn issue(&self) {
        self.queue
            .issue(|slots| self.engine.bell.store(slots, Ordering::Release));
    }

    fn complete(&self) {
        self.queue.complete(4, Engine::look, |number| {
            let count = self.delivered.count.load(Ordering::Relaxed);
            assert_eq!(number, count, "entries end once, in their order");
            let moved = self.engine.moved.load(Ordering::Relaxed);
            assert!(moved >= number + 10, "what the engine moved is seen");
            self.delivered.count.store(count + 1, Ordering::Relaxed);
        });
    }

    fn count(&self) -> u64 {
        self.delivered.count.load(Ordering::Relaxed)
    }
}

#[test]
fn a_slot_is_written_anew_after_the_engine_is_done_with_it() {
    loom::model(|| {
        let shared = Shared::new();
        let engine = shared.engine.clone();
        let thread = thread::spawn(move || engine.run(0, 3));
        for number in 0..3 {
            while !shared.push(number) {
                shared.complete();
                thread::yield_now();
            }
            shared.issue();
        }
        thread.join().unwrap();
        shared.complete();
        assert_eq!(shared.count(), 3);
    });
}

#[test]
fn who_is_told_of_a_completion_knows_that_it_is_delivered() {
    loom::model(|| {
        let shared = Shared::new();
        assert!(shared.push(0));
        shared.issue();
        let other = shared.clone();
        let interrupt = thread::spawn(move || {
            other.engine.run(0, 1);
            other.complete();
        });
        // Somebody polls at the same time.
        shared.complete();
        interrupt.join().unwrap();
        assert_eq!(shared.count(), 1);
    });
}

#[test]
fn a_completion_during_a_delivery_is_not_left_behind() {
    loom::model(|| {
        let shared = Shared::new();
        assert!(shared.push(0));
        shared.issue();
        shared.engine.run(0, 1);
        let other = shared.clone();
        // The first is done; whoever delivers it may miss the second, of which the other hears.
        let interrupt = thread::spawn(move || {
            while !other.push(1) {
                thread::yield_now();
            }
            other.issue();
            other.engine.run(1, 2);
            other.complete();
        });
        shared.complete();
        interrupt.join().unwrap();
        assert_eq!(shared.count(), 2);
    });
}

#[test]
fn what_is_taken_is_not_delivered_as_well() {
    loom::model(|| {
        let shared = Shared::new();
        assert!(shared.push(0));
        shared.issue();
        let other = shared.clone();
        let engine = thread::spawn(move || {
            other.engine.run(0, 1);
            other.complete();
        });
        let taken = loop {
            if let Some(taken) = shared.queue.take(Scope::All, true, Engine::look) {
                break taken;
            }
            shared.complete();
            thread::yield_now();
        };
        assert!(!shared.push(1), "a closing ring takes nothing");
        shared.queue.delivered();
        shared.complete();
        engine.join().unwrap();
        assert_eq!(shared.count() + taken.len() as u64, 1);
    });
}
