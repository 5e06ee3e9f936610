//! Fences: the completion of asynchronous work, as one object that everybody can wait for.
//!
//! A [`Signaler`] belongs to whoever does the work and signals exactly once; dropping it signals
//! an error, so that nobody waits for ever. Its [`Fence`]s are cheap clones for observers: they
//! ask, await, or leave a callback. Fences are numbered `CONTEXT:SEQNO`: those of one context
//! (a channel, a timeline) are signalled in the order of their numbers, those of different
//! contexts in any order.
//!
//! A fence owns no memory but its own and outlives whoever issued it. All of this runs in task
//! context; callbacks and wakers run on the signaler's stack, outside every lock of this crate.
//!
//! Names and rules follow Linux's dma-fence (Documentation/driver-api/dma-buf.rst).

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
pub use fence::{AlreadySignalled, CallbackId, Fence, Signaler};
pub use ops::FenceOps;
pub use seqno::{SeqnoFences, SeqnoWord};
pub use timeline::Timeline;
pub use wait::{TimedOut, Wait};
