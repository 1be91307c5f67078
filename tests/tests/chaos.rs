//! kill -9 of any process at random under a bank's load: no acknowledged commit is lost, and sums are right.
//!
//! `NEON_CHAOS_KILLS` (10) and `NEON_CHAOS_SEED` (random, printed) choose how much and which. With three safekeepers one of
//! them is down most of the time, now and then one stops for a while without knowing it, and sometimes all go at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    AllSafekeepers,
    /// Stopped for a while, not killed.
    PausedSafekeeper,
    Walproposer,
    Postgres,
    Compute,
}

const VICTIMS: [Victim; 7] = [
    Victim::PageServer,
    Victim::Safekeeper,
    Victim::Walproposer,
    Victim::Postgres,
    Victim::Compute,
    // Only where there are several.
    Victim::AllSafekeepers,
    Victim::PausedSafekeeper,
];

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_acknowledged_commit_is_lost() -> Result<()> {
    campaign(1)
}

#[test]
fn no_acknowledged_commit_is_lost_with_three_safekeepers() -> Result<()> {
    campaign(3)
}

fn campaign(safekeepers: u16) -> Result<()> {
    let kills = number_from_env("NEON_CHAOS_KILLS").unwrap_or(10);
    let seed = number_from_env("NEON_CHAOS_SEED").unwrap_or_else(rand::random);
    println!("NEON_CHAOS_SEED={seed} NEON_CHAOS_KILLS={kills} with {safekeepers} safekeepers");
    let mut random = StdRng::seed_from_u64(seed);
    let number = safekeepers.to_string();
    let cluster = Cluster::start_with(Place::from_env()?, &["--safekeepers", &number])?;
    let endpoint = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    let world = World { cluster: &cluster, endpoint: &endpoint, safekeepers };
    bank::create(&mut endpoint.connect("postgres")?)?;
    world.take_one_away(&mut random)?;
    let load = bank::Load::start(&endpoint, 4);
    for round in 0..kills {
        let before = load.acknowledged();
        wait_until("transfers are acknowledged again", || {
            ensure_compute_runs(&cluster, &endpoint)?;
            Ok(load.acknowledged() >= before + TRANSFERS_BETWEEN)
        })
        .with_context(|| format!("round {round}"))?;
        let victims = if safekeepers > 1 { VICTIMS.len() } else { VICTIMS.len() - 2 };
        let victim = VICTIMS[random.random_range(0..victims)];
        println!("round {round}: {} acknowledged, killing {victim:?}", load.acknowledged());
        world.strike(victim, &mut random).with_context(|| format!("round {round}"))?;
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

/// What is struck.
struct World<'a> {
    cluster: &'a Cluster,
    endpoint: &'a Endpoint,
    safekeepers: u16,
}

impl World<'_> {
    /// Kills a process and starts again what nobody supervises. Of several safekeepers one is down afterwards.
    fn strike(&self, victim: Victim, random: &mut StdRng) -> Result<()> {
        let cluster = self.cluster;
        match victim {
            Victim::PageServer => {
                cluster.kill("pageserver/pageserver.pid")?;
                self.start_services()?;
                self.take_one_away(random)
            }
            Victim::Safekeeper if self.safekeepers == 1 => {
                cluster.kill("safekeeper-1/safekeeper.pid")?;
                self.start_services()
            }
            Victim::Safekeeper => {
                self.start_services()?;
                self.take_one_away(random)
            }
            Victim::AllSafekeepers => {
                self.start_services()?;
                (1..=self.safekeepers).try_for_each(|id| self.kill_safekeeper(id))?;
                self.start_services()?;
                self.take_one_away(random)
            }
            Victim::PausedSafekeeper => {
                self.start_services()?;
                let id = random.random_range(1..=self.safekeepers);
                let pid = cluster.pid(&pid_file(id))?;
                let pid = Pid::from_raw(i32::try_from(pid)?);
                kill(pid, Signal::SIGSTOP)?;
                std::thread::sleep(Duration::from_millis(random.random_range(0..2000)));
                Ok(kill(pid, Signal::SIGCONT)?)
            }
            Victim::Walproposer => {
                let supervisor = cluster.pid("endpoints/main/compute.pid")?;
                if let Some(pid) = system_tests::cluster::child_named(supervisor, "walproposer")? {
                    system_tests::cluster::kill_and_wait(pid)?;
                }
                Ok(())
            }
            Victim::Postgres => cluster.kill("endpoints/main/pgdata/postmaster.pid"),
            Victim::Compute => {
                cluster.kill("endpoints/main/compute.pid")?;
                cluster.start_endpoint(self.endpoint)
            }
        }
    }

    /// Starts what does not run.
    fn start_services(&self) -> Result<()> {
        let output = self.cluster.try_neon(&["start"])?;
        let text = String::from_utf8_lossy(&output.stderr);
        let fine = output.status.success() || text.contains("already running");
        ensure!(fine, "the services do not start: {text}");
        Ok(())
    }

    /// Kills one of several safekeepers.
    fn take_one_away(&self, random: &mut StdRng) -> Result<()> {
        if self.safekeepers == 1 {
            return Ok(());
        }
        self.kill_safekeeper(random.random_range(1..=self.safekeepers))
    }

    fn kill_safekeeper(&self, id: u16) -> Result<()> {
        self.cluster.kill(&pid_file(id))
    }
}

fn pid_file(safekeeper: u16) -> String {
    format!("safekeeper-{safekeeper}/safekeeper.pid")
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
