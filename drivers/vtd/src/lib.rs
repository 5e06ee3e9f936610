//! Intel VT-d: units that translate the addresses of devices and check their interrupts.
//!
//! A [`Unit`] stands between devices and memory. From [`Unit::enable`] on a device reaches what its
//! [`Domain`] maps, and nothing else; a device without a domain reaches nothing. Which unit is above
//! which device says the firmware's table, [`Dmar`].
//!
//! - Tables are [`hal::dma::Coherent`] memory of the unit's own space, whose addresses are physical.
//!   They belong to the unit and its domains; hardware only reads them.
//! - All waits end: a unit that does not answer within [`unit::ANSWER_LIMIT`] is left alone from then
//!   on, and everything asked of it fails.
//! - Task context only. Locks are spin locks; the order is tables → contexts → invalidation.
//!
//! Sections cited are those of Intel's "Virtualization Technology for Directed I/O, Architecture
//! Specification", revision 4.1.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod capabilities;
mod contexts;
pub mod dmar;
mod domain;
mod error;
#[cfg(test)]
mod fake;
mod fault;
mod invalidate;
mod mappings;
mod mmu;
mod registers;
mod remap;
mod tables;
#[cfg(test)]
mod tests;
pub mod unit;

pub use capabilities::{Capabilities, Features};
pub use dmar::Dmar;
pub use domain::Domain;
pub use error::Error;
pub use fault::{Access, Fault, Reporter, Telling};
pub use mappings::Mappings;
pub use mmu::Window;
pub use remap::{Message, Target};
pub use tables::{Permissions, Translation};
pub use unit::{Unit, register_bytes};
