//! What a machine must offer to Longshore's drivers.
//!
//! The crates above this one (`dmaengine`, `ioat`, `dma-buf`, …) know no kernel: they take a
//! device's resources as the concrete handles defined here, and reach the machine's services
//! (clock, tasks, memory) through the one [`Machine`] that the kernel installs at boot with
//! [`install`]. A kernel that wants these drivers implements:
//!
//! - [`Machine`], the services, once;
//! - [`mmio::MmioOps`], [`pci::ConfigOps`], [`irq::IrqOps`] and [`dma::DmaOps`], once per bus;
//! - the link-time functions listed in [`cpu`], which are on hot paths and so must inline.
//!
//! With the feature `host`, [`host`] implements all of it in a process, for unit tests and for
//! the co-simulation of driver and engine.
//!
//! Contexts: interrupt handlers belong to the kernel and only record that an interrupt came.
//! Everything in this crate and above it runs in task context, unless its documentation says
//! otherwise. Tasks on one CPU never preempt each other.

#![cfg_attr(not(any(test, feature = "host")), no_std)]

extern crate alloc;

pub mod cpu;
pub mod dma;
#[cfg(feature = "host")]
pub mod host;
pub mod irq;
mod machine;
pub mod mmio;
pub mod pci;
pub mod task;
pub mod time;

pub(crate) use machine::machine;
pub use machine::{Machine, RawMemory, RawScattered, TimerId, install};
