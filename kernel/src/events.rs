//! What costs time on any machine, counted where it happens: one instruction without a lock, on a
//! counter of the running CPU's own ([`hal::cpu::local_inc`]). Any context.

use hal::cpu::{self, COUNTERS, KERNEL_COUNTERS};

/// The kernel's own counters come last: see [`KERNEL_COUNTERS`].
const FIRST: usize = COUNTERS - KERNEL_COUNTERS;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Event {
    /// The heap was asked for a block.
    Allocation = FIRST,
    /// The heap has given a block for a fence.
    FenceMade,
    /// It has taken one back.
    FenceFreed,
    /// A register of a device was read.
    MmioRead,
    /// A register of a device was written.
    MmioWrite,
    /// A buffer is mapped for a transfer: taken back when it is unmapped.
    Transfer,
}

/// Counts one.
#[inline(always)]
pub fn count(event: Event) {
    cpu::local_inc(event as usize);
}

/// Takes one back, on whatever CPU it was counted.
#[inline(always)]
pub fn uncount(event: Event) {
    cpu::local_dec(event as usize);
}

/// How many there were on all CPUs since the start.
pub fn total(event: Event) -> u64 {
    cpu::local_sum(event as usize) as u64
}
