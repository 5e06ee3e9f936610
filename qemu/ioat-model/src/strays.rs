//! Strays: accesses that nobody asked the engine for, by order (see [`crate::FAULT_HELP`]).
//!
//! Each [`Stray`] has a thread of its own, which begins once the engine has met the data descriptor
//! that the order names, and goes on whatever the guest does to the engine, its bus mastering
//! included: that is what an IOMMU is for. What strays aim at is learned from what the engine may
//! reach (`Targets`), which whoever embeds it tells: [`crate::Engine::announce`] and
//! [`crate::Engine::withdraw`]. An engine without such orders keeps nothing of it.
//!
//! Addresses follow from the number of the access alone and what is mapped, so that a run can be
//! repeated. What is written is [`PATTERN`]. A stray never aims at what the engine may reach: that
//! would be its right. Only where it may reach all of memory, as without an IOMMU, there is nothing
//! else to aim at.

mod targets;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::memory::{GuestMemory, MemoryError, Refusal, Requests};
use crate::statistics::add;
use targets::Targets;

/// What strays write: these eight bytes, or the first of them.
pub const PATTERN: [u8; 8] = *b"a stray!";

/// How often a stray that has nothing to aim at looks again.
const LOOK: Duration = Duration::from_millis(1);

/// An order: accesses that go astray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    /// From this data descriptor of the engine on.
    pub from: u64,
    /// What they aim at.
    pub aim: Aim,
    /// How they are made.
    pub way: Way,
    /// How many.
    pub count: u64,
    /// Microseconds between two.
    pub pause_us: u64,
}

macro_rules! named {
    ($(#[$doc:meta])* $type:ident: $($(#[$one:meta])* $variant:ident $name:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type {
            $($(#[$one])* $variant,)*
        }

        impl $type {
            /// By its name in an order.
            pub(crate) fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $name,)*
                })
            }
        }
    };
}

named! {
    /// What a stray aims at.
    Aim:
    /// What the engine could reach a moment ago.
    Unmapped "unmapped",
    /// One byte before or behind what it may reach.
    Edge "edge",
    /// What another engine may reach: [`crate::Engine::set_foreign`].
    Foreign "foreign",
    /// Memory by its physical address, as it was before the guest confined the engine.
    Raw "raw",
    /// Where the engine has written what is done and taken back.
    Completed "completed",
    /// All of these, once the engine has been taken away: its bus mastering is off or its slot empty.
    Removed "removed",
    /// Interrupts that were never configured: messages by entries that nobody has.
    Interrupt "interrupt",
}

named! {
    /// How a stray is made.
    Way:
    /// Through memory that is mapped here, by turns writing and reading.
    Mapped "mapped",
    /// By asking for memory to be read.
    Read "read",
    /// By asking for memory to be written.
    Write "write",
}

/// What has become of the strays of one order, or of several that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrayCount {
    /// What they aimed at.
    pub aim: Aim,
    /// How they were made.
    pub way: Way,
    /// How many there were.
    pub attempted: u64,
    /// How many have read or written memory.
    pub landed: u64,
    /// How many have not.
    pub refused: u64,
    /// Of how many nobody knows: nothing came in answer.
    pub unanswered: u64,
    /// How many have hit what the engine may reach again meanwhile.
    pub remapped: u64,
}

impl StrayCount {
    /// Every counter with its name: `stray_raw_read_landed`.
    pub fn iter(&self) -> impl Iterator<Item = (String, u64)> {
        let start = format!("stray_{}_{}", self.aim, self.way);
        [
            ("attempted", self.attempted),
            ("landed", self.landed),
            ("refused", self.refused),
            ("unanswered", self.unanswered),
            ("remapped", self.remapped),
        ]
        .into_iter()
        .map(move |(name, value)| (format!("{start}_{name}"), value))
    }
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} by {} from descriptor {} on",
            self.aim, self.way, self.from
        )
    }
}

#[derive(Default)]
struct Tally {
    attempted: AtomicU64,
    landed: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
    remapped: AtomicU64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [made, landed, refused] = [&self.attempted, &self.landed, &self.refused]
            .map(|counter| counter.load(Ordering::Relaxed));
        write!(f, "{made} made, {landed} landed, {refused} refused")
    }
}

/// How one access ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Landed,
    Refused,
    Unanswered,
    Remapped,
}

/// All strays of an engine.
pub(crate) struct Strays {
    orders: Vec<(Stray, Tally)>,
    memory: Arc<dyn GuestMemory>,
    requests: OnceLock<Arc<dyn Requests>>,
    state: Mutex<State>,
    changed: Condvar,
    ending: AtomicBool,
}

#[derive(Default)]
struct State {
    targets: Targets,
    /// Data descriptors that the engine has met.
    met: u64,
    removed: bool,
    /// Orders that are done with, or never will be.
    over: usize,
}

impl Strays {
    /// `None` where nothing of the kind is ordered.
    pub(crate) fn new(orders: Vec<Stray>, memory: Arc<dyn GuestMemory>) -> Option<Arc<Self>> {
        (!orders.is_empty()).then(|| {
            Arc::new(Self {
                orders: orders
                    .into_iter()
                    .map(|order| (order, Tally::default()))
                    .collect(),
                memory,
                requests: OnceLock::new(),
                state: Mutex::new(State::default()),
                changed: Condvar::new(),
                ending: AtomicBool::new(false),
            })
        })
    }

    /// A thread for each order.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<Vec<JoinHandle<()>>> {
        (0..self.orders.len())
            .map(|n| {
                let strays = self.clone();
                std::thread::Builder::new()
                    .name(format!("stray{n}"))
                    .spawn(move || {
                        let (order, tally) = &strays.orders[n];
                        strays.run(order, tally);
                        log::warn!("strays: {order}: {tally}");
                        strays.lock().over += 1;
                        strays.changed.notify_all();
                    })
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Changes what is known, and wakes whoever waits for it.
    pub(crate) fn learn(&self, change: impl FnOnce(&mut Targets)) {
        change(&mut self.lock().targets);
        self.changed.notify_all();
    }

    /// The engine has met this data descriptor.
    pub(crate) fn met(&self, number: u64) {
        let mut state = self.lock();
        state.met = state.met.max(number);
        drop(state);
        self.changed.notify_all();
    }

    /// The engine may access memory, or may not any more.
    pub(crate) fn set_bus_master(&self, on: bool) {
        let mut state = self.lock();
        if on {
            state.targets.close_ram();
            state.removed = false;
        } else {
            // Only one that has worked is taken away.
            state.removed |= state.met > 0;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The engine's slot is empty.
    pub(crate) fn unplug(&self) {
        self.lock().removed = true;
        self.changed.notify_all();
    }

    pub(crate) fn set_requests(&self, requests: Arc<dyn Requests>) {
        // There is one client, so that the first call is the only one.
        let _ = self.requests.set(requests);
    }

    /// Waits until all that have begun are done, for `limit` at most.
    pub(crate) fn finish(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            let begun = |(order, _): &&(Stray, Tally)| state.may_begin(order);
            let waiting = self.orders.iter().filter(begun).count() > state.over;
            let left = deadline.saturating_duration_since(Instant::now());
            if !waiting || left.is_zero() {
                return;
            }
            state = self.wait(state, left);
        }
    }

    /// Ends all of them, wherever they are.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        drop(self.lock());
        self.changed.notify_all();
    }

    /// What they have done.
    pub(crate) fn counts(&self) -> Vec<StrayCount> {
        let mut counts: Vec<StrayCount> = Vec::new();
        for (order, tally) in &self.orders {
            let alike = |count: &&mut StrayCount| count.aim == order.aim && count.way == order.way;
            let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let mut new = StrayCount {
                aim: order.aim,
                way: order.way,
                attempted: value(&tally.attempted),
                landed: value(&tally.landed),
                refused: value(&tally.refused),
                unanswered: value(&tally.unanswered),
                remapped: value(&tally.remapped),
            };
            if let Some(old) = counts.iter_mut().find(alike) {
                new.attempted += old.attempted;
                new.landed += old.landed;
                new.refused += old.refused;
                new.unanswered += old.unanswered;
                new.remapped += old.remapped;
                *old = new;
            } else {
                counts.push(new);
            }
        }
        counts
    }

    fn run(&self, order: &Stray, tally: &Tally) {
        for number in 0..order.count {
            let Some(end) = self.stray(order, number) else {
                return;
            };
            add(&tally.attempted, 1);
            add(
                match end {
                    End::Landed => &tally.landed,
                    End::Refused => &tally.refused,
                    End::Unanswered => &tally.unanswered,
                    End::Remapped => &tally.remapped,
                },
                1,
            );
            if order.pause_us > 0 {
                std::thread::sleep(Duration::from_micros(order.pause_us));
            }
        }
    }

    /// Makes one access, as soon as there is something to aim at. `None` once all end.
    fn stray(&self, order: &Stray, number: u64) -> Option<End> {
        let mut state = self.lock();
        loop {
            if self.ending.load(Ordering::Relaxed) {
                return None;
            }
            let target = state
                .may_begin(order)
                .then(|| state.targets.aim(order.aim, number))
                .flatten();
            match (target, order.way, self.requests.get()) {
                // What the engine may reach does not change before this has ended.
                (Some(target), Way::Mapped, _) => {
                    return Some(match touch(&*self.memory, number, &target) {
                        Ok(()) => End::Landed,
                        Err(MemoryError) => End::Refused,
                    });
                }
                (Some(target), way, Some(requests)) => {
                    drop(state);
                    let end = ask(&**requests, way, &target);
                    let mine = || self.lock().targets.is_regained(&target);
                    return Some(match end {
                        End::Landed if mine() => End::Remapped,
                        end => end,
                    });
                }
                _ => state = self.wait(state, LOOK),
            }
        }
    }
}

impl State {
    fn may_begin(&self, order: &Stray) -> bool {
        self.met >= order.from && (order.aim != Aim::Removed || self.removed)
    }
}

fn touch(memory: &dyn GuestMemory, number: u64, at: &Range<u64>) -> Result<(), MemoryError> {
    let len = (at.end - at.start) as usize;
    if number.is_multiple_of(2) {
        memory.write(at.start, &PATTERN[..len])
    } else {
        memory.read(at.start, &mut [0; PATTERN.len()][..len])
    }
}

fn ask(requests: &dyn Requests, way: Way, at: &Range<u64>) -> End {
    let len = (at.end - at.start) as usize;
    let answer = match way {
        Way::Read => requests.request_read(at.start, &mut [0; PATTERN.len()][..len]),
        _ => requests.request_write(at.start, &PATTERN[..len]),
    };
    match answer {
        Ok(()) => End::Landed,
        Err(Refusal::Refused) => End::Refused,
        Err(Refusal::Unanswered) => End::Unanswered,
    }
}
