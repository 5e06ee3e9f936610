//! The bytes that people type: on the console's serial port and on the keyboard.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use hal::irq::IrqEvent;

use super::pages;
use crate::acpi::madt::Trigger;
use crate::acpi::tables::platform;
use crate::keyboard::controller as keyboard;
use crate::keyboard::keys::Key;
use crate::{irq, screen, serial};

/// More than that, typed ahead, is lost.
const AHEAD_MAX: usize = 4096;

/// Vectors bound for input.
static VECTORS: AtomicUsize = AtomicUsize::new(0);

/// How many vectors are bound for input.
pub fn vectors() -> usize {
    VECTORS.load(Ordering::Relaxed)
}

/// Serial port and keyboard, as far as they are there.
pub struct Input {
    /// Raised by the interrupts of both.
    event: Arc<IrqEvent>,
    seen: u64,
    /// Their inputs of the I/O APIC.
    inputs: Vec<u32>,
    /// Whether there is a keyboard; what is read where none is are no keys.
    keyboard: bool,
    ahead: VecDeque<u8>,
}

impl Input {
    /// Looks for a keyboard, and listens to it and the serial port. `None` where nothing can be
    /// typed on: no such device, or no I/O APIC.
    pub fn open() -> Option<Self> {
        let port = serial::console();
        let mut input = Self {
            event: Arc::default(),
            seen: 0,
            inputs: Vec::new(),
            keyboard: keyboard::init(),
            ahead: VecDeque::new(),
        };
        if port.is_there() && input.bind("serial", port.isa()) {
            port.enable_receive_interrupt();
        }
        if input.keyboard {
            input.bind("keyboard", keyboard::ISA);
        }
        (!input.inputs.is_empty()).then_some(input)
    }

    /// Has a legacy interrupt raise the event.
    fn bind(&mut self, name: &'static str, isa: u8) -> bool {
        let madt = platform().madt.as_ref();
        let (gsi, trigger) = madt.map_or((isa.into(), Trigger::ISA), |madt| madt.isa(isa));
        let bound = irq::bind_input(name, gsi, trigger, self.event.clone());
        if bound {
            VECTORS.fetch_add(1, Ordering::Relaxed);
            self.inputs.push(gsi);
        } else {
            log::warn!("no interrupt for input: {name}");
        }
        bound
    }

    /// The next byte. Cancel-safe.
    pub async fn byte(&mut self) -> u8 {
        loop {
            if let Some(byte) = self.ahead.pop_front() {
                return byte;
            }
            self.receive().await;
        }
    }

    /// Waits for Ctrl-C while a command runs, keeping what else is typed for later, but for a key
    /// that turns a page. Cancel-safe.
    pub async fn interrupt(&mut self) {
        loop {
            if let Some(at) = self.ahead.iter().position(|&byte| byte == 3) {
                self.ahead.drain(..=at);
                return;
            }
            let before = self.ahead.len();
            self.receive().await;
            let stops = self.ahead.range(before..).any(|&byte| byte == 3);
            if !stops && pages::turn() {
                self.ahead.truncate(before);
            }
        }
    }

    /// Waits until there is more than what was typed ahead.
    async fn receive(&mut self) {
        loop {
            let before = self.ahead.len();
            let mut bytes = [0; 64];
            let count = serial::console().read(&mut bytes);
            self.append(&bytes[..count]);
            while self.keyboard
                && let Some(key) = keyboard::key()
            {
                match key {
                    Key::Byte(byte) => self.append(&[byte]),
                    Key::Sequence(bytes) => self.append(bytes),
                    Key::Look { back } => screen::console::look(back),
                }
            }
            if self.ahead.len() > before {
                screen::console::look_ahead();
                return;
            }
            if self.event.count() == self.seen {
                for &gsi in &self.inputs {
                    irq::unmask_input(gsi, &self.event);
                }
            }
            self.seen = self.event.beyond(self.seen).await;
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = AHEAD_MAX.saturating_sub(self.ahead.len());
        self.ahead.extend(&bytes[..bytes.len().min(room)]);
    }
}
