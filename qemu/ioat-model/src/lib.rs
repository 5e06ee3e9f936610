//! An Intel I/OAT (QuickData) engine in software, versions 3.2 to 3.4.
//!
//! [`Engine`] is one PCI function: configuration space, BAR0 and up to eight channels, each with a
//! thread of its own that fetches descriptors from guest memory and carries them out. It knows no
//! transport. Whoever embeds it passes on register accesses ([`Engine::bar_read`] and its kin) and
//! lends it guest memory and interrupts by two traits, [`GuestMemory`] and [`InterruptSink`]. The
//! binary of this package is such an embedding, over vfio-user; the co-simulation is another.
//!
//! Memory: the engine owns its registers and nothing of the guest's. All methods may be called
//! from any thread, at the same time; none waits for longer than a copy of [`CHUNK`] bytes takes,
//! except [`Engine::shutdown`].
//!
//! Behaviour follows what Intel's public datasheets say and, where these are silent, what the
//! drivers of Linux, FreeBSD, SPDK and DPDK need: [`ioat_spec`] names both.

#![forbid(unsafe_code)]

mod channel;
mod channel_registers;
mod config_space;
mod engine;
mod execute;
mod fault;
mod function;
mod memory;
mod options;
mod registers;
mod statistics;
mod strays;
mod worker;

pub use engine::Engine;
pub use execute::CHUNK;
pub use fault::{BadFault, Fault, HELP as FAULT_HELP};
pub use memory::{CopyError, GuestMemory, InterruptSink, MemoryError, Refusal, Requests};
pub use options::{BadConfig, EngineConfig, Irq, MAX_CHANNELS};
pub use statistics::Statistics;
pub use strays::{Aim, PATTERN as STRAY_PATTERN, Stray, StrayCount, Way};
