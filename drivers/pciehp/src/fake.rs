//! A port with a slot for tests, as far as a driver can tell it from hardware: as QEMU's, and
//! stricter. It takes its time, interrupts at the edge of something to tell as long as that is not
//! cleared, and lets no card answer that has no power or no link.

use alloc::sync::Arc;
use alloc::vec::Vec;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hal::irq::{Interrupts, IrqError, IrqEvent, IrqKind, IrqLine, IrqOps};
use hal::mmio::Width;
use hal::pci::{Address, Config, ConfigOps};
use hal::time::{Duration, Instant};

use crate::port::Port;
use crate::registers::{
    AER, CAPABILITY, Indicator, LINK_CAPABILITIES, LINK_STATUS, LinkCapabilities, LinkStatus,
    ROOT_STATUS, SLOT_CAPABILITIES, SLOT_CONTROL, SLOT_STATUS, SURPRISE_DOWN, SlotCapabilities,
    SlotControl, SlotStatus, UNCORRECTABLE_STATUS,
};

pub(crate) const EXPRESS: usize = 0x40;
pub(crate) const ERRORS: usize = 0x100;

/// So many microseconds of the play. Under Miri, whose clock goes on by what it executes, they are
/// longer: else every wait would be over before anybody has looked.
pub(crate) const fn micros(count: u64) -> Duration {
    Duration::from_micros(if cfg!(miri) { 100 * count } else { count })
}

/// What a slot has, and how it behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) slot: SlotCapabilities,
    /// Reports whether the link is active.
    pub(crate) tells_link: bool,
    /// Has Advanced Error Reporting.
    pub(crate) tells_errors: bool,
    /// From a command to its completion; `None`: never.
    pub(crate) command: Option<Duration>,
    /// From power on to an active link; `None`: it never comes up.
    pub(crate) link: Option<Duration>,
    /// From there until the card answers.
    pub(crate) answer: Duration,
    /// Without power there is no presence either.
    pub(crate) in_band: bool,
    /// The power fails as often as it is switched on.
    pub(crate) shorted: bool,
}

pub(crate) const ALL: SlotCapabilities = SlotCapabilities::BUTTON
    .union(SlotCapabilities::POWER_CONTROLLER)
    .union(SlotCapabilities::ATTENTION_INDICATOR)
    .union(SlotCapabilities::POWER_INDICATOR)
    .union(SlotCapabilities::SURPRISE)
    .union(SlotCapabilities::HOT_PLUG);

impl Default for Model {
    fn default() -> Self {
        Self {
            slot: ALL,
            tells_link: true,
            tells_errors: true,
            command: Some(micros(300)),
            link: Some(micros(500)),
            answer: micros(500),
            in_band: false,
            shorted: false,
        }
    }
}

#[derive(Debug)]
struct Registers {
    model: Model,
    gone: bool,
    /// Without bus mastering.
    silent: bool,
    card: bool,
    latch_open: bool,
    control: SlotControl,
    events: SlotStatus,
    errors: u32,
    /// A command is out until then.
    busy: Option<Instant>,
    /// There is a card with power.
    powered: Option<Powered>,
    link_was_up: bool,
    presence_was: bool,
    /// The events told of at the last interrupt are not all cleared.
    told: bool,
    /// What people see.
    lamps: Vec<(u16, u16)>,
    /// Commands that came before the last one was completed.
    hasty: usize,
    /// Reads of the link while no message could be issued.
    link_reads: usize,
}

/// What comes of power.
#[derive(Clone, Copy, Debug)]
struct Powered {
    link: Option<Instant>,
    answer: Option<Instant>,
}

/// A slot whose card, button and latch are in the test's hands.
pub(crate) struct Fake {
    registers: Mutex<Registers>,
    event: Mutex<Option<Arc<IrqEvent>>>,
}

impl Fake {
    /// With a card in it and its power on, or empty and off.
    pub(crate) fn new(model: Model, card: bool) -> Arc<Self> {
        let lit = if card { Indicator::On } else { Indicator::Off };
        let mut control = SlotControl::power(lit) | SlotControl::attention(Indicator::Off);
        let controlled = model.slot.contains(SlotCapabilities::POWER_CONTROLLER);
        control.set(SlotControl::POWER_OFF, controlled && !card);
        let now = Some(Instant::now());
        let powered = Powered {
            link: now,
            answer: now,
        };
        Arc::new(Self {
            registers: Mutex::new(Registers {
                model,
                gone: false,
                silent: false,
                card,
                latch_open: false,
                control,
                events: SlotStatus::empty(),
                errors: 0,
                busy: None,
                powered: card.then_some(powered),
                link_was_up: card,
                presence_was: card,
                told: false,
                lamps: Vec::from([(lit as u16, Indicator::Off as u16)]),
                hasty: 0,
                link_reads: 0,
            }),
            event: Mutex::new(None),
        })
    }

    pub(crate) fn config(self: &Arc<Self>) -> Config {
        Config::new(Arc::new(Space(self.clone())))
    }

    pub(crate) fn port(self: &Arc<Self>) -> Port {
        let address = Address {
            segment: 0,
            bus: 0,
            device: 2,
            function: 0,
        };
        Port::new(address, self.config()).unwrap()
    }

    pub(crate) fn line(self: &Arc<Self>) -> IrqLine {
        let interrupts = Interrupts::new(Arc::new(Lines(self.clone())));
        interrupts.bind(IrqKind::Msi, 1).unwrap().remove(0)
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something at the slot, and interrupts where that is to be told.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Hands<'_>) -> T) -> T {
        let mut registers = self.lock();
        registers.catch_up();
        let value = change(&mut Hands(&mut registers));
        registers.catch_up();
        let tells = registers.interrupts() && !registers.silent;
        drop(registers);
        if tells {
            self.interrupt();
        }
        value
    }

    /// It may issue no messages, or may again.
    pub(crate) fn silence(&self, silent: bool) {
        self.lock().silent = silent;
    }

    fn interrupt(&self) {
        let event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = event.clone() {
            event.raise();
            event.wake();
        }
    }

    /// Whether the card can be reached: it is there, with power and link, and has had its time.
    pub(crate) fn answers(&self) -> bool {
        let mut registers = self.lock();
        registers.catch_up();
        registers.answers()
    }

    /// Whether the card could reach memory, although the driver could have helped it.
    pub(crate) fn is_at_large(&self) -> bool {
        let registers = self.lock();
        let slot = registers.model.slot;
        let controlled = slot.contains(SlotCapabilities::POWER_CONTROLLER) && !registers.gone;
        controlled && registers.powered.is_some()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.lock().gone
    }

    /// Time passes without an access: what comes of it may interrupt.
    pub(crate) fn tick(&self) {
        self.change(|_| {});
    }

    pub(crate) fn control(&self) -> SlotControl {
        self.lock().control
    }

    /// What power and attention indicator showed, one after the other.
    pub(crate) fn lamps(&self) -> Vec<(u16, u16)> {
        self.lock().lamps.clone()
    }

    pub(crate) fn hasty(&self) -> usize {
        self.lock().hasty
    }

    /// How often the link was asked for while the port was silenced.
    pub(crate) fn link_reads(&self) -> usize {
        self.lock().link_reads
    }
}

/// What people and nature do.
pub(crate) struct Hands<'a>(&'a mut Registers);

impl Hands<'_> {
    pub(crate) fn insert(&mut self) {
        self.0.card = true;
        self.0.power();
    }

    pub(crate) fn pull(&mut self) {
        self.0.card = false;
        self.0.powered = None;
        self.0.events |= SlotStatus::PRESENCE;
    }

    /// One card for another, too fast to be seen.
    pub(crate) fn exchange(&mut self) {
        self.pull();
        self.0.catch_up();
        self.insert();
    }

    pub(crate) fn press(&mut self) {
        self.0.events |= SlotStatus::BUTTON;
    }

    pub(crate) fn latch(&mut self, open: bool) {
        self.0.latch_open = open;
        self.0.events |= SlotStatus::LATCH;
    }

    pub(crate) fn fault(&mut self) {
        self.0.events |= SlotStatus::FAULT;
    }

    pub(crate) fn surprise_down(&mut self) {
        self.0.errors |= SURPRISE_DOWN;
        self.0.told = false;
    }

    /// The link goes down and comes back at once.
    pub(crate) fn flap(&mut self) {
        self.0.events |= SlotStatus::LINK;
    }

    /// An interrupt for nothing.
    pub(crate) fn spurious(&mut self) {
        self.0.events |= SlotStatus::COMMAND_COMPLETED;
    }

    pub(crate) fn port_gone(&mut self) {
        self.0.gone = true;
    }

    pub(crate) fn model(&mut self) -> &mut Model {
        &mut self.0.model
    }
}

impl Registers {
    fn has_power(&self) -> bool {
        !self.model.slot.contains(SlotCapabilities::POWER_CONTROLLER)
            || !self.control.contains(SlotControl::POWER_OFF)
    }

    /// Power and card have come together.
    fn power(&mut self) {
        let Model { link, answer, .. } = self.model;
        let link = link.map(|after| Instant::now() + after);
        let powered = Powered {
            link,
            answer: link.map(|up| up + answer),
        };
        self.powered = (self.card && self.has_power()).then_some(powered);
    }

    fn link_up(&self) -> bool {
        self.reached(|powered| powered.link)
    }

    fn answers(&self) -> bool {
        !self.gone && self.reached(|powered| powered.answer)
    }

    fn reached(&self, moment: impl Fn(Powered) -> Option<Instant>) -> bool {
        let moment = self.powered.and_then(moment);
        moment.is_some_and(|moment| Instant::now() >= moment)
    }

    fn present(&self) -> bool {
        self.card && (!self.model.in_band || self.powered.is_some())
    }

    /// What the time that has passed has brought.
    fn catch_up(&mut self) {
        if self.busy.is_some_and(|until| Instant::now() >= until) {
            self.busy = None;
            self.events |= SlotStatus::COMMAND_COMPLETED;
        }
        if self.link_up() != self.link_was_up {
            self.link_was_up = !self.link_was_up;
            if self.model.tells_link {
                self.events |= SlotStatus::LINK;
            }
        }
        if self.present() != self.presence_was {
            self.presence_was = !self.presence_was;
            self.events |= SlotStatus::PRESENCE;
        }
    }

    /// Whether there is something to tell that has not been told.
    fn interrupts(&mut self) -> bool {
        let sources = [
            (SlotControl::BUTTON, SlotStatus::BUTTON),
            (SlotControl::FAULT, SlotStatus::FAULT),
            (SlotControl::LATCH, SlotStatus::LATCH),
            (SlotControl::PRESENCE, SlotStatus::PRESENCE),
            (
                SlotControl::COMMAND_COMPLETED,
                SlotStatus::COMMAND_COMPLETED,
            ),
            (SlotControl::LINK, SlotStatus::LINK),
        ];
        let active = sources.iter().any(|&(enabled, event)| {
            self.control.contains(enabled | SlotControl::INTERRUPT) && self.events.contains(event)
        });
        let active = active || self.errors != 0;
        let before = core::mem::replace(&mut self.told, active);
        active && !before
    }

    fn status(&self) -> SlotStatus {
        let mut status = self.events;
        status.set(SlotStatus::PRESENT, self.present());
        status.set(SlotStatus::LATCH_OPEN, self.latch_open);
        status
    }

    fn command(&mut self, value: u16) {
        self.hasty += usize::from(self.busy.is_some());
        let old_power = self.has_power();
        self.control = SlotControl::from_bits_retain(value);
        let lamps = (value >> 8 & 3, value >> 6 & 3);
        if self.lamps.last() != Some(&lamps) {
            self.lamps.push(lamps);
        }
        let slot = self.model.slot;
        if !slot.contains(SlotCapabilities::NO_COMMAND_COMPLETED) {
            self.busy = self.model.command.map(|after| Instant::now() + after);
        }
        match (old_power, self.has_power()) {
            (true, false) => self.powered = None,
            (false, true) if self.model.shorted => self.events |= SlotStatus::FAULT,
            (false, true) => self.power(),
            _ => {}
        }
    }
}

struct Space(Arc<Fake>);

impl ConfigOps for Space {
    fn len(&self) -> usize {
        4096
    }

    fn read(&self, offset: usize, width: Width) -> u32 {
        let mut registers = self.0.lock();
        registers.catch_up();
        if registers.gone {
            return width.ones() as u32;
        }
        let reads_link = offset == EXPRESS + LINK_STATUS && registers.silent;
        registers.link_reads += usize::from(reads_link);
        let model = registers.model;
        let mut link_capabilities = LinkCapabilities::empty();
        link_capabilities.set(LinkCapabilities::ACTIVE_REPORTING, model.tells_link);
        let mut link = LinkStatus::empty();
        link.set(LinkStatus::ACTIVE, model.tells_link && registers.link_up());
        match offset {
            0x00 => 0x8086,
            0x04 => u32::from(!registers.silent) << 2,
            0x06 => 0x10,
            0x34 => EXPRESS as u32,
            EXPRESS => CAPABILITY.into(),
            // A root port, a slot behind it.
            0x42 => 0x0142,
            at if at == EXPRESS + LINK_CAPABILITIES => link_capabilities.bits(),
            at if at == EXPRESS + LINK_STATUS => link.bits().into(),
            at if at == EXPRESS + SLOT_CAPABILITIES => model.slot.bits() | 7 << 19,
            at if at == EXPRESS + SLOT_CONTROL => registers.control.bits().into(),
            at if at == EXPRESS + SLOT_STATUS => registers.status().bits().into(),
            ERRORS if model.tells_errors => u32::from(AER) | 1 << 16,
            at if at == ERRORS + UNCORRECTABLE_STATUS => registers.errors,
            at if at == ERRORS + ROOT_STATUS => u32::from(registers.errors != 0) << 2,
            _ => 0,
        }
    }

    fn write(&self, offset: usize, _: Width, value: u32) {
        self.0.change(|hands| {
            let registers = &mut *hands.0;
            if registers.gone {
                return;
            }
            match offset {
                at if at == EXPRESS + SLOT_CONTROL => registers.command(value as u16),
                at if at == EXPRESS + SLOT_STATUS => {
                    let cleared = SlotStatus::from_bits_retain(value as u16) & SlotStatus::EVENTS;
                    registers.events -= cleared;
                }
                at if at == ERRORS + UNCORRECTABLE_STATUS => registers.errors &= !value,
                _ => {}
            }
        });
    }
}

/// One message, for events.
struct Lines(Arc<Fake>);

impl IrqOps for Lines {
    fn available(&self, _: IrqKind) -> usize {
        1
    }

    fn bind(&self, _: IrqKind, _: usize, event: Arc<IrqEvent>) -> Result<(), IrqError> {
        *self.0.event.lock().unwrap() = Some(event);
        Ok(())
    }

    fn unbind(&self, _: IrqKind, _: usize) {
        *self.0.event.lock().unwrap() = None;
    }

    fn unmask(&self, _: IrqKind, _: usize) {}

    fn restore(&self) {}
}
