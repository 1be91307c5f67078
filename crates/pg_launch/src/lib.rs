//! Starting PostgreSQL programs from a built installation.
//!
//! Postgres refuses to run as root, so a caller that is root drops to a system user first. This crate knows
//! where programs and libraries are and who may run them; it does not know what they are for.

pub mod ffi;
mod install;
mod user;

use std::io;
use std::path::PathBuf;

pub use install::{PgInstall, Version, cache_dir};
pub use user::{SYSTEM_USER, SystemUser, ensure_system_user, unprivileged_user};

/// Why a PostgreSQL program cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No installation at the given place.
    #[error(
        "no PostgreSQL installation in {path}: {program} is missing or not executable (run `cargo xtask pg`)"
    )]
    NotInstalled {
        /// Root of the installation.
        path: PathBuf,
        /// The program that was looked for.
        program: String,
    },
    /// `cargo xtask pg` was never run here.
    #[error("PostgreSQL was not built yet ({pointer} is missing): run `cargo xtask pg`")]
    NeverBuilt {
        /// The file that names the newest build.
        pointer: PathBuf,
    },
    /// Running as root, and the system user does not exist.
    #[error(
        "PostgreSQL does not run as root, and the system user \"{0}\" does not exist: create it with `useradd --system {0}`"
    )]
    NoSystemUser(String),
    /// The system user could not be created.
    #[error("could not create the system user \"{user}\": {reason}")]
    CreateUser {
        /// Its name.
        user: String,
        /// What the tool said.
        reason: String,
    },
    /// The user database cannot be read.
    #[error("could not look up the system user \"{user}\"")]
    LookUpUser {
        /// Its name.
        user: String,
        /// Cause.
        #[source]
        source: nix::Error,
    },
    /// A directory on the way is closed to the system user.
    #[error(
        "the user \"{user}\" may not enter {path}: PostgreSQL runs as that user, so every directory above its data must be searchable (chmod o+x)"
    )]
    NotSearchable {
        /// The system user.
        user: String,
        /// The closed directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}
