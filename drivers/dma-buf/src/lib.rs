//! Buffers that devices and CPUs share, none of whom ever sees one half written.
//!
//! A [`Resv`] is the reservation of an object, apart from the object: who has it for the moment, and
//! the fences of the work that uses it. A [`Ticket`] of a [`Manager`] reserves many of them in any
//! order, without deadlock. Its steps are types: [`Reserved`] → [`Waited`] → [`Committed`]; who has
//! committed has published a fence, and waits for the earlier ones without holding anything.
//!
//! A [`DmaBuf`] is memory of an [`Exporter`], in chunks anywhere, with a reservation. Devices attach
//! ([`Attachment`]) and have accesses that begin and end, as CPUs have ([`CpuRead`], [`CpuWrite`]);
//! [`copy`], [`fill`] and [`Pipeline`]s of them use engines or the CPU. Fences say in which order;
//! ownership sees to it: a chunk that is written is lent as a whole to who writes it, one that is
//! read is shared, and nobody has a way around that.
//!
//! A ticket borrows what it reserves, and ends with the task's wait: nothing is freed while it is
//! reserved. All of this runs in task context; waits are futures, and dropping one leaves nothing
//! behind. Lock order: manager → reservation; a buffer's chunks and its attachments have locks of
//! their own, inside which no other is taken. Up to 16 objects are reserved, waited for and committed
//! without allocating; but who signals before what his fence replaces has been leaves that to a task.
//!
//! Names and rules follow Linux's dma-buf and dma-resv (Documentation/driver-api/dma-buf.rst) and
//! the proposal and review of 2012 that they grew from.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod attach;
mod buffer;
mod commit;
mod earlier;
mod error;
mod evict;
mod exporter;
mod loan;
mod manager;
#[cfg(doctest)]
mod misuse;
#[cfg(all(loom, test))]
mod models;
mod outstanding;
mod pages;
mod resv;
mod seq;
#[cfg(all(test, not(loom)))]
mod tests;
mod ticket;
mod transfer;
mod usage;

pub use attach::{AttachFlags, Attachment, DmaAccess, Importer, MoveNotify};
pub use buffer::{CpuRead, CpuWrite, DmaBuf, Pin, buffers};
pub use commit::Committed;
pub use earlier::Earlier;
pub use error::{BufError, ReserveError};
pub use exporter::{Chunked, Exporter};
pub use manager::{Manager, Options, SHARED_FENCES, Statistics, manager};
pub use outstanding::{Outstanding, Wanted};
pub use resv::Resv;
pub use seq::Seq;
pub use ticket::{Reserved, Ticket, Waited};
pub use transfer::{Pipeline, Transfer, copy, copy_range, fill, fill_range};
pub use usage::Usage;
