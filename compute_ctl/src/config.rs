//! What a compute must be: the file that `neon endpoint start` writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pg_types::{NodeId, TenantId, TimelineId};
use serde::{Deserialize, Serialize};
use walproposer::ProtocolVersion;

/// Name of the superuser that timelines are created with (L309).
pub const SUPERUSER: &str = "cloud_admin";

/// A compute's configuration; all paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the endpoint, for logs and the `neon.endpoint_id` setting.
    pub endpoint_id: String,
    /// The cluster.
    pub tenant_id: TenantId,
    /// The branch.
    pub timeline_id: TimelineId,
    /// Root of the patched PostgreSQL.
    pub pg_install: PathBuf,
    /// Data directory; deleted and made anew at each start (L298).
    pub pgdata: PathBuf,
    /// Where the compute says how far it is ([`crate::ComputeStatus`]).
    pub status_file: PathBuf,
    /// Where PostgreSQL's log goes.
    pub postgres_log: PathBuf,
    /// TCP port of PostgreSQL on the loopback address.
    pub port: u16,
    /// `host:port` of the page service.
    pub pageserver: String,
    /// Shown to the page server and the safekeepers: a token of this tenant. The file is its owner's alone then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<String>,
    /// The quorum.
    #[serde(rename = "safekeeper")]
    pub safekeepers: Vec<SafekeeperAddress>,
    /// Version of the protocol to them: 3, or 2 for a timeline without membership (L016).
    #[serde(default)]
    pub safekeeper_protocol: ProtocolVersion,
    /// PostgreSQL settings of the user's own; they win over the defaults, but not over what the storage needs.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// Setting of the server that says in which version safekeepers are spoken to (L017); given, it wins over
/// [`Config::safekeeper_protocol`].
pub const SAFEKEEPER_PROTO_VERSION: &str = "neon.safekeeper_proto_version";

impl Config {
    /// A setting of the user's own.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The version to speak. What is no version at all the server refuses at its start.
    pub fn protocol_with_safekeepers(&self) -> ProtocolVersion {
        let given =
            self.setting(SAFEKEEPER_PROTO_VERSION).and_then(|text| text.parse::<u32>().ok());
        let given = given.and_then(|number| ProtocolVersion::try_from(number).ok());
        given.unwrap_or(self.safekeeper_protocol)
    }
}

/// One safekeeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafekeeperAddress {
    /// Its number.
    pub id: NodeId,
    /// `host:port` of its WAL service.
    pub address: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("could not read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} is not a compute configuration: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
}

impl Config {
    /// Reads a configuration file; unknown keys are errors.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let invalid = |message: String| ConfigError::Invalid { path: path.to_owned(), message };
        let config: Config = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        if config.safekeepers.is_empty() {
            return Err(invalid("it names no safekeeper".to_owned()));
        }
        Ok(config)
    }

    /// Directory of the Unix socket, which is below PGDATA so that it goes with it.
    pub fn socket_dir(&self) -> PathBuf {
        self.pgdata.clone()
    }
}

#[cfg(test)]
pub(crate) fn example() -> Config {
    Config {
        endpoint_id: "main".to_owned(),
        tenant_id: TenantId([1; 16]),
        timeline_id: TimelineId([2; 16]),
        pg_install: "/pg".into(),
        pgdata: "/env/pgdata".into(),
        status_file: "/env/status.json".into(),
        postgres_log: "/env/postgres.log".into(),
        port: 5432,
        pageserver: "127.0.0.1:6400".to_owned(),
        auth_token: None,
        safekeepers: vec![SafekeeperAddress { id: NodeId(1), address: "127.0.0.1:1".to_owned() }],
        safekeeper_protocol: ProtocolVersion::V3,
        settings: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip_and_names_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("compute.toml");
        let config = example();
        let text = toml::to_string(&config).unwrap();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
        let silent = text.replace("safekeeper_protocol = 3\n", "");
        assert_ne!(silent, text);
        std::fs::write(&path, silent).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
        std::fs::write(&path, text.replace("pgdata", "pgdatum")).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("compute.toml") && error.contains("pgdatum"), "{error}");
    }
}
