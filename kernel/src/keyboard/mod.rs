//! The keyboard of a PC, on its own plug: PS/2. USB keyboards are out of scope, but for those that
//! firmware makes look like one.

#[cfg(target_os = "none")]
pub mod controller;
pub mod keys;
