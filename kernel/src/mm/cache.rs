//! Blocks of small sizes, kept where they were freed: each CPU has a list of free ones for every
//! size, so that most allocations take no lock and search nothing.
//!
//! A list belongs to its CPU. Tasks of one CPU do not preempt each other and interrupts do not
//! allocate, so that taking and putting a block needs no care beyond its few instructions. A block
//! freed on another CPU than it was taken on changes lists. What a full list does not take goes to
//! those that all CPUs share, which have no limit: a block of a class stays one. So the heap below,
//! which searches, does not fall into thousands of pieces.

use core::alloc::Layout;
use core::ptr::NonNull;

/// The smallest class is of 16 bytes, each next one of twice as many.
const SMALLEST: u32 = 4;
/// How many classes there are: the largest is of 1 KiB.
pub(super) const CLASSES: usize = 7;
/// No class is aligned to more: what needs more is no cached block.
const ALIGN: usize = 64;
/// Bytes that a list keeps at most.
const KEPT: usize = 16 << 10;

/// A size of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(usize);

impl Class {
    /// The class of the blocks that serve `layout`. `None` where it is too large.
    #[inline]
    pub(super) fn of(layout: Layout) -> Option<Self> {
        let size = layout.size().max(layout.align()).max(1 << SMALLEST);
        let class = (usize::BITS - (size - 1).leading_zeros() - SMALLEST) as usize;
        (class < CLASSES && layout.align() <= ALIGN).then_some(Self(class))
    }

    /// All classes.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..CLASSES).map(Self)
    }

    /// What the heap is asked for.
    pub(super) fn layout(self) -> Layout {
        let size = 1 << (SMALLEST as usize + self.0);
        // A power of two is a good alignment, and blocks are far from the end of the address space.
        Layout::from_size_align(size, size.min(ALIGN)).unwrap_or(Layout::new::<[u64; 128]>())
    }

    fn limit(self) -> usize {
        KEPT >> (SMALLEST as usize + self.0)
    }
}

/// A free block: its first word leads to the next.
struct Free {
    next: Option<NonNull<Free>>,
}

/// Free blocks of one class.
struct List {
    first: Option<NonNull<Free>>,
    count: usize,
}

impl List {
    const fn new() -> Self {
        Self {
            first: None,
            count: 0,
        }
    }
}

/// Free blocks: of one CPU, or those that all share.
pub(super) struct Lists([List; CLASSES]);

// SAFETY: the lists own their blocks.
unsafe impl Send for Lists {}

impl Lists {
    pub(super) const fn new() -> Self {
        Self([const { List::new() }; CLASSES])
    }

    /// Takes a block.
    #[inline]
    pub(super) fn take(&mut self, class: Class) -> Option<NonNull<u8>> {
        let list = &mut self.0[class.0];
        let block = list.first?;
        // SAFETY: a block in the list belongs to it, and starts with the link that `put` wrote.
        list.first = unsafe { block.read() }.next;
        list.count -= 1;
        Some(block.cast())
    }

    /// Puts a block; `false` where the list is as long as a CPU's may be.
    ///
    /// # Safety
    /// As for [`Lists::keep`], unless it gives `false`.
    #[inline]
    pub(super) unsafe fn put(&mut self, class: Class, block: NonNull<u8>) -> bool {
        let fits = self.0[class.0].count < class.limit();
        if fits {
            // SAFETY: handed on from the caller.
            unsafe { self.keep(class, block) };
        }
        fits
    }

    /// Puts a block, however many there are.
    ///
    /// # Safety
    /// The block has the layout of its class and nobody uses it any more. Where it was put, it
    /// belongs to the list.
    #[inline]
    pub(super) unsafe fn keep(&mut self, class: Class, block: NonNull<u8>) {
        let list = &mut self.0[class.0];
        let block = block.cast::<Free>();
        // SAFETY: by the contract, memory of ours, large and aligned enough for a link.
        unsafe { block.write(Free { next: list.first }) };
        list.first = Some(block);
        list.count += 1;
    }

    /// Bytes in all of them.
    pub(super) fn bytes(&self) -> usize {
        let lists = Class::all().zip(&self.0);
        lists
            .map(|(class, list)| list.count * class.layout().size())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn classes_end_at_their_limits() {
        let class = |size, align| Class::of(layout(size, align)).map(|class| class.0);
        assert_eq!(class(0, 1), Some(0));
        assert_eq!((class(16, 8), class(17, 8)), (Some(0), Some(1)));
        assert_eq!((class(1, 64), class(1, 128)), (Some(2), None));
        assert_eq!((class(1024, 8), class(1025, 8)), (Some(6), None));
        assert_eq!(class(isize::MAX as usize - 7, 8), None);
        assert_eq!(Class(6).layout(), layout(1024, 64));
        assert_eq!(Class(6).limit(), 16);
    }

    #[test]
    fn the_last_block_put_is_the_first_taken_and_a_full_list_takes_none() {
        let mut lists = Lists::new();
        let class = Class(6);
        let mut memory = vec![[0u128; 64]; 17];
        let blocks: Vec<NonNull<u8>> = memory
            .iter_mut()
            .map(|block| NonNull::from(block).cast())
            .collect();
        assert_eq!(lists.take(class), None);
        for (n, block) in blocks.iter().enumerate() {
            // SAFETY: each block is large and aligned enough, and put once.
            assert_eq!(unsafe { lists.put(class, *block) }, n < 16);
        }
        for block in blocks[..16].iter().rev() {
            assert_eq!(lists.take(class), Some(*block));
        }
        assert_eq!((lists.take(class), lists.bytes()), (None, 0));
    }

    #[test]
    fn lists_that_all_share_have_no_limit() {
        let mut lists = Lists::new();
        let mut memory = vec![[0u128; 64]; 40];
        for block in &mut memory {
            // SAFETY: each block is large and aligned enough, and put once.
            unsafe { lists.keep(Class(6), NonNull::from(block).cast()) };
        }
        assert_eq!(lists.bytes(), 40 << 10);
        assert!(lists.take(Class(6)).is_some() && lists.take(Class(5)).is_none());
        assert_eq!(lists.bytes(), 39 << 10);
    }

    proptest! {
        #[test]
        fn a_class_serves_its_layouts(size in 0usize..3000, align in 0u32..9) {
            let wanted = layout(size, 1 << align);
            if let Some(class) = Class::of(wanted) {
                let served = class.layout();
                prop_assert!(served.size() >= size && served.align() >= wanted.align());
                prop_assert!(served.size() >= size_of::<Free>() && served.align() >= align_of::<Free>());
            }
        }
    }
}
