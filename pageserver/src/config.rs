//! Settings of a page server: defaults, then the file, then the environment.

mod duration;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use auth_token::OwnToken;
use serde::{Deserialize, Serialize};

/// Prefix of environment variables that override a key of the file: `NEON_PAGESERVER__WAIT_LSN_TIMEOUT=5s`.
pub const ENV_PREFIX: &str = "NEON_PAGESERVER__";

/// Everything that can be set, by the names used in `pageserver.toml`.
///
/// Durations are texts such as `"60s"` or `"500ms"`; sizes are bytes. All are read once at start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where everything is stored; made when missing.
    pub data_dir: PathBuf,
    /// Root of the PostgreSQL installation of each major version, e.g. `{ 17 = "/opt/postgres" }` (L161).
    #[serde(alias = "pg_install_dir")]
    pub pg_install_dirs: BTreeMap<String, PathBuf>,
    /// Address of the page service.
    #[serde(default = "defaults::listen_pg_addr")]
    pub listen_pg_addr: SocketAddr,
    /// Address of the HTTP API.
    #[serde(default = "defaults::listen_http_addr")]
    pub listen_http_addr: SocketAddr,
    /// Budget of page versions that are not yet in layer files, for all timelines together.
    #[serde(default = "defaults::memtable_bytes")]
    pub memtable_bytes: u64,
    /// A timeline's page versions go to a layer file after this time at the latest, so that safekeepers can
    /// delete WAL of timelines that are hardly written.
    #[serde(default = "defaults::checkpoint_timeout", with = "duration")]
    pub checkpoint_timeout: Duration,
    /// How long a request may wait for WAL that was not received yet.
    #[serde(default = "defaults::wait_lsn_timeout", with = "duration")]
    pub wait_lsn_timeout: Duration,
    /// How long one redo request may take before its process is killed (L056).
    #[serde(default = "defaults::wal_redo_timeout", with = "duration")]
    pub wal_redo_timeout: Duration,
    /// Redo processes of one tenant.
    #[serde(default = "defaults::wal_redo_processes")]
    pub wal_redo_processes: usize,
    /// Memory for pages that were expensive to rebuild, for each timeline.
    #[serde(default = "defaults::page_cache_bytes")]
    pub page_cache_bytes: u64,
    /// A page is worth keeping when more than this many records were replayed for it.
    #[serde(default = "defaults::page_cache_min_records")]
    pub page_cache_min_records: usize,
    /// Relation sizes remembered for each timeline.
    #[serde(default = "defaults::relation_size_cache_entries")]
    pub relation_size_cache_entries: usize,
    /// Most page requests of one connection that are answered with one flush.
    #[serde(default = "defaults::max_batch_size")]
    pub max_batch_size: usize,
    /// Threads of the page service. They may block in file reads and redo, so more of them than cores help.
    #[serde(default = "defaults::page_service_threads")]
    pub page_service_threads: usize,
    /// How long a connection attempt to a safekeeper, or silence on a connection, may last.
    #[serde(default = "defaults::walreceiver_timeout", with = "duration")]
    pub walreceiver_timeout: Duration,
    /// Public keys (a PEM file, or a directory of them) of tokens that are accepted on both ports; without it anybody is let in.
    #[serde(default)]
    pub auth_validation_public_key_path: Option<PathBuf>,
    /// File with the token that is shown to safekeepers; without it none is.
    #[serde(default)]
    pub auth_token_path: Option<PathBuf>,
    /// Superuser of new timelines (L309).
    #[serde(default = "defaults::superuser")]
    pub superuser: String,
    /// Locale of new timelines.
    #[serde(default = "defaults::locale")]
    pub locale: String,
}

mod defaults {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    pub(super) fn listen_pg_addr() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 64000).into()
    }
    pub(super) fn listen_http_addr() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 9898).into()
    }
    pub(super) fn memtable_bytes() -> u64 {
        256 << 20
    }
    pub(super) fn checkpoint_timeout() -> Duration {
        Duration::from_secs(60)
    }
    pub(super) fn wait_lsn_timeout() -> Duration {
        Duration::from_secs(60)
    }
    pub(super) fn wal_redo_timeout() -> Duration {
        Duration::from_secs(60)
    }
    pub(super) fn wal_redo_processes() -> usize {
        std::thread::available_parallelism().map_or(2, |cores| cores.get()).clamp(1, 8)
    }
    pub(super) fn page_cache_bytes() -> u64 {
        64 << 20
    }
    pub(super) fn page_cache_min_records() -> usize {
        16
    }
    pub(super) fn relation_size_cache_entries() -> usize {
        65_536
    }
    pub(super) fn max_batch_size() -> usize {
        32
    }
    pub(super) fn page_service_threads() -> usize {
        std::thread::available_parallelism().map_or(2, |cores| cores.get()).saturating_mul(4).max(8)
    }
    pub(super) fn walreceiver_timeout() -> Duration {
        Duration::from_secs(10)
    }
    pub(super) fn superuser() -> String {
        "cloud_admin".to_owned()
    }
    pub(super) fn locale() -> String {
        "C.UTF-8".to_owned()
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("could not read the configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or a value that is not accepted.
    #[error("invalid configuration in {path}: {reason}")]
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
    /// Values that are fine one by one cannot work.
    #[error("invalid configuration: {key} {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// Why its value cannot work.
        reason: &'static str,
    },
}

impl Config {
    /// What is shown to safekeepers.
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
        let overrides = std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            name.starts_with(ENV_PREFIX).then_some((name, value))
        });
        Config::parse(path, &text, overrides.collect())
    }

    /// Like [`Config::load`], from texts: `path` only serves messages.
    pub fn parse(
        path: &Path,
        text: &str,
        overrides: BTreeMap<String, String>,
    ) -> Result<Config, ConfigError> {
        let in_file = |reason: String| ConfigError::InFile { path: path.to_owned(), reason };
        let file: toml::Table =
            text.parse().map_err(|e: toml::de::Error| in_file(e.to_string()))?;
        if overrides.is_empty() {
            // From the text, so that the message shows the line.
            let config: Config = toml::from_str(text).map_err(|e| in_file(e.to_string()))?;
            return config.checked();
        }
        let merge = |without: Option<&str>| -> Result<Config, toml::de::Error> {
            let mut table = file.clone();
            for (name, value) in overrides.iter().filter(|(name, _)| Some(name.as_str()) != without)
            {
                let key = name.trim_start_matches(ENV_PREFIX).to_ascii_lowercase();
                table.insert(key, value_of_variable(value));
            }
            table.try_into()
        };
        match merge(None) {
            Ok(config) => config.checked(),
            // The culprit is the variable without which the complaint goes away.
            Err(error) => {
                let is_culprit = |name: &&String| {
                    merge(Some(name)).map_or_else(|e| e.message() != error.message(), |_| true)
                };
                Err(match overrides.keys().find(is_culprit) {
                    Some(variable) => ConfigError::InEnvironment {
                        variable: variable.clone(),
                        reason: error.message().to_owned(),
                    },
                    None => in_file(error.message().to_owned()),
                })
            }
        }
    }

    fn checked(self) -> Result<Config, ConfigError> {
        let at_least = |key, ok: bool, reason| match ok {
            true => Ok(()),
            false => Err(ConfigError::Value { key, reason }),
        };
        at_least("memtable_bytes", self.memtable_bytes >= 1 << 20, "must be at least 1048576")?;
        at_least("max_batch_size", (1..=1024).contains(&self.max_batch_size), "must be 1 to 1024")?;
        at_least("page_service_threads", self.page_service_threads >= 1, "must be at least 1")?;
        at_least("wal_redo_processes", self.wal_redo_processes >= 1, "must be at least 1")?;
        at_least("pg_install_dirs", !self.pg_install_dirs.is_empty(), "names no installation")?;
        at_least(
            "checkpoint_timeout",
            !self.checkpoint_timeout.is_zero(),
            "must be longer than zero",
        )?;
        Ok(self)
    }

    /// Settings for a page server with everything below `data_dir` and ports that the system chooses.
    pub fn for_tests(data_dir: &Path, pg_install: &Path) -> Config {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            data_dir: data_dir.to_owned(),
            pg_install_dirs: BTreeMap::from([("17".to_owned(), pg_install.to_owned())]),
            listen_pg_addr: any_port,
            listen_http_addr: any_port,
            memtable_bytes: defaults::memtable_bytes(),
            checkpoint_timeout: defaults::checkpoint_timeout(),
            wait_lsn_timeout: defaults::wait_lsn_timeout(),
            wal_redo_timeout: defaults::wal_redo_timeout(),
            wal_redo_processes: defaults::wal_redo_processes(),
            page_cache_bytes: defaults::page_cache_bytes(),
            page_cache_min_records: defaults::page_cache_min_records(),
            relation_size_cache_entries: defaults::relation_size_cache_entries(),
            max_batch_size: defaults::max_batch_size(),
            page_service_threads: defaults::page_service_threads(),
            walreceiver_timeout: defaults::walreceiver_timeout(),
            auth_validation_public_key_path: None,
            auth_token_path: None,
            superuser: defaults::superuser(),
            locale: defaults::locale(),
        }
    }
}

/// A variable's text as TOML when it is TOML (numbers, tables), else as a string.
fn value_of_variable(text: &str) -> toml::Value {
    format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "data_dir = '/d'\npg_install_dirs = { 17 = '/pg' }\n";

    fn parse(text: &str, overrides: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let overrides = overrides
            .iter()
            .map(|(name, value)| (format!("{ENV_PREFIX}{name}"), (*value).to_owned()));
        Config::parse(Path::new("pageserver.toml"), text, overrides.collect())
    }

    #[test]
    fn defaults_fill_what_is_missing() {
        let config = parse(MINIMAL, &[]).unwrap();
        let expected = Config {
            listen_pg_addr: defaults::listen_pg_addr(),
            listen_http_addr: defaults::listen_http_addr(),
            ..Config::for_tests(Path::new("/d"), Path::new("/pg"))
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        let error =
            parse(&format!("{MINIMAL}wait_lsn_time = '1s'\n"), &[]).unwrap_err().to_string();
        assert!(error.contains("pageserver.toml"), "{error}");
        assert!(error.contains("line 3") && error.contains("`wait_lsn_time`"), "{error}");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = parse(
            &format!("{MINIMAL}wait_lsn_timeout = '5s'\n"),
            &[("WAIT_LSN_TIMEOUT", "2min"), ("MAX_BATCH_SIZE", "8"), ("SUPERUSER", "root")],
        )
        .unwrap();
        assert_eq!(config.wait_lsn_timeout, Duration::from_secs(120));
        assert_eq!(config.max_batch_size, 8);
        assert_eq!(config.superuser, "root");
    }

    #[test]
    fn the_variable_at_fault_is_named() {
        let overrides = [("LOCALE", "C"), ("MAX_BATCH_SIZE", "many")];
        let error = parse(MINIMAL, &overrides).unwrap_err().to_string();
        assert!(error.contains("NEON_PAGESERVER__MAX_BATCH_SIZE"), "{error}");
        let error = parse(MINIMAL, &[("NO_SUCH_KEY", "1")]).unwrap_err().to_string();
        assert!(error.contains("NEON_PAGESERVER__NO_SUCH_KEY"), "{error}");
        let error = parse("data_dir = 1", &[("LOCALE", "C")]).unwrap_err();
        assert!(matches!(error, ConfigError::InFile { .. }), "{error}");
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        let error = parse(&format!("{MINIMAL}max_batch_size = 0\n"), &[]).unwrap_err().to_string();
        assert_eq!(error, "invalid configuration: max_batch_size must be 1 to 1024");
    }

    #[test]
    fn durations_are_written_in_seconds() {
        let mut config = parse(MINIMAL, &[]).unwrap();
        config.checkpoint_timeout = Duration::from_millis(1500);
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains("wait_lsn_timeout = \"60s\""), "{text}");
        assert!(text.contains("checkpoint_timeout = \"1.5s\""), "{text}");
    }
}
