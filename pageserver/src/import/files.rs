//! Reading files of a data directory.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use pg_types::{BLCKSZ, PG_MAJORVERSION};

use super::ImportError;

/// Blocks read at once.
const BLOCKS: usize = 128;

/// A small file, whole. A file of a data directory that is read this way has a few KiB; one that claims more than
/// this is not what its name says.
const SMALL_FILE_MAX: u64 = 16 * 1024 * 1024;

/// Checks that `PG_VERSION` is the version that this system is built for.
pub(super) fn check_version(data_dir: &Path) -> Result<(), ImportError> {
    let path = data_dir.join("PG_VERSION");
    let bytes = read(&path)?;
    let found = String::from_utf8_lossy(&bytes).trim().to_owned();
    if found == PG_MAJORVERSION.to_string() {
        return Ok(());
    }
    Err(ImportError::Version { path, found })
}

/// The contents of a small file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    let file = File::open(path).map_err(|error| ImportError::io("open", path, error))?;
    let mut bytes = Vec::new();
    file.take(SMALL_FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| ImportError::io("read", path, error))?;
    if bytes.len() as u64 > SMALL_FILE_MAX {
        return Err(ImportError::damaged(path, "far too long"));
    }
    Ok(bytes)
}

/// Gives every whole block of a file to `block`. A part of a block at the end does not count (`mdnblocks`).
pub(super) fn for_each_block(
    path: &Path,
    mut block: impl FnMut(&[u8; BLCKSZ]) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let failed = |error| ImportError::io("read", path, error);
    let mut file = File::open(path).map_err(|error| ImportError::io("open", path, error))?;
    let mut buffer = vec![0; BLOCKS * BLCKSZ];
    let mut filled = 0;
    loop {
        let free = buffer.get_mut(filled..).unwrap_or_default();
        match file.read(free) {
            Ok(0) => return Ok(()),
            Ok(len) => filled += len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        }
        let (whole, _) = buffer.get(..filled).unwrap_or_default().as_chunks::<BLCKSZ>();
        whole.iter().try_for_each(&mut block)?;
        let done = whole.len() * BLCKSZ;
        buffer.copy_within(done..filled, 0);
        filled -= done;
    }
}

/// Names and paths in a directory, by name; empty when there is no such directory.
pub(super) fn list(path: &Path) -> Result<Vec<(String, PathBuf)>, ImportError> {
    let failed = |error| ImportError::io("list", path, error);
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // A name that is not text is none of Postgres'.
        names.extend(entry.file_name().to_str().map(|name| (name.to_owned(), entry.path())));
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (len, blocks) in [(0, 0), (8191, 0), (8192, 1), (300 * 8192 + 5, 300)] {
            std::fs::write(&path, vec![7; len]).unwrap();
            let mut seen = 0;
            for_each_block(&path, |block| {
                assert!(block.iter().all(|byte| *byte == 7));
                seen += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, blocks);
        }
    }
}
