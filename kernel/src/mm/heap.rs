//! The heap: small objects of the kernel and its drivers. Grows by whole pages, never shrinks.
//! Small blocks that were freed wait for others of their size ([`super::cache`]).

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use dma_fence::Fence;
use linked_list_allocator::Heap;
use spin::Mutex;

use super::cache::{Class, Lists};
use super::virt;
use crate::arch::x86_64::{MAX_CPUS, percpu};
use crate::events::{self, Event};

/// How much the heap grows at least.
const STEP: usize = 256 << 10;

struct KernelHeap(Mutex<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Mutex::new(Heap::empty()));

/// Each CPU's free blocks, on cache lines of its own.
#[repr(align(64))]
struct Cached(UnsafeCell<Lists>);

// SAFETY: only its own CPU touches it: see `cached`.
unsafe impl Sync for Cached {}

static CACHED: [Cached; MAX_CPUS] = [const { Cached(UnsafeCell::new(Lists::new())) }; MAX_CPUS];

/// The free blocks for which a CPU's own lists are too short.
static SHARED: Mutex<Lists> = Mutex::new(Lists::new());

/// Uses this CPU's free blocks.
#[inline]
fn cached<T>(use_it: impl FnOnce(&mut Lists) -> T) -> T {
    let lists = CACHED[percpu::current().index()].0.get();
    // SAFETY: the lists of this CPU, which runs nothing else meanwhile that allocates: no task
    // preempts another, interrupts do not allocate, and what is called here does not either.
    use_it(unsafe { &mut *lists })
}

// SAFETY: blocks come from the heap behind one lock, over memory that only it hands out, or from
// the running CPU's free ones, which came from there.
unsafe impl GlobalAlloc for KernelHeap {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        events::count(Event::Allocation);
        let block = match Class::of(layout) {
            Some(class) => cached(|lists| lists.take(class)).or_else(|| self.take_of(class)),
            None => self.take(layout),
        };
        if block.is_some() && layout == Fence::block() {
            events::count(Event::FenceMade);
        }
        block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else {
            return;
        };
        if layout == Fence::block() {
            events::count(Event::FenceFreed);
        }
        match Class::of(layout) {
            // SAFETY: by the contract of `dealloc`; blocks of a class have its layout.
            Some(class) if cached(|lists| unsafe { lists.put(class, block) }) => {}
            // SAFETY: the same; no list has taken it.
            Some(class) => unsafe { put_of(class, block) },
            // SAFETY: by the contract of `dealloc`; the heap was asked for this layout.
            None => unsafe { self.give(block, layout) },
        }
    }
}

impl KernelHeap {
    #[cold]
    fn take_of(&self, class: Class) -> Option<NonNull<u8>> {
        let block = SHARED.lock().take(class);
        block.or_else(|| self.take(class.layout()))
    }

    #[cold]
    fn take(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut heap = self.0.lock();
        let block = heap.allocate_first_fit(layout).or_else(|()| {
            grow(&mut heap, layout)?;
            heap.allocate_first_fit(layout)
        });
        block.ok()
    }

    /// # Safety
    /// The heap was asked for this layout, and nobody uses the block any more.
    #[cold]
    unsafe fn give(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: by the contract.
        unsafe { self.0.lock().deallocate(block, layout) };
    }
}

/// # Safety
/// The block has the layout of its class, and nobody uses it any more.
#[cold]
unsafe fn put_of(class: Class, block: NonNull<u8>) {
    // SAFETY: by the contract.
    unsafe { SHARED.lock().keep(class, block) };
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

/// Shares this CPU's free blocks with all.
pub fn share() {
    let mut shared = SHARED.lock();
    for class in Class::all() {
        while let Some(block) = cached(|lists| lists.take(class)) {
            // SAFETY: a free block of this class.
            unsafe { shared.keep(class, block) };
        }
    }
}

/// How many fences exist: the heap's own count of their blocks.
pub fn fences() -> usize {
    // Freed ones first: one that is made in between is not missed.
    let freed = events::total(Event::FenceFreed);
    events::total(Event::FenceMade).saturating_sub(freed) as usize
}

/// Bytes in use, those that CPUs keep for themselves among them ([`share`]), and bytes the heap has
/// taken.
pub fn usage() -> (usize, usize) {
    let shared = SHARED.lock().bytes();
    let heap = HEAP.0.lock();
    (heap.used().saturating_sub(shared), heap.size())
}
