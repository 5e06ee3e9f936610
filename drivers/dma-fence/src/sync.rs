//! The one place where this crate takes its atomics and locks from, so that a model checker can
//! replace them.

pub(crate) use core::sync::atomic::{AtomicU64, Ordering};
pub(crate) use spin::Mutex;

#[cfg(test)]
pub(crate) use core::sync::atomic::AtomicUsize;
