//! Directories and configuration files that every data directory has.

use std::io::Write;

use super::archive::Archive;
use super::{BackupError, BackupKind};

/// `subdirs` of `initdb.c`, those of databases apart.
const DIRECTORIES: [&str; 23] = [
    "global",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_wal/summaries",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_twophase",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "base",
    "pg_replslot",
    "pg_tblspc",
    "pg_stat",
    "pg_stat_tmp",
    "pg_xact",
    "pg_logical",
    "pg_logical/snapshots",
    "pg_logical/mappings",
];

/// Whoever may connect is for the one who starts the server to say; until then, only this machine may.
const PG_HBA_CONF: &str = "\
# TYPE  DATABASE     USER  ADDRESS        METHOD
local   all          all                  trust
host    all          all   127.0.0.1/32   trust
host    all          all   ::1/128        trust
local   replication  all                  trust
host    replication  all   127.0.0.1/32   trust
host    replication  all   ::1/128        trust
";

/// A compute gets its settings from whoever starts it; a stock server does not start without the file.
const POSTGRESQL_CONF: &str = "# Settings of the server go here.\n";

pub(super) fn write(
    archive: &mut Archive<impl Write>,
    kind: BackupKind,
) -> Result<(), BackupError> {
    DIRECTORIES.iter().try_for_each(|path| archive.directory(path))?;
    archive.file("PG_VERSION", super::relations::PG_VERSION)?;
    archive.file("pg_hba.conf", PG_HBA_CONF.as_bytes())?;
    archive.file("pg_ident.conf", b"")?;
    archive.file("postgresql.auto.conf", b"")?;
    match kind {
        BackupKind::Base => Ok(()),
        BackupKind::Full => archive.file("postgresql.conf", POSTGRESQL_CONF.as_bytes()),
    }
}
