//! The console: a line editor on the serial port, and the commands.

pub mod line;
pub mod parse;

#[cfg(target_os = "none")]
pub mod commands;
#[cfg(target_os = "none")]
pub mod input;
#[cfg(target_os = "none")]
pub mod jobs;
#[cfg(target_os = "none")]
pub mod shell;
