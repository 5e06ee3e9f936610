//! PCI Express: finding functions, giving them addresses, handing them to drivers.
//!
//! [`scan`], [`bars`], [`assign`], [`slots`] and [`isolation`] are logic over
//! [`hal::pci::Config`] and run on the host as well; the rest is how this machine reaches functions
//! and binds their interrupts.

pub mod assign;
pub mod bars;
pub mod isolation;
pub mod names;
pub mod scan;
pub mod slots;

#[cfg(target_os = "none")]
pub mod access;
#[cfg(target_os = "none")]
pub mod bus;
#[cfg(target_os = "none")]
pub mod interrupts;
