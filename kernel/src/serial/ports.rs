//! COM1 and COM2, and which of them is for people.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::IER;
use uart_16550::{BaudRate, Config, Uart16550};

use super::line::{Line, drains};
use crate::acpi::spcr::{Registers, Spcr};
use crate::command_line::ConsolePort;

/// A serial port.
pub struct Port {
    base: u16,
    /// The legacy interrupt.
    isa: AtomicU8,
    /// What firmware had set its divisor to.
    divisor: AtomicU16,
    line: Mutex<Option<Line<PioBackend>>>,
}

/// COM1 and COM2.
pub static PORTS: [Port; 2] = [Port::new(0x3f8, 4), Port::new(0x2f8, 3)];
static CONSOLE: AtomicU8 = AtomicU8::new(0);
/// A port has been given up, and nobody has been told.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

impl Port {
    const fn new(base: u16, isa: u8) -> Self {
        Self {
            base,
            isa: AtomicU8::new(isa),
            divisor: AtomicU16::new(0),
            line: Mutex::new(None),
        }
    }

    /// Looks for the port and sets it up; says whether it is there.
    fn init(&self) -> bool {
        let mut line = self.line.lock();
        if line.is_none() {
            // SAFETY: the standard I/O ports of a PC's serial port, which only this module uses.
            let Ok(mut uart) = (unsafe { Uart16550::new_port(self.base) }) else {
                return false;
            };
            let (low, high) = uart.dll_dlm();
            self.divisor
                .store(u16::from_le_bytes([low, high]), Ordering::Relaxed);
            *line = Line::new(uart);
        }
        line.is_some()
    }

    /// Sets the speed by a divisor, or as firmware had it. Nothing, where it had none.
    fn set_divisor(&self, divisor: Option<u16>) {
        let divisor = divisor.unwrap_or(self.divisor.load(Ordering::Relaxed));
        if let Some(Line { uart, .. }) = self.line.lock().as_mut()
            && divisor != 0
            && drains(uart)
        {
            // The crate takes rates: of a clock that makes the rate 1.
            let config = Config {
                frequency: 16 * u32::from(divisor),
                baud_rate: BaudRate::Custom(1),
                ..Config::default()
            };
            // It was there before, and the divisor is one.
            let _ = uart.init(config);
        }
    }

    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        self.line.lock().is_some()
    }

    /// The legacy interrupt.
    pub fn isa(&self) -> u8 {
        self.isa.load(Ordering::Relaxed)
    }

    /// Sends, each line feed after a carriage return.
    pub fn write(&self, bytes: &[u8]) {
        if let Some(line) = self.line.lock().as_mut()
            && line.send(bytes)
        {
            GIVEN_UP.store(true, Ordering::Relaxed);
        }
    }

    /// As [`Port::write`], from a report of a panic: does not wait for whoever holds the port.
    pub fn write_now(&self, bytes: &[u8]) {
        if let Some(line) = self.line.try_lock().as_deref_mut().and_then(Option::as_mut) {
            line.send(bytes);
        }
    }

    /// Lets go of the port where its holder was stopped in the middle of a line.
    ///
    /// # Safety
    /// No other CPU runs any more.
    pub unsafe fn force_unlock(&self) {
        // SAFETY: by the contract, the holder will not go on.
        unsafe { self.line.force_unlock() };
    }

    /// Takes received bytes; returns how many.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        let mut line = self.line.lock();
        line.as_mut()
            .map_or(0, |line| line.uart.receive_bytes(bytes))
    }

    /// Lets the port interrupt when bytes have come.
    pub fn enable_receive_interrupt(&self) {
        if let Some(line) = self.line.lock().as_mut() {
            line.uart.enable_interrupts(IER::DATA_READY);
        }
    }
}

/// Sets up both ports; the console is on the one asked for.
pub fn init(console: ConsolePort) {
    let there = [PORTS[0].init(), PORTS[1].init()];
    let index = match console {
        ConsolePort::Com1 => 0,
        ConsolePort::Com2 => 1,
        ConsolePort::Auto => u8::from(!there[0] && there[1]),
    };
    CONSOLE.store(index, Ordering::Relaxed);
}

/// Goes to the port, and to the speed, that firmware's own console has, unless the command line
/// names another port. A port that is not there stays unused.
pub fn follow(spcr: &Spcr, asked: ConsolePort) {
    let port = match spcr.registers {
        Registers::Ports(base) => PORTS.iter().position(|port| port.base == base),
        Registers::Elsewhere(..) => None,
    };
    let Some(index) = port else {
        log::info!(
            "firmware's console is on a UART that is neither COM1 nor COM2, and is not used: {:x?}",
            spcr.registers
        );
        return;
    };
    let port = &PORTS[index];
    if !port.is_there() {
        log::warn!(
            "firmware's console is on COM{}, which does not answer",
            index + 1
        );
        return;
    }
    port.set_divisor(spcr.divisor);
    if let Some(isa) = spcr.isa {
        port.isa.store(isa, Ordering::Relaxed);
    }
    if asked == ConsolePort::Auto {
        CONSOLE.store(index as u8, Ordering::Relaxed);
    }
}

/// The port for people.
pub fn console() -> &'static Port {
    &PORTS[usize::from(CONSOLE.load(Ordering::Relaxed)) % 2]
}

/// The port for machine-read lines.
pub fn machine() -> &'static Port {
    &PORTS[1 - usize::from(CONSOLE.load(Ordering::Relaxed)) % 2]
}

/// Whether a port has just been given up: true once, for whoever tells.
pub fn given_up() -> bool {
    GIVEN_UP.load(Ordering::Relaxed) && GIVEN_UP.swap(false, Ordering::Relaxed)
}
