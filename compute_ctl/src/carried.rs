//! What is carried from one data directory to the next: the list of pages that the local file cache held (L031).
//!
//! It lies beside the data directory in between, so that a start that fails, or is killed at any line, does not lose it.
//! Losing it costs time only, so nothing here stops a start.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// Written by the extension (`neon_ext/src/file_cache/prewarm.rs`).
const FILE: &str = "neon_file_cache.saved";
/// A list of a cache of some terabytes; PostgreSQL's user could write anything there.
const BYTES_MAX: u64 = 256 << 20;

fn beside(pgdata: &Path) -> PathBuf {
    pgdata.with_file_name(FILE)
}

/// Takes the list out of a data directory that is about to be deleted.
pub fn take_out(pgdata: &Path) {
    match fs::rename(pgdata.join(FILE), beside(pgdata)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "could not keep the list of cached pages");
        }
        _ => {}
    }
}

/// Puts the list into a new data directory.
pub fn put_in(pgdata: &Path) {
    match read(&beside(pgdata)) {
        Ok(bytes) => {
            if let Err(error) = fs::write(pgdata.join(FILE), bytes) {
                tracing::warn!(%error, "could not hand over the list of cached pages");
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "could not read the list of cached pages"),
    }
}

/// Reads a plain file. PostgreSQL's user made it and this process may be root: a link would give that user a copy of what
/// it points to.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Err(io::Error::other("it is no plain file of a likely size"));
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_starts_that_fail_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("pgdata");
        let new = || {
            let _ = fs::remove_dir_all(&pgdata);
            fs::create_dir(&pgdata).unwrap();
        };
        new();
        take_out(&pgdata);
        put_in(&pgdata);
        assert!(!pgdata.join(FILE).exists());

        fs::write(pgdata.join(FILE), "list").unwrap();
        take_out(&pgdata);
        new();
        // A start that was killed here leaves a directory without it.
        take_out(&pgdata);
        new();
        put_in(&pgdata);
        assert_eq!(fs::read(pgdata.join(FILE)).unwrap(), b"list");

        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        new();
        std::os::unix::fs::symlink(&secret, pgdata.join(FILE)).unwrap();
        take_out(&pgdata);
        new();
        put_in(&pgdata);
        assert!(!pgdata.join(FILE).exists());
    }
}
