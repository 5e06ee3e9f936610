//! A port by its registers: what it has, how its slot is, what happened there.

use core::fmt;

use hal::pci::{Address, Config, header};

use crate::controller::{Events, Levels};
use crate::registers::{
    AER, CAPABILITIES, CAPABILITY, Capabilities, DEVICE_CONTROL, DEVICE_CONTROL_FATAL,
    LINK_CAPABILITIES, LINK_STATUS, LinkCapabilities, LinkStatus, ROOT_COMMAND,
    ROOT_COMMAND_UNCORRECTABLE, ROOT_STATUS, ROOT_STATUS_EVENTS, SLOT_CAPABILITIES, SLOT_CONTROL,
    SLOT_STATUS, SURPRISE_DOWN, SlotCapabilities, SlotControl, SlotStatus, UNCORRECTABLE_MASK,
    UNCORRECTABLE_STATUS,
};

/// How often events are read and cleared in a row. Those that are still there then, such as a power
/// fault that lasts, are for the next time.
const ROUNDS: usize = 8;

/// A root port or downstream port that leads to a slot.
#[derive(Clone)]
pub struct Port {
    address: Address,
    config: Config,
    /// Where its PCI Express capability lies.
    express: usize,
    /// Where Advanced Error Reporting lies, if it tells there of links that go down.
    errors: Option<usize>,
    capabilities: Capabilities,
    slot: SlotCapabilities,
    link: LinkCapabilities,
}

impl Port {
    /// The port at `address`; `None` where no slot is behind it.
    pub fn new(address: Address, config: Config) -> Option<Self> {
        let express = config.capability(CAPABILITY)?;
        let capabilities = Capabilities::from_bits_retain(config.read16(express + CAPABILITIES));
        if !capabilities.contains(Capabilities::SLOT_IMPLEMENTED) {
            return None;
        }
        let link = LinkCapabilities::from_bits_retain(config.read32(express + LINK_CAPABILITIES));
        let slot = SlotCapabilities::from_bits_retain(config.read32(express + SLOT_CAPABILITIES));
        let errors = config.extended_capability(AER);
        Some(Self {
            address,
            express,
            errors,
            capabilities,
            slot,
            link,
            config,
        })
    }

    /// Where the port is.
    pub fn address(&self) -> Address {
        self.address
    }

    /// What the slot has.
    pub fn slot(&self) -> SlotCapabilities {
        self.slot
    }

    /// Whether cards may come and go.
    pub fn is_hot_plug(&self) -> bool {
        self.slot.contains(SlotCapabilities::HOT_PLUG)
    }

    /// Which of the port's messages tells of events.
    pub fn message_number(&self) -> usize {
        self.capabilities.message_number()
    }

    /// How the slot is; `None` where the port does not answer. A silenced port does not tell of its
    /// link: what is behind it is gone, and some ports, QEMU's among them, ask the card.
    pub fn levels(&self) -> Option<Levels> {
        self.status().map(|status| self.levels_of(status))
    }

    /// Whether the slot has power: it has no power controller, or that is on.
    pub fn is_powered(&self) -> bool {
        !self.slot.contains(SlotCapabilities::POWER_CONTROLLER)
            || !self.control().contains(SlotControl::POWER_OFF)
    }

    /// Whether its messages lead nowhere: it may issue none.
    pub(crate) fn is_silenced(&self) -> bool {
        self.config.read16(header::COMMAND) & header::COMMAND_BUS_MASTER == 0
    }

    /// Whether the slot is off, or is being switched off, or empty. Not so of a port that does not
    /// answer. The link is not asked for, as in [`Port::levels`].
    pub fn is_dead(&self) -> bool {
        self.is_empty() || self.status().is_some() && !self.is_powered()
    }

    /// Whether nothing is in the slot: nothing that was there reaches memory.
    pub fn is_empty(&self) -> bool {
        let present = |status: SlotStatus| status.contains(SlotStatus::PRESENT);
        self.status().is_some_and(|status| !present(status))
    }

    fn status(&self) -> Option<SlotStatus> {
        match self.config.read16(self.express + SLOT_STATUS) {
            u16::MAX => None,
            status => Some(SlotStatus::from_bits_retain(status)),
        }
    }

    fn levels_of(&self, status: SlotStatus) -> Levels {
        let sensor = self.slot.contains(SlotCapabilities::LATCH_SENSOR);
        Levels {
            present: status.contains(SlotStatus::PRESENT),
            latch_open: sensor && status.contains(SlotStatus::LATCH_OPEN),
            link: (self.tells_link() && !self.is_silenced()).then(|| self.is_link_active()),
        }
    }

    fn tells_link(&self) -> bool {
        self.link.contains(LinkCapabilities::ACTIVE_REPORTING)
    }

    /// Whether nothing says that the link is not active.
    pub(crate) fn may_be_linked(&self) -> bool {
        !self.tells_link() || self.is_link_active()
    }

    fn is_link_active(&self) -> bool {
        match self.config.read16(self.express + LINK_STATUS) {
            u16::MAX => false,
            status => LinkStatus::from_bits_retain(status).contains(LinkStatus::ACTIVE),
        }
    }

    pub(crate) fn control(&self) -> SlotControl {
        SlotControl::from_bits_retain(self.config.read16(self.express + SLOT_CONTROL))
    }

    /// Issues a command: the slot obeys when it is completed.
    pub(crate) fn set_control(&self, control: SlotControl) {
        self.config
            .write16(self.express + SLOT_CONTROL, control.bits());
    }

    /// What happened since the last time, whether a command was completed, and how the slot is now.
    /// All of it is cleared, so that what comes next interrupts; `None` where the port does not
    /// answer.
    pub(crate) fn take_events(&self) -> Option<(Events, bool, Levels)> {
        let mut seen = SlotStatus::empty();
        let mut status = self.status()?;
        for _ in 0..ROUNDS {
            let new = status & SlotStatus::EVENTS;
            if new.is_empty() {
                break;
            }
            seen |= new;
            // Only what was read: what comes in between stays.
            self.config.write16(self.express + SLOT_STATUS, new.bits());
            status = self.status()?;
        }
        let mut events = Events::empty();
        for (bit, event) in [
            (SlotStatus::BUTTON, Events::BUTTON),
            (SlotStatus::FAULT, Events::FAULT),
            (SlotStatus::LATCH, Events::LATCH),
            (SlotStatus::PRESENCE, Events::PRESENCE),
            (SlotStatus::LINK, Events::LINK),
        ] {
            events.set(event, seen.contains(bit));
        }
        events.set(Events::SURPRISE_DOWN, self.take_surprise_down());
        let completed = seen.contains(SlotStatus::COMMAND_COMPLETED);
        Some((events, completed, self.levels_of(status)))
    }

    /// Whether the link went down by surprise, cleared.
    fn take_surprise_down(&self) -> bool {
        let Some(errors) = self.errors else {
            return false;
        };
        let status = self.config.read32(errors + UNCORRECTABLE_STATUS);
        let down = status != u32::MAX && status & SURPRISE_DOWN != 0;
        if down {
            self.config
                .write32(errors + UNCORRECTABLE_STATUS, SURPRISE_DOWN);
        }
        if self.capabilities.is_root_port() {
            // As long as one is left, the next interrupts nobody.
            let root = self.config.read32(errors + ROOT_STATUS);
            if root != u32::MAX && root & ROOT_STATUS_EVENTS != 0 {
                self.config
                    .write32(errors + ROOT_STATUS, root & ROOT_STATUS_EVENTS);
            }
        }
        down
    }

    /// Has links that go down by surprise told: noted in the port's error status, and from a root
    /// port an interrupt, if `interrupts`. Or told no more.
    pub(crate) fn tell_surprise_down(&self, on: bool, interrupts: bool) {
        let Some(errors) = self.errors else { return };
        let change = |at, bits: u32, set: bool| {
            let now = self.config.read32(at);
            if now != u32::MAX {
                let new = if set { now | bits } else { now & !bits };
                self.config.write32(at, new);
            }
        };
        change(errors + UNCORRECTABLE_MASK, SURPRISE_DOWN, !on);
        if self.capabilities.is_root_port() {
            let at = self.express + DEVICE_CONTROL;
            let control = self.config.read16(at);
            if on && control != u16::MAX {
                self.config.write16(at, control | DEVICE_CONTROL_FATAL);
            }
            change(
                errors + ROOT_COMMAND,
                ROOT_COMMAND_UNCORRECTABLE,
                on && interrupts,
            );
        }
    }
}

/// Whether the function with this configuration space answers: it reads neither all ones nor, where
/// the root complex shows it, that it is not ready yet. PCI Express Base 2.3.2.
pub fn answers(config: &Config) -> bool {
    const NOT_READY: u16 = 0x0001;
    !matches!(config.read16(header::VENDOR), u16::MAX | NOT_READY)
}

/// `slot N port=BB:DD.F`, for log lines.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} port={}", self.slot.number(), self.address)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({self} {:?})", self.slot)
    }
}
