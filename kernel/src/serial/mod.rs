//! The two serial ports: one for people, one for machines.
//!
//! Output waits for the transmitter, bounded: a port that does not drain loses what it is given,
//! and after some lines is asked only whether it drains again. Input comes by interrupt
//! ([`crate::console::input`]).

#[cfg(any(test, target_os = "none"))]
mod line;
#[cfg(target_os = "none")]
mod ports;

#[cfg(target_os = "none")]
pub use ports::*;
