//! Attachments: devices that use a buffer, and how.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::{fmt, mem};

use bitflags::bitflags;
use dma_fence::sync::Mutex;
use hal::dma::{Destination, Direction, DmaSpace, Mapping, Memory, Segment, Source};

use crate::buffer::DmaBuf;
use crate::commit::Committed;
use crate::error::BufError;
use crate::loan::{Chunks, Loan, Open};
use crate::usage::Usage;

bitflags! {
    /// How an importer uses its attachment. Without flags it knows nothing of fences: each access
    /// waits for them, and is waited for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AttachFlags: u8 {
        /// It reserves, waits and publishes fences of its own.
        const ASYNC_ATTACHMENT = 1;
        /// It copes with a buffer that moves. Implies the other: moves wait by fences.
        const EVICTABLE = 2;
    }
}

/// A device that uses buffers, and its driver.
#[derive(Clone)]
pub struct Importer {
    /// Its name.
    pub name: &'static str,
    /// Where it does DMA.
    pub space: DmaSpace,
    /// Whether it sees what CPUs and other such devices write without anybody flushing caches.
    pub coherent: bool,
    /// Told when a buffer that it has mapped moves, and work on it waits: it notes the fact.
    pub move_notify: Option<MoveNotify>,
}

/// What an importer has run when a buffer of its moves.
pub type MoveNotify = Arc<dyn Fn(&DmaBuf) + Send + Sync>;

/// A device's use of a buffer. Dropping it detaches.
pub struct Attachment {
    buf: DmaBuf,
    shared: Arc<Attached>,
}

/// An attachment as its buffer knows it.
pub(crate) struct Attached {
    pub(crate) importer: Importer,
    flags: AttachFlags,
    maps: Mutex<Maps>,
    /// Accesses that have not ended.
    pub(crate) open: AtomicUsize,
}

#[derive(Default)]
struct Maps {
    read: Option<Arc<Vec<Mapping>>>,
    write: Option<Arc<Vec<Mapping>>>,
    /// It was mapped when the buffer moved.
    evicted: bool,
}

impl DmaBuf {
    /// Attaches a device.
    pub fn attach(&self, importer: Importer, flags: AttachFlags) -> Result<Attachment, BufError> {
        let mut flags = flags;
        if flags.contains(AttachFlags::EVICTABLE) {
            flags |= AttachFlags::ASYNC_ATTACHMENT;
        }
        let exporter = &self.inner.exporter;
        exporter.attach(&importer, flags)?;
        let shared = Arc::new(Attached {
            importer,
            flags,
            maps: Mutex::default(),
            open: AtomicUsize::new(0),
        });
        {
            let mut attachments = self.inner.attachments.lock();
            attachments.push(shared.clone());
            let synchronous = attachments.iter().all(|other| !other.is_async());
            let coherent = attachments.iter().all(|other| other.importer.coherent);
            if !synchronous && !coherent && !exporter.flushes() {
                attachments.pop();
                drop(attachments);
                exporter.detach(&shared.importer);
                return Err(BufError::Incoherent);
            }
        }
        let buf = self.clone();
        Ok(Attachment { buf, shared })
    }
}

impl Attachment {
    /// The buffer.
    pub fn buf(&self) -> &DmaBuf {
        &self.buf
    }

    /// How it is used.
    pub fn flags(&self) -> AttachFlags {
        self.shared.flags
    }

    /// Maps the buffer for the device, unless it is: once, for all accesses in that direction. Waits
    /// as an access does. A device reads or writes: what does both is refused.
    pub async fn map(&self, direction: Direction) -> Result<(), BufError> {
        if direction == Direction::Both {
            return Err(BufError::Refused);
        }
        if self.mapped(direction)?.is_some() {
            return Ok(());
        }
        let usage = usage(direction);
        let committed = self.buf.queue(self.shared.importer.name, usage).await?;
        let committed = committed.harmless();
        // What is there need not be right to be mapped.
        let _ = committed.wait().await;
        let mut loan = Loan::take(&self.buf.inner, usage)?;
        let space = &self.shared.importer.space;
        let mapped: Result<Vec<_>, _> = match &mut loan.chunks {
            Chunks::Shared(chunks) => chunks
                .iter()
                .map(|memory| map_read(space, memory))
                .collect(),
            Chunks::Lent(chunks) => {
                let all = mem::take(chunks).into_iter();
                let (back, mapped): (_, Vec<_>) =
                    all.map(|memory| map_write(space, memory)).unzip();
                *chunks = back;
                mapped.into_iter().collect()
            }
        };
        let mapped = Arc::new(mapped?);
        // Before the fence: the buffer does not move meanwhile.
        *self.shared.maps.lock().of(direction) = Some(mapped);
        drop(loan);
        Ok(())
    }

    /// Takes the device's access away, and forgets an eviction. Accesses have ended: they borrow the
    /// attachment.
    pub fn unmap(&mut self) -> Result<(), BufError> {
        let maps = mem::take(&mut *self.shared.maps.lock());
        if maps.read.is_none() && maps.write.is_none() && !maps.evicted {
            return Err(BufError::NotMapped);
        }
        Ok(())
    }

    /// Waits for what the access has to wait for, then tells the exporter and lends the device the
    /// memory. Work that the access is in the way of waits until it is dropped.
    pub async fn begin_dma(&self, direction: Direction) -> Result<DmaAccess<'_>, BufError> {
        self.mapped(direction)?.ok_or(BufError::NotMapped)?;
        let usage = usage(direction);
        let committed = self.buf.queue(self.shared.importer.name, usage).await?;
        let committed = committed.harmless();
        committed.wait().await?;
        self.begin(direction, usage, Some(committed))
    }

    /// The same for an importer that has reserved and published a fence, and waited, itself.
    pub fn begin_async(&self, direction: Direction) -> Result<DmaAccess<'_>, BufError> {
        if !self.shared.is_async() {
            return Err(BufError::Synchronous);
        }
        self.begin(direction, usage(direction), None)
    }

    fn begin(
        &self,
        direction: Direction,
        usage: Usage,
        committed: Option<Committed>,
    ) -> Result<DmaAccess<'_>, BufError> {
        let maps = self.mapped(direction)?.ok_or(BufError::NotMapped)?;
        let device = Some(&self.shared);
        let open = Open::begin(&self.buf, direction, device, usage, committed)?;
        Ok(DmaAccess {
            maps,
            open,
            attachment: PhantomData,
        })
    }

    fn mapped(&self, direction: Direction) -> Result<Option<Arc<Vec<Mapping>>>, BufError> {
        let mut maps = self.shared.maps.lock();
        if maps.evicted {
            return Err(BufError::Evicted);
        }
        Ok(maps.of(direction).clone())
    }
}

impl Maps {
    fn of(&mut self, direction: Direction) -> &mut Option<Arc<Vec<Mapping>>> {
        if usage(direction).is_exclusive() {
            &mut self.write
        } else {
            &mut self.read
        }
    }
}

impl Attached {
    fn is_async(&self) -> bool {
        self.flags.contains(AttachFlags::ASYNC_ATTACHMENT)
    }

    pub(crate) fn is_evictable(&self) -> bool {
        self.flags.contains(AttachFlags::EVICTABLE)
    }

    /// The buffer moves: mappings end, and the importer is told if it had some.
    pub(crate) fn evict(&self, buf: &DmaBuf) {
        let gone = {
            let mut maps = self.maps.lock();
            let gone = (maps.read.take(), maps.write.take());
            maps.evicted |= gone.0.is_some() || gone.1.is_some();
            gone
        };
        let told = gone.0.is_some() || gone.1.is_some();
        drop(gone);
        if let Some(notify) = &self.importer.move_notify
            && told
        {
            notify(buf);
        }
    }
}

/// An access of a device, which ends when it is dropped.
pub struct DmaAccess<'a> {
    maps: Arc<Vec<Mapping>>,
    open: Open,
    attachment: PhantomData<&'a Attachment>,
}

impl DmaAccess<'_> {
    /// The buffer as the device sees it, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.maps.iter().flat_map(Mapping::segments)
    }

    /// What the device reads, for an engine that takes it chunk by chunk; none where it writes. They
    /// are to be dropped before the access: who writes next finds them in the way.
    pub fn sources(&self) -> impl Iterator<Item = Source> {
        let whole = |memory: &Arc<Memory>| Source::new(memory.clone(), 0..memory.len());
        self.open.shared().iter().filter_map(whole)
    }
}

/// What a device that moves data in this direction does with a buffer.
fn usage(direction: Direction) -> Usage {
    match direction {
        Direction::ToDevice => Usage::Read,
        Direction::FromDevice | Direction::Both => Usage::Write,
    }
}

fn map_read(space: &DmaSpace, memory: &Arc<Memory>) -> Result<Mapping, BufError> {
    let source = Source::new(memory.clone(), 0..memory.len()).ok_or(BufError::Range)?;
    Ok(space.map_source(&source)?)
}

/// Maps memory to be written, and gives it back.
fn map_write(space: &DmaSpace, memory: Memory) -> (Memory, Result<Mapping, BufError>) {
    let len = memory.len();
    match Destination::new(memory, 0..len) {
        Ok(destination) => {
            let mapping = space.map_destination(&destination);
            (destination.into_memory(), mapping.map_err(BufError::Map))
        }
        Err(memory) => (memory, Err(BufError::Range)),
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let open = self.shared.open.load(Ordering::Relaxed);
        if open > 0 {
            // They borrow the attachment: somebody has forgotten them.
            log::warn!(
                "dma-buf {}: {} detaches with {open} accesses open",
                self.buf,
                self.shared
            );
        }
        let maps = mem::take(&mut *self.shared.maps.lock());
        drop(maps);
        let mut attachments = self.buf.inner.attachments.lock();
        attachments.retain(|other| !Arc::ptr_eq(other, &self.shared));
        drop(attachments);
        self.buf.inner.exporter.detach(&self.shared.importer);
    }
}

/// `NAME(FLAGS)`.
impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_evictable() {
            "async,evictable"
        } else if self.is_async() {
            "async"
        } else {
            "sync"
        };
        write!(f, "{}({how})", self.importer.name)
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attachment({}, {:?})", self.shared, self.buf)
    }
}

impl fmt::Debug for DmaAccess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaAccess({:?}, {:?})", self.open, self.maps)
    }
}

impl fmt::Debug for Importer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Importer({}, {:?})", self.name, self.space)
    }
}
