//! Archives of a small made-up timeline.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;

use bytes::Bytes;
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, RelFileLocator, SlruKind};
use wal_decoder::CheckPoint;

use super::{BackupError, BackupKind, BackupRequest, BackupSource, PrevLsn, SourceError, write};
use crate::control_file::tests::sample;
use crate::control_file::{ControlFile, DbState};
use crate::ingest::PRESENT;
use crate::ingest::files::{encode_bucket, key_of};

const LSN: Lsn = Lsn(0x0300_2000);

/// Values, whatever the LSN.
struct Values(BTreeMap<Key, Bytes>);

impl BackupSource for Values {
    fn value(&self, key: Key, _: Lsn) -> Result<Option<Bytes>, SourceError> {
        Ok(self.0.get(&key).cloned())
    }
    fn values(&self, range: Range<Key>, _: Lsn) -> Result<Vec<(Key, Bytes)>, SourceError> {
        Ok(self.0.range(range).map(|(key, value)| (*key, value.clone())).collect())
    }
    fn first_key(&self, range: Range<Key>, _: Lsn) -> Result<Option<Key>, SourceError> {
        Ok(self.0.range(range).next().map(|(key, _)| *key))
    }
    fn page(&self, key: Key, _: Lsn) -> Result<Option<Bytes>, SourceError> {
        match self.0.get(&key) {
            Some(page) if page == "broken" => Err("redo failed".into()),
            page => Ok(page.cloned()),
        }
    }
}

impl Values {
    fn put(&mut self, key: Key, value: impl Into<Bytes>) {
        self.0.insert(key, value.into());
    }

    fn fork(&mut self, spc_oid: u32, rel_number: u32, fork: ForkNumber, pages: &[u8]) {
        let db_oid = if spc_oid == 1664 { 0 } else { 5 };
        let rel = RelFileLocator { spc_oid, db_oid, rel_number }.fork(fork);
        self.put(Key::database(spc_oid, db_oid), PRESENT);
        self.put(Key::rel_dir_entry(rel), PRESENT);
        for (blkno, byte) in (0..).zip(pages) {
            self.put(Key::rel_block(rel, blkno), vec![*byte; BLCKSZ]);
        }
        let nblocks = u32::try_from(pages.len()).unwrap();
        self.put(Key::rel_size(rel), nblocks.to_le_bytes().to_vec());
    }
}

fn timeline() -> Values {
    let mut values = Values(BTreeMap::new());
    let control = sample(Lsn(0x0100_0028));
    values.put(Key::CONTROL_FILE, control.encode());
    let checkpoint = CheckPoint { redo: LSN, oldest_active_xid: 9, ..*control.checkpoint() };
    values.put(Key::CHECKPOINT, checkpoint.encode().to_vec());
    values.put(Key::rel_map(1664, 0), vec![1; 524]);
    values.put(Key::rel_map(1663, 5), vec![2; 524]);
    values.fork(1664, 1260, ForkNumber::Main, &[1]);
    values.fork(1663, 16384, ForkNumber::Main, &[1, 2, 3]);
    values.fork(1663, 16384, ForkNumber::Vm, &[4]);
    values.fork(1663, 16400, ForkNumber::Main, &[9]);
    values.fork(1663, 16400, ForkNumber::Init, &[5]);
    values.fork(16390, 16391, ForkNumber::Main, &[]);
    values.put(Key::slru_block(SlruKind::Clog, 0, 1), vec![6; BLCKSZ + 8]);
    values.put(Key::slru_segment_size(SlruKind::Clog, 0), 2_u32.to_le_bytes().to_vec());
    // Blocks of a segment that was removed.
    values.put(Key::slru_block(SlruKind::Clog, 1, 0), vec![6; BLCKSZ]);
    values.put(Key::two_phase(0x1_0000_02DA), "prepared");
    values.put(Key::repl_origin(3), 77_u64.to_be_bytes().to_vec());
    let mut slot = vec![0; 200];
    slot[96..104].copy_from_slice(&55_u64.to_le_bytes());
    for (path, contents) in [
        ("pg_replslot/s/state", slot),
        ("pg_stat/pgstat.stat", vec![8]),
        ("pg_logical/../../etc/passwd", vec![0]),
        ("pg_logical/replorigin_checkpoint", vec![0]),
    ] {
        let files = vec![(path.to_owned(), Bytes::from(contents))];
        values.put(key_of(path), encode_bucket(&files));
    }
    values
}

fn request(kind: BackupKind) -> BackupRequest {
    BackupRequest { kind, lsn: LSN, prev: PrevLsn::Known(Lsn(0x0300_1F88)) }
}

fn archive(values: &Values, request: &BackupRequest) -> Vec<u8> {
    let mut bytes = Vec::new();
    let summary = write(values, request, &mut bytes).unwrap();
    assert_eq!(summary.bytes, bytes.len() as u64);
    bytes
}

/// Entries in order; directories end in a slash.
fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut path = entry.path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned();
        if entry.header().entry_type().is_dir() {
            path.push('/');
        }
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        (path, contents)
    });
    entries.collect()
}

#[test]
fn a_base_backup_has_what_a_compute_needs() {
    let bytes = archive(&timeline(), &request(BackupKind::Base));
    let entries = entries(&bytes);
    let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    let fixed = names.iter().position(|name| *name == "postgresql.auto.conf").unwrap() + 1;
    assert_eq!(fixed, 27);
    let wanted = [
        "pg_xact/0000",
        "base/5/",
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map",
        "base/5/16400_init",
        "base/5/16400",
        "global/pg_filenode.map",
        "pg_tblspc/16390/",
        "pg_tblspc/16390/PG_17_202406281/",
        "pg_tblspc/16390/PG_17_202406281/5/",
        "pg_replslot/s/",
        "pg_replslot/s/state",
        "pg_stat/pgstat.stat",
        "restart.lsn",
        "pg_twophase/00000001000002DA",
        "pg_logical/replorigin_checkpoint",
        "neon.signal",
        "zenith.signal",
        "global/pg_control",
        "pg_wal/000000010000000000000003",
    ];
    assert_eq!(names[fixed..], wanted);
    let files: BTreeMap<&str, &[u8]> =
        entries.iter().map(|(name, contents)| (name.as_str(), contents.as_slice())).collect();
    assert_eq!(files["pg_xact/0000"], [[0; BLCKSZ], [6; BLCKSZ]].concat());
    assert_eq!(files["base/5/16400"], [5; BLCKSZ]);
    assert_eq!(files["restart.lsn"], 55_u64.to_le_bytes());
    assert_eq!(files["neon.signal"], b"PREV LSN: 0/3001F88");
    assert_eq!(files["zenith.signal"], files["neon.signal"]);
    assert_eq!(
        files["pg_twophase/00000001000002DA"][8..],
        crc32c::crc32c(b"prepared").to_le_bytes()
    );
    let origins = files["pg_logical/replorigin_checkpoint"];
    assert_eq!((origins.len(), origins[4], origins[12]), (24, 3, 77));
    let control = ControlFile::decode(files["global/pg_control"]).unwrap();
    assert_eq!(control.state(), Some(DbState::Shutdowned));
    assert_eq!(control.checkpoint_lsn(), LSN + 24);
    assert_eq!(control.checkpoint().redo, LSN + 24);
    assert_eq!(control.checkpoint().oldest_active_xid, 0);
}

#[test]
fn a_full_backup_has_all_relations_and_no_slots() {
    let bytes = archive(&timeline(), &request(BackupKind::Full));
    let entries = entries(&bytes);
    let size = |name: &str| entries.iter().find(|(path, _)| path == name).map(|(_, c)| c.len());
    for (name, wanted) in [
        ("global/1260", Some(BLCKSZ)),
        ("base/5/16384", Some(3 * BLCKSZ)),
        ("base/5/16384_vm", Some(BLCKSZ)),
        ("base/5/16400", Some(BLCKSZ)),
        ("pg_tblspc/16390/PG_17_202406281/5/16391", Some(0)),
        ("postgresql.conf", Some(34)),
        ("pg_replslot/s/state", None),
        ("restart.lsn", None),
        ("neon.signal", None),
    ] {
        assert_eq!(size(name), wanted, "{name}");
    }
}

#[test]
fn equal_contents_give_equal_bytes() {
    for kind in [BackupKind::Base, BackupKind::Full] {
        let first = archive(&timeline(), &request(kind));
        assert_eq!(first, archive(&timeline(), &request(kind)));
    }
}

#[test]
fn between_checkpoints_statistics_are_left_out_and_transactions_may_run() {
    let later = BackupRequest { lsn: LSN + 64, ..request(BackupKind::Base) };
    let bytes = archive(&timeline(), &later);
    let entries = entries(&bytes);
    assert!(entries.iter().all(|(name, _)| name != "pg_stat/pgstat.stat"));
    let control = entries.iter().find(|(name, _)| name == "global/pg_control").unwrap();
    let control = ControlFile::decode(&control.1).unwrap();
    assert_eq!(control.checkpoint().oldest_active_xid, 9);
}

#[test]
fn what_is_wrong_is_named() {
    let error = |change: fn(&mut Values)| {
        let mut values = timeline();
        change(&mut values);
        write(&values, &request(BackupKind::Full), std::io::sink()).unwrap_err()
    };
    assert!(matches!(
        error(|values| values.put(Key::CONTROL_FILE, "nonsense")),
        BackupError::Malformed { key: Key::CONTROL_FILE, lsn: LSN, .. }
    ));
    assert!(matches!(
        error(|values| drop(values.0.remove(&Key::CHECKPOINT))),
        BackupError::Missing { key: Key::CHECKPOINT, .. }
    ));
    assert!(matches!(error(|values| values.put(some_block(), "broken")), BackupError::Source(_)));
    assert!(matches!(
        error(|values| values.put(some_block(), "short")),
        BackupError::Malformed { .. }
    ));
}

fn some_block() -> Key {
    let rel = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
    Key::rel_block(rel.fork(ForkNumber::Main), 1)
}
