//! DMA devices, their channels, and the operations that clients run on them.
//!
//! A provider (a driver such as `ioat`) registers a [`DmaDevice`] with its channels at a
//! [`Registry`]; a client requests a [`Channel`], prepares operations on owned buffer slices,
//! submits them, rings once for all of them with [`Channel::issue_pending`], and awaits their
//! fences. Where no device serves, the CPU does, as the channel `cpu`.
//!
//! Who owns the memory: a prepared [`Descriptor`] owns its buffers, a submitted operation carries
//! them into the provider's ring, and its completion hands them back to whoever awaits. Nobody
//! can touch them in between, and a client that gives up frees nothing that a device still uses.
//! Addresses appear nowhere: the provider maps an operation when it enters its ring, so that the
//! same operation can run on another device.
//!
//! Everything runs in task context. Lock order: a channel's waiting operations → its submit lock →
//! the provider's locks; fences are signalled and callbacks run outside all of them.
//!
//! Names follow Linux's dmaengine (Documentation/driver-api/dmaengine/client.rst, provider.rst).

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod async_tx;
mod capability;
mod chan;
mod channel;
mod client;
mod control;
mod cpu;
mod depend;
mod descriptor;
mod device;
mod failover;
pub mod gf;
mod life;
mod mapped;
#[cfg(doctest)]
mod misuse;
mod operation;
mod pace;
mod prep;
mod provider;
mod public;
mod raid;
mod registry;
mod request;
mod shape;
mod silent;
mod submitted;
mod virt;
mod wait;
mod work;

pub mod dmatest;
#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;

pub use async_tx::{AsyncTx, Copied, CopyError, Sent};
pub use capability::{Capabilities, Flags};
pub use chan::{Counters, DmaChan};
pub use channel::{Channel, SubmitError};
pub use client::Client;
pub use control::PauseError;
pub use depend::waiting;
pub use descriptor::Descriptor;
pub use device::{DeviceInfo, DmaDevice, Phase};
pub use life::RequestError;
pub use mapped::Mapped;
pub use operation::{Cookie, Operation};
pub use prep::{PrepError, PrepReason};
pub use provider::{BoxFuture, ChannelOps, Rejected, StartError, SubmitReason};
pub use public::{ChanRef, Draining, Interest, Offers, Opened, Slots, Transaction};
pub use raid::{Pq, PqVal, Sources, SumCheck, Weighted, Xor, XorVal};
pub use registry::{InUse, Quiesced, RegisterError, Registry, Removal, registry};
pub use request::{Lookup, Mapping, Place};
pub use submitted::{Finished, Submitted};
pub use work::{Interrupt, Kind, Memcpy, Memset, Work};
