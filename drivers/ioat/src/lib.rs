//! The Intel I/OAT (QuickData, CBDMA) driver, versions 3.2 to 3.4.
//!
//! [`probe()`] takes a PCI function, brings the engine into a known state whoever had it before,
//! and registers its channels with a [`dmaengine::Registry`]; [`Engine::remove`] is the way back.
//!
//! | Module | Holds |
//! |---|---|
//! | `probe` | identity checks, registration, removal |
//! | `device` | what a function's channels share |
//! | `presence` | whether it is there and of use |
//! | `regs` | one channel's registers, silent once the engine is gone |
//! | `dump` | all registers by name, for people |
//! | `hardware` | suspend, reset, start: every wait bounded |
//! | `ring` | descriptor memory and the completion word |
//! | `queue` | what is in the ring, from who submits to who completes: indices, locks, order |
//! | `split` | cutting an operation into descriptors |
//! | `chan` | submitting, the doorbell, retiring |
//! | `service` | a channel's task: interrupts, watchdog, recovery |
//!
//! Who owns the memory: a channel owns its ring from start to stop, and each operation in it with
//! its buffers and mappings until the engine has written back that it is done. In the steady state
//! no register is read: completions come from memory, and the interrupt is re-armed by a write.
//!
//! Lock order: producer → cleaner; fences are signalled outside both. All in task context.
//!
//! Hardware facts are cited where they are used; the numbers are in `ioat-spec`.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod chan;
mod device;
mod dump;
mod error;
mod hardware;
mod options;
mod presence;
mod probe;
mod queue;
mod regs;
mod ring;
mod service;
mod split;

pub use dump::Registers;
pub use error::{ProbeError, ResetError};
pub use options::{Interrupt, Options};
pub use probe::{Engine, matches, probe, probe_with};
