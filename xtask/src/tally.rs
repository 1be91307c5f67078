//! Counting passed and failed tests from what test runners print.

use std::fmt;

/// Passed and failed tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
}

impl Tally {
    /// One line of `pg_regress`, which speaks TAP: `ok 12 + boolean 34 ms` or `not ok …`.
    pub fn see_tap(&mut self, line: &str) {
        let numbered =
            |rest: &str| rest.split_whitespace().next().is_some_and(|n| n.parse::<u64>().is_ok());
        if line.strip_prefix("ok ").is_some_and(numbered) {
            self.passed += 1;
        } else if line.strip_prefix("not ok ").is_some_and(numbered) {
            self.failed += 1;
        }
    }

    /// One line of `cargo test`: `test result: ok. 3 passed; 0 failed; …`.
    pub fn see_cargo(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result: ") else { return };
        let number_before = |word: &str| {
            let words: Vec<&str> = rest.split([' ', ';']).collect();
            let position = words.iter().position(|candidate| *candidate == word)?;
            words.get(position.checked_sub(1)?)?.parse::<u64>().ok()
        };
        self.passed += number_before("passed").unwrap_or(0);
        self.failed += number_before("failed").unwrap_or(0);
    }

    /// Adds another count.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_runners() {
        let mut tally = Tally::default();
        for line in
            ["ok 1         - test_setup  300 ms", "not ok 2     + boolean 1 ms", "# note", "ok"]
        {
            tally.see_tap(line);
        }
        tally.see_cargo("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured");
        tally.see_cargo("test result: ok. 1 passed; 0 failed; 0 ignored");
        tally.see_cargo("test foo ... ok");
        assert_eq!(tally, Tally { passed: 5, failed: 3 });
    }
}
