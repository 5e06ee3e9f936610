//! Cutting an operation into what one descriptor can do each.

use hal::dma::Segment;

/// What one descriptor copies, or fills where there is no source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) src: u64,
    pub(crate) dst: u64,
    pub(crate) len: u32,
}

/// A stretch of a mapping that is left.
struct Left<I> {
    segments: I,
    addr: u64,
    len: usize,
}

impl<'map, I: Iterator<Item = Segment<'map>>> Left<I> {
    fn new(segments: I) -> Self {
        Self {
            segments,
            addr: 0,
            len: 0,
        }
    }

    /// The next contiguous stretch, not empty.
    fn refill(&mut self) -> Option<()> {
        while self.len == 0 {
            let segment = self.segments.next()?;
            (self.addr, self.len) = (segment.addr.bits(), segment.len);
        }
        Some(())
    }

    fn take(&mut self, len: usize) -> u64 {
        let addr = self.addr;
        self.addr = addr.wrapping_add(len as u64);
        self.len -= len;
        addr
    }
}

/// The chunks of a copy, none longer than `limit` or across the end of a segment. They end with
/// the shorter of the two mappings.
pub(crate) fn copy<'map>(
    src: impl Iterator<Item = Segment<'map>>,
    dst: impl Iterator<Item = Segment<'map>>,
    limit: usize,
) -> impl Iterator<Item = Chunk> {
    let (mut src, mut dst) = (Left::new(src), Left::new(dst));
    core::iter::from_fn(move || {
        src.refill()?;
        dst.refill()?;
        let len = src.len.min(dst.len).min(limit);
        Some(Chunk {
            src: src.take(len),
            dst: dst.take(len),
            len: len as u32,
        })
    })
}

/// A copy that is one chunk, as nearly all are.
pub(crate) fn single<'map>(
    mut src: impl Iterator<Item = Segment<'map>>,
    mut dst: impl Iterator<Item = Segment<'map>>,
    limit: usize,
) -> Option<Chunk> {
    let (from, to) = (src.next()?, dst.next()?);
    let alone = src.next().is_none() && dst.next().is_none();
    (alone && from.len == to.len && (1..=limit).contains(&from.len)).then(|| Chunk {
        src: from.addr.bits(),
        dst: to.addr.bits(),
        len: from.len as u32,
    })
}

/// The chunks of a fill.
pub(crate) fn fill<'map>(
    dst: impl Iterator<Item = Segment<'map>>,
    limit: usize,
) -> impl Iterator<Item = Chunk> {
    let mut dst = Left::new(dst);
    core::iter::from_fn(move || {
        dst.refill()?;
        let len = dst.len.min(limit);
        Some(Chunk {
            src: 0,
            dst: dst.take(len),
            len: len as u32,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hal::dma::{Buffer, DmaOps, DmaSpace, MapError, Mapping, Memory, RawMapping, Source};
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::vec::Vec;

    /// A bus that maps every buffer to segments of the given lengths, from address 0 on, with
    /// gaps between them.
    struct Scattered(Vec<usize>);

    impl DmaOps for Scattered {
        fn map(&self, _: &[Buffer], mapping: &mut RawMapping) -> Result<(), MapError> {
            let mut addr = 0;
            for &len in &self.0 {
                mapping.push(addr, len);
                addr += len as u64 + 1000;
            }
            mapping.end_buffer();
            Ok(())
        }
        fn unmap(&self, _: &RawMapping) {}
    }

    fn mapping(lens: &[usize]) -> Mapping {
        let space = DmaSpace::new(Arc::new(Scattered(lens.to_vec())));
        let source = Source::new(Arc::new(Memory::new(1).unwrap()), 0..1).unwrap();
        space.map_source(&source).unwrap()
    }

    /// The device addresses of every byte, in order.
    fn bytes(mapping: &Mapping) -> Vec<u64> {
        let segments = mapping.segments();
        segments
            .flat_map(|s| (0..s.len as u64).map(move |i| s.addr.bits() + i))
            .collect()
    }

    #[test]
    fn one_segment_is_cut_at_the_limit() {
        let (src, dst) = (mapping(&[2500]), mapping(&[2500]));
        let chunks: Vec<_> = copy(src.segments(), dst.segments(), 1000).collect();
        let lens: Vec<_> = chunks.iter().map(|chunk| chunk.len).collect();
        assert_eq!(lens, [1000, 1000, 500]);
        assert_eq!(chunks[2].src, 2000);
        assert_eq!(lens.iter().sum::<u32>(), 2500);
    }

    #[test]
    fn a_short_mapping_ends_the_chunks() {
        let (src, dst) = (mapping(&[60, 40]), mapping(&[200]));
        let chunks = copy(src.segments(), dst.segments(), 1000);
        let lens: Vec<_> = chunks.map(|chunk| chunk.len).collect();
        assert_eq!(lens, [60, 40]);
        assert_eq!(fill(mapping(&[]).segments(), 10).count(), 0);
    }

    #[test]
    fn a_single_chunk_is_all_there_is_or_none() {
        let is = |src: &[usize], dst: &[usize]| {
            let (src, dst) = (mapping(src), mapping(dst));
            single(src.segments(), dst.segments(), 100)
        };
        let whole = is(&[100], &[100]).unwrap();
        assert_eq!((whole.src, whole.dst, whole.len), (0, 0, 100));
        for (src, dst) in [
            (&[101][..], &[101][..]),
            (&[100], &[99]),
            (&[60, 40], &[100]),
            (&[100], &[100, 1]),
            (&[], &[]),
        ] {
            assert_eq!(is(src, dst), None);
        }
    }

    proptest! {
        #[test]
        fn every_byte_goes_where_it_should(
            a in prop::collection::vec(1usize..50, 0..8),
            b in prop::collection::vec(1usize..50, 0..8),
            limit in 1usize..60,
        ) {
            let (src, dst) = (mapping(&a), mapping(&b));
            let (from, to) = (bytes(&src), bytes(&dst));
            let mut at = 0;
            for chunk in copy(src.segments(), dst.segments(), limit) {
                prop_assert!(chunk.len >= 1 && chunk.len as usize <= limit);
                for i in 0..u64::from(chunk.len) {
                    prop_assert_eq!(chunk.src + i, from[at]);
                    prop_assert_eq!(chunk.dst + i, to[at]);
                    at += 1;
                }
            }
            prop_assert_eq!(at, from.len().min(to.len()));
            let filled = fill(dst.segments(), limit).map(|chunk| chunk.len as usize).sum::<usize>();
            prop_assert_eq!(filled, to.len());
        }
    }
}
