//! Copies and fills between buffers, by engines or the CPU.
//!
//! A transfer is a task of its own: it owns the memory from its fence's predecessors to its fence,
//! whoever waits for it. Chunks are lent to the engine as a whole, and come back before the fence.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::IntoFuture;
use core::ops::Range;

use dma_fence::{Fence, FenceError};
use dmaengine::{AsyncTx, BoxFuture, CopyError, Finished, Flags, Kind, Memcpy, Memset, Sent};
use hal::dma::{Destination, Memory, Source};
use hal::time::Duration;

use crate::buffer::{DmaBuf, queue};
use crate::commit::Committed;
use crate::error::BufError;
use crate::pages::{Pages, Stretch};
use crate::usage::Usage;

/// Operations that are in flight for one transfer at most.
const BATCH: usize = 64;
/// How long a channel is polled for an operation that does not interrupt, before others run.
const LOOK: Duration = Duration::from_millis(1);

/// A transfer that is to be made. Awaiting it makes it and waits for its end; giving that up leaves
/// the transfer to itself.
#[must_use = "nothing is transferred before it is awaited or submitted"]
#[derive(Clone, Debug)]
pub struct Transfer {
    tx: Arc<AsyncTx>,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Copy {
        dst: DmaBuf,
        to: usize,
        src: DmaBuf,
        from: Range<usize>,
    },
    Fill {
        dst: DmaBuf,
        to: Range<usize>,
        value: u8,
    },
}

/// Copies all of `src` to the beginning of `dst`.
pub fn copy(tx: &Arc<AsyncTx>, dst: &DmaBuf, src: &DmaBuf) -> Transfer {
    copy_range(tx, dst, 0, src, 0..src.len())
}

/// Copies the bytes `from` of `src` to `dst`, where they begin at `to`.
pub fn copy_range(
    tx: &Arc<AsyncTx>,
    dst: &DmaBuf,
    to: usize,
    src: &DmaBuf,
    from: Range<usize>,
) -> Transfer {
    let (tx, dst, src) = (tx.clone(), dst.clone(), src.clone());
    let what = What::Copy { dst, to, src, from };
    Transfer { tx, what }
}

/// Fills `dst` with `value`.
pub fn fill(tx: &Arc<AsyncTx>, dst: &DmaBuf, value: u8) -> Transfer {
    fill_range(tx, dst, 0..dst.len(), value)
}

/// Fills the bytes `to` of `dst` with `value`.
pub fn fill_range(tx: &Arc<AsyncTx>, dst: &DmaBuf, to: Range<usize>, value: u8) -> Transfer {
    let (tx, dst) = (tx.clone(), dst.clone());
    let what = What::Fill { dst, to, value };
    Transfer { tx, what }
}

impl Transfer {
    /// Queues it behind the earlier work on its buffers. The fence is that of its end.
    pub async fn submit(self) -> Result<Fence, BufError> {
        let committed = match &self.what {
            What::Copy { dst, to, src, from } => {
                check(src, from)?;
                let end = to.checked_add(from.len()).ok_or(BufError::Range)?;
                check(dst, &(*to..end))?;
                queue("copy", &[(dst, Usage::Write), (src, Usage::Read)]).await?
            }
            What::Fill { dst, to, .. } => {
                check(dst, to)?;
                queue("fill", &[(dst, Usage::Write)]).await?
            }
        };
        let fence = committed.fence().clone();
        hal::task::spawn("dma-buf", self.run(committed));
        Ok(fence)
    }

    async fn run(self, committed: Committed) {
        let mut result = committed.wait().await;
        if result.is_ok() {
            result = match self.what {
                What::Copy { dst, to, src, from } => {
                    copy_pages(&self.tx, &dst.inner.pages, to, &src.inner.pages, from).await
                }
                What::Fill { dst, to, value } => {
                    fill_pages(&self.tx, &dst.inner.pages, to, value).await
                }
            };
        }
        committed.signal(result);
    }
}

impl IntoFuture for Transfer {
    type Output = Result<(), BufError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        alloc::boxed::Box::pin(async { Ok(self.submit().await?.wait().await?) })
    }
}

/// Transfers in a row, each of which waits for what it needs of those before it, and no more.
/// Awaiting it makes them all, and waits for the last of them to end.
#[must_use = "nothing is transferred before it is awaited or submitted"]
#[derive(Clone, Debug, Default)]
pub struct Pipeline {
    stages: Vec<Transfer>,
}

impl Pipeline {
    /// Without stages.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more.
    pub fn then(mut self, stage: Transfer) -> Self {
        self.stages.push(stage);
        self
    }

    /// Queues all stages, and gives their fences. Where one is refused those before it stay queued.
    pub async fn submit(self) -> Result<Vec<Fence>, BufError> {
        let mut fences = Vec::with_capacity(self.stages.len());
        for stage in self.stages {
            fences.push(stage.submit().await?);
        }
        Ok(fences)
    }
}

impl IntoFuture for Pipeline {
    type Output = Result<(), BufError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        alloc::boxed::Box::pin(async {
            let mut result = Ok(());
            for fence in self.submit().await? {
                let ended = fence.wait().await;
                result = result.and(ended.map_err(BufError::Failed));
            }
            result
        })
    }
}

fn check(buf: &DmaBuf, range: &Range<usize>) -> Result<(), BufError> {
    let inside = range.start < range.end && range.end <= buf.len();
    inside.then_some(()).ok_or(BufError::Range)
}

/// A copy between one chunk and another.
struct Piece {
    to: Stretch,
    from: Stretch,
}

/// Cuts a copy where either side's chunks end, into rounds in which each chunk is written once.
fn rounds(to: Vec<Stretch>, from: Vec<Stretch>) -> Vec<Vec<Piece>> {
    let mut rounds: Vec<Vec<Piece>> = Vec::new();
    let (mut to, mut from) = (to.into_iter(), from.into_iter());
    let (mut dst, mut src) = (to.next(), from.next());
    let (mut round, mut chunk) = (0, None);
    while let (Some(into), Some(out)) = (&mut dst, &mut src) {
        let len = into.bytes.len().min(out.bytes.len());
        let piece = Piece {
            to: into.split_off(len),
            from: out.split_off(len),
        };
        round = if chunk == Some(piece.to.chunk) {
            round + 1
        } else {
            0
        };
        chunk = Some(piece.to.chunk);
        if rounds.len() == round {
            rounds.push(Vec::new());
        }
        rounds[round].push(piece);
        if into.bytes.is_empty() {
            dst = to.next();
        }
        if out.bytes.is_empty() {
            src = from.next();
        }
    }
    rounds
}

/// Copies between chunks; the first error counts. Where there is one, what was to be written is
/// undefined, and all memory is back all the same.
pub(crate) async fn copy_pages(
    tx: &AsyncTx,
    dst: &Pages,
    to: usize,
    src: &Pages,
    from: Range<usize>,
) -> Result<(), FenceError> {
    let to = dst.stretches(to..to + from.len());
    for round in rounds(to, src.stretches(from)) {
        for pieces in round.chunks(BATCH) {
            copy_batch(tx, dst, src, pieces).await?;
        }
    }
    Ok(())
}

async fn copy_batch(
    tx: &AsyncTx,
    dst: &Pages,
    src: &Pages,
    pieces: &[Piece],
) -> Result<(), FenceError> {
    let mut batch: Vec<(usize, Sent<Memcpy>)> = Vec::with_capacity(pieces.len());
    let mut result = Ok(());
    for (at, piece) in pieces.iter().enumerate() {
        let sent = match borrow(dst, src, piece) {
            Ok((to, from)) => tx.memcpy(to, from, in_batch(at + 1 == pieces.len())).await,
            Err(error) => {
                result = Err(error);
                break;
            }
        };
        match sent {
            Ok(sent) => batch.push((piece.to.chunk, sent)),
            Err(error) => {
                dst.put(piece.to.chunk, error.buffers.0.into_memory());
                result = Err(FenceError::Gone);
                break;
            }
        }
    }
    for (chunk, finished) in ended(batch).await {
        let one = match finished {
            Finished {
                buffers: Some((to, _)),
                result: Ok(()),
            } => Ok(to.into_memory()),
            // As everywhere, what an engine fails another or the CPU does.
            Finished {
                buffers: Some((to, from)),
                ..
            } => match tx.copy(to, from).await {
                Ok(copied) => Ok(copied.dst.into_memory()),
                Err(CopyError::Refused(_, to, _)) => {
                    result = result.and(Err(FenceError::Gone));
                    Ok(to.into_memory())
                }
                Err(CopyError::Failed(error)) => Err(error),
            },
            Finished { result, .. } => Err(result.err().unwrap_or(FenceError::Gone)),
        };
        result = result.and(settle(dst, chunk, one));
    }
    result
}

/// Takes what a piece needs.
fn borrow(dst: &Pages, src: &Pages, piece: &Piece) -> Result<(Destination, Source), FenceError> {
    let from = src.share(piece.from.chunk).map_err(failed)?;
    let from = Source::new(from, piece.from.bytes.clone()).ok_or(FenceError::Map)?;
    Ok((lend(dst, &piece.to)?, from))
}

fn lend(dst: &Pages, to: &Stretch) -> Result<Destination, FenceError> {
    let memory = dst.lend(to.chunk).map_err(failed)?;
    Destination::new(memory, to.bytes.clone()).map_err(|memory| {
        dst.put(to.chunk, memory);
        FenceError::Map
    })
}

async fn fill_pages(
    tx: &AsyncTx,
    dst: &Pages,
    to: Range<usize>,
    value: u8,
) -> Result<(), FenceError> {
    let mut result = Ok(());
    for pieces in dst.stretches(to).chunks(BATCH) {
        let mut batch: Vec<(usize, Sent<Memset>)> = Vec::with_capacity(pieces.len());
        for (at, to) in pieces.iter().enumerate() {
            let sent = match lend(dst, to) {
                Ok(to) => tx.memset(to, value, in_batch(at + 1 == pieces.len())).await,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            match sent {
                Ok(sent) => batch.push((to.chunk, sent)),
                Err(error) => {
                    dst.put(to.chunk, error.buffers.into_memory());
                    result = Err(FenceError::Gone);
                    break;
                }
            }
        }
        for (chunk, finished) in ended(batch).await {
            let one = match (finished.buffers, finished.result) {
                (Some(mut to), result) => {
                    if result.is_err() {
                        to.bytes_mut().fill(value);
                    }
                    Ok(to.into_memory())
                }
                (None, result) => Err(result.err().unwrap_or(FenceError::Gone)),
            };
            result = result.and(settle(dst, chunk, one));
        }
        result?;
    }
    Ok(())
}

/// The last operation of a batch rings for all, and interrupts for all.
fn in_batch(last: bool) -> Flags {
    if last { Flags::INTERRUPT } else { Flags::MORE }
}

/// Waits for the end of a batch. What went to another channel than the last, which interrupts, is
/// polled for.
async fn ended<K: Kind>(batch: Vec<(usize, Sent<K>)>) -> Vec<(usize, Finished<K>)> {
    let mut all = Vec::with_capacity(batch.len());
    let last = batch.last().map(|(_, sent)| sent.via.clone());
    // Where another channel took the last one, or there was none, nobody has rung for these.
    let together = |a: &(usize, Sent<K>), b: &(usize, Sent<K>)| a.1.via.name() == b.1.via.name();
    let runs = batch.chunk_by(together);
    runs.for_each(|run| run[0].1.issue());
    for (chunk, sent) in batch {
        let (fence, via) = (sent.submitted.fence(), &sent.via);
        let followed = last.as_ref().is_some_and(|last| last.name() == via.name());
        while !followed && via.poll_for(fence, LOOK).await.is_err() {}
        all.push((chunk, sent.submitted.finish().await));
    }
    all
}

/// Takes a chunk back, or does without what a device may still write.
fn settle(dst: &Pages, chunk: usize, one: Result<Memory, FenceError>) -> Result<(), FenceError> {
    match one {
        Ok(memory) => {
            dst.put(chunk, memory);
            Ok(())
        }
        Err(error) => {
            dst.lose(chunk);
            Err(error)
        }
    }
}

/// A fence tells why memory was not there.
fn failed(error: BufError) -> FenceError {
    match error {
        BufError::Lost => FenceError::Gone,
        _ => FenceError::Map,
    }
}
