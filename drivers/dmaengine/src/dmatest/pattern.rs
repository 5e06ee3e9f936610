//! The test patterns.
//!
//! Every byte tells what it is and where it was written: bit 7 marks a source, bit 6 a source byte
//! to be copied, bit 5 a destination byte to be overwritten, and bits 4 to 0 hold the inverted
//! position. So patterns repeat every 32 bytes, and are written and compared 32 bytes at a time.

use core::ops::Range;

/// A byte of a source.
pub(super) const SRC: u8 = 0x80;
/// A byte of a destination.
pub(super) const DST: u8 = 0x00;
/// A byte of a source that is copied.
pub(super) const COPY: u8 = 0x40;
/// A byte of a destination that is overwritten.
pub(super) const OVERWRITE: u8 = 0x20;
/// The position's part of each byte, inverted.
const COUNT_MASK: u8 = 0x1f;
const PERIOD: usize = 32;

/// What a fill writes: a copied byte whose position says 1.
pub(super) const SET: u8 = SRC | COPY | (!1 & COUNT_MASK);

/// The byte of `pattern` at `position`.
fn byte(pattern: u8, position: usize) -> u8 {
    pattern | (!(position as u8) & COUNT_MASK)
}

fn period(pattern: u8, position: usize) -> [u8; PERIOD] {
    core::array::from_fn(|i| byte(pattern, position.wrapping_add(i)))
}

/// Fills a test buffer: `inside` where `range` is, `outside` before and after it.
pub(super) fn fill(buffer: &mut [u8], range: Range<usize>, outside: u8, inside: u8) {
    let len = buffer.len();
    fill_part(&mut buffer[..range.start], outside, 0);
    fill_part(&mut buffer[range.clone()], inside, range.start);
    fill_part(&mut buffer[range.end..len], outside, range.end);
}

fn fill_part(part: &mut [u8], pattern: u8, position: usize) {
    let period = period(pattern, position);
    let (whole, rest) = part.as_chunks_mut::<PERIOD>();
    for chunk in whole {
        *chunk = period;
    }
    rest.copy_from_slice(&period[..rest.len()]);
}

/// What a part of a buffer should hold.
#[derive(Clone, Copy)]
pub(super) enum Expected {
    /// A pattern that counts on from `position`.
    Pattern { pattern: u8, position: usize },
    /// The same byte everywhere.
    Byte(u8),
}

/// A byte that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// Where in the buffer.
    pub(super) at: usize,
    pub(super) expected: u8,
    pub(super) got: u8,
}

/// Compares `buffer[range]` with what is expected, and reports each byte that differs.
pub(super) fn check(
    buffer: &[u8],
    range: Range<usize>,
    expected: Expected,
    mut report: impl FnMut(Mismatch),
) -> usize {
    let period = match expected {
        Expected::Pattern { pattern, position } => period(pattern, position),
        Expected::Byte(byte) => [byte; PERIOD],
    };
    let words = words(&period);
    let (whole, rest) = buffer[range.clone()].as_chunks::<PERIOD>();
    let mut errors = 0;
    let mut bytewise = |at: usize, part: &[u8]| {
        for (i, (&got, &expected)) in part.iter().zip(&period).enumerate() {
            if got != expected {
                errors += 1;
                let at = at + i;
                report(Mismatch { at, expected, got });
            }
        }
    };
    for (index, chunk) in whole.iter().enumerate() {
        if self::words(chunk) != words {
            bytewise(range.start + index * PERIOD, chunk);
        }
    }
    bytewise(range.end - rest.len(), rest);
    errors
}

/// The same bytes as four words: compared without a call per chunk, and without vector
/// instructions, which a kernel does not use.
#[inline(always)]
fn words(chunk: &[u8; PERIOD]) -> [u64; 4] {
    let (words, _) = chunk.as_chunks::<8>();
    core::array::from_fn(|i| u64::from_ne_bytes(words[i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn bytes_say_what_they_are() {
        assert_eq!(byte(SRC | COPY, 0), 0xdf);
        assert_eq!(byte(SRC | COPY, 31), 0xc0);
        assert_eq!(byte(DST, 33), 0x1e);
        assert_eq!(byte(DST | OVERWRITE, 1), 0x3e);
        assert_eq!(SET, 0xde);
    }

    proptest! {
        #[test]
        fn fills_as_byte_by_byte(len in 1usize..300, a in 0usize..300, b in 0usize..300) {
            let (start, end) = (a.min(b).min(len), a.max(b).min(len));
            let mut buffer = vec![0xff; len];
            fill(&mut buffer, start..end, SRC, SRC | COPY);
            for (i, &got) in buffer.iter().enumerate() {
                let inside = (start..end).contains(&i);
                prop_assert_eq!(got, byte(if inside { SRC | COPY } else { SRC }, i));
            }
        }

        #[test]
        fn finds_exactly_the_changed_bytes(
            len in 1usize..300,
            start in 0usize..300,
            changed in prop::collection::btree_set(0usize..300, 0..5),
        ) {
            let start = start.min(len - 1);
            let mut buffer = vec![0; len];
            fill(&mut buffer, 0..len, SRC, SRC | COPY);
            let changed: Vec<_> = changed.into_iter().filter(|&at| at < len).collect();
            for &at in &changed {
                buffer[at] ^= 0x04;
            }
            let expected = Expected::Pattern { pattern: SRC | COPY, position: start };
            let mut found = Vec::new();
            let errors = check(&buffer, start..len, expected, |mismatch| found.push(mismatch.at));
            let inside: Vec<_> = changed.into_iter().filter(|&at| at >= start).collect();
            prop_assert_eq!(errors, inside.len());
            prop_assert_eq!(found, inside);
        }
    }

    #[test]
    fn a_copy_at_another_place_is_expected_by_its_source() {
        let mut src = vec![0; 200];
        fill(&mut src, 50..150, SRC, SRC | COPY);
        let mut dst = vec![0; 200];
        fill(&mut dst, 7..107, DST, DST | OVERWRITE);
        let copied = Expected::Pattern {
            pattern: SRC | COPY,
            position: 50,
        };
        assert_eq!(check(&dst, 7..107, copied, |_| ()), 100);
        dst[7..107].copy_from_slice(&src[50..150]);
        assert_eq!(check(&dst, 7..107, copied, |_| ()), 0);
        assert_eq!(check(&dst, 7..107, Expected::Byte(SET), |_| ()), 97);
    }
}
