//! Stacks, each above a guard page.

use core::ops::Range;

use super::virt;

/// Bytes below a stack that are never mapped.
pub const GUARD: u64 = super::PAGE as u64;
/// Bytes in a stack for tasks.
pub const SIZE: u64 = 64 << 10;
const INTERRUPT_SIZE: u64 = 16 << 10;

/// Mapped memory for a stack that nobody uses yet.
#[derive(Debug)]
pub struct Stack(Range<u64>);

impl Stack {
    /// A stack for tasks: 64 KiB. `None` where memory is short.
    pub fn new() -> Option<Self> {
        virt::map_memory(GUARD, SIZE).map(Self)
    }

    /// The lowest address; the guard page lies right below.
    pub fn bottom(&self) -> u64 {
        self.0.start
    }

    /// Hands the stack to a CPU, which keeps it for good. Returns its top.
    pub fn leak(self) -> u64 {
        self.0.end
    }
}

/// Tops of fresh stacks for double faults, NMIs and machine checks. Where memory is too short even
/// for these, a zero: such a trap then resets the machine.
pub fn interrupt_stacks() -> [u64; 3] {
    core::array::from_fn(|_| virt::map_memory(GUARD, INTERRUPT_SIZE).map_or(0, |stack| stack.end))
}
