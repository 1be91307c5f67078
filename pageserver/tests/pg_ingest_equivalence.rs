//! The proof that ingest and redo give the pages of PostgreSQL itself.
//!
//! A stock server runs a workload. Its initial data directory is imported, all its WAL is ingested, and every block
//! of every permanent relation, every SLRU page and every relation map is compared with its files after a clean
//! shutdown; and at LSNs in between with a stock server that was recovered to that LSN from the initial directory.
//!
//! `NEON_EQUIV_FULL=1` runs PostgreSQL's regression suite and compares at 100 LSNs; else it is a script that touches
//! every resource manager, and a few LSNs. `NEON_EQUIV_SEED` repeats a run's choice of LSNs.
//!
//! What is not compared: free space maps (hints that are hardly ever logged), the main forks of unlogged relations,
//! and what `rm_mask` hides.
#![cfg(test)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes of files of a server that the test itself started"
)]

mod equivalence;
mod mask;

use std::path::Path;

use equivalence::compare::{Made, compare};
use equivalence::ours::{Ours, Span};
use equivalence::server::{Cluster, open_dir};
use pg_types::Key;
use pg_types::Lsn;
use wal_decoder::CheckPoint;

const SETTINGS: &str = "
fsync = off
wal_level = logical
wal_keep_size = '64GB'
max_wal_size = '32GB'
checkpoint_timeout = '1h'
max_prepared_transactions = 20
track_commit_timestamp = on
shared_buffers = '64MB'
max_connections = 60
autovacuum = off
log_min_messages = warning
";

#[test]
fn pages_are_those_of_postgres() {
    prove("wal_log_hints = on\nwal_compression = on\n", false);
}

/// As a compute runs: without hint logging every page has the very LSN that it has on the server, too, except
/// for visibility map pages, which redo of a truncation stamps here and not there. (With hint logging, setting
/// a page all-visible stamps it there and not here.)
#[test]
fn pages_and_their_lsns_are_those_of_postgres() {
    prove("wal_log_hints = off\nfull_page_writes = off\n", true);
}

fn prove(settings: &str, same_lsns: bool) {
    let full = std::env::var_os("NEON_EQUIV_FULL").is_some_and(|value| value == "1");
    let dir = open_dir();
    let mut server = Cluster::new(dir.path().join("data"));
    server.initdb();
    let initial = dir.path().join("initial");
    server.copy_to(&initial);
    let ours = Ours::import(&initial, dir.path());

    server.append("postgresql.conf", &format!("{SETTINGS}{settings}"));
    server.start();
    run_workload(&server, dir.path(), full);
    server.stop();
    let wal_dir = server.data.join("pg_wal");
    let records = ours.ingest(&wal_dir, server.checkpoint_lsn());
    let (_, end) = *records.last().unwrap();
    compare(&ours, &server.data, end, Made::ByWork)
        .check("at the end, against the server that worked", same_lsns);
    compare_counters(&ours, &server, end);
    compare_two_phase(&ours, &server.data, end);

    let mut places = choose(&records, if full { 100 } else { 4 });
    places.extend(records.last());
    for (start, end) in places {
        let recovered = recover(&initial, dir.path(), &wal_dir, start, settings);
        compare(&ours, &recovered, end, Made::ByReplay).check(&format!("at {end}"), same_lsns);
        std::fs::remove_dir_all(recovered).unwrap();
    }
}

fn run_workload(server: &Cluster, dir: &Path, full: bool) {
    let path = dir.join("workload.sql");
    std::fs::write(&path, include_str!("equivalence/workload.sql")).unwrap();
    server.psql("postgres", &path);
    if full {
        let output = open_dir_in(dir, "regress");
        server.pg_regress(&output);
    }
}

fn open_dir_in(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::create_dir(&path).unwrap();
    if let Some(user) = pg_launch::ensure_system_user().unwrap() {
        user.give(&path).unwrap();
    }
    path
}

/// LSNs spread over the whole of the WAL, at random within each part.
fn choose(records: &[Span], count: usize) -> Vec<Span> {
    let seed = match std::env::var("NEON_EQUIV_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(std::process::id()),
    };
    println!("NEON_EQUIV_SEED={seed}");
    let part = records.len() / count;
    // Multiplicative congruential generator of Knuth: quality does not matter, repeatability does.
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..count)
        .map(|index| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            records[index * part + (state >> 33) as usize % part]
        })
        .collect()
}

/// A stock server's files after replay of the record that starts at `last` and all before it.
fn recover(
    initial: &Path,
    dir: &Path,
    wal_dir: &Path,
    last: Lsn,
    settings: &str,
) -> std::path::PathBuf {
    let data = dir.join("recovered");
    equivalence::server::run(std::process::Command::new("cp").arg("-a").arg(initial).arg(&data));
    let mut server = Cluster::new(data.clone());
    server.append(
        "postgresql.conf",
        &format!(
            "{SETTINGS}{settings}restore_command = 'cp {}/%f \"%p\"'\nrecovery_target_lsn = '{last}'\n\
             recovery_target_inclusive = on\nrecovery_target_action = promote\n\
             recovery_target_timeline = current\nhot_standby = off\n\
             allow_in_place_tablespaces = on\n",
            wal_dir.display()
        ),
    );
    server.append("recovery.signal", "");
    server.start();
    server.wait_promoted();
    server.stop();
    data
}

/// The counters that a compute would start with, against those of the server's last checkpoint.
fn compare_counters(ours: &Ours, server: &Cluster, lsn: Lsn) {
    let (_, stored) = ours.store.get_image(Key::CHECKPOINT, lsn).unwrap().unwrap();
    let stored = CheckPoint::decode(&stored).unwrap();
    // `checkPointCopy` of `ControlFileData` begins at byte 40.
    let control = std::fs::read(server.data.join("global/pg_control")).unwrap();
    let theirs = CheckPoint::decode(&control[40..]).unwrap();
    assert_eq!(theirs.redo, server.checkpoint_lsn(), "the offset of checkPointCopy");
    let expected = CheckPoint { redo: lsn, oldest_active_xid: stored.oldest_active_xid, ..theirs };
    assert_eq!(stored, expected);
}

/// State files: ours lack the CRC behind them.
fn compare_two_phase(ours: &Ours, data: &Path, lsn: Lsn) {
    let mut files = 0;
    for entry in std::fs::read_dir(data.join("pg_twophase")).unwrap() {
        let entry = entry.unwrap();
        let full_xid = u64::from_str_radix(entry.file_name().to_str().unwrap(), 16).unwrap();
        let theirs = std::fs::read(entry.path()).unwrap();
        let (_, state) = ours.store.get_image(Key::two_phase(full_xid), lsn).unwrap().unwrap();
        assert_eq!(state, theirs[..theirs.len() - 4]);
        files += 1;
    }
    let keys = ours.store.scan_keys(Key::two_phase_range(), lsn).unwrap().count();
    assert_eq!((files, keys), (1, 1), "the workload leaves one prepared transaction");
}
