//! What faults do to the processes of a system, and how they end.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::network::{Cut, Network, Packets, local_ports};
use super::schedule::{Fault, Kind, Outage, Victim};
use crate::cluster::{child_named, has_ended, kill_and_wait};
use crate::safekeeper_api::SafekeeperApi;
use crate::{Cluster, Endpoint};

const PAGE_SERVER: &str = "pageserver/pageserver.pid";
const COMPUTE: &str = "endpoints/main/compute.pid";
const POSTGRES: &str = "endpoints/main/pgdata/postmaster.pid";

/// A system and its one endpoint, `main`.
#[derive(Debug)]
pub struct Victims<'a> {
    cluster: &'a Cluster,
    endpoint: &'a Endpoint,
    network: Option<Network>,
    /// Ports of the page server.
    page_server: [u16; 2],
    safekeepers: Vec<SafekeeperApi>,
    /// The safekeeper that is out, of several.
    out: Option<Out>,
}

#[derive(Debug)]
struct Out {
    safekeeper: u16,
    how: Outage,
    cut: Option<Cut>,
}

impl Victims<'_> {
    /// Finds out what there is.
    pub fn new<'a>(
        cluster: &'a Cluster,
        endpoint: &'a Endpoint,
        network: Option<Network>,
    ) -> Result<Victims<'a>> {
        let status: serde_json::Value =
            serde_json::from_str(&cluster.neon(&["--json", "status"])?)?;
        let rows = status.as_array().context("a status without rows")?;
        let row = rows.iter().find(|row| row["name"] == "page server").context("no page server")?;
        let port = |index: usize| u16::try_from(row["ports"][index].as_u64().unwrap_or_default());
        let page_server = [port(0)?, port(1)?];
        let safekeepers = SafekeeperApi::all(cluster)?;
        Ok(Victims { cluster, endpoint, network, page_server, safekeepers, out: None })
    }

    /// Where the safekeepers answer.
    pub fn safekeeper_apis(&self) -> Vec<SafekeeperApi> {
        self.safekeepers.clone()
    }

    /// Packets that were cut off so far; `None` where nothing can be.
    pub fn disappeared_packets(&self) -> Result<Option<u64>> {
        self.network.as_ref().map(Network::disappeared).transpose()
    }

    /// Does what a fault says, to its end. A safekeeper that is out stays so, unless the fault is another outage.
    pub fn strike(&mut self, fault: Fault) -> Result<()> {
        let safekeeper = self.in_service(fault.safekeeper);
        match fault.kind {
            Kind::Kill(Victim::Safekeeper) => {
                self.kill_safekeeper(safekeeper)?;
                self.start_services()
            }
            Kind::Kill(Victim::PageServer) => {
                self.cluster.kill(PAGE_SERVER)?;
                self.start_services()
            }
            Kind::Kill(Victim::Postgres) => self.cluster.kill(POSTGRES),
            Kind::Kill(Victim::Compute) => {
                self.cluster.kill(COMPUTE)?;
                self.ensure_compute_runs()
            }
            Kind::Kill(Victim::Walproposer) => {
                self.pid_of_walproposer()?.map_or(Ok(()), kill_and_wait)
            }
            Kind::Stop(victim) => {
                let pid = match victim {
                    Victim::PageServer => Some(self.cluster.pid(PAGE_SERVER)?),
                    Victim::Safekeeper => Some(self.pid_of_safekeeper(safekeeper)?),
                    // Its process only waits for the compute's walsender, which does the work.
                    Victim::Walproposer => self.pid_of_walsender()?,
                    Victim::Postgres => Some(self.cluster.pid(POSTGRES)?),
                    Victim::Compute => Some(self.cluster.pid(COMPUTE)?),
                };
                let pids: Vec<u32> = pid.into_iter().collect();
                stop_for(&pids, fault.lasts)
            }
            Kind::Cut(Victim::PageServer) => self.cut_page_server(fault.lasts),
            Kind::Cut(_) => self.cut_safekeepers(&[safekeeper], fault.lasts),
            Kind::All(outage) => self.strike_all(outage, fault.lasts),
            Kind::Out(how) => {
                self.restore()?;
                self.take_out(fault.safekeeper, how)
            }
        }
    }

    fn strike_all(&mut self, outage: Outage, lasts: Duration) -> Result<()> {
        let ids = self.all_in_service();
        match outage {
            Outage::Killed => {
                ids.iter().try_for_each(|id| self.kill_safekeeper(*id))?;
                self.start_services()
            }
            Outage::Stopped => {
                let pid = |id: &u16| self.pid_of_safekeeper(*id);
                stop_for(&ids.iter().map(pid).collect::<Result<Vec<_>>>()?, lasts)
            }
            Outage::Cut => self.cut_safekeepers(&ids, lasts),
        }
    }

    /// Brings the safekeeper back that is out.
    pub fn restore(&mut self) -> Result<()> {
        let Some(out) = self.out.take() else { return Ok(()) };
        match (out.how, &self.network, out.cut) {
            (Outage::Killed, ..) => self.start_services(),
            (Outage::Stopped, ..) => send(self.pid_of_safekeeper(out.safekeeper)?, Signal::SIGCONT),
            (Outage::Cut, Some(network), Some(cut)) => network.heal(&cut),
            (Outage::Cut, ..) => Ok(()),
        }
    }

    fn take_out(&mut self, safekeeper: u16, how: Outage) -> Result<()> {
        let mut cut = None;
        match how {
            Outage::Killed => self.kill_safekeeper(safekeeper)?,
            Outage::Stopped => send(self.pid_of_safekeeper(safekeeper)?, Signal::SIGSTOP)?,
            Outage::Cut => cut = self.begin_cut(&[safekeeper])?,
        }
        self.out = Some(Out { safekeeper, how, cut });
        Ok(())
    }

    /// The safekeeper itself or, if it is out, the next one.
    fn in_service(&self, safekeeper: u16) -> u16 {
        let count = u16::try_from(self.safekeepers.len()).unwrap_or(u16::MAX);
        match &self.out {
            Some(out) if out.safekeeper == safekeeper => safekeeper % count + 1,
            _ => safekeeper,
        }
    }

    fn all_in_service(&self) -> Vec<u16> {
        let all = self.safekeepers.iter().map(|node| node.id);
        all.filter(|id| self.in_service(*id) == *id).collect()
    }

    /// Starts what does not run; what is out by a kill goes again.
    fn start_services(&self) -> Result<()> {
        run_unless_running(self.cluster, &["start"])?;
        match &self.out {
            Some(Out { safekeeper, how: Outage::Killed, .. }) => self.kill_safekeeper(*safekeeper),
            _ => Ok(()),
        }
    }

    /// A compute whose PostgreSQL died ends; it is started again, as an orchestrator would.
    pub fn ensure_compute_runs(&self) -> Result<()> {
        if self.cluster.pid(COMPUTE).is_ok_and(|pid| !has_ended(pid)) {
            return Ok(());
        }
        run_unless_running(self.cluster, &["endpoint", "start", &self.endpoint.name])
    }

    fn kill_safekeeper(&self, id: u16) -> Result<()> {
        kill_and_wait(self.pid_of_safekeeper(id)?)
    }

    fn pid_of_safekeeper(&self, id: u16) -> Result<u32> {
        self.cluster.pid(&self.safekeepers[usize::from(id) - 1].pid_file())
    }

    fn pid_of_walproposer(&self) -> Result<Option<u32>> {
        child_named(self.cluster.pid(COMPUTE)?, "walproposer")
    }

    fn pid_of_walsender(&self) -> Result<Option<u32>> {
        child_named(self.cluster.pid(POSTGRES)?, "walsender")
    }

    fn begin_cut(&mut self, safekeepers: &[u16]) -> Result<Option<Cut>> {
        let Some(network) = &mut self.network else { return Ok(None) };
        let cut = network.begin_cut();
        for id in safekeepers {
            let node = &self.safekeepers[usize::from(*id) - 1];
            network.add(&cut, Packets::Of(node.pg_port))?;
            network.add(&cut, Packets::Of(node.http_port))?;
        }
        Ok(Some(cut))
    }

    fn cut_safekeepers(&mut self, safekeepers: &[u16], lasts: Duration) -> Result<()> {
        let cut = self.begin_cut(safekeepers)?;
        sleep(lasts);
        self.heal(cut)
    }

    /// The page server is not only asked, it asks safekeepers, from ports that nobody knows beforehand: those that it has
    /// are cut off, and no further connection is let through, whoever wants it.
    fn cut_page_server(&mut self, lasts: Duration) -> Result<()> {
        let pid = self.cluster.pid(PAGE_SERVER)?;
        let cut = match &mut self.network {
            None => None,
            Some(network) => {
                let cut = network.begin_cut();
                for safekeeper in &self.safekeepers {
                    network.add(&cut, Packets::NewConnectionsTo(safekeeper.pg_port))?;
                }
                let mut ports = local_ports(pid)?;
                ports.extend(self.page_server);
                for port in ports {
                    network.add(&cut, Packets::Of(port))?;
                }
                Some(cut)
            }
        };
        sleep(lasts);
        self.heal(cut)
    }

    fn heal(&self, cut: Option<Cut>) -> Result<()> {
        match (&self.network, cut) {
            (Some(network), Some(cut)) => network.heal(&cut),
            _ => Ok(()),
        }
    }
}

fn run_unless_running(cluster: &Cluster, args: &[&str]) -> Result<()> {
    let output = cluster.try_neon(args)?;
    let text = String::from_utf8_lossy(&output.stderr);
    let fine = output.status.success() || text.contains("already running");
    ensure!(fine, "`neon {}` failed: {text}", args.join(" "));
    Ok(())
}

fn stop_for(pids: &[u32], lasts: Duration) -> Result<()> {
    pids.iter().try_for_each(|pid| send(*pid, Signal::SIGSTOP))?;
    sleep(lasts);
    pids.iter().try_for_each(|pid| send(*pid, Signal::SIGCONT))
}

/// One that ended by itself meanwhile is no error.
fn send(pid: u32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(i32::try_from(pid)?), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("could not send {signal} to {pid}")),
    }
}
