//! Two computes on one timeline: storage lets one of them commit, the other ends and says why, and nothing that either
//! acknowledged is lost. The command line refuses to start a second one, so these are started behind its back.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use system_tests::cluster::{has_ended, wait_until};
use system_tests::load::Meter;
use system_tests::{Cluster, Endpoint, Place, bank};

/// Transfers that show that a compute works.
const ENOUGH: u64 = 50;
/// What a compute says that was replaced while it worked, and one that was too late to begin.
const REPLACED: &str = "another compute was elected for this timeline: this one was stopped";
const TOO_LATE: &str = "the safekeepers' WAL does not continue this compute's";

/// A compute that was started without the command line's leave.
struct Intruder {
    endpoint: Endpoint,
    process: Child,
}

impl Intruder {
    /// Starts a compute like that of `model`, which has been started by the command line before.
    fn start(cluster: &Cluster, model: &Endpoint, name: &str) -> Result<Intruder> {
        let created = cluster.neon(&["--json", "endpoint", "create", name, "--branch", "main"])?;
        let created: serde_json::Value = serde_json::from_str(&created)?;
        let port = u16::try_from(created["port"].as_u64().context("an endpoint without a port")?)?;
        let endpoint = Endpoint { name: name.to_owned(), port };
        let dir = cluster.endpoint_dir(&endpoint);
        let config = fs::read_to_string(cluster.endpoint_dir(model).join("compute.toml"))?
            .replace(&format!("/endpoints/{}/", model.name), &format!("/endpoints/{name}/"))
            .replace(
                &format!("endpoint_id = \"{}\"", model.name),
                &format!("endpoint_id = \"{name}\""),
            )
            .replace(&format!("port = {}", model.port), &format!("port = {port}"));
        fs::write(dir.join("compute.toml"), config)?;
        let log = File::create(dir.join("compute.log"))?;
        let process = Command::new(&cluster.place().neon)
            .args(["compute", "-c"])
            .arg(dir.join("compute.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Intruder { endpoint, process })
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        // An error means that it has ended. Its PostgreSQL gets a signal from the kernel.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn log(cluster: &Cluster, endpoint: &Endpoint) -> Result<String> {
    let text = fs::read(cluster.endpoint_dir(endpoint).join("compute.log"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn wait_for_transfers(meter: &Meter) -> Result<()> {
    let before = meter.acknowledged();
    wait_until("transfers are acknowledged", || Ok(meter.acknowledged() >= before + ENOUGH))
}

#[test]
fn a_second_compute_replaces_the_first_under_load() -> Result<()> {
    let cluster = Cluster::start_with(Place::from_env()?, &["--safekeepers", "3"])?;
    let main = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    bank::create(&mut main.connect("postgres")?)?;
    let (meter, later) = (Arc::new(Meter::default()), Arc::new(Meter::default()));
    let load = bank::Load::start(&main, 4, &meter);
    wait_for_transfers(&meter)?;
    let supervisor = cluster.pid("endpoints/main/compute.pid")?;
    let mut second = Intruder::start(&cluster, &main, "second")?;
    wait_until("the first compute has ended", || Ok(has_ended(supervisor)))?;
    let text = log(&cluster, &main)?;
    ensure!(text.contains(REPLACED), "the log of the first compute does not say why: {text}");
    let later_load = bank::Load::start(&second.endpoint, 4, &later);
    wait_for_transfers(&later)?;
    ensure!(main.connect("postgres").is_err(), "the first compute still takes connections");
    ensure!(!second.has_ended()?, "both computes ended");
    // No client of the first one hears any more that it has committed.
    let acknowledged = meter.acknowledged();
    let mut promised = load.finish()?;
    ensure!(promised.len() as u64 == acknowledged, "the first compute went on");
    let transferred_later = later_load.finish()?;
    println!("{} transfers before, {} after", promised.len(), transferred_later.len());
    promised.extend(&transferred_later);
    bank::check(&mut second.endpoint.connect("postgres")?, &promised)?;
    // And from storage alone.
    drop(second);
    cluster.start_endpoint(&main)?;
    bank::check(&mut main.connect("postgres")?, &promised)
}

#[test]
fn of_two_computes_started_at_once_one_remains() -> Result<()> {
    let cluster = Cluster::start_with(Place::from_env()?, &["--safekeepers", "3"])?;
    let main = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    bank::create(&mut main.connect("postgres")?)?;
    cluster.stop_endpoint(&main, "fast")?;
    let mut computes =
        [Intruder::start(&cluster, &main, "one")?, Intruder::start(&cluster, &main, "two")?];
    let meters = [Arc::new(Meter::default()), Arc::new(Meter::default())];
    let loads = [0, 1].map(|i| bank::Load::start(&computes[i].endpoint, 3, &meters[i]));
    let mut loser = None;
    wait_until("one compute has ended", || {
        for (index, compute) in computes.iter_mut().enumerate() {
            if compute.has_ended()? {
                loser = Some(index);
            }
        }
        Ok(loser.is_some())
    })?;
    let loser = loser.context("no compute has ended")?;
    let text = log(&cluster, &computes[loser].endpoint)?;
    let reason = text.contains(REPLACED) || text.contains(TOO_LATE);
    ensure!(reason, "the log of the compute that ended does not say why: {text}");
    let winner = 1 - loser;
    wait_for_transfers(&meters[winner])?;
    ensure!(!computes[winner].has_ended()?, "both computes ended");
    let [one, two] = loads;
    let mut promised = one.finish()?;
    let other = two.finish()?;
    println!("{} and {} transfers", promised.len(), other.len());
    promised.extend(&other);
    bank::check(&mut computes[winner].endpoint.connect("postgres")?, &promised)?;
    drop(computes);
    cluster.start_endpoint(&main)?;
    bank::check(&mut main.connect("postgres")?, &promised)
}
