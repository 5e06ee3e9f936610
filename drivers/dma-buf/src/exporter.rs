//! Who provides a buffer's memory, and keeps caches in order.

use alloc::vec::Vec;

use hal::dma::{Direction, Memory, OutOfMemory, PAGE};

use crate::attach::{AttachFlags, Importer};
use crate::error::BufError;

/// What an exporter does for its buffers. All but the first two have a default: memory that CPUs and
/// devices see alike needs no care.
///
/// Whoever is to see what another has written hears of it after that work's fence: the calls that
/// flush or invalidate caches come when there is all to flush.
pub trait Exporter: Send + Sync {
    /// Who it is.
    fn name(&self) -> &'static str;

    /// Memory for `len` bytes, in as many chunks as it likes: for a new buffer, or for one that moves.
    fn allocate(&self, len: usize) -> Result<Vec<Memory>, OutOfMemory>;

    /// Whether `importer` may use the buffer.
    fn attach(&self, _importer: &Importer, _flags: AttachFlags) -> Result<(), BufError> {
        Ok(())
    }

    /// It does not use it any more.
    fn detach(&self, _importer: &Importer) {}

    /// Whether it brings caches in order between devices that do not see each other's writes.
    fn flushes(&self) -> bool {
        false
    }

    /// A device begins to move data. Direction as the device sees it.
    fn begin_dma(&self, _importer: &Importer, _direction: Direction) {}

    /// It has ended.
    fn end_dma(&self, _importer: &Importer, _direction: Direction) {}

    /// The CPU begins: to read where data goes to it, else to write.
    fn begin_cpu_access(&self, _direction: Direction) {}

    /// It has ended.
    fn end_cpu_access(&self, _direction: Direction) {}
}

/// Memory of the machine, in chunks of a size.
#[derive(Clone, Copy, Debug)]
pub struct Chunked(pub usize);

impl Default for Chunked {
    /// Page by page.
    fn default() -> Self {
        Self(PAGE)
    }
}

impl Exporter for Chunked {
    fn name(&self) -> &'static str {
        "system"
    }

    fn allocate(&self, len: usize) -> Result<Vec<Memory>, OutOfMemory> {
        let size = self.0.max(PAGE);
        let starts = (0..len).step_by(size);
        starts
            .map(|start| Memory::new(size.min(len - start)))
            .collect()
    }
}
