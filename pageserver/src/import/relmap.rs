//! `pg_filenode.map` (`RelMapFile` in `relmapper.c`).

use std::path::Path;

use super::{ImportError, files};

/// `sizeof(RelMapFile)`: magic, count, 64 mappings of 8 bytes, CRC.
pub const RELMAP_FILE_SIZE: usize = 524;
const RELMAPPER_FILEMAGIC: u32 = 0x0059_2717;
const CRC: usize = RELMAP_FILE_SIZE - 4;

/// The file's bytes, checked as `read_relmap_file` does.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    let bytes = files::read(path)?;
    match check(&bytes) {
        Ok(()) => Ok(bytes),
        Err(what) => Err(ImportError::damaged(path, what)),
    }
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((body, crc)) = bytes.split_last_chunk::<4>().filter(|(body, _)| body.len() == CRC)
    else {
        return Err(format!("{} bytes, expected {RELMAP_FILE_SIZE}", bytes.len()));
    };
    if body.first_chunk::<4>().map(|magic| u32::from_le_bytes(*magic)) != Some(RELMAPPER_FILEMAGIC)
    {
        return Err("wrong magic number".to_owned());
    }
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err("wrong checksum".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_length_magic_and_checksum() {
        let mut file = vec![0; CRC];
        file[..4].copy_from_slice(&RELMAPPER_FILEMAGIC.to_le_bytes());
        file.extend_from_slice(&crc32c::crc32c(&file).to_le_bytes());
        assert_eq!(check(&file), Ok(()));
        assert_eq!(check(&file[1..]), Err("523 bytes, expected 524".to_owned()));
        file[100] ^= 1;
        assert_eq!(check(&file), Err("wrong checksum".to_owned()));
        file[0] ^= 1;
        assert_eq!(check(&file), Err("wrong magic number".to_owned()));
    }
}
