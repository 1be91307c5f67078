//! `bench start`: from nothing to the first answer.
//!
//! Ours: `neon endpoint start` of a compute without any local file, a connection, a query that reads a table. The
//! reference: a stock server on a data directory that was shut down in order, a connection, the same query. Both
//! in turns.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;
use system_tests::cluster::single_value;
use system_tests::{Cluster, Endpoint};

use super::machine::pinned;
use super::sides::{Settings, Sides};
use super::stats::{median, percentile};
use super::{Better, Options, Row};
use crate::build::Built;

const STARTS: usize = 20;
const QUERY: &str = "SELECT sum(v) FROM first_table";
const STOCK: &str = "stock server on a stopped data directory";

/// Runs all cases.
pub fn run(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let mut sides = Sides::new(built, &options.pins)?;
    sides.start(Settings::default())?;
    sides.both("CREATE TABLE first_table AS SELECT generate_series(1, 100) AS v")?;
    sides.stop_ours()?;
    let (mut ours, mut stock, mut phases) = (Vec::new(), Vec::new(), Phases::default());
    for number in 0..STARTS {
        ours.push(ours_once(sides.cluster(), &options.pins.server_cpus, number, &mut phases)?);
        sides.stop_stock()?;
        let started = Instant::now();
        sides.start_stock(Settings::default())?;
        single_value(&mut sides.connect_stock()?, QUERY)?;
        stock.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let mut rows = Vec::new();
    for (case, percent) in [("p50", 50), ("p99", 99)] {
        let ours = percentile(&ours, percent).context("no start")?;
        let stock = percentile(&stock, percent).context("no start")?;
        rows.push(Row::new(case, ours, "ms", Better::Lower).against(stock, STOCK));
    }
    rows.extend(phases.rows());
    Ok(rows)
}

/// Milliseconds until a new compute has answered.
fn ours_once(cluster: &Cluster, cpus: &[usize], number: usize, phases: &mut Phases) -> Result<f64> {
    let name = format!("start{number}");
    let created = cluster.neon(&["--json", "endpoint", "create", &name])?;
    let created: Created = serde_json::from_str(&created)?;
    let endpoint = Endpoint { name, port: created.port };
    let started = Instant::now();
    let status = pinned(cpus, || cluster.neon(&["--json", "endpoint", "start", &endpoint.name]))?;
    endpoint.value(QUERY)?;
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    phases.add(serde_json::from_str(&status)?);
    cluster.neon(&["endpoint", "delete", &endpoint.name])?;
    Ok(milliseconds)
}

#[derive(Debug, Deserialize)]
struct Created {
    port: u16,
}

/// What `neon endpoint start` says of a start.
#[derive(Debug, Deserialize)]
struct Status {
    timings_ms: Vec<Timing>,
}

#[derive(Debug, Deserialize)]
struct Timing {
    phase: String,
    milliseconds: f64,
}

/// Samples of each phase of a start, in the order of the phases.
#[derive(Debug, Default)]
struct Phases(Vec<(String, Vec<f64>)>);

impl Phases {
    fn add(&mut self, status: Status) {
        for Timing { phase, milliseconds } in status.timings_ms {
            match self.0.iter_mut().find(|(name, _)| *name == phase) {
                Some((_, samples)) => samples.push(milliseconds),
                None => self.0.push((phase, vec![milliseconds])),
            }
        }
    }

    /// The median of each.
    fn rows(&self) -> impl Iterator<Item = Row> {
        self.0.iter().filter_map(|(phase, samples)| {
            let case = format!("phase/{phase}");
            Some(Row::new(&case, median(samples)?, "ms", Better::Lower))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_keep_their_order_and_have_a_median_each() {
        let mut phases = Phases::default();
        for (sync, start) in [(3.0, 90.0), (1.0, 100.0), (2.0, 80.0)] {
            let text = format!(
                r#"{{"state": "running", "timings_ms": [
                    {{"phase": "sync", "milliseconds": {sync}}},
                    {{"phase": "postgres", "milliseconds": {start}}}]}}"#
            );
            phases.add(serde_json::from_str(&text).unwrap());
        }
        let rows: Vec<_> = phases.rows().map(|row| (row.case, row.ours)).collect();
        assert_eq!(rows, [("phase/sync".to_owned(), 2.0), ("phase/postgres".to_owned(), 90.0)]);
    }
}
