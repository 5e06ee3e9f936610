//! Lines that people and machines read: on a serial port and on the screen, as far as they are there.

use alloc::string::String;
use core::fmt::{self, Write};

use spin::Mutex;

use crate::{screen, serial};

/// What is held back ([`hold`]) is at most this long; then it is printed as it comes.
const HELD_MAX: usize = 512 << 10;

/// Keeps lines of different CPUs apart; has what is held back.
static LINE: Mutex<Option<String>> = Mutex::new(None);

/// The console, and what is held back.
struct Console<'a>(&'a mut Option<String>);

impl Write for Console<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // It never grows: who is out of memory says so, here.
        match self.0.as_mut() {
            Some(held) if held.capacity() - held.len() >= text.len() => {
                held.push_str(text);
                return Ok(());
            }
            _ => {}
        }
        for text in [self.0.take().as_deref(), Some(text)].into_iter().flatten() {
            serial::console().write(text.as_bytes());
            screen::console::write(text.as_bytes());
        }
        Ok(())
    }
}

/// Holds the console's output back as long as this lives; what has not been taken then is printed.
/// One at a time.
pub struct Held(());

/// Begins to hold output back.
pub fn hold() -> Held {
    let room = String::with_capacity(HELD_MAX);
    *LINE.lock() = Some(room);
    Held(())
}

impl Held {
    /// Ends it, and gives what was held back.
    pub fn take(self) -> String {
        LINE.lock().take().unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = LINE.lock().take();
        if let Some(text) = held {
            print(format_args!("{text}"));
        }
    }
}

struct MachinePort;

impl Write for MachinePort {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::machine().write(text.as_bytes());
        Ok(())
    }
}

/// Prints on the console. See [`crate::print!`].
pub fn print(args: fmt::Arguments<'_>) {
    {
        let mut line = LINE.lock();
        // Printing itself cannot fail; what a `Display` makes of it is its own business.
        let _ = Console(&mut line).write_fmt(args);
        screen::console::draw();
    }
    if serial::given_up() {
        log::warn!("WARN a serial port takes nothing any more, and is not waited for");
    }
}

/// Prints a line on the console and on the port for machine-read lines.
pub fn print_machine_line(args: fmt::Arguments<'_>) {
    let mut line = LINE.lock();
    let _ = Console(&mut line).write_fmt(format_args!("{args}\n"));
    screen::console::draw();
    let _ = MachinePort.write_fmt(format_args!("{args}\n"));
}

/// Prints on the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::output::print(format_args!($($arg)*)) };
}

/// Prints a line on the console.
#[macro_export]
macro_rules! println {
    () => { $crate::output::print(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::output::print(format_args!("{}\n", format_args!($($arg)*))) };
}

/// Prints a line on the console and on the port for machine-read lines.
#[macro_export]
macro_rules! machine_line {
    ($($arg:tt)*) => { $crate::output::print_machine_line(format_args!($($arg)*)) };
}
