//! The bytes that people type.

use alloc::collections::VecDeque;

use hal::irq::IrqLine;

use crate::serial;

/// More than that, typed ahead, is lost.
const AHEAD_MAX: usize = 4096;

/// The console port's input.
pub struct Input {
    line: IrqLine,
    ahead: VecDeque<u8>,
}

impl Input {
    /// Input that `line` announces.
    pub fn new(line: IrqLine) -> Self {
        Self {
            line,
            ahead: VecDeque::new(),
        }
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

    /// Waits for Ctrl-C, keeping what else is typed for later. Cancel-safe.
    pub async fn interrupt(&mut self) {
        loop {
            if let Some(at) = self.ahead.iter().position(|&byte| byte == 3) {
                self.ahead.drain(..=at);
                return;
            }
            self.receive().await;
        }
    }

    /// Waits until there is more than what was typed ahead.
    async fn receive(&mut self) {
        loop {
            let mut bytes = [0; 64];
            let count = serial::console().read(&mut bytes);
            if count > 0 {
                let room = AHEAD_MAX - self.ahead.len().min(AHEAD_MAX);
                self.ahead.extend(&bytes[..count.min(room)]);
                return;
            }
            self.line.wait().await;
        }
    }
}
