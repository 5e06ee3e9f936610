//! Medians and their spread.

use serde::Serialize;

/// What a number of samples say together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// A quarter are below.
    pub q1: f64,
    /// A quarter are above.
    pub q3: f64,
    /// The highest.
    pub max: f64,
    /// How many there are.
    pub samples: usize,
}

impl Summary {
    /// Sums up. `None` where there is no sample; what is not a number counts as none.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().filter(|x| !x.is_nan()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            median: quantile(&sorted, 0.5),
            min,
            q1: quantile(&sorted, 0.25),
            q3: quantile(&sorted, 0.75),
            max,
            samples: sorted.len(),
        })
    }
}

/// Between the two nearest samples where none is in place (the method 7 of Hyndman and Fan).
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let place = at * (sorted.len() - 1) as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * part
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn medians_and_quartiles() {
        let summary = Summary::of([4.0, 1.0, 3.0, 2.0, f64::NAN]).unwrap();
        assert_eq!(summary.median, 2.5);
        assert_eq!((summary.min, summary.max), (1.0, 4.0));
        assert_eq!((summary.q1, summary.q3), (1.75, 3.25));
        assert_eq!(summary.samples, 4);
        assert_eq!(Summary::of([7.0]).unwrap().q3, 7.0);
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([f64::NAN]), None);
    }

    proptest! {
        #[test]
        fn the_median_has_half_on_either_side(samples in prop::collection::vec(-1e9..1e9, 1..50)) {
            let summary = Summary::of(samples.iter().copied()).unwrap();
            let below = samples.iter().filter(|x| **x < summary.median).count();
            let above = samples.iter().filter(|x| **x > summary.median).count();
            prop_assert!(2 * below <= samples.len() && 2 * above <= samples.len());
            prop_assert!(summary.min <= summary.q1 && summary.q1 <= summary.median);
            prop_assert!(summary.median <= summary.q3 && summary.q3 <= summary.max);
        }
    }
}
