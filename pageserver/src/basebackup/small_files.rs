//! Files that came as WAL: auxiliary files, prepared transactions, replication origins.

use std::collections::BTreeSet;
use std::io::Write;

use bytes::Bytes;
use pg_types::key::KeyKind;
use pg_types::{Key, Lsn};

use super::archive::Archive;
use super::{BackupError, BackupKind, BackupRequest, BackupSource};
use crate::ingest::files::{Files, decode_bucket};

/// Offset of `restart_lsn` in the state file of a replication slot (`ReplicationSlotOnDisk` in `slot.c`).
const SLOT_RESTART_LSN: usize = 96;
/// `REPLICATION_STATE_MAGIC` of `origin.c`.
const REPLICATION_STATE_MAGIC: u32 = 0x1257_DADE;

/// Directories that auxiliary files may be in; each exists in every data directory.
const AUX_DIRECTORIES: [&str; 3] = ["pg_logical", "pg_replslot", "pg_stat"];

/// Auxiliary files, then `restart.lsn` when there are replication slots: the oldest LSN that they need, 8 bytes.
///
/// A full backup has no slots: they would ask for WAL that is not there. Statistics count only when the server that
/// wrote them stopped here. `replorigin_checkpoint` is made anew ([`replication_origins`]).
pub(super) fn aux_files(
    archive: &mut Archive<impl Write>,
    source: &impl BackupSource,
    request: &BackupRequest,
    after_shutdown: bool,
) -> Result<(), BackupError> {
    let mut files = stored_files(source, request.lsn)?;
    files.sort();
    let mut restart_lsn: Option<Lsn> = None;
    let mut made = BTreeSet::new();
    for (path, contents) in files {
        let is_slot = path.starts_with("pg_replslot/");
        let skipped = path == "pg_logical/replorigin_checkpoint"
            || (path.starts_with("pg_stat/") && !after_shutdown)
            || (is_slot && request.kind == BackupKind::Full);
        if skipped {
            continue;
        }
        if !is_safe(&path) {
            tracing::warn!(path, "left an auxiliary file with a strange name out of a backup");
            continue;
        }
        for directory in missing_directories(&path) {
            if made.insert(directory.to_owned()) {
                archive.directory(directory)?;
            }
        }
        archive.file(&path, &contents)?;
        if is_slot && path.ends_with("/state") {
            let found = slot_restart_lsn(&contents);
            restart_lsn = [restart_lsn, found].into_iter().flatten().min();
        }
    }
    match restart_lsn {
        Some(lsn) => archive.file("restart.lsn", &lsn.0.to_le_bytes()),
        None => Ok(()),
    }
}

fn stored_files(source: &impl BackupSource, lsn: Lsn) -> Result<Files, BackupError> {
    let mut files = Vec::new();
    for (key, bucket) in source.values(Key::aux_file_range(), lsn).map_err(BackupError::Source)? {
        let found = decode_bucket(&bucket).map_err(|error| BackupError::Malformed {
            key,
            lsn,
            what: error.to_string(),
        })?;
        files.extend(found);
    }
    Ok(files)
}

/// Whether a path, which a client chose, stays within the directories meant for such files.
fn is_safe(path: &str) -> bool {
    let mut parts = path.split('/');
    let known = parts.next().is_some_and(|first| AUX_DIRECTORIES.contains(&first));
    let mut rest = parts.peekable();
    known
        && rest.peek().is_some()
        && rest.all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
}

/// The directories above a file that are not in every data directory.
fn missing_directories(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at);
    ends.filter_map(|at| path.get(..at)).filter(|directory| {
        !AUX_DIRECTORIES.contains(directory)
            && !matches!(*directory, "pg_logical/snapshots" | "pg_logical/mappings")
    })
}

fn slot_restart_lsn(state: &[u8]) -> Option<Lsn> {
    let bytes = state.get(SLOT_RESTART_LSN..)?.first_chunk::<8>()?;
    Some(Lsn(u64::from_le_bytes(*bytes))).filter(|lsn| lsn.is_valid())
}

/// `pg_twophase` (`RecreateTwoPhaseFile`): the stored contents and their checksum.
pub(super) fn two_phase(
    archive: &mut Archive<impl Write>,
    source: &impl BackupSource,
    lsn: Lsn,
) -> Result<(), BackupError> {
    for (key, contents) in
        source.values(Key::two_phase_range(), lsn).map_err(BackupError::Source)?
    {
        if let Some(KeyKind::TwoPhase(full_xid)) = key.kind() {
            let mut file = contents.to_vec();
            file.extend_from_slice(&crc32c::crc32c(&contents).to_le_bytes());
            archive.file(&format!("pg_twophase/{full_xid:016X}"), &file)?;
        }
    }
    Ok(())
}

/// `pg_logical/replorigin_checkpoint` (`CheckPointReplicationOrigin`), when there are origins.
pub(super) fn replication_origins(
    archive: &mut Archive<impl Write>,
    source: &impl BackupSource,
    lsn: Lsn,
) -> Result<(), BackupError> {
    let mut file = REPLICATION_STATE_MAGIC.to_le_bytes().to_vec();
    let mut any = false;
    for (key, value) in source.values(Key::repl_origin_range(), lsn).map_err(BackupError::Source)? {
        let (Some(KeyKind::ReplOrigin(id)), Some(remote)) = (key.kind(), remote_lsn(&value)) else {
            let what = "no position of a replication origin".to_owned();
            return Err(BackupError::Malformed { key, lsn, what });
        };
        if remote.is_valid() {
            any = true;
            file.extend_from_slice(&id.to_le_bytes());
            file.extend_from_slice(&[0; 6]);
            file.extend_from_slice(&remote.0.to_le_bytes());
        }
    }
    if !any {
        return Ok(());
    }
    file.extend_from_slice(&crc32c::crc32c(&file).to_le_bytes());
    archive.file("pg_logical/replorigin_checkpoint", &file)
}

fn remote_lsn(value: &Bytes) -> Option<Lsn> {
    value.first_chunk::<8>().map(|bytes| Lsn(u64::from_be_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_where_they_belong() {
        for good in ["pg_replslot/s/state", "pg_stat/pgstat.stat", "pg_logical/mappings/map-1"] {
            assert!(is_safe(good), "{good}");
        }
        for bad in [
            "",
            "pg_logical",
            "pg_logical/",
            "/etc/passwd",
            "pg_logical/../PG_VERSION",
            "base/1/1",
            "pg_logical//x",
            "pg_logical/./x",
            "pg_replslot/\0/state",
        ] {
            assert!(!is_safe(bad), "{bad}");
        }
    }

    #[test]
    fn only_missing_directories_are_made() {
        let directories = |path| missing_directories(path).collect::<Vec<_>>();
        assert_eq!(directories("pg_replslot/s/state"), ["pg_replslot/s"]);
        assert_eq!(directories("pg_logical/mappings/map-1"), Vec::<&str>::new());
        assert_eq!(directories("pg_stat/pgstat.stat"), Vec::<&str>::new());
    }

    #[test]
    fn a_short_slot_has_no_restart_lsn() {
        assert_eq!(slot_restart_lsn(&[1; 103]), None);
        assert_eq!(slot_restart_lsn(&[0; 200]), None);
        assert_eq!(slot_restart_lsn(&[1; 104]), Some(Lsn(0x0101_0101_0101_0101)));
    }
}
