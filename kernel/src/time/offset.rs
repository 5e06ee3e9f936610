//! How far two counters of the same rate are apart, by questions and answers.
//!
//! One side reads its counter, asks, and reads it again when the answer has come; the other reads its
//! own in between. However long that took, and whatever came between, its reading lies between the
//! two: each round bounds the difference, and what all rounds exclude is proven.

/// What is known of the other counter's lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    at_least: i64,
    at_most: i64,
}

impl Offset {
    /// Nothing yet.
    pub const UNKNOWN: Self = Self {
        at_least: i64::MIN,
        at_most: i64::MAX,
    };

    /// Takes a round in: the other counter read `there` between `before` and `after` here.
    pub fn round(&mut self, before: u64, there: u64, after: u64) {
        let lead = |here: u64| there.wrapping_sub(here) as i64;
        self.at_least = self.at_least.max(lead(after));
        self.at_most = self.at_most.min(lead(before));
    }

    /// By how much the other counter is ahead, or behind where negative, at the very least: 0 where
    /// both may be the same.
    pub fn proven(&self) -> i64 {
        if self.at_least > 0 {
            self.at_least
        } else {
            self.at_most.min(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of two counters, the other of which is ahead by `lead`; each step takes as long as
    /// `delays` say.
    fn rounds(lead: i64, delays: &[(u64, u64)]) -> Offset {
        let mut now = 1_000_000u64;
        let mut offset = Offset::UNKNOWN;
        for &(there, back) in delays {
            let before = now;
            now += there;
            let answer = now.wrapping_add_signed(lead);
            now += back;
            offset.round(before, answer, now);
        }
        offset
    }

    #[test]
    fn nothing_is_proven_of_counters_that_agree() {
        assert_eq!(Offset::UNKNOWN.proven(), 0);
        assert_eq!(rounds(0, &[(0, 0), (5, 900), (900, 5)]).proven(), 0);
    }

    #[test]
    fn the_quickest_ways_prove_most() {
        assert_eq!(
            rounds(1000, &[(700, 300), (400, 50), (2000, 2000)]).proven(),
            950
        );
        assert_eq!(rounds(-1000, &[(70, 300), (400, 50)]).proven(), -930);
        assert_eq!(rounds(1000, &[(700, 3000)]).proven(), 0, "too slow to tell");
    }

    #[test]
    fn counters_may_wrap() {
        let mut offset = Offset::UNKNOWN;
        offset.round(u64::MAX - 10, 100, 5);
        assert_eq!(offset.proven(), 95);
    }

    proptest::proptest! {
        #[test]
        fn never_more_than_there_is(
            lead in -1_000_000i64..1_000_000,
            delays in proptest::collection::vec((0u64..10_000, 0u64..10_000), 1..20),
        ) {
            let offset = rounds(lead, &delays);
            let proven = offset.proven();
            proptest::prop_assert!(proven.abs() <= lead.abs());
            proptest::prop_assert!(proven == 0 || proven.signum() == lead.signum());
            let worst = delays.iter().map(|(a, b)| a + b).min().unwrap() as i64;
            proptest::prop_assert!(proven.abs() >= lead.abs() - worst);
        }
    }
}
