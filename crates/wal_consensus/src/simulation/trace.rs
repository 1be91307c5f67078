//! What has happened, line by line, if somebody wants to know.

#[derive(Debug, Default)]
pub(super) struct Trace {
    lines: Vec<String>,
    silent: bool,
}

impl Trace {
    /// For the many schedules of which nobody reads anything: a failing seed is run again with words.
    pub(super) fn silent() -> Trace {
        Trace { lines: Vec::new(), silent: true }
    }

    pub(super) fn say(&mut self, line: impl FnOnce() -> String) {
        if !self.silent {
            self.lines.push(line());
        }
    }

    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}
