//! Memory: frames, page tables, kernel addresses, heap.
//!
//! | kernel addresses | what |
//! |---|---|
//! | [`DIRECT`] | all usable physical memory but the image, writable, never executable |
//! | [`VIRTUAL`] | mapped on demand: device registers, tables, stacks (with guard pages), heap |
//! | [`CONTIGUOUS`] | scattered frames that are seen as one range |
//! | the top 2 GiB | the image, each page writable or executable, never both |
//!
//! The lower half is empty. See [`boot`] for the order in which these come to be.

#[cfg(target_os = "none")]
pub mod boot;
#[cfg(any(test, target_os = "none"))]
mod cache;
#[cfg(target_os = "none")]
pub mod copy;
pub mod frames;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod paging;
pub mod ranges;
#[cfg(target_os = "none")]
pub mod stack;
#[cfg(target_os = "none")]
pub mod vcm;
#[cfg(target_os = "none")]
pub mod virt;

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Where physical memory is mapped.
pub const DIRECT: u64 = 0xffff_8000_0000_0000;
/// Where addresses are handed out, up to [`VIRTUAL_END`].
pub const VIRTUAL: u64 = 0xffff_c000_0000_0000;
/// The end of [`VIRTUAL`]: 1 TiB.
pub const VIRTUAL_END: u64 = VIRTUAL + (1 << 40);
/// Where scattered frames are made contiguous: 1 TiB.
pub const CONTIGUOUS: core::ops::Range<u64> = VIRTUAL_END..VIRTUAL_END + (1 << 40);
/// The difference between the image's virtual and physical addresses.
pub const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Where the kernel sees a physical address that is usable memory.
pub fn direct(phys: u64) -> *mut u8 {
    (DIRECT + phys) as *mut u8
}
