//! A function's domain, as its driver's DMA space.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::dma::{Buffer, DmaOps, Extent, MapError, PAGE, RawMapping};
use hal::pci::Address;
use litemap::LiteMap;
use smallvec::SmallVec;
use spin::{Mutex, Once};
use vcm::{MmuError, Vcm};
use vtd::{Domain, Mappings, Permissions, Window};

use super::IOMMU;
use crate::drivers::{dma, hotplug};
use crate::pci::bus;

/// Addresses that a domain has. Each has others than those before it, as far as they go round, so
/// that a device's stray reaches neither memory by its physical address nor what another has mapped.
pub(super) const WINDOW: u64 = 1 << 32;

/// Where processors take writes for interrupts: nothing can be mapped there. VT-d 3.15.
const INTERRUPTS: Range<u64> = 0xfee0_0000..0xfef0_0000;

/// The domain of a function that a driver has.
pub struct Confined {
    domain: Arc<Domain>,
    /// Its addresses; made when its driver has said how many address lines it has.
    context: Once<Option<Arc<Vcm>>>,
    limit: AtomicU64,
    /// What is mapped, shared by those who map the same.
    mappings: Mutex<Mappings>,
    /// What firmware reserved for it, mapped where it lies.
    reserved: Vec<Range<u64>>,
}

static CONFINED: Mutex<LiteMap<Address, Weak<Confined>>> = Mutex::new(LiteMap::new());
static NEXT_WINDOW: AtomicU64 = AtomicU64::new(0);

/// The functions that have domains, by address.
pub fn all() -> Vec<Arc<Confined>> {
    CONFINED.lock().values().filter_map(Weak::upgrade).collect()
}

/// The domain of the function at `address`, where it has one.
pub(super) fn find(address: Address) -> Option<Arc<Confined>> {
    CONFINED.lock().get(&address)?.upgrade()
}

/// Takes everything from the function at `address`, if it has a domain: it reaches nothing until it
/// is handed out again. Whether that is so; `false` where it is not confined.
pub fn revoke(address: Address) -> bool {
    find(address).is_some_and(|confined| confined.domain.revoke().is_ok())
}

/// The function at `address` is nobody's any more.
pub fn release(address: Address) {
    // Not under the lock: the unit may take its time.
    let gone = CONFINED.lock().remove(&address);
    if let Some(confined) = gone.and_then(|weak| weak.upgrade()) {
        // A unit that fails has said so.
        let _ = confined.domain.revoke();
    }
}

/// Functions that have strayed, and have not left the bus since.
static QUARANTINE: Mutex<Vec<Address>> = Mutex::new(Vec::new());

/// Whether the function at `address` has strayed.
pub fn is_quarantined(address: Address) -> bool {
    QUARANTINE.lock().contains(&address)
}

/// Takes everything from a function that has strayed, and has nobody get it.
pub(super) fn quarantine(address: Address) {
    let mut quarantine = QUARANTINE.lock();
    if !quarantine.contains(&address) {
        quarantine.push(address);
    }
    drop(quarantine);
    revoke(address);
}

/// The function at `address` has left the bus.
pub fn forget(address: Address) {
    release(address);
    QUARANTINE.lock().retain(|&other| other != address);
}

impl Confined {
    /// The function whose domain this is has it from here on.
    pub(super) fn register(domain: Arc<Domain>, reserved: Vec<Range<u64>>) -> Arc<Self> {
        let address = domain.device();
        let confined = Arc::new(Self {
            domain,
            context: Once::new(),
            limit: AtomicU64::new(u64::MAX),
            mappings: Mutex::new(Mappings::new()),
            reserved,
        });
        CONFINED.lock().insert(address, Arc::downgrade(&confined));
        confined
    }

    /// The domain.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Its addresses; `None` before anything was mapped.
    pub fn context(&self) -> Option<&Arc<Vcm>> {
        self.context.get()?.as_ref()
    }

    /// Pages of 4 KiB that the function reaches, counted in its tables; what firmware reserved left
    /// out.
    pub fn reachable(&self) -> usize {
        let [small, medium, large] = self.domain.pages();
        let pages = small + (medium << 9) + (large << 18);
        let bytes: u64 = self
            .reserved
            .iter()
            .map(|range| range.end - range.start)
            .sum();
        pages.saturating_sub(bytes as usize / PAGE)
    }

    fn space(&self) -> Result<&Arc<Vcm>, MapError> {
        let context = self.context.call_once(|| {
            let window = Window::new(self.domain.clone(), self.window()?)?;
            let context = Vcm::new(alloc::format!("{}", self.domain.device()), Arc::new(window))?;
            for range in self.reserved.iter().chain([&INTERRUPTS]) {
                // Most often it is elsewhere.
                let _ = context.exclude(range.clone());
            }
            Some(context)
        });
        context.as_ref().ok_or(MapError::Exhausted)
    }

    /// Addresses above all memory; for a device that does not reach as far, the low ones.
    fn window(&self) -> Option<Range<u64>> {
        let end = 1 << self.domain.unit().capabilities().address_bits;
        let limit = self
            .limit
            .load(Ordering::Relaxed)
            .saturating_add(1)
            .min(end);
        let base = IOMMU.get()?.base;
        let count = limit.saturating_sub(base) / WINDOW;
        if count == 0 {
            return Some(PAGE as u64..limit & !(PAGE as u64 - 1));
        }
        let start = base + NEXT_WINDOW.fetch_add(1, Ordering::Relaxed) % count * WINDOW;
        Some(start..start + WINDOW)
    }
}

/// The whole pages that hold `len` bytes from `at` on.
fn pages(at: u64, len: usize) -> Option<Range<u64>> {
    let page = PAGE as u64;
    let end = at.checked_add(len as u64)?.checked_next_multiple_of(page)?;
    Some(at & !(page - 1)..end)
}

fn refused(error: vcm::Error) -> MapError {
    match error {
        vcm::Error::Mmu(MmuError::Gone | MmuError::TimedOut) => MapError::Gone,
        vcm::Error::OutOfRange => MapError::Unreachable,
        _ => MapError::Exhausted,
    }
}

impl Confined {
    /// Where it is one range for the function, however scattered it is.
    fn map_buffer(&self, buffer: &Buffer<'_>) -> Result<u64, MapError> {
        if self.domain.is_revoked() {
            return Err(MapError::Gone);
        }
        let access = vcm::Access::from(buffer.direction);
        let permissions = Permissions::from_bits_truncate(access.bits());
        let single = buffer.contiguous().and_then(|one| pages(one.phys, one.len));
        if let Some(memory) = &single
            && let Some(at) = self.mappings.lock().share(memory, permissions)
        {
            return Ok(at + buffer.offset());
        }
        let whole = |piece: Extent| {
            let whole = pages(piece.phys, piece.len)?;
            Some(Extent {
                phys: whole.start,
                len: (whole.end - whole.start) as usize,
            })
        };
        let pieces: Option<SmallVec<[Extent; 1]>> = buffer.extents().map(whole).collect();
        let pieces = pieces.ok_or(MapError::Unreachable)?;
        let start = self.space()?.map_streaming(&pieces, access);
        let start = start.map_err(refused)?;
        let len = pieces.iter().map(|piece| piece.len as u64).sum();
        let memory = single.map(|memory| memory.start);
        let mut mappings = self.mappings.lock();
        mappings.note(start, len, memory, permissions);
        Ok(start + buffer.offset())
    }

    fn unmap_all(&self, segments: &[(u64, usize)]) {
        let ranges: SmallVec<[_; 2]> = {
            let mut mappings = self.mappings.lock();
            let leave = |&(at, _): &(u64, usize)| mappings.leave(at);
            segments.iter().filter_map(leave).collect()
        };
        if ranges.is_empty() {
            return;
        }
        let unmapped = self
            .space()
            .map(|context| context.unmap_streaming(&ranges).is_ok());
        // Where the unit does not say that the memory is out of reach, what is above the function can
        // still keep it from everything.
        if unmapped == Ok(false) && !self.isolate() {
            log::error!("WARN {}: may reach what was unmapped", self.domain.device());
        }
    }
}

impl DmaOps for Confined {
    fn map(&self, buffers: &[Buffer<'_>], mapping: &mut RawMapping) -> Result<(), MapError> {
        for buffer in buffers {
            match self.map_buffer(buffer) {
                Ok(at) => mapping.push(at, buffer.size()),
                Err(error) => {
                    if !mapping.segments().is_empty() {
                        self.unmap_all(mapping.segments());
                    }
                    return Err(error);
                }
            }
            mapping.end_buffer();
        }
        dma::note(buffers, mapping);
        Ok(())
    }

    fn unmap(&self, mapping: &RawMapping) {
        dma::forget(mapping);
        self.unmap_all(mapping.segments());
    }

    fn set_limit(&self, highest: u64) {
        self.limit.fetch_min(highest, Ordering::Relaxed);
    }

    fn revoke(&self) -> bool {
        self.domain.revoke().is_ok()
    }

    fn is_revoked(&self) -> bool {
        self.domain.is_revoked()
    }

    fn isolate(&self) -> bool {
        let address = self.domain.device();
        let isolated = self.domain.revoke().is_ok() || bus::isolate(address);
        hotplug::look(address);
        isolated
    }
}
