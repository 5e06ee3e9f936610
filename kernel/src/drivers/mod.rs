//! Which driver gets which device, and this kernel's side of the `hal`.

#[cfg(target_os = "none")]
pub mod audit;
#[cfg(target_os = "none")]
pub mod dma;
#[cfg(target_os = "none")]
mod engines;
#[cfg(target_os = "none")]
pub mod hotplug;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod removal;

#[cfg(target_os = "none")]
pub use engines::{
    all, describe, doorbells, errata, fences, knows, name, probe_all, registers, takes, vectors,
};
