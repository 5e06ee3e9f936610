//! The memory of a buffer: chunks anywhere, each with one owner at a time.
//!
//! A chunk that is read is shared, one that is written is lent: taken out as a whole, so that nobody
//! else has a way to it until it is back. Fences order the two; that neither can happen during the
//! other does not depend on them.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use dma_fence::sync::Mutex;
use hal::dma::Memory;

use crate::error::BufError;

/// The chunks of a buffer, in order.
pub(crate) struct Pages {
    chunks: Mutex<Vec<Chunk>>,
    /// One was lost, and who has it mapped has not been told.
    lost: AtomicBool,
}

struct Chunk {
    /// Where it stands in the buffer.
    range: Range<usize>,
    state: State,
}

enum State {
    /// Here; shared with those who read.
    Here(Arc<Memory>),
    /// With somebody who writes it.
    Lent,
    /// A device that is gone may still write it, and there was no memory to replace it.
    Lost,
}

/// A stretch of a buffer inside one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Which chunk.
    pub(crate) chunk: usize,
    /// Which of its bytes.
    pub(crate) bytes: Range<usize>,
}

impl Pages {
    pub(crate) fn new(memory: Vec<Memory>) -> Self {
        Self {
            chunks: Mutex::new(chunks(memory)),
            lost: AtomicBool::new(false),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.chunks.lock().len()
    }

    /// Bytes of all chunks.
    pub(crate) fn len(&self) -> usize {
        self.chunks.lock().last().map_or(0, |chunk| chunk.range.end)
    }

    /// Where the bytes `range` of the buffer are.
    pub(crate) fn stretches(&self, range: Range<usize>) -> Vec<Stretch> {
        let chunks = self.chunks.lock();
        let first = chunks.partition_point(|chunk| chunk.range.end <= range.start);
        let inside = chunks.iter().enumerate().skip(first);
        let inside = inside.take_while(|(_, chunk)| chunk.range.start < range.end);
        let stretch = |(at, chunk): (usize, &Chunk)| Stretch {
            chunk: at,
            bytes: range.start.max(chunk.range.start) - chunk.range.start
                ..range.end.min(chunk.range.end) - chunk.range.start,
        };
        inside.map(stretch).collect()
    }

    /// A chunk to read.
    pub(crate) fn share(&self, at: usize) -> Result<Arc<Memory>, BufError> {
        match self.chunks.lock().get(at).map(|chunk| &chunk.state) {
            Some(State::Here(memory)) => Ok(memory.clone()),
            Some(State::Lent) => Err(BufError::Busy),
            Some(State::Lost) => Err(BufError::Lost),
            None => Err(BufError::Range),
        }
    }

    /// A chunk to write, which nobody reads.
    pub(crate) fn lend(&self, at: usize) -> Result<Memory, BufError> {
        let mut chunks = self.chunks.lock();
        let state = &mut chunks.get_mut(at).ok_or(BufError::Range)?.state;
        match mem::replace(state, State::Lent) {
            State::Here(memory) => Arc::try_unwrap(memory).map_err(|shared| {
                *state = State::Here(shared);
                BufError::Busy
            }),
            State::Lent => Err(BufError::Busy),
            State::Lost => {
                *state = State::Lost;
                Err(BufError::Lost)
            }
        }
    }

    /// Takes a lent chunk back.
    pub(crate) fn put(&self, at: usize, memory: Memory) {
        self.settle(at, State::Here(Arc::new(memory)));
    }

    /// A lent chunk does not come back: there is another one in its place from now on, if there is
    /// memory for it.
    pub(crate) fn lose(&self, at: usize) {
        let len = self
            .chunks
            .lock()
            .get(at)
            .map_or(0, |chunk| chunk.range.len());
        let state = match Memory::new(len) {
            Ok(memory) => State::Here(Arc::new(memory)),
            Err(_) => State::Lost,
        };
        self.settle(at, state);
        self.lost.store(true, Ordering::Release);
    }

    /// Whether a chunk was lost since this was asked: mappings lead to what it was.
    pub(crate) fn take_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) && self.lost.swap(false, Ordering::AcqRel)
    }

    fn settle(&self, at: usize, state: State) {
        if let Some(chunk) = self.chunks.lock().get_mut(at) {
            chunk.state = state;
        }
    }

    /// Changes places with other chunks, as long, unless something is lent.
    pub(crate) fn swap(&self, other: Self) -> Result<(), BufError> {
        let old = {
            let mut chunks = self.chunks.lock();
            if chunks
                .iter()
                .any(|chunk| matches!(chunk.state, State::Lent))
            {
                return Err(BufError::Busy);
            }
            mem::replace(&mut *chunks, mem::take(&mut *other.chunks.lock()))
        };
        drop(old);
        Ok(())
    }
}

impl Stretch {
    /// Cuts off the first `len` bytes.
    pub(crate) fn split_off(&mut self, len: usize) -> Self {
        let start = self.bytes.start;
        self.bytes.start += len;
        Self {
            chunk: self.chunk,
            bytes: start..start + len,
        }
    }
}

fn chunks(memory: Vec<Memory>) -> Vec<Chunk> {
    let mut end = 0;
    let chunk = |memory: Memory| {
        let start = end;
        end += memory.len();
        let state = State::Here(Arc::new(memory));
        Chunk {
            range: start..end,
            state,
        }
    };
    memory.into_iter().map(chunk).collect()
}
