//! What a walproposer is told.

use std::path::PathBuf;

use pg_types::{Lsn, PG_MAJORVERSION, TenantId, TimelineId};
use pg_wire::client::Endpoint;
use serde::{Deserialize, Serialize};
use wal_consensus::limits::MEMBERS_MAX;
use wal_consensus::membership::{MembershipConf, MembershipError};

/// Which timeline, and where its safekeepers are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
    /// Addresses of the safekeepers, `host:port`; a majority of them is the quorum unless `mconf` says otherwise.
    pub safekeepers: Vec<String>,
    /// Membership configuration; empty by default (L238).
    #[serde(default)]
    pub mconf: MembershipConf,
    /// Password for the safekeepers, when they want one.
    #[serde(default)]
    pub auth_token: Option<String>,
    /// The compute; needed by [`run`](crate::run()), not by [`sync`](crate::sync()).
    #[serde(default)]
    pub compute: Option<ComputeConfig>,
}

/// The compute whose WAL is to be streamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeConfig {
    /// Its data directory: holds `neon.walproposer` and `neon.feedback`.
    pub pgdata: PathBuf,
    /// Its `unix_socket_directories`.
    pub socket_dir: PathBuf,
    /// Its port.
    pub port: u16,
    /// A role with the REPLICATION attribute.
    pub user: String,
    /// The position it was started at, that of its basebackup. For a server that was never started from a basebackup
    /// (any stock PostgreSQL), the position from which its WAL goes to the safekeepers.
    pub start_lsn: Lsn,
    /// Whether the compute has the extension `neon`, which runs the walproposer inside a walsender ([`run_hosted`](crate::run_hosted)).
    #[serde(default)]
    pub hosts: bool,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nobody to send WAL to.
    #[error("safekeepers: the list is empty")]
    NoSafekeepers,
    /// Too many.
    #[error("safekeepers: {0} are named, at most {MEMBERS_MAX} are possible")]
    TooManySafekeepers(usize),
    /// Not an address.
    #[error("safekeepers: {0}")]
    Address(String),
    /// The same address twice.
    #[error("safekeepers: {0} is named twice")]
    Duplicate(String),
    /// The membership configuration breaks a rule.
    #[error("mconf: {0}")]
    Membership(#[from] MembershipError),
    /// `run` without a compute.
    #[error("compute: this section is missing")]
    NoCompute,
}

impl Config {
    /// The addresses, checked.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>, ConfigError> {
        self.mconf.validate()?;
        if self.safekeepers.is_empty() {
            return Err(ConfigError::NoSafekeepers);
        }
        if self.safekeepers.len() > MEMBERS_MAX {
            return Err(ConfigError::TooManySafekeepers(self.safekeepers.len()));
        }
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for address in &self.safekeepers {
            let endpoint = address.parse().map_err(ConfigError::Address)?;
            if endpoints.contains(&endpoint) {
                return Err(ConfigError::Duplicate(address.clone()));
            }
            endpoints.push(endpoint);
        }
        Ok(endpoints)
    }
}

/// `PG_VERSION_NUM` from what a server reports as `server_version`, for example `17.11 (Debian 17.11-1)`. Without a
/// number that can be read, the major version that this workspace is for.
pub(crate) fn version_num(server_version: Option<&str>) -> u32 {
    let parse = |text: &str| {
        let (major, rest) = text.split_once('.')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let minor: u32 = rest.get(..digits)?.parse().ok()?;
        major.parse::<u32>().ok()?.checked_mul(10_000)?.checked_add(minor)
    };
    server_version.and_then(parse).unwrap_or(PG_MAJORVERSION * 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(safekeepers: &[&str]) -> Config {
        Config {
            tenant_id: TenantId([1; 16]),
            timeline_id: TimelineId([2; 16]),
            safekeepers: safekeepers.iter().map(|text| (*text).to_owned()).collect(),
            mconf: MembershipConf::default(),
            auth_token: None,
            compute: None,
        }
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let error = |safekeepers: &[&str]| config(safekeepers).endpoints().unwrap_err().to_string();
        assert_eq!(error(&[]), "safekeepers: the list is empty");
        assert_eq!(error(&["a:1", "a:1"]), "safekeepers: a:1 is named twice");
        assert!(error(&["nonsense"]).contains("nonsense"));
        assert!(error(&["a:1"; 40]).contains("40"));
        assert!(config(&["a:1", "b:1"]).endpoints().is_ok());
    }

    #[test]
    fn reads_server_versions() {
        assert_eq!(version_num(Some("17.11")), 170_011);
        assert_eq!(version_num(Some("17.11 (Debian 17.11-1.pgdg)")), 170_011);
        assert_eq!(version_num(Some("18beta1")), 170_000);
        assert_eq!(version_num(Some("99999999999.1")), 170_000);
        assert_eq!(version_num(None), 170_000);
    }
}
