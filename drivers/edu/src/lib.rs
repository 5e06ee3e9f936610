//! The driver of QEMU's educational device, `-device edu`, as a provider of one memcpy channel.
//!
//! The device has no ring, no scatter and no copy: it moves up to 4 KiB between memory and a
//! buffer of its own, in 100 ms, with 28 address lines. A copy is a series of chunks, each from
//! memory to the buffer and from there to memory; where the memory lies out of reach, by way of a
//! bounce buffer. That keeps the layer above honest about limits. Its channel is private: nobody
//! gets it who did not ask for it.
//!
//! [`probe()`] takes a PCI function and registers its channel with a [`dmaengine::Registry`];
//! [`Device::remove`] is the way back.
//!
//! | Module | Holds |
//! |---|---|
//! | `probe` | identity checks, registration, the interrupt, removal |
//! | `hardware` | registers and one transfer, silent once the device is gone |
//! | `chunk` | an operation's memory as the device reaches it, cut into chunks |
//! | `chan` | submitting, giving up, the channel's state |
//! | `service` | the channel's task, which does the copies |
//!
//! Who owns the memory: the channel owns the bounce buffer from start to stop, and each operation
//! with its buffers and mappings until its last transfer has ended. A transfer cannot be stopped:
//! where one does not end in time, bus mastering is turned off before the buffers are let go.
//!
//! Everything runs in task context; fences are signalled outside all locks.
//!
//! Hardware facts: QEMU, docs/specs/edu.rst.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod chan;
mod chunk;
mod error;
mod hardware;
mod options;
mod probe;
mod service;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use error::ProbeError;
pub use options::Options;
pub use probe::{Device, matches, probe, probe_with};
