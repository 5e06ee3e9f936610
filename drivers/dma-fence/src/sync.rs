//! Atomics and locks that a model checker can replace, for this crate and those above it: the one
//! place that knows of loom. `make loom` builds with `--cfg loom`, and runs the models beside the
//! code alone: nothing else can run in such a build.

pub use core::sync::atomic::Ordering;

/// For numbers that order nothing: never modelled.
pub use core::sync::atomic::AtomicU64 as Counter;

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU64, AtomicUsize, fence};
#[cfg(not(loom))]
pub use spin::Mutex;

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, AtomicUsize, fence};

/// loom's, with the interface of `spin`'s.
#[cfg(loom)]
#[derive(Debug, Default)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    /// A lock that nobody holds.
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Takes the lock.
    pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("a model ends with the first panic")
    }
}
