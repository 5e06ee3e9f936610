//! A heap that counts, for tests of what allocates.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;

/// The system's heap, which counts the blocks that each thread asks it for. A test makes it its
/// `#[global_allocator]`.
pub struct CountingHeap;

std::thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

impl CountingHeap {
    /// How many blocks this thread has asked for.
    pub fn count() -> usize {
        COUNT.get()
    }
}

// SAFETY: blocks are the system's, passed through; the counter allocates nothing.
unsafe impl GlobalAlloc for CountingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: by the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: by the contract of `dealloc`; the block is the system's.
        unsafe { System.dealloc(block, layout) }
    }
}
