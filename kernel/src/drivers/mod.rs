//! Which driver gets which device, and this kernel's side of the `hal`.

#[cfg(target_os = "none")]
pub mod dma;
#[cfg(target_os = "none")]
pub mod machine;

/// Hands every function that a driver knows to that driver.
#[cfg(target_os = "none")]
pub async fn probe_all() {}
