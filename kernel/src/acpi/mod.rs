//! What the firmware's tables tell.
//!
//! The crate `acpi` finds the tables and checks their sums; what is inside is read here from their
//! bytes, each access bounded, since firmware cannot be trusted to be well-formed.

pub mod bytes;
pub mod fadt;
pub mod madt;
pub mod mcfg;
#[cfg(target_os = "none")]
mod physical;
pub mod place;
pub mod spcr;
pub mod srat;
pub mod tables;
