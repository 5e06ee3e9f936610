//! Buffers that devices and CPUs share, none of whom ever sees one half written.
//!
//! A [`Resv`] is the reservation of an object, apart from the object: who has it for the moment, and
//! the fences of the work that uses it. A [`Ticket`] of a [`Manager`] reserves many of them in any
//! order, without deadlock. Its steps are types: [`Reserved`] → [`Waited`] → [`Committed`]; who has
//! committed has published a fence, and waits for the earlier ones without holding anything.
//!
//! A ticket borrows what it reserves, and ends with the task's wait: nothing is freed while it is
//! reserved. All of this runs in task context; waits are futures, and dropping one leaves nothing
//! behind. Lock order: manager → reservation. Up to 16 objects are reserved and committed without
//! allocating.
//!
//! Names and rules follow Linux's dma-buf and dma-resv (Documentation/driver-api/dma-buf.rst) and
//! the proposal and review of 2012 that they grew from.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod commit;
mod earlier;
mod error;
mod manager;
#[cfg(doctest)]
mod misuse;
#[cfg(all(loom, test))]
mod models;
mod outstanding;
mod resv;
mod seq;
#[cfg(all(test, not(loom)))]
mod tests;
mod ticket;
mod usage;

pub use commit::Committed;
pub use earlier::Earlier;
pub use error::ReserveError;
pub use manager::{Manager, Options, SHARED_FENCES, Statistics};
pub use outstanding::{Outstanding, Wanted};
pub use resv::Resv;
pub use seq::Seq;
pub use ticket::{Reserved, Ticket, Waited};
pub use usage::Usage;
