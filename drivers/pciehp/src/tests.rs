//! A slot's driver on a slot that is played.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use std::sync::Mutex;

use hal::host::block_on;
use hal::time::{Duration, Instant, poll_until, sleep, timeout};

use crate::card::Card;
use crate::controller::State;
use crate::fake::{ALL, Fake, Hands, Model, micros};
use crate::options::Options;
use crate::registers::{Indicator, SlotCapabilities, SlotControl};
use crate::slot::{Handle, How, Occupants, Slot};

/// What is not meant to end.
const LONG: Duration = micros(3_600_000_000);
/// What is meant to end, on a machine that does other things.
const PATIENCE: Duration = micros(60_000_000);
const STEP: Duration = micros(100);
const SHORT: Duration = micros(2000);

/// Quick, but for the limits on what is meant to come.
const QUICK: Options = Options {
    window: SHORT,
    command: PATIENCE,
    link: PATIENCE,
    settle: micros(200),
    answer: PATIENCE,
    power_off: SHORT,
    poll: micros(500),
};

const ON: (u16, u16) = (Indicator::On as u16, Indicator::Off as u16);
const OFF: (u16, u16) = (Indicator::Off as u16, Indicator::Off as u16);
const BLINK: (u16, u16) = (Indicator::Blink as u16, Indicator::Off as u16);
const FAILED: (u16, u16) = (Indicator::Off as u16, Indicator::On as u16);

/// What happened to the occupants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Arrive,
    /// And it did not work.
    Refused,
    Leave(How),
    /// The orderly removal became a surprise.
    Turned,
    Left,
}

use Act::{Arrive, Leave, Left, Refused, Turned};
use How::{Orderly, Surprise};

/// What the occupants are like.
#[derive(Clone, Copy, Debug)]
struct Manners {
    /// They take so long to come, and to leave when they are asked to.
    time: Duration,
    /// They can be used.
    willing: bool,
}

#[derive(Clone)]
struct Crew {
    fake: Arc<Fake>,
    acts: Arc<Mutex<Vec<Act>>>,
    manners: Arc<Mutex<Manners>>,
}

impl Crew {
    fn note(&self, act: Act) {
        self.acts.lock().unwrap().push(act);
    }

    fn acts(&self) -> Vec<Act> {
        self.acts.lock().unwrap().clone()
    }

    fn manners(&self) -> Manners {
        *self.manners.lock().unwrap()
    }
}

impl Occupants for Crew {
    fn answers(&self) -> bool {
        self.fake.answers()
    }

    async fn arrive(&self, card: &Card) -> bool {
        assert!(!matches!(
            self.acts().last(),
            Some(Arrive | Leave(_) | Turned)
        ));
        self.note(Arrive);
        let _ = timeout(self.manners().time, card.gone()).await;
        let willing = self.manners().willing;
        if !willing {
            self.note(Refused);
        }
        willing
    }

    async fn leave(&self, how: How, card: &Card) {
        assert!(!matches!(self.acts().last(), Some(Leave(_) | Turned)));
        self.note(Leave(how));
        assert_eq!(how == Surprise, card.is_gone());
        let asked = timeout(self.manners().time, card.gone()).await;
        if how == Orderly && asked.is_ok() {
            self.note(Turned);
        }
        let at_large = how == Surprise && self.fake.is_at_large();
        assert!(!at_large, "what is lost reaches no memory");
        self.note(Left);
    }
}

/// A slot whose driver runs, in the hands of a test.
struct Stage {
    fake: Arc<Fake>,
    crew: Crew,
    handle: Handle,
}

impl Stage {
    fn hands<T>(&self, change: impl FnOnce(&mut Hands<'_>) -> T) -> T {
        self.fake.change(change)
    }

    fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.crew.manners.lock().unwrap());
    }

    async fn until(&self, state: State) {
        let reached = || self.handle.state() == state;
        let waited = poll_until(PATIENCE, STEP, reached).await;
        assert!(waited.is_ok(), "{:?} {:?}", self.handle, self.crew.acts());
    }

    async fn acts(&self, acts: &[Act]) {
        let seen = || self.crew.acts() == acts;
        let waited = poll_until(PATIENCE, STEP, seen).await;
        assert!(waited.is_ok(), "{:?} {:?}", self.handle, self.crew.acts());
    }

    /// Indicators are commands: they follow the state.
    async fn lamps(&self, lamps: &[(u16, u16)]) {
        let seen = || self.fake.lamps()[1..] == *lamps;
        let waited = poll_until(PATIENCE, STEP, seen).await;
        assert!(waited.is_ok(), "{:?} {:?}", self.handle, self.fake.lamps());
    }

    /// Whatever there is to be seen has been seen.
    async fn quiet(&self) {
        sleep(10 * QUICK.poll).await;
    }
}

/// Runs the driver of a slot while `script` plays; then stops it.
fn play(
    model: Model,
    card: bool,
    options: Options,
    interrupts: bool,
    script: impl AsyncFnOnce(&Stage),
) -> Vec<Act> {
    let fake = Fake::new(model, card);
    let crew = Crew {
        fake: fake.clone(),
        acts: Arc::default(),
        manners: Arc::new(Mutex::new(Manners {
            time: micros(300),
            willing: true,
        })),
    };
    if card {
        crew.note(Arrive);
    }
    let line = interrupts.then(|| fake.line());
    let slot = Slot::new(fake.port(), crew.clone(), line, options, card);
    let stage = Stage {
        handle: slot.handle(),
        fake: fake.clone(),
        crew,
    };
    let time = async {
        loop {
            sleep(STEP).await;
            fake.tick();
        }
    };
    let script = async {
        script(&stage).await;
        stage.handle.stop();
    };
    let (mut driver, mut script, mut time) = (pin!(slot.run()), pin!(script), pin!(time));
    let (mut driven, mut played) = (false, false);
    block_on(poll_fn(|cx| {
        let _ = time.as_mut().poll(cx);
        driven = driven || driver.as_mut().poll(cx).is_ready();
        played = played || script.as_mut().poll(cx).is_ready();
        if driven && played {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }));
    assert!(
        fake.is_gone() || !fake.control().contains(SlotControl::INTERRUPT),
        "nobody is interrupted for when the driver has gone"
    );
    assert_eq!(fake.hasty(), 0, "commands wait for each other");
    stage.crew.acts()
}

/// With interrupts and polled: both do the same.
fn play_both(model: Model, card: bool, options: Options, script: impl AsyncFn(&Stage)) {
    // Miri looks for what neither way has for itself.
    let ways: &[bool] = if cfg!(miri) { &[true] } else { &[true, false] };
    for interrupts in ways {
        play(model, card, options, *interrupts, &script);
    }
}

fn with(change: impl FnOnce(&mut Model)) -> Model {
    let mut model = Model::default();
    change(&mut model);
    model
}

#[test]
fn the_button_takes_a_card_out_of_use_and_then_its_power() {
    play_both(Model::default(), true, QUICK, async |stage| {
        stage.hands(|hands| hands.press());
        stage.until(State::Off).await;
        stage.acts(&[Arrive, Leave(Orderly), Left]).await;
        stage.lamps(&[BLINK, OFF]).await;
        assert!(stage.fake.control().contains(SlotControl::POWER_OFF));
        // The card is still there, and is left alone until somebody asks for it.
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::Off);
        stage.hands(|hands| hands.press());
        stage.until(State::On).await;
        stage.acts(&[Arrive, Leave(Orderly), Left, Arrive]).await;
        stage.lamps(&[BLINK, OFF, BLINK, ON]).await;
    });
}

#[test]
fn a_second_press_within_the_window_cancels() {
    let patient = Options {
        window: LONG,
        ..QUICK
    };
    play_both(Model::default(), true, patient, async |stage| {
        stage.hands(|hands| hands.press());
        stage.until(State::BlinkingOff).await;
        stage.lamps(&[BLINK]).await;
        stage.hands(|hands| hands.press());
        stage.until(State::On).await;
        stage.lamps(&[BLINK, ON]).await;
        stage.quiet().await;
        stage.acts(&[Arrive]).await;
    });
}

#[test]
fn a_press_that_would_bring_power_is_cancelled_too() {
    let patient = Options {
        window: LONG,
        ..QUICK
    };
    let model = with(|model| model.shorted = true);
    play_both(model, false, patient, async |stage| {
        stage.hands(|hands| hands.insert());
        stage.until(State::Failed).await;
        stage.hands(|hands| hands.press());
        stage.until(State::BlinkingOn).await;
        stage.hands(|hands| hands.press());
        stage.until(State::Off).await;
        stage.quiet().await;
        stage.acts(&[]).await;
    });
}

#[test]
fn a_card_that_comes_is_brought_into_use_at_once() {
    play_both(Model::default(), false, QUICK, async |stage| {
        stage.until(State::Off).await;
        // As QEMU does it: the card and a press for it.
        stage.hands(|hands| {
            hands.insert();
            hands.press();
        });
        stage.until(State::On).await;
        stage.acts(&[Arrive]).await;
        stage.lamps(&[BLINK, ON]).await;
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::On);
    });
}

#[test]
fn a_card_that_is_pulled_leaves_by_surprise() {
    play_both(Model::default(), true, QUICK, async |stage| {
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
        stage.acts(&[Arrive, Leave(Surprise), Left]).await;
        stage.hands(|hands| hands.insert());
        stage.until(State::On).await;
    });
}

#[test]
fn a_link_that_goes_down_counts_as_a_card_that_leaves() {
    let down: [fn(&mut Hands<'_>); 2] = [|hands| hands.flap(), |hands| hands.surprise_down()];
    for down in down {
        play_both(Model::default(), true, QUICK, async move |stage| {
            stage.hands(down);
            let all = [Arrive, Leave(Surprise), Left, Arrive];
            stage.acts(&all).await;
            stage.until(State::On).await;
        });
    }
}

#[test]
fn power_lost_in_the_window_is_a_surprise() {
    let patient = Options {
        window: LONG,
        ..QUICK
    };
    play_both(Model::default(), true, patient, async |stage| {
        stage.hands(|hands| hands.press());
        stage.until(State::BlinkingOff).await;
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
        stage.acts(&[Arrive, Leave(Surprise), Left]).await;
    });
}

#[test]
fn an_orderly_removal_is_told_when_the_card_goes_midway() {
    play_both(Model::default(), true, QUICK, async |stage| {
        stage.manners(|manners| manners.time = LONG);
        stage.hands(|hands| hands.press());
        stage.acts(&[Arrive, Leave(Orderly)]).await;
        stage.hands(|hands| hands.pull());
        // It would have taken an hour.
        stage.until(State::Off).await;
        stage.acts(&[Arrive, Leave(Orderly), Turned, Left]).await;
    });
}

#[test]
fn a_card_exchanged_while_it_leaves_is_gone_and_another_comes() {
    play_both(Model::default(), true, QUICK, async |stage| {
        stage.manners(|manners| manners.time = LONG);
        stage.hands(|hands| hands.press());
        stage.acts(&[Arrive, Leave(Orderly)]).await;
        stage.manners(|manners| manners.time = SHORT);
        stage.hands(|hands| hands.exchange());
        stage.until(State::On).await;
        stage
            .acts(&[Arrive, Leave(Orderly), Turned, Left, Arrive])
            .await;
    });
}

#[test]
fn a_card_that_comes_while_the_power_falls_is_remembered() {
    let slow = Options {
        power_off: 20 * SHORT,
        ..QUICK
    };
    play_both(Model::default(), true, slow, async |stage| {
        stage.hands(|hands| hands.press());
        stage.until(State::PoweringOff).await;
        stage.hands(|hands| hands.pull());
        stage.quiet().await;
        stage.hands(|hands| hands.insert());
        stage.until(State::On).await;
        stage.acts(&[Arrive, Leave(Orderly), Left, Arrive]).await;
    });
}

#[test]
fn a_card_that_leaves_while_it_comes_is_removed_then() {
    play_both(Model::default(), false, QUICK, async |stage| {
        stage.manners(|manners| manners.time = LONG);
        stage.hands(|hands| hands.insert());
        stage.acts(&[Arrive]).await;
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
        stage.acts(&[Arrive, Leave(Surprise), Left]).await;
    });
}

#[test]
fn a_press_while_a_card_comes_is_remembered() {
    play_both(Model::default(), false, QUICK, async |stage| {
        stage.manners(|manners| manners.time = 10 * SHORT);
        stage.hands(|hands| hands.insert());
        stage.acts(&[Arrive]).await;
        stage.hands(|hands| hands.press());
        stage.acts(&[Arrive, Leave(Orderly), Left]).await;
        stage.until(State::Off).await;
    });
}

#[test]
fn what_cannot_be_used_has_no_power_until_somebody_asks_again() {
    play_both(Model::default(), false, QUICK, async |stage| {
        stage.manners(|manners| manners.willing = false);
        stage.hands(|hands| hands.insert());
        stage.until(State::Failed).await;
        stage.acts(&[Arrive, Refused]).await;
        stage.lamps(&[BLINK, FAILED]).await;
        stage.manners(|manners| manners.willing = true);
        stage.hands(|hands| hands.press());
        stage.until(State::On).await;
        stage.lamps(&[BLINK, FAILED, BLINK, ON]).await;
    });
}

#[test]
fn no_link_and_no_answer_are_waited_for_in_vain_and_not_for_long() {
    let hasty = Options {
        link: SHORT,
        answer: SHORT,
        ..QUICK
    };
    for (link, answer) in [(None, Duration::ZERO), (Some(Duration::ZERO), LONG)] {
        let model = with(|model| (model.link, model.answer) = (link, answer));
        play_both(model, false, hasty, async |stage| {
            stage.hands(|hands| hands.insert());
            stage.until(State::Failed).await;
            stage.acts(&[]).await;
            // Another card may be better.
            stage.hands(|hands| {
                hands.pull();
                hands.model().link = Some(Duration::ZERO);
                hands.model().answer = Duration::ZERO;
            });
            stage.until(State::Off).await;
            stage.hands(|hands| hands.insert());
            stage.until(State::On).await;
        });
    }
}

#[test]
fn a_power_fault_ends_in_failed() {
    play_both(Model::default(), true, QUICK, async |stage| {
        stage.hands(|hands| hands.fault());
        stage.until(State::Failed).await;
        stage.acts(&[Arrive, Leave(Surprise), Left]).await;
        assert!(stage.fake.control().contains(SlotControl::POWER_OFF));
    });
    let model = with(|model| model.shorted = true);
    play_both(model, false, QUICK, async |stage| {
        stage.hands(|hands| hands.insert());
        stage.until(State::Failed).await;
        stage.acts(&[]).await;
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
    });
}

#[test]
fn a_port_that_completes_no_command_is_waited_for_each_time_and_obeys() {
    let model = with(|model| model.command = None);
    let hasty = Options {
        command: SHORT,
        ..QUICK
    };
    for interrupts in [true, false] {
        let fake = Fake::new(model, true);
        let crew = Crew {
            fake: fake.clone(),
            acts: Arc::default(),
            manners: Arc::new(Mutex::new(Manners {
                time: SHORT,
                willing: true,
            })),
        };
        let line = interrupts.then(|| fake.line());
        let slot = Slot::new(fake.port(), crew.clone(), line, hasty, true);
        let handle = slot.handle();
        fake.change(|hands| hands.spurious());
        let begin = Instant::now();
        hal::task::spawn("slot", slot.run());
        block_on(async {
            let on = || handle.state() == State::On;
            poll_until(PATIENCE, STEP, on).await.unwrap();
            fake.change(|hands| hands.press());
            let off = || handle.state() == State::Off;
            poll_until(PATIENCE, STEP, off).await.unwrap();
        });
        assert!(begin.elapsed() < PATIENCE);
        assert_eq!(crew.acts(), [Leave(Orderly), Left]);
        handle.stop();
    }
}

#[test]
fn a_slot_without_command_completed_support_is_not_waited_for() {
    let model = with(|model| {
        model.slot |= SlotCapabilities::NO_COMMAND_COMPLETED;
        model.command = None;
    });
    let patient = Options {
        command: LONG,
        ..QUICK
    };
    play_both(model, true, patient, async |stage| {
        stage.hands(|hands| hands.press());
        stage.until(State::Off).await;
        let control = stage.fake.control();
        assert!(!control.contains(SlotControl::COMMAND_COMPLETED));
    });
}

#[test]
fn a_slot_with_nothing_but_surprise_is_served() {
    let model = with(|model| {
        model.slot = SlotCapabilities::SURPRISE
            | SlotCapabilities::HOT_PLUG
            | SlotCapabilities::NO_COMMAND_COMPLETED;
        model.tells_errors = false;
    });
    play_both(model, false, QUICK, async |stage| {
        stage.hands(|hands| hands.insert());
        stage.until(State::On).await;
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
        stage.hands(|hands| hands.insert());
        stage.until(State::On).await;
        stage.acts(&[Arrive, Leave(Surprise), Left, Arrive]).await;
        assert!(!stage.fake.control().contains(SlotControl::POWER_OFF));
        let lamps = SlotControl::POWER | SlotControl::ATTENTION;
        let lit = Fake::new(model, false).control() & lamps;
        assert_eq!(stage.fake.control() & lamps, lit, "there are no indicators");
    });
}

#[test]
fn a_port_that_does_not_tell_of_its_link_is_given_time() {
    let model = with(|model| model.tells_link = false);
    play_both(model, false, QUICK, async |stage| {
        stage.hands(|hands| hands.insert());
        stage.until(State::On).await;
    });
}

#[test]
fn presence_that_ends_with_the_power_brings_nothing_back() {
    let model = with(|model| model.in_band = true);
    play_both(model, true, QUICK, async |stage| {
        stage.hands(|hands| hands.press());
        stage.until(State::Off).await;
        stage.quiet().await;
        stage.acts(&[Arrive, Leave(Orderly), Left]).await;
    });
}

#[test]
fn an_open_latch_keeps_a_card_out_and_takes_it_out() {
    let model = with(|model| model.slot |= SlotCapabilities::LATCH_SENSOR);
    play_both(model, true, QUICK, async |stage| {
        stage.hands(|hands| hands.latch(true));
        stage.until(State::Off).await;
        stage.acts(&[Arrive, Leave(Surprise), Left]).await;
        stage.hands(|hands| hands.exchange());
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::Off);
        stage.hands(|hands| hands.latch(false));
        stage.until(State::On).await;
    });
    // Without a sensor there is no latch, whatever the bit says.
    play_both(Model::default(), true, QUICK, async |stage| {
        stage.hands(|hands| hands.model().slot = ALL);
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::On);
    });
}

#[test]
fn a_spurious_event_changes_nothing() {
    play_both(Model::default(), true, QUICK, async |stage| {
        for _ in 0..20 {
            stage.hands(|hands| hands.spurious());
            sleep(STEP).await;
        }
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::On);
        stage.acts(&[Arrive]).await;
    });
    play_both(Model::default(), false, QUICK, async |stage| {
        stage.hands(|hands| {
            hands.insert();
            hands.pull();
        });
        stage.hands(|hands| hands.press());
        stage.hands(|hands| hands.flap());
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::Off);
        stage.acts(&[]).await;
    });
}

#[test]
fn a_port_that_is_gone_takes_its_card_along_and_is_left_alone() {
    for interrupts in [true, false] {
        let acts = play(Model::default(), true, QUICK, interrupts, async |stage| {
            stage.hands(|hands| hands.port_gone());
            // Nobody interrupts any more, unless for whoever takes the port away.
            if !interrupts {
                stage.until(State::Gone).await;
            }
        });
        assert_eq!(acts, [Arrive, Leave(Surprise), Left]);
    }
}

#[test]
fn a_port_that_was_silenced_is_polled() {
    play(Model::default(), true, QUICK, true, async |stage| {
        stage.quiet().await;
        stage.fake.silence(true);
        stage.handle.look();
        stage.quiet().await;
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
        // No command is out any more, for which it would be looked at.
        stage.quiet().await;
        stage.hands(|hands| hands.insert());
        stage.until(State::On).await;
        stage.fake.silence(false);
        stage.quiet().await;
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
    });
}

/// QEMU has the card itself answer for its link, and one that is frozen takes its time.
#[test]
fn a_port_that_was_silenced_is_not_asked_for_its_link() {
    play(Model::default(), true, QUICK, true, async |stage| {
        stage.fake.silence(true);
        stage.handle.look();
        stage.quiet().await;
        stage.hands(|hands| hands.press());
        stage.until(State::Off).await;
        assert_eq!(stage.fake.link_reads(), 0);
        // A card that comes is awaited by its link all the same.
        stage.hands(|hands| hands.model().link = None);
        stage.hands(|hands| hands.exchange());
        stage.until(State::PoweringOn).await;
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::PoweringOn);
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
    });
}

#[test]
fn our_own_reset_is_no_event() {
    play_both(Model::default(), true, QUICK, async |stage| {
        let mask = stage.handle.mask();
        stage.hands(|hands| hands.flap());
        stage.hands(|hands| hands.surprise_down());
        stage.hands(|hands| hands.exchange());
        // Until the link is up again.
        let up = || stage.fake.answers();
        poll_until(PATIENCE, STEP, up).await.unwrap();
        drop(mask);
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::On);
        // Over before the driver has looked.
        let mask = stage.handle.mask();
        stage.hands(|hands| hands.flap());
        drop(mask);
        stage.quiet().await;
        assert_eq!(stage.handle.state(), State::On);
        stage.acts(&[Arrive]).await;
        let mask = stage.handle.mask();
        stage.hands(|hands| hands.pull());
        stage.until(State::Off).await;
        drop(mask);
        stage.acts(&[Arrive, Leave(Surprise), Left]).await;
        stage.hands(|hands| hands.insert());
        stage.until(State::On).await;
        // And it counts again when the mask is gone.
        stage.quiet().await;
        stage.hands(|hands| hands.flap());
        stage
            .acts(&[
                Arrive,
                Leave(Surprise),
                Left,
                Arrive,
                Leave(Surprise),
                Left,
                Arrive,
            ])
            .await;
        stage.until(State::On).await;
    });
}

#[test]
fn what_the_occupants_are_at_ends_before_the_driver() {
    let acts = play(Model::default(), true, QUICK, true, async |stage| {
        stage.manners(|manners| manners.time = 20 * SHORT);
        stage.hands(|hands| hands.press());
        stage.acts(&[Arrive, Leave(Orderly)]).await;
    });
    assert_eq!(acts, [Arrive, Leave(Orderly), Left]);
}

#[test]
fn what_left_before_the_driver_came_leaves_by_surprise() {
    let fake = Fake::new(Model::default(), false);
    let crew = Crew {
        fake: fake.clone(),
        acts: Arc::default(),
        manners: Arc::new(Mutex::new(Manners {
            time: SHORT,
            willing: true,
        })),
    };
    crew.note(Arrive);
    let slot = Slot::new(fake.port(), crew.clone(), None, QUICK, true);
    let handle = slot.handle();
    hal::task::spawn("slot", slot.run());
    let left = || crew.acts() == [Arrive, Leave(Surprise), Left];
    block_on(poll_until(PATIENCE, STEP, left)).unwrap();
    handle.stop();
}
