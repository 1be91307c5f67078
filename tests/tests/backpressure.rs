//! Writers at full speed while storage lags: they are slowed down, nobody is stopped, and everybody can be cancelled
//! (L027). How long pauses are is shown by the property tests of `compute_core::backpressure`.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use system_tests::cluster::{single_value, wait_until};
use system_tests::{Cluster, Endpoint, Place};

const SETTINGS: &[(&str, &str)] =
    &[("shared_buffers", "64MB"), ("neon.max_replication_write_lag", "1MB")];

/// Loads until it is told to stop or cancelled; the error that ended it.
fn load(endpoint: &Endpoint, number: usize, stop: &AtomicBool) -> Result<Option<String>> {
    let mut client = endpoint.connect("postgres")?;
    let sql = format!(
        "INSERT INTO bulk_{number} SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g"
    );
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = client.batch_execute(&sql) {
            return Ok(Some(error.as_db_error().map_or(error.to_string(), |e| e.message().into())));
        }
    }
    Ok(None)
}

#[test]
fn bulk_loads_are_slowed_down_and_others_go_on() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", SETTINGS)?;
    endpoint.connect("postgres")?.batch_execute(
        "CREATE TABLE bulk_0 (id int, t text); CREATE TABLE bulk_1 (id int, t text);
         CREATE TABLE light (id int PRIMARY KEY, n int); INSERT INTO light VALUES (1, 0)",
    )?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..2)
            .map(|number| {
                let (endpoint, stop) = (&endpoint, &stop);
                scope.spawn(move || load(endpoint, number, stop))
            })
            .collect();
        let outcome = beside_the_loads(&endpoint);
        stop.store(true, Ordering::Relaxed);
        for load in loads {
            let ended_by = load.join().expect("a load")?;
            if outcome.is_ok() {
                let message = ended_by.unwrap_or_default();
                ensure!(message.contains("user request"), "a load ended with \"{message}\"");
            }
        }
        outcome
    })
}

fn beside_the_loads(endpoint: &Endpoint) -> Result<()> {
    let mut observer = endpoint.connect("postgres")?;
    let (mut writer, mut reader) = (endpoint.connect("postgres")?, endpoint.connect("postgres")?);
    wait_until("the view shows a lag, a pace and a process that pauses", || {
        let sql = "SELECT bool_or(lag > lag_limit / 2 AND seconds_per_mebibyte > 0 AND throttled_us > 0 AND waiting > 0)::text
                   FROM neon_backpressure WHERE stage = 'received'";
        Ok(single_value(&mut observer, sql)? == "true")
    })?;
    for round in 1..=100 {
        writer.batch_execute("UPDATE light SET n = n + 1 WHERE id = 1")?;
        let read = single_value(&mut reader, "SELECT n::text FROM light")?;
        ensure!(read == round.to_string(), "round {round}: read {read}");
    }
    let throttled = "SELECT max(throttled_us)::text FROM neon_backpressure";
    let before: u64 = single_value(&mut observer, throttled)?.parse()?;
    wait_until("the loads are still held back", || {
        Ok(single_value(&mut observer, throttled)?.parse::<u64>()? > before)
    })?;
    let cancel = "SELECT count(pg_cancel_backend(pid))::text FROM pg_stat_activity
                  WHERE query LIKE 'INSERT INTO bulk_%' AND state = 'active'";
    wait_until("both loads are cancelled", || Ok(single_value(&mut observer, cancel)? == "0"))
}
