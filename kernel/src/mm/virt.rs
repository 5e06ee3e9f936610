//! Kernel addresses that are handed out, and what is mapped at them.

use core::ops::Range;

use spin::{LazyLock, Mutex};

use super::frames::FRAMES;
use super::paging::{self, Access, NoMemory};
use super::ranges::Ranges;
use super::{PAGE, VIRTUAL, VIRTUAL_END};

/// The heap has addresses of its own, for it grows in place.
pub(super) const HEAP: Range<u64> = VIRTUAL..VIRTUAL + (1 << 34);

static ADDRESSES: LazyLock<Mutex<Ranges>> =
    LazyLock::new(|| Mutex::new(Ranges::new(HEAP.end..VIRTUAL_END)));

const LARGE: u64 = 1 << 21;

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
        if size == 0 || end > 1 << 52 {
            return Err(NoMemory);
        }
        // Large pages need address and physical memory alike in their low bits.
        let align = if size >= LARGE { LARGE } else { page };
        let addresses = ADDRESSES.lock().take(size + align).ok_or(NoMemory)?;
        let base = addresses.start.next_multiple_of(align) + (first & (align - 1));
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

    /// Keeps the mapping for good.
    pub fn leak(self) -> u64 {
        let virt = self.virt;
        core::mem::forget(self);
        virt
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
    if fill(start, len).is_err() {
        release(addresses);
        return None;
    }
    Some(start..addresses.end)
}

/// Maps single frames at `start`; all or none.
pub(super) fn fill(start: u64, len: u64) -> Result<(), NoMemory> {
    let mut done = 0;
    while done < len {
        let frame = FRAMES.lock().alloc(PAGE, PAGE, u64::MAX);
        let mapped = frame.map(|phys| {
            (
                phys,
                paging::map(start + done, phys, PAGE as u64, Access::Write),
            )
        });
        match mapped {
            Some((_, Ok(()))) => done += PAGE as u64,
            other => {
                if let Some((phys, _)) = other {
                    // SAFETY: allocated above and not mapped.
                    unsafe { FRAMES.lock().free(phys, PAGE, PAGE) };
                }
                paging::unmap(start, done, |phys, _| {
                    // SAFETY: allocated here, page by page; nobody has seen the addresses yet.
                    unsafe { FRAMES.lock().free(phys, PAGE, PAGE) };
                });
                return Err(NoMemory);
            }
        }
    }
    Ok(())
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
