//! The tar archive: entries with fixed owner, mode and time, so that equal contents give equal bytes.

use std::io::{self, Read, Write};

use tar::{Builder, EntryType, Header};

use super::BackupError;

/// PGDATA is for its owner alone (`PG_DIR_MODE_OWNER`, `PG_FILE_MODE_OWNER`).
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A tar archive that is being written.
pub(super) struct Archive<W: Write> {
    builder: Builder<Counter<W>>,
    /// Seconds since the Unix epoch.
    time: u64,
    entries: u64,
}

impl<W: Write> Archive<W> {
    /// All entries get the modification time `time`, in seconds since the Unix epoch.
    pub(super) fn new(out: W, time: i64) -> Archive<W> {
        let builder = Builder::new(Counter { out, bytes: 0 });
        Archive { builder, time: u64::try_from(time).unwrap_or(0), entries: 0 }
    }

    pub(super) fn directory(&mut self, path: &str) -> Result<(), BackupError> {
        self.append(EntryType::Directory, path, 0, io::empty())
    }

    pub(super) fn file(&mut self, path: &str, contents: &[u8]) -> Result<(), BackupError> {
        self.stream(path, contents.len() as u64, contents)
    }

    /// A file of `size` bytes that `contents` gives.
    pub(super) fn stream(
        &mut self,
        path: &str,
        size: u64,
        contents: impl Read,
    ) -> Result<(), BackupError> {
        self.append(EntryType::Regular, path, size, contents)
    }

    /// Writes the end of the archive; gives the number of entries and bytes.
    pub(super) fn finish(self) -> Result<(u64, u64), BackupError> {
        let failed = |source| BackupError::Write { path: "the end".to_owned(), source };
        let mut counter = self.builder.into_inner().map_err(failed)?;
        counter.out.flush().map_err(failed)?;
        Ok((self.entries, counter.bytes))
    }

    fn append(
        &mut self,
        kind: EntryType,
        path: &str,
        size: u64,
        contents: impl Read,
    ) -> Result<(), BackupError> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { DIRECTORY_MODE } else { FILE_MODE });
        header.set_size(size);
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        self.entries += 1;
        self.builder
            .append_data(&mut header, path, contents)
            .map_err(|source| BackupError::Write { path: path.to_owned(), source })
    }
}

struct Counter<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
