//! Lines that people and machines read.

use core::fmt::{self, Write};

use spin::Mutex;

use crate::serial;

/// Keeps lines of different CPUs apart.
static LINE: Mutex<()> = Mutex::new(());

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::console().write(text.as_bytes());
        Ok(())
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
    let _line = LINE.lock();
    // Printing itself cannot fail; what a `Display` makes of it is its own business.
    let _ = Console.write_fmt(args);
}

/// Prints a line on the console and on the port for machine-read lines.
pub fn print_machine_line(args: fmt::Arguments<'_>) {
    let _line = LINE.lock();
    let _ = Console.write_fmt(format_args!("{args}\n"));
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
