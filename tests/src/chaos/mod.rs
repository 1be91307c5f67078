//! Campaigns of random faults against a whole system under load.
//!
//! Clients transfer money ([`bank`]) and append to lists ([`lists`]) while processes are killed, stopped and cut off
//! from the network. What they were told must hold, work must go on whenever a majority of the safekeepers is up, and
//! all safekeepers must have one history.

pub mod faults;
pub mod history;
pub mod network;
pub mod report;
pub mod schedule;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::cluster::{Cluster, Endpoint, Place, wait_until};
use crate::load::Meter;
use crate::{bank, lists};
use faults::Victims;
use history::Histories;
use network::Network;
use report::Report;
use schedule::{Fault, Kind, Schedule, World};

/// Commits that must be acknowledged at the end, when everything is up again.
const COMMITS_AT_END: u64 = 100;
/// Clients of each kind.
const TRANSFERRERS: u32 = 4;
const APPENDERS: u32 = 3;
const READERS: u32 = 2;

/// When a campaign ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// After so many faults.
    Faults(u64),
    /// With the first fault after so long.
    Time(Duration),
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Safekeepers of the system: an odd number.
    pub safekeepers: u16,
    /// Decides which faults come.
    pub seed: u64,
    /// When it ends.
    pub limit: Limit,
    /// Where logs go when something was wrong.
    pub logs: PathBuf,
}

/// Runs a campaign on a new system, in a network of its own where that is allowed. An error means that there was none;
/// what a campaign finds is in its report.
pub fn run(place: Place, options: &Options) -> Result<Report> {
    // The thread is in the namespace, and everything that it starts.
    let campaign = |options: &Options| {
        let network = Network::enter()?;
        campaign(place, network, options)
    };
    std::thread::scope(|scope| scope.spawn(|| campaign(options)).join())
        .map_err(|_| anyhow!("the campaign panicked"))?
}

fn campaign(place: Place, network: Option<Network>, options: &Options) -> Result<Report> {
    let started = Instant::now();
    let (seed, safekeepers) = (options.seed, options.safekeepers);
    println!("chaos with seed {seed} and {safekeepers} safekeepers");
    let world = World { safekeepers, cuts: network.is_some() };
    let cluster = Cluster::start_with(place, &["--safekeepers", &safekeepers.to_string()])?;
    // Layers come often, so that page servers also die while they write one, and begin with several.
    let settings = cluster.dir().join("pageserver/pageserver.override.toml");
    fs::write(settings, "memtable_bytes = 4000000\ncheckpoint_timeout = \"5s\"\n")?;
    cluster.kill("pageserver/pageserver.pid")?;
    cluster.neon(&["start"])?;
    // Few buffers, so that pages come from the page server.
    let endpoint = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    let mut client = endpoint.connect("postgres")?;
    bank::create(&mut client)?;
    lists::create(&mut client)?;
    let victims = Victims::new(&cluster, &endpoint, network)?;
    let histories = Histories::new(victims.safekeeper_apis())?;
    let mut report = Report::new(seed, safekeepers);
    let meter = Arc::new(Meter::default());
    let mut campaign = Campaign { victims, histories, meter, report: &mut report, started };
    let whole = campaign.run(&cluster, &endpoint, Schedule::new(seed, world), options.limit);
    if let Err(error) = whole {
        report.check("the campaign runs to its end", Err(error));
    }
    report.took = started.elapsed();
    if !report.failed().is_empty() {
        save_logs(cluster.dir(), &options.logs)?;
        println!("logs are in {}", options.logs.display());
    }
    Ok(report)
}

struct Campaign<'a> {
    victims: Victims<'a>,
    histories: Histories,
    meter: Arc<Meter>,
    report: &'a mut Report,
    started: Instant,
}

impl Campaign<'_> {
    fn run(
        &mut self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        schedule: Schedule,
        limit: Limit,
    ) -> Result<()> {
        let transfers = bank::Load::start(endpoint, TRANSFERRERS, &self.meter);
        let appends = lists::Load::start(endpoint, APPENDERS, READERS, &self.meter);
        let struck = self.strike_all(schedule, limit);
        self.report.commits = self.meter.acknowledged();
        self.report.longest_stall = self.meter.longest_stall();
        self.report.packets = self.victims.disappeared_packets()?;
        self.report.errors = self.meter.errors();
        let commits = format!("{} acknowledged commits", self.report.commits);
        if !self.report.check("work goes on whenever a majority is up", struck.map(|()| commits)) {
            // Whatever hangs would hang the other checks too.
            return Ok(());
        }
        let (transfers, appends) = (transfers.finish()?, appends.finish()?);
        let check_transfers = || -> Result<String> {
            bank::check(&mut endpoint.connect("postgres")?, &transfers)?;
            Ok(format!("{} transfers", transfers.len()))
        };
        let check_lists = || -> Result<String> {
            appends.check(&mut endpoint.connect("postgres")?)?;
            Ok(format!("{} appends, {} reads", appends.appends(), appends.reads()))
        };
        self.report.check("no transfer is lost, sums are right", check_transfers());
        self.report.check("lists grow at their ends only, and lose nothing", check_lists());
        self.report.check("no client met damaged data", no_damage(&self.meter));
        let histories = self.histories.compare_all();
        let range = histories.map(|(from, until)| format!("{from} to {until}"));
        self.report.check("all safekeepers have one history", range);
        // A compute that has nothing in its buffers, and a page server that has nothing in memory.
        cluster.stop_endpoint(endpoint, "immediate")?;
        cluster.kill("pageserver/pageserver.pid")?;
        cluster.neon(&["start"])?;
        cluster.start_endpoint(endpoint)?;
        self.report.check("no transfer is lost to a new compute", check_transfers());
        self.report.check("lists are the same for a new compute", check_lists());
        Ok(())
    }

    fn strike_all(&mut self, mut schedule: Schedule, limit: Limit) -> Result<()> {
        let begin = Instant::now();
        if let Some(first) = schedule.first_outage() {
            self.strike(first)?;
        }
        for (faults, fault) in (0..).zip(schedule) {
            self.wait_for_progress(fault.after_commits)?;
            let over = match limit {
                Limit::Faults(count) => faults >= count,
                Limit::Time(time) => begin.elapsed() >= time,
            };
            if over {
                break;
            }
            self.strike(fault)?;
        }
        self.victims.restore()?;
        self.wait_for_progress(COMMITS_AT_END)
    }

    fn strike(&mut self, fault: Fault) -> Result<()> {
        let seconds = self.started.elapsed().as_secs_f64();
        println!("{seconds:7.1} s  {:7} commits  {fault}", self.meter.acknowledged());
        if matches!(fault.kind, Kind::Out(_)) {
            // The moment in which all are up.
            self.victims.restore()?;
            self.histories.compare_new()?;
        }
        *self.report.faults.entry(fault.kind).or_default() += 1;
        self.victims.strike(fault).with_context(|| fault.to_string())
    }

    fn wait_for_progress(&self, commits: u64) -> Result<()> {
        let before = self.meter.acknowledged();
        wait_until("commits are acknowledged again", || {
            self.victims.ensure_compute_runs()?;
            Ok(self.meter.acknowledged() >= before + commits)
        })
        .with_context(|| self.histories.describe())
    }
}

/// Errors of the classes "data corrupted" and "integrity constraint violation" are never a fault's consequence.
fn no_damage(meter: &Meter) -> Result<String> {
    let errors = meter.errors();
    let damage =
        |code: &&String| ["XX001", "XX002"].contains(&code.as_str()) || code.starts_with("23");
    let damaged: Vec<&String> = errors.keys().filter(damage).collect();
    ensure!(damaged.is_empty(), "errors {damaged:?}");
    Ok(String::new())
}

/// Copies all logs of an environment, under names without folders.
fn save_logs(environment: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    let mut parents = vec![environment.to_owned(), environment.join("endpoints")];
    while let Some(parent) = parents.pop() {
        for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let path = entry.path();
            let below = path.strip_prefix(environment)?;
            if path.extension().is_some_and(|ext| ext == "log") {
                let name = below.to_string_lossy().replace('/', "-");
                fs::copy(&path, target.join(name))?;
            } else if below.components().count() <= 2 && path.is_dir() {
                parents.push(path);
            }
        }
    }
    Ok(())
}
