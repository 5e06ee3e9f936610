//! Quotients in decimal, without floating point: the kernel has none.

use core::fmt;

/// `numerator / denominator`, shown with four decimals, cut off; 0 where nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(pub u64, pub u64);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scaled = (u128::from(self.0) * 10_000)
            .checked_div(self.1.into())
            .unwrap_or(0);
        write!(f, "{}.{:04}", scaled / 10_000, scaled % 10_000)
    }
}

/// How many there are in a second, of `count` in `nanos`; 0 where no time has passed.
pub fn per_second(count: u64, nanos: u64) -> u64 {
    let all = u128::from(count) * 1_000_000_000;
    all.checked_div(nanos.into()).unwrap_or(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_right() {
        assert_eq!(Ratio(1, 32).to_string(), "0.0312");
        assert_eq!(Ratio(100, 7).to_string(), "14.2857");
        assert_eq!(Ratio(5, 0).to_string(), "0.0000");
        assert_eq!(Ratio(u64::MAX, 1).to_string(), "18446744073709551615.0000");
        assert_eq!(per_second(1000, 500_000_000), 2000);
        assert_eq!(per_second(1000, 0), 0);
    }
}
