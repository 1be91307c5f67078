//! `bench bulk`: loading data, beside a stock server with fsync and its default checkpoints.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result};
use postgres::Client;

use super::machine::pinned;
use super::pgbench::LOCAL_CACHE;
use super::sides::{Settings, Sides};
use super::{Better, Options, Row};
use crate::build::Built;

/// Rows of about 100 bytes in text form.
const ROWS: u32 = 600_000;
const STOCK: &str = "stock PostgreSQL, fsync on";

/// Seconds of each kind of load, round by round.
#[derive(Debug, Default)]
struct Times {
    copy: Vec<f64>,
    index: Vec<f64>,
    insert_select: Vec<f64>,
}

/// Runs all cases.
pub fn run(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let mut sides = Sides::new(built, &options.pins)?;
    sides.start(Settings { both: &[("shared_buffers", "256MB")], ours: LOCAL_CACHE })?;
    let data = data(ROWS);
    let (mut ours, mut stock) = (Times::default(), Times::default());
    for _ in 0..options.rounds {
        round(&sides, &mut sides.connect_ours()?, &data, &mut ours)?;
        round(&sides, &mut sides.connect_stock()?, &data, &mut stock)?;
    }
    let cases = [
        ("copy", ours.copy, stock.copy),
        ("index", ours.index, stock.index),
        ("insert-select", ours.insert_select, stock.insert_select),
    ];
    let row = |(case, ours, stock): (&str, Vec<f64>, Vec<f64>)| {
        Row::of_rounds(case, &ours, "s", Better::Lower)?.against_rounds(&stock, STOCK)
    };
    cases.into_iter().map(row).collect()
}

/// Lines for COPY: a number, another that is in no order, and text.
fn data(rows: u32) -> String {
    let mut text = String::new();
    for i in 0..rows {
        let scattered = i.wrapping_mul(2_654_435_761);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{i}\t{scattered}\trow {i} of many, {scattered:08x}{:0>60x}",
            !scattered
        );
    }
    text
}

fn round(sides: &Sides<'_>, client: &mut Client, data: &str, times: &mut Times) -> Result<()> {
    client.batch_execute("DROP TABLE IF EXISTS copied, inserted")?;
    client.batch_execute("CREATE TABLE copied (id int, scattered bigint, body text)")?;
    client.batch_execute("CREATE TABLE inserted (LIKE copied)")?;
    times.copy.push(copy(sides, client, data)?);
    times.index.push(sides.seconds(client, "CREATE INDEX ON copied (scattered)")?);
    let insert = "INSERT INTO inserted SELECT * FROM copied";
    times.insert_select.push(sides.seconds(client, insert)?);
    Ok(())
}

fn copy(sides: &Sides<'_>, client: &mut Client, data: &str) -> Result<f64> {
    pinned(sides.client_cpus(), || {
        let started = Instant::now();
        let mut writer = client.copy_in("COPY copied FROM STDIN")?;
        for chunk in data.as_bytes().chunks(64 * 1024) {
            writer.write_all(chunk)?;
        }
        writer.finish().context("COPY failed")?;
        Ok(started.elapsed().as_secs_f64())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_copy_takes() {
        let data = data(3);
        assert_eq!(data.lines().count(), 3);
        assert!(data.lines().all(|line| line.split('\t').count() == 3 && line.len() > 80));
    }
}
