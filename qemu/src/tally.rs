//! Counting what tests passed, failed and were skipped, from what they print.

use std::fmt;

/// Sums over test programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed, those that skipped themselves left out.
    pub passed: u64,
    /// Tests that failed; a program that failed without saying which counts as one.
    pub failed: u64,
    /// Tests that skipped themselves, with a line `SKIP name: reason`.
    pub skipped: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// Reads the output of one test program after the other.
#[derive(Debug, Default)]
pub struct Counter {
    total: Tally,
    failed_before: u64,
}

impl Counter {
    /// Looks at a line of output.
    pub fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.total.passed += number_before(result, " passed").unwrap_or(0);
            self.total.failed += number_before(result, " failed").unwrap_or(0);
        } else if let Some((name, reason)) =
            line.strip_prefix("SKIP ").and_then(|l| l.split_once(": "))
            && !name.is_empty()
            && !reason.trim().is_empty()
        {
            self.total.skipped += 1;
        }
    }

    /// A phase has ended: one that failed without a failed test counts as a failed test.
    pub fn phase_ended(&mut self, success: bool) {
        if !success && self.total.failed == self.failed_before {
            self.total.failed += 1;
        }
        self.failed_before = self.total.failed;
    }

    /// The sums. A test that skips itself passes for its test program; here it does not.
    pub fn tally(&self) -> Tally {
        Tally {
            passed: self.total.passed.saturating_sub(self.total.skipped),
            ..self.total
        }
    }
}

/// The number that stands right before `word`.
fn number_before(text: &str, word: &str) -> Option<u64> {
    let before = text.split_once(word)?.0;
    before
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Counter {
        let mut counter = Counter::default();
        text.lines().for_each(|line| counter.line(line));
        counter
    }

    #[test]
    fn results_are_summed() {
        let counter = count(
            "running 3 tests\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
             x test result: ok. 9 passed; 9 failed\n\
             test result: FAILED. 12 passed; 2 failed; 0 ignored\n",
        );
        assert_eq!(
            counter.tally(),
            Tally {
                passed: 15,
                failed: 2,
                skipped: 0
            }
        );
        assert_eq!(
            counter.tally().to_string(),
            "15 passed, 2 failed, 0 skipped"
        );
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let counter = count(
            "SKIP linux: no kernel package\nSKIPPED x: y\nSKIP x\nSKIP a: \ntest result: ok. 4 passed; 0 failed\n",
        );
        assert_eq!(
            counter.tally(),
            Tally {
                passed: 3,
                failed: 0,
                skipped: 1
            }
        );
    }

    #[test]
    fn a_phase_that_breaks_without_a_word_is_a_failure() {
        let mut counter = count("error: could not compile\n");
        counter.phase_ended(false);
        assert_eq!(counter.tally().failed, 1);
        counter.line("test result: FAILED. 0 passed; 2 failed");
        counter.phase_ended(false);
        assert_eq!(counter.tally().failed, 3);
        counter.phase_ended(true);
        assert_eq!(counter.tally().failed, 3);
    }
}
