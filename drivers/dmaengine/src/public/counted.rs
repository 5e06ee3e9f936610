//! References that are counted: a build that removes devices in use (feature `hotplug`).
//!
//! A reference is one count in the finder's CPU-local counter of the channel's slot. Finding one
//! loads the slot from this CPU's table, counts, and looks at the table again: where it has
//! changed, the count is taken back and the search starts over. So once a channel has left all
//! tables and every CPU has gone through a barrier, no new reference can appear and every one that
//! exists is counted ([`super::drain`]).
//!
//! Task context. Between the first look and the second a task neither waits nor moves; an
//! interrupt may come between, and may find and put references itself; a non-maskable one not.

use core::sync::atomic::{AtomicU8, Ordering};

use hal::cpu;

use super::slot::Number;

/// Finds the slot that `entry` of this CPU's table names, with a reference to it. A search in vain
/// counts nothing.
#[inline(always)]
pub(crate) fn find(entry: &AtomicU8) -> Option<Number> {
    loop {
        // Sequentially consistent loads are plain ones on x86; a machine whose counters are
        // sequentially consistent, as the host's, needs no barrier then.
        let slot = Number::new(entry.load(Ordering::SeqCst))?;
        get(slot);
        if entry.load(Ordering::SeqCst) == slot.get() {
            return Some(slot);
        }
        put(slot);
    }
}

/// One more reference to a slot.
#[inline(always)]
pub(crate) fn get(slot: Number) {
    cpu::local_inc(usize::from(slot.get()));
}

/// One less.
#[inline(always)]
pub(crate) fn put(slot: Number) {
    cpu::local_dec(usize::from(slot.get()));
}

/// References to a slot. Exact, once it drains and [`settle`] has passed, when it is 0; else an
/// estimate, too high by finders on their way and too low or high by those that move.
pub(crate) fn references(slot: Number) -> isize {
    cpu::local_sum(usize::from(slot.get()))
}

/// Whether, of slots that were marked and taken out of all tables before, a count of 0 proves from
/// now on that nobody refers to them. It does not where a CPU did not answer the barrier.
pub(crate) fn settle(_interest: usize) -> bool {
    cpu::barrier().is_ok()
}
