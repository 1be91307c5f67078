//! Forwarding what a redo process prints.

use std::io;
use std::process::ChildStderr;

use tracing::error;

/// Bytes read and logged at once (L101).
const CHUNK: usize = 16_384;
/// A request during which the process prints more than this has failed: a hostile process must not be able to
/// keep a request alive, or fill the log, by printing.
const MAX_PER_REQUEST: usize = 1 << 20;

/// Stderr of a redo process during one request.
pub(super) struct StderrLog<'a> {
    pipe: &'a ChildStderr,
    total: usize,
}

impl<'a> StderrLog<'a> {
    pub(super) fn new(pipe: &'a ChildStderr) -> StderrLog<'a> {
        StderrLog { pipe, total: 0 }
    }

    /// Reads once and logs; `false` when there is nothing (more) to read.
    pub(super) fn forward(&mut self) -> io::Result<bool> {
        let mut buffer = [0; CHUNK];
        let n = match self.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(text) = buffer.get(..n).filter(|text| !text.is_empty()) else {
            return Ok(false);
        };
        error!("wal-redo-postgres: {}", printable(text));
        self.total = self.total.saturating_add(n);
        if self.total > MAX_PER_REQUEST {
            return Err(io::Error::other("WAL redo process printed too much to its stderr"));
        }
        Ok(true)
    }

    /// Logs what is left after a failure. Errors do not matter any more.
    pub(super) fn drain(&mut self) {
        while matches!(self.forward(), Ok(true)) {}
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(self.pipe, buffer).map_err(io::Error::from)
    }
}

/// Text as it may go into a log: the process is not trusted, so nothing in it may act on a terminal.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.trim_end()
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{FFFD}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable(b"a\tb\nc\x1b[2J\xff\n"), "a\tb\nc\u{FFFD}[2J\u{FFFD}");
    }
}
