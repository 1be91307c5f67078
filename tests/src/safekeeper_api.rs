//! Safekeepers as their HTTP API shows them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pg_types::Lsn;
use serde_json::Value;

use crate::Cluster;

/// Longest time for an answer; only a hang reaches it.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A safekeeper's HTTP API.
#[derive(Debug, Clone)]
pub struct SafekeeperApi {
    /// Its number.
    pub id: u16,
    /// Port of the Postgres protocol.
    pub pg_port: u16,
    /// Port of the API.
    pub http_port: u16,
}

impl SafekeeperApi {
    /// All safekeepers of an environment, by number.
    pub fn all(cluster: &Cluster) -> Result<Vec<SafekeeperApi>> {
        let status: Value = serde_json::from_str(&cluster.neon(&["--json", "status"])?)?;
        let find = |id: u16| {
            let name = format!("safekeeper {id}");
            let row = status.as_array()?.iter().find(|row| row["name"] == name.as_str())?;
            let port = |index: usize| u16::try_from(row["ports"][index].as_u64()?).ok();
            Some(SafekeeperApi { id, pg_port: port(0)?, http_port: port(1)? })
        };
        Ok((1..).map_while(find).collect())
    }

    /// Its pid file below the environment's directory.
    pub fn pid_file(&self) -> String {
        format!("safekeeper-{}/safekeeper.pid", self.id)
    }

    fn agent() -> ureq::Agent {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        config.timeout_global(Some(TIMEOUT)).build().into()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http_port)
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> Result<(u16, Value)> {
        let answer = SafekeeperApi::agent().get(self.url(path)).call();
        let mut answer =
            answer.with_context(|| format!("safekeeper {} does not answer", self.id))?;
        let value = answer.body_mut().read_json().with_context(|| self.url(path))?;
        Ok((answer.status().as_u16(), value))
    }

    /// Path of the only timeline that it has.
    pub fn only_timeline(&self) -> Result<String> {
        let (_, list) = self.get("/v1/tenant/timeline")?;
        let id = |name: &str| list[0][name].as_str().with_context(|| format!("no {name}: {list}"));
        Ok(format!("/v1/tenant/{}/timeline/{}", id("tenant_id")?, id("timeline_id")?))
    }

    /// Positions from a timeline's status.
    pub fn lsns<const N: usize>(&self, timeline: &str, names: [&str; N]) -> Result<[Lsn; N]> {
        let (status, value) = self.get(timeline)?;
        ensure!(status == 200, "safekeeper {} has no status: {value}", self.id);
        let mut lsns = [Lsn(0); N];
        for (lsn, name) in lsns.iter_mut().zip(names) {
            *lsn = value[name].as_str().with_context(|| format!("no {name}: {value}"))?.parse()?;
        }
        Ok(lsns)
    }

    /// Has a timeline remove what it may remove, now.
    pub fn checkpoint(&self, timeline: &str) -> Result<()> {
        let url = self.url(&format!("{timeline}/checkpoint"));
        let status = SafekeeperApi::agent().post(url).send_empty()?.status();
        ensure!(status.is_success(), "checkpoint on safekeeper {}: {status}", self.id);
        Ok(())
    }
}
