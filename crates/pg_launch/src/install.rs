//! An installation of PostgreSQL.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{LaunchError, SystemUser};

/// Major version of PostgreSQL, e.g. 17.
pub type Version = u32;

/// Where a built PostgreSQL lives: `bin/`, `lib/`, `share/` below one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgInstall {
    root: PathBuf,
}

impl PgInstall {
    /// The installation below `root`; an error when there is no executable `bin/postgres`.
    pub fn new(root: impl Into<PathBuf>) -> Result<PgInstall, LaunchError> {
        let install = PgInstall { root: root.into() };
        let executable = std::fs::metadata(install.program("postgres"))
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if executable {
            Ok(install)
        } else {
            Err(LaunchError::NotInstalled {
                path: install.root,
                program: "bin/postgres".to_owned(),
            })
        }
    }

    /// The patched installation that `cargo xtask pg` finished last: its root is the contents of
    /// `current-install` in the [cache directory](cache_dir).
    pub fn latest_built() -> Result<PgInstall, LaunchError> {
        let pointer = cache_dir().join("current-install");
        let missing = || LaunchError::NeverBuilt { pointer: pointer.clone() };
        let root = std::fs::read_to_string(&pointer).map_err(|_| missing())?;
        PgInstall::new(root.trim())
    }

    /// Root of the installation.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of the programs.
    pub fn bin_dir(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Directory of the client libraries.
    pub fn lib_dir(&self) -> PathBuf {
        self.root.join("lib")
    }

    /// Path of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir().join(name)
    }

    /// A command that runs `program` with an environment that holds the library path alone, as `user` when
    /// given, with no descriptors but 0, 1 and 2. `LANG`/`LC_ALL` are left out, so programs speak plain English.
    pub fn command(&self, program: &str, user: Option<&SystemUser>) -> Command {
        let mut command = Command::new(self.program(program));
        command.env_clear();
        command.env("LD_LIBRARY_PATH", self.lib_dir());
        command.env("DYLD_LIBRARY_PATH", self.lib_dir());
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        crate::ffi::close_inherited_descriptors(&mut command);
        command
    }
}

/// Where builds of PostgreSQL are kept: `NEON_CACHE_DIR`, else a place that outlives a clone of this project
/// and, for root, is open to the user that Postgres runs as.
pub fn cache_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("NEON_CACHE_DIR") {
        return dir.into();
    }
    if nix::unistd::geteuid().is_root() {
        return "/var/cache/neon".into();
    }
    match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir).join("neon"),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/neon"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_installation_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = PgInstall::new(dir.path()).unwrap_err();
        assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
        assert!(error.to_string().contains("cargo xtask pg"), "{error}");
    }
}
