//! The task of one slot.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::future::{Future, pending, poll_fn};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::Poll;

use atomic_waker::AtomicWaker;
use hal::irq::IrqLine;
use hal::time::{Duration, Instant, poll_until, sleep, sleep_until};
use spin::Mutex;

use crate::card::Card;
use crate::command::Command;
use crate::controller::{Controller, Input, Levels, State};
use crate::options::Options;
use crate::port::Port;
use crate::registers::{SlotCapabilities, SlotControl};

/// How a card leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was asked for, and may take its time. It can become a surprise: see [`Card::gone`].
    Orderly,
    /// The card is gone: nobody is to be waited for, and nothing to be touched.
    Surprise,
}

/// Who is behind a port: brought into use and taken out of it by the port's owner. The two are
/// called in turn, one at a time, and run to their ends.
pub trait Occupants: Send + Sync + 'static {
    /// Whether function 0 behind the port answers: see [`crate::answers`].
    fn answers(&self) -> bool;

    /// Finds what is on the card that has come and brings it into use. `false` where that cannot
    /// be; then nothing of it is in use. The card may vanish meanwhile.
    fn arrive(&self, card: &Card) -> impl Future<Output = bool> + Send;

    /// Takes everything behind the port out of use: afterwards it reaches no memory, and nobody
    /// touches it.
    fn leave(&self, how: How, card: &Card) -> impl Future<Output = ()> + Send;
}

/// What a slot's task shares with others.
struct Shared {
    state: Mutex<State>,
    masks: AtomicUsize,
    /// There has been a mask since the task looked.
    masked: AtomicBool,
    stop: AtomicBool,
    /// Masks or stop changed since the task looked.
    changed: AtomicBool,
    waker: AtomicWaker,
}

impl Shared {
    fn change(&self) {
        self.changed.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// A slot, for others than its task.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// The slot's state.
    pub fn state(&self) -> State {
        *self.shared.state.lock()
    }

    /// Has the task end. What it is at it brings to an end first; the slot stays as it is then.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.change();
    }

    /// Has the task look. For who keeps what is behind the port from memory and so silences the port
    /// as well: from here on the slot is polled, until the port may issue messages again.
    pub fn look(&self) {
        self.shared.change();
    }

    /// Until the mask is dropped, a link that goes down and up, and presence with it, is our own
    /// doing: for who resets what is behind the port. A card that is not there in the end has left
    /// all the same.
    pub fn mask(&self) -> Masked {
        self.shared.masks.fetch_add(1, Ordering::AcqRel);
        self.shared.masked.store(true, Ordering::Release);
        self.shared.change();
        Masked {
            shared: self.shared.clone(),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.state())
    }
}

/// See [`Handle::mask`].
#[must_use = "events count again when it is dropped"]
pub struct Masked {
    shared: Arc<Shared>,
}

impl Drop for Masked {
    fn drop(&mut self) {
        self.shared.masks.fetch_sub(1, Ordering::AcqRel);
        self.shared.change();
    }
}

impl fmt::Debug for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Masked")
    }
}

/// What works take with them.
struct Place<O> {
    port: Port,
    occupants: O,
    options: Options,
}

/// What a state is at, with the input that ends it.
type Work = Pin<Box<dyn Future<Output = Input> + Send>>;

/// The driver of a port's slot. It owns the slot's registers, nothing behind the port.
pub struct Slot<O> {
    place: Arc<Place<O>>,
    shared: Arc<Shared>,
    /// Nobody interrupts: the slot is polled.
    line: Option<IrqLine>,
    controller: Controller,
    command: Command,
    card: Arc<Card>,
    /// What the state is at, once it is begun.
    work: Option<(State, Work)>,
    window: Option<Instant>,
}

impl<O: Occupants> Slot<O> {
    /// The slot of `port`, which tells of events by `line`; without one it is polled. `in_use`: what
    /// is behind it is in use already.
    pub fn new(
        port: Port,
        occupants: O,
        line: Option<IrqLine>,
        options: Options,
        in_use: bool,
    ) -> Self {
        let mut slot = Self {
            command: Command::new(&port),
            place: Arc::new(Place {
                port,
                occupants,
                options,
            }),
            shared: Arc::new(Shared {
                state: Mutex::new(State::Off),
                masks: AtomicUsize::new(0),
                masked: AtomicBool::new(false),
                stop: AtomicBool::new(false),
                changed: AtomicBool::new(false),
                waker: AtomicWaker::new(),
            }),
            line,
            controller: Controller::new(),
            card: Arc::default(),
            work: None,
            window: None,
        };
        slot.begin(in_use);
        slot
    }

    /// The slot, for others.
    pub fn handle(&self) -> Handle {
        Handle {
            shared: self.shared.clone(),
        }
    }

    /// Drives the slot until [`Handle::stop`], or until the port itself is gone. To be run in a task
    /// of its own, to its end.
    pub async fn run(mut self) {
        loop {
            let settled = self.attend();
            let state = self.controller.state();
            let stopping = self.shared.stop.load(Ordering::Acquire);
            if state == State::Gone || stopping && !is_vital(state) {
                break;
            }
            if settled && self.work.is_none() {
                self.work = self.work_of(state).map(|work| (state, work));
            }
            if let Some(input) = self.wait().await {
                // What happened first counts first.
                self.attend();
                self.work = None;
                self.step(input);
            }
        }
        self.end().await;
    }

    fn begin(&mut self, in_use: bool) {
        let Place { port, .. } = &*self.place;
        port.tell_surprise_down(true, self.line.is_some());
        // What happened before we came has been seen by whoever says what is in use.
        let levels = port.take_events().map(|(.., levels)| levels);
        match levels {
            Some(levels) => self.controller.step(Input::Begin { in_use }, levels),
            None => self.controller.step(Input::PortGone, Levels::default()),
        }
        *self.shared.state.lock() = self.controller.state();
    }

    /// Takes in what happened, and issues commands; whether the slot is as wanted.
    fn attend(&mut self) -> bool {
        // What is read now may have happened before a mask was dropped.
        let lately = self.shared.masked.swap(false, Ordering::AcqRel);
        let now = self.shared.masks.load(Ordering::Acquire) > 0;
        self.shared.masked.fetch_or(now, Ordering::AcqRel);
        let answers = match self.place.port.take_events() {
            Some((events, completed, levels)) => {
                if completed {
                    self.command.completed();
                }
                let input = match now || lately {
                    true => Input::MaskedEvents(events),
                    false => Input::Events(events),
                };
                self.controller.step(input, levels);
                true
            }
            None => {
                self.controller.step(Input::PortGone, Levels::default());
                false
            }
        };
        if self.window.is_some_and(|end| Instant::now() >= end) {
            self.step(Input::Window);
        }
        self.follow();
        let limit = self.place.options.command;
        let wanted = self.wanted();
        !answers || self.command.drive(&self.place.port, wanted, limit)
    }

    fn step(&mut self, input: Input) {
        let levels = self.place.port.levels().unwrap_or_default();
        self.controller.step(input, levels);
        self.follow();
    }

    /// Does at once what a new state asks for.
    fn follow(&mut self) {
        let state = self.controller.state();
        let before = core::mem::replace(&mut *self.shared.state.lock(), state);
        if state != before {
            log::info!("{}: {state}", self.place.port);
        }
        if !matches!(state, State::BlinkingOn | State::BlinkingOff) {
            self.window = None;
        } else if state != before {
            self.window = Some(Instant::now() + self.place.options.window);
        }
        if state == State::PoweringOn && state != before {
            self.card = Arc::default();
        }
        if self.controller.is_lost() {
            self.card.set_gone();
        }
        // Waits for hardware are given up; what the occupants are at is not.
        if self.work.as_ref().is_some_and(|(of, _)| *of != state) {
            self.work = None;
        }
    }

    /// Slot Control as the state asks for it.
    fn wanted(&self) -> SlotControl {
        let slot = self.place.port.slot();
        let power = self.controller.power();
        let mut control = self.command.control();
        let (lit, attention) = self.controller.indicators();
        if slot.contains(SlotCapabilities::POWER_INDICATOR) {
            control.remove(SlotControl::POWER);
            control |= SlotControl::power(lit);
        }
        if slot.contains(SlotCapabilities::ATTENTION_INDICATOR) {
            control.remove(SlotControl::ATTENTION);
            control |= SlotControl::attention(attention);
        }
        if slot.contains(SlotCapabilities::POWER_CONTROLLER) {
            control.set(SlotControl::POWER_OFF, !power);
        }
        control.remove(SOURCES | SlotControl::INTERRUPT);
        if self.line.is_some() {
            control |= SlotControl::INTERRUPT | SlotControl::PRESENCE | SlotControl::LINK;
            let has = |capability| slot.contains(capability);
            control.set(SlotControl::BUTTON, has(SlotCapabilities::BUTTON));
            control.set(SlotControl::LATCH, has(SlotCapabilities::LATCH_SENSOR));
            control.set(
                SlotControl::COMMAND_COMPLETED,
                !has(SlotCapabilities::NO_COMMAND_COMPLETED),
            );
            // A fault may last as long as there is power.
            control.set(
                SlotControl::FAULT,
                power && has(SlotCapabilities::POWER_CONTROLLER),
            );
        }
        control
    }

    fn work_of(&self, state: State) -> Option<Work> {
        let (place, card) = (self.place.clone(), self.card.clone());
        Some(match state {
            State::PoweringOn => Box::pin(async move { Input::Ready(place.is_ready().await) }),
            State::Arriving => {
                Box::pin(async move { Input::Arrived(place.occupants.arrive(&card).await) })
            }
            State::Leaving => Box::pin(async move {
                let how = if card.is_gone() {
                    How::Surprise
                } else {
                    How::Orderly
                };
                place.occupants.leave(how, &card).await;
                Input::Left
            }),
            State::PoweringOff => Box::pin(async move {
                if place
                    .port
                    .slot()
                    .contains(SlotCapabilities::POWER_CONTROLLER)
                {
                    sleep(place.options.power_off).await;
                }
                Input::PoweredOff
            }),
            _ => return None,
        })
    }

    /// Waits until there is something to look at. What ended what the state is at, if it did.
    async fn wait(&mut self) -> Option<Input> {
        let Options { command, poll, .. } = self.place.options;
        let mut next = self.window;
        let mut by = |time: Instant| next = Some(next.map_or(time, |next| next.min(time)));
        if self.line.is_none() || self.place.port.is_silenced() {
            by(Instant::now() + poll);
        }
        if let Some(limit) = self.command.deadline(command) {
            // A port that interrupts for events may still keep quiet about commands.
            by(limit.min(Instant::now() + COMMAND_STEP));
        }
        let Self {
            line, work, shared, ..
        } = self;
        let mut interrupt = pin!(async {
            match line {
                Some(line) => line.wait().await,
                None => pending().await,
            }
        });
        let mut time = pin!(async {
            match next {
                Some(next) => sleep_until(next).await,
                None => pending().await,
            }
        });
        poll_fn(|cx| {
            shared.waker.register(cx.waker());
            let changed = shared.changed.swap(false, Ordering::AcqRel);
            if let Some((_, work)) = work
                && let Poll::Ready(input) = work.as_mut().poll(cx)
            {
                return Poll::Ready(Some(input));
            }
            let due = changed
                || interrupt.as_mut().poll(cx).is_ready()
                || time.as_mut().poll(cx).is_ready();
            if due {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Interrupts no more. Power and indicators stay.
    async fn end(&mut self) {
        let Place { port, options, .. } = &*self.place;
        if self.controller.state() == State::Gone {
            return;
        }
        port.tell_surprise_down(false, false);
        let quiet = self.command.control() - (SOURCES | SlotControl::INTERRUPT);
        let command = &mut self.command;
        // One that is out first, and then this one.
        let limit = 2 * options.command;
        let _ = poll_until(limit, COMMAND_STEP, || match port.take_events() {
            Some((_, completed, _)) => {
                if completed {
                    command.completed();
                }
                command.drive(port, quiet, options.command)
            }
            None => true,
        })
        .await;
    }
}

/// How often a command is looked after that nobody interrupts for.
const COMMAND_STEP: Duration = Duration::from_millis(10);

/// What may interrupt.
const SOURCES: SlotControl = SlotControl::BUTTON
    .union(SlotControl::FAULT)
    .union(SlotControl::LATCH)
    .union(SlotControl::PRESENCE)
    .union(SlotControl::COMMAND_COMPLETED)
    .union(SlotControl::LINK);

/// Whether the occupants are at something that has to end.
fn is_vital(state: State) -> bool {
    matches!(state, State::Arriving | State::Leaving)
}

impl<O: Occupants> Place<O> {
    /// With power on: whether the card answers in time.
    async fn is_ready(&self) -> bool {
        let Options {
            link,
            settle,
            answer,
            ..
        } = self.options;
        let up = || self.port.may_be_linked();
        if poll_until(link, ANSWER_STEP, up).await.is_err() {
            log::error!("{}: no link", self.port);
            return false;
        }
        sleep(settle).await;
        let answers = poll_until(answer, ANSWER_STEP, || self.occupants.answers()).await;
        if answers.is_err() {
            log::error!("{}: the card does not answer", self.port);
        }
        answers.is_ok()
    }
}

/// How often link and card are looked at when they come up.
const ANSWER_STEP: Duration = Duration::from_millis(5);

impl<O> fmt::Debug for Slot<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} {})", self.place.port, self.controller.state())
    }
}
