//! The two serial ports: one for people, one for machines.
//!
//! Output waits for the transmitter, bounded: a port that does not drain loses what it is given.
//! Input comes by interrupt.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use hal::irq::{Interrupts, IrqError, IrqEvent, IrqKind, IrqLine, IrqOps};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::IER;
use uart_16550::{Config, Uart16550};

use crate::acpi::madt::Trigger;
use crate::acpi::tables::platform;
use crate::command_line::ConsolePort;
use crate::irq;

/// Attempts to send one byte. At 9600 baud a byte takes a millisecond.
const SEND_ATTEMPTS: usize = 200_000;

/// A serial port.
pub struct Port {
    base: u16,
    /// The legacy interrupt.
    pub isa: u8,
    uart: Mutex<Option<Uart16550<PioBackend>>>,
}

/// COM1 and COM2.
pub static PORTS: [Port; 2] = [Port::new(0x3f8, 4), Port::new(0x2f8, 3)];
static CONSOLE: AtomicU8 = AtomicU8::new(0);
static LISTENING: AtomicBool = AtomicBool::new(false);

impl Port {
    const fn new(base: u16, isa: u8) -> Self {
        Self {
            base,
            isa,
            uart: Mutex::new(None),
        }
    }

    /// Looks for the port and sets it up; says whether it is there.
    pub fn init(&self) -> bool {
        let mut uart = self.uart.lock();
        if uart.is_none() {
            // SAFETY: the standard I/O ports of a PC's serial port, which only this module uses.
            if let Ok(mut found) = unsafe { Uart16550::new_port(self.base) }
                && found.init(Config::default()).is_ok()
            {
                *uart = Some(found);
            }
        }
        uart.is_some()
    }

    /// Sends, each line feed after a carriage return.
    pub fn write(&self, bytes: &[u8]) {
        if let Some(uart) = self.uart.lock().as_mut() {
            send(uart, bytes);
        }
    }

    /// As [`Port::write`], from a report of a panic: does not wait for whoever holds the port.
    pub fn write_now(&self, bytes: &[u8]) {
        if let Some(uart) = self.uart.try_lock().as_deref_mut().and_then(Option::as_mut) {
            send(uart, bytes);
        }
    }

    /// Lets go of the port where its holder was stopped in the middle of a line.
    ///
    /// # Safety
    /// No other CPU runs any more.
    pub unsafe fn force_unlock(&self) {
        // SAFETY: by the contract, the holder will not go on.
        unsafe { self.uart.force_unlock() };
    }

    /// Takes received bytes; returns how many.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        self.uart
            .lock()
            .as_mut()
            .map_or(0, |uart| uart.receive_bytes(bytes))
    }

    /// Lets the port interrupt when bytes have come.
    pub fn enable_receive_interrupt(&self) {
        if let Some(uart) = self.uart.lock().as_mut() {
            uart.enable_interrupts(IER::DATA_READY);
        }
    }
}

fn send(uart: &mut Uart16550<PioBackend>, bytes: &[u8]) {
    let mut byte = |byte| (0..SEND_ATTEMPTS).any(|_| uart.try_send_byte(byte).is_ok());
    for &b in bytes {
        if (b == b'\n' && !byte(b'\r')) || !byte(b) {
            return;
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

/// The port for people.
pub fn console() -> &'static Port {
    &PORTS[usize::from(CONSOLE.load(Ordering::Relaxed)) % 2]
}

/// The port for machine-read lines.
pub fn machine() -> &'static Port {
    &PORTS[1 - usize::from(CONSOLE.load(Ordering::Relaxed)) % 2]
}

/// The console port's interrupt.
struct ReceiveInterrupt {
    gsi: u32,
    trigger: Trigger,
    event: Mutex<Option<Arc<IrqEvent>>>,
}

impl IrqOps for ReceiveInterrupt {
    fn available(&self, kind: IrqKind) -> usize {
        usize::from(kind == IrqKind::Intx)
    }

    fn bind(&self, _: IrqKind, _: usize, event: Arc<IrqEvent>) -> Result<(), IrqError> {
        if !irq::bind_input("serial", self.gsi, self.trigger, event.clone()) {
            return Err(IrqError::Exhausted);
        }
        *self.event.lock() = Some(event);
        Ok(())
    }

    fn unbind(&self, _: IrqKind, _: usize) {
        if let Some(event) = self.event.lock().take() {
            irq::unbind(&event);
        }
    }

    fn unmask(&self, _: IrqKind, _: usize) {
        if let Some(event) = self.event.lock().as_ref() {
            irq::unmask_input(self.gsi, event);
        }
    }

    fn restore(&self) {}
}

/// How many vectors are bound for the console's input.
pub fn vectors() -> usize {
    usize::from(LISTENING.load(Ordering::Relaxed))
}

/// Binds the interrupt of the console's input. Without I/O APIC there is none.
pub fn listen() -> Result<IrqLine, IrqError> {
    let port = console();
    let madt = platform().madt.as_ref();
    let (gsi, trigger) = madt.map_or((port.isa.into(), Trigger::ISA), |madt| madt.isa(port.isa));
    let interrupt = ReceiveInterrupt {
        gsi,
        trigger,
        event: Mutex::new(None),
    };
    let mut lines = Interrupts::new(Arc::new(interrupt)).bind(IrqKind::Intx, 1)?;
    port.enable_receive_interrupt();
    LISTENING.store(true, Ordering::Relaxed);
    lines.pop().ok_or(IrqError::Unsupported)
}
