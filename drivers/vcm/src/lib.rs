//! Virtually contiguous memory: ranges of addresses that a device, or a CPU, sees as one, over
//! physical memory that is scattered.
//!
//! A [`Vcm`] is one address space behind one memory-management unit, an [`Mmu`]. Who wants a range
//! of it makes a [`Reservation`], and binds [`Physical`] memory to it; [`Vcm::map`] does both. A
//! reservation is shared by cloning it: each clone owns it, and when the last one is dropped, in
//! whatever order, the range is unreserved. Nobody can do that earlier, and a [`WeakReservation`]
//! brings no dead one back.
//!
//! What lives no longer than a transfer has no object: [`Vcm::map_streaming`] and
//! [`Vcm::unmap_streaming`] find a range again in a few instructions, allocating nothing.
//!
//! Memory that is bound belongs to who keeps it ([`Physical::kept_by`]), and is let go of only when
//! the unit has said that it caches no translation to it any more. Where it does not say so in time,
//! memory and addresses are withheld for good.
//!
//! All of this runs in task context. A unit is called with no lock held but that of the reservation
//! in question, or that of the activation.
//!
//! Names and rules follow the virtual contiguous memory of Samsung's proposal to Linux (2010).
//! README.md lists what is promised.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod context;
mod error;
#[cfg(test)]
mod fake;
mod misuse;
mod mmu;
mod one_to_one;
mod pages;
mod physical;
#[cfg(all(test, feature = "refcount"))]
mod property;
mod request;
mod reservation;
mod space;
#[cfg(test)]
mod tests;

pub use context::{Active, Statistics, Vcm, contexts};
pub use error::{Error, MmuError};
pub use mmu::{Access, Mmu};
pub use one_to_one::OneToOne;
pub use pages::{PageSize, PageSizes, Run};
pub use physical::Physical;
pub use request::Request;
pub use reservation::{Info, Reservation, WeakReservation};
