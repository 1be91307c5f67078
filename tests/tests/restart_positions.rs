//! A compute that is stopped, or killed, where the log is awkward to continue: at the end of a WAL page, just behind it, at
//! the end of a segment, after `pg_switch_wal()`, after records over many pages, and in the middle of one.
//!
//! Each time the next compute starts at the position where the safekeeper says that WAL ends, without recovery. Everything
//! committed before must be there, new commits must work, and the page server must be able to read on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pg_types::Lsn;
use pg_types::xlog::{
    WAL_SEGMENT_SIZE, XLOG_BLCKSZ, page_header_size, page_offset, segment_offset,
};
use postgres::Client;
use system_tests::cluster::{kill_and_wait, single_value, wait_until};
use system_tests::{Cluster, Endpoint, Place};

/// Nothing but the test writes WAL, as far as that can be had, and no page is read from a cache.
const SETTINGS: [(&str, &str); 5] = [
    ("autovacuum", "off"),
    ("neon.max_file_cache_size", "0"),
    ("checkpoint_timeout", "1h"),
    ("track_counts", "off"),
    ("shared_buffers", "16MB"),
];
/// What a shutdown checkpoint record takes, aligned.
const CHECKPOINT_LEN: u64 = 120;
/// A server writes a little WAL of its own now and then (`RUNNING_XACTS`), which spoils an attempt.
const ATTEMPTS: u32 = 8;

/// Where WAL is to end.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Exactly at the end of a page.
    Page,
    /// One short record behind the start of a page.
    BehindPage,
    /// Exactly at the end of a segment.
    Segment,
    /// One short record behind the start of a segment.
    BehindSegment,
    /// Behind XLOG_SWITCH: at the end of its segment.
    Switch,
    /// Behind a message over many pages.
    LongMessage,
    /// Behind a commit record over many pages.
    LongCommit,
}

impl End {
    /// Whether the next record is to begin at `next`, in a place as it was wanted.
    fn is_met(self, next: Lsn) -> bool {
        let behind_header = page_offset(next) - page_header_size(Lsn(next.0 - page_offset(next)));
        let in_first_page = segment_offset(next) < XLOG_BLCKSZ;
        match self {
            End::Page => behind_header == 0 && !in_first_page,
            End::Segment | End::Switch => behind_header == 0 && in_first_page,
            End::BehindPage => (1..200).contains(&behind_header) && !in_first_page,
            End::BehindSegment => (1..200).contains(&behind_header) && in_first_page,
            End::LongMessage | End::LongCommit => true,
        }
    }
}

fn position(client: &mut Client, sql: &str) -> Result<Lsn> {
    let text = single_value(client, sql)?;
    text.parse().map_err(|error| anyhow::anyhow!("{text}: {error}"))
}

/// Where the next record would begin.
fn insert_position(client: &mut Client) -> Result<Lsn> {
    position(client, "SELECT pg_current_wal_insert_lsn()::text")
}

/// Writes a message with so much text; where the next record would begin.
fn emit(client: &mut Client, bytes: u64) -> Result<Lsn> {
    let sql = format!("SELECT pg_logical_emit_message(false, '', repeat('x', {bytes}), true)");
    client.simple_query(&sql)?;
    insert_position(client)
}

/// Fills the current unit (page or segment) with messages until `tail` bytes are left in it.
fn fill(client: &mut Client, unit: u64, tail: u64) -> Result<()> {
    let room = |from: Lsn| unit - from.0 % unit;
    let mut at = emit(client, 8)?;
    // To the last page of the unit, then to a place with room for a message and the tail.
    while room(at) > XLOG_BLCKSZ {
        at = emit(client, (room(at) / 2).min(1 << 20))?;
    }
    while room(at) < tail + 1024 {
        at = emit(client, 1024)?;
        if room(at) > XLOG_BLCKSZ {
            return fill(client, unit, tail);
        }
    }
    // A message of 300 bytes shows what one takes beside its text.
    let after = emit(client, 300)?;
    let overhead = after.0.checked_sub(at.0 + 300).context("somebody else writes WAL")?;
    let bytes = room(after).checked_sub(tail + overhead).context("no room left")?;
    emit(client, bytes).map(drop)
}

/// Brings the log to where it is wanted, for a server that writes `tail` bytes more while it stops.
fn prepare(client: &mut Client, end: End, tail: u64) -> Result<()> {
    match end {
        End::Page => fill(client, XLOG_BLCKSZ, tail),
        End::Segment => fill(client, WAL_SEGMENT_SIZE, tail),
        // The end itself when the stop writes the short record, else one is written here.
        End::BehindPage | End::BehindSegment => {
            let unit = if matches!(end, End::BehindPage) { XLOG_BLCKSZ } else { WAL_SEGMENT_SIZE };
            fill(client, unit, 0)?;
            if tail == 0 { emit(client, 8).map(drop) } else { Ok(()) }
        }
        End::Switch => {
            emit(client, 1000)?;
            client.simple_query("SELECT pg_switch_wal()").map(drop)?;
            Ok(())
        }
        End::LongMessage => emit(client, 100_000).map(drop),
        End::LongCommit => {
            // Each block with a handler is a subtransaction, and the commit record names all of them.
            let sql = "DO $$ BEGIN FOR i IN 1..10000 LOOP
                BEGIN INSERT INTO sub VALUES (i); EXCEPTION WHEN division_by_zero THEN NULL; END;
                END LOOP; END $$";
            client.batch_execute(sql)?;
            Ok(())
        }
    }
}

/// Waits until a quorum has everything that was written.
fn wait_durable(client: &mut Client) -> Result<()> {
    let flushed = position(client, "SELECT pg_current_wal_flush_lsn()::text")?;
    wait_until("the safekeeper has all WAL", || {
        let sql = "SELECT coalesce(max(flush_lsn), '0/0')::text FROM pg_stat_replication \
            WHERE application_name = 'walproposer'";
        Ok(flushed <= position(client, sql)?)
    })
}

/// The system under test and what it must know.
struct World {
    cluster: Cluster,
    endpoint: Endpoint,
    rows: i64,
    subtransactions: i64,
}

impl World {
    fn new() -> Result<World> {
        let cluster = Cluster::start(Place::from_env()?)?;
        let endpoint = cluster.endpoint("main", "main", &SETTINGS)?;
        let sql = "CREATE TABLE t(a bigint PRIMARY KEY, filler text); CREATE TABLE sub(a int)";
        endpoint.connect("postgres")?.batch_execute(sql)?;
        Ok(World { cluster, endpoint, rows: 0, subtransactions: 0 })
    }

    /// A commit that must survive.
    fn commit(&mut self, client: &mut Client) -> Result<()> {
        let sql = "INSERT INTO t VALUES ($1, repeat('f', 500))";
        client.execute(sql, &[&self.rows]).context("a new commit")?;
        self.rows += 1;
        Ok(())
    }

    /// Everything that was committed is there, and nothing else.
    fn check(&mut self) -> Result<()> {
        let mut client = self.endpoint.connect("postgres")?;
        let sql = "SELECT count(*), coalesce(sum(a), 0)::bigint, count(DISTINCT filler) FROM t";
        let row = client.query_one(sql, &[])?;
        let found: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let expected = (self.rows, self.rows * (self.rows - 1) / 2, self.rows.min(1));
        ensure!(found == expected, "found {found:?}, expected {expected:?}");
        let subtransactions: i64 = client.query_one("SELECT count(*) FROM sub", &[])?.get(0);
        ensure!(subtransactions == self.subtransactions, "{subtransactions} subtransactions");
        self.commit(&mut client)
    }

    /// Where the running server began.
    fn started_at(&self) -> Result<Lsn> {
        let log = self.cluster.endpoint_dir(&self.endpoint).join("postgres.log");
        let log = fs::read_to_string(&log).with_context(|| format!("{}", log.display()))?;
        let line = log.lines().rfind(|line| line.contains("starting at ")).context("no start")?;
        let rest = line.split("starting at ").nth(1).unwrap_or_default();
        let text = rest.split([',', ' ']).next().unwrap_or_default();
        text.parse().map_err(|error| anyhow::anyhow!("{line}: {error}"))
    }

    /// Stops and starts once; whether WAL ended where it was wanted.
    fn round(&mut self, end: End, mode: &str) -> Result<bool> {
        let mut client = self.endpoint.connect("postgres")?;
        self.commit(&mut client)?;
        let tail = if mode == "fast" { CHECKPOINT_LEN } else { 0 };
        prepare(&mut client, end, tail)?;
        if matches!(end, End::LongCommit) {
            self.subtransactions += 10_000;
        }
        wait_durable(&mut client)?;
        drop(client);
        self.cluster.stop_endpoint(&self.endpoint, mode)?;
        self.cluster.start_endpoint(&self.endpoint)?;
        let start = self.started_at()?;
        self.check().with_context(|| format!("started at {start}"))?;
        let met = if matches!(end, End::Switch) && mode == "fast" {
            End::BehindSegment.is_met(start)
        } else {
            end.is_met(start)
        };
        println!("{end:?}, {mode}: started at {start}{}", if met { "" } else { ", not there" });
        Ok(met)
    }

    fn rounds(&mut self, end: End, mode: &str) -> Result<()> {
        for _ in 0..ATTEMPTS {
            if self.round(end, mode).with_context(|| format!("{end:?}, {mode}"))? {
                return Ok(());
            }
        }
        bail!("WAL did not end where it was wanted in {ATTEMPTS} attempts: {end:?}, {mode}")
    }
}

#[test]
fn starts_at_page_ends() -> Result<()> {
    let mut world = World::new()?;
    for end in [End::Page, End::BehindPage] {
        for mode in ["immediate", "fast"] {
            world.rounds(end, mode)?;
        }
    }
    Ok(())
}

#[test]
fn starts_at_segment_ends() -> Result<()> {
    let mut world = World::new()?;
    for end in [End::Segment, End::BehindSegment, End::Switch] {
        for mode in ["immediate", "fast"] {
            world.rounds(end, mode)?;
        }
    }
    Ok(())
}

#[test]
fn starts_behind_records_over_many_pages() -> Result<()> {
    let mut world = World::new()?;
    for end in [End::LongMessage, End::LongCommit] {
        for mode in ["immediate", "fast"] {
            world.rounds(end, mode)?;
        }
    }
    Ok(())
}

/// Directory of the only timeline's WAL on the safekeeper.
fn wal_dir(cluster: &Cluster) -> Result<PathBuf> {
    let mut dirs = vec![cluster.dir().join("safekeeper-1")];
    while let Some(dir) = dirs.pop() {
        if dir.join("safekeeper.control").is_file() {
            return Ok(dir);
        }
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    bail!("the safekeeper has no timeline")
}

fn segments(dir: &Path) -> Result<usize> {
    let names = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    Ok(names.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("0000")).count())
}

/// Text of a message that takes longer to write than it takes to notice the first of its segments.
const LONG_MESSAGE: u64 = 400_000_000;

/// The safekeeper has a part of a record when everything of the compute dies at once.
#[test]
fn killed_in_the_middle_of_a_long_record() -> Result<()> {
    let mut world = World::new()?;
    let wal = wal_dir(&world.cluster)?;
    let mut cut = 0;
    for round in 0..ATTEMPTS {
        let mut client = world.endpoint.connect("postgres")?;
        world.commit(&mut client)?;
        wait_durable(&mut client)?;
        let before = insert_position(&mut client)?;
        drop(client);
        let segments_before = segments(&wal)?;
        let mut writer = world.endpoint.connect("postgres")?;
        // Whether its writer hears of the message does not matter, only what the safekeeper has of it.
        let writing = std::thread::spawn(move || drop(emit(&mut writer, LONG_MESSAGE)));
        wait_until("the safekeeper has a part", || Ok(segments_before + 2 <= segments(&wal)?))?;
        // PostgreSQL ends with its supervisor, and its pid file with it.
        let postgres = world.cluster.pid("endpoints/main/pgdata/postmaster.pid")?;
        kill_and_wait(world.cluster.pid("endpoints/main/compute.pid")?)?;
        kill_and_wait(postgres)?;
        ensure!(writing.join().is_ok(), "the writer panicked");
        world.cluster.start_endpoint(&world.endpoint)?;
        let start = world.started_at()?;
        println!("round {round}: killed behind {before}, started at {start}");
        // WAL ends before the record, or behind it when all of it had arrived; never within.
        let is_cut = before <= start && start < before + (1 << 20);
        ensure!(is_cut || before + LONG_MESSAGE <= start, "started at {start}");
        world.check()?;
        if is_cut {
            ensure!(segments(&wal)? <= segments_before + 1, "the part is still there");
            cut += 1;
        }
        if cut == 2 {
            return Ok(());
        }
    }
    bail!("the safekeeper had the whole record each time")
}
