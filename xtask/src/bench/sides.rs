//! The two sides of a comparison: a compute with its storage, and a stock server, on the same processors.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use pg_launch::PgInstall;
use postgres::Client;
use system_tests::cluster::{open_tempdir, single_value};
use system_tests::{Cluster, Endpoint, Place, StockServer};
use tempfile::TempDir;

use super::Pins;
use super::machine::pinned;
use crate::build::Built;
use crate::run::capture;

/// What both servers are started with; a compute also gets those of `ours` that it knows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings<'a> {
    pub both: &'a [(&'a str, &'a str)],
    pub ours: &'a [(&'a str, &'a str)],
}

/// An environment and a directory for a stock server, with at most one server of each running. All stop when dropped.
#[derive(Debug)]
pub struct Sides<'a> {
    built: &'a Built,
    pins: &'a Pins,
    ours: Option<Endpoint>,
    stock: Option<StockServer>,
    known: HashMap<String, bool>,
    cluster: Cluster,
    // Last: directories go when nothing runs in them any more.
    temp: TempDir,
}

/// Name of the endpoint.
const ENDPOINT: &str = "bench";
/// Option of `neon init`.
const SAFEKEEPERS: &str = "--safekeepers";
/// Name of its branch.
const BRANCH: &str = "main";

impl<'a> Sides<'a> {
    /// Starts the environment's services.
    pub fn new(built: &'a Built, pins: &'a Pins) -> Result<Sides<'a>> {
        Sides::with_safekeepers(built, pins, 1)
    }

    /// Whether an environment can have several safekeepers.
    pub fn can_have_safekeepers(built: &Built) -> Result<bool> {
        let help = capture(Command::new(&built.neon).args(["init", "--help"]))?;
        Ok(help.contains(SAFEKEEPERS))
    }

    /// Starts the services of an environment with this many safekeepers.
    pub fn with_safekeepers(built: &'a Built, pins: &'a Pins, count: u32) -> Result<Sides<'a>> {
        let place = Place { neon: built.neon.clone(), install: built.compute.clone() };
        let count = count.to_string();
        let init: &[&str] = if count == "1" { &[] } else { &[SAFEKEEPERS, &count] };
        let cluster = pinned(&pins.server_cpus, || Cluster::start_with(place, init))?;
        let temp = open_tempdir("neon-bench-")?;
        Ok(Sides { built, pins, ours: None, stock: None, known: HashMap::new(), cluster, temp })
    }

    /// Starts both servers, after stopping those that run.
    pub fn start(&mut self, settings: Settings<'_>) -> Result<()> {
        self.start_ours(settings)?;
        self.start_stock(settings)
    }

    /// Starts a new compute: its caches are empty.
    pub fn start_ours(&mut self, settings: Settings<'_>) -> Result<()> {
        self.stop_ours()?;
        let known = self.known(settings.ours)?;
        let all: Vec<(&str, &str)> = settings.both.iter().copied().chain(known).collect();
        let started =
            pinned(&self.pins.server_cpus, || self.cluster.endpoint(ENDPOINT, BRANCH, &all))?;
        self.ours = Some(started);
        Ok(())
    }

    /// Stops the compute and forgets its files.
    pub fn stop_ours(&mut self) -> Result<()> {
        if self.ours.take().is_some() {
            self.cluster.neon(&["endpoint", "delete", ENDPOINT])?;
        }
        Ok(())
    }

    /// Those settings that this build's compute knows: a bench measures what is there.
    fn known<'s>(&mut self, settings: &[(&'s str, &'s str)]) -> Result<Vec<(&'s str, &'s str)>> {
        let new = |name: &str| !self.known.contains_key(name);
        if settings.iter().any(|(name, _)| new(name)) {
            let probe = self.cluster.endpoint("probe", BRANCH, &[])?;
            let mut client = probe.connect("postgres")?;
            for (name, _) in settings {
                let known = knows(&mut client, name)?;
                if self.known.insert((*name).to_owned(), known).is_none() && !known {
                    eprintln!("    this compute has no {name}: left out");
                }
            }
            drop(client);
            self.cluster.neon(&["endpoint", "delete", "probe"])?;
        }
        let known = |name: &str| self.known.get(name).copied().unwrap_or(false);
        Ok(settings.iter().copied().filter(|(name, _)| known(name)).collect())
    }

    /// Starts the stock server on its data, after stopping it.
    pub fn start_stock(&mut self, settings: Settings<'_>) -> Result<()> {
        let dir = self.temp.path().join("stock");
        let first = !dir.exists();
        if let Some(mut stock) = self.stock.take() {
            stock.stop()?;
        }
        let mut all = vec![("fsync", "on")];
        all.extend(settings.both);
        let install = self.built.stock.clone();
        let start = if first { StockServer::start } else { StockServer::start_on };
        self.stock = Some(pinned(&self.pins.server_cpus, || start(install, &dir, &all))?);
        Ok(())
    }

    /// Stops the stock server as a shutdown does.
    pub fn stop_stock(&mut self) -> Result<()> {
        self.stock.take().map_or(Ok(()), |mut stock| stock.stop())
    }

    /// A standby of the stock server, on the same processors, in a directory that does not exist yet.
    pub fn standby(&self, dir: &Path, settings: Settings<'_>) -> Result<StockServer> {
        let stock = self.stock.as_ref().context("no stock server runs")?;
        let mut all = vec![("fsync", "on")];
        all.extend(settings.both);
        pinned(&self.pins.server_cpus, || stock.standby(dir, &all))
    }

    /// Where clients run.
    pub fn client_cpus(&self) -> &[usize] {
        &self.pins.client_cpus
    }

    /// The unpatched PostgreSQL and its clients.
    pub fn stock_install(&self) -> &PgInstall {
        &self.built.stock
    }

    /// The environment.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A directory for files of the bench.
    pub fn scratch(&self) -> &Path {
        self.temp.path()
    }

    /// Port of the compute.
    pub fn ours_port(&self) -> Result<u16> {
        Ok(self.ours.as_ref().context("no compute runs")?.port)
    }

    /// Port of the stock server.
    pub fn stock_port(&self) -> Result<u16> {
        Ok(self.stock.as_ref().context("no stock server runs")?.port())
    }

    /// A session on the compute.
    pub fn connect_ours(&self) -> Result<Client> {
        self.ours.as_ref().context("no compute runs")?.connect("postgres")
    }

    /// A session on the stock server.
    pub fn connect_stock(&self) -> Result<Client> {
        self.stock.as_ref().context("no stock server runs")?.connect("postgres")
    }

    /// Runs statements on both sides.
    pub fn both(&self, sql: &str) -> Result<()> {
        for mut client in [self.connect_ours()?, self.connect_stock()?] {
            client.batch_execute(sql).with_context(|| format!("`{sql}` failed"))?;
        }
        Ok(())
    }

    /// Seconds that statements take in a session.
    pub fn seconds(&self, client: &mut Client, sql: &str) -> Result<f64> {
        pinned(&self.pins.client_cpus, || {
            let started = Instant::now();
            client.batch_execute(sql).with_context(|| format!("`{sql}` failed"))?;
            Ok(started.elapsed().as_secs_f64())
        })
    }

    /// Address of the page server as the compute has it.
    pub fn pageserver(&self) -> Result<SocketAddr> {
        let text = single_value(&mut self.connect_ours()?, "SHOW neon.pageserver_connstring")?;
        address(&text).with_context(|| format!("no host and port in `{text}`"))
    }

    /// Makes new sessions of the compute reach the page server at another address.
    pub fn redirect(&self, pageserver: SocketAddr) -> Result<()> {
        let connstring = format!("host={} port={}", pageserver.ip(), pageserver.port());
        let mut client = self.connect_ours()?;
        client.batch_execute(&format!(
            "ALTER SYSTEM SET neon.pageserver_connstring = '{connstring}'"
        ))?;
        client.batch_execute("SELECT pg_reload_conf()")?;
        system_tests::cluster::wait_until("the compute has the new address", || {
            let shown = single_value(&mut self.connect_ours()?, "SHOW neon.pageserver_connstring")?;
            Ok(shown == connstring)
        })
    }
}

/// Whether a server has a setting of that name.
pub fn knows(client: &mut Client, setting: &str) -> Result<bool> {
    let sql = format!("SELECT current_setting('{setting}', true) IS NOT NULL");
    Ok(single_value(client, &sql)? == "t")
}

fn address(connstring: &str) -> Option<SocketAddr> {
    let value = |key: &str| connstring.split_whitespace().find_map(|pair| pair.strip_prefix(key));
    format!("{}:{}", value("host=")?, value("port=")?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_servers_address_is_read_from_a_connection_string() {
        let found = address("host=127.0.0.1 port=6400 application_name=x");
        assert_eq!(found, Some(SocketAddr::from(([127, 0, 0, 1], 6400))));
        assert_eq!(address("host=127.0.0.1"), None);
        assert_eq!(address(""), None);
    }
}
