//! What a walproposer is told.

use std::path::PathBuf;

use pg_types::{Lsn, PG_MAJORVERSION, TenantId, TimelineId};
use pg_wire::client::Endpoint;
use serde::{Deserialize, Serialize};
use wal_consensus::limits::MEMBERS_MAX;
use wal_consensus::membership::{MembershipConf, MembershipError};
use wal_consensus::version::{NeedsVersion3, ProtocolVersion};

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
    /// Version of the messages to the safekeepers: 3, or 2 to go back to them (L016). With 2 the timeline must have no
    /// membership: a safekeeper that has one refuses.
    #[serde(default)]
    pub protocol_version: ProtocolVersion,
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
    /// A membership that the protocol version cannot tell.
    #[error("mconf: {0}")]
    Version(#[from] NeedsVersion3),
    /// `run` without a compute.
    #[error("compute: this section is missing")]
    NoCompute,
}

impl Config {
    /// The addresses, checked.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>, ConfigError> {
        self.mconf.validate()?;
        self.protocol_version.check_generation(self.mconf.generation)?;
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
    use pg_types::{Generation, NodeId};
    use wal_consensus::membership::Member;

    use super::*;

    fn config(safekeepers: &[&str]) -> Config {
        Config {
            tenant_id: TenantId([1; 16]),
            timeline_id: TimelineId([2; 16]),
            safekeepers: safekeepers.iter().map(|text| (*text).to_owned()).collect(),
            mconf: MembershipConf::default(),
            auth_token: None,
            protocol_version: ProtocolVersion::V3,
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
    fn the_protocol_version_is_a_number_and_3_unless_said() {
        let mut config = config(&["a:1"]);
        config.protocol_version = ProtocolVersion::V2;
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""protocol_version":2"#), "{text}");
        let read = |text: &str| serde_json::from_str::<Config>(text);
        assert_eq!(read(&text).unwrap().protocol_version, ProtocolVersion::V2);
        let silent = text.replace(r#""protocol_version":2,"#, "");
        assert_eq!(read(&silent).unwrap().protocol_version, ProtocolVersion::V3);
        let error = read(&text.replace(":2,", ":4,")).unwrap_err().to_string();
        assert!(error.contains("protocol version 4 is not spoken here"), "{error}");
    }

    #[test]
    fn version_2_cannot_tell_a_membership() {
        let mut config = config(&["a:1"]);
        let member = Member { id: NodeId(1), host: "a".to_owned(), pg_port: 1 };
        config.mconf.generation = Generation(1);
        config.mconf.members = vec![member];
        assert!(config.endpoints().is_ok());
        config.protocol_version = ProtocolVersion::V2;
        let error = config.endpoints().unwrap_err().to_string();
        assert!(error.contains("mconf") && error.contains("generation 1"), "{error}");
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
