//! Auxiliary files: small files of the compute's data directory that came as messages (L157).
//!
//! A file's bucket is found by a hash of its path; a bucket holds all files that fall into it:
//!
//! ```text
//!   u8 1 (version), then for each file: u32 BE path length, path, u32 BE content length, content
//! ```

use bytes::Bytes;
use pg_types::{Key, Lsn};

use super::Ingest;
use super::error::IngestError;
use super::storage::Storage;

const BUCKET_VERSION: u8 = 1;

const FNV_OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;

/// Files of one bucket, path and content.
pub type Files = Vec<(String, Bytes)>;

/// A bucket's bytes are not what ingest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed bucket of auxiliary files")]
pub struct MalformedBucket;

/// The bucket of a path.
pub fn key_of(path: &str) -> Key {
    const DIRECTORIES: [(&str, [u8; 2]); 5] = [
        ("pg_logical/mappings/", [1, 1]),
        ("pg_logical/snapshots/", [1, 2]),
        ("pg_logical/", [1, 0xFF]),
        ("pg_replslot/", [2, 1]),
        ("pg_stat/", [3, 1]),
    ];
    if path == "pg_logical/replorigin_checkpoint" {
        return key(b"", [1, 3]);
    }
    let known = DIRECTORIES
        .iter()
        .find_map(|(prefix, bytes)| path.strip_prefix(prefix).map(|rest| (rest, *bytes)));
    let (rest, directory) = known.unwrap_or((path, [0xFF, 0xFF]));
    key(rest.as_bytes(), directory)
}

fn key(text: &[u8], directory: [u8; 2]) -> Key {
    let hash = text
        .iter()
        .fold(FNV_OFFSET_BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(FNV_PRIME));
    let [_, _, _, low @ ..] = hash.to_be_bytes();
    Key::aux_file(directory, low)
}

/// The files of a bucket; an empty value has none.
pub fn decode_bucket(value: &Bytes) -> Result<Files, MalformedBucket> {
    let mut rest = value.clone();
    let mut files = Vec::new();
    if rest.is_empty() {
        return Ok(files);
    }
    if rest.split_to(1).first() != Some(&BUCKET_VERSION) {
        return Err(MalformedBucket);
    }
    while !rest.is_empty() {
        let path = take_part(&mut rest)?;
        let content = take_part(&mut rest)?;
        let path = String::from_utf8(path.to_vec()).map_err(|_| MalformedBucket)?;
        files.push((path, content));
    }
    Ok(files)
}

fn take_part(rest: &mut Bytes) -> Result<Bytes, MalformedBucket> {
    let length = rest.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
    let length = usize::try_from(length.ok_or(MalformedBucket)?).map_err(|_| MalformedBucket)?;
    let part = rest.slice(4..);
    if part.len() < length {
        return Err(MalformedBucket);
    }
    let part = part.slice(..length);
    *rest = rest.slice(4 + length..);
    Ok(part)
}

/// The bytes of a bucket; none for no files.
pub fn encode_bucket(files: &Files) -> Vec<u8> {
    let mut value = Vec::new();
    for (path, content) in files {
        if value.is_empty() {
            value.push(BUCKET_VERSION);
        }
        for part in [path.as_bytes(), content] {
            // Both parts came out of one WAL record, whose length has 32 bits.
            value.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            value.extend_from_slice(part);
        }
    }
    value
}

impl<S: Storage> Ingest<S> {
    /// Replaces or, without content, removes a file. The open batch must have been put.
    pub(super) fn put_aux_file(
        &mut self,
        path: &str,
        content: &Bytes,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let key = key_of(path);
        let stored_lsn = self.stored_lsn();
        let stored = self.storage.get_image(key, stored_lsn)?.unwrap_or_default();
        let mut files = decode_bucket(&stored)
            .map_err(|MalformedBucket| IngestError::StoredValue { key, lsn: stored_lsn })?;
        files.retain(|(other, _)| other != path);
        if !content.is_empty() {
            files.push((path.to_owned(), content.clone()));
        }
        self.batch.image(key, lsn, &encode_bucket(&files));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_of_known_paths() {
        let check = |path, digits: &str| {
            // 16 of the 18 bytes: the two high ones of the second field are zero.
            let text = key_of(path).to_string();
            assert_eq!(format!("{}{}", &text[..2], &text[6..]), digits);
        };
        check(
            "pg_logical/mappings/test1",
            "62000001017F8B83D94F7081693471ABF91C".replacen("0000", "", 1).as_str(),
        );
        check(
            "pg_logical/replorigin_checkpoint",
            "62000001032E07BB014262B821756295C58D".replacen("0000", "", 1).as_str(),
        );
        check(
            "pg_replslot/test3",
            "62000002017F8D83D94F7081693471ABFB92".replacen("0000", "", 1).as_str(),
        );
    }

    proptest! {
        #[test]
        fn buckets_round_trip(files in proptest::collection::vec((".*", any::<Vec<u8>>()), 0..4)) {
            let files: Files = files.into_iter().map(|(p, c)| (p, Bytes::from(c))).collect();
            prop_assert_eq!(decode_bucket(&encode_bucket(&files).into()), Ok(files));
        }

        #[test]
        fn any_bytes_decode_or_fail(mut bytes: Vec<u8>) {
            if let Some(first) = bytes.first_mut() { *first = BUCKET_VERSION; }
            let _ = decode_bucket(&bytes.into());
        }
    }
}
