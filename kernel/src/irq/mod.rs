//! Interrupts: vectors and their owners, and where PCI pins lead.

pub mod intx;
#[cfg(target_os = "none")]
mod vectors;

#[cfg(target_os = "none")]
pub use vectors::*;
