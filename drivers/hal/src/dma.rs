//! Memory that devices reach: owned buffers, their mapping, and coherent structures.
//!
//! Three rules are kept by the types:
//!
//! - A device address ([`DmaAddr`]) comes only from a mapping and cannot outlive it.
//! - While a [`Destination`] exists, no CPU access to its memory does; while a [`Source`] exists,
//!   CPUs can only read. An operation holds both until the device is done with them.
//! - [`Coherent`] memory, which CPU and device share all the time, is accessed in atomic words.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut, Range};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use smallvec::SmallVec;

use crate::machine::{RawMemory, RawScattered, machine};

/// Memory is handed out in multiples of this many bytes.
pub const PAGE: usize = 4096;

/// No memory fits what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

/// A stretch of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Physical address of its first byte.
    pub phys: u64,
    /// Bytes.
    pub len: usize,
}

/// A buffer of whole pages with one owner, who alone reads and writes it as bytes.
///
/// Its length is what was asked for; the rest of its last page belongs to it, unused. It is one piece
/// of physical memory unless it was asked for in many.
pub struct Memory {
    /// As the CPU sees it, and where the first piece is. Of length 0 where a device may still write
    /// it: nobody gets it any more.
    raw: RawMemory,
    len: usize,
    /// Of memory in many pieces.
    scattered: Option<Box<RawScattered>>,
}

/// Buffers that were withheld and dropped.
static WITHHELD: AtomicUsize = AtomicUsize::new(0);

/// How many buffers exist that nobody owns, because a device may still write them.
pub fn withheld() -> usize {
    WITHHELD.load(Ordering::Relaxed)
}

// SAFETY: `Memory` owns the pages it points to, as `Box<[u8]>` does.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zeroed bytes anywhere in memory.
    pub fn new(len: usize) -> Result<Self, OutOfMemory> {
        Self::with(len, PAGE, u64::MAX)
    }

    /// `len` zeroed bytes, the first aligned to `align` in physical memory, all below the physical
    /// address `limit`. For devices that reach less than all memory.
    pub fn with(len: usize, align: usize, limit: u64) -> Result<Self, OutOfMemory> {
        let align = align.max(PAGE);
        if len == 0 || !align.is_power_of_two() {
            return Err(OutOfMemory);
        }
        let whole = len.checked_next_multiple_of(PAGE).ok_or(OutOfMemory)?;
        let raw = machine()
            .alloc_memory(whole, align, limit)
            .ok_or(OutOfMemory)?;
        // SAFETY: the machine hands out `raw.len` writable bytes that nobody else refers to.
        unsafe { raw.ptr.write_bytes(0, raw.len) };
        Ok(Self {
            raw,
            len,
            scattered: None,
        })
    }

    /// `len` zeroed bytes that are one range for the CPU, and pieces of `chunk` bytes in physical
    /// memory, of which none follows its neighbour: what a machine has left when no large block is.
    pub fn scattered(len: usize, chunk: usize) -> Result<Self, OutOfMemory> {
        if len == 0 || chunk < PAGE || !chunk.is_power_of_two() {
            return Err(OutOfMemory);
        }
        let whole = len.checked_next_multiple_of(chunk).ok_or(OutOfMemory)?;
        let scattered = machine().alloc_scattered(whole, chunk).ok_or(OutOfMemory)?;
        let raw = RawMemory {
            ptr: scattered.ptr,
            phys: *scattered.pieces.first().ok_or(OutOfMemory)?,
            len: whole,
        };
        // SAFETY: the machine hands out `whole` writable bytes that nobody else refers to.
        unsafe { raw.ptr.write_bytes(0, whole) };
        Ok(Self {
            raw,
            len,
            scattered: Some(Box::new(scattered)),
        })
    }

    /// The physical memory behind the whole buffer, or its first piece.
    pub fn extent(&self) -> Extent {
        let scattered = self.scattered.as_ref();
        Extent {
            phys: self.raw.phys,
            len: scattered.map_or(self.len, |memory| memory.chunk.min(self.len)),
        }
    }

    /// The physical memory behind the whole buffer, in its order.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + Clone {
        self.buffer(&(0..self.len), Direction::Both).extents()
    }

    /// The bytes `range`, for whoever maps them.
    fn buffer(&self, range: &Range<usize>, direction: Direction) -> Buffer<'_> {
        Buffer {
            first: self.raw.phys + range.start as u64,
            len: range.end - range.start,
            scattered: self
                .scattered
                .as_deref()
                .map(|memory| (memory, range.start)),
            direction,
        }
    }

    fn withhold(&mut self) {
        self.raw.len = 0;
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `raw.ptr` is valid for `len` initialised bytes and more, which live as long
        // as `self`; no device writes them while `self` can be reached (see `Destination`).
        unsafe { core::slice::from_raw_parts(self.raw.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.raw.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let scattered = self.scattered.take();
        if self.raw.len == 0 {
            WITHHELD.fetch_add(1, Ordering::Relaxed);
            core::mem::forget(scattered);
            return;
        }
        if scattered.is_some() {
            return;
        }
        // SAFETY: `raw` came from `alloc_memory`; `self` was its only owner.
        unsafe { machine().free_memory(self.raw) };
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({:#x}, {} bytes)", self.raw.phys, self.len)
    }
}

/// A part of a buffer that a device reads. CPUs may read it at the same time, nobody writes.
#[derive(Clone, Debug)]
pub struct Source {
    memory: Arc<Memory>,
    range: Range<usize>,
}

impl Source {
    /// The bytes `range` of `memory`; `None` where the range is empty or leaves the buffer.
    pub fn new(memory: Arc<Memory>, range: Range<usize>) -> Option<Self> {
        fits(&memory, &range).then_some(Self { memory, range })
    }

    /// The buffer, shared.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Bytes to read.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Never: a source has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Where in physical memory the first byte lies, or would if the memory were one piece: alignment,
    /// not an address for devices.
    pub fn phys(&self) -> u64 {
        self.memory.raw.phys + self.range.start as u64
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.range.clone()]
    }

    fn buffer(&self) -> Buffer<'_> {
        self.memory.buffer(&self.range, Direction::ToDevice)
    }
}

/// A part of a buffer that a device writes. It owns the whole buffer, so that no CPU sees it half
/// written; [`Destination::into_memory`] is the way back.
#[derive(Debug)]
pub struct Destination {
    memory: Memory,
    range: Range<usize>,
}

impl Destination {
    /// The bytes `range` of `memory`; the buffer comes back where the range is empty or leaves it.
    pub fn new(memory: Memory, range: Range<usize>) -> Result<Self, Memory> {
        if fits(&memory, &range) {
            Ok(Self { memory, range })
        } else {
            Err(memory)
        }
    }

    /// Gives the buffer back, once no device writes it any more: whoever maps a destination keeps
    /// it as long as the mapping.
    pub fn into_memory(self) -> Memory {
        self.memory
    }

    /// The device that was to write it could not be stopped, and may write it at any time: whoever
    /// drops the buffer, its memory is never handed out again. Its bytes are nobody's to read.
    pub fn withhold(&mut self) {
        self.memory.withhold();
    }

    /// Bytes to write.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Never: a destination has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Where in physical memory the first byte lies, or would if the memory were one piece: alignment,
    /// not an address for devices.
    pub fn phys(&self) -> u64 {
        self.memory.raw.phys + self.range.start as u64
    }

    /// The bytes, for a CPU that does the device's work.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.range.clone()]
    }

    fn buffer(&self) -> Buffer<'_> {
        self.memory.buffer(&self.range, Direction::FromDevice)
    }
}

fn fits(memory: &Memory, range: &Range<usize>) -> bool {
    range.start < range.end && range.end <= memory.len
}

/// Who moves the data of a mapping where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads memory.
    ToDevice,
    /// The device writes memory.
    FromDevice,
    /// Both.
    Both,
}

/// Why memory could not be mapped for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// It lies above what the device can address.
    Unreachable,
    /// The device's address space, or the memory for its tables, is exhausted.
    Exhausted,
    /// The device is gone, and so is its address space.
    Gone,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "memory above what the device can address",
            Self::Exhausted => "the device's address space is exhausted",
            Self::Gone => "the device is gone",
        })
    }
}

/// An address as one device sees it, borrowed from the mapping that makes it valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaAddr<'map>(u64, PhantomData<&'map ()>);

impl DmaAddr<'_> {
    /// The number to write into a register or descriptor.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// A stretch of a mapping that is contiguous for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'map> {
    /// Where it starts for the device.
    pub addr: DmaAddr<'map>,
    /// Bytes.
    pub len: usize,
}

/// One buffer of a request for a mapping.
#[derive(Clone, Copy)]
pub struct Buffer<'a> {
    /// Where its first byte lies, if it is not scattered.
    first: u64,
    len: usize,
    /// The memory of which it is a part, and from where on.
    scattered: Option<(&'a RawScattered, usize)>,
    /// What the device does with it.
    pub direction: Direction,
}

impl<'a> Buffer<'a> {
    /// How far into its page the first byte lies.
    pub fn offset(&self) -> u64 {
        self.first % PAGE as u64
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.len
    }

    /// Where it lies, if it is one piece by nature. Nearly all are.
    #[inline]
    pub fn contiguous(&self) -> Option<Extent> {
        self.scattered.is_none().then_some(Extent {
            phys: self.first,
            len: self.len,
        })
    }

    /// Its pieces, in order: whole pages but for the start of the first and the end of the last.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + Clone + use<'a> {
        let Self {
            len: all,
            first,
            scattered,
            ..
        } = *self;
        let mut done = 0;
        core::iter::from_fn(move || {
            let left = all - done;
            if left == 0 {
                return None;
            }
            let (phys, len) = match scattered {
                None => (first, left),
                Some((memory, start)) => {
                    let at = start + done;
                    let inside = at % memory.chunk;
                    let piece = memory.pieces.get(at / memory.chunk)?;
                    (piece + inside as u64, left.min(memory.chunk - inside))
                }
            };
            done += len;
            Some(Extent { phys, len })
        })
    }
}

impl fmt::Debug for Buffer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ", self.direction)?;
        f.debug_list().entries(self.extents()).finish()
    }
}

/// What a bus answers to a request for a mapping. It is filled in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawMapping {
    /// Device address and length of each segment, in the order of the memory.
    segments: SmallVec<[(u64, usize); 2]>,
    /// How many of them are the first buffer's.
    first: usize,
    /// Names the mapping to [`DmaOps::unmap`].
    pub token: u64,
}

impl RawMapping {
    /// The buffer that is being mapped goes on for `len` bytes at the device's address `addr`.
    pub fn push(&mut self, addr: u64, len: usize) {
        self.segments.push((addr, len));
    }

    /// It ends here. What follows is the second one's.
    pub fn end_buffer(&mut self) {
        if self.first == 0 {
            self.first = self.segments.len();
        }
    }

    /// Maps `buffers` one to one: the device's addresses are the physical ones. On the path of every
    /// operation, and so compiled here, for speed.
    #[inline(never)]
    pub fn push_direct(&mut self, buffers: &[Buffer<'_>]) {
        let pair = |memory: Extent| (memory.phys, memory.len);
        if let [one, other] = buffers
            && let (Some(one), Some(other)) = (one.contiguous(), other.contiguous())
        {
            self.first = 1;
            self.segments = SmallVec::from_buf([pair(one), pair(other)]);
            return;
        }
        for buffer in buffers {
            for piece in buffer.extents() {
                self.push(piece.phys, piece.len);
            }
            self.end_buffer();
        }
    }

    /// Device address and length of each segment, one buffer after the other.
    pub fn segments(&self) -> &[(u64, usize)] {
        &self.segments
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.first = 0;
    }
}

/// How a bus, or the IOMMU above it, maps memory for one device.
pub trait DmaOps: Send + Sync {
    /// Makes `buffers`, one or two, reachable for the device, all or none. `mapping` comes empty,
    /// and gets the segments of each, closed by [`RawMapping::end_buffer`].
    fn map(&self, buffers: &[Buffer<'_>], mapping: &mut RawMapping) -> Result<(), MapError>;
    /// Takes that back. On return the device cannot reach the memory by this mapping any more, so
    /// far as the platform has the means to prevent it.
    fn unmap(&self, mapping: &RawMapping);
    /// The device emits no address above `highest`. Told before anything is mapped.
    fn set_limit(&self, _highest: u64) {}
    /// Takes everything from the device that it reaches, at once and for good, whether it answers or
    /// not; `false` where nothing stands between it and memory that could.
    fn revoke(&self) -> bool {
        false
    }
    /// Whether everything was taken from the device, by whomever: what fails then is no fault of its
    /// work.
    fn is_revoked(&self) -> bool {
        false
    }
    /// Keeps the device from all memory, whether it answers or not. On `true` it reaches none until
    /// it is handed out anew; `false` where the platform has not, or not yet, the means.
    fn isolate(&self) -> bool {
        false
    }
}

/// The address space in which one device does DMA.
#[derive(Clone)]
pub struct DmaSpace {
    ops: Arc<dyn DmaOps>,
    limit: u64,
}

impl DmaSpace {
    /// The space behind `ops`, of a device that reaches every address.
    pub fn new(ops: Arc<dyn DmaOps>) -> Self {
        Self {
            ops,
            limit: u64::MAX,
        }
    }

    /// The same space for a device with `bits` address lines.
    pub fn with_address_bits(mut self, bits: u32) -> Self {
        self.limit = 1u64.checked_shl(bits).map_or(u64::MAX, |end| end - 1);
        self.ops.set_limit(self.limit);
        self
    }

    /// The highest address that the device can emit.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// See [`DmaOps::revoke`].
    pub fn revoke(&self) -> bool {
        self.ops.revoke()
    }

    /// See [`DmaOps::is_revoked`].
    pub fn is_revoked(&self) -> bool {
        self.ops.is_revoked()
    }

    /// See [`DmaOps::isolate`].
    pub fn isolate(&self) -> bool {
        self.ops.isolate()
    }

    /// Maps what the device shall read. The caller keeps `source` as long as the mapping.
    pub fn map_source(&self, source: &Source) -> Result<Mapping, MapError> {
        self.map(source.buffer())
    }

    /// Maps what the device shall write. The caller keeps `destination` as long as the mapping.
    pub fn map_destination(&self, destination: &Destination) -> Result<Mapping, MapError> {
        self.map(destination.buffer())
    }

    /// Maps the buffers of an operation, at once and in place. `mapping` held nothing, or the same
    /// for another device. The caller keeps the buffers as long as the mapping.
    #[inline]
    pub fn map_operation(
        &self,
        mapping: &mut Mapping,
        destination: &Destination,
        source: Option<&Source>,
    ) -> Result<(), MapError> {
        let destination = destination.buffer();
        match source {
            Some(source) => self.fill(mapping, &[destination, source.buffer()]),
            None => self.fill(mapping, &[destination]),
        }
    }

    /// Zeroed memory that CPU and device share, aligned to `align` (a power of two).
    pub fn coherent(&self, len: usize, align: usize) -> Result<Coherent, CoherentError> {
        let limit = self.limit.saturating_add(1);
        let memory = Memory::with(len, align, limit).map_err(CoherentError::Memory)?;
        let buffer = memory.buffer(&(0..len), Direction::Both);
        let mapping = self.map(buffer).map_err(CoherentError::Map)?;
        if mapping.raw.segments.len() != 1 {
            return Err(CoherentError::Map(MapError::Exhausted));
        }
        Ok(Coherent { mapping, memory })
    }

    fn map(&self, buffer: Buffer<'_>) -> Result<Mapping, MapError> {
        let mut mapping = Mapping::default();
        self.fill(&mut mapping, &[buffer])?;
        Ok(mapping)
    }

    #[inline]
    fn fill(&self, mapping: &mut Mapping, buffers: &[Buffer<'_>]) -> Result<(), MapError> {
        mapping.clear();
        self.ops
            .map(buffers, &mut mapping.raw)
            .inspect_err(|_| mapping.raw.clear())?;
        mapping.ops = Some(self.ops.clone());
        let end = |&(addr, len): &(u64, usize)| addr.saturating_add((len as u64).saturating_sub(1));
        let reaches = |segment| end(segment) <= self.limit;
        if self.limit == u64::MAX || mapping.raw.segments.iter().all(reaches) {
            Ok(())
        } else {
            mapping.clear();
            Err(MapError::Unreachable)
        }
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaSpace(to {:#x})", self.limit)
    }
}

/// Memory mapped for a device, or nothing. Dropping it takes the device's access away.
#[derive(Default)]
pub struct Mapping {
    /// Whose it is, while there is one.
    ops: Option<Arc<dyn DmaOps>>,
    raw: RawMapping,
}

impl Mapping {
    /// The mapped memory as the device sees it, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> + Clone {
        segments(&self.raw.segments)
    }

    /// Of an operation: what it writes, and what it reads.
    pub fn operation(
        &self,
    ) -> (
        impl Iterator<Item = Segment<'_>> + Clone,
        impl Iterator<Item = Segment<'_>> + Clone,
    ) {
        let (written, read) = self.raw.segments.split_at(self.raw.first);
        (segments(written), segments(read))
    }

    /// Takes the device's access away.
    #[inline]
    pub fn clear(&mut self) {
        if let Some(ops) = self.ops.take() {
            ops.unmap(&self.raw);
            self.raw.clear();
        }
    }
}

fn segments(raw: &[(u64, usize)]) -> impl Iterator<Item = Segment<'_>> + Clone {
    raw.iter().map(|&(addr, len)| Segment {
        addr: DmaAddr(addr, PhantomData),
        len,
    })
}

impl Drop for Mapping {
    #[inline]
    fn drop(&mut self) {
        if self.ops.is_some() {
            self.clear();
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.segments()).finish()
    }
}

/// Why there is no coherent memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoherentError {
    /// None was free in the device's reach.
    Memory(OutOfMemory),
    /// It could not be mapped.
    Map(MapError),
}

impl fmt::Display for CoherentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
        }
    }
}

/// Memory that CPU and device share for as long as it lives: rings, completion words.
///
/// CPUs access it in atomic words; offsets are in bytes, naturally aligned and inside. The field
/// order matters: the device loses access before the memory is freed.
pub struct Coherent {
    mapping: Mapping,
    memory: Memory,
}

impl Coherent {
    /// Where the device sees it.
    #[inline]
    pub fn addr(&self) -> DmaAddr<'_> {
        // One segment: `DmaSpace::coherent` refuses others.
        DmaAddr(self.mapping.raw.segments[0].0, PhantomData)
    }

    /// Takes it out of use where the device could not be stopped: its memory is never handed out
    /// again.
    pub fn withhold(mut self) {
        self.memory.withhold();
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.memory.len
    }

    /// Never: it has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.memory.len == 0
    }

    /// Reads eight bytes. `Acquire` orders later reads after it.
    ///
    /// # Panics
    /// Where the word is not inside: a driver's mistake, not a device's.
    pub fn load64(&self, offset: usize, order: Ordering) -> u64 {
        u64::from_le(self.word64(offset).load(order))
    }

    /// Writes eight bytes. `Release` orders it after all earlier writes.
    ///
    /// # Panics
    /// As [`Coherent::load64`].
    pub fn store64(&self, offset: usize, value: u64, order: Ordering) {
        self.word64(offset).store(value.to_le(), order);
    }

    /// Writes words of eight bytes in a row.
    ///
    /// # Panics
    /// As [`Coherent::load64`].
    #[inline]
    pub fn store64s(&self, offset: usize, values: &[u64], order: Ordering) {
        for (word, value) in self.words64(offset, values.len()).iter().zip(values) {
            word.store(value.to_le(), order);
        }
    }

    /// Reads four bytes.
    ///
    /// # Panics
    /// As [`Coherent::load64`].
    pub fn load32(&self, offset: usize, order: Ordering) -> u32 {
        u32::from_le(self.word32(offset).load(order))
    }

    /// Writes four bytes.
    ///
    /// # Panics
    /// As [`Coherent::load64`].
    pub fn store32(&self, offset: usize, value: u32, order: Ordering) {
        self.word32(offset).store(value.to_le(), order);
    }

    /// Has what was written to the bytes in `range` reach memory itself, for a device that does not
    /// look into the CPUs' caches. Later writes of this CPU come after it.
    ///
    /// # Panics
    /// As [`Coherent::load64`].
    pub fn write_back(&self, range: Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.memory.raw.len,
            "coherent write back at {range:x?}"
        );
        let (ptr, phys) = (self.memory.raw.ptr, self.memory.raw.phys);
        // SAFETY: inside the memory, as just checked.
        let ptr = unsafe { ptr.add(range.start) };
        machine().write_back(RawMemory {
            ptr,
            phys: phys + range.start as u64,
            len: range.len(),
        });
    }

    fn word64(&self, offset: usize) -> &AtomicU64 {
        &self.words64(offset, 1)[0]
    }

    fn words64(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.check(offset, 8, count);
        // SAFETY: inside the memory and aligned (checked; pages are aligned to more); all access,
        // the device's included, is in words that hardware keeps whole; they live as long as `self`.
        unsafe {
            let first = self.memory.raw.ptr.as_ptr().add(offset).cast();
            core::slice::from_raw_parts(first, count)
        }
    }

    fn word32(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, 4, 1);
        // SAFETY: as in `words64`.
        unsafe { AtomicU32::from_ptr(self.memory.raw.ptr.as_ptr().add(offset).cast()) }
    }

    #[inline]
    fn check(&self, offset: usize, bytes: usize, count: usize) {
        let room = self.memory.len.saturating_sub(offset) / bytes;
        assert!(
            offset.is_multiple_of(bytes) && count <= room,
            "coherent access at {offset:#x}"
        );
    }
}

impl fmt::Debug for Coherent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Coherent({:#x}, {} bytes)",
            self.addr().bits(),
            self.memory.len
        )
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use crate::host;

    #[test]
    fn memory_comes_zeroed_and_goes_back() {
        let mut memory = Memory::new(5000).unwrap();
        assert_eq!(memory.len(), 5000);
        assert!(memory.iter().all(|&byte| byte == 0));
        memory.fill(7);
        drop(memory);
        assert!(Memory::new(5000).unwrap().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn absurd_requests_are_refused() {
        assert_eq!(Memory::new(0).unwrap_err(), OutOfMemory);
        assert_eq!(Memory::new(usize::MAX).unwrap_err(), OutOfMemory);
        assert_eq!(
            Memory::with(64, 3 * PAGE, u64::MAX).unwrap_err(),
            OutOfMemory
        );
        assert_eq!(Memory::with(64, PAGE, 0).unwrap_err(), OutOfMemory);
        for (len, chunk) in [
            (0, PAGE),
            (1, 0),
            (1, 64),
            (1, 3 * PAGE),
            (usize::MAX, PAGE),
        ] {
            assert_eq!(Memory::scattered(len, chunk).unwrap_err(), OutOfMemory);
        }
    }

    #[test]
    fn scattered_memory_is_one_range_for_the_cpu_and_many_for_the_bus() {
        for chunk in [PAGE, 4 * PAGE] {
            let mut memory = Memory::scattered(9 * PAGE - 5, chunk).unwrap();
            assert!(memory.iter().all(|&byte| byte == 0));
            for (at, byte) in memory.iter_mut().enumerate() {
                *byte = (at / 7) as u8;
            }
            let pieces: Vec<_> = memory.extents().collect();
            assert_eq!(pieces.len(), (9 * PAGE).div_ceil(chunk));
            assert_eq!(pieces[0], memory.extent());
            let mut at = 0;
            for piece in &pieces {
                let mut bytes = vec![0; piece.len];
                host::bus_read(piece.phys, &mut bytes).unwrap();
                assert_eq!(bytes, memory[at..at + piece.len]);
                at += piece.len;
                let over = host::bus_read(piece.phys + 1, &mut vec![0; chunk]);
                assert!(over.is_err(), "the next page is another piece");
            }
            assert_eq!(at, memory.len());
            host::bus_write(pieces[1].phys, &[0xa5]).unwrap();
            assert_eq!(memory[chunk], 0xa5);
            drop(memory);
            assert!(host::bus_read(pieces[0].phys, &mut [0]).is_err());
        }
    }

    #[test]
    fn parts_of_scattered_memory_are_mapped_in_pieces() {
        let space = host::direct_space();
        let memory = Arc::new(Memory::scattered(5 * PAGE, PAGE).unwrap());
        let pages: Vec<_> = memory.extents().map(|piece| piece.phys).collect();
        let places = |range: Range<usize>| {
            let source = Source::new(memory.clone(), range).unwrap();
            let mapping = space.map_source(&source).unwrap();
            let place = |segment: Segment<'_>| (segment.addr.bits(), segment.len);
            mapping.segments().map(place).collect::<Vec<_>>()
        };
        assert_eq!(places(0..1), [(pages[0], 1)]);
        assert_eq!(places(0..PAGE), [(pages[0], PAGE)]);
        assert_eq!(
            places(PAGE - 1..PAGE + 2),
            [(pages[0] + 4095, 1), (pages[1], 2)]
        );
        assert_eq!(
            places(PAGE + 5..4 * PAGE),
            [(pages[1] + 5, PAGE - 5), (pages[2], PAGE), (pages[3], PAGE)]
        );
        let destination = Destination::new(Memory::scattered(2 * PAGE, PAGE).unwrap(), 7..PAGE + 7);
        let destination = destination.unwrap();
        let source = Source::new(memory.clone(), 0..PAGE).unwrap();
        let mut mapping = Mapping::default();
        let mapped = space.map_operation(&mut mapping, &destination, Some(&source));
        mapped.unwrap();
        let (written, read) = mapping.operation();
        assert_eq!((written.count(), read.count()), (2, 1));
    }

    #[test]
    fn parts_stay_inside() {
        let memory = Arc::new(Memory::new(100).unwrap());
        assert!(Source::new(memory.clone(), 0..101).is_none());
        assert!(Source::new(memory.clone(), 5..5).is_none());
        assert_eq!(Source::new(memory, 90..100).unwrap().bytes().len(), 10);
        let memory = Memory::new(100).unwrap();
        assert!(Destination::new(memory, 50..200).is_err());
    }

    #[test]
    fn a_device_without_the_address_lines_is_refused() {
        let space = host::direct_space();
        let source = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        assert!(space.map_source(&source).is_ok());
        let narrow = space.with_address_bits(12);
        assert_eq!(
            narrow.map_source(&source).unwrap_err(),
            MapError::Unreachable
        );
        assert!(narrow.coherent(64, 64).is_err());
    }

    #[test]
    fn withheld_memory_is_never_handed_out_again() {
        let before = withheld();
        let mut destination = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        destination.withhold();
        let coherent = host::direct_space().coherent(64, 64).unwrap();
        let scattered = Memory::scattered(2 * PAGE, PAGE).unwrap();
        let piece = scattered.extent().phys;
        let mut scattered = Destination::new(scattered, 0..PAGE).unwrap();
        scattered.withhold();
        let kept = [destination.phys(), coherent.addr().bits()];
        assert_eq!(withheld(), before, "somebody still owns them");
        drop(destination);
        coherent.withhold();
        drop(scattered);
        assert_eq!(withheld(), before + 3);
        assert!(host::bus_read(piece, &mut [0]).is_ok());
        // Blocks of this size are handed out lowest first: these two would come again.
        let others: Vec<_> = (0..64).map(|_| Memory::new(64).unwrap()).collect();
        let taken = |phys| others.iter().any(|memory| memory.extent().phys == phys);
        assert!(!kept.into_iter().any(taken));
    }

    #[test]
    fn a_space_without_the_means_isolates_nobody() {
        assert!(!host::direct_space().isolate());
    }

    #[test]
    fn coherent_words_are_seen_through_the_bus() {
        let coherent = host::direct_space().coherent(128, 64).unwrap();
        coherent.store64(64, 0x1122_3344_5566_7788, Ordering::Release);
        assert_eq!(coherent.load32(64, Ordering::Acquire), 0x5566_7788);
        let mut bytes = [0; 8];
        host::bus_read(coherent.addr().bits() + 64, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 0x1122_3344_5566_7788);
        coherent.store64s(112, &[1, 2], Ordering::Relaxed);
        assert_eq!(coherent.load64(120, Ordering::Relaxed), 2);
    }

    #[test]
    #[should_panic(expected = "coherent access at 0x78")]
    fn coherent_words_end_with_the_memory() {
        let coherent = host::direct_space().coherent(128, 64).unwrap();
        coherent.store64s(120, &[1, 2], Ordering::Relaxed);
    }
}
