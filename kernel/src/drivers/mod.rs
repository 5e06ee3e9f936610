//! Which driver gets which device, and this kernel's side of the `hal`.

#[cfg(target_os = "none")]
pub mod audit;
#[cfg(target_os = "none")]
pub mod dma;
#[cfg(target_os = "none")]
pub mod machine;

/// Hands every function that a driver knows to that driver.
#[cfg(target_os = "none")]
pub async fn probe_all() {}

/// Calls `each` with every engine that a driver has taken.
#[cfg(target_os = "none")]
pub fn engines(_: impl FnMut(hal::pci::Address, &dyn core::fmt::Display)) {}

/// How many vectors the drivers have reason for.
#[cfg(target_os = "none")]
pub fn vectors() -> usize {
    0
}
