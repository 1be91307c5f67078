//! Ingest over a real store, effect by effect.

use bytes::Bytes;
use layer_store::{Options, Reconstruct, RecordPosition, Shared, Store, WriteBatch};
use pg_types::page::ZERO_PAGE;
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, RelFileLocator, RelTag, SlruKind};
use wal_decoder::effects::{
    DatabaseDirectory, MultiXactMember, MultiXactTruncate, Outcome, RelationTruncate,
    TransactionEnd, VmClear,
};
use wal_decoder::{CheckPoint, DecodedRecord, Effect};
use walredo_sidecar::NeonWalRecord;

use super::{Ingest, IngestError, IngestLimits, PRESENT, PageReader, files, maps};

const LOCATOR: RelFileLocator = RelFileLocator { spc_oid: 70_000, db_oid: 5, rel_number: 77 };

fn main_fork() -> RelTag {
    LOCATOR.fork(ForkNumber::Main)
}

struct Rig {
    ingest: Ingest<Store>,
    lsn: Lsn,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        Rig::with_pages(None)
    }

    fn with_pages(pages: Option<std::sync::Arc<dyn PageReader>>) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared::new(Options::default());
        let start = Lsn(0x100);
        let store = Store::create(dir.path(), start, None, &shared).unwrap();
        let checkpoint = CheckPoint { next_xid: 1000, next_multi: 1, ..CheckPoint::default() };
        let mut batch = WriteBatch::new();
        batch.put_image(Key::CHECKPOINT, start, &checkpoint.encode());
        let position = RecordPosition { last_record_lsn: start, prev_record_lsn: Lsn::INVALID };
        store.put(batch, position).unwrap();
        let ingest = Ingest::new(store, pages, IngestLimits::default()).unwrap();
        Rig { ingest, lsn: start, _dir: dir }
    }

    /// Applies effects as one record; not put yet.
    fn record(&mut self, effects: &[Effect]) -> Result<Lsn, IngestError> {
        let start_lsn = self.lsn;
        self.lsn += 0x40;
        let mut record = DecodedRecord::default();
        record.start_lsn = start_lsn;
        record.next_lsn = self.lsn;
        if effects.iter().any(super::reads_the_store) {
            self.ingest.commit()?;
        }
        for effect in effects {
            self.ingest.apply_effect(&record, effect.clone())?;
        }
        self.ingest.batch.records += 1;
        self.ingest.position =
            RecordPosition { last_record_lsn: self.lsn, prev_record_lsn: start_lsn };
        Ok(self.lsn)
    }

    fn apply(&mut self, effect: Effect) -> Lsn {
        self.record(&[effect]).unwrap()
    }

    fn get(&mut self, key: Key) -> Reconstruct {
        self.ingest.commit().unwrap();
        self.ingest.storage.get(key, self.lsn).unwrap()
    }

    fn image(&mut self, key: Key) -> Option<Bytes> {
        self.ingest.commit().unwrap();
        self.ingest.storage.get_image(key, self.lsn).unwrap().map(|(_, value)| value)
    }

    fn changes(&mut self, key: Key) -> Vec<NeonWalRecord> {
        let found = self.get(key);
        found.deltas.iter().map(|(_, bytes)| NeonWalRecord::decode(bytes).unwrap()).collect()
    }

    fn nblocks(&mut self, rel: RelTag) -> Option<u32> {
        self.image(Key::rel_dir_entry(rel))?;
        self.image(Key::rel_size(rel)).map(|v| u32::from_le_bytes(*v.first_chunk().unwrap()))
    }

    fn checkpoint(&mut self) -> CheckPoint {
        CheckPoint::decode(&self.image(Key::CHECKPOINT).unwrap()).unwrap()
    }
}

fn extend(rel: RelTag, nblocks: u32) -> Effect {
    Effect::RelationExtend { rel, nblocks }
}

fn truncate(nblocks: u32) -> Effect {
    Effect::RelationTruncate(RelationTruncate {
        rel: LOCATOR,
        nblocks,
        heap: true,
        vm: true,
        fsm: true,
    })
}

fn ended(xid: u32, subxacts: Vec<u32>, dropped: Vec<RelFileLocator>) -> TransactionEnd {
    let outcome = Outcome::Committed(5);
    TransactionEnd { xid, subxacts, outcome, dropped, prepared: false, origin: None }
}

#[test]
fn a_relation_lives_and_dies_within_a_batch() {
    let mut rig = Rig::new();
    rig.apply(Effect::RelationCreate(main_fork()));
    rig.apply(extend(main_fork(), 3));
    rig.apply(extend(main_fork(), 2));
    assert_eq!(rig.nblocks(main_fork()), Some(3));
    assert_eq!(rig.image(Key::database(70_000, 5)).as_deref(), Some(PRESENT));
    rig.apply(Effect::TransactionEnd(ended(1000, vec![], vec![LOCATOR])));
    rig.apply(Effect::RelationCreate(LOCATOR.fork(ForkNumber::Init)));
    assert_eq!(rig.nblocks(main_fork()), None);
    assert_eq!(rig.nblocks(LOCATOR.fork(ForkNumber::Init)), Some(0));
}

#[test]
fn what_was_cut_off_never_comes_back() {
    let mut rig = Rig::new();
    let block = |blkno| Key::rel_block(main_fork(), blkno);
    rig.apply(extend(main_fork(), 4));
    let lsn = rig.lsn;
    rig.ingest.batch.image(block(3), lsn, &[7; BLCKSZ]);
    assert_eq!(rig.image(block(3)), Some(Bytes::from(vec![7; BLCKSZ])));
    rig.apply(truncate(2));
    assert_eq!(rig.nblocks(main_fork()), Some(2));
    rig.apply(extend(main_fork(), 100));
    assert!(rig.get(block(3)).is_missing());
    assert_eq!(rig.nblocks(main_fork()), Some(100));

    rig.apply(extend(main_fork(), 101));
    let lsn = rig.lsn;
    rig.ingest.batch.image(block(3), lsn, &[8; BLCKSZ]);
    rig.apply(Effect::TransactionEnd(ended(1000, vec![], vec![LOCATOR])));
    // A new life, known only from the store.
    rig.ingest.commit().unwrap();
    rig.ingest.sizes = super::SizeCache::new();
    rig.apply(extend(main_fork(), 4));
    assert!(rig.get(block(3)).is_missing());
    assert!(!rig.ingest.storage.get(block(3), lsn).unwrap().is_missing(), "history stays");
}

#[test]
fn an_absurd_extension_is_refused_or_cheap() {
    let mut rig = Rig::new();
    rig.apply(extend(main_fork(), u32::MAX - 1));
    assert!(rig.ingest.batch.writes.len() < 10);
    rig.apply(truncate(0));
    let error = rig.record(&[extend(main_fork(), u32::MAX - 1)]).unwrap_err();
    assert!(matches!(error, IngestError::Gap { .. }), "{error}");
}

#[test]
fn truncation_clears_the_tails_of_the_maps() {
    let mut rig = Rig::new();
    let (vm, fsm) = (LOCATOR.fork(ForkNumber::Vm), LOCATOR.fork(ForkNumber::Fsm));
    for (fork, nblocks) in [(main_fork(), 100_000), (vm, 4), (fsm, 30)] {
        rig.apply(extend(fork, nblocks));
    }
    let (boundary, slot) = maps::fsm_location(40_001);
    let mut full = ZERO_PAGE;
    full[28 + 4095..].fill(200);
    let lsn = rig.lsn;
    rig.ingest.batch.image(Key::rel_block(fsm, boundary), lsn, &full);
    rig.apply(truncate(40_001));
    assert_eq!(rig.nblocks(vm), Some(2));
    assert_eq!(rig.nblocks(fsm), Some(boundary + 1));
    let (trunc_byte, trunc_offs) = maps::vm_position(40_001);
    assert_eq!(
        rig.changes(Key::rel_block(vm, 1)),
        [NeonWalRecord::TruncateVisibilityMap { trunc_byte, trunc_offs }]
    );
    let page = rig.image(Key::rel_block(fsm, boundary)).unwrap();
    assert_eq!((page[28], page[28 + 4095 + slot - 1], page[28 + 4095 + slot]), (200, 200, 0));
}

#[test]
fn map_bits_are_cleared_on_pages_that_exist() {
    let mut rig = Rig::new();
    let vm = LOCATOR.fork(ForkNumber::Vm);
    let clear = |new, old| {
        Effect::VmClear(VmClear {
            rel: LOCATOR,
            new_heap_blkno: new,
            old_heap_blkno: old,
            flags: 3,
        })
    };
    rig.apply(clear(Some(1), None));
    assert_eq!(rig.nblocks(vm), None);
    rig.apply(extend(vm, 1));
    rig.apply(clear(Some(1), Some(2)));
    rig.apply(clear(Some(1), Some(maps::VM_HEAPBLOCKS_PER_PAGE)));
    let cleared = |new, old| NeonWalRecord::ClearVisibilityMapFlags {
        new_heap_blkno: new,
        old_heap_blkno: old,
        flags: 3,
    };
    let block = Key::rel_block(vm, 0);
    assert_eq!(rig.changes(block), [cleared(Some(1), Some(2)), cleared(Some(1), None)]);
    assert_eq!(rig.nblocks(vm), Some(1));
}

#[test]
fn transactions_are_noted_page_by_page() {
    let mut rig = Rig::new();
    rig.apply(Effect::SlruZeroPage { kind: SlruKind::Clog, pageno: 0 });
    rig.apply(Effect::SlruZeroPage { kind: SlruKind::Clog, pageno: 1 });
    rig.apply(Effect::TransactionEnd(ended(32_767, vec![32_768, 32_769], vec![])));
    let committed = |xids| NeonWalRecord::ClogSetCommitted { xids, timestamp: 5 };
    assert_eq!(rig.changes(Key::slru_block(SlruKind::Clog, 0, 0)), [committed(vec![32_767])]);
    let page = Key::slru_block(SlruKind::Clog, 0, 1);
    assert_eq!(rig.changes(page), [committed(vec![32_768, 32_769])]);
    assert_eq!(rig.checkpoint().next_xid, 32_770);
}

#[test]
fn clog_segments_go() {
    let mut rig = Rig::new();
    for pageno in [0, 31, 32, 64] {
        rig.apply(Effect::SlruZeroPage { kind: SlruKind::Clog, pageno });
    }
    let size = |segno| Key::slru_segment_size(SlruKind::Clog, segno);
    assert_eq!(rig.image(size(0)).as_deref(), Some(&[32u8, 0, 0, 0][..]), "gap filled");
    rig.apply(Effect::TransactionEnd(ended(64 * 32_768 + 5, vec![], vec![])));
    rig.apply(Effect::ClogTruncate { pageno: 33, oldest_xid: 33 * 32_768, oldest_xid_db: 9 });
    assert_eq!(rig.image(size(0)), None);
    assert!(rig.image(size(1)).is_some() && rig.image(size(2)).is_some());
    let checkpoint = rig.checkpoint();
    assert_eq!((checkpoint.oldest_xid, checkpoint.oldest_xid_db), (33 * 32_768, 9));
}

#[test]
fn a_multixact_writes_its_own_and_the_next_offset() {
    let mut rig = Rig::new();
    let kind = SlruKind::MultiXactOffsets;
    rig.apply(Effect::SlruZeroPage { kind, pageno: 0 });
    rig.apply(Effect::SlruZeroPage { kind: SlruKind::MultiXactMembers, pageno: 0 });
    let members: Vec<MultiXactMember> =
        (0..3).map(|n| MultiXactMember { xid: 2000 + n, status: 1 }).collect();
    rig.apply(Effect::MultiXactCreate { mid: 2047, moff: 1635, members });
    let offset = |mid, moff| NeonWalRecord::MultixactOffsetCreate { mid, moff };
    assert_eq!(rig.changes(Key::slru_block(kind, 0, 0)), [offset(2047, 1635)]);
    assert_eq!(rig.changes(Key::slru_block(kind, 0, 1)), [offset(2048, 1638)]);
    let member_pages: Vec<usize> = (0..2)
        .map(|blkno| {
            let key = Key::slru_block(SlruKind::MultiXactMembers, 0, blkno);
            match rig.changes(key).as_slice() {
                [NeonWalRecord::MultixactMembersCreate { members, .. }] => members.len(),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(member_pages, [1, 2]);
    let checkpoint = rig.checkpoint();
    assert_eq!((checkpoint.next_multi, checkpoint.next_multi_offset), (2048, 1638));
    assert_eq!(checkpoint.next_xid, 2003);

    // A record of an older minor release zeroes the page that exists already: skipped.
    rig.apply(Effect::SlruZeroPage { kind, pageno: 1 });
    assert_eq!(rig.changes(Key::slru_block(kind, 0, 1)), [offset(2048, 1638)]);

    rig.apply(Effect::MultiXactTruncate(MultiXactTruncate {
        oldest_multi_db: 5,
        start_trunc_off: 1,
        end_trunc_off: 2048,
        start_trunc_memb: 0,
        end_trunc_memb: 1638,
    }));
    assert!(rig.image(Key::slru_segment_size(kind, 0)).is_some(), "the cutoff's segment stays");
    assert_eq!(rig.checkpoint().oldest_multi, 2048);
}

#[test]
fn prepared_transactions_come_and_go() {
    let mut rig = Rig::new();
    let state = Bytes::from_static(b"state");
    rig.apply(Effect::Prepare { xid: 1001, state: state.clone() });
    assert_eq!(rig.image(Key::two_phase(1001)), Some(state));
    let shutdown = CheckPoint { next_xid: 1005, ..CheckPoint::default() };
    let lsn = rig.apply(Effect::Checkpoint { shutdown: true, checkpoint: shutdown });
    let checkpoint = rig.checkpoint();
    assert_eq!((checkpoint.oldest_active_xid, checkpoint.redo), (1001, lsn));
    let mut end = ended(1001, vec![], vec![]);
    end.prepared = true;
    rig.apply(Effect::TransactionEnd(end));
    assert_eq!(rig.image(Key::two_phase(1001)), None);
}

#[test]
fn files_and_origins() {
    let mut rig = Rig::new();
    let file = |path: &str, content: &'static [u8]| Effect::AuxFile {
        path: path.to_owned(),
        content: Bytes::from_static(content),
    };
    rig.apply(file("pg_replslot/a/state", b"one"));
    rig.apply(file("pg_replslot/a/state", b"two"));
    let key = files::key_of("pg_replslot/a/state");
    let bucket = rig.image(key).unwrap();
    let expected = vec![("pg_replslot/a/state".to_owned(), Bytes::from_static(b"two"))];
    assert_eq!(files::decode_bucket(&bucket), Ok(expected));
    rig.apply(file("pg_replslot/a/state", b""));
    assert_eq!(rig.image(key), None);

    let set = |lsn, force| Effect::OriginSet { id: 7, remote_lsn: Lsn(lsn), force };
    for (effect, expected) in [(set(50, false), 50u64), (set(40, false), 50), (set(40, true), 40)] {
        rig.apply(effect);
        assert_eq!(rig.image(Key::repl_origin(7)).as_deref(), Some(&expected.to_be_bytes()[..]));
    }
    rig.apply(Effect::OriginDrop { id: 7 });
    assert_eq!(rig.image(Key::repl_origin(7)), None);
}

struct NumberedPages;

impl PageReader for NumberedPages {
    fn page_at(&self, key: Key, _lsn: Lsn) -> Result<Option<Bytes>, String> {
        let (_, blkno) = key.to_rel_block().map_err(|error| error.to_string())?;
        let fill = u8::try_from(blkno).map_err(|error| error.to_string())?;
        Ok((fill != 1).then(|| Bytes::from(vec![fill; BLCKSZ])))
    }
}

#[test]
fn databases_are_copied_and_dropped() {
    let mut rig = Rig::with_pages(Some(std::sync::Arc::new(NumberedPages)));
    let source = DatabaseDirectory { spc_oid: 70_000, db_oid: 5 };
    let target = DatabaseDirectory { spc_oid: 1663, db_oid: 6 };
    let map = Bytes::from(vec![3; 524]);
    rig.apply(Effect::DatabaseCreate(source));
    rig.apply(Effect::RelMapUpdate { directory: source, file: map.clone() });
    rig.apply(extend(main_fork(), 3));
    rig.apply(Effect::DatabaseCopy { source, target });
    let copy = RelFileLocator { spc_oid: 1663, db_oid: 6, ..LOCATOR }.fork(ForkNumber::Main);
    assert_eq!(rig.nblocks(copy), Some(3));
    assert_eq!(rig.image(Key::rel_block(copy, 2)), Some(Bytes::from(vec![2; BLCKSZ])));
    assert_eq!(rig.image(Key::rel_block(copy, 1)), None);
    assert_eq!(rig.image(Key::rel_map(1663, 6)), Some(map));

    rig.apply(Effect::DatabaseDrop(target));
    assert_eq!(rig.nblocks(copy), None);
    assert_eq!(rig.image(Key::database(1663, 6)), None);
    assert_eq!(rig.nblocks(main_fork()), Some(3));
    rig.apply(extend(copy, 1));
    assert_eq!(rig.image(Key::database(1663, 6)).as_deref(), Some(PRESENT));
}

#[test]
fn what_is_not_understood_ends_ingest_right_before_it() {
    let mut rig = Rig::new();
    let good = rig.apply(extend(main_fork(), 1));
    let raw = wal_decoder::RawRecord {
        start_lsn: good,
        next_lsn: good + 0x40,
        bytes: Bytes::from_static(b"nonsense"),
    };
    let error = rig.ingest.ingest(&raw).unwrap_err();
    assert!(matches!(error, IngestError::Record { lsn, .. } if lsn == good), "{error}");
    assert!(matches!(rig.ingest.commit(), Err(IngestError::Stopped)));
    assert!(matches!(rig.ingest.ingest(&raw), Err(IngestError::Stopped)));
    assert_eq!(rig.ingest.storage.last_record_lsn(), good);
    assert!(rig.ingest.storage.get_image(Key::rel_dir_entry(main_fork()), good).unwrap().is_some());
}
