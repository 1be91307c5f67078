//! The small files of a timeline: what it is, and where its WAL comes from.
//!
//! Each is one line of header and one JSON object, so that a person can read it:
//!
//! ```text
//! neon timeline metadata 1 crc32c=1a2b3c4d\n
//! {"timeline_id": ...}
//! ```
//!
//! The checksum covers every byte behind the first line break.

use std::path::{Path, PathBuf};

use pg_types::{Lsn, TimelineId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::layout::{LayoutError, write_durably};

/// Version of the format, in the header of each file.
const VERSION: u32 = 1;
/// A header is much shorter; a longer first line is no header.
const HEADER_MAX: usize = 128;
/// Both files hold a few hundred bytes; a longer one is not read into memory.
const FILE_MAX: u64 = 1 << 20;

/// What a timeline is. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineMetadata {
    /// Its id, which the directory's name repeats.
    pub timeline_id: TimelineId,
    /// Branch point; none for a root timeline.
    pub ancestor: Option<Ancestor>,
    /// Major version of PostgreSQL.
    pub pg_version: u32,
    /// First readable position of the root of this branch's family.
    pub initdb_lsn: Lsn,
}

/// A branch point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The timeline that was branched.
    pub timeline_id: TimelineId,
    /// Last position shared with it.
    pub lsn: Lsn,
}

/// Where a timeline's WAL comes from (D8). Empty: from nowhere, the timeline stands still.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalSource {
    /// `host:port` of each safekeeper's Postgres port.
    pub safekeepers: Vec<String>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] LayoutError),
    /// Its bytes are not what was written.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It was written by a newer program.
    #[error("{path} has format version {found}; this program knows {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in its header.
        found: u32,
    },
}

/// A file of this format.
pub trait StateFile: Serialize + DeserializeOwned {
    /// File name in the timeline's directory.
    const NAME: &'static str;
    /// First words of the header.
    const TITLE: &'static str;

    /// Writes the file durably.
    fn save(&self, timeline_dir: &Path) -> Result<(), MetadataError> {
        let path = timeline_dir.join(Self::NAME);
        write_durably(&path, &encode(self, &path)?)?;
        Ok(())
    }

    /// Reads the file; `None` when there is none.
    fn load(timeline_dir: &Path) -> Result<Option<Self>, MetadataError> {
        let path = timeline_dir.join(Self::NAME);
        let failed = |action, source| LayoutError { action, path: path.clone(), source };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("inspect", error).into()),
            Ok(meta) if meta.len() > FILE_MAX => {
                let what = format!("it has {} bytes", meta.len());
                return Err(MetadataError::Damaged { path, what });
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(|error| failed("read", error))?;
        decode(&bytes, &path).map(Some)
    }
}

impl StateFile for TimelineMetadata {
    const NAME: &'static str = "metadata";
    const TITLE: &'static str = "neon timeline metadata";
}

impl StateFile for WalSource {
    const NAME: &'static str = "wal_source";
    const TITLE: &'static str = "neon timeline wal source";
}

fn encode<T: StateFile>(value: &T, path: &Path) -> Result<Vec<u8>, MetadataError> {
    let body = serde_json::to_vec_pretty(value).map_err(|error| MetadataError::Damaged {
        path: path.to_owned(),
        what: format!("its new contents cannot be written as JSON: {error}"),
    })?;
    let checksum = crc32c::crc32c(&body);
    let mut bytes = format!("{} {VERSION} crc32c={checksum:08x}\n", T::TITLE).into_bytes();
    bytes.extend(body);
    Ok(bytes)
}

fn decode<T: StateFile>(bytes: &[u8], path: &Path) -> Result<T, MetadataError> {
    let damaged =
        |what: &str| MetadataError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let end = bytes
        .iter()
        .take(HEADER_MAX)
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| damaged("no header line"))?;
    let (header, body) = bytes.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let header = std::str::from_utf8(header).map_err(|_| damaged("its header is not text"))?;
    let fields = header
        .strip_prefix(T::TITLE)
        .and_then(|rest| rest.trim_start().split_once(" crc32c="))
        .ok_or_else(|| damaged("its header is not the one of such a file"))?;
    let version: u32 = fields.0.parse().map_err(|_| damaged("its header has no version"))?;
    if version != VERSION {
        return Err(MetadataError::Version { path: path.to_owned(), found: version });
    }
    let checksum =
        u32::from_str_radix(fields.1, 16).map_err(|_| damaged("its header has no checksum"))?;
    if checksum != crc32c::crc32c(body) {
        return Err(damaged("its checksum does not match its contents"));
    }
    serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> TimelineMetadata {
        TimelineMetadata {
            timeline_id: TimelineId([7; 16]),
            ancestor: Some(Ancestor { timeline_id: TimelineId([8; 16]), lsn: Lsn(0x10) }),
            pg_version: 17,
            initdb_lsn: Lsn(0x8),
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(TimelineMetadata::load(dir.path()).unwrap(), None);
        example().save(dir.path()).unwrap();
        assert_eq!(TimelineMetadata::load(dir.path()).unwrap(), Some(example()));
        let source = WalSource { safekeepers: vec!["localhost:5454".to_owned()] };
        source.save(dir.path()).unwrap();
        assert_eq!(WalSource::load(dir.path()).unwrap(), Some(source));
    }

    #[test]
    fn a_newer_version_is_refused_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata");
        std::fs::write(&path, "neon timeline metadata 9 crc32c=00000000\n{}").unwrap();
        let error = TimelineMetadata::load(dir.path()).unwrap_err();
        assert!(matches!(error, MetadataError::Version { found: 9, .. }), "{error}");
    }

    #[test]
    fn one_file_is_not_taken_for_the_other() {
        let path = Path::new("x");
        let bytes = encode(&WalSource::default(), path).unwrap();
        let error = decode::<TimelineMetadata>(&bytes, path).unwrap_err();
        assert!(error.to_string().contains("header"), "{error}");
    }

    proptest! {
        #[test]
        fn every_changed_byte_is_noticed(at in 0usize..200, bit in 0u8..8) {
            let path = Path::new("x");
            let mut bytes = encode(&example(), path).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(read) = decode::<TimelineMetadata>(&bytes, path) {
                // Upper case in the checksum says the same thing.
                prop_assert_eq!(read, example());
            }
        }

        #[test]
        fn any_bytes_load_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<TimelineMetadata>(&bytes, Path::new("x"));
            let mut with_title = b"neon timeline metadata 1 crc32c=".to_vec();
            with_title.extend(bytes);
            let _ = decode::<WalSource>(&with_title, Path::new("x"));
        }
    }
}
