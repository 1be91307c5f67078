//! Counting passed and failed tests from what test runners print.

use std::fmt;

/// Passed and failed tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// What failed, as far as the runner named it.
    pub names: Vec<String>,
}

impl Tally {
    /// One line of `pg_regress`, which speaks TAP: `ok 12 + boolean 34 ms` or `not ok …`.
    pub fn see_tap(&mut self, line: &str) {
        let numbered =
            |rest: &str| rest.split_whitespace().next().is_some_and(|n| n.parse::<u64>().is_ok());
        if line.strip_prefix("ok ").is_some_and(numbered) {
            self.passed += 1;
        } else if line.strip_prefix("not ok ").is_some_and(numbered) {
            let words: Vec<&str> = line.split_whitespace().skip(3).collect();
            let name = words.iter().find(|word| !["-", "+"].contains(word)).unwrap_or(&"a test");
            self.fail(name);
        }
    }

    /// One more failure.
    pub fn fail(&mut self, name: &str) {
        self.failed += 1;
        self.names.push(name.to_owned());
    }

    /// One line of `cargo test`: `test name ... FAILED` or `test result: ok. 3 passed; 0 failed; …`.
    pub fn see_cargo(&mut self, line: &str) {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            // Counted by the program's result line.
            self.names.push(name.to_owned());
        }
        let Some(rest) = line.strip_prefix("test result: ") else { return };
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
        self.names.extend(other.names);
    }
}

/// The failures, a line each; then `N passed, N failed`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.names {
            writeln!(f, "failed: {name}")?;
        }
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
        tally.see_cargo("test a::b ... FAILED");
        tally.see_cargo("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured");
        tally.see_cargo("test result: ok. 1 passed; 0 failed; 0 ignored");
        tally.see_cargo("test foo ... ok");
        tally.fail("fuzz x");
        let text = "failed: boolean\nfailed: a::b\nfailed: fuzz x\n5 passed, 4 failed";
        assert_eq!(tally.to_string(), text);
    }
}
