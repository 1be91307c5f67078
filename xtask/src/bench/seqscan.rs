//! `bench seqscan`: reading much of a table, in the ways PostgreSQL does.
//!
//! The table is ten times as big as shared buffers. Warm: all of it is in the local file cache here and in the
//! kernel's cache there. Cold: a compute that has just started and has every page from the page server; the stock
//! server has just started too, with its files in the kernel's cache. `cold-1ms`: the round trip to the page server
//! takes a millisecond longer, and the reference is the same compute with read-ahead switched off, on a table small
//! enough to wait for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postgres::Client;
use system_tests::cluster::single_value;

use super::pgbench::LOCAL_CACHE;
use super::proxy::{Proxy, measured_round_trip};
use super::sides::{Settings, Sides, knows};
use super::stats::median;
use super::{Better, Options, Row};
use crate::build::Built;

const SETTINGS: Settings<'_> = Settings {
    both: &[("shared_buffers", "32MB"), ("autovacuum", "off"), ("max_wal_size", "4GB")],
    ours: LOCAL_CACHE,
};
/// 320 MB: 30 rows of 250 bytes on each of 41,000 pages.
const BIG: Table = Table { name: "big", rows: 1_229_000, scanned: 100_000 };
/// 24 MB, 3,072 pages: without read-ahead a scan of them takes more than three seconds at 1 ms each.
const SMALL: Table = Table { name: "small", rows: 92_160, scanned: 3_000 };
/// Prime to the numbers of rows, so that rows with neighbouring `k` are on pages far apart.
const STRIDE: u32 = 7_919;
const ADDED: Duration = Duration::from_millis(1);
/// Rounds of the cases that begin with a new compute.
const COLD_ROUNDS_MAX: u32 = 3;

/// What reading ahead is switched off with; a compute's own switches are used if it has them.
const NO_READ_AHEAD: &[(&str, &str)] = &[
    ("effective_io_concurrency", "0"),
    ("maintenance_io_concurrency", "0"),
    ("io_combine_limit", "1"),
    ("neon.enable_prefetch", "off"),
];

#[derive(Debug, Clone, Copy)]
struct Table {
    name: &'static str,
    rows: u32,
    /// Rows that index and bitmap scans look up.
    scanned: u32,
}

/// A way to read a table.
#[derive(Debug)]
struct Scan {
    name: &'static str,
    /// What makes the planner choose it.
    settings: &'static str,
    sql: &'static str,
    /// What the plan must say, for statements that have one.
    plan: Option<&'static str>,
    /// Takes back what the statement did.
    undo: &'static str,
    counts: Counts,
}

/// What a scan's speed counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counts {
    /// Megabytes of the table.
    Table,
    /// Rows looked up, each on a page of its own.
    Rows,
}

const SCANS: &[Scan] = &[
    Scan {
        name: "seqscan",
        settings: "SET max_parallel_workers_per_gather = 0",
        // No index has `id`, so that the plan is not an index-only scan.
        sql: "SELECT sum(id) FROM TABLE",
        plan: Some("Seq Scan"),
        undo: "",
        counts: Counts::Table,
    },
    Scan {
        name: "indexscan",
        settings: "SET enable_seqscan = off; SET enable_bitmapscan = off",
        sql: "SELECT sum(id) FROM TABLE WHERE k < SCANNED",
        plan: Some("Index Scan"),
        undo: "",
        counts: Counts::Rows,
    },
    Scan {
        name: "bitmap",
        settings: "SET enable_seqscan = off; SET enable_indexscan = off",
        sql: "SELECT sum(id) FROM TABLE WHERE k < SCANNED",
        plan: Some("Bitmap Heap Scan"),
        undo: "",
        counts: Counts::Rows,
    },
    Scan {
        name: "vacuum",
        settings: "",
        sql: "VACUUM (DISABLE_PAGE_SKIPPING, INDEX_CLEANUP OFF, TRUNCATE OFF) TABLE",
        plan: None,
        undo: "",
        counts: Counts::Table,
    },
    Scan {
        name: "create-index",
        settings: "SET max_parallel_maintenance_workers = 0; SET maintenance_work_mem = '256MB'",
        sql: "CREATE INDEX made_by_bench ON TABLE (id)",
        plan: None,
        undo: "DROP INDEX made_by_bench",
        counts: Counts::Table,
    },
];

/// Runs all cases.
pub fn run(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let mut sides = Sides::new(built, &options.pins)?;
    sides.start(SETTINGS)?;
    for table in [BIG, SMALL] {
        fill(&sides, table)?;
    }
    let mut rows = Vec::new();
    for scan in SCANS {
        rows.push(warm(&sides, scan, options.rounds)?);
    }
    let rounds = options.rounds.min(COLD_ROUNDS_MAX);
    for scan in SCANS {
        rows.push(cold(&mut sides, scan, rounds)?);
    }
    for scan in SCANS {
        rows.push(cold_behind_proxy(&mut sides, scan, rounds)?);
    }
    let added = measured_round_trip(ADDED)?.as_secs_f64() * 1e3;
    rows.push(Row::new("round trip through the proxy", added, "ms", Better::Lower));
    Ok(rows)
}

fn fill(sides: &Sides<'_>, Table { name, rows, .. }: Table) -> Result<()> {
    sides.both(&format!("CREATE TABLE {name} (k int, id int, pad text)"))?;
    sides.both(&format!(
        "INSERT INTO {name} SELECT (i::bigint * {STRIDE} % {rows})::int, i, repeat(md5(i::text), 6) \
         FROM generate_series(1, {rows}) i"
    ))?;
    sides.both(&format!("CREATE INDEX ON {name} (k)"))?;
    // Hint bits and visibility are set here, so that what is measured later only reads.
    sides.both(&format!("VACUUM (FREEZE, ANALYZE) {name}"))?;
    sides.both("CHECKPOINT")
}

impl Scan {
    fn statement(&self, table: Table) -> String {
        self.sql.replace("TABLE", table.name).replace("SCANNED", &table.scanned.to_string())
    }

    /// Speed of one run in a session.
    fn run(&self, sides: &Sides<'_>, client: &mut Client, table: Table) -> Result<f64> {
        client.batch_execute(self.settings)?;
        let sql = self.statement(table);
        if let Some(wanted) = self.plan {
            let plan = client.simple_query(&format!("EXPLAIN {sql}"))?;
            ensure!(format!("{plan:?}").contains(wanted), "`{sql}` is no {wanted}: {plan:?}");
        }
        let seconds = sides.seconds(client, &sql)?;
        let bytes = single_value(client, &format!("SELECT pg_relation_size('{}')", table.name))?;
        client.batch_execute(self.undo)?;
        let work = match self.counts {
            Counts::Table => bytes.parse::<f64>()? / 1e6,
            Counts::Rows => f64::from(table.scanned),
        };
        Ok(work / seconds)
    }

    fn row(&self, case: &str, rounds: &[f64]) -> Result<Row> {
        let unit = match self.counts {
            Counts::Table => "MB/s",
            Counts::Rows => "rows/s",
        };
        Row::of_rounds(&format!("{}/{case}", self.name), rounds, unit, Better::Higher)
    }
}

fn warm(sides: &Sides<'_>, scan: &Scan, rounds: u32) -> Result<Row> {
    let (mut ours, mut stock) = (sides.connect_ours()?, sides.connect_stock()?);
    scan.run(sides, &mut ours, BIG)?;
    scan.run(sides, &mut stock, BIG)?;
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        mine.push(scan.run(sides, &mut ours, BIG)?);
        theirs.push(scan.run(sides, &mut stock, BIG)?);
    }
    scan.row("warm", &mine)?.against_rounds(&theirs, "stock, files in the kernel's cache")
}

fn cold(sides: &mut Sides<'_>, scan: &Scan, rounds: u32) -> Result<Row> {
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        sides.start_ours(SETTINGS)?;
        mine.push(scan.run(sides, &mut sides.connect_ours()?, BIG)?);
        sides.start_stock(SETTINGS)?;
        theirs.push(scan.run(sides, &mut sides.connect_stock()?, BIG)?);
    }
    let what = "stock just started, files in the kernel's cache";
    scan.row("cold", &mine)?.against_rounds(&theirs, what)
}

fn cold_behind_proxy(sides: &mut Sides<'_>, scan: &Scan, rounds: u32) -> Result<Row> {
    let (mut ahead, mut plain) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        ahead.push(behind_proxy(sides, scan, &[])?);
        // A slow case, and a steady one: it waits for the same latency again and again.
        if round == 0 {
            plain.push(behind_proxy(sides, scan, NO_READ_AHEAD)?);
        }
    }
    let plain = median(&plain).context("no round")?;
    let what = "no read-ahead, one page for each round trip";
    Ok(scan.row("cold-1ms", &ahead)?.against(plain, what))
}

/// A new compute, then a session that reaches the page server through a proxy.
fn behind_proxy(sides: &mut Sides<'_>, scan: &Scan, settings: &[(&str, &str)]) -> Result<f64> {
    sides.start_ours(SETTINGS)?;
    let proxy = Proxy::start(sides.pageserver()?, ADDED)?;
    sides.redirect(proxy.address())?;
    let mut client = sides.connect_ours()?;
    for (name, value) in settings {
        if knows(&mut client, name)? {
            client.batch_execute(&format!("SET {name} = {value}"))?;
        }
    }
    let speed = scan.run(sides, &mut client, SMALL)?;
    // Sessions and background processes lose the proxy when it goes; the next compute starts without it.
    drop(client);
    sides.stop_ours()?;
    Ok(speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_name_the_table_and_the_rows() {
        let sql: Vec<String> = SCANS.iter().map(|scan| scan.statement(SMALL)).collect();
        assert!(sql.contains(&"SELECT sum(id) FROM small WHERE k < 3000".to_owned()));
        assert!(sql.iter().all(|sql| sql.contains("small") && !sql.contains("TABLE")));
    }

    #[test]
    fn the_stride_visits_every_row() {
        for table in [BIG, SMALL] {
            assert_ne!(table.rows % STRIDE, 0);
        }
    }
}
