//! Databases and relations.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use pg_types::key::KeyKind;
use pg_types::relation::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID};
use pg_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn, Oid, RelTag};

use super::archive::Archive;
use super::{BackupError, BackupKind, BackupRequest, BackupSource, slru};
use crate::control_file::{CATALOG_VERSION_NO, RELSEG_SIZE};

/// Contents of `PG_VERSION`.
pub(super) const PG_VERSION: &[u8] = b"17\n";

/// A directory of relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Database {
    spc_oid: Oid,
    db_oid: Oid,
}

impl Database {
    /// Where it is (`GetDatabasePath` in `relpath.c`). A tablespace is a plain directory here: the place that it
    /// had on some machine means nothing on another.
    fn path(self) -> String {
        let Database { spc_oid, db_oid } = self;
        match spc_oid {
            GLOBALTABLESPACE_OID => "global".to_owned(),
            DEFAULTTABLESPACE_OID => format!("base/{db_oid}"),
            _ => format!("pg_tblspc/{spc_oid}/PG_17_{CATALOG_VERSION_NO}/{db_oid}"),
        }
    }
}

pub(super) fn write(
    archive: &mut Archive<impl Write>,
    source: &impl BackupSource,
    request: &BackupRequest,
) -> Result<(), BackupError> {
    let mut tablespace = None;
    for database in databases(source, request.lsn)? {
        let spc_oid = database.spc_oid;
        if spc_oid > GLOBALTABLESPACE_OID && tablespace.replace(spc_oid) != Some(spc_oid) {
            archive.directory(&format!("pg_tblspc/{spc_oid}"))?;
            archive.directory(&format!("pg_tblspc/{spc_oid}/PG_17_{CATALOG_VERSION_NO}"))?;
        }
        write_database(archive, source, request, database)?;
    }
    Ok(())
}

fn write_database(
    archive: &mut Archive<impl Write>,
    source: &impl BackupSource,
    request: &BackupRequest,
    database: Database,
) -> Result<(), BackupError> {
    let lsn = request.lsn;
    let path = database.path();
    let shared = database.spc_oid == GLOBALTABLESPACE_OID;
    if !shared {
        archive.directory(&path)?;
    }
    let key = Key::rel_map(database.spc_oid, database.db_oid);
    if let Some(relmap) = source.value(key, lsn).map_err(BackupError::Source)? {
        if !shared {
            archive.file(&format!("{path}/PG_VERSION"), PG_VERSION)?;
        }
        archive.file(&format!("{path}/pg_filenode.map"), &relmap)?;
    }
    let forks = forks(source, database, lsn)?;
    let unlogged = |rel: &RelTag| forks.binary_search(&rel.locator.fork(ForkNumber::Init)).is_ok();
    for rel in &forks {
        if rel.fork == ForkNumber::Init {
            // An unlogged relation starts as its init fork (`ResetUnloggedRelations`).
            write_fork(archive, source, *rel, lsn, &file_path(&path, *rel))?;
            let main = rel.locator.fork(ForkNumber::Main);
            write_fork(archive, source, *rel, lsn, &file_path(&path, main))?;
        } else if request.kind == BackupKind::Full && !unlogged(rel) {
            write_fork(archive, source, *rel, lsn, &file_path(&path, *rel))?;
        }
    }
    Ok(())
}

/// The directories of relations, by tablespace and database. All keys of one lie together, so it takes one look-up for
/// each.
fn databases(source: &impl BackupSource, lsn: Lsn) -> Result<Vec<Database>, BackupError> {
    let mut databases = Vec::new();
    let mut range = Key::MIN..Key::slru_range(pg_types::SlruKind::Clog).start;
    while let Some(key) = source.first_key(range.clone(), lsn).map_err(BackupError::Source)? {
        let (_, spc_oid, db_oid, ..) = key.fields();
        let entry = source.value(Key::database(spc_oid, db_oid), lsn);
        if entry.map_err(BackupError::Source)?.is_some() {
            databases.push(Database { spc_oid, db_oid });
        }
        range.start = Key::database_range(spc_oid, db_oid).end.next();
    }
    Ok(databases)
}

fn forks(
    source: &impl BackupSource,
    database: Database,
    lsn: Lsn,
) -> Result<Vec<RelTag>, BackupError> {
    let range = Key::rel_dir_range(database.spc_oid, database.db_oid);
    let entries = source.values(range, lsn).map_err(BackupError::Source)?;
    let fork = |(key, _): (Key, Bytes)| match key.kind() {
        Some(KeyKind::RelDirEntry(rel)) => Ok(rel),
        _ => Err(BackupError::Malformed { key, lsn, what: "no directory entry".to_owned() }),
    };
    entries.into_iter().map(fork).collect()
}

fn file_path(directory: &str, rel: RelTag) -> String {
    format!("{directory}/{}{}", rel.locator.rel_number, rel.fork.file_suffix())
}

/// Writes a fork's files: segments of 1 GiB, at least one.
fn write_fork(
    archive: &mut Archive<impl Write>,
    source: &impl BackupSource,
    rel: RelTag,
    lsn: Lsn,
    path: &str,
) -> Result<(), BackupError> {
    let key = Key::rel_size(rel);
    let size = source.value(key, lsn).map_err(BackupError::Source)?;
    let nblocks =
        size.map_or(Some(0), |size| size.first_chunk::<4>().map(|n| u32::from_le_bytes(*n)));
    let nblocks = nblocks.ok_or_else(|| BackupError::Malformed {
        key,
        lsn,
        what: "no number of blocks".to_owned(),
    })?;
    for segno in 0..nblocks.div_ceil(RELSEG_SIZE).max(1) {
        let first = segno * RELSEG_SIZE;
        let end = nblocks.min(first.saturating_add(RELSEG_SIZE));
        let path = if segno == 0 { path.to_owned() } else { format!("{path}.{segno}") };
        let mut pages =
            Pages { source, rel, lsn, blocks: first..end, page: Bytes::new(), failure: None };
        let written = archive.stream(&path, u64::from(end - first) * BLCKSZ as u64, &mut pages);
        match pages.failure {
            Some(failure) => return Err(failure),
            None => written?,
        }
    }
    Ok(())
}

/// The blocks of a segment as a stream of bytes.
struct Pages<'a, S> {
    source: &'a S,
    rel: RelTag,
    lsn: Lsn,
    blocks: std::ops::Range<BlockNumber>,
    /// What is left of the page at hand.
    page: Bytes,
    /// Why a page is missing; the error of `read` only says that there was one.
    failure: Option<BackupError>,
}

impl<S: BackupSource> Read for Pages<'_, S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.page.is_empty() {
            let Some(blkno) = self.blocks.next() else { return Ok(0) };
            match slru::page(self.source, Key::rel_block(self.rel, blkno), self.lsn) {
                Ok(page) => self.page = page,
                Err(failure) => {
                    self.failure = Some(failure);
                    return Err(io::Error::other("a page could not be read"));
                }
            }
        }
        let len = self.page.len().min(into.len());
        into[..len].copy_from_slice(&self.page[..len]);
        self.page.advance(len);
        Ok(len)
    }
}
