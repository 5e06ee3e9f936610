//! Moving a buffer: other memory, the same bytes.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use dmaengine::AsyncTx;
use spin::Mutex;

use crate::attach::Attached;
use crate::buffer::DmaBuf;
use crate::error::BufError;
use crate::pages::Pages;
use crate::transfer::copy_pages;
use crate::usage::Usage;

impl DmaBuf {
    /// Gives the buffer other memory, and frees what it had. All attachments must be evictable, and
    /// nobody have it pinned. All work on it is waited for, and work that comes meanwhile waits. An
    /// importer that had it mapped is told, and finds its next access refused.
    ///
    /// Once it has begun it goes on, whoever waits.
    pub async fn evict(&self, tx: &Arc<AsyncTx>) -> Result<(), BufError> {
        self.may_move()?;
        let committed = self.queue("evict", Usage::Kernel).await?.harmless();
        let fence = committed.fence().clone();
        let (buf, tx, told) = (self.clone(), tx.clone(), Arc::new(Mutex::new(Ok(()))));
        let outcome = told.clone();
        hal::task::spawn("dma-buf", async move {
            let _ = committed.wait().await;
            *told.lock() = buf.relocate(&tx).await;
            committed.signal_unchanged();
        });
        // How those who wrote have ended is for those who read.
        let _ = fence.wait().await;
        let outcome = outcome.lock();
        *outcome
    }

    /// With nobody else at work on it.
    async fn relocate(&self, tx: &AsyncTx) -> Result<(), BufError> {
        // Who has come since waits for the move before it maps.
        self.may_move()?;
        let new = Pages::new(self.inner.exporter.allocate(self.len())?);
        if new.len() != self.len() {
            return Err(BufError::OutOfMemory);
        }
        copy_pages(tx, &new, 0, &self.inner.pages, 0..self.len()).await?;
        let attachments = self.inner.attachments.lock().clone();
        attachments.iter().for_each(|attached| attached.evict(self));
        self.inner.pages.swap(new)
    }

    /// Ends the mappings of memory that was lost, if some was: importers map anew. Before those hear
    /// of it who wait for the work that has lost it.
    pub(crate) fn unmap_lost(&self) {
        if self.inner.pages.take_lost() {
            let attachments = self.inner.attachments.lock().clone();
            attachments.iter().for_each(|attached| attached.evict(self));
        }
    }

    fn may_move(&self) -> Result<(), BufError> {
        let attachments = self.inner.attachments.lock();
        let fixed = |attached: &Arc<Attached>| !attached.is_evictable();
        if self.inner.pins.load(Ordering::Relaxed) > 0 || attachments.iter().any(fixed) {
            return Err(BufError::Pinned);
        }
        Ok(())
    }
}
