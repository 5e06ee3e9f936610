//! The buffer.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use dma_fence::sync::Mutex;
use dma_fence::{Fence, next_context};
use hal::dma::Direction;

use crate::attach::Attached;
use crate::commit::Committed;
use crate::error::BufError;
use crate::exporter::{Chunked, Exporter};
use crate::loan::Open;
use crate::manager::{SHARED_FENCES, manager};
use crate::pages::Pages;
use crate::resv::Resv;
use crate::usage::Usage;

/// A buffer that devices and CPUs share. Cloning it is a reference more; the last one frees it.
#[derive(Clone)]
pub struct DmaBuf {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) resv: Resv,
    pub(crate) exporter: Arc<dyn Exporter>,
    len: usize,
    pub(crate) pages: Pages,
    pub(crate) attachments: Mutex<Vec<Arc<Attached>>>,
    /// Who needs it where it is.
    pub(crate) pins: AtomicUsize,
    /// CPU accesses that have not ended.
    pub(crate) open: AtomicUsize,
}

/// All buffers there are, for those who look.
static LIVE: spin::Mutex<Vec<Weak<Inner>>> = spin::Mutex::new(Vec::new());

/// The buffers there are.
pub fn buffers() -> Vec<DmaBuf> {
    let live = LIVE.lock();
    let inners = live.iter().filter_map(Weak::upgrade);
    inners.map(|inner| DmaBuf { inner }).collect()
}

impl DmaBuf {
    /// A buffer of `len` zeroed bytes, page by page.
    pub fn new(len: usize) -> Result<Self, BufError> {
        Self::export(Arc::new(Chunked::default()), len)
    }

    /// A buffer of `len` bytes that `exporter` provides.
    pub fn export(exporter: Arc<dyn Exporter>, len: usize) -> Result<Self, BufError> {
        let pages = Pages::new(exporter.allocate(len)?);
        if len == 0 || pages.len() != len {
            return Err(BufError::OutOfMemory);
        }
        let inner = Arc::new(Inner {
            resv: Resv::with_room(manager(), SHARED_FENCES),
            exporter,
            len,
            pages,
            attachments: Mutex::default(),
            pins: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        LIVE.lock().push(Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// Its reservation, of the [`manager`] of all buffers.
    pub fn resv(&self) -> &Resv {
        &self.inner.resv
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// Never: it has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }

    /// In how many pieces of memory they are.
    pub fn chunks(&self) -> usize {
        self.inner.pages.count()
    }

    /// Keeps it where it is, as long as this is there.
    pub fn pin(&self) -> Pin {
        self.inner.pins.fetch_add(1, Ordering::Relaxed);
        Pin(self.clone())
    }

    /// Waits for what the CPU has to wait for, tells the exporter, and lends the CPU the memory to
    /// read. Work that writes the buffer waits until this is dropped.
    pub async fn begin_cpu_read(&self) -> Result<CpuRead, BufError> {
        Ok(CpuRead(self.begin_cpu(Direction::FromDevice).await?))
    }

    /// The same to read and write: all other work waits until this is dropped.
    pub async fn begin_cpu_write(&self) -> Result<CpuWrite, BufError> {
        Ok(CpuWrite(self.begin_cpu(Direction::Both).await?))
    }

    async fn begin_cpu(&self, direction: Direction) -> Result<Open, BufError> {
        let usage = match direction {
            Direction::FromDevice => Usage::Read,
            Direction::ToDevice | Direction::Both => Usage::Write,
        };
        let committed = self.queue("cpu", usage).await?.harmless();
        committed.wait().await?;
        Open::begin(self, direction, None, usage, Some(committed))
    }

    /// Publishes a fence for a use of its own.
    pub(crate) async fn queue(
        &self,
        by: &'static str,
        usage: Usage,
    ) -> Result<Committed, BufError> {
        queue(by, &[(self, usage)]).await
    }
}

/// Publishes one fence for uses of buffers.
pub(crate) async fn queue(
    by: &'static str,
    uses: &[(&DmaBuf, Usage)],
) -> Result<Committed, BufError> {
    let uses = uses.iter().map(|(buf, usage)| (buf.resv(), *usage));
    let waited = manager().reserve(by, uses).await?.queue_waits()?;
    Ok(waited.commit(Fence::new(next_context(), 1)))
}

/// Keeps a buffer where it is.
#[derive(Debug)]
pub struct Pin(DmaBuf);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.inner.pins.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The memory of a buffer for the CPU to read, until it is dropped.
#[derive(Debug)]
pub struct CpuRead(Open);

/// The memory of a buffer for the CPU alone, until it is dropped.
#[derive(Debug)]
pub struct CpuWrite(Open);

impl CpuRead {
    /// Its bytes, chunk by chunk.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.0.chunks()
    }

    /// Fills `bytes` from the buffer at `at`.
    pub fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), BufError> {
        self.0.read(at, bytes)
    }
}

impl CpuWrite {
    /// Its bytes, chunk by chunk.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.0.chunks()
    }

    /// The same to write.
    pub fn chunks_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.0.chunks_mut()
    }

    /// Fills `bytes` from the buffer at `at`.
    pub fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), BufError> {
        self.0.read(at, bytes)
    }

    /// Puts `bytes` into the buffer at `at`.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), BufError> {
        self.0.write(at, bytes)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        LIVE.lock().retain(|other| other.strong_count() > 0);
    }
}

/// `NUMBER by=EXPORTER size=N chunks=N pins=N cpu=N attachments=[NAME(FLAGS) …]`.
impl fmt::Display for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        write!(
            f,
            "{} by={} size={} chunks={} pins={} cpu={} attachments=[",
            inner.resv.number(),
            inner.exporter.name(),
            self.len(),
            self.chunks(),
            inner.pins.load(Ordering::Relaxed),
            inner.open.load(Ordering::Relaxed),
        )?;
        let attachments = inner.attachments.lock().clone();
        for (at, attached) in attachments.iter().enumerate() {
            let space = if at > 0 { " " } else { "" };
            write!(f, "{space}{attached}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({self})")
    }
}
