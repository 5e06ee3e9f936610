//! Native PCI Express hot plug: cards that come into a port's slot and leave it, by the attention
//! button or without a word. PCI Express Base 6.7.
//!
//! A [`Port`] is a root port or a switch's downstream port, by its registers. A [`Slot`] drives the
//! one of a port that has one: its task reads what happened, moves a [`Controller`] on, which alone
//! decides, and does what that wants: power, indicators, and the [`Occupants`] brought into use or
//! taken out of it. Who the occupants are, their owner knows: this crate touches nothing behind the
//! port.
//!
//! Every wait has a limit ([`Options`]). Everything runs in task context; nothing is called from an
//! interrupt.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod card;
mod command;
mod controller;
#[cfg(test)]
mod fake;
mod options;
mod port;
pub mod registers;
mod slot;
#[cfg(test)]
mod tests;

pub use card::Card;
pub use controller::{Controller, Events, Input, Levels, State};
pub use options::Options;
pub use port::{Port, answers};
pub use slot::{Handle, How, Masked, Occupants, Slot};
