//! One port that is there, and how long it is waited for.

use uart_16550::backend::Backend;
use uart_16550::spec::registers::{LSR, MCR, offsets};
use uart_16550::{Config, Uart16550};

/// Attempts to send one byte. At 9600 baud a byte takes a millisecond.
const SEND_ATTEMPTS: usize = 200_000;
/// So many pieces of text that a port does not take, one after the other, and it is not waited for.
const FAILURES_MAX: u8 = 3;

/// A port that is there.
pub(super) struct Line<B: Backend> {
    pub(super) uart: Uart16550<B>,
    /// Pieces of text that it has not taken since the last that it took.
    failures: u8,
}

impl<B: Backend> Line<B> {
    /// Sets a port up. `None` where nothing is that could send.
    pub(super) fn new(mut uart: Uart16550<B>) -> Option<Self> {
        // The crate waits for an empty transmitter without a limit.
        let idle = drains(&mut uart) && uart.init(Config::default()).is_ok();
        let there = idle && loops_back(&mut uart);
        there.then_some(Self { uart, failures: 0 })
    }

    /// Sends, each line feed after a carriage return. A port that has not taken some pieces of text
    /// is asked once for each of the next: says whether this was the last that it was waited for.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        let given_up = self.failures >= FAILURES_MAX;
        if given_up && self.uart.ready_to_send().is_err() {
            return false;
        }
        let uart = &mut self.uart;
        let mut byte = |byte| (0..SEND_ATTEMPTS).any(|_| uart.try_send_byte(byte).is_ok());
        let sent = bytes
            .iter()
            .all(|&b| (b != b'\n' || byte(b'\r')) && byte(b));
        self.failures = match sent {
            true => 0,
            false => (self.failures + 1).min(FAILURES_MAX),
        };
        !given_up && self.failures == FAILURES_MAX
    }
}

/// Whether the transmitter empties itself.
pub(super) fn drains<B: Backend>(uart: &mut Uart16550<B>) -> bool {
    (0..SEND_ATTEMPTS).any(|_| uart.lsr().contains(LSR::TRANSMITTER_EMPTY))
}

/// Whether a byte comes back that the port sends to itself: what tells a UART from registers that
/// remember. PC16550D datasheet, 8.7.
fn loops_back<B: Backend>(uart: &mut Uart16550<B>) -> bool {
    const BYTE: u8 = 0xa5;
    let mcr = uart.mcr();
    let set = |uart: &mut Uart16550<B>, mcr: MCR| {
        // SAFETY: a register of the port, of which its driver keeps nothing.
        unsafe { uart.backend_mut().write(offsets::MCR as u8, mcr.bits()) };
    };
    set(uart, MCR::LOOP_BACK);
    let back = uart.try_send_byte(BYTE).is_ok()
        && (0..SEND_ATTEMPTS).any(|_| uart.try_receive_byte() == Ok(BYTE));
    set(uart, mcr);
    back
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// A UART that is played: registers that remember, a transmitter that may stand still.
    #[derive(Default)]
    struct Played {
        registers: [u8; 8],
        /// Sent back in loopback mode.
        looped: Option<u8>,
        sent: Vec<u8>,
        accesses: usize,
        stuck: bool,
        deaf: bool,
        absent: bool,
    }

    const LCR: u8 = offsets::LCR as u8;
    const LSR_AT: u8 = offsets::LSR as u8;
    const MCR_AT: usize = offsets::MCR;
    const DLAB: u8 = 0x80;

    impl Backend for Played {
        unsafe fn read(&mut self, at: u8) -> u8 {
            self.accesses += 1;
            let idle = LSR::THR_EMPTY | LSR::TRANSMITTER_EMPTY;
            match at {
                _ if self.absent => 0xff,
                0 if self.registers[usize::from(LCR)] & DLAB == 0 => {
                    self.looped.take().unwrap_or(0)
                }
                LSR_AT => {
                    let ready = u8::from(self.looped.is_some());
                    ready | if self.stuck { 0 } else { idle.bits() }
                }
                _ => self.registers[usize::from(at)],
            }
        }

        unsafe fn write(&mut self, at: u8, value: u8) {
            self.accesses += 1;
            if at != 0 || self.registers[usize::from(LCR)] & DLAB != 0 {
                self.registers[usize::from(at)] = value;
            } else if self.registers[MCR_AT] & MCR::LOOP_BACK.bits() == 0 {
                self.sent.push(value);
            } else if !self.deaf {
                self.looped = Some(value);
            }
        }
    }

    fn line(played: Played) -> Option<Line<Played>> {
        // SAFETY: a backend in memory has all registers.
        Line::new(unsafe { Uart16550::new_with_backend(played) })
    }

    #[test]
    fn what_is_sent_arrives_with_returns() {
        let mut line = line(Played::default()).unwrap();
        assert!(!line.send(b"one\ntwo"));
        assert_eq!(line.uart.backend().sent, b"one\r\ntwo");
        assert_eq!(line.uart.mcr() & MCR::LOOP_BACK, MCR::empty());
    }

    #[test]
    fn ports_that_cannot_send_are_not_there() {
        let absent = Played {
            absent: true,
            ..Played::default()
        };
        let deaf = Played {
            deaf: true,
            ..Played::default()
        };
        let stuck = Played {
            stuck: true,
            ..Played::default()
        };
        for played in [absent, deaf, stuck] {
            assert!(line(played).is_none());
        }
    }

    #[test]
    fn a_port_that_stands_still_is_waited_for_three_times() {
        let mut line = line(Played::default()).unwrap();
        line.uart.backend_mut().stuck = true;
        let told: Vec<bool> = (0..5).map(|_| line.send(b"text")).collect();
        assert_eq!(told, [false, false, true, false, false]);
        line.uart.backend_mut().accesses = 0;
        assert!(!line.send(b"text"));
        assert!(line.uart.backend().accesses < 10, "it is waited for");
        // It drains again: what comes now arrives, and it is waited for as before.
        line.uart.backend_mut().stuck = false;
        assert!(!line.send(b"again"));
        assert_eq!(line.uart.backend().sent, b"again");
        line.uart.backend_mut().stuck = true;
        assert_eq!([0; 3].map(|_| line.send(b"text")), [false, false, true]);
    }
}
