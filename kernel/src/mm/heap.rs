//! The heap: small objects of the kernel and its drivers. Grows by whole pages, never shrinks.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use dma_fence::Fence;
use linked_list_allocator::Heap;
use spin::Mutex;

use super::virt;
use crate::events::{self, Event};

/// How much the heap grows at least.
const STEP: usize = 256 << 10;

static FENCES: AtomicUsize = AtomicUsize::new(0);

struct KernelHeap(Mutex<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Mutex::new(Heap::empty()));

// SAFETY: blocks come from the heap behind one lock, over memory that only it hands out.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        events::count(Event::Allocation);
        let mut heap = self.0.lock();
        let block = heap.allocate_first_fit(layout).or_else(|()| {
            grow(&mut heap, layout)?;
            heap.allocate_first_fit(layout)
        });
        if block.is_ok() && layout == Fence::block() {
            FENCES.fetch_add(1, Ordering::Relaxed);
        }
        block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: by the contract of `dealloc`.
            unsafe { self.0.lock().deallocate(block, layout) };
            if layout == Fence::block() {
                FENCES.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Adds memory for `layout` at the heap's end. The frame allocator and the page tables below do
/// not use the heap.
fn grow(heap: &mut Heap, layout: Layout) -> Result<(), ()> {
    let wanted = layout.size().checked_add(layout.align()).ok_or(())?;
    let step = wanted.checked_next_multiple_of(STEP).ok_or(())?;
    let (start, end) = (virt::HEAP.start, virt::HEAP.end);
    let top = if heap.size() == 0 {
        start
    } else {
        start + heap.size() as u64
    };
    if top + step as u64 > end {
        return Err(());
    }
    // What was mapped belongs to the heap, even where it is less than was asked for.
    let grown = virt::fill(top, step as u64) as usize;
    if grown == 0 {
        return Err(());
    }
    if heap.size() == 0 {
        // SAFETY: fresh memory, the heap's alone.
        unsafe { heap.init(start as *mut u8, grown) };
    } else {
        // SAFETY: fresh memory right behind the heap's end.
        unsafe { heap.extend(grown) };
    }
    if grown == step { Ok(()) } else { Err(()) }
}

/// How many fences exist: the heap's own count of their blocks.
pub fn fences() -> usize {
    FENCES.load(Ordering::Relaxed)
}

/// Bytes in use, and bytes the heap has taken.
pub fn usage() -> (usize, usize) {
    let heap = HEAP.0.lock();
    (heap.used(), heap.size())
}
