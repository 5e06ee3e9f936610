//! What a slot's events mean: the one place that decides. No clock, no registers, no waiting.
//!
//! ```text
//!        button ┌────────────┐ window          ready         arrived
//!      ┌───────►│ BlinkingOn ├────────► PoweringOn ──► Arriving ──────► On ◄─┐ button
//!      │        └────────────┘             ▲   ▲                        │    ▼
//!     Off ─────────── card came ───────────┘   │ another card           │  BlinkingOff
//!      ▲                                       │                  lost  │    │ window, lost
//!      └────── powered off ── PoweringOff ◄────┴── left ── Leaving ◄────┴────┘
//! ```
//!
//! A card that could not be brought into use, or whose power failed, ends in `Failed`. Presence
//! that changed never means the same card: what was in use leaves, and what is there now comes.

use core::fmt;
use core::mem::take;

use bitflags::bitflags;

use crate::registers::Indicator;

bitflags! {
    /// What happened in a slot since it was looked at last.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Events: u8 {
        /// The attention button was pressed.
        const BUTTON = 1 << 0;
        /// A card came or left, or both.
        const PRESENCE = 1 << 1;
        /// The latch was opened or closed, or both.
        const LATCH = 1 << 2;
        /// The link came up or went down, or both.
        const LINK = 1 << 3;
        /// The power failed.
        const FAULT = 1 << 4;
        /// The link went down, and nobody had asked for it.
        const SURPRISE_DOWN = 1 << 5;
    }
}

/// How a slot is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// There is a card.
    pub present: bool,
    /// The latch that holds it is open.
    pub latch_open: bool,
    /// The link is active; `None` where the port does not tell.
    pub link: Option<bool>,
}

impl Levels {
    /// A card that could be used.
    fn fits(self) -> bool {
        self.present && !self.latch_open
    }
}

/// The state of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Without power, or empty.
    Off,
    /// The button was pressed: power comes unless it is pressed again.
    BlinkingOn,
    /// Power is on; link and card are awaited.
    PoweringOn,
    /// The card is brought into use.
    Arriving,
    /// In use.
    On,
    /// The button was pressed: the card leaves unless it is pressed again.
    BlinkingOff,
    /// The card is taken out of use.
    Leaving,
    /// Power is off, and has yet to fall.
    PoweringOff,
    /// There is a card that cannot be used, without power.
    Failed,
    /// The port itself does not answer any more. For good.
    Gone,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::BlinkingOn => "blinking-on",
            Self::PoweringOn => "powering-on",
            Self::Arriving => "arriving",
            Self::On => "on",
            Self::BlinkingOff => "blinking-off",
            Self::Leaving => "leaving",
            Self::PoweringOff => "powering-off",
            Self::Failed => "failed",
            Self::Gone => "gone",
        })
    }
}

/// What a controller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// At first: whether what is behind the port is in use already.
    Begin {
        /// It is.
        in_use: bool,
    },
    /// What happened in the slot. Nothing is fine: then the levels count alone.
    Events(Events),
    /// As [`Input::Events`], while the link may go down and up by our own doing.
    MaskedEvents(Events),
    /// The button's window is over.
    Window,
    /// In [`State::PoweringOn`]: the card answers, or does not in time.
    Ready(bool),
    /// In [`State::Arriving`]: what is on the card is in use, or nothing of it can be.
    Arrived(bool),
    /// In [`State::Leaving`]: nothing of the card is in use any more.
    Left,
    /// In [`State::PoweringOff`]: the power has fallen.
    PoweredOff,
    /// The port itself reads all ones.
    PortGone,
}

/// Decides for one slot. What it wants done is a function of its state: see [`Controller::state`],
/// [`Controller::power`], [`Controller::indicators`] and [`Controller::is_lost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller {
    state: State,
    /// What came into use, or comes, is gone: there may be another card.
    lost: bool,
    /// The button was pressed while something else had to end first.
    pressed: bool,
    /// The slot was seen empty since the power went off.
    emptied: bool,
    /// And then there was a card again.
    renewed: bool,
    /// The card is not to be tried again.
    failed: bool,
    port_gone: bool,
}

impl Default for Controller {
    fn default() -> Self {
        Self::new()
    }
}

impl Controller {
    /// A controller that waits for [`Input::Begin`].
    pub fn new() -> Self {
        Self {
            state: State::Off,
            lost: false,
            pressed: false,
            emptied: false,
            renewed: false,
            failed: false,
            port_gone: false,
        }
    }

    /// The state. In [`State::BlinkingOn`] and [`State::BlinkingOff`] the window runs; where an
    /// input belongs to a state, somebody is at what ends with it.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the card that is in use, comes or leaves is gone.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the slot is to have power. A lost card has none at once: where it is still there it
    /// reaches no memory any more.
    pub fn power(&self) -> bool {
        match self.state {
            State::PoweringOn | State::On | State::BlinkingOff => true,
            State::Arriving | State::Leaving => !self.lost,
            State::Off | State::BlinkingOn | State::PoweringOff | State::Failed | State::Gone => {
                false
            }
        }
    }

    /// Power and attention indicator. 6.7.1.1: a power indicator that is lit or blinks asks people
    /// to keep their hands off, a lit attention indicator to look.
    pub fn indicators(&self) -> (Indicator, Indicator) {
        match self.state {
            State::Off | State::Gone => (Indicator::Off, Indicator::Off),
            State::Failed => (Indicator::Off, Indicator::On),
            State::On => (Indicator::On, Indicator::Off),
            State::BlinkingOn
            | State::PoweringOn
            | State::Arriving
            | State::BlinkingOff
            | State::Leaving
            | State::PoweringOff => (Indicator::Blink, Indicator::Off),
        }
    }

    /// Takes an input and the slot's levels with it. An input that belongs to another state changes
    /// nothing.
    pub fn step(&mut self, input: Input, levels: Levels) {
        let fits = levels.fits();
        match (input, self.state) {
            (_, State::Gone) => {}
            (Input::Begin { in_use: true }, State::Off) => {
                self.state = State::On;
                self.events(Events::empty(), levels, false);
            }
            (Input::Begin { .. }, State::Off) if fits => self.power_up(),
            (Input::Events(events), _) => self.events(events, levels, false),
            (Input::MaskedEvents(events), _) => self.events(events, levels, true),
            (Input::Window, State::BlinkingOn) if fits => self.power_up(),
            (Input::Window, State::BlinkingOn) => self.state = State::Off,
            (Input::Window, State::BlinkingOff) => self.state = State::Leaving,
            (Input::Ready(true), State::PoweringOn) if fits => self.state = State::Arriving,
            (Input::Ready(_), State::PoweringOn) => self.give_up(levels, fits),
            (Input::Arrived(true), State::Arriving) => {
                self.state = State::On;
                self.events(Events::empty(), levels, false);
                if self.state == State::On && take(&mut self.pressed) {
                    self.state = State::BlinkingOff;
                }
            }
            (Input::Arrived(false), State::Arriving) => self.give_up(levels, fits && !self.lost),
            (Input::Left, State::Leaving) => self.give_up(levels, false),
            (Input::PoweredOff, State::PoweringOff) => self.powered_off(fits),
            (Input::PortGone, _) => self.port_is_gone(),
            _ => {}
        }
    }

    fn events(&mut self, events: Events, levels: Levels, masked: bool) {
        let fits = levels.fits();
        // QEMU presses the button for a card that it puts in; people may as well. It means the card
        // that comes, not one that is to leave.
        let came = fits && events.intersects(Events::PRESENCE | Events::LATCH);
        if events.contains(Events::BUTTON) && !came {
            self.press(fits);
        }
        match self.state {
            State::Off | State::BlinkingOn | State::Failed => {
                let up = events.contains(Events::LINK) && levels.link == Some(true);
                if came || fits && up && self.state != State::Failed {
                    self.power_up();
                } else if !fits {
                    self.state = State::Off;
                }
            }
            State::PoweringOn => {
                // Presence bounces and the link comes up: only what is left of it counts.
                if !fits || events.contains(Events::FAULT) {
                    self.give_up(levels, fits);
                }
            }
            State::Arriving | State::On | State::BlinkingOff | State::Leaving => {
                let ours = Events::PRESENCE | Events::LINK | Events::SURPRISE_DOWN;
                let expected = Events::BUTTON | if masked { ours } else { Events::empty() };
                let lost = !fits || !(events - expected).is_empty();
                self.lost |= lost;
                // A fault is one of the card that had it.
                self.failed = fits && !came && (self.failed || events.contains(Events::FAULT));
                if self.lost && matches!(self.state, State::On | State::BlinkingOff) {
                    self.state = State::Leaving;
                }
            }
            State::PoweringOff => {
                // Where there is no card without power, it was we who made presence change.
                if !fits {
                    self.emptied = true;
                } else if self.emptied {
                    self.renewed = true;
                }
            }
            State::Gone => {}
        }
    }

    fn press(&mut self, fits: bool) {
        self.state = match self.state {
            State::Off | State::Failed if fits => State::BlinkingOn,
            State::BlinkingOn => State::Off,
            State::On => State::BlinkingOff,
            State::BlinkingOff => State::On,
            State::PoweringOn | State::Arriving | State::Leaving | State::PoweringOff => {
                self.pressed = !self.pressed;
                return;
            }
            State::Off | State::Failed | State::Gone => return,
        };
    }

    fn power_up(&mut self) {
        *self = Self {
            state: State::PoweringOn,
            ..Self::new()
        };
    }

    /// Nothing of the card is in use, and power goes off. One that `failed` is not tried again.
    fn give_up(&mut self, levels: Levels, failed: bool) {
        self.failed |= failed;
        self.emptied = !levels.fits();
        self.state = if self.port_gone {
            State::Gone
        } else {
            State::PoweringOff
        };
    }

    fn powered_off(&mut self, fits: bool) {
        let another = self.renewed || self.lost && !self.failed;
        if fits && another {
            self.power_up();
            return;
        }
        let state = match (fits, self.failed, self.pressed) {
            (false, ..) => State::Off,
            (true, true, _) => State::Failed,
            (true, false, true) => State::BlinkingOn,
            (true, false, false) => State::Off,
        };
        *self = Self {
            state,
            ..Self::new()
        };
    }

    fn port_is_gone(&mut self) {
        self.port_gone = true;
        self.lost = true;
        match self.state {
            State::On | State::BlinkingOff => self.state = State::Leaving,
            State::Arriving | State::Leaving => {}
            _ => self.state = State::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const CARD: Levels = Levels {
        present: true,
        latch_open: false,
        link: Some(true),
    };
    const EMPTY: Levels = Levels {
        present: false,
        latch_open: false,
        link: Some(false),
    };

    fn after(in_use: bool, levels: Levels, steps: &[(Input, Levels)]) -> Controller {
        let mut controller = Controller::new();
        controller.step(Input::Begin { in_use }, levels);
        for &(input, levels) in steps {
            controller.step(input, levels);
        }
        controller
    }

    const PRESS: Input = Input::Events(Events::BUTTON);
    const PRESENCE: Input = Input::Events(Events::PRESENCE);

    #[test]
    fn it_begins_as_things_are() {
        assert_eq!(after(true, CARD, &[]).state(), State::On);
        assert_eq!(after(true, EMPTY, &[]).state(), State::Leaving);
        assert_eq!(after(false, CARD, &[]).state(), State::PoweringOn);
        assert_eq!(after(false, EMPTY, &[]).state(), State::Off);
    }

    #[test]
    fn a_press_that_comes_with_a_card_asks_for_no_removal() {
        let both = Input::Events(Events::BUTTON | Events::PRESENCE);
        let controller = after(false, CARD, &[(both, CARD), (Input::Ready(true), CARD)]);
        assert_eq!(controller.state(), State::Arriving);
        let mut controller = controller;
        controller.step(Input::Arrived(true), CARD);
        assert_eq!(controller.state(), State::On);
    }

    #[test]
    fn two_presses_while_something_ends_are_none() {
        let busy = [(PRESS, CARD), (Input::Window, CARD)];
        let mut controller = after(true, CARD, &busy);
        assert_eq!(controller.state(), State::Leaving);
        for _ in 0..2 {
            controller.step(PRESS, CARD);
        }
        controller.step(Input::Left, CARD);
        controller.step(Input::PoweredOff, CARD);
        assert_eq!(controller.state(), State::Off);
        let mut controller = after(true, CARD, &busy);
        controller.step(PRESS, CARD);
        controller.step(Input::Left, CARD);
        controller.step(Input::PoweredOff, CARD);
        assert_eq!(controller.state(), State::BlinkingOn, "one is remembered");
    }

    #[test]
    fn a_new_card_is_not_blamed_for_the_fault_of_the_old_one() {
        let fault = Input::Events(Events::FAULT);
        let mut controller = after(true, CARD, &[(fault, CARD)]);
        assert!(controller.is_lost() && !controller.power());
        let mut same = controller;
        same.step(Input::Left, CARD);
        same.step(Input::PoweredOff, CARD);
        assert_eq!(same.state(), State::Failed);
        controller.step(PRESENCE, EMPTY);
        controller.step(PRESENCE, CARD);
        controller.step(Input::Left, CARD);
        controller.step(Input::PoweredOff, CARD);
        assert_eq!(controller.state(), State::PoweringOn);
    }

    #[test]
    fn what_belongs_to_another_state_changes_nothing() {
        let strange = [
            Input::Begin { in_use: false },
            Input::Window,
            Input::Ready(true),
            Input::Ready(false),
            Input::Arrived(true),
            Input::Arrived(false),
            Input::Left,
            Input::PoweredOff,
            Input::Events(Events::empty()),
            Input::MaskedEvents(Events::all() - Events::BUTTON - Events::FAULT - Events::LATCH),
        ];
        let on = after(true, CARD, &[]);
        for input in strange {
            let mut controller = on;
            controller.step(input, CARD);
            assert_eq!(controller, on, "{input:?}");
        }
        let mut gone = after(false, EMPTY, &[(Input::PortGone, EMPTY)]);
        assert_eq!(gone.state(), State::Gone);
        for input in strange.into_iter().chain([PRESENCE, PRESS]) {
            gone.step(input, CARD);
            assert_eq!(gone.state(), State::Gone, "{input:?}");
        }
    }

    /// What befalls a slot.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Insert,
        Pull,
        /// Both, unseen in between.
        Exchange,
        Press,
        Latch(bool),
        Flap,
        Fault,
        SurpriseDown,
        Window,
        /// What the state is at ends, well or not.
        End(bool),
        PortGone,
    }

    fn fates() -> impl Strategy<Value = Vec<Fate>> {
        let fate = prop_oneof![
            4 => Just(Fate::Insert),
            3 => Just(Fate::Pull),
            1 => Just(Fate::Exchange),
            3 => Just(Fate::Press),
            1 => any::<bool>().prop_map(Fate::Latch),
            1 => Just(Fate::Flap),
            1 => Just(Fate::Fault),
            1 => Just(Fate::SurpriseDown),
            2 => Just(Fate::Window),
            8 => prop_oneof![5 => Just(true), 1 => Just(false)].prop_map(Fate::End),
        ];
        let port = prop_oneof![9 => Just(None), 1 => Just(Some(Fate::PortGone))];
        let most = if cfg!(miri) { 10 } else { 60 };
        (prop::collection::vec(fate, 0..most), port)
            .prop_map(|(fates, port)| fates.into_iter().chain(port).collect())
    }

    /// A slot and those behind it, as far as a controller acts on them.
    struct World {
        controller: Controller,
        levels: Levels,
        port_gone: bool,
        /// What is in use.
        in_use: bool,
        /// The card that is in the slot, and the one that is in use: no two are the same.
        card: u32,
        used: u32,
    }

    impl World {
        fn step(&mut self, input: Input) {
            let before = self.controller.state();
            if self.port_gone {
                let none = Levels::default();
                self.controller.step(Input::PortGone, none);
                self.controller.step(input, none);
            } else {
                self.controller.step(input, self.levels);
            }
            self.check(before);
        }

        fn check(&self, before: State) {
            let Controller { state, .. } = self.controller;
            let at_work = [State::Arriving, State::Leaving];
            if at_work.contains(&before) && state != before {
                // Only the occupants' own end ends that.
                assert!(
                    !self.in_use
                        || [State::On, State::BlinkingOff, State::Leaving].contains(&state)
                );
            }
            if self.in_use {
                assert!(
                    [
                        State::On,
                        State::BlinkingOff,
                        State::Leaving,
                        State::Arriving
                    ]
                    .contains(&state),
                    "{state} with something in use"
                );
            } else {
                assert!(![State::On, State::BlinkingOff].contains(&state));
            }
            if self.controller.is_lost() {
                assert!(!self.controller.power());
            }
        }

        fn befall(&mut self, fate: Fate) {
            let events = match fate {
                Fate::Insert if self.levels.present => return,
                Fate::Insert | Fate::Exchange => {
                    self.card += 1;
                    self.levels.present = true;
                    Events::PRESENCE
                }
                Fate::Pull if !self.levels.present => return,
                Fate::Pull => {
                    self.levels.present = false;
                    Events::PRESENCE
                }
                Fate::Press => Events::BUTTON,
                Fate::Latch(open) => {
                    self.levels.latch_open = open;
                    Events::LATCH
                }
                Fate::Flap => Events::LINK,
                Fate::Fault => Events::FAULT,
                Fate::SurpriseDown => Events::SURPRISE_DOWN,
                Fate::PortGone => {
                    self.port_gone = true;
                    Events::empty()
                }
                Fate::Window => return self.step(Input::Window),
                Fate::End(well) => return self.end(well),
            };
            self.step(Input::Events(events));
        }

        fn end(&mut self, well: bool) {
            let input = match self.controller.state() {
                State::PoweringOn => Input::Ready(well && self.levels.fits()),
                State::Arriving => {
                    assert!(!self.in_use, "arrives once");
                    self.in_use = well;
                    self.used = self.card;
                    Input::Arrived(well)
                }
                State::Leaving => {
                    assert!(self.in_use, "leaves once");
                    self.in_use = false;
                    Input::Left
                }
                State::PoweringOff => Input::PoweredOff,
                _ => return,
            };
            self.step(input);
        }
    }

    proptest! {
        /// Whatever happens, in whatever order: when it is over, the slot is as its levels say.
        #[test]
        fn every_order_ends_in_a_state_that_matches(in_use: bool, fates in fates()) {
            let levels = if in_use { CARD } else { EMPTY };
            let mut world = World {
                controller: after(in_use, levels, &[]),
                levels,
                port_gone: false,
                in_use,
                card: 0,
                used: 0,
            };
            for fate in fates {
                world.befall(fate);
            }
            for _ in 0..8 {
                world.step(Input::Window);
                world.end(true);
            }
            let state = world.controller.state();
            prop_assert_eq!(state == State::On, world.in_use);
            if world.port_gone {
                prop_assert_eq!(state, State::Gone);
            } else if world.in_use {
                prop_assert!(world.levels.fits());
                prop_assert_eq!(world.used, world.card, "it is the card that is in use");
            } else {
                let rest = [State::Off, State::Failed];
                prop_assert!(rest.contains(&state), "{}", state);
                prop_assert!(!world.controller.power());
                prop_assert!(state == State::Off || world.levels.fits());
            }
        }

        /// A card that comes into a slot at rest is brought into use.
        #[test]
        fn whoever_comes_last_is_served(in_use: bool, fates in fates()) {
            let levels = if in_use { CARD } else { EMPTY };
            let mut world = World {
                controller: after(in_use, levels, &[]),
                levels,
                port_gone: false,
                in_use,
                card: 0,
                used: 0,
            };
            for fate in fates {
                if !matches!(fate, Fate::PortGone) {
                    world.befall(fate);
                }
            }
            world.befall(Fate::Latch(false));
            world.befall(Fate::Pull);
            world.befall(Fate::Insert);
            for _ in 0..8 {
                world.end(true);
            }
            prop_assert!(world.in_use, "{:?}", world.controller);
        }
    }
}
