//! Requests that a redo process cannot or should not survive, and that those after them are right (L064, L103,
//! L362); and a long life without growth.
#![cfg(test)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::direct::{LOCATOR, first_insert, record};
use common::{Fixture, PG_VERSION, redo_pids, server::Server, wal};
use pg_types::page::{self, Page};
use pg_types::{ForkNumber, Key, Lsn};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walredo_sidecar::{NeonWalRecord, PostgresRedoManager, WalRedoError, WalRedoManager};

fn key(blkno: u32) -> Key {
    Key::rel_block(LOCATOR.fork(ForkNumber::Main), blkno)
}

fn stored(lsn: u64, rec: Vec<u8>) -> (Lsn, NeonWalRecord) {
    (Lsn(lsn), NeonWalRecord::Postgres { will_init: true, rec: rec.into() })
}

fn ask(manager: &PostgresRedoManager, rec: Vec<u8>) -> Result<Bytes, WalRedoError> {
    manager.request_redo(key(0), Lsn(0x1000), None, vec![stored(0x1000, rec)], PG_VERSION)
}

fn good(manager: &PostgresRedoManager) -> Bytes {
    ask(manager, first_insert(40)).unwrap()
}

/// One request: base page and records of a block.
struct Sample {
    key: Key,
    base: Option<(Lsn, Bytes)>,
    record: (Lsn, NeonWalRecord),
    expected: Bytes,
}

/// Requests of every resource manager, out of a real server's WAL.
fn samples(manager: &PostgresRedoManager, most: usize) -> Vec<Sample> {
    let mut server = Server::start(common::stock(), "wal_level=logical");
    server.sql("CHECKPOINT");
    let start = server.insert_lsn();
    server.sql(include_str!("common/workload.sql"));
    server.stop();
    let mut pages = std::collections::HashMap::new();
    let mut found: std::collections::BTreeMap<(u8, u8), Vec<Sample>> = Default::default();
    for record in wal::records(&server.data_dir(), start) {
        for block in record.blocks() {
            let key = Key::rel_block(block.rel, block.blkno);
            let base = pages.remove(&key).filter(|_| !wal::makes_page(block));
            if base.is_none() && !wal::makes_page(block) {
                continue;
            }
            let stored = wal::stored(&record, block);
            let lsn = record.next_lsn;
            let page = manager
                .request_redo(key, lsn, base.clone(), vec![stored.clone()], PG_VERSION)
                .unwrap();
            pages.insert(key, (lsn, page.clone()));
            let kind = found.entry((record.rmid, record.info & 0xF0)).or_default();
            if kind.len() < most {
                kind.push(Sample { key, base, record: stored, expected: page });
            }
        }
    }
    found.into_values().flatten().collect()
}

#[test]
fn a_killed_process_fails_one_request_and_is_replaced() {
    let fixture = Fixture::new();
    let manager = fixture.manager();
    let page = good(&manager);
    let pid = redo_pids(fixture.dir.path())[0];
    let process = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(matches!(ask(&manager, first_insert(40)), Err(WalRedoError::IoError(_))));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "waited for");
    assert_eq!(good(&manager), page);
    assert_ne!(redo_pids(fixture.dir.path()), [pid]);
}

#[test]
fn a_stopped_process_times_out() {
    let fixture = Fixture::with(|config| config.wal_redo_timeout = Duration::from_millis(300));
    let manager = fixture.manager();
    // The launch itself may take longer than this time-out on a busy machine.
    let page =
        (0..100).find_map(|_| ask(&manager, first_insert(40)).ok()).expect("a launch in time");
    let pid = nix::unistd::Pid::from_raw(redo_pids(fixture.dir.path())[0].try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let error = ask(&manager, first_insert(40)).unwrap_err();
    assert_eq!(error.to_string(), "WAL redo timed out");
    assert!(page.iter().any(|byte| *byte != 0));
}

#[test]
fn errors_of_redo_end_the_process_and_tell_why() {
    let fixture = Fixture::new();
    let manager = fixture.manager();
    let page = good(&manager);
    let mut second = first_insert(40);
    second[16] = 0; // no longer XLOG_HEAP_INIT_PAGE, but the block still says WILL_INIT
    let mut no_init = second.clone();
    no_init[25] = 0x20; // BKPBLOCK_HAS_DATA alone: needs a page that nobody pushed
    let mut no_block = vec![0; 24];
    no_block[0] = 24;
    no_block[17] = 10;
    for (rec, complaint) in [
        (second, "block with WILL_INIT flag in WAL record must be zeroed by redo routine"),
        (no_init, "WAL contains references to invalid pages"),
        (no_block, "WAL record references no block"),
        (record(1, 0, &[], &[0; 8]), "is not one that changes a relation page"),
        (record(190, 0, &[], &[0; 8]), "resource manager with ID 190 not registered"),
        (first_insert(40)[..60].to_vec(), "were received"),
        (vec![1, 2, 3], "shorter than its header"),
    ] {
        let error = ask(&manager, rec).unwrap_err();
        assert!(matches!(error, WalRedoError::IoError(_)), "{error}");
        let log = common::logs::text();
        assert!(log.contains(complaint), "{complaint} in {log}");
        assert_eq!(good(&manager), page, "the next request after: {complaint}");
    }
}

#[test]
fn only_the_target_changes_and_nothing_carries_over() {
    let fixture = Fixture::new();
    let manager = fixture.manager();
    let first = good(&manager);
    // The same relation, another block: must not see block 0, nor block 0 this one.
    let mut other = first_insert(200);
    let blkno = 24 + 4 + 12;
    other[blkno] = 9;
    let lsn = Lsn(0x2000);
    let request = vec![stored(0x2000, other)];
    let page = manager.request_redo(key(9), lsn, None, request.clone(), PG_VERSION).unwrap();
    assert_ne!(page, first);
    assert_eq!(good(&manager), first);
    // A record about block 9 alone leaves block 0 as it was pushed.
    let base = Some((Lsn(0x1000), first.clone()));
    let same = manager.request_redo(key(0), lsn, base, request, PG_VERSION).unwrap();
    assert_eq!(same, first);
}

#[test]
fn long_records_and_long_chains() {
    let fixture = Fixture::new();
    let manager = fixture.manager();
    let page = good(&manager);
    // Multi-insert with a tuple area far longer than a page would be refused by redo; a record may carry main
    // data that redo does not look at, as logical decoding has it.
    let mut long = first_insert(40);
    let main = long.split_off(long.len() - 3);
    let data = long.split_off(long.len() - 46);
    long.truncate(long.len() - 2);
    let size: u32 = 1 << 20;
    long.push(254); // XLR_BLOCK_ID_DATA_LONG
    long.extend_from_slice(&(size + 3).to_le_bytes());
    long.extend_from_slice(&data);
    long.extend_from_slice(&main);
    long.resize(long.len() + size as usize, 0xAB);
    let len = u32::try_from(long.len()).unwrap();
    long[..4].copy_from_slice(&len.to_le_bytes());
    assert_eq!(ask(&manager, long.clone()).unwrap(), page);
    let chain: Vec<_> = (0..20).map(|_| stored(0x1000, long.clone())).collect();
    let result = manager.request_redo(key(0), Lsn(0x1000), None, chain, PG_VERSION).unwrap();
    assert_eq!(result, page, "later records are not newer than the page");
}

#[test]
fn malformed_records_kill_the_child_at_most() {
    const ROUNDS: usize = 400;
    let fixture = Fixture::with(|config| config.wal_redo_timeout = Duration::from_secs(3));
    let patient = Fixture::new();
    let samples = samples(&patient.manager(), 3);
    let manager = fixture.manager();
    let mut rng = StdRng::seed_from_u64(20_251_121);
    let (mut answered, mut failed) = (0, 0);
    for round in 0..ROUNDS {
        let sample = &samples[rng.random_range(0..samples.len())];
        let NeonWalRecord::Postgres { rec, .. } = &sample.record.1 else { panic!("not Postgres") };
        let mut rec = rec.to_vec();
        for _ in 0..rng.random_range(1..6) {
            // Not the length: that is refused before anything is decoded.
            let at = rng.random_range(4..rec.len());
            rec[at] = match rng.random_range(0..3) {
                0 => rec[at] ^ 1 << rng.random_range(0..8),
                1 => 0xFF,
                _ => rng.random(),
            };
        }
        let lsn = sample.record.0;
        let request = vec![(lsn, NeonWalRecord::Postgres { will_init: false, rec: rec.into() })];
        match manager.request_redo(sample.key, lsn, sample.base.clone(), request, PG_VERSION) {
            Ok(_) => answered += 1,
            Err(WalRedoError::IoError(_)) => failed += 1,
            Err(other) => panic!("round {round}: {other}"),
        }
        let request = vec![sample.record.clone()];
        let page = manager.request_redo(sample.key, lsn, sample.base.clone(), request, PG_VERSION);
        assert!(page.unwrap() == sample.expected, "round {round}: the request after it");
    }
    assert!(answered > 0 && failed > 0, "{answered} answered, {failed} failed");
    println!("{answered} malformed records were answered, {failed} failed");
}

/// Resident memory in KiB.
fn resident(pid: u32) -> u64 {
    let text = common::status_field(pid, "VmRSS");
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// As many redos as WALREDO_SOAK says (100,000 without it), through one process.
#[test]
fn a_long_life_needs_no_more_memory() {
    let wanted: usize = std::env::var("WALREDO_SOAK").map_or(100_000, |n| n.parse().unwrap());
    let fixture = Fixture::new();
    let manager = fixture.manager();
    let samples = samples(&manager, 30);
    let pid = redo_pids(fixture.dir.path())[0];
    let (mut done, mut relations) = (0, 0u32);
    let mut after_warm_up = None;
    while done < wanted {
        for sample in &samples {
            let (lsn, record) = &sample.record;
            let request = vec![(*lsn, record.clone())];
            let page = manager
                .request_redo(sample.key, *lsn, sample.base.clone(), request, PG_VERSION)
                .unwrap();
            assert!(page == sample.expected);
            done += 1;
        }
        // Relations that were never seen before: nothing may be kept about them.
        for _ in 0..50 {
            relations += 1;
            let locator = pg_types::RelFileLocator { rel_number: 100_000 + relations, ..LOCATOR };
            let mut rec = first_insert(40);
            rec[36..40].copy_from_slice(&locator.rel_number.to_le_bytes());
            let key = Key::rel_block(locator.fork(ForkNumber::Main), 0);
            let page = manager
                .request_redo(key, Lsn(0x1000), None, vec![stored(0x1000, rec)], PG_VERSION)
                .unwrap();
            let page: &Page = page[..].try_into().unwrap();
            assert_eq!(page::lsn(page), Lsn(0x1000));
            done += 1;
        }
        if after_warm_up.is_none() && done > wanted / 10 {
            after_warm_up = Some(resident(pid));
        }
    }
    let (before, after) = (after_warm_up.unwrap(), resident(pid));
    println!("{done} redos: resident {before} KiB after a tenth, {after} KiB at the end");
    assert!(after <= before + 512, "resident memory grew from {before} to {after} KiB");
    assert_eq!(descriptors(pid), 3);
    assert_eq!(redo_pids(fixture.dir.path()), [pid], "one process did it all");
}
