//! The durable state of one timeline that is not WAL: file `safekeeper.control`.
//!
//! ```text
//! magic u32 | format version u32 | body length u32 | body (JSON) | CRC-32C u32 of everything before   little-endian
//! ```
//!
//! Written aside and renamed, so a crash leaves the old or the new one. A file that does not check out is never
//! guessed at: its timeline is quarantined, others are not affected.

use std::fs;
use std::path::Path;

use pg_types::{Lsn, TenantId, TimelineId};
use serde::{Deserialize, Serialize};
use wal_consensus::command::AcceptorState;

use crate::durable::{self, Context, FileError};

/// Name of the file in the timeline's directory.
pub const CONTROL_FILE_NAME: &str = "safekeeper.control";

/// First four bytes.
const MAGIC: u32 = 0x4E53_4B43;
/// Version that this program writes.
const FORMAT_VERSION: u32 = 2;
/// Oldest version that it reads: it had no `backup_lsn`.
const FORMAT_VERSION_MIN: u32 = 1;
const HEADER_LEN: usize = 12;
const CRC_LEN: usize = 4;

/// Content of the control file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlFile {
    /// Tenant; must agree with the directory.
    pub tenant_id: TenantId,
    /// Timeline; must agree with the directory.
    pub timeline_id: TimelineId,
    /// What consensus decides upon.
    pub acceptor_state: AcceptorState,
    /// Page servers need no WAL below this any more: the least over their shards.
    pub remote_consistent_lsn: Lsn,
    /// WAL below this is in the object store; 0 when nothing is. Since version 2.
    #[serde(default)]
    pub backup_lsn: Lsn,
}

impl ControlFile {
    /// `[SK5]` WAL below this may be gone from the disk: nobody needs it, and *this file* says so, so that a crash
    /// cannot make a timeline expect segments that were deleted.
    ///
    /// A safekeeper that was out gets what it lacks from the others and from nowhere else, so what not everybody has is
    /// kept, though page servers need it no more.
    pub fn removal_horizon(&self) -> Lsn {
        let state = &self.acceptor_state;
        self.remote_consistent_lsn.min(state.commit_lsn).min(state.truncate_lsn)
    }

    /// WAL below this can go from the disk now: where there is an object store (`[BK3]`), what is not in it stays.
    pub fn removable_below(&self, has_store: bool) -> Lsn {
        let horizon = self.removal_horizon();
        if has_store { horizon.min(self.backup_lsn) } else { horizon }
    }
}

/// Why a control file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlFileError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is shorter than its fixed parts, or than its length field says, or longer.
    #[error("control file has {found} bytes, expected {expected}")]
    Length {
        /// Size of the file.
        found: usize,
        /// Size that it should have.
        expected: usize,
    },
    /// It is something else.
    #[error("control file begins with {0:08X}, expected {MAGIC:08X}")]
    Magic(u32),
    /// Bits have changed.
    #[error("control file has CRC {found:08X}, computed {computed:08X}")]
    Crc {
        /// CRC in the file.
        found: u32,
        /// CRC of the content.
        computed: u32,
    },
    /// Another program version wrote it.
    #[error(
        "control file has format version {0}, this program reads versions \
         {FORMAT_VERSION_MIN} to {FORMAT_VERSION}"
    )]
    Version(u32),
    /// The body is not what it should be although the CRC is right.
    #[error("control file body: {0}")]
    Body(#[from] serde_json::Error),
    /// It belongs to another timeline.
    #[error("control file belongs to timeline {tenant_id}/{timeline_id}")]
    OtherTimeline {
        /// Tenant in the file.
        tenant_id: TenantId,
        /// Timeline in the file.
        timeline_id: TimelineId,
    },
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

impl ControlFile {
    /// The bytes of the file.
    pub fn encode(&self) -> Result<Vec<u8>, ControlFileError> {
        let body = serde_json::to_vec(self)?;
        let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len() + CRC_LEN);
        for field in [MAGIC, FORMAT_VERSION, body_len] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&body);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    /// Reads the bytes of a file. Total: every other input is an error.
    pub fn decode(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
        let shortest = HEADER_LEN + CRC_LEN;
        let too_short = || ControlFileError::Length { found: bytes.len(), expected: shortest };
        let magic = u32_at(bytes, 0).ok_or_else(too_short)?;
        if magic != MAGIC {
            return Err(ControlFileError::Magic(magic));
        }
        let (content, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or_else(too_short)?;
        let found = u32::from_le_bytes(*crc);
        let computed = crc32c::crc32c(content);
        if found != computed {
            return Err(ControlFileError::Crc { found, computed });
        }
        let version = u32_at(content, 4).ok_or_else(too_short)?;
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version) {
            return Err(ControlFileError::Version(version));
        }
        let body_len = u32_at(content, 8).ok_or_else(too_short)?;
        let body = content.get(HEADER_LEN..).ok_or_else(too_short)?;
        if usize::try_from(body_len) != Ok(body.len()) {
            let expected = usize::try_from(body_len).unwrap_or(usize::MAX).saturating_add(shortest);
            return Err(ControlFileError::Length { found: bytes.len(), expected });
        }
        Ok(serde_json::from_slice(body)?)
    }

    /// Makes this the durable state of the timeline in `dir`.
    pub fn save(&self, dir: &Path) -> Result<(), ControlFileError> {
        Ok(durable::replace(&dir.join(CONTROL_FILE_NAME), &self.encode()?)?)
    }

    /// Reads the state of the timeline in `dir`, which must be the given one.
    pub fn load(
        dir: &Path,
        tenant_id: TenantId,
        timeline_id: TimelineId,
    ) -> Result<ControlFile, ControlFileError> {
        let path = dir.join(CONTROL_FILE_NAME);
        let bytes = fs::read(&path).context("read", &path)?;
        let file = ControlFile::decode(&bytes)?;
        file.check_identity(tenant_id, timeline_id)?;
        Ok(file)
    }

    /// Refuses the state of another timeline.
    pub fn check_identity(
        &self,
        tenant_id: TenantId,
        timeline_id: TimelineId,
    ) -> Result<(), ControlFileError> {
        if (self.tenant_id, self.timeline_id) == (tenant_id, timeline_id) {
            return Ok(());
        }
        let (tenant_id, timeline_id) = (self.tenant_id, self.timeline_id);
        Err(ControlFileError::OtherTimeline { tenant_id, timeline_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::Term;
    use proptest::prelude::*;
    use wal_consensus::term_history::TermHistory;

    const TENANT: TenantId = TenantId([1; 16]);
    const TIMELINE: TimelineId = TimelineId([2; 16]);

    fn sample(commit: u64) -> ControlFile {
        let history = vec![(0, 100).into(), (7, 200).into()];
        ControlFile {
            tenant_id: TENANT,
            timeline_id: TIMELINE,
            acceptor_state: AcceptorState {
                term: Term(7),
                term_history: TermHistory::new(history).unwrap(),
                pg_version: 170_011,
                commit_lsn: Lsn(commit),
                truncate_lsn: Lsn(commit),
                ..AcceptorState::default()
            },
            remote_consistent_lsn: Lsn(150),
            backup_lsn: Lsn(140),
        }
    }

    /// What the first version of this program wrote for `sample(200)`.
    const VERSION_1: &str = concat!(
        r#"{"tenant_id":"01010101010101010101010101010101","#,
        r#""timeline_id":"02020202020202020202020202020202","#,
        r#""acceptor_state":{"mconf":{"generation":0,"members":[],"new_members":null},"term":7,"#,
        r#""term_history":[{"term":0,"lsn":"0/64"},{"term":7,"lsn":"0/C8"}],"#,
        r#""pg_version":170011,"system_id":0,"wal_seg_size":0,"timeline_start_lsn":"0/0","#,
        r#""local_start_lsn":"0/0","commit_lsn":"0/C8","truncate_lsn":"0/C8"},"#,
        r#""remote_consistent_lsn":"0/96"}"#
    );

    #[test]
    fn the_first_version_is_read_and_knows_of_no_backup() {
        let mut bytes = Vec::new();
        for field in [MAGIC, 1, u32::try_from(VERSION_1.len()).unwrap()] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(VERSION_1.as_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let old = ControlFile::decode(&bytes).unwrap();
        assert_eq!(old, ControlFile { backup_lsn: Lsn(0), ..sample(200) });
    }

    #[test]
    fn survives_a_round_trip_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        sample(200).save(dir.path()).unwrap();
        sample(300).save(dir.path()).unwrap();
        assert_eq!(ControlFile::load(dir.path(), TENANT, TIMELINE).unwrap(), sample(300));
        let error = ControlFile::load(dir.path(), TENANT, TimelineId([3; 16])).unwrap_err();
        assert!(matches!(error, ControlFileError::OtherTimeline { .. }), "{error}");
    }

    #[test]
    fn horizon_is_bounded_by_all_positions() {
        assert_eq!(sample(200).removal_horizon(), Lsn(150));
        assert_eq!(sample(120).removal_horizon(), Lsn(120));
        assert_eq!(sample(200).removable_below(false), Lsn(150));
        assert_eq!(sample(200).removable_below(true), Lsn(140));
        assert_eq!(sample(120).removable_below(true), Lsn(120));
        let mut somebody_lags = sample(200);
        somebody_lags.acceptor_state.truncate_lsn = Lsn(110);
        assert_eq!(somebody_lags.removal_horizon(), Lsn(110));
    }

    #[test]
    fn every_single_bit_flip_and_every_truncation_is_detected() {
        let good = sample(200).encode().unwrap();
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                assert!(ControlFile::decode(&bad).is_err(), "byte {position} bit {bit}");
            }
            assert!(ControlFile::decode(&good[..position]).is_err(), "cut at {position}");
        }
        let longer = [&good[..], b"x"].concat();
        assert!(ControlFile::decode(&longer).is_err());
    }

    proptest! {
        #[test]
        fn mutations_are_detected(
            commit: u64,
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let good = sample(commit).encode().unwrap();
            let mut bad = good.clone();
            for (index, value) in edits {
                let at = index.index(bad.len());
                bad[at] = value;
            }
            prop_assert_eq!(ControlFile::decode(&bad).is_ok(), bad == good);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(ControlFile::decode(&bytes).is_err());
        }
    }
}
