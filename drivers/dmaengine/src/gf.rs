//! The field that RAID 6 reckons in, and its two parities by the CPU.
//!
//! P is the sum of all blocks; Q is their sum after each was multiplied by a coefficient of its
//! own. Sums and products are those of the field of 256 elements that polynomials over GF(2) form
//! modulo x⁸ + x⁴ + x³ + x² + 1 (0x11d): a sum is the exclusive or. With the powers of 2 as
//! coefficients, any two of up to 255 blocks can be computed from the others, P and Q (H. P. Anvin,
//! "The mathematics of RAID-6").
//!
//! Eight bytes go through a general register at a time: no tables in the cache, and no vector
//! instructions, which a kernel does not use.

/// What x⁸ is in the field, without the carry: the polynomial's lower terms.
const REDUCED: u64 = 0x1d;
const ONES: u64 = u64::from_ne_bytes([1; WORD]);
const WORD: usize = size_of::<u64>();

/// The powers of 2: every element but 0, once.
const POWERS: [u8; 255] = {
    let mut powers = [1; 255];
    let mut i = 1;
    while i < powers.len() {
        powers[i] = times(powers[i - 1] as u64, 2) as u8;
        i += 1;
    }
    powers
};

/// RAID 6's coefficient for block `index`: 2 to this power. They repeat after 255 blocks.
pub const fn coefficient(index: usize) -> u8 {
    POWERS[index % POWERS.len()]
}

/// The product of two elements.
pub const fn multiply(a: u8, b: u8) -> u8 {
    times(a as u64, b) as u8
}

/// What gives 1 when multiplied by `a`. `None` for 0.
pub const fn invert(a: u8) -> Option<u8> {
    let mut power = 0;
    while power < POWERS.len() {
        if POWERS[power] == a {
            return Some(coefficient(POWERS.len() - power));
        }
        power += 1;
    }
    None
}

/// Multiplies each byte of `word`.
const fn times(mut word: u64, mut by: u8) -> u64 {
    let mut product = 0;
    while by > 0 {
        if by & 1 != 0 {
            product ^= word;
        }
        let carries = (word >> 7) & ONES;
        word = ((word & !(ONES << 7)) << 1) ^ (carries * REDUCED);
        by >>= 1;
    }
    product
}

/// A block and its coefficient for Q.
pub(crate) type Block<'a> = (&'a [u8], u8);

/// Where each eight of `len` bytes start, and the P and Q of all blocks there.
pub(crate) fn parities(
    blocks: &[Block<'_>],
    len: usize,
) -> impl Iterator<Item = (usize, u64, u64)> {
    (0..len).step_by(WORD).map(|at| {
        let add = |(p, q), &(block, coefficient): &Block<'_>| {
            let word = load(block, at);
            (p ^ word, q ^ times(word, coefficient))
        };
        let (p, q) = blocks.iter().fold((0, 0), add);
        (at, p, q)
    })
}

/// The eight bytes from `at` on; zeros behind the end.
pub(crate) fn load(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(word) = rest.first_chunk() {
        return u64::from_ne_bytes(*word);
    }
    let mut word = [0; WORD];
    word[..rest.len()].copy_from_slice(rest);
    u64::from_ne_bytes(word)
}

/// Writes those of the eight bytes that are inside.
pub(crate) fn store(bytes: &mut [u8], at: usize, word: u64) {
    let word = word.to_ne_bytes();
    let rest = bytes.get_mut(at..).unwrap_or_default();
    match rest.first_chunk_mut() {
        Some(whole) => *whole = word,
        None => rest.copy_from_slice(&word[..rest.len()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the definition: the product of two polynomials, then the remainder by 0x11d.
    fn by_definition(a: u8, b: u8) -> u8 {
        let product = (0..8)
            .filter(|bit| b >> bit & 1 == 1)
            .fold(0u32, |sum, bit| sum ^ u32::from(a) << bit);
        let reduce = |rest: u32, bit: u32| match rest >> bit & 1 {
            1 => rest ^ 0x11d << (bit - 8),
            _ => rest,
        };
        (8..16).rev().fold(product, reduce) as u8
    }

    #[test]
    fn products_are_those_of_the_field() {
        // Miri, a thousand times slower, looks at every 17th.
        let step = if cfg!(miri) { 17 } else { 1 };
        for a in (0..=255).step_by(step) {
            for b in (0..=255).step_by(step) {
                assert_eq!(multiply(a, b), by_definition(a, b), "{a} {b}");
            }
        }
    }

    #[test]
    fn every_element_but_zero_has_an_inverse() {
        assert_eq!(invert(0), None);
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a).unwrap()), 1);
        }
    }

    #[test]
    fn coefficients_are_powers_of_two_that_all_differ() {
        assert_eq!([0, 1, 7, 8, 9].map(coefficient), [1, 2, 0x80, 0x1d, 0x3a]);
        assert_eq!(coefficient(255), 1);
        let mut all = std::vec::Vec::from_iter((0..255).map(coefficient));
        all.sort_unstable();
        assert!(all.iter().copied().eq(1..=255));
    }

    proptest! {
        #[test]
        fn words_are_eight_bytes(word: u64, by: u8) {
            let bytes = word.to_ne_bytes().map(|byte| multiply(byte, by));
            prop_assert_eq!(times(word, by), u64::from_ne_bytes(bytes));
        }

        #[test]
        fn words_at_the_end_are_cut(len in 0usize..20, at in 0usize..24, word: u64) {
            let mut bytes = std::vec![0xee; len];
            store(&mut bytes, at, word);
            for (i, &byte) in bytes.iter().enumerate() {
                let inside = (at..at + 8).contains(&i);
                prop_assert_eq!(byte, if inside { word.to_ne_bytes()[i - at] } else { 0xee });
            }
            let mut expected = word.to_ne_bytes();
            expected[len.saturating_sub(at).min(8)..].fill(0);
            prop_assert_eq!(load(&bytes, at), u64::from_ne_bytes(expected));
        }
    }
}
