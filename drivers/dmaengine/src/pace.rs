//! What a channel's operations take, from what they took.

use core::sync::atomic::{AtomicU32, Ordering};

use hal::time::Duration;

/// Sizes up to 4 KiB, then by powers of two; the last for all that are longer.
const CLASSES: usize = 12;
/// The share of a new value in the average, as a power of two.
const SHIFT: u32 = 3;

/// Moving averages of the time from submission to completion, by size. A guess: CPUs may overwrite
/// each other's values.
#[derive(Default)]
pub(crate) struct Pace {
    /// Nanoseconds; 0 while nothing is known.
    averages: [AtomicU32; CLASSES],
}

impl Pace {
    /// What an operation of `len` bytes is expected to take. Nothing, as long as nothing is known.
    pub(crate) fn expected(&self, len: usize) -> Duration {
        Duration::from_nanos(self.class(len).load(Ordering::Relaxed).into())
    }

    /// An operation of `len` bytes took so long.
    pub(crate) fn learn(&self, len: usize, took: Duration) {
        let average = self.class(len);
        let took = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX).max(1);
        let new = match average.load(Ordering::Relaxed) {
            0 => took,
            old => old - (old >> SHIFT) + (took >> SHIFT),
        };
        average.store(new, Ordering::Relaxed);
    }

    fn class(&self, len: usize) -> &AtomicU32 {
        let class = (len >> 12)
            .checked_ilog2()
            .map_or(0, |log2| log2 as usize + 1);
        &self.averages[class.min(CLASSES - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_follow_what_operations_take_by_size() {
        let pace = Pace::default();
        assert_eq!(pace.expected(64), Duration::ZERO);
        pace.learn(64, Duration::from_micros(10));
        assert_eq!(pace.expected(4095), Duration::from_micros(10));
        assert_eq!(pace.expected(4096), Duration::ZERO);
        for _ in 0..200 {
            pace.learn(64, Duration::from_micros(90));
        }
        let learned = pace.expected(64);
        assert!(learned > Duration::from_micros(80) && learned <= Duration::from_micros(90));
        pace.learn(usize::MAX, Duration::MAX);
        pace.learn(usize::MAX, Duration::MAX);
        assert!(pace.expected(usize::MAX) > Duration::from_secs(4));
    }
}
