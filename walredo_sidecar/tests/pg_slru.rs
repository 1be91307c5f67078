//! Records applied in Rust, compared with what a real server has on disk after the same WAL (L069–L076).
#![cfg(test)]

mod common;

use std::collections::HashMap;

use bytes::Bytes;
use common::{Fixture, PG_VERSION, server::Server, wal};
use pg_types::page::{self, Page, ZERO_PAGE};
use pg_types::slru::{clog_page, multixact_members_page, multixact_offsets_page, page_to_segment};
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, SlruKind};
use wal_decoder::effects::{Effect, Outcome, RelationTruncate};
use wal_decoder::{BlockRef, DecodedRecord, interpret};
use walredo_sidecar::{
    MultiXactMember, NeonWalRecord, PostgresRedoManager, WalRedoManager, next_multixact_offset,
};

/// SLRU pages rebuilt through the manager.
struct Slrus {
    manager: PostgresRedoManager,
    pages: HashMap<(SlruKind, u32), Bytes>,
}

impl Slrus {
    fn apply(
        &mut self,
        server: &Server,
        kind: SlruKind,
        pageno: u32,
        lsn: Lsn,
        record: NeonWalRecord,
    ) {
        let (segno, blkno) = page_to_segment(pageno);
        let page = self.pages.entry((kind, pageno)).or_insert_with(|| {
            let page = server.slru_page(kind, pageno).unwrap_or(ZERO_PAGE);
            Bytes::copy_from_slice(&page)
        });
        let key = Key::slru_block(kind, segno, blkno);
        let base = Some((lsn, page.clone()));
        *page = self.manager.request_redo(key, lsn, base, vec![(lsn, record)], PG_VERSION).unwrap();
    }

    fn effect(&mut self, server: &Server, lsn: Lsn, effect: Effect) {
        match effect {
            Effect::SlruZeroPage { kind, pageno } => {
                self.pages.insert((kind, pageno), Bytes::from_static(&ZERO_PAGE));
            }
            Effect::TransactionEnd(end) => {
                let mut xids = end.subxacts;
                xids.push(end.xid);
                xids.sort_unstable();
                for run in xids.chunk_by(|a, b| clog_page(*a) == clog_page(*b)) {
                    let xids = run.to_vec();
                    let record = match end.outcome {
                        Outcome::Committed(timestamp) => {
                            NeonWalRecord::ClogSetCommitted { xids, timestamp }
                        }
                        Outcome::Aborted => NeonWalRecord::ClogSetAborted { xids },
                    };
                    self.apply(server, SlruKind::Clog, clog_page(run[0]), lsn, record);
                }
            }
            Effect::MultiXactCreate { mid, moff, members } => {
                let count = u32::try_from(members.len()).unwrap();
                for (mid, moff) in [(mid, moff), next_multixact_offset(mid, moff, count)] {
                    let record = NeonWalRecord::MultixactOffsetCreate { mid, moff };
                    self.apply(
                        server,
                        SlruKind::MultiXactOffsets,
                        multixact_offsets_page(mid),
                        lsn,
                        record,
                    );
                }
                let members: Vec<_> = (moff..)
                    .zip(members)
                    .map(|(offset, m)| (offset, MultiXactMember { xid: m.xid, status: m.status }))
                    .collect();
                for run in members
                    .chunk_by(|a, b| multixact_members_page(a.0) == multixact_members_page(b.0))
                {
                    let (moff, _) = run[0];
                    let members = run.iter().map(|(_, member)| *member).collect();
                    let record = NeonWalRecord::MultixactMembersCreate { moff, members };
                    self.apply(
                        server,
                        SlruKind::MultiXactMembers,
                        multixact_members_page(moff),
                        lsn,
                        record,
                    );
                }
            }
            _ => (),
        }
    }
}

#[test]
fn slru_pages_equal_the_server() {
    let mut server = Server::start(common::stock(), "track_commit_timestamp=on");
    server.sql("CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 3000) i; CHECKPOINT");
    let start = server.insert_lsn();
    // Read before the test changes them: the pages as of the checkpoint.
    let mut slrus = Slrus { manager: Fixture::bare(|_| ()).manager(), pages: HashMap::new() };
    for kind in SlruKind::ALL {
        if let Some(page) = server.slru_page(kind, 0) {
            slrus.pages.insert((kind, 0), Bytes::copy_from_slice(&page));
        }
    }
    server.sql(
        "DO $$ BEGIN FOR i IN 1..3000 LOOP
           PERFORM 1 FROM t WHERE id = i FOR KEY SHARE;
           BEGIN UPDATE t SET a = a + 1 WHERE id = i; EXCEPTION WHEN division_by_zero THEN NULL; END;
         END LOOP; END $$;
         CREATE TABLE u (a int);
         DO $$ BEGIN FOR i IN 1..20000 LOOP
           BEGIN INSERT INTO u VALUES (i); IF i % 3 = 0 THEN RAISE division_by_zero; END IF;
           EXCEPTION WHEN division_by_zero THEN NULL; END;
         END LOOP; END $$;
         DO $$ BEGIN FOR i IN 1..20000 LOOP
           INSERT INTO u VALUES (i); IF i % 5 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
         END LOOP; END $$;
         BEGIN; INSERT INTO u VALUES (0); SAVEPOINT s; INSERT INTO u VALUES (1); ROLLBACK;",
    );
    server.stop();

    for record in wal::records(&server.data_dir(), start) {
        let mut effects = Vec::new();
        interpret(&record, &mut effects).unwrap();
        effects.into_iter().for_each(|effect| slrus.effect(&server, record.next_lsn, effect));
    }
    let mut pages: HashMap<SlruKind, usize> = HashMap::new();
    for ((kind, pageno), page) in &slrus.pages {
        let disk = server.slru_page(*kind, *pageno).unwrap();
        assert!(page[..BLCKSZ] == disk, "{kind} page {pageno}");
        assert_eq!(page.len() - BLCKSZ, if *kind == SlruKind::Clog { 8 } else { 0 });
        *pages.entry(*kind).or_default() += 1;
    }
    assert!(SlruKind::ALL.iter().all(|kind| pages.get(kind) > Some(&1)), "{pages:?}");
}

/// The clears that a heap record makes on one visibility map block, as ingest of a record without a reference
/// to the map would store them.
fn vm_clear(record: &DecodedRecord, map: &BlockRef) -> Option<NeonWalRecord> {
    const HEAP2: u8 = 9;
    const HEAP: u8 = 10;
    let heap_block = |id| record.block(id).map(|block| block.blkno);
    let on_map = |blkno: u32| blkno / (8168 * 4) == map.blkno;
    let (new_heap_blkno, old_heap_blkno, flags) = match (record.rmid, record.info & 0x70) {
        (HEAP, 0x00 | 0x10) | (HEAP2, 0x50) => (heap_block(0), None, 3),
        (HEAP, 0x60) | (HEAP2, 0x60) => (None, heap_block(0), 2),
        (HEAP, 0x20 | 0x40) => {
            // xl_heap_update: flags at byte 7; XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED 1, NEW 2.
            let flags = record.main_data()[7];
            let (new, old) = (heap_block(0), heap_block(1).or(heap_block(0)));
            (new.filter(|_| flags & 2 != 0), old.filter(|_| flags & 1 != 0), 3)
        }
        _ => return None,
    };
    let new_heap_blkno = new_heap_blkno.filter(|blkno| on_map(*blkno));
    let old_heap_blkno = old_heap_blkno.filter(|blkno| on_map(*blkno));
    Some(NeonWalRecord::ClearVisibilityMapFlags { new_heap_blkno, old_heap_blkno, flags })
}

/// Visibility map pages rebuilt through the manager.
struct Maps {
    manager: PostgresRedoManager,
    pages: HashMap<Key, (BlockRef, Bytes)>,
    clears: usize,
    truncations: usize,
}

impl Maps {
    fn redo(
        &self,
        key: Key,
        base: Option<(Lsn, Bytes)>,
        records: Vec<(Lsn, NeonWalRecord)>,
    ) -> Bytes {
        self.manager.request_redo(key, records[0].0, base, records, PG_VERSION).unwrap()
    }

    fn block(&mut self, record: &DecodedRecord, map: &BlockRef) {
        const XLOG_HEAP2_VISIBLE: (u8, u8) = (9, 0x40);
        let (key, lsn) = (Key::rel_block(map.rel, map.blkno), record.next_lsn);
        let before = self.pages.remove(&key).map(|(_, page)| (lsn, page));
        if before.is_none() && (record.rmid, record.info & 0x70) != XLOG_HEAP2_VISIBLE {
            // A page from before the test.
            return;
        }
        let stored = wal::stored(record, map);
        let after = self.redo(key, before.clone(), vec![stored.clone()]);
        if let (Some(base), Some(clear)) = (before, vm_clear(record, map)) {
            let ours = self.redo(key, Some(base.clone()), vec![(lsn, clear.clone())]);
            assert_eq!(ours[8..], after[8..], "record at {}", record.start_lsn);
            assert_eq!(page::lsn(as_page(&ours)), lsn);
            // Mixed kinds in one request: Postgres, Rust, Postgres again; clearing twice changes nothing.
            let mixed = self.redo(key, Some(base), vec![stored.clone(), (lsn, clear), stored]);
            assert_eq!(mixed[8..], after[8..]);
            self.clears += 1;
        }
        self.pages.insert(key, (*map, after));
    }

    fn truncate(&mut self, lsn: Lsn, cut: RelationTruncate) {
        const HEAPBLOCKS_PER_PAGE: u32 = 8168 * 4;
        assert!(cut.vm);
        let within = cut.nblocks % HEAPBLOCKS_PER_PAGE;
        let key = Key::rel_block(cut.rel.fork(ForkNumber::Vm), cut.nblocks / HEAPBLOCKS_PER_PAGE);
        let Some((map, page)) = self.pages.get(&key).cloned() else { return };
        let truncate = NeonWalRecord::TruncateVisibilityMap {
            trunc_byte: u16::try_from(within / 4).unwrap(),
            trunc_offs: u8::try_from(within % 4 * 2).unwrap(),
        };
        let cut = self.redo(key, Some((lsn, page.clone())), vec![(lsn, truncate)]);
        assert_ne!(cut[24..], page[24..], "the truncation clears something");
        self.pages.insert(key, (map, cut));
        self.truncations += 1;
    }
}

#[test]
fn visibility_map_changes_equal_the_server() {
    let mut server = Server::start(common::stock(), "full_page_writes=off");
    server.sql("CHECKPOINT");
    let start = server.insert_lsn();
    server.sql(
        "CREATE TABLE t (id int PRIMARY KEY, a int, pad text);
         INSERT INTO t SELECT i, i, repeat('x', 200) FROM generate_series(1, 20000) i;
         VACUUM (FREEZE) t;
         DELETE FROM t WHERE id % 500 = 0;
         UPDATE t SET pad = repeat('y', 900) WHERE id % 333 = 0;
         UPDATE t SET a = 0 WHERE id % 777 = 0;
         INSERT INTO t SELECT i, i, repeat('z', 100) FROM generate_series(20001, 20200) i;
         BEGIN; SELECT count(*) FROM (SELECT * FROM t WHERE id % 901 = 0 FOR UPDATE) s; COMMIT;
         VACUUM t;
         CREATE TABLE cut (id int);
         INSERT INTO cut SELECT generate_series(1, 20000);
         VACUUM (FREEZE) cut;
         DELETE FROM cut WHERE id > 9000;
         VACUUM (TRUNCATE) cut;",
    );
    server.stop();

    let fixture = Fixture::new();
    let manager = fixture.manager();
    let mut maps = Maps { manager, pages: HashMap::new(), clears: 0, truncations: 0 };
    for record in wal::records(&server.data_dir(), start) {
        let vm = record.blocks().iter().filter(|block| block.rel.fork == ForkNumber::Vm);
        vm.for_each(|map| maps.block(&record, map));
        let mut effects = Vec::new();
        interpret(&record, &mut effects).unwrap();
        for effect in effects {
            if let Effect::RelationTruncate(cut) = effect {
                maps.truncate(record.next_lsn, cut);
            }
        }
    }
    let Maps { clears, truncations, pages, .. } = maps;
    assert!(clears > 50 && truncations > 0, "{clears} clears, {truncations} truncations");
    for (map, page) in pages.values() {
        let disk = server.block(map.rel, map.blkno).unwrap();
        assert!(page[8..] == disk[8..], "{} block {}", map.rel, map.blkno);
    }
}

fn as_page(bytes: &Bytes) -> &Page {
    bytes[..].try_into().unwrap()
}
