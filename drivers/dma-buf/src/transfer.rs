//! Copies and fills between buffers, by engines or the CPU.
//!
//! Transfers are in a task of their own: it owns the memory from the end of what they wait for to
//! their own, whoever waits for it. Chunks are lent to the engine as a whole, and come back before the
//! fence.
//!
//! What is lent nobody reads, so that a copy of what is still being written would have to wait for the
//! CPU to take the memory back. Where both are on one way, to one ring, it does not: it takes its bytes
//! where the earlier one takes them, which nobody may write as long as that goes on. It says of those
//! bytes that it reads them, and ends after the earlier one and with its error.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::{Future, IntoFuture, poll_fn};
use core::mem;
use core::ops::Range;
use core::pin::pin;

use dma_fence::{Fence, FenceError, FenceOps, Signaler, next_context};
use dmaengine::{AsyncTx, BoxFuture, CopyError, DmaChan, Finished, Flags, Memcpy, Memset, Sent};
use hal::dma::{Destination, Memory, Source};
use hal::time::Duration;

use crate::buffer::{DmaBuf, Inner};
use crate::commit::Committed;
use crate::earlier::Earlier;
use crate::error::BufError;
use crate::manager::manager;
use crate::pages::{Pages, Stretch};
use crate::ticket::Reserved;
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
        let queued = self.queue().await?;
        let fence = queued.committed.fence().clone();
        drop(Group::from(queued));
        Ok(fence)
    }

    /// Publishes its fence.
    pub(crate) async fn queue(self) -> Result<Queued, BufError> {
        // Outlives the ticket, which may reserve it.
        let earlier: Option<(Fence, Bytes)>;
        let (dst, to, own, mut reserved) = match &self.what {
            What::Copy { dst, to, src, from } => {
                check(src, from)?;
                let end = to.checked_add(from.len()).ok_or(BufError::Range)?;
                check(dst, &(*to..end))?;
                let uses = [(dst.resv(), Usage::Write), (src.resv(), Usage::Read)];
                let reserved = manager().reserve("copy", uses).await?;
                (dst, *to..end, Bytes::Of(src.clone(), from.start), reserved)
            }
            What::Fill { dst, to, value } => {
                check(dst, to)?;
                let uses = [(dst.resv(), Usage::Write)];
                let reserved = manager().reserve("fill", uses).await?;
                (dst, to.clone(), Bytes::Value(*value), reserved)
            }
        };
        earlier = self.written_by();
        let follows = earlier
            .as_ref()
            .filter(|(fence, bytes)| bytes.reserve(&mut reserved, fence));
        let bytes = follows.map_or(own, |(_, bytes)| bytes.clone());
        let coming = Coming {
            tx: Arc::downgrade(&self.tx),
            to: to.clone(),
            bytes: bytes.downgrade(),
        };
        let waited = reserved.queue_waits()?;
        let committed = waited.commit(Fence::with_ops(next_context(), 1, Arc::new(coming)));
        let follows = follows.map(|(fence, _)| fence.clone());
        Ok(Queued {
            begin: committed.earlier().without(follows.as_ref()),
            work: Work {
                dst: dst.clone(),
                to,
                bytes,
            },
            tx: self.tx.clone(),
            follows,
            committed,
        })
    }

    /// What is on its way to all that is to be copied, by the same channel, and the fence of that. The
    /// source is reserved.
    fn written_by(&self) -> Option<(Fence, Bytes)> {
        let What::Copy { src, from, .. } = &self.what else {
            return None;
        };
        let fence = src.resv().writer()?;
        let coming: &Coming = fence.ops()?;
        let inside = coming.to.start <= from.start && from.end <= coming.to.end;
        if !inside || !Weak::ptr_eq(&coming.tx, &Arc::downgrade(&self.tx)) {
            return None;
        }
        let bytes = coming.bytes.upgrade(from.start - coming.to.start)?;
        Some((fence, bytes))
    }
}

/// Where the bytes of a transfer come from.
#[derive(Clone)]
enum Bytes {
    /// A buffer, from there on.
    Of(DmaBuf, usize),
    Value(u8),
}

/// The same, which keeps nothing: a fence in a reservation is there for longer than its work.
enum WeakBytes {
    Of(Weak<Inner>, usize),
    Value(u8),
}

impl Bytes {
    fn downgrade(&self) -> WeakBytes {
        match self {
            Self::Of(buf, at) => WeakBytes::Of(Arc::downgrade(&buf.inner), *at),
            Self::Value(value) => WeakBytes::Value(*value),
        }
    }

    /// Has them stay as they are, as a use of the ticket's, if nobody has been promised since the work
    /// behind `fence`, which reads them, that he may write them.
    fn reserve<'a>(&'a self, reserved: &mut Reserved<'a>, fence: &Fence) -> bool {
        let Self::Of(buf, _) = self else { return true };
        let resv = buf.resv();
        if !reserved.also(resv, Usage::Read) {
            return false;
        }
        let unchanged = resv.has(fence);
        if !unchanged {
            reserved.without(resv);
        }
        unchanged
    }
}

impl WeakBytes {
    /// Those from `skip` on.
    fn upgrade(&self, skip: usize) -> Option<Bytes> {
        Some(match self {
            Self::Of(buf, at) => {
                let inner = buf.upgrade()?;
                Bytes::Of(DmaBuf { inner }, at + skip)
            }
            Self::Value(value) => Bytes::Value(*value),
        })
    }
}

/// What the fence of a transfer tells those who come after it: the bytes `to` of the buffer that it
/// writes will be these, by way of `tx`.
struct Coming {
    tx: Weak<AsyncTx>,
    to: Range<usize>,
    bytes: WeakBytes,
}

/// Its task signals by itself.
impl FenceOps for Coming {
    fn enable_signaling(&self, _: &Fence, _: Option<Signaler>) {}
}

/// A transfer whose fence is published.
pub(crate) struct Queued {
    tx: Arc<AsyncTx>,
    work: Work,
    /// What it waits for before it begins.
    pub(crate) begin: Earlier,
    /// What it ends after, and need not wait for.
    pub(crate) follows: Option<Fence>,
    committed: Committed,
}

struct Work {
    dst: DmaBuf,
    to: Range<usize>,
    bytes: Bytes,
}

/// Transfers that begin together, in one task, with one doorbell and one interrupt where they fit
/// into a batch. Dropping it begins.
struct Group(Vec<Queued>);

impl From<Queued> for Group {
    fn from(queued: Queued) -> Self {
        Self([queued].into())
    }
}

impl Group {
    /// Whether one more goes the same way, and neither would wait for what it does not need.
    fn suits(&self, queued: &Queued) -> bool {
        let first = self.0.first();
        first.is_some_and(|first| {
            Arc::ptr_eq(&first.tx, &queued.tx) && first.begin.is_like(&queued.begin)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let queued = mem::take(&mut self.0);
        if !queued.is_empty() {
            hal::task::spawn("dma-buf", run(queued));
        }
    }
}

async fn run(group: Vec<Queued>) {
    let Some(tx) = group.first().map(|queued| queued.tx.clone()) else {
        return;
    };
    let (mut all, mut ends, mut results) = (Vec::new(), VecDeque::new(), Vec::new());
    for queued in group {
        results.push(queued.begin.wait().await);
        // What it leaves as it was is no better than before.
        let left = match queued.work.is_part() {
            true => queued.begin.written(),
            false => Ok(()),
        };
        ends.push_back((queued.committed, queued.follows, left));
        all.push(queued.work);
    }
    let mut parts = Vec::new();
    for (number, work) in all.iter().enumerate() {
        if results[number].is_ok() {
            work.add_parts(number, &mut parts);
        }
    }
    let count = ends.len();
    let mut rest = &parts[..];
    loop {
        // Those that have nothing left end.
        let open = rest.first().map_or(count, |part| part.number);
        while count - ends.len() < open {
            let number = count - ends.len();
            let result = results[number];
            all[number].dst.unmap_lost();
            if let Some((committed, follows, left)) = ends.pop_front() {
                end(committed, follows, result.and(left));
            }
        }
        if rest.is_empty() {
            return;
        }
        rest = step(&tx, rest, &mut results).await;
    }
}

/// Ends a transfer, with the error of what it follows where that has one.
fn end(committed: Committed, follows: Option<Fence>, result: Result<(), FenceError>) {
    let Some(first) = follows else {
        return committed.signal(result);
    };
    if let Some(before) = first.result() {
        return committed.signal(before.and(result));
    }
    hal::task::spawn("dma-buf", async move {
        let before = first.wait().await;
        committed.signal(before.and(result));
    });
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
        let mut group = Group(Vec::new());
        for stage in self.stages {
            let mut queue = pin!(stage.queue());
            let queued = poll_fn(|cx| {
                let queued = queue.as_mut().poll(cx);
                if queued.is_pending() {
                    // Who has what this stage is queued for may wait for those before it.
                    drop(Group(mem::take(&mut group.0)));
                }
                queued
            });
            let queued = queued.await?;
            fences.push(queued.committed.fence().clone());
            if group.suits(&queued) {
                group.0.push(queued);
            } else {
                group = Group::from(queued);
            }
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

/// What one operation does: it writes bytes of one chunk.
struct Part<'a> {
    /// Of which transfer it is.
    number: usize,
    /// A chunk is written once in a round.
    round: usize,
    dst: &'a Pages,
    to: Stretch,
    from: Origin<'a>,
}

enum Origin<'a> {
    Chunk(&'a Pages, Stretch),
    Value(u8),
}

impl Work {
    /// Whether it leaves a part of the buffer that it writes as it was.
    fn is_part(&self) -> bool {
        self.to.len() < self.dst.len()
    }

    fn add_parts<'a>(&'a self, number: usize, parts: &mut Vec<Part<'a>>) {
        let (dst, to) = (&self.dst.inner.pages, self.to.clone());
        match &self.bytes {
            Bytes::Of(src, at) => {
                let from = *at..*at + to.len();
                parts.extend(copies(number, dst, to, &src.inner.pages, from));
            }
            Bytes::Value(value) => {
                let fill = |to| Part {
                    number,
                    round: 0,
                    dst,
                    to,
                    from: Origin::Value(*value),
                };
                parts.extend(dst.stretches(to).into_iter().map(fill));
            }
        }
    }
}

/// Cuts a copy where either side's chunks end, into rounds in which each chunk is written once.
fn copies<'a>(
    number: usize,
    dst: &'a Pages,
    to: Range<usize>,
    src: &'a Pages,
    from: Range<usize>,
) -> Vec<Part<'a>> {
    let mut parts: Vec<Part<'a>> = Vec::new();
    let mut to = dst.stretches(to).into_iter();
    let mut from = src.stretches(from).into_iter();
    let (mut into, mut out) = (to.next(), from.next());
    while let (Some(write), Some(read)) = (&mut into, &mut out) {
        let len = write.bytes.len().min(read.bytes.len());
        let (to_now, from_now) = (write.split_off(len), read.split_off(len));
        let again = parts.last().filter(|last| last.to.chunk == to_now.chunk);
        parts.push(Part {
            number,
            round: again.map_or(0, |last| last.round + 1),
            dst,
            to: to_now,
            from: Origin::Chunk(src, from_now),
        });
        if write.bytes.is_empty() {
            into = to.next();
        }
        if read.bytes.is_empty() {
            out = from.next();
        }
    }
    parts.sort_by_key(|part| part.round);
    parts
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
    let parts = copies(0, dst, to..to + from.len(), src, from);
    let (mut rest, mut result) = (&parts[..], [Ok(())]);
    while !rest.is_empty() {
        rest = step(tx, rest, &mut result).await;
    }
    result[0]
}

/// Makes as many of `parts` as go together, those of transfers that have failed apart, and gives the
/// rest. What transfers have come to is in `results`, by their numbers.
async fn step<'p, 'a>(
    tx: &AsyncTx,
    parts: &'p [Part<'a>],
    results: &mut [Result<(), FenceError>],
) -> &'p [Part<'a>] {
    let goes_on =
        |pair: &[Part<'a>]| pair[0].number != pair[1].number || pair[0].round == pair[1].round;
    let together = 1 + parts.windows(2).take_while(|pair| goes_on(pair)).count();
    let (now, rest) = parts.split_at(together.min(BATCH).min(parts.len()));
    let mut batch: Vec<(&Part<'a>, Sending)> = Vec::with_capacity(now.len());
    for (at, part) in now.iter().enumerate() {
        if results[part.number].is_ok() {
            match send(tx, part, in_batch(at + 1 == now.len())).await {
                Ok(sending) => batch.push((part, sending)),
                Err(error) => results[part.number] = Err(error),
            }
        }
    }
    has_ended(&batch).await;
    for (part, sending) in batch {
        let (memory, one) = match sending {
            Sending::Copy(sent) => copied(tx, sent.submitted.finish().await).await,
            Sending::Fill(sent, value) => filled(sent.submitted.finish().await, value),
        };
        match memory {
            Some(memory) => part.dst.put(part.to.chunk, memory),
            None => part.dst.lose(part.to.chunk),
        }
        let result = &mut results[part.number];
        *result = result.and(one);
    }
    rest
}

/// An operation under way.
enum Sending {
    Copy(Sent<Memcpy>),
    Fill(Sent<Memset>, u8),
}

impl Sending {
    fn via(&self) -> &DmaChan {
        match self {
            Self::Copy(sent) => &sent.via,
            Self::Fill(sent, _) => &sent.via,
        }
    }

    fn fence(&self) -> &Fence {
        match self {
            Self::Copy(sent) => sent.submitted.fence(),
            Self::Fill(sent, _) => sent.submitted.fence(),
        }
    }

    fn issue(&self) {
        match self {
            Self::Copy(sent) => sent.issue(),
            Self::Fill(sent, _) => sent.issue(),
        }
    }
}

/// Takes what a part needs, and has it submitted.
async fn send(tx: &AsyncTx, part: &Part<'_>, flags: Flags) -> Result<Sending, FenceError> {
    let refused = |to: Destination| {
        part.dst.put(part.to.chunk, to.into_memory());
        FenceError::Gone
    };
    match &part.from {
        Origin::Chunk(src, stretch) => {
            let from = src.share(stretch.chunk).map_err(failed)?;
            let from = Source::new(from, stretch.bytes.clone()).ok_or(FenceError::Map)?;
            let sent = tx.memcpy(lend(part.dst, &part.to)?, from, flags).await;
            let sent = sent.map_err(|error| refused(error.buffers.0))?;
            Ok(Sending::Copy(sent))
        }
        Origin::Value(value) => {
            let sent = tx.memset(lend(part.dst, &part.to)?, *value, flags).await;
            let sent = sent.map_err(|error| refused(error.buffers))?;
            Ok(Sending::Fill(sent, *value))
        }
    }
}

fn lend(dst: &Pages, to: &Stretch) -> Result<Destination, FenceError> {
    let memory = dst.lend(to.chunk).map_err(failed)?;
    Destination::new(memory, to.bytes.clone()).map_err(|memory| {
        dst.put(to.chunk, memory);
        FenceError::Map
    })
}

/// The last operation of a batch rings for all, and interrupts for all.
fn in_batch(last: bool) -> Flags {
    if last { Flags::INTERRUPT } else { Flags::MORE }
}

/// Waits for the end of a batch. What went to another channel than the last, which interrupts, is
/// polled for.
async fn has_ended(batch: &[(&Part<'_>, Sending)]) {
    // Where another channel took the last one, or there was none, nobody has rung for these.
    let together = |a: &(_, Sending), b: &(_, Sending)| a.1.via().name() == b.1.via().name();
    let runs = batch.chunk_by(together);
    runs.for_each(|run| run[0].1.issue());
    // It is behind all others of its ring: who waits for it is woken once.
    let Some((_, last)) = batch.last() else {
        return;
    };
    let _ = last.fence().wait().await;
    for (_, sending) in batch {
        let (fence, via) = (sending.fence(), sending.via());
        let followed = last.via().name() == via.name();
        while !followed && via.poll_for(fence, LOOK).await.is_err() {}
    }
}

/// What came of an operation: the chunk, unless a device may still write it.
type Back = (Option<Memory>, Result<(), FenceError>);

/// As everywhere, what an engine fails another or the CPU does.
async fn copied(tx: &AsyncTx, finished: Finished<Memcpy>) -> Back {
    match (finished.buffers, finished.result) {
        (Some((to, from)), Err(_)) => match tx.copy(to, from).await {
            Ok(copied) => (Some(copied.dst.into_memory()), Ok(())),
            Err(CopyError::Refused(_, to, _)) => (Some(to.into_memory()), Err(FenceError::Gone)),
            Err(CopyError::Failed(error)) => (None, Err(error)),
        },
        (Some((to, _)), Ok(())) => (Some(to.into_memory()), Ok(())),
        (None, result) => (None, result.and(Err(FenceError::Gone))),
    }
}

fn filled(finished: Finished<Memset>, value: u8) -> Back {
    match (finished.buffers, finished.result) {
        (Some(mut to), result) => {
            if result.is_err() {
                to.bytes_mut().fill(value);
            }
            (Some(to.into_memory()), Ok(()))
        }
        (None, result) => (None, result.and(Err(FenceError::Gone))),
    }
}

/// A fence tells why memory was not there.
fn failed(error: BufError) -> FenceError {
    match error {
        BufError::Lost => FenceError::Gone,
        _ => FenceError::Map,
    }
}
