//! The generated `postgresql.conf` and `pg_hba.conf` (pure).

use std::fmt::Write;

use crate::config::{Config, SAFEKEEPER_PROTO_VERSION};

/// Settings that a user may change with `neon endpoint create --set`.
const DEFAULTS: &[(&str, &str)] = &[
    ("shared_buffers", "128MB"),
    ("max_connections", "100"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("max_prepared_transactions", "10"),
    // The default of 8, and the extension's three.
    ("max_worker_processes", "11"),
    ("wal_level", "replica"),
    // Local WAL is only a buffer on its way to the safekeepers; the slot keeps what they still need.
    ("max_wal_size", "1GB"),
    // Zeros in front of it would be written for nobody, and in time to the disk that commits may wait for.
    ("wal_init_zero", "off"),
    ("checkpoint_timeout", "5min"),
    ("listen_addresses", "127.0.0.1"),
    ("log_line_prefix", "%m [%p] %b "),
    ("log_checkpoints", "off"),
    // Bitmap scans, ANALYZE and VACUUM ask this far ahead; half of what the ring of requests holds. Measured:
    // docs/performance.md.
    ("effective_io_concurrency", "64"),
    ("maintenance_io_concurrency", "64"),
    // Pages that leave the buffers stay on this machine. Shared memory for it is about 4 MB for each GB.
    ("neon.max_file_cache_size", "1GB"),
    ("neon.file_cache_size_limit", "512MB"),
];

/// Settings that the storage needs; a user's value for one of these is refused.
const FIXED: &[(&str, &str)] = &[
    ("shared_preload_libraries", "neon,neon_rmgr"),
    // The local disk is not the truth: a crashed compute is thrown away.
    ("fsync", "off"),
    ("restart_after_crash", "off"),
    ("synchronous_standby_names", "walproposer"),
    // The page server keeps every version of every page, so torn pages do not exist.
    ("full_page_writes", "off"),
    ("wal_log_hints", "off"),
    ("hot_standby", "off"),
    ("archive_mode", "off"),
    ("wal_keep_size", "0"),
    // WAL that no quorum has yet is nowhere else; and a server that invalidates the slot at its shutdown waits for the process
    // that has it, which waits for the shutdown.
    ("max_slot_wal_keep_size", "-1"),
];

/// A setting that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// The storage depends on it.
    #[error("the setting {0} cannot be changed: the storage depends on its value")]
    Fixed(String),
    /// Not a name of a setting.
    #[error("\"{0}\" is not the name of a setting")]
    BadName(String),
}

/// Text of `postgresql.conf`.
pub fn postgresql_conf(config: &Config) -> Result<String, SettingError> {
    let mut text = String::from("# Written at each start of the compute; changes are lost.\n");
    for (name, value) in DEFAULTS {
        if !config.settings.contains_key(*name) {
            setting(&mut text, name, value);
        }
    }
    for (name, value) in &config.settings {
        check_name(name)?;
        setting(&mut text, name, value);
    }
    for (name, value) in FIXED {
        setting(&mut text, name, value);
    }
    if config.setting(SAFEKEEPER_PROTO_VERSION).is_none() {
        setting(&mut text, SAFEKEEPER_PROTO_VERSION, &config.safekeeper_protocol.to_string());
    }
    setting(&mut text, "port", &config.port.to_string());
    setting(&mut text, "unix_socket_directories", &config.socket_dir().to_string_lossy());
    setting(&mut text, "neon.tenant_id", &config.tenant_id.to_string());
    setting(&mut text, "neon.timeline_id", &config.timeline_id.to_string());
    setting(&mut text, "neon.endpoint_id", &config.endpoint_id);
    let (host, port) = config.pageserver.rsplit_once(':').unwrap_or((&config.pageserver, "6400"));
    setting(&mut text, "neon.pageserver_connstring", &format!("host={host} port={port}"));
    Ok(text)
}

/// Text of `pg_hba.conf`: everybody on this machine, as `initdb` without further options has it.
pub fn pg_hba_conf() -> &'static str {
    "local all all trust\nlocal replication all trust\n\
     host all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n"
}

fn check_name(name: &str) -> Result<(), SettingError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(SettingError::BadName(name.to_owned()));
    }
    let storage = ["neon.tenant_id", "neon.timeline_id", "neon.pageserver_connstring"];
    let fixed = FIXED.iter().map(|(fixed, _)| *fixed).chain(storage);
    if fixed.into_iter().any(|fixed| fixed.eq_ignore_ascii_case(name)) {
        return Err(SettingError::Fixed(name.to_owned()));
    }
    Ok(())
}

/// One line, quoted as `guc-file.l` reads it: quotes and backslashes doubled, no line breaks.
fn setting(text: &mut String, name: &str, value: &str) {
    let quoted = value.replace('\\', "\\\\").replace('\'', "''").replace(['\n', '\r'], " ");
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{name} = '{quoted}'");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::example;
    use walproposer::ProtocolVersion;

    #[test]
    fn users_settings_win_over_defaults_and_are_quoted() {
        let mut config = example();
        config.settings.insert("shared_buffers".into(), "1MB".into());
        config.settings.insert("application_name".into(), "it's\na\\b".into());
        let text = postgresql_conf(&config).unwrap();
        assert!(text.contains("shared_buffers = '1MB'\n"));
        assert!(!text.contains("128MB"));
        assert!(text.contains("application_name = 'it''s a\\\\b'\n"));
        assert!(text.contains("neon.pageserver_connstring = 'host=127.0.0.1 port=6400'\n"));
    }

    #[test]
    fn the_servers_setting_says_which_protocol_is_spoken() {
        let text = postgresql_conf(&example()).unwrap();
        assert!(text.contains("neon.safekeeper_proto_version = '3'\n"), "{text}");
        let mut config = example();
        config.settings.insert("Neon.safekeeper_proto_version".into(), "2".into());
        let text = postgresql_conf(&config).unwrap().to_lowercase();
        assert_eq!(text.matches("neon.safekeeper_proto_version = '2'\n").count(), 1, "{text}");
        assert_eq!(text.matches("safekeeper_proto_version").count(), 1, "{text}");
        assert_eq!(config.protocol_with_safekeepers(), ProtocolVersion::V2);
    }

    #[test]
    fn what_the_storage_depends_on_is_refused() {
        for name in [
            "fsync",
            "FSYNC",
            "max_slot_wal_keep_size",
            "neon.tenant_id",
            "synchronous_standby_names",
        ] {
            let mut config = example();
            config.settings.insert(name.into(), "x".into());
            assert_eq!(postgresql_conf(&config), Err(SettingError::Fixed(name.into())));
        }
        let mut config = example();
        config.settings.insert("a b".into(), "x".into());
        assert_eq!(postgresql_conf(&config), Err(SettingError::BadName("a b".into())));
    }
}
