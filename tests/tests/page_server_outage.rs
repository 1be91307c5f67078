//! A page server that is stalled, gone, or back again, as a backend sees it (L011–L015, L337, L338).

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use system_tests::cluster::{signal_and_wait, single_value, wait_until};
use system_tests::{Cluster, Endpoint, Place};

fn prepare(cluster: &Cluster, settings: &[(&str, &str)]) -> Result<Endpoint> {
    // Without a local file cache: its pages are read without a page server.
    let mut all = vec![
        ("shared_buffers", "1MB"),
        ("autovacuum", "off"),
        ("neon.max_file_cache_size", "0"),
        ("neon.file_cache_size_limit", "0"),
    ];
    all.extend_from_slice(settings);
    let endpoint = cluster.endpoint("main", "main", &all)?;
    endpoint.connect("postgres")?.batch_execute(
        "CREATE TABLE data AS SELECT i AS id, repeat('x', 500) AS t FROM generate_series(1, 10000) i",
    )?;
    Ok(endpoint)
}

fn log_contains(cluster: &Cluster, endpoint: &Endpoint, words: &str) -> Result<bool> {
    let log = fs::read(cluster.endpoint_dir(endpoint).join("postgres.log"))?;
    Ok(String::from_utf8_lossy(&log).contains(words))
}

#[test]
fn the_time_outs_have_their_defaults() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    ensure!(endpoint.value("SHOW neon.pageserver_response_log_timeout")? == "10s");
    ensure!(endpoint.value("SHOW neon.pageserver_response_disconnect_timeout")? == "2min");
    Ok(())
}

#[test]
fn a_stalled_page_server_is_logged_left_and_found_again() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let settings = [
        ("neon.pageserver_response_log_timeout", "200ms"),
        ("neon.pageserver_response_disconnect_timeout", "1s"),
    ];
    let endpoint = prepare(&cluster, &settings)?;
    // A backend that has its page stream already: what is stalled is a response, not a connection.
    let mut client = endpoint.connect("postgres")?;
    single_value(&mut client, "SELECT count(*) FROM data")?;
    let pid = Pid::from_raw(i32::try_from(cluster.pid("pageserver/pageserver.pid")?)?);
    kill(pid, Signal::SIGSTOP)?;
    let reader = std::thread::spawn(move || single_value(&mut client, "SELECT count(*) FROM data"));
    let seen = wait_until("both messages are in the log", || {
        Ok(log_contains(&cluster, &endpoint, "no response")?
            && log_contains(&cluster, &endpoint, "disconnect")?)
    });
    kill(pid, Signal::SIGCONT)?;
    seen?;
    // L012: the query goes on as if nothing had been.
    let rows = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(rows == "10000", "{rows} rows");
    Ok(())
}

#[test]
fn a_page_server_that_stays_away_ends_the_backend_with_sigabrt() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = prepare(&cluster, &[("neon.max_reconnect_attempts", "3")])?;
    cluster.kill("pageserver/pageserver.pid")?;
    let result = endpoint.value("SELECT count(*) FROM data");
    ensure!(result.is_err(), "a page was read without a page server");
    wait_until("the log says that a backend was killed by signal 6", || {
        log_contains(&cluster, &endpoint, "terminated by signal 6")
    })?;
    cluster.neon(&["start"])?;
    wait_until("the compute, which ended, starts again", || {
        Ok(cluster.try_neon(&["endpoint", "start", "main"])?.status.success())
    })?;
    ensure!(endpoint.value("SELECT count(*) FROM data")? == "10000");
    Ok(())
}

/// Clients that read and write pages which are not in memory, and stop at their first error.
struct Clients {
    stop: AtomicBool,
    /// Statements that each client has finished.
    done: [AtomicUsize; 4],
}

impl Clients {
    fn run(&self, endpoint: &Endpoint, number: usize) -> Result<()> {
        let mut client = endpoint.connect("postgres")?;
        let mut id = 0;
        while !self.stop.load(Ordering::Relaxed) {
            // Far apart, so that each one is on another page.
            id = (id + 1009) % 10_000;
            let sql = if number.is_multiple_of(2) {
                format!("SELECT t FROM data WHERE id = {id}")
            } else {
                format!("UPDATE data SET t = reverse(t) WHERE id = {id} RETURNING t")
            };
            single_value(&mut client, &sql).with_context(|| format!("client {number}"))?;
            self.done[number].fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until each client has finished some statements more.
    fn wait_for_progress(&self) -> Result<()> {
        let now = || self.done.each_ref().map(|done| done.load(Ordering::Relaxed));
        let before = now();
        wait_until("every client goes on", || {
            ensure!(!self.stop.load(Ordering::Relaxed), "a client has failed");
            Ok(now().iter().zip(before).all(|(now, before)| *now >= before + 20))
        })
    }
}

/// Killed or stopped in good order, and started again: clients wait, and none of them sees an error.
#[test]
fn a_page_server_that_comes_back_is_no_error() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = prepare(&cluster, &[])?;
    endpoint.connect("postgres")?.batch_execute("CREATE UNIQUE INDEX ON data (id)")?;
    let clients = Clients { stop: AtomicBool::new(false), done: std::array::from_fn(|_| 0.into()) };
    std::thread::scope(|scope| {
        let clients = &clients;
        let threads: Vec<_> = (0..clients.done.len())
            .map(|number| {
                let endpoint = &endpoint;
                scope.spawn(move || {
                    let result = clients.run(endpoint, number);
                    clients.stop.store(true, Ordering::Relaxed);
                    result
                })
            })
            .collect();
        let restarts = (0..4).try_for_each(|round: u32| {
            clients.wait_for_progress()?;
            let signal = if round.is_multiple_of(2) { Signal::SIGKILL } else { Signal::SIGTERM };
            signal_and_wait(cluster.pid("pageserver/pageserver.pid")?, signal)?;
            cluster.neon(&["start"]).map(drop)
        });
        let restarts = restarts.and_then(|()| clients.wait_for_progress());
        clients.stop.store(true, Ordering::Relaxed);
        let ends: Vec<Result<()>> =
            threads.into_iter().map(|thread| thread.join().expect("a client")).collect();
        ends.into_iter().collect::<Result<()>>()?;
        restarts
    })
}
