//! Kernel addresses that are handed out, and what is mapped at them.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, compiler_fence};

use hal::mmio::Width;
use spin::{LazyLock, Mutex};
use volatile::VolatilePtr;

use super::frames::FRAMES;
use super::paging::{self, Access, NoMemory};
use super::ranges::Ranges;
use super::{PAGE, VIRTUAL, VIRTUAL_END};
use crate::arch::x86_64::physical_address_bits;

/// The heap has addresses of its own, for it grows in place.
pub(super) const HEAP: Range<u64> = VIRTUAL..VIRTUAL + (1 << 34);

static ADDRESSES: LazyLock<Mutex<Ranges>> =
    LazyLock::new(|| Mutex::new(Ranges::new(HEAP.end..VIRTUAL_END)));

const LARGE: u64 = 1 << 21;

/// A type that one access moves.
pub trait Register: Copy {}
impl Register for u8 {}
impl Register for u16 {}
impl Register for u32 {}
impl Register for u64 {}

/// Physical memory that is not ours, mapped while this lives: device registers, firmware's tables.
#[derive(Debug)]
pub struct PhysicalMapping {
    addresses: Range<u64>,
    virt: u64,
    len: usize,
}

impl PhysicalMapping {
    /// Maps `len` bytes at `phys`. Firmware's tables are [`Access::Read`].
    pub fn new(phys: u64, len: usize, access: Access) -> Result<Self, NoMemory> {
        let page = PAGE as u64;
        let first = phys & !(page - 1);
        let end = phys.checked_add(len as u64).ok_or(NoMemory)?;
        let size = end.checked_next_multiple_of(page).ok_or(NoMemory)? - first;
        if size == 0 || end > 1 << physical_address_bits() {
            return Err(NoMemory);
        }
        // Large pages need address and physical memory alike in their low bits.
        let align = if size >= LARGE { LARGE } else { page };
        let addresses = ADDRESSES.lock().take(size + align).ok_or(NoMemory)?;
        let base = addresses.start + (first.wrapping_sub(addresses.start) & (align - 1));
        let mapping = Self {
            addresses,
            virt: base + (phys - first),
            len,
        };
        paging::map(base, first, size, access)?;
        Ok(mapping)
    }

    /// Where the first byte is mapped.
    pub fn addr(&self) -> u64 {
        self.virt
    }

    /// Bytes that were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty mapping is refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads a register: one access of the type's width.
    ///
    /// # Panics
    /// Where it is not inside, or not aligned: a mistake of the caller's.
    #[inline]
    pub fn read<T: Register>(&self, offset: usize) -> T {
        self.register(offset).read()
    }

    /// Writes a register, after all earlier stores: those of an x86 CPU to uncached memory are not
    /// reordered, and the compiler is held back here.
    ///
    /// # Panics
    /// As [`PhysicalMapping::read`].
    #[inline]
    pub fn write<T: Register>(&self, offset: usize, value: T) {
        compiler_fence(Ordering::SeqCst);
        self.register(offset).write(value);
    }

    /// Reads `width` at `offset`.
    ///
    /// # Panics
    /// As [`PhysicalMapping::read`].
    pub fn read_width(&self, offset: usize, width: Width) -> u64 {
        match width {
            Width::B1 => self.read::<u8>(offset).into(),
            Width::B2 => self.read::<u16>(offset).into(),
            Width::B4 => self.read::<u32>(offset).into(),
            Width::B8 => self.read(offset),
        }
    }

    /// Writes the low bytes of `value`, `width` wide, at `offset`.
    ///
    /// # Panics
    /// As [`PhysicalMapping::read`].
    pub fn write_width(&self, offset: usize, width: Width, value: u64) {
        match width {
            Width::B1 => self.write(offset, value as u8),
            Width::B2 => self.write(offset, value as u16),
            Width::B4 => self.write(offset, value as u32),
            Width::B8 => self.write(offset, value),
        }
    }

    #[inline]
    fn register<T: Register>(&self, offset: usize) -> VolatilePtr<'_, T> {
        let at = self.virt as usize + offset;
        assert!(at.is_multiple_of(size_of::<T>()) && offset + size_of::<T>() <= self.len);
        let pointer = NonNull::new(at as *mut T).unwrap_or(NonNull::dangling());
        // SAFETY: inside the mapping and aligned, as just checked, for as long as `self` lives; any
        // bytes make a register, and device registers are only ever accessed like this.
        unsafe { VolatilePtr::new(pointer) }
    }
}

impl Drop for PhysicalMapping {
    fn drop(&mut self) {
        let size =
            (self.len as u64 + (self.virt & (PAGE as u64 - 1))).next_multiple_of(PAGE as u64);
        paging::unmap(self.virt & !(PAGE as u64 - 1), size, |_, _| {});
        release(self.addresses.clone());
    }
}

/// Fresh memory at fresh addresses, `len` bytes in whole pages, after `guard` bytes that stay
/// unmapped.
pub(super) fn map_memory(guard: u64, len: u64) -> Option<Range<u64>> {
    let addresses = ADDRESSES.lock().take(guard + len)?;
    let start = addresses.start + guard;
    match fill(start, len) {
        done if done == len => Some(start..addresses.end),
        // Another CPU may have cached what was mapped, and there is no memory to note the frames
        // until the barrier: so little is given up.
        done => {
            log::warn!("WARN out of memory; {done:#x} bytes lost");
            None
        }
    }
}

/// Maps single frames from `start` on, up to `len` bytes; returns how many it mapped.
pub(super) fn fill(start: u64, len: u64) -> u64 {
    let mut done = 0;
    while done < len {
        let Some(phys) = FRAMES.lock().alloc(PAGE, PAGE, u64::MAX) else {
            break;
        };
        if paging::map(start + done, phys, PAGE as u64, Access::Write).is_err() {
            // SAFETY: allocated above and not mapped.
            unsafe { FRAMES.lock().free(phys, PAGE, PAGE) };
            break;
        }
        done += PAGE as u64;
    }
    done
}

/// Gives addresses back, once no CPU holds a translation for them.
fn release(addresses: Range<u64>) {
    match crate::arch::x86_64::smp::barrier() {
        Ok(()) => {
            ADDRESSES.lock().give(addresses);
        }
        // A CPU that does not answer may still hold one: the addresses stay taken.
        Err(error) => log::warn!(
            "WARN {error}; {:#x} bytes of addresses lost",
            addresses.end - addresses.start
        ),
    }
}
