//! A stock PostgreSQL whose commits wait for a quorum of safekeepers. Needs `NEON_PG_STOCK`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{
    Postgres, TestSafekeeper, TestWalproposer, config, runtime, sync, sync_with, wait_for,
};
use pg_types::{Lsn, xlog};
use walproposer::{FEEDBACK_FILE_NAME, FEEDBACK_MAGIC, Outcome, ProtocolVersion};

/// The safekeeper has exactly what the server has written.
fn assert_same_wal(postgres: &Postgres, safekeeper: &TestSafekeeper, begin: Lsn, end: Lsn) {
    wait_for("the safekeeper's commit position", || {
        safekeeper.position("commit_lsn").filter(|lsn| end <= *lsn)
    });
    assert!(postgres.wal(begin, end) == safekeeper.wal(begin, end), "WAL {begin}..{end} differs");
}

fn inserts(postgres: &Postgres, statements: usize) {
    runtime().block_on(async {
        let mut session = postgres.session().await;
        session.simple_query("CREATE TABLE IF NOT EXISTS t (v text)").await.unwrap();
        for index in 0..statements {
            let insert = format!("INSERT INTO t VALUES (repeat('{index}', 50))");
            session.simple_query(&insert).await.unwrap();
        }
    });
}

#[test]
fn commits_wait_for_the_safekeeper_and_shutdown_is_complete() {
    let mut postgres = Postgres::start();
    let start_lsn = postgres.record_end();
    let safekeeper = TestSafekeeper::start(1, start_lsn);
    assert_eq!(sync(&[&safekeeper]), start_lsn);
    let walproposer = TestWalproposer::start(config(&[&safekeeper], Some(&postgres), start_lsn));
    inserts(&postgres, 100);
    let committed = postgres.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    assert_same_wal(&postgres, &safekeeper, start_lsn, committed);

    let feedback = std::fs::read(postgres.pgdata().join(FEEDBACK_FILE_NAME)).unwrap();
    assert_eq!(feedback[..8], FEEDBACK_MAGIC.to_le_bytes());

    postgres.request_stop();
    let outcome = walproposer.outcome();
    postgres.wait_stopped();
    let Outcome::ComputeStopped { commit_lsn } = outcome else { panic!("{outcome:?}") };
    assert!(committed < commit_lsn, "the shutdown checkpoint is durable too");
    assert_same_wal(&postgres, &safekeeper, start_lsn, commit_lsn);
    assert_eq!(sync(&[&safekeeper]), commit_lsn);
}

/// An acknowledged commit is on the safekeeper even when the walproposer is killed again and again.
#[test]
fn a_killed_walproposer_loses_nothing() {
    let postgres = Postgres::start();
    let start_lsn = postgres.record_end();
    let mut safekeeper = TestSafekeeper::start(1, start_lsn);
    let config = config(&[&safekeeper], Some(&postgres), start_lsn);
    let mut walproposer = TestWalproposer::start(config.clone());
    let (rows, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            runtime().block_on(async {
                let mut session = postgres.session().await;
                session.simple_query("CREATE TABLE bank (v bigint)").await.unwrap();
                while !done.load(Ordering::Relaxed) {
                    let row = rows.load(Ordering::Relaxed) + 1;
                    let insert = format!("INSERT INTO bank VALUES ({row})");
                    session.simple_query(&insert).await.unwrap();
                    rows.store(row, Ordering::Relaxed);
                }
            });
        });
        for round in 0..6 {
            let before = rows.load(Ordering::Relaxed);
            wait_for("progress", || (before + 20 < rows.load(Ordering::Relaxed)).then_some(()));
            if round % 3 == 2 {
                // The safekeeper goes as well; the walproposer finds it again.
                safekeeper.stop();
                safekeeper.restart();
            } else {
                walproposer.kill();
                walproposer.start_again(config.clone());
            }
        }
        let before = rows.load(Ordering::Relaxed);
        wait_for("progress", || (before < rows.load(Ordering::Relaxed)).then_some(()));
        done.store(true, Ordering::Relaxed);
        load.join().unwrap();
    });
    let acknowledged = rows.load(Ordering::Relaxed);
    let sum: u64 = postgres.value("SELECT sum(v) FROM bank").parse().unwrap();
    assert_eq!(sum, acknowledged * (acknowledged + 1) / 2);
    let end = postgres.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    assert_same_wal(&postgres, &safekeeper, start_lsn, end);
    drop(walproposer);
}

/// L016, L236: computes of both protocol versions write to the same safekeepers in turn, and read what the other has written.
#[test]
fn protocol_versions_take_turns() {
    let mut postgres = Postgres::start();
    let start_lsn = postgres.record_end();
    let safekeepers: Vec<_> = (1..=3).map(|id| TestSafekeeper::start(id, start_lsn)).collect();
    let all: Vec<&TestSafekeeper> = safekeepers.iter().collect();
    let speaking = |protocol_version, postgres: Option<&Postgres>| walproposer::Config {
        protocol_version,
        ..config(&all, postgres, start_lsn)
    };
    assert_eq!(sync_with(&speaking(ProtocolVersion::V2, None)), start_lsn);
    let turns = [ProtocolVersion::V2, ProtocolVersion::V3, ProtocolVersion::V2];
    let mut walproposer = TestWalproposer::start(speaking(turns[0], Some(&postgres)));
    for (turn, version) in turns.into_iter().enumerate() {
        if 0 < turn {
            walproposer.kill();
            walproposer.start_again(speaking(version, Some(&postgres)));
        }
        // Each of these returns when a quorum has it.
        inserts(&postgres, 50);
        let rows = postgres.value("SELECT count(*) FROM t");
        assert_eq!(rows, (50 * (turn + 1)).to_string());
        let committed = postgres.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        for safekeeper in &safekeepers {
            assert_same_wal(&postgres, safekeeper, start_lsn, committed);
        }
    }
    postgres.request_stop();
    let outcome = walproposer.outcome();
    postgres.wait_stopped();
    let Outcome::ComputeStopped { commit_lsn } = outcome else { panic!("{outcome:?}") };
    for version in [ProtocolVersion::V3, ProtocolVersion::V2] {
        assert_eq!(sync_with(&speaking(version, None)), commit_lsn);
    }
    for safekeeper in &safekeepers {
        assert_same_wal(&postgres, safekeeper, start_lsn, commit_lsn);
    }
}

/// A compute of version 2 does not commit on a timeline that has a membership, however many safekeepers would be enough.
#[test]
fn version_2_commits_nothing_where_there_are_members() {
    let postgres = Postgres::start();
    let start_lsn = postgres.record_end();
    let safekeeper = TestSafekeeper::start(1, start_lsn);
    safekeeper.become_member();
    let mut config = config(&[&safekeeper], Some(&postgres), start_lsn);
    config.protocol_version = ProtocolVersion::V2;
    let mut walproposer = TestWalproposer::start(config.clone());
    wait_for("refusals", || (2 <= safekeeper.failed_connections()).then_some(()));
    assert_eq!(safekeeper.position("flush_lsn"), Some(start_lsn));
    walproposer.kill();
    config.protocol_version = ProtocolVersion::V3;
    walproposer.start_again(config);
    inserts(&postgres, 10);
    let committed = postgres.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    assert_same_wal(&postgres, &safekeeper, start_lsn, committed);
}

/// Whoever syncs takes over: the running compute's walproposer ends, and none of its commits is acknowledged any more.
#[test]
fn a_successor_fences_the_running_compute() {
    let postgres = Postgres::start();
    let start_lsn = postgres.record_end();
    let safekeepers: Vec<_> = (1..=3).map(|id| TestSafekeeper::start(id, start_lsn)).collect();
    let all: Vec<&TestSafekeeper> = safekeepers.iter().collect();
    let walproposer = TestWalproposer::start(config(&all, Some(&postgres), start_lsn));
    inserts(&postgres, 20);
    let taken_over_at = sync(&all);
    let outcome = walproposer.outcome();
    assert!(matches!(outcome, Outcome::Fenced { .. }), "{outcome:?}");
    // Another one for the same server finds that its pages are out of date.
    let walproposer = TestWalproposer::start(config(&all, Some(&postgres), start_lsn));
    let outcome = walproposer.outcome();
    assert!(matches!(outcome, Outcome::Diverged { .. }), "{outcome:?}");
    assert_eq!(sync(&all), taken_over_at, "neither has written since");
}

/// One of three safekeepers may be away; what it misses meanwhile, more than is kept in memory, it gets from a donor.
#[test]
fn a_minority_may_be_away_and_catches_up() {
    let postgres = Postgres::start();
    let start_lsn = postgres.record_end();
    let mut safekeepers: Vec<_> = (1..=3).map(|id| TestSafekeeper::start(id, start_lsn)).collect();
    safekeepers[2].stop();
    let all: Vec<&TestSafekeeper> = safekeepers.iter().collect();
    let walproposer = TestWalproposer::start(config(&all, Some(&postgres), start_lsn));
    runtime().block_on(async {
        let mut session = postgres.session().await;
        session.simple_query("CREATE TABLE big (v text)").await.unwrap();
        for _ in 0..10 {
            let insert = "INSERT INTO big SELECT repeat('x', 1000) FROM generate_series(1, 10000)";
            session.simple_query(insert).await.unwrap();
            session.simple_query("CHECKPOINT").await.unwrap();
        }
    });
    let end: Lsn = postgres.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    assert!(xlog::WAL_SEGMENT_SIZE * 5 < end - start_lsn);
    safekeepers[2].restart();
    wait_for("the third safekeeper to catch up", || {
        safekeepers[2].position("flush_lsn").filter(|lsn| end <= *lsn)
    });
    // The server has recycled the early WAL by now, so the other safekeeper is the witness.
    wait_for("its commit position", || {
        safekeepers[2].position("commit_lsn").filter(|lsn| end <= *lsn)
    });
    assert!(safekeepers[0].wal(start_lsn, end) == safekeepers[2].wal(start_lsn, end));
    drop(walproposer);
}
