//! The console: a line editor on serial port, screen and keyboard, and the commands.

pub mod line;
pub mod parse;

#[cfg(target_os = "none")]
pub mod commands;
#[cfg(target_os = "none")]
pub mod input;
#[cfg(target_os = "none")]
pub mod jobs;
#[cfg(target_os = "none")]
pub mod pages;
#[cfg(target_os = "none")]
pub mod shell;
