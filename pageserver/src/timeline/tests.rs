//! Reads of one timeline, with a redo manager that counts (L043).

use std::sync::Mutex;

use bytes::Bytes;
use layer_store::{RecordPosition, Shared, WriteBatch};
use pg_types::{BLCKSZ, Key, TimelineId};
use walredo_sidecar::{NeonWalRecord, WalRedoError};

use super::*;
use crate::fixture::{TENANT, page, rel};

/// "Replays" a record by adding one to every byte of the page, and notes how many it was given.
#[derive(Default)]
struct Counting {
    requests: Mutex<Vec<usize>>,
}

impl WalRedoManager for Counting {
    fn request_redo(
        &self,
        _key: Key,
        _lsn: Lsn,
        base_img: Option<(Lsn, Bytes)>,
        records: Vec<(Lsn, NeonWalRecord)>,
        pg_version: u32,
    ) -> Result<Bytes, WalRedoError> {
        assert_eq!(pg_version, 17);
        self.requests.lock().unwrap().push(records.len());
        let (_, base) = base_img.ok_or(WalRedoError::InvalidRequest)?;
        let count = u8::try_from(records.len()).unwrap();
        Ok(base.iter().map(|byte| byte + count).collect())
    }
}

const START: u64 = 0x100_0028;

struct Setup {
    _dir: tempfile::TempDir,
    timeline: Arc<Timeline>,
    redo: Arc<Counting>,
}

impl Setup {
    fn new(min_records: usize) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared::new(layer_store::Options::default());
        let store = Store::create(&dir.path().join("store"), Lsn(START), None, &shared).unwrap();
        let metadata = TimelineMetadata {
            timeline_id: TimelineId([5; 16]),
            ancestor: None,
            pg_version: 17,
            initdb_lsn: Lsn(START),
        };
        let redo = Arc::new(Counting::default());
        let limits = ReadLimits {
            wait_lsn_timeout: Duration::from_millis(10),
            page_cache_bytes: 1 << 20,
            page_cache_min_records: min_records,
            relation_size_cache_entries: 1000,
        };
        let parts = Parts {
            tenant_id: TENANT,
            metadata,
            dir: dir.path().to_owned(),
            store,
            ancestor: None,
            redo: redo.clone(),
        };
        Setup { timeline: Timeline::new(parts, limits), redo, _dir: dir }
    }

    fn put(&self, fill: impl FnOnce(&mut WriteBatch), lsn: u64) {
        let mut batch = WriteBatch::new();
        fill(&mut batch);
        let position = RecordPosition { last_record_lsn: Lsn(lsn), prev_record_lsn: Lsn::INVALID };
        self.timeline.store().put(batch, position).unwrap();
        self.timeline.publish_positions();
    }

    fn put_records(&self, lsns: std::ops::RangeInclusive<u64>) {
        let record = NeonWalRecord::Postgres { will_init: false, rec: Bytes::from_static(b"r") };
        let end = *lsns.end();
        self.put(
            |batch| {
                for lsn in lsns {
                    batch.put_delta(Key::rel_block(rel(), 0), Lsn(lsn), false, &record.encode());
                }
            },
            end,
        );
    }

    fn read(&self, lsn: u64, since: u64) -> u8 {
        let key = Key::rel_block(rel(), 0);
        let page = self.timeline.page_at(key, Lsn(lsn), Lsn(since)).unwrap().unwrap();
        assert_eq!(page.len(), BLCKSZ);
        page[0]
    }

    fn requests(&self) -> Vec<usize> {
        std::mem::take(&mut self.redo.requests.lock().unwrap())
    }
}

#[test]
fn a_hot_page_is_not_replayed_from_scratch() {
    let setup = Setup::new(16);
    setup.put(|batch| batch.put_image(Key::rel_block(rel(), 0), Lsn(START), &page(100)), START);
    setup.put_records(START + 1..=START + 20);
    let end = START + 20;
    assert_eq!(setup.read(end, end), 120);
    assert_eq!(setup.read(end, end), 120);
    assert_eq!(setup.requests(), [20], "the second time it is in the cache");

    setup.put_records(end + 1..=end + 3);
    assert_eq!(setup.read(end + 3, end + 3), 123);
    assert_eq!(setup.requests(), [3], "only what is new");
    setup.timeline.flush().unwrap();
    assert_eq!(setup.read(end + 3, end + 3), 123);
    // Time travel below the cached version knows nothing of it.
    assert_eq!(setup.read(START + 5, START + 5), 105);
    assert_eq!(setup.requests(), [5]);

    // Something else was written: the page is found unchanged, or known to be.
    setup.put(|batch| batch.put_image(Key::rel_block(rel(), 1), Lsn(end + 9), &page(1)), end + 9);
    assert_eq!(setup.read(end + 9, end + 3), 123);
    assert_eq!(setup.read(end + 9, end + 9), 123);
    assert!(setup.requests().is_empty());

    // A new image is a new start, a removal an end.
    setup.put(|batch| batch.put_image(Key::rel_block(rel(), 0), Lsn(end + 10), &page(7)), end + 10);
    assert_eq!(setup.read(end + 10, end + 10), 7);
    setup.put(|batch| batch.remove(Key::rel_block(rel(), 0), Lsn(end + 11)), end + 11);
    let lsn = Lsn(end + 11);
    assert_eq!(setup.timeline.page_at(Key::rel_block(rel(), 0), lsn, lsn).unwrap(), None);
    assert!(setup.requests().is_empty());
}

#[test]
fn short_chains_are_replayed_each_time() {
    let setup = Setup::new(16);
    setup.put(|batch| batch.put_image(Key::rel_block(rel(), 0), Lsn(START), &page(100)), START);
    setup.put_records(START + 1..=START + 4);
    for _ in 0..2 {
        assert_eq!(setup.read(START + 4, START + 4), 104);
    }
    assert_eq!(setup.requests(), [4, 4]);
}

#[test]
fn damage_is_told_with_page_and_lsn() {
    let setup = Setup::new(16);
    let key = Key::rel_block(rel(), 0);
    setup.put(|batch| batch.put_delta(key, Lsn(START), false, b"\x1Fjunk"), START);
    let error = setup.timeline.page_at(key, Lsn(START), Lsn(START)).unwrap_err().to_string();
    assert!(error.contains("no page to start from") && error.contains("0/1000028"), "{error}");
    setup.put(|batch| batch.put_image(key, Lsn(START + 1), &page(1)), START + 1);
    setup.put(|batch| batch.put_delta(key, Lsn(START + 2), false, b"\x1Fjunk"), START + 2);
    let lsn = Lsn(START + 2);
    let error = setup.timeline.page_at(key, lsn, lsn).unwrap_err().to_string();
    assert!(error.contains("cannot be read") && error.contains("unknown kind 15"), "{error}");
}

#[test]
fn sizes_follow_the_relation() {
    let setup = Setup::new(16);
    let size = |lsn: u64| setup.timeline.relation_size(rel(), Lsn(lsn)).unwrap();
    let resize = |lsn: u64, blocks: u32| {
        setup.put(
            |batch| batch.put_image(Key::rel_size(rel()), Lsn(lsn), &blocks.to_le_bytes()),
            lsn,
        );
    };
    setup.put(|batch| batch.put_image(Key::rel_dir_entry(rel()), Lsn(START), b"r"), START);
    assert_eq!(size(START), Some(0));
    resize(START + 1, 4);
    resize(START + 3, 8);
    assert_eq!(size(START + 3), Some(8));
    assert_eq!(size(START + 2), Some(4), "an older LSN after a newer one");
    resize(START + 4, 2);
    for lsn in [START + 4, START + 3, START + 1, START, START + 4] {
        let expected = [0, 4, 4, 8, 2][usize::try_from(lsn - START).unwrap()];
        assert_eq!(size(lsn), Some(expected));
    }
    setup.put(|batch| batch.remove(Key::rel_dir_entry(rel()), Lsn(START + 6)), START + 6);
    assert_eq!(size(START + 5), Some(2));
    assert_eq!(size(START + 6), None);
    assert!(!setup.timeline.relation_exists(rel(), Lsn(START + 6)).unwrap());
}
