//! The drain of public channels, checked in every interleaving.
//!
//! A model of what `src/public` does, step by step, explored breadth first over all its states:
//! two CPUs whose stores pass through store buffers, as x86 has them (Intel SDM volume 3, "Memory
//! Ordering"); two tasks that find, duplicate, move to the other CPU and put; in the full size an
//! interrupt handler that does so too and may leave a reference behind; a remover that drains the
//! slot, lets the next device have it, and drains that. In no state may somebody refer to a device
//! whose drain has said that nobody does.
//!
//! The model is checked itself: each weakened variant of the protocol must be caught.
//!
//! `LONGSHORE_DRAIN=full` explores the full size: 35 million states, two minutes, 2 GiB.

#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Stores that a CPU's buffer holds; a CPU with a full one waits.
const DEPTH: usize = 3;
/// Devices that have the slot one after the other.
const GENERATIONS: u8 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Dup {
    /// As built: counts, then tests the state, and takes the count back.
    CountThenTest,
    /// Tests the state only before it counts.
    TestThenCount,
    /// Does not test.
    Count,
}

/// A protocol and the size of its exploration.
#[derive(Clone, Copy)]
struct Rules {
    barrier: bool,
    second_look: bool,
    dup: Dup,
    /// The device is known only after the second look.
    late_device: bool,
    /// The next device's counters begin where the last one's ended.
    counters_stay: bool,
    /// How often each task finds.
    rounds: [u8; 2],
    /// How often the interrupt comes.
    interrupts: u8,
}

const AS_BUILT: Rules = Rules {
    barrier: true,
    second_look: true,
    dup: Dup::CountThenTest,
    late_device: true,
    counters_stay: true,
    rounds: [1; 2],
    interrupts: 0,
};

/// Where a task is: what it does next.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(u8)]
enum Pc {
    Look,
    Count,
    LookAgain,
    Uncount,
    Hold,
    DupTestFirst,
    DupCount,
    DupTest,
    DupUncount,
    Done,
}

const PCS: [Pc; 10] = [
    Pc::Look,
    Pc::Count,
    Pc::LookAgain,
    Pc::Uncount,
    Pc::Hold,
    Pc::DupTestFirst,
    Pc::DupCount,
    Pc::DupTest,
    Pc::DupUncount,
    Pc::Done,
];

/// What the remover does next.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(u8)]
enum Step {
    Mark,
    ClearTable0,
    ClearTable1,
    Interrupt,
    AwaitAnswers,
    SumFirst,
    SumSecond,
    GiveAway,
    SetTable0,
    SetTable1,
    Finished,
}

const STEPS: [Step; 11] = [
    Step::Mark,
    Step::ClearTable0,
    Step::ClearTable1,
    Step::Interrupt,
    Step::AwaitAnswers,
    Step::SumFirst,
    Step::SumSecond,
    Step::GiveAway,
    Step::SetTable0,
    Step::SetTable1,
    Step::Finished,
];

/// A task, or the interrupt handler of CPU 0.
#[derive(Clone, Copy)]
struct Actor {
    pc: Pc,
    cpu: u8,
    /// The slot that it has found: 0 or 1.
    found: u8,
    /// The device that it uses, while it holds references.
    device: u8,
    references: u8,
    rounds: u8,
    moves: u8,
    dups: u8,
}

impl Actor {
    /// Between its first look and its second, or in a duplication: no other task of its CPU runs.
    fn is_busy(&self) -> bool {
        !matches!(self.pc, Pc::Look | Pc::Hold | Pc::Done)
    }
}

#[derive(Clone, Copy)]
struct Buffer {
    len: u8,
    /// Values of the CPU's own counter, the oldest first.
    stores: [i8; DEPTH],
}

#[derive(Clone, Copy)]
struct World {
    /// Each CPU's table: the slot, or 0.
    table: [u8; 2],
    /// The slot's counters, in memory.
    counter: [i8; 2],
    buffer: [Buffer; 2],
    draining: bool,
    /// The device behind the slot: counted from 1; 0 once its drain has said that it is unused.
    device: u8,
    tasks: [Actor; 2],
    /// Active unless done.
    handler: Actor,
    /// The device that a reference left behind by the handler refers to.
    left: u8,
    /// CPUs that have yet to answer the barrier.
    asked: [bool; 2],
    step: Step,
    /// The CPU whose counter is read first, and what was read.
    first: u8,
    sum: i8,
    /// The remover's count of devices.
    generation: u8,
}

/// Fields of a few bits each, in one number.
struct Bits {
    bits: u128,
    at: u32,
}

impl Bits {
    fn put(&mut self, value: u8, width: u32) {
        debug_assert!(u32::from(value) < 1 << width);
        self.bits |= u128::from(value) << self.at;
        self.at += width;
    }

    fn put_signed(&mut self, value: i8) {
        self.put((value + 16) as u8, 5);
    }

    fn get(&mut self, width: u32) -> u8 {
        let value = self.bits >> self.at & ((1 << width) - 1);
        self.at += width;
        value as u8
    }

    fn get_signed(&mut self) -> i8 {
        self.get(5) as i8 - 16
    }
}

impl World {
    fn new(rules: &Rules) -> Self {
        let actor = Actor {
            pc: Pc::Look,
            cpu: 0,
            found: 0,
            device: 0,
            references: 0,
            rounds: 0,
            moves: 1,
            dups: 1,
        };
        let task = |cpu| {
            let rounds = rules.rounds[usize::from(cpu)];
            Actor {
                pc: if rounds > 0 { Pc::Look } else { Pc::Done },
                cpu,
                rounds,
                ..actor
            }
        };
        let buffer = Buffer {
            len: 0,
            stores: [0; DEPTH],
        };
        Self {
            table: [1; 2],
            counter: [0; 2],
            buffer: [buffer; 2],
            draining: false,
            device: 1,
            tasks: [task(0), task(1)],
            handler: Actor {
                pc: Pc::Done,
                rounds: rules.interrupts,
                ..actor
            },
            left: 0,
            asked: [false; 2],
            step: Step::Mark,
            first: 0,
            sum: 0,
            generation: 1,
        }
    }

    fn pack(&self) -> u128 {
        let mut to = Bits { bits: 0, at: 0 };
        for cpu in 0..2 {
            to.put(self.table[cpu], 1);
            to.put_signed(self.counter[cpu]);
            to.put(u8::from(self.asked[cpu]), 1);
            let buffer = &self.buffer[cpu];
            to.put(buffer.len, 2);
            for (i, &value) in buffer.stores.iter().enumerate() {
                // What is not in the buffer does not tell states apart.
                to.put_signed(if i < usize::from(buffer.len) {
                    value
                } else {
                    0
                });
            }
        }
        for actor in self.tasks.iter().chain([&self.handler]) {
            to.put(actor.pc as u8, 4);
            to.put(actor.cpu, 1);
            to.put(actor.found, 1);
            to.put(actor.device, 2);
            to.put(actor.references, 2);
            to.put(actor.rounds, 2);
            to.put(actor.moves, 1);
            to.put(actor.dups, 1);
        }
        to.put(u8::from(self.draining), 1);
        to.put(self.device, 2);
        to.put(self.left, 2);
        to.put(self.step as u8, 4);
        to.put(self.first, 1);
        to.put_signed(self.sum);
        to.put(self.generation, 2);
        assert!(to.at <= 128);
        to.bits
    }

    fn unpack(bits: u128) -> Self {
        let mut from = Bits { bits, at: 0 };
        let mut world = Self::new(&AS_BUILT);
        for cpu in 0..2 {
            world.table[cpu] = from.get(1);
            world.counter[cpu] = from.get_signed();
            world.asked[cpu] = from.get(1) == 1;
            world.buffer[cpu].len = from.get(2);
            for value in &mut world.buffer[cpu].stores {
                *value = from.get_signed();
            }
        }
        for actor in world.tasks.iter_mut().chain([&mut world.handler]) {
            actor.pc = PCS[usize::from(from.get(4))];
            actor.cpu = from.get(1);
            actor.found = from.get(1);
            actor.device = from.get(2);
            actor.references = from.get(2);
            actor.rounds = from.get(2);
            actor.moves = from.get(1);
            actor.dups = from.get(1);
        }
        world.draining = from.get(1) == 1;
        world.device = from.get(2);
        world.left = from.get(2);
        world.step = STEPS[usize::from(from.get(4))];
        world.first = from.get(1);
        world.sum = from.get_signed();
        world.generation = from.get(2);
        world
    }

    /// Adds to a CPU's counter, in its store buffer. `None` while that is full.
    fn add(mut self, cpu: u8, delta: i8) -> Option<Self> {
        let cpu = usize::from(cpu);
        let buffer = &mut self.buffer[cpu];
        let len = usize::from(buffer.len);
        // A CPU reads its own stores.
        let value = len
            .checked_sub(1)
            .map_or(self.counter[cpu], |last| buffer.stores[last]);
        *buffer.stores.get_mut(len)? = value + delta;
        buffer.len += 1;
        Some(self)
    }

    /// The oldest store of a CPU reaches memory.
    fn flush(mut self, cpu: usize) -> Option<Self> {
        let buffer = &mut self.buffer[cpu];
        buffer.len = buffer.len.checked_sub(1)?;
        self.counter[cpu] = buffer.stores[0];
        buffer.stores.rotate_left(1);
        Some(self)
    }

    /// Whether somebody refers to a device that is not behind the slot any more.
    fn is_violated(&self) -> bool {
        let late = |actor: &Actor| actor.references > 0 && actor.device != self.device;
        let actors = self.tasks.iter().chain([&self.handler]);
        actors.into_iter().any(late) || (self.left > 0 && self.left != self.device)
    }

    /// What actor `who` may do next: 0 and 1 the tasks, 2 the handler.
    fn act(&self, rules: &Rules, who: usize, next: &mut impl FnMut(World)) {
        let of = |world: &mut World, actor: Actor| match who {
            2 => world.handler = actor,
            _ => world.tasks[who] = actor,
        };
        let mut actor = if who == 2 {
            self.handler
        } else {
            self.tasks[who]
        };
        let cpu = actor.cpu;
        let table = self.table[usize::from(cpu)];
        let mut go = |mut actor: Actor, delta: i8| {
            if actor.references == 0 && !actor.is_busy() {
                (actor.found, actor.device) = (0, 0);
            }
            let world = if delta == 0 {
                Some(*self)
            } else {
                self.add(cpu, delta)
            };
            if let Some(mut world) = world {
                of(&mut world, actor);
                next(world);
            }
        };
        let held = |mut actor: Actor| {
            if rules.late_device {
                actor.device = self.device;
            }
            (actor.pc, actor.references) = (Pc::Hold, 1);
            actor
        };
        match actor.pc {
            Pc::Look => {
                (actor.found, actor.device) = (table, 0);
                if !rules.late_device {
                    actor.device = self.device;
                }
                if table == 0 {
                    // Counts in the dummy slot, which nobody sums.
                    go(actor.end_of_round(who), 0);
                } else {
                    actor.pc = Pc::Count;
                    go(actor, 0);
                }
            }
            Pc::Count if rules.second_look => {
                actor.pc = Pc::LookAgain;
                go(actor, 1);
            }
            Pc::Count => go(held(actor), 1),
            Pc::LookAgain if table == actor.found => go(held(actor), 0),
            Pc::LookAgain => {
                actor.pc = Pc::Uncount;
                go(actor, 0);
            }
            Pc::Uncount => {
                actor.pc = Pc::Look;
                go(actor, -1);
            }
            Pc::Hold => {
                let mut put = actor;
                put.references -= 1;
                if put.references == 0 {
                    put = put.end_of_round(who);
                }
                go(put, -1);
                if actor.dups > 0 {
                    let mut dup = actor;
                    dup.dups -= 1;
                    dup.pc = match rules.dup {
                        Dup::TestThenCount => Pc::DupTestFirst,
                        _ => Pc::DupCount,
                    };
                    go(dup, 0);
                }
                // Who sees a task on another CPU sees all that it did before.
                if who < 2 && actor.moves > 0 && self.buffer[usize::from(cpu)].len == 0 {
                    let mut moved = actor;
                    (moved.cpu, moved.moves) = (1 - cpu, actor.moves - 1);
                    go(moved, 0);
                }
                if who == 2 && self.left == 0 && actor.references == 1 {
                    let mut world = *self;
                    world.left = actor.device;
                    actor.references = 0;
                    actor = actor.end_of_round(who);
                    (actor.found, actor.device) = (0, 0);
                    world.handler = actor;
                    next(world);
                }
            }
            Pc::DupTestFirst => {
                actor.pc = if self.draining {
                    Pc::Hold
                } else {
                    Pc::DupCount
                };
                go(actor, 0);
            }
            Pc::DupCount if rules.dup == Dup::CountThenTest => {
                actor.pc = Pc::DupTest;
                go(actor, 1);
            }
            Pc::DupCount => {
                (actor.pc, actor.references) = (Pc::Hold, actor.references + 1);
                go(actor, 1);
            }
            Pc::DupTest if self.draining => {
                actor.pc = Pc::DupUncount;
                go(actor, 0);
            }
            Pc::DupTest => {
                (actor.pc, actor.references) = (Pc::Hold, actor.references + 1);
                go(actor, 0);
            }
            Pc::DupUncount => {
                actor.pc = Pc::Hold;
                go(actor, -1);
            }
            Pc::Done => {}
        }
    }

    /// The remover's next step. Its own stores are locked, so that they reach memory at once.
    fn remove(&self, rules: &Rules, next: &mut impl FnMut(World)) {
        let mut world = *self;
        let then = |step: Step, mut world: World| {
            world.step = step;
            world
        };
        match self.step {
            Step::Mark => {
                world.draining = true;
                next(then(Step::ClearTable0, world));
            }
            Step::ClearTable0 => {
                world.table[0] = 0;
                next(then(Step::ClearTable1, world));
            }
            Step::ClearTable1 => {
                world.table[1] = 0;
                let barrier = rules.barrier;
                let step = if barrier {
                    Step::Interrupt
                } else {
                    Step::SumFirst
                };
                next(then(step, world));
            }
            Step::Interrupt => {
                world.asked = [true; 2];
                next(then(Step::AwaitAnswers, world));
            }
            Step::AwaitAnswers => {
                if self.asked == [false; 2] {
                    next(then(Step::SumFirst, world));
                }
            }
            Step::SumFirst => {
                for first in 0..2 {
                    world.first = first;
                    world.sum = self.counter[usize::from(first)];
                    next(then(Step::SumSecond, world));
                }
            }
            Step::SumSecond => {
                let sum = self.sum + self.counter[usize::from(1 - self.first)];
                (world.first, world.sum) = (0, 0);
                if sum != 0 {
                    next(then(Step::SumFirst, world));
                    return;
                }
                world.device = 0;
                let last = self.generation == GENERATIONS;
                let step = if last { Step::Finished } else { Step::GiveAway };
                next(then(step, world));
            }
            Step::GiveAway => {
                if !rules.counters_stay {
                    world.counter = [0; 2];
                }
                world.generation += 1;
                world.device = world.generation;
                world.draining = false;
                next(then(Step::SetTable0, world));
            }
            Step::SetTable0 => {
                world.table[0] = 1;
                next(then(Step::SetTable1, world));
            }
            Step::SetTable1 => {
                world.table[1] = 1;
                next(then(Step::Mark, world));
            }
            Step::Finished => {}
        }
    }

    /// Every state that may follow.
    fn successors(&self, rules: &Rules, next: &mut impl FnMut(World)) {
        for cpu in 0..2 {
            if let Some(world) = self.flush(cpu) {
                next(world);
            }
            // The answer is a locked instruction: it comes when the buffer is empty. It may come
            // between any two instructions of a task or of the handler.
            if self.asked[cpu] && self.buffer[cpu].len == 0 {
                let mut world = *self;
                world.asked[cpu] = false;
                next(world);
            }
        }
        let interrupted = self.handler.pc != Pc::Done;
        if interrupted {
            self.act(rules, 2, next);
        } else {
            if self.handler.rounds > 0 {
                let mut world = *self;
                world.handler.pc = Pc::Look;
                world.handler.rounds -= 1;
                next(world);
            }
            if self.left > 0
                && let Some(mut world) = self.add(0, -1)
            {
                world.left = 0;
                next(world);
            }
        }
        for who in 0..2 {
            let (task, other) = (&self.tasks[who], &self.tasks[1 - who]);
            let waits =
                (interrupted && task.cpu == 0) || (other.cpu == task.cpu && other.is_busy());
            if !waits {
                self.act(rules, who, next);
            }
        }
        self.remove(rules, next);
    }
}

impl Actor {
    fn end_of_round(mut self, who: usize) -> Self {
        if who < 2 {
            self.rounds -= 1;
        }
        self.pc = if who < 2 && self.rounds > 0 {
            Pc::Look
        } else {
            Pc::Done
        };
        self
    }
}

/// Mixes a packed state into a hash.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u128(byte.into());
        }
    }
    fn write_u128(&mut self, value: u128) {
        let folded = (value as u64) ^ ((value >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ folded).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 = (mixed ^ (mixed >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        self.0 ^= self.0 >> 29;
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    /// Never violated, and every generation's drain has said 0 in some state.
    Holds,
    Violated,
    /// Never violated, but no drain came to its end: the model is stuck.
    Stuck,
}

fn explore(name: &str, rules: &Rules) -> Outcome {
    let mut seen: HashSet<u128, BuildHasherDefault<Mix>> = HashSet::default();
    let mut queue = VecDeque::new();
    let start = World::new(rules).pack();
    seen.insert(start);
    queue.push_back(start);
    let mut finished = false;
    let mut outcome = None;
    while let Some(bits) = queue.pop_front() {
        let world = World::unpack(bits);
        if world.is_violated() {
            outcome = Some(Outcome::Violated);
            break;
        }
        finished |= world.step == Step::Finished;
        world.successors(rules, &mut |next| {
            let bits = next.pack();
            if seen.insert(bits) {
                queue.push_back(bits);
            }
        });
    }
    let end = if finished {
        Outcome::Holds
    } else {
        Outcome::Stuck
    };
    let outcome = outcome.unwrap_or(end);
    println!("drain_check: {name}: {outcome:?} states={}", seen.len());
    outcome
}

#[test]
fn the_protocol_as_built_holds() {
    assert_eq!(explore("as built", &AS_BUILT), Outcome::Holds);
}

#[test]
fn the_protocol_as_built_holds_with_interrupts() {
    let full = std::env::var("LONGSHORE_DRAIN").is_ok_and(|size| size == "full");
    let rules = Rules {
        rounds: if full { [2; 2] } else { [1; 2] },
        interrupts: 2,
        ..AS_BUILT
    };
    let name = if full { "full" } else { "with interrupts" };
    assert_eq!(explore(name, &rules), Outcome::Holds);
}

#[test]
fn without_the_barrier_it_fails() {
    let rules = Rules {
        barrier: false,
        ..AS_BUILT
    };
    assert_eq!(explore("no barrier", &rules), Outcome::Violated);
}

#[test]
fn without_the_second_look_it_fails() {
    let rules = Rules {
        second_look: false,
        ..AS_BUILT
    };
    assert_eq!(explore("no second look", &rules), Outcome::Violated);
}

#[test]
fn with_a_dup_that_tests_only_before_it_counts_it_fails() {
    let rules = Rules {
        dup: Dup::TestThenCount,
        ..AS_BUILT
    };
    assert_eq!(explore("dup tests first", &rules), Outcome::Violated);
}

#[test]
fn with_a_dup_that_does_not_test_it_fails() {
    let rules = Rules {
        dup: Dup::Count,
        ..AS_BUILT
    };
    assert_eq!(explore("dup does not test", &rules), Outcome::Violated);
}

#[test]
fn with_the_device_looked_up_before_the_second_look_it_fails() {
    let rules = Rules {
        late_device: false,
        ..AS_BUILT
    };
    assert_eq!(explore("device looked up early", &rules), Outcome::Violated);
}

#[test]
fn with_counters_zeroed_for_the_next_device_it_fails() {
    let rules = Rules {
        counters_stay: false,
        ..AS_BUILT
    };
    assert_eq!(explore("counters zeroed", &rules), Outcome::Violated);
}

#[test]
fn states_survive_packing() {
    let mut queue = vec![World::new(&AS_BUILT).pack()];
    for _ in 0..12 {
        let mut next = Vec::new();
        for bits in queue {
            let world = World::unpack(bits);
            assert_eq!(world.pack(), bits);
            world.successors(&AS_BUILT, &mut |world| next.push(world.pack()));
        }
        next.sort_unstable();
        next.dedup();
        queue = next;
    }
}
