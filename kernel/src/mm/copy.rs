//! `memcpy` for the whole image, by what the CPU is good at.
//!
//! CPUs that have ERMS copy single bytes by `rep movsb` as fast as they can anything, those that have
//! FSRM as well where they are few (Intel optimization manual, 3.7.6); others, and emulators that take
//! such a copy byte by byte whatever CPUID says, are better off with quadwords. So [`choose`] tries
//! both where the CPU has ERMS, and takes what is faster.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::arch::x86_64::tsc;

/// `rep movsb` takes its time to start: not worth it for less, where the CPU lacks FSRM.
const LONG: usize = 512;
const FSRM: u32 = 1 << 4;
/// Copies of so many bytes and more are made by bytes.
static BY_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Copies `len` bytes, front to back.
///
/// # Safety
/// As for `copy_nonoverlapping`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    let bytes = len >= BY_BYTES.load(Ordering::Relaxed);
    // SAFETY: handed on from the caller.
    unsafe { copy(to, from, len, bytes) };
    to
}

/// # Safety
/// As for `copy_nonoverlapping`.
#[inline(always)]
unsafe fn copy(to: *mut u8, from: *const u8, len: usize, bytes: bool) {
    let (long, rest) = if bytes { (0, len) } else { (len / 8, len % 8) };
    // SAFETY: both parts together are the caller's `len` bytes; the direction flag is clear in all
    // Rust code.
    unsafe {
        asm!("rep movsq", "mov rcx, {rest}", "rep movsb", rest = in(reg) rest,
            inout("rcx") long => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
}

/// Tries both ways, where the CPU says that it is good at bytes. Needs the heap.
pub fn choose() {
    const LEN: usize = 16 << 10;
    let features = raw_cpuid::CpuId::new().get_extended_feature_info();
    if !features.is_some_and(|f| f.has_rep_movsb_stosb()) {
        return;
    }
    // Of the leaf that has just been found to exist: Intel SDM volume 2, CPUID.
    let short = __cpuid_count(7, 0).edx & FSRM != 0;
    let mut memory = alloc::vec![0u8; 2 * LEN];
    let (from, to) = memory.split_at_mut(LEN);
    let mut time = |bytes| {
        let start = tsc();
        // SAFETY: two halves of one buffer.
        unsafe { copy(to.as_mut_ptr(), from.as_ptr(), LEN, bytes) };
        tsc().wrapping_sub(start)
    };
    let mut best = |bytes| (0..4).map(|_| time(bytes)).min().unwrap_or(0);
    let (bytes, quadwords) = (best(true), best(false));
    if bytes <= quadwords + quadwords / 8 {
        BY_BYTES.store(if short { 1 } else { LONG }, Ordering::Relaxed);
    }
}

/// What it was found to be good at.
pub fn unit() -> &'static str {
    match BY_BYTES.load(Ordering::Relaxed) {
        1 => "bytes",
        LONG => "bytes-where-long",
        _ => "quadwords",
    }
}
