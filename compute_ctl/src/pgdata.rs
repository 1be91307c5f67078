//! The data directory: deleted, made from a basebackup, configured.

use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use pg_launch::SystemUser;

use crate::config::Config;
use crate::postgresql_conf::{SettingError, pg_hba_conf, postgresql_conf};

/// Why a data directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PgdataError {
    /// A file operation failed.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The basebackup is not a tar archive, or it ended early.
    #[error("the basebackup cannot be read")]
    Archive(#[source] io::Error),
    /// The basebackup names a file outside the data directory.
    #[error("the basebackup holds {0}, which is not a path inside the data directory")]
    UnsafePath(PathBuf),
    /// The basebackup has no control file, so it is not complete.
    #[error("the basebackup is not complete: it has no global/pg_control")]
    Incomplete,
    /// A setting that cannot be given.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Ownership could not be changed.
    #[error(transparent)]
    Launch(#[from] pg_launch::LaunchError),
}

fn doing<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> PgdataError + 'a {
    move |source| PgdataError::Io { action, path: path.to_owned(), source }
}

/// Removes what an earlier start left and makes an empty directory that only its owner may enter.
pub fn wipe(pgdata: &Path) -> Result<(), PgdataError> {
    match fs::remove_dir_all(pgdata) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(doing("remove", pgdata)(error));
        }
        _ => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(pgdata).map_err(doing("create", pgdata))
}

/// Unpacks a basebackup. Only plain files and directories below `pgdata` are made.
pub fn unpack(archive: impl Read, pgdata: &Path) -> Result<(), PgdataError> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(false);
    for entry in archive.entries().map_err(PgdataError::Archive)? {
        let mut entry = entry.map_err(PgdataError::Archive)?;
        let path = entry.path().map_err(PgdataError::Archive)?.into_owned();
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        let kind = entry.header().entry_type();
        if !plain || !(kind.is_file() || kind.is_dir()) {
            return Err(PgdataError::UnsafePath(path));
        }
        entry.unpack(pgdata.join(&path)).map_err(PgdataError::Archive)?;
    }
    // The archive has it near its end, so that a truncated one cannot start.
    if pgdata.join("global/pg_control").is_file() { Ok(()) } else { Err(PgdataError::Incomplete) }
}

/// Writes the configuration and gives the directory to the user that PostgreSQL runs as.
pub fn configure(config: &Config, user: Option<&SystemUser>) -> Result<(), PgdataError> {
    let pgdata = &config.pgdata;
    for (name, text) in [
        ("postgresql.conf", postgresql_conf(config)?.as_str()),
        ("pg_hba.conf", pg_hba_conf()),
        ("pg_ident.conf", ""),
    ] {
        let path = pgdata.join(name);
        fs::write(&path, text).map_err(doing("write", &path))?;
    }
    if let Some(user) = user {
        user.check_searchable(pgdata.parent().unwrap_or(pgdata))?;
        user.give(pgdata)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, contents) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o600);
            header.set_entry_type(tar::EntryType::Regular);
            // `set_path` would refuse what an attacker can write.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *contents).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn unpacks_only_what_lies_inside_and_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("pgdata");
        wipe(&pgdata).unwrap();
        fs::create_dir(pgdata.join("global")).unwrap();
        let good = archive(&[("PG_VERSION", b"17\n"), ("global/pg_control", b"x")]);
        unpack(&good[..], &pgdata).unwrap();
        assert_eq!(fs::read(pgdata.join("PG_VERSION")).unwrap(), b"17\n");
        for evil in ["../outside", "/tmp/outside", "a/../../outside"] {
            let error = unpack(&archive(&[(evil, b"x")])[..], &pgdata).unwrap_err();
            assert!(matches!(error, PgdataError::UnsafePath(_)), "{error}");
        }
        wipe(&pgdata).unwrap();
        let error = unpack(&archive(&[("PG_VERSION", b"17\n")])[..], &pgdata).unwrap_err();
        assert!(matches!(error, PgdataError::Incomplete), "{error}");
    }

    #[test]
    fn a_truncated_archive_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("pgdata");
        wipe(&pgdata).unwrap();
        fs::create_dir(pgdata.join("global")).unwrap();
        let whole = archive(&[("PG_VERSION", b"17\n"), ("global/pg_control", &[7; 4000])]);
        for length in [0, 100, 600, 1100, 3000] {
            wipe(&pgdata).unwrap();
            fs::create_dir(pgdata.join("global")).unwrap();
            unpack(&whole[..length], &pgdata).unwrap_err();
        }
    }
}
