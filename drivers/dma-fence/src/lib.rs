//! Fences: the completion of asynchronous work, as one object that everybody can wait for.
//!
//! A [`Signaler`] belongs to whoever does the work and signals exactly once; dropping it signals
//! an error, so that nobody waits for ever. Its [`Fence`]s are cheap clones for observers: they
//! ask, await, or leave a callback. Fences are numbered `CONTEXT:SEQNO`: those of one context
//! (a channel, a timeline) are signalled in the order of their numbers, those of different
//! contexts in any order.
//!
//! | made by | signalled |
//! |---|---|
//! | [`Context::fence`], [`Fence::new`] | by software |
//! | [`Fence::all`], [`Fence::any`] | with the last of some fences, or the first |
//! | [`Chain`] | when the work of a point, and of all points before it, has ended |
//! | [`SeqnoFences`] | when an engine has counted a word in memory up |
//! | [`Timeline`] | when software has |
//! | [`Fence::lazy`], [`Fence::with_ops`] | as its [`FenceOps`] say |
//!
//! All but the first are armed by the first who waits: an engine need not interrupt for what nobody
//! waits for. Until then they are looked at when they are asked.
//!
//! A fence owns no memory but its own, and what its kind keeps. It outlives whoever issued it. All
//! of this runs in task context: the fence's lock is held for a few instructions, without running
//! code of others, but an interrupt that signalled could find it taken by what it interrupts. An
//! interrupt wakes the task that signals. Callbacks and wakers run on the signaler's stack, outside
//! every lock of this crate.
//!
//! Names and rules follow Linux's dma-fence (Documentation/driver-api/dma-buf.rst). README.md lists
//! what is promised.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod array;
mod chain;
mod context;
mod error;
mod fence;
#[cfg(all(loom, test))]
mod models;
mod ops;
mod seqno;
pub mod sync;
#[cfg(test)]
mod testing;
#[cfg(all(test, not(loom)))]
mod tests;
mod timeline;
mod wait;

pub use chain::{BadPoint, Chain};
pub use context::{Context, next_context};
pub use error::FenceError;
pub use fence::{AlreadySignalled, CallbackId, Fence, Parcel, Signaler};
pub use ops::{FenceOps, Ops};
pub use seqno::{SeqnoFences, SeqnoWord};
pub use timeline::Timeline;
pub use wait::{TimedOut, Wait};
