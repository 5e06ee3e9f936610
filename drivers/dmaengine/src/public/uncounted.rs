//! References that are not counted: a build that removes idle devices only (no feature `hotplug`).
//!
//! Finding a channel is one load from this CPU's table; putting it is nothing. What is known of
//! references is that clients have some only while they are interested: who gives its interest up
//! has put them all before. So a device that nobody is interested in can leave. Of one that leaves
//! all the same, because its hardware has vanished, nobody can say when its last reference goes:
//! its slots are not used again.

use core::sync::atomic::{AtomicU8, Ordering};

use super::slot::Number;

/// The slot that `entry` of this CPU's table names.
#[inline(always)]
pub(crate) fn find(entry: &AtomicU8) -> Option<Number> {
    Number::new(entry.load(Ordering::SeqCst))
}

/// One more reference to a slot: nothing to do.
#[inline(always)]
pub(crate) fn get(_slot: Number) {}

/// One less: nothing to do.
#[inline(always)]
pub(crate) fn put(_slot: Number) {}

/// References that are counted: none.
pub(crate) fn references(_slot: Number) -> isize {
    0
}

/// Whether nobody refers to slots that left all tables when so many clients were interested.
pub(crate) fn settle(interest: usize) -> bool {
    interest == 0
}
