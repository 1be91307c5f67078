//! kill -9 of any process at random under a bank's load: no acknowledged commit is lost, and sums are right.
//!
//! `NEON_CHAOS_KILLS` (10) and `NEON_CHAOS_SEED` (random, printed) choose how much and which.

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use system_tests::cluster::wait_until;
use system_tests::{Cluster, Endpoint, Place, bank};

/// Transfers that must be acknowledged between two kills, so that each kill meets a working system.
const TRANSFERS_BETWEEN: usize = 20;

#[derive(Debug, Clone, Copy)]
enum Victim {
    PageServer,
    Safekeeper,
    Walproposer,
    Postgres,
    Compute,
}

const VICTIMS: [Victim; 5] = [
    Victim::PageServer,
    Victim::Safekeeper,
    Victim::Walproposer,
    Victim::Postgres,
    Victim::Compute,
];

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_acknowledged_commit_is_lost() -> Result<()> {
    let kills = number_from_env("NEON_CHAOS_KILLS").unwrap_or(10);
    let seed = number_from_env("NEON_CHAOS_SEED").unwrap_or_else(rand::random);
    println!("NEON_CHAOS_SEED={seed} NEON_CHAOS_KILLS={kills}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    bank::create(&mut endpoint.connect("postgres")?)?;
    let load = bank::Load::start(&endpoint, 4);
    for round in 0..kills {
        let before = load.acknowledged();
        wait_until("transfers are acknowledged again", || {
            ensure_compute_runs(&cluster, &endpoint)?;
            Ok(load.acknowledged() >= before + TRANSFERS_BETWEEN)
        })
        .with_context(|| format!("round {round}"))?;
        let victim = VICTIMS[random.random_range(0..VICTIMS.len())];
        println!("round {round}: {} acknowledged, killing {victim:?}", load.acknowledged());
        strike(&cluster, &endpoint, victim).with_context(|| format!("round {round}"))?;
    }
    let before = load.acknowledged();
    wait_until("transfers are acknowledged at the end", || {
        ensure_compute_runs(&cluster, &endpoint)?;
        Ok(load.acknowledged() >= before + TRANSFERS_BETWEEN)
    })?;
    let acknowledged = load.finish();
    println!("{} transfers acknowledged", acknowledged.len());
    bank::check(&mut endpoint.connect("postgres")?, &acknowledged)?;
    // The same on a compute that has nothing in its buffers.
    cluster.stop_endpoint(&endpoint, "immediate")?;
    cluster.start_endpoint(&endpoint)?;
    bank::check(&mut endpoint.connect("postgres")?, &acknowledged)
}

/// Kills a process and starts again what nobody supervises.
fn strike(cluster: &Cluster, endpoint: &Endpoint, victim: Victim) -> Result<()> {
    match victim {
        Victim::PageServer => {
            cluster.kill("pageserver/pageserver.pid")?;
            cluster.neon(&["start"]).map(drop)
        }
        Victim::Safekeeper => {
            cluster.kill("safekeeper-1/safekeeper.pid")?;
            cluster.neon(&["start"]).map(drop)
        }
        Victim::Walproposer => {
            let supervisor = cluster.pid("endpoints/main/compute.pid")?;
            if let Some(pid) = child_named(supervisor, "walproposer")? {
                system_tests::cluster::kill_and_wait(pid)?;
            }
            Ok(())
        }
        Victim::Postgres => cluster.kill("endpoints/main/pgdata/postmaster.pid"),
        Victim::Compute => {
            cluster.kill("endpoints/main/compute.pid")?;
            cluster.start_endpoint(endpoint)
        }
    }
}

/// A compute whose PostgreSQL died ends; it is started again, as an orchestrator would.
fn ensure_compute_runs(cluster: &Cluster, endpoint: &Endpoint) -> Result<()> {
    let output = cluster.try_neon(&["endpoint", "start", &endpoint.name])?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() || text.contains("already running"),
        "the compute does not start: {text}"
    );
    Ok(())
}

/// A child process whose command line holds a word.
fn child_named(parent: u32, word: &str) -> Result<Option<u32>> {
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let is_child = after_name.split_whitespace().nth(1) == Some(parent.to_string().as_str());
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_child && String::from_utf8_lossy(&command).contains(word) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}
