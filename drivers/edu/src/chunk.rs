//! An operation's memory as the device reaches it, in chunks of what one transfer moves.

use core::sync::atomic::Ordering;

use hal::dma::{Coherent, DmaSpace, MapError, Mapping};

use crate::hardware::BUFFER_LEN;

/// The buffers of a copy. `None`: out of the device's reach, the data goes by way of the bounce
/// buffer.
#[derive(Debug)]
pub(crate) struct Mapped {
    src: Option<Mapping>,
    dst: Option<Mapping>,
}

/// The next part of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Bytes, at most what the device's buffer holds.
    pub(crate) len: usize,
    /// Where the device finds it; `None` for the bounce buffer.
    pub(crate) src: Option<u64>,
    /// Where the device puts it; `None` for the bounce buffer.
    pub(crate) dst: Option<u64>,
}

impl Mapped {
    /// Maps what is within reach.
    pub(crate) fn new(
        space: &DmaSpace,
        src: &hal::dma::Source,
        dst: &hal::dma::Destination,
    ) -> Result<Self, MapError> {
        Ok(Self {
            src: within_reach(space.map_source(src))?,
            dst: within_reach(space.map_destination(dst))?,
        })
    }

    /// The part that begins at `offset`, of a copy of `len` bytes.
    pub(crate) fn chunk(&self, offset: usize, len: usize) -> Chunk {
        let (src, src_len) = place(self.src.as_ref(), offset);
        let (dst, dst_len) = place(self.dst.as_ref(), offset);
        let left = len - offset;
        Chunk {
            len: left.min(src_len).min(dst_len).min(BUFFER_LEN),
            src,
            dst,
        }
    }

    /// How many of the two buffers are out of reach.
    pub(crate) fn bounced(&self) -> u64 {
        u64::from(self.src.is_none()) + u64::from(self.dst.is_none())
    }
}

fn within_reach(mapping: Result<Mapping, MapError>) -> Result<Option<Mapping>, MapError> {
    match mapping {
        Ok(mapping) => Ok(Some(mapping)),
        Err(MapError::Unreachable) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the byte `offset` of a mapping is for the device, and how many follow in a row.
fn place(mapping: Option<&Mapping>, offset: usize) -> (Option<u64>, usize) {
    let Some(mapping) = mapping else {
        return (None, usize::MAX);
    };
    let mut before = 0;
    for segment in mapping.segments() {
        let inside = offset - before;
        if inside < segment.len {
            return (
                Some(segment.addr.bits() + inside as u64),
                segment.len - inside,
            );
        }
        before += segment.len;
    }
    // A mapping that is shorter than its memory: nothing can be moved.
    (None, 0)
}

/// Writes `bytes` to the start of the bounce buffer.
pub(crate) fn put(bounce: &Coherent, bytes: &[u8]) {
    for (index, part) in bytes.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        bounce.store64(8 * index, u64::from_le_bytes(word), Ordering::Relaxed);
    }
}

/// Reads `bytes` from the start of the bounce buffer, after what said that they are there.
pub(crate) fn get(bounce: &Coherent, bytes: &mut [u8]) {
    for (index, part) in bytes.chunks_mut(8).enumerate() {
        let word = bounce.load64(8 * index, Ordering::Acquire).to_le_bytes();
        part.copy_from_slice(&word[..part.len()]);
    }
}
