//! State files of prepared transactions (`ReadTwoPhaseFile` in `twophase.c`): contents, then their CRC-32C.

use std::path::Path;

use super::{ImportError, files};

/// The file without its checksum, which is how WAL has it and how it is stored.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    let mut bytes = files::read(path)?;
    let checked = bytes.split_last_chunk::<4>().filter(|(contents, crc)| {
        !contents.is_empty() && crc32c::crc32c(contents) == u32::from_le_bytes(**crc)
    });
    match checked.map(|(contents, _)| contents.len()) {
        Some(len) => {
            bytes.truncate(len);
            Ok(bytes)
        }
        None => Err(ImportError::damaged(path, "wrong checksum")),
    }
}
