//! Physical memory, in blocks of whole pages.
//!
//! Three zones by how many address lines a device needs to reach them. Each is a buddy heap whose
//! lists live in the free memory itself. Task context only.

use core::alloc::Layout;
use core::ptr::NonNull;

use super::PAGE;
use buddy_system_allocator::Heap;

/// The zones' ends: the first is within reach of 28-bit devices, the second of 32-bit devices.
const ENDS: [u64; 3] = [1 << 28, 1 << 32, u64::MAX];

/// Blocks of up to 2^38 bytes.
const ORDERS: usize = 40;

/// Physical memory that can be allocated.
pub struct Frames {
    /// What to add to a physical address to reach the memory.
    offset: u64,
    zones: [Heap<ORDERS>; 3],
    total: u64,
    used: u64,
}

impl Frames {
    /// No memory yet. It will be reached at its physical address plus `offset`.
    pub const fn new(offset: u64) -> Self {
        Self {
            offset,
            zones: [Heap::empty(), Heap::empty(), Heap::empty()],
            total: 0,
            used: 0,
        }
    }

    /// Adds the whole pages in `start..end`.
    ///
    /// # Safety
    /// The memory is mapped writable at `offset`, and nobody else uses it from now on.
    pub unsafe fn add(&mut self, start: u64, end: u64) {
        let mut start = start.next_multiple_of(PAGE as u64);
        let end = end & !(PAGE as u64 - 1);
        for (zone, limit) in self.zones.iter_mut().zip(ENDS) {
            let part = end.min(limit);
            if start < part {
                // SAFETY: handed on from the caller.
                unsafe {
                    zone.add_to_heap(
                        (start + self.offset) as usize,
                        (part + self.offset) as usize,
                    );
                }
                self.total += part - start;
                start = part;
            }
        }
    }

    /// `len` bytes (whole pages), aligned to `align`, all below `limit`, from the highest zone
    /// that allows it: low memory is for devices that need it.
    pub fn alloc(&mut self, len: usize, align: usize, limit: u64) -> Option<u64> {
        let layout = Self::layout(len, align)?;
        for index in (0..self.zones.len()).rev() {
            // A zone that reaches above the limit may still hold memory below it.
            let start = if index == 0 { 0 } else { ENDS[index - 1] };
            if start >= limit {
                continue;
            }
            let zone = &mut self.zones[index];
            let Ok(block) = zone.alloc(layout) else {
                continue;
            };
            let phys = block.as_ptr() as u64 - self.offset;
            if phys.checked_add(len as u64).is_some_and(|end| end <= limit) {
                self.used += layout.size() as u64;
                return Some(phys);
            }
            // SAFETY: just allocated with this layout.
            unsafe { zone.dealloc(block, layout) };
        }
        None
    }

    /// Takes back what [`Frames::alloc`] gave for the same `len` and `align`.
    ///
    /// # Safety
    /// It was allocated so, is not freed yet, and nobody uses it any more.
    pub unsafe fn free(&mut self, phys: u64, len: usize, align: usize) {
        let Some(layout) = Self::layout(len, align) else {
            return;
        };
        let index = ENDS
            .iter()
            .position(|&end| phys < end)
            .unwrap_or(ENDS.len() - 1);
        if let Some(block) = NonNull::new((phys + self.offset) as *mut u8) {
            // SAFETY: handed on from the caller.
            unsafe { self.zones[index].dealloc(block, layout) };
            self.used -= layout.size() as u64;
        }
    }

    /// All memory that was added, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What is allocated, in bytes: blocks are powers of two.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// What a block really takes: the buddy heap rounds up to a power of two, as large as its
    /// alignment at least.
    fn layout(len: usize, align: usize) -> Option<Layout> {
        let size = len.max(align).max(PAGE).checked_next_power_of_two()?;
        if size >= 1 << (ORDERS - 1) {
            return None;
        }
        Layout::from_size_align(size, PAGE).ok()
    }
}

/// The machine's memory.
#[cfg(target_os = "none")]
pub static FRAMES: spin::Mutex<Frames> = spin::Mutex::new(Frames::new(super::DIRECT));

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::alloc::{alloc, dealloc};
    use alloc::vec::Vec;

    /// Frames over host memory that pretends to lie at `phys`.
    fn with_frames(phys: u64, len: usize, test: impl FnOnce(&mut Frames)) {
        let layout = Layout::from_size_align(len, 1 << 20).unwrap();
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc(layout) };
        let mut frames = Frames::new((memory as u64).wrapping_sub(phys));
        // SAFETY: the memory is ours.
        unsafe { frames.add(phys, phys + len as u64) };
        test(&mut frames);
        // SAFETY: as allocated.
        unsafe { dealloc(memory, layout) };
    }

    #[test]
    fn everything_comes_back() {
        with_frames(1 << 20, 1 << 20, |frames| {
            assert_eq!((frames.total(), frames.used()), (1 << 20, 0));
            let blocks: Vec<_> =
                core::iter::from_fn(|| frames.alloc(PAGE, PAGE, u64::MAX)).collect();
            assert_eq!(blocks.len(), 256);
            assert_eq!(frames.used(), 1 << 20);
            for phys in blocks {
                // SAFETY: allocated above, once.
                unsafe { frames.free(phys, PAGE, PAGE) };
            }
            assert_eq!(frames.used(), 0);
            assert!(
                frames.alloc(1 << 20, PAGE, u64::MAX).is_some(),
                "merged again"
            );
        });
    }

    #[test]
    fn limits_and_alignment_are_kept() {
        with_frames((1 << 28) - (1 << 19), 1 << 20, |frames| {
            assert_eq!(
                frames.alloc(1 << 19, PAGE, 1 << 28),
                Some((1 << 28) - (1 << 19))
            );
            assert_eq!(frames.alloc(PAGE, PAGE, 1 << 28), None);
            assert_eq!(
                frames.alloc(3 * PAGE, 1 << 18, u64::MAX).unwrap() % (1 << 18),
                0
            );
            assert_eq!(frames.alloc(usize::MAX, PAGE, u64::MAX), None);
        });
    }
}
