//! A real cluster to a store, and out again: a stock server starts on a full backup, a patched one on a base backup.
#![cfg(test)]
#![expect(
    clippy::indexing_slicing,
    reason = "a test program over files of servers it started itself"
)]

mod backup;
mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backup::server::Server;
use backup::source::unpack;
use common::{install, new_cluster, open_tempdir, relation_files};
use layer_store::{Options, RecordPosition, Shared, Store, WriteBatch};
use pageserver::basebackup::{BackupKind, BackupRequest, PrevLsn};
use pageserver::control_file::ControlFile;
use pageserver::import::{ImportError, ImportSummary, import_data_directory};
use pg_types::xlog::{WAL_SEGMENT_SIZE, XLOG_BLCKSZ, normalize, segment_number, segment_offset};
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, SlruKind, slru};

/// Something of everything that an import has to find.
const WORKLOAD: &str = "
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT i, repeat(i::text, 20) FROM generate_series(1, 20000) i;
DELETE FROM t WHERE id % 7 = 0;
VACUUM t;
CREATE TABLE toasted AS SELECT i, string_agg(md5(i::text || j), '') AS v FROM generate_series(1, 50) i, generate_series(1, 300) j GROUP BY i;
CREATE SEQUENCE s;
SELECT nextval('s') FROM generate_series(1, 10);
CREATE UNLOGGED TABLE u (id int PRIMARY KEY);
INSERT INTO u SELECT generate_series(1, 100);
BEGIN; SELECT id FROM t WHERE id = 1 FOR KEY SHARE; SAVEPOINT a; UPDATE t SET v = 'changed' WHERE id = 1; COMMIT;
BEGIN; INSERT INTO t VALUES (100001, 'prepared'); PREPARE TRANSACTION 'p1';
CREATE DATABASE other STRATEGY file_copy;
";

const QUERIES: &str = "
SELECT count(*), sum(hashtext(t::text)) FROM t;
SELECT count(*), sum(hashtext(t::text)) FROM toasted t;
SET enable_seqscan = off;
SELECT count(*), sum(hashtext(v)) FROM t WHERE id BETWEEN 500 AND 9000;
SELECT last_value FROM s;
SELECT gid FROM pg_prepared_xacts;
SELECT count(*), sum(hashtext(c::text)) FROM pg_class c;
SELECT count(*) FROM pg_database;
";

/// A cluster that was shut down after the workload, its store, and what the queries said.
struct Imported {
    dir: tempfile::TempDir,
    pgdata: PathBuf,
    store: Store,
    summary: ImportSummary,
    answers: String,
}

fn imported() -> Imported {
    let dir = open_tempdir();
    let pgdata = new_cluster(dir.path());
    let mut server = Server::new(install("NEON_PG_STOCK"), &pgdata);
    server.start();
    server.psql("postgres", &WORKLOAD.replace("; ", ";\n"));
    let answers = server.psql("postgres", QUERIES);
    server.stop();
    let shared = Shared::new(Options::default());
    let (store, summary) =
        import_data_directory(&pgdata, &dir.path().join("store"), &shared).unwrap();
    Imported { dir, pgdata, store, summary, answers }
}

/// An empty directory that a server may own.
fn new_data_dir(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    path
}

#[test]
fn the_store_holds_every_block_of_the_cluster() {
    let imported = imported();
    let Imported { store, summary, pgdata, .. } = &imported;
    let lsn = summary.start_lsn;
    assert_eq!(store.position().last_record_lsn, lsn);
    assert_eq!(store.disk_consistent_lsn(), lsn);
    let files = relation_files(pgdata);
    let is_unlogged = |rel: &pg_types::RelTag| {
        files.iter().any(|(other, _, _)| *other == rel.locator.fork(ForkNumber::Init))
    };
    let mut compared = 0;
    for (rel, first, path) in &files {
        let entry = store.get_image(Key::rel_dir_entry(*rel), lsn).unwrap();
        if rel.fork != ForkNumber::Init && is_unlogged(rel) {
            assert_eq!(entry, None, "contents of unlogged relations stay away: {rel}");
            continue;
        }
        assert!(entry.is_some(), "{rel}");
        for (blkno, page) in (*first..).zip(std::fs::read(path).unwrap().chunks(BLCKSZ)) {
            let (_, stored) = store.get_image(Key::rel_block(*rel, blkno), lsn).unwrap().unwrap();
            assert!(stored == page, "block {blkno} of {rel}");
            compared += 1;
        }
    }
    assert!(compared > 2000, "{compared}");
    let prepared = store.scan(Key::two_phase_range(), lsn).unwrap();
    assert_eq!(prepared.len(), 1);
    for kind in SlruKind::ALL {
        let path = pgdata.join(kind.directory()).join(slru::segment_file_name(0));
        for (blkno, page) in (0..).zip(std::fs::read(path).unwrap().chunks(BLCKSZ)) {
            let key = Key::slru_block(kind, 0, blkno);
            assert_eq!(store.get_image(key, lsn).unwrap().unwrap().1, page);
        }
    }
    store.verify().unwrap();
}

/// LSNs behind the import, at which nothing changed: where the record after the start LSN stays on its page, crosses
/// a page, crosses a segment, and exact boundaries.
fn start_lsns(first: Lsn) -> Vec<Lsn> {
    let page = (first.0 / XLOG_BLCKSZ + 2) * XLOG_BLCKSZ;
    let segment = (segment_number(first) + 1) * WAL_SEGMENT_SIZE;
    let next = segment + WAL_SEGMENT_SIZE;
    [first.0, page, page + XLOG_BLCKSZ - 64, segment - 8, segment, segment + 80, next - 64]
        .map(Lsn)
        .to_vec()
}

/// Moves a store on without changes.
fn advance(store: &Store, lsn: Lsn) -> PrevLsn {
    if lsn > store.last_record_lsn() {
        let prev_record_lsn = normalize(Lsn(lsn.0 - 200).align());
        let position = RecordPosition { last_record_lsn: lsn, prev_record_lsn };
        store.put(WriteBatch::new(), position).unwrap();
    }
    PrevLsn::choose(store.position(), None, lsn)
}

#[test]
fn a_stock_server_starts_on_a_full_backup_at_any_lsn() {
    let imported = imported();
    for (number, lsn) in (0..).zip(start_lsns(imported.summary.start_lsn)) {
        let prev = advance(&imported.store, lsn);
        let data = new_data_dir(imported.dir.path(), &format!("full-{number}"));
        let request = BackupRequest { kind: BackupKind::Full, lsn, prev };
        let summary = unpack(&imported.store, &request, &data);
        assert_eq!(summary.start_lsn, normalize(lsn));
        let mut server = Server::new(install("NEON_PG_STOCK"), &data);
        server.start();
        assert_eq!(server.psql("postgres", QUERIES), imported.answers, "at {lsn}");
        assert!(!server.log().contains("recovery"), "{}", server.log());
        let wal = server.waldump(summary.start_lsn);
        let first = wal.lines().next().unwrap_or_default();
        assert!(first.contains("CHECKPOINT_SHUTDOWN"), "{wal}");
        if number == 0 {
            use_and_restart(&mut server);
        }
        server.stop();
        std::fs::remove_dir_all(data).unwrap();
    }
}

fn use_and_restart(server: &mut Server) {
    let changes = "INSERT INTO t VALUES (200001, 'new');\nCOMMIT PREPARED 'p1';\nINSERT INTO u SELECT generate_series(1, 5)";
    server.psql("postgres", changes);
    server.stop();
    server.start();
    let query = "SELECT id FROM t WHERE id > 100000 ORDER BY id;\nSELECT count(*) FROM u";
    assert_eq!(server.psql("postgres", query), "100001\n200001\n5\n");
    assert_eq!(server.psql("other", "SELECT count(*) > 300 FROM pg_class"), "t\n");
}

#[test]
fn a_patched_server_starts_on_a_base_backup_at_any_lsn() {
    let imported = imported();
    for (number, lsn) in (0..).zip(start_lsns(imported.summary.start_lsn)) {
        let prev = advance(&imported.store, lsn);
        let PrevLsn::Known(prev_lsn) = prev else { panic!("{prev:?}") };
        let data = new_data_dir(imported.dir.path(), &format!("base-{number}"));
        // Without the page server the relations must be there: they are those of the full backup.
        unpack(&imported.store, &BackupRequest { kind: BackupKind::Full, lsn, prev }, &data);
        std::fs::remove_dir_all(data.join("pg_wal")).unwrap();
        let request = BackupRequest { kind: BackupKind::Base, lsn, prev };
        let summary = unpack(&imported.store, &request, &data);
        let mut server = Server::new(install("NEON_PG_INSTALL"), &data);
        server.start();
        assert_eq!(server.psql("postgres", QUERIES), imported.answers, "at {lsn}");
        server.psql("postgres", "INSERT INTO t VALUES (200001, 'new')");
        let wal = server.waldump(summary.start_lsn);
        let first = wal.lines().next().unwrap_or_default();
        assert!(first.contains(&format!("lsn: {}", padded(summary.start_lsn))), "{wal}");
        assert!(first.contains(&format!("prev {}", padded(prev_lsn))), "{wal}");
        server.stop();
        server.start();
        let query = "SELECT v FROM t WHERE id = 200001";
        assert_eq!(server.psql("postgres", query), "new\n");
        server.stop();
        std::fs::remove_dir_all(data).unwrap();
    }
}

/// An LSN as `pg_waldump` prints it.
fn padded(lsn: Lsn) -> String {
    format!("{:X}/{:08X}", lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF)
}

#[test]
fn directories_that_cannot_be_imported_are_refused() {
    let dir = open_tempdir();
    let pgdata = new_cluster(dir.path());
    let shared = Shared::new(Options::default());
    let mut number = 0;
    let mut refused = || {
        number += 1;
        let store = dir.path().join(format!("store-{number}"));
        import_data_directory(&pgdata, &store, &shared).unwrap_err().to_string()
    };
    let change = |name: &str, at: usize| {
        let path = pgdata.join(name);
        let original = std::fs::read(&path).unwrap();
        let mut changed = original.clone();
        changed[at] ^= 1;
        std::fs::write(&path, changed).unwrap();
        move || std::fs::write(&path, &original).unwrap()
    };
    let control = std::fs::read(pgdata.join("global/pg_control")).unwrap();
    let checkpoint = ControlFile::decode(&control).unwrap().checkpoint_lsn();
    let in_record = usize::try_from(segment_offset(checkpoint)).unwrap() + 30;
    for (name, at, wanted) in [
        ("PG_VERSION", 1, "says \"16\", expected 17"),
        ("global/pg_control", 40, "checksum of pg_control is"),
        ("global/pg_filenode.map", 100, "pg_filenode.map is damaged: wrong checksum"),
        ("pg_wal/000000010000000000000001", in_record, "no shutdown checkpoint record at"),
    ] {
        let undo = change(name, at);
        let error = refused();
        assert!(error.contains(wanted), "{error}");
        undo();
    }
    let mut server = Server::new(install("NEON_PG_STOCK"), &pgdata);
    server.start();
    let error = refused();
    assert!(error.contains("the cluster is in state 6, expected a clean shutdown"), "{error}");
    server.stop();
    let missing = import_data_directory(&dir.path().join("none"), &dir.path().join("s"), &shared);
    assert!(matches!(missing, Err(ImportError::Io { .. })), "{missing:?}");
}
