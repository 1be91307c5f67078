//! `bench wal`: how much WAL goes through. One safekeeper alone, and from a compute to where the page server has it.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;
use system_tests::cluster::{single_value, wait_until};
use tempfile::TempDir;

use super::machine::pinned;
use super::sides::{Settings, Sides};
use super::{Better, Options, Row, row};
use crate::build::{Built, target_dir};
use crate::run::{capture, cargo, check};

/// Messages of a mebibyte, which every reader of WAL passes over: what is measured is the way.
const WRITE: &str = "SELECT pg_logical_emit_message(false, 'bench', repeat('x', 1048576)) \
                     FROM generate_series(1, 256)";
const EMPTY: &str = "SELECT pg_logical_emit_message(true, 'bench', '')";

/// Runs all cases.
pub fn run(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let mut rows = safekeeper(options)?;
    let mut sides = Sides::new(built, &options.pins)?;
    sides.start(Settings { both: &[("max_wal_size", "4GB")], ours: &[] })?;
    let (mut ours, mut stock) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        ours.push(end_to_end(&sides)?);
        let mut client = sides.connect_stock()?;
        let before = single_value(&mut client, "SELECT pg_current_wal_insert_lsn()")?;
        let seconds = sides.seconds(&mut client, WRITE)? + sides.seconds(&mut client, EMPTY)?;
        let sql = format!("SELECT pg_current_wal_insert_lsn() - '{before}'");
        stock.push(single_value(&mut client, &sql)?.parse::<f64>()? / 1e6 / seconds);
    }
    let row = Row::of_rounds("end-to-end", &ours, "MB/s", Better::Higher)?;
    rows.push(row.against_rounds(&stock, "stock PostgreSQL writing the same WAL, fsync on")?);
    Ok(rows)
}

/// A safekeeper on the processors of the servers, pushed to from the same process.
fn safekeeper(options: &Options) -> Result<Vec<Row>> {
    let example = ["build", "--release", "--package", "safekeeper", "--example", "push_bench"];
    check(&mut cargo(&example))?;
    let dir = TempDir::new()?;
    let mut command = std::process::Command::new(target_dir().join("release/examples/push_bench"));
    command.arg(dir.path());
    let text = pinned(&options.pins.server_cpus, || capture(&mut command))?;
    row::parse(&text).with_context(|| format!("push_bench printed: {text}"))
}

/// MB/s from the first byte written to the last one the page server has taken in.
fn end_to_end(sides: &Sides<'_>) -> Result<f64> {
    let mut client = sides.connect_ours()?;
    let before = single_value(&mut client, "SELECT pg_current_wal_insert_lsn()")?;
    let started = Instant::now();
    sides.seconds(&mut client, WRITE)?;
    sides.seconds(&mut client, EMPTY)?;
    let end = single_value(&mut client, "SELECT pg_current_wal_flush_lsn()")?;
    wait_until("the page server has all WAL", || {
        let lsn = last_record_lsn(&sides.cluster().neon(&["--json", "timeline", "list"])?)?;
        Ok(single_value(&mut client, &format!("SELECT '{lsn}'::pg_lsn >= '{end}'"))? == "t")
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let bytes = single_value(&mut client, &format!("SELECT '{end}'::pg_lsn - '{before}'"))?;
    Ok(bytes.parse::<f64>()? / 1e6 / seconds)
}

/// Position of the only branch in what `neon timeline list` prints.
fn last_record_lsn(list: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Branch {
        last_record_lsn: Option<String>,
    }
    let branches: Vec<Branch> = serde_json::from_str(list)?;
    let lsn = branches.into_iter().find_map(|branch| branch.last_record_lsn);
    lsn.with_context(|| format!("no position in {list}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_found() {
        let list = r#"[{"branch": "main", "last_record_lsn": "0/16B3748", "state": "ready"}]"#;
        assert_eq!(last_record_lsn(list).unwrap(), "0/16B3748");
        assert!(last_record_lsn("[]").is_err());
    }
}
