//! Every block of every record of a real server's WAL, redone and compared with the server's own page.
//!
//! The server runs with `wal_consistency_checking = all`, so each record carries the page as it was right after
//! the change. That is compared record by record, under the resource manager's mask; at the end the last page of
//! every block is compared with the server's files (L036, L041, L049, L050, L103).
#![cfg(test)]

mod common;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use common::{Fixture, PG_VERSION, mask::mask, server::Server, wal};
use pg_launch::PgInstall;
use pg_types::page::{self, Page};
use pg_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn, RelTag};
use wal_decoder::DecodedRecord;
use walredo_sidecar::{NeonWalRecord, PostgresRedoManager, WalRedoManager};

type Block = (RelTag, BlockNumber);

/// What is known of one block.
struct Rebuilt {
    page: Bytes,
    /// Everything since the record that made the page.
    chain: Vec<(Lsn, NeonWalRecord)>,
    rmid: u8,
}

fn masked(rmid: u8, bytes: &[u8], (rel, blkno): Block) -> Page {
    let mut page: Page = bytes.try_into().unwrap();
    mask(rmid, &mut page, rel.fork, blkno);
    page
}

fn same(rmid: u8, ours: &[u8], theirs: &[u8], block: Block, what: &str) {
    let (a, b) = (masked(rmid, ours, block), masked(rmid, theirs, block));
    if let Some(at) = (0..BLCKSZ).find(|at| a[*at] != b[*at]) {
        let range = at.saturating_sub(8)..(at + 24).min(BLCKSZ);
        panic!(
            "{} block {} {what}: byte {at} differs: ours {:02x?} theirs {:02x?}",
            block.0,
            block.1,
            &a[range.clone()],
            &b[range]
        );
    }
}

/// Replays records one by one; returns the state of every block and counts by resource manager.
struct Replay {
    manager: PostgresRedoManager,
    blocks: HashMap<Block, Rebuilt>,
    checked: BTreeMap<u8, usize>,
}

impl Replay {
    fn record(&mut self, record: &DecodedRecord) {
        for reference in record.blocks() {
            let block = (reference.rel, reference.blkno);
            let key = Key::rel_block(reference.rel, reference.blkno);
            let stored = wal::stored(record, reference);
            let makes_page = wal::makes_page(reference);
            let known = self.blocks.remove(&block).filter(|_| !makes_page);
            let Some(mut known) = known.or_else(|| {
                makes_page.then(|| Rebuilt {
                    page: Bytes::new(),
                    chain: Vec::new(),
                    rmid: record.rmid,
                })
            }) else {
                assert!(
                    matches!(reference.rel.fork, ForkNumber::Fsm | ForkNumber::Vm)
                        || record.rmid == 0,
                    "record at {} changes {} block {} that nothing has made",
                    record.start_lsn,
                    reference.rel,
                    reference.blkno
                );
                continue;
            };
            let base = (!makes_page).then(|| (record.start_lsn, known.page.clone()));
            let page = self
                .manager
                .request_redo(key, record.next_lsn, base, vec![stored.clone()], PG_VERSION)
                .unwrap_or_else(|error| panic!("record at {}: {error}", record.start_lsn));
            if let Some(image) = wal::consistency_image(record, reference) {
                let what = format!(
                    "after rmgr {} info {:02X} at {}",
                    record.rmid, record.info, record.start_lsn
                );
                if record.rmid == 0 {
                    let mut image = image;
                    if !page::is_new(&image) {
                        page::set_lsn(&mut image, record.next_lsn);
                    }
                    assert_eq!(page, image[..], "{what}");
                } else {
                    same(record.rmid, &page, &image, block, &what);
                }
                *self.checked.entry(record.rmid).or_default() += 1;
            }
            known.page = page;
            known.chain.push(stored);
            if record.rmid != 0 {
                known.rmid = record.rmid;
            }
            self.blocks.insert(block, known);
        }
    }

    /// The whole chain in one request gives the same bytes as record by record.
    fn chains(&self) {
        for ((rel, blkno), known) in &self.blocks {
            let key = Key::rel_block(*rel, *blkno);
            let lsn = known.chain.last().unwrap().0;
            let page =
                self.manager.request_redo(key, lsn, None, known.chain.clone(), PG_VERSION).unwrap();
            assert!(page == known.page, "{rel} block {blkno}: chain of {}", known.chain.len());
        }
    }
}

fn replay(install: PgInstall, settings: &str) -> BTreeMap<u8, usize> {
    let mut server = Server::start(install, settings);
    server.sql("CHECKPOINT");
    let start = server.insert_lsn();
    server.sql(include_str!("common/workload.sql"));
    let alive = server.sql("SELECT count(*) FROM heap");
    assert_ne!(alive, "0");
    server.stop();

    let fixture = Fixture::new();
    let mut replay =
        Replay { manager: fixture.manager(), blocks: HashMap::new(), checked: BTreeMap::new() };
    for record in wal::records(&server.data_dir(), start) {
        replay.record(&record);
    }
    replay.chains();

    // rmgrlist.h: HEAP2 to BRIN and GENERIC; XLOG full page images come with them.
    for rmid in (9..=17).chain([20]) {
        let checked = replay.checked.get(&rmid).copied().unwrap_or(0);
        assert!(checked > 0, "resource manager {rmid} was not exercised: {:?}", replay.checked);
    }
    let mut compared = 0;
    for (block, known) in &replay.blocks {
        // Blocks of dropped or truncated relations are gone; rewritten ones hold something else.
        let Some(disk) = server.block(block.0, block.1) else { continue };
        if page::is_new(&disk) || known.rmid == 0 {
            continue;
        }
        if page::lsn(&disk) == page::lsn(known.page[..].try_into().unwrap()) {
            same(known.rmid, &known.page, &disk, *block, "on disk");
            compared += 1;
        }
    }
    assert!(compared > 500, "only {compared} blocks were compared with files");
    println!(
        "checked records by resource manager: {:?}; blocks on disk: {compared}",
        replay.checked
    );
    replay.checked
}

#[test]
fn redo_equals_the_server() {
    replay(common::stock(), "wal_consistency_checking=all\nwal_level=logical");
}

#[test]
fn redo_equals_the_server_with_compressed_images_and_hints() {
    let settings =
        "wal_consistency_checking=all\nwal_level=replica\nwal_compression=lz4\nwal_log_hints=on";
    replay(common::stock(), settings);
}

/// A server whose heap records carry command ids in the `neon` resource manager (L035).
#[test]
fn redo_equals_the_server_with_command_ids() {
    let settings = "wal_consistency_checking='all,neon'\nshared_preload_libraries=neon_rmgr";
    let checked = replay(common::patched(), settings);
    let neon = checked.get(&134).copied().unwrap_or(0);
    assert!(neon > 100, "{neon} records of the neon resource manager");
}
