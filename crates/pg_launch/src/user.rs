//! The system user that PostgreSQL runs as when its caller is root.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::LaunchError;

/// Name of the system user; `NEON_SYSTEM_USER` overrides it.
pub const SYSTEM_USER: &str = "neon";

/// A user without privileges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemUser {
    /// Login name.
    pub name: String,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

fn wanted_name() -> String {
    std::env::var("NEON_SYSTEM_USER").unwrap_or_else(|_| SYSTEM_USER.to_owned())
}

fn look_up(name: &str) -> Result<Option<SystemUser>, LaunchError> {
    let found = nix::unistd::User::from_name(name)
        .map_err(|source| LaunchError::LookUpUser { user: name.to_owned(), source })?;
    Ok(found.map(|user| SystemUser {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    }))
}

/// The user to drop to: `None` when this process is not root and Postgres can run as it is.
pub fn unprivileged_user() -> Result<Option<SystemUser>, LaunchError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let name = wanted_name();
    look_up(&name)?.map(Some).ok_or(LaunchError::NoSystemUser(name))
}

/// Like [`unprivileged_user`], but creates the user when it is missing.
pub fn ensure_system_user() -> Result<Option<SystemUser>, LaunchError> {
    match unprivileged_user() {
        Err(LaunchError::NoSystemUser(name)) => {
            let failed = |reason: String| LaunchError::CreateUser { user: name.clone(), reason };
            let output = Command::new("useradd")
                .args([
                    "--system",
                    "--user-group",
                    "--no-create-home",
                    "--home-dir",
                    "/nonexistent",
                ])
                .args(["--shell", "/usr/sbin/nologin", &name])
                .output()
                .map_err(|error| failed(error.to_string()))?;
            match look_up(&name)? {
                Some(user) => Ok(Some(user)),
                None => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
            }
        }
        other => other,
    }
}

impl SystemUser {
    /// Gives a file or a whole directory tree to this user. Symbolic links are given, not followed.
    pub fn give(&self, path: &Path) -> Result<(), LaunchError> {
        let failed = |action, source| LaunchError::Io { action, path: path.to_owned(), source };
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
            .map_err(|source| failed("change the owner of", source))?;
        let meta = std::fs::symlink_metadata(path).map_err(|source| failed("inspect", source))?;
        if meta.is_dir() {
            for entry in std::fs::read_dir(path).map_err(|source| failed("read", source))? {
                self.give(&entry.map_err(|source| failed("read", source))?.path())?;
            }
        }
        Ok(())
    }

    /// Checks that this user may enter every directory from the root down to `path`.
    pub fn check_searchable(&self, path: &Path) -> Result<(), LaunchError> {
        let path = path.canonicalize().map_err(|source| LaunchError::Io {
            action: "resolve",
            path: path.to_owned(),
            source,
        })?;
        for directory in path.ancestors() {
            let meta = std::fs::metadata(directory).map_err(|source| LaunchError::Io {
                action: "inspect",
                path: directory.to_owned(),
                source,
            })?;
            let bit = match (meta.uid() == self.uid, meta.gid() == self.gid) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            if meta.is_dir() && meta.mode() & bit == 0 {
                return Err(LaunchError::NotSearchable {
                    user: self.name.clone(),
                    path: directory.to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_closed_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let stranger = SystemUser { name: "stranger".into(), uid: 54_321, gid: 54_321 };
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        stranger.check_searchable(&inner).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let error = stranger.check_searchable(&inner).unwrap_err();
        assert!(matches!(error, LaunchError::NotSearchable { .. }), "{error}");
    }
}
