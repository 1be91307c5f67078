//! Settings of a safekeeper: defaults, the file, then the environment.

mod duration;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use auth_token::OwnToken;
use pg_types::NodeId;
use serde::Deserialize;

use crate::backup::RemoteStorage;

/// Prefix of environment variables that override a key of the file: `NEON_SAFEKEEPER__LISTEN_PG_ADDR=…`.
pub const ENV_PREFIX: &str = "NEON_SAFEKEEPER__";

/// Everything that can be set, by the names used in `safekeeper.toml`. All is read once at start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This safekeeper's number, unique in an environment and never changed. Not 0.
    pub id: NodeId,
    /// Where everything is stored; made when missing.
    pub data_dir: PathBuf,
    /// Address of the Postgres-protocol port: WAL in and out.
    #[serde(default = "defaults::listen_pg_addr")]
    pub listen_pg_addr: SocketAddr,
    /// Address of the HTTP API.
    #[serde(default = "defaults::listen_http_addr")]
    pub listen_http_addr: SocketAddr,
    /// A Postgres-protocol connection ends when its peer is silent, or takes no data, for so long (L256).
    #[serde(default = "defaults::connection_timeout", with = "duration")]
    pub connection_timeout: Duration,
    /// Most Postgres-protocol connections at a time; further ones wait to be accepted.
    #[serde(default = "defaults::max_connections")]
    pub max_connections: usize,
    /// A walsender that has nothing to send says so this often.
    #[serde(default = "defaults::keepalive_interval", with = "duration")]
    pub keepalive_interval: Duration,
    /// Positions that may be saved late (commit, removal horizon) are saved this often when they moved, and WAL
    /// that nobody needs is removed then.
    #[serde(default = "defaults::maintenance_interval", with = "duration")]
    pub maintenance_interval: Duration,
    /// The other members of a timeline are asked how far they are this often while something happens, and less and less
    /// often while nothing does.
    #[serde(default = "defaults::peer_interval", with = "duration")]
    pub peer_interval: Duration,
    /// Public keys (a PEM file, or a directory of them) of tokens that are accepted on both ports; without it anybody is let in.
    #[serde(default)]
    pub auth_validation_public_key_path: Option<PathBuf>,
    /// File with the token that is shown to other safekeepers; without it none is.
    #[serde(default)]
    pub auth_token_path: Option<PathBuf>,
    /// Where WAL is backed up; without it nowhere.
    #[serde(default)]
    pub remote_storage: Option<RemoteStorage>,
    /// The beginning of the last segment is backed up when nothing was committed for so long.
    #[serde(default = "defaults::partial_backup_timeout", with = "duration")]
    pub partial_backup_timeout: Duration,
}

mod defaults {
    use super::{Duration, Ipv4Addr, SocketAddr};

    pub(super) fn listen_pg_addr() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 5454).into()
    }
    pub(super) fn listen_http_addr() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 7676).into()
    }
    pub(super) fn connection_timeout() -> Duration {
        Duration::from_secs(60)
    }
    pub(super) fn max_connections() -> usize {
        1000
    }
    pub(super) fn keepalive_interval() -> Duration {
        Duration::from_secs(1)
    }
    pub(super) fn peer_interval() -> Duration {
        Duration::from_secs(2)
    }
    pub(super) fn maintenance_interval() -> Duration {
        Duration::from_secs(5)
    }
    pub(super) fn partial_backup_timeout() -> Duration {
        Duration::from_secs(15 * 60)
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("could not read the configuration file {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or a value that is not accepted.
    #[error("invalid configuration in {}: {reason}", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// Which key, and what is wrong.
        reason: String,
    },
    /// A variable names no key, or its value is not accepted.
    #[error("invalid configuration in the environment variable {variable}: {reason}")]
    InEnvironment {
        /// The variable.
        variable: String,
        /// What is wrong.
        reason: String,
    },
    /// A value that cannot work.
    #[error("invalid configuration: {key} {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// Why its value cannot work.
        reason: &'static str,
    },
}

impl Config {
    /// What is shown to other safekeepers.
    pub fn own_token(&self) -> OwnToken {
        OwnToken::new(self.auth_token_path.clone())
    }

    /// Reads the file at `path` and the variables of this process's environment.
    ///
    /// # Errors
    /// Names the file or the variable, the key, and what is wrong.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Config::parse(path, &text, variables)
    }

    /// Like [`Config::load`], from texts; `path` only serves messages. Variables without [`ENV_PREFIX`] are no
    /// concern of this program.
    pub fn parse(
        path: &Path,
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let in_file = |error: toml::de::Error| ConfigError::InFile {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut table: toml::Table = text.parse().map_err(in_file)?;
        let overrides: Vec<_> =
            variables.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        if overrides.is_empty() {
            // From the text, so that a message shows the line.
            return toml::from_str::<Config>(text).map_err(in_file)?.checked();
        }
        for (name, value) in overrides {
            let key = name.trim_start_matches(ENV_PREFIX).to_ascii_lowercase();
            let before = table.insert(key.clone(), value_of_variable(&value));
            if let Err(error) = table.clone().try_into::<Config>() {
                // Without the variable the same error may be the file's.
                let mut without = table.clone();
                match before {
                    Some(before) => without.insert(key, before),
                    None => without.remove(&key),
                };
                without.try_into::<Config>().map_err(in_file)?;
                let reason = error.to_string();
                return Err(ConfigError::InEnvironment { variable: name, reason });
            }
        }
        table.try_into::<Config>().map_err(in_file)?.checked()
    }

    fn checked(self) -> Result<Config, ConfigError> {
        let wrong = |key, reason| Err(ConfigError::Value { key, reason });
        if self.id == NodeId(0) {
            return wrong("id", "must not be 0");
        }
        if self.max_connections == 0 {
            return wrong("max_connections", "must not be 0");
        }
        for (key, value) in [
            ("connection_timeout", self.connection_timeout),
            ("keepalive_interval", self.keepalive_interval),
            ("maintenance_interval", self.maintenance_interval),
            ("partial_backup_timeout", self.partial_backup_timeout),
        ] {
            if value.is_zero() {
                return wrong(key, "must be longer than 0");
            }
        }
        if let Some(reason) = self.remote_storage.as_ref().and_then(RemoteStorage::problem) {
            return wrong("remote_storage", reason);
        }
        if self.connection_timeout <= self.keepalive_interval {
            return wrong("connection_timeout", "must be longer than keepalive_interval");
        }
        Ok(self)
    }
}

/// A variable's text as a value: a number or boolean when it looks like one, text otherwise.
fn value_of_variable(text: &str) -> toml::Value {
    let parsed = format!("v = {text}").parse::<toml::Table>().ok();
    let value = parsed.and_then(|mut table| table.remove("v"));
    value.unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "id = 1\ndata_dir = '/d'\n";

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Config::parse(Path::new("safekeeper.toml"), text, variables)
    }

    #[test]
    fn environment_wins_over_file_over_default() {
        let config = parse(MINIMAL, &[("PATH", "x")]).unwrap();
        assert_eq!(config.listen_http_addr.port(), 7676);
        let file = format!("{MINIMAL}connection_timeout = '5s'\nlisten_pg_addr = '[::1]:7'\n");
        let config = parse(&file, &[("NEON_SAFEKEEPER__ID", "9")]).unwrap();
        assert_eq!((config.id, config.connection_timeout), (NodeId(9), Duration::from_secs(5)));
        let storage = "{ bucket_name = 'b', endpoint = 'http://localhost:9000' }";
        let config = parse(&file, &[("NEON_SAFEKEEPER__REMOTE_STORAGE", storage)]).unwrap();
        let storage = config.remote_storage.unwrap();
        assert_eq!(storage.endpoint.as_deref(), Some("http://localhost:9000"));
        let config = parse(&file, &[("NEON_SAFEKEEPER__CONNECTION_TIMEOUT", "1h")]).unwrap();
        assert_eq!(config.connection_timeout, Duration::from_secs(3600));
    }

    #[test]
    fn errors_name_place_and_key() {
        for (text, variables, parts) in [
            ("id = 1", &[][..], &["safekeeper.toml", "data_dir"][..]),
            ("id = 1\ndata_dir = '/d'\nlisten_adr = 1\n", &[], &["safekeeper.toml", "listen_adr"]),
            ("id = ", &[], &["safekeeper.toml"]),
            (
                MINIMAL,
                &[("NEON_SAFEKEEPER__NO_SUCH", "1")],
                &["NEON_SAFEKEEPER__NO_SUCH", "no_such"],
            ),
            (
                "id = 'x'\ndata_dir = '/d'",
                &[("NEON_SAFEKEEPER__MAX_CONNECTIONS", "1")],
                &["safekeeper.toml"],
            ),
            ("id = 0\ndata_dir = '/d'", &[], &["id must not be 0"]),
            (
                "id = 1\ndata_dir = '/d'\nconnection_timeout = '1s'",
                &[],
                &["longer than keepalive_interval"],
            ),
            (
                "id = 1\ndata_dir = '/d'\n[remote_storage]\nlocal_path = '/s'\nbucket_name = 'b'",
                &[],
                &["remote_storage has both local_path and bucket_name"],
            ),
            (
                "id = 1\ndata_dir = '/d'\n[remote_storage]",
                &[],
                &["needs local_path or bucket_name"],
            ),
            (
                "id = 1\ndata_dir = '/d'\n[remote_storage]\nbucket_name = 'b'\nprefix_in_bucket = 'a//../b'",
                &[],
                &["remote_storage has a prefix_in_bucket"],
            ),
        ] {
            let message = parse(text, variables).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
