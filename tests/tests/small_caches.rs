//! All caches of a compute at their smallest, so that each of them is full and displaces all the time, while pages are
//! updated, scanned, evicted, read ahead, kept in the local file cache and brought into it again. Every page that leaves
//! the buffers is compared with the page server's version (`neon.audit_pages`): a mismatch is a PANIC.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use anyhow::{Result, ensure};
use postgres::Client;
use rand::RngExt;
use system_tests::cluster::single_value;
use system_tests::{Cluster, Endpoint, Place};

const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "1MB"),
    ("autovacuum_naptime", "1s"),
    ("effective_io_concurrency", "32"),
    ("neon.max_file_cache_size", "1MB"),
    ("neon.file_cache_size_limit", "1MB"),
    ("neon.readahead_buffer_size", "16"),
    ("neon.relsize_hash_size", "1024"),
    ("neon.last_written_lsn_cache_size", "1024"),
    ("neon.audit_pages", "on"),
];
/// Each has an index, and a visibility map once it is vacuumed: more forks than the size cache has entries.
const TABLES: usize = 500;
/// Three to four pages for each table: more pages than the cache of last-written LSNs has entries.
const ROWS: i64 = 20;
const UPDATES: usize = 1_200;

/// What was acknowledged: how much was added to each table.
#[derive(Debug)]
struct Books(Vec<AtomicI64>);

impl Books {
    fn sum(&self, table: usize) -> i64 {
        self.0.get(table).map_or(0, |sum| sum.load(Ordering::Acquire))
    }
}

#[test]
fn full_caches_give_right_answers() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", SETTINGS)?;
    create_tables(&mut endpoint.connect("postgres")?)?;
    let books = Books((0..TABLES).map(|_| AtomicI64::new(0)).collect());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let updaters: Vec<_> = (0..2)
            .map(|half| {
                scope.spawn({
                    let (e, b) = (&endpoint, &books);
                    move || update(e, b, half)
                })
            })
            .collect();
        let others = [
            scope.spawn(|| until(&done, || scan(&endpoint, &books))),
            scope.spawn(|| until(&done, || rebuild(&endpoint))),
            scope.spawn(|| until(&done, || prewarm(&endpoint))),
        ];
        let updated: Result<Vec<()>> = updaters.into_iter().map(join).collect();
        done.store(true, Ordering::Release);
        let others: Result<Vec<()>> = others.into_iter().map(join).collect();
        updated.and(others).map(drop)
    })?;
    check_all(&endpoint, &books)?;
    // The same with caches that are empty, and with what the page server has.
    cluster.stop_endpoint(&endpoint, "immediate")?;
    cluster.start_endpoint(&endpoint)?;
    check_all(&endpoint, &books)
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

fn until(done: &AtomicBool, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    while !done.load(Ordering::Acquire) {
        work()?;
    }
    Ok(())
}

fn create_tables(client: &mut Client) -> Result<()> {
    client.batch_execute("CREATE EXTENSION IF NOT EXISTS neon")?;
    for table in 0..TABLES {
        client.batch_execute(&format!(
            "CREATE TABLE t{table} (id int PRIMARY KEY, n bigint NOT NULL, pad text);
             INSERT INTO t{table} SELECT i, 0, repeat('x', 800) FROM generate_series(1, {ROWS}) i"
        ))?;
    }
    Ok(())
}

/// Adds to rows of random tables of one half.
fn update(endpoint: &Endpoint, books: &Books, half: usize) -> Result<()> {
    let mut client = endpoint.connect("postgres")?;
    for _ in 0..UPDATES {
        let table = 2 * rand::rng().random_range(0..TABLES / 2) + half;
        let (row, more) = (rand::rng().random_range(1..=ROWS), rand::rng().random_range(1..9_i64));
        client.batch_execute(&format!("UPDATE t{table} SET n = n + {more} WHERE id = {row}"))?;
        if let Some(sum) = books.0.get(table) {
            sum.fetch_add(more, Ordering::AcqRel);
        }
    }
    Ok(())
}

/// A table has all its rows at any time, and at least what was acknowledged before.
fn scan(endpoint: &Endpoint, books: &Books) -> Result<()> {
    let mut client = endpoint.connect("postgres")?;
    for _ in 0..50 {
        let table = rand::rng().random_range(0..TABLES);
        let at_least = books.sum(table);
        let plan = if rand::rng().random_bool(0.5) { "seqscan" } else { "indexscan" };
        client.batch_execute(&format!("SET enable_{plan} = off"))?;
        let sql = format!("SELECT count(*) || ' ' || sum(n) FROM t{table} WHERE id > 0");
        let found = single_value(&mut client, &sql)?;
        client.batch_execute("RESET ALL")?;
        let (rows, sum) = found.split_once(' ').unwrap_or_default();
        ensure!(rows == ROWS.to_string(), "t{table} has {rows} rows");
        ensure!(sum.parse::<i64>()? >= at_least, "t{table}: {sum} after {at_least}");
    }
    Ok(())
}

/// Files that come and go under numbers that caches may know.
fn rebuild(endpoint: &Endpoint) -> Result<()> {
    let mut client = endpoint.connect("postgres")?;
    let rows = rand::rng().random_range(1..2_000_i64);
    client.batch_execute(&format!(
        "CREATE TABLE IF NOT EXISTS scratch (i int, pad text);
         TRUNCATE scratch;
         INSERT INTO scratch SELECT i, repeat('y', 200) FROM generate_series(1, {rows}) i;
         CREATE INDEX ON scratch (i)"
    ))?;
    let count = "SELECT count(*) FROM scratch";
    ensure!(single_value(&mut client, count)? == rows.to_string(), "{rows} rows were inserted");
    client.batch_execute("DELETE FROM scratch WHERE i % 2 = 0")?;
    client.batch_execute("VACUUM scratch")?;
    ensure!(single_value(&mut client, count)? == (rows - rows / 2).to_string(), "half of {rows}");
    client.batch_execute("DROP TABLE scratch")?;
    Ok(())
}

fn prewarm(endpoint: &Endpoint) -> Result<()> {
    let mut client = endpoint.connect("postgres")?;
    single_value(&mut client, "SELECT prewarm_local_cache(get_local_cache_state())").map(drop)
}

fn check_all(endpoint: &Endpoint, books: &Books) -> Result<()> {
    let mut client = endpoint.connect("postgres")?;
    for table in 0..TABLES {
        let sql = format!("SELECT count(*) || ' ' || sum(n) FROM t{table}");
        let found = single_value(&mut client, &sql)?;
        let wanted = format!("{ROWS} {}", books.sum(table));
        ensure!(found == wanted, "t{table} has {found}, and should have {wanted}");
    }
    Ok(())
}
