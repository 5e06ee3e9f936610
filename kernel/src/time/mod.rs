//! The clock and the timers.

#[cfg(target_os = "none")]
pub mod clock;
pub mod offset;
pub mod queue;
#[cfg(target_os = "none")]
pub mod timers;
