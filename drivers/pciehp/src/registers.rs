//! The registers of a port with a slot: offsets in the PCI Express capability (PCI Express Base
//! 7.5.3) and in Advanced Error Reporting (7.8.4), and their bits.

use bitflags::bitflags;

/// ID of the PCI Express capability.
pub const CAPABILITY: u8 = 0x10;
/// PCI Express Capabilities, 16 bits. 7.5.3.2.
pub const CAPABILITIES: usize = 0x02;
/// Device Control, 16 bits. 7.5.3.4.
pub const DEVICE_CONTROL: usize = 0x08;
/// Device Control: the port itself reports fatal errors.
pub const DEVICE_CONTROL_FATAL: u16 = 1 << 2;
/// Link Capabilities, 32 bits. 7.5.3.6.
pub const LINK_CAPABILITIES: usize = 0x0c;
/// Link Status, 16 bits. 7.5.3.8.
pub const LINK_STATUS: usize = 0x12;
/// Slot Capabilities, 32 bits. 7.5.3.9.
pub const SLOT_CAPABILITIES: usize = 0x14;
/// Slot Control, 16 bits. 7.5.3.10. A write of any part of it is a command.
pub const SLOT_CONTROL: usize = 0x18;
/// Slot Status, 16 bits. 7.5.3.11.
pub const SLOT_STATUS: usize = 0x1a;

/// ID of the extended capability Advanced Error Reporting.
pub const AER: u16 = 0x0001;
/// Uncorrectable Error Status, 32 bits, cleared by writing ones. 7.8.4.2.
pub const UNCORRECTABLE_STATUS: usize = 0x04;
/// Uncorrectable Error Mask, 32 bits. 7.8.4.3.
pub const UNCORRECTABLE_MASK: usize = 0x08;
/// In both: the link went down, and nobody had asked for it.
pub const SURPRISE_DOWN: u32 = 1 << 5;
/// Root Error Command, 32 bits, of root ports alone. 7.8.4.9.
pub const ROOT_COMMAND: usize = 0x2c;
/// Root Error Command: interrupt at errors that are not fatal, and at those that are.
pub const ROOT_COMMAND_UNCORRECTABLE: u32 = 0b110;
/// Root Error Status, 32 bits, the lower ones cleared by writing ones. 7.8.4.10.
pub const ROOT_STATUS: usize = 0x30;
/// Root Error Status: what is cleared by writing ones.
pub const ROOT_STATUS_EVENTS: u32 = 0x7f;

bitflags! {
    /// PCI Express Capabilities: the bits beside port type and interrupt message number.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capabilities: u16 {
        /// The port leads to a slot.
        const SLOT_IMPLEMENTED = 1 << 8;
        const _ = !0;
    }

    /// Link Capabilities.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LinkCapabilities: u32 {
        /// Reports surprise down.
        const SURPRISE_DOWN = 1 << 19;
        /// Reports whether the link is active.
        const ACTIVE_REPORTING = 1 << 20;
        const _ = !0;
    }

    /// Link Status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LinkStatus: u16 {
        /// The data link layer is active.
        const ACTIVE = 1 << 13;
        const _ = !0;
    }

    /// Slot Capabilities; the number above bit 18 is [`SlotCapabilities::number`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SlotCapabilities: u32 {
        /// Attention button.
        const BUTTON = 1 << 0;
        /// Power controller.
        const POWER_CONTROLLER = 1 << 1;
        /// A sensor of the manual retention latch.
        const LATCH_SENSOR = 1 << 2;
        /// Attention indicator.
        const ATTENTION_INDICATOR = 1 << 3;
        /// Power indicator.
        const POWER_INDICATOR = 1 << 4;
        /// Cards may be pulled without warning.
        const SURPRISE = 1 << 5;
        /// Hot-plug capable.
        const HOT_PLUG = 1 << 6;
        /// Electromechanical interlock.
        const INTERLOCK = 1 << 17;
        /// Commands complete at once, and no event tells.
        const NO_COMMAND_COMPLETED = 1 << 18;
        const _ = !0;
    }

    /// Slot Control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SlotControl: u16 {
        /// Interrupt at the attention button.
        const BUTTON = 1 << 0;
        /// Interrupt at power faults.
        const FAULT = 1 << 1;
        /// Interrupt at changes of the latch.
        const LATCH = 1 << 2;
        /// Interrupt at changes of presence.
        const PRESENCE = 1 << 3;
        /// Interrupt when a command is completed.
        const COMMAND_COMPLETED = 1 << 4;
        /// Interrupt at all.
        const INTERRUPT = 1 << 5;
        /// Attention indicator: an [`Indicator`].
        const ATTENTION = 0b11 << 6;
        /// Power indicator: an [`Indicator`].
        const POWER = 0b11 << 8;
        /// Power is off.
        const POWER_OFF = 1 << 10;
        /// Toggle the interlock.
        const INTERLOCK = 1 << 11;
        /// Interrupt at changes of the link.
        const LINK = 1 << 12;
        const _ = !0;
    }

    /// Slot Status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SlotStatus: u16 {
        /// The attention button was pressed.
        const BUTTON = 1 << 0;
        /// The power failed.
        const FAULT = 1 << 1;
        /// The latch was opened or closed.
        const LATCH = 1 << 2;
        /// A card came or left.
        const PRESENCE = 1 << 3;
        /// A command is completed.
        const COMMAND_COMPLETED = 1 << 4;
        /// The latch is open.
        const LATCH_OPEN = 1 << 5;
        /// There is a card.
        const PRESENT = 1 << 6;
        /// The link came up or went down.
        const LINK = 1 << 8;
        /// All events: cleared by writing ones.
        const EVENTS = 0x011f;
        const _ = !0;
    }
}

impl Capabilities {
    /// Root port of a root complex.
    pub fn is_root_port(self) -> bool {
        self.bits() >> 4 & 0xf == 4
    }

    /// Which of the port's messages tells of hot-plug events.
    pub fn message_number(self) -> usize {
        usize::from(self.bits() >> 9 & 0x1f)
    }
}

impl SlotCapabilities {
    /// The slot's physical number.
    pub fn number(self) -> u16 {
        (self.bits() >> 19) as u16
    }
}

/// What an indicator shows, as Slot Control has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Indicator {
    /// Lit.
    On = 0b01,
    /// Blinking.
    Blink = 0b10,
    /// Dark.
    Off = 0b11,
}

impl SlotControl {
    /// The field of the power indicator.
    pub fn power(indicator: Indicator) -> Self {
        Self::from_bits_retain((indicator as u16) << 8)
    }

    /// The field of the attention indicator.
    pub fn attention(indicator: Indicator) -> Self {
        Self::from_bits_retain((indicator as u16) << 6)
    }
}
