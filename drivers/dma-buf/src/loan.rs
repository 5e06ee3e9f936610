//! Memory of a buffer in the hands of a CPU or a device, from begin to end.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use hal::dma::{Direction, Memory};

use crate::attach::Attached;
use crate::buffer::{DmaBuf, Inner};
use crate::commit::Committed;
use crate::error::BufError;
use crate::usage::Usage;

/// All chunks of a buffer, to be given back.
pub(crate) struct Loan {
    buf: Arc<Inner>,
    pub(crate) chunks: Chunks,
}

pub(crate) enum Chunks {
    /// To read.
    Shared(Vec<Arc<Memory>>),
    /// To write.
    Lent(Vec<Memory>),
}

impl Loan {
    /// Takes all chunks, or none.
    pub(crate) fn take(buf: &Arc<Inner>, usage: Usage) -> Result<Self, BufError> {
        let (pages, buf) = (&buf.pages, buf.clone());
        let all = 0..pages.count();
        if !usage.is_exclusive() {
            let chunks = all.map(|at| pages.share(at)).collect::<Result<_, _>>()?;
            let chunks = Chunks::Shared(chunks);
            return Ok(Self { buf, chunks });
        }
        let mut loan = Self {
            chunks: Chunks::Lent(Vec::with_capacity(all.len())),
            buf,
        };
        for at in all {
            // What was taken before goes back with the loan.
            let memory = loan.buf.pages.lend(at)?;
            if let Chunks::Lent(chunks) = &mut loan.chunks {
                chunks.push(memory);
            }
        }
        Ok(loan)
    }

    fn iter(&self) -> impl Iterator<Item = &Memory> {
        let (shared, lent) = match &self.chunks {
            Chunks::Shared(chunks) => (&chunks[..], &[][..]),
            Chunks::Lent(chunks) => (&[][..], &chunks[..]),
        };
        shared.iter().map(|memory| &**memory).chain(lent)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Chunks::Lent(chunks) = &mut self.chunks {
            for (at, memory) in chunks.drain(..).enumerate() {
                self.buf.pages.put(at, memory);
            }
        }
    }
}

/// An access that has begun. Dropping it ends it: the exporter is told, the memory goes back, and
/// its fence is signalled, in this order.
pub(crate) struct Open {
    buf: DmaBuf,
    direction: Direction,
    /// Whose it is, where it is not the CPU's.
    device: Option<Arc<Attached>>,
    loan: Option<Loan>,
    /// `None` where the importer has fences of its own.
    committed: Option<Committed>,
}

impl Open {
    /// Begins an access of `device`, or else of the CPU. Without `committed` the importer has
    /// published a fence and waited.
    pub(crate) fn begin(
        buf: &DmaBuf,
        direction: Direction,
        device: Option<&Arc<Attached>>,
        usage: Usage,
        committed: Option<Committed>,
    ) -> Result<Self, BufError> {
        let loan = Loan::take(&buf.inner, usage)?;
        match device {
            None => {
                buf.inner.open.fetch_add(1, Ordering::Relaxed);
                buf.inner.exporter.begin_cpu_access(direction);
            }
            Some(device) => {
                device.open.fetch_add(1, Ordering::Relaxed);
                buf.inner.exporter.begin_dma(&device.importer, direction);
            }
        }
        Ok(Self {
            buf: buf.clone(),
            direction,
            device: device.cloned(),
            loan: Some(loan),
            committed,
        })
    }

    /// What is read.
    pub(crate) fn shared(&self) -> &[Arc<Memory>] {
        match self.loan.as_ref().map(|loan| &loan.chunks) {
            Some(Chunks::Shared(chunks)) => chunks,
            _ => &[],
        }
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let memory = self.loan.iter().flat_map(Loan::iter);
        memory.map(|memory| &**memory)
    }

    pub(crate) fn chunks_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let lent = match self.loan.as_mut().map(|loan| &mut loan.chunks) {
            Some(Chunks::Lent(chunks)) => &mut chunks[..],
            _ => &mut [],
        };
        lent.iter_mut().map(|memory| &mut **memory)
    }

    pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), BufError> {
        self.check(at, bytes.len())?;
        let (mut skip, mut rest) = (at, bytes);
        for chunk in self.chunks() {
            let from = chunk.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(chunk.len());
            let (now, later) = rest.split_at_mut(from.len().min(rest.len()));
            now.copy_from_slice(&from[..now.len()]);
            rest = later;
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), BufError> {
        self.check(at, bytes.len())?;
        let (mut skip, mut rest) = (at, bytes);
        for chunk in self.chunks_mut() {
            let len = chunk.len();
            let to = chunk.get_mut(skip..).unwrap_or_default();
            skip = skip.saturating_sub(len);
            let (now, later) = rest.split_at(to.len().min(rest.len()));
            to[..now.len()].copy_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    fn check(&self, at: usize, len: usize) -> Result<(), BufError> {
        let end = at.checked_add(len);
        let inside = end.is_some_and(|end| end <= self.buf.len());
        inside.then_some(()).ok_or(BufError::Range)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let exporter = &self.buf.inner.exporter;
        match &self.device {
            None => {
                exporter.end_cpu_access(self.direction);
                self.buf.inner.open.fetch_sub(1, Ordering::Relaxed);
            }
            Some(device) => {
                exporter.end_dma(&device.importer, self.direction);
                device.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
        drop(self.loan.take());
        if let Some(committed) = self.committed.take() {
            committed.signal(Ok(()));
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Open({:?}, {:?})", self.buf, self.direction)
    }
}
