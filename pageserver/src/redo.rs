//! What redo needs to know of this server's settings.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use pg_launch::{LaunchError, PgInstall};
use walredo_sidecar::{WalRedoConfig, WalRedoEnv};

use crate::config::Config;

/// Why redo, and with it the server, cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum RedoSetupError {
    /// A key of `pg_install_dirs` is no version.
    #[error("\"{0}\" in pg_install_dirs is no major version of PostgreSQL")]
    Version(String),
    /// An installation is not there, or may not be used.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// What the redo managers of all tenants share. Starts nothing; `work_dir` is for temporary things.
pub(crate) fn environment(
    config: &Config,
    work_dir: &Path,
) -> Result<Arc<WalRedoEnv>, RedoSetupError> {
    let mut installs = BTreeMap::new();
    for (version, root) in &config.pg_install_dirs {
        let number = version.parse().map_err(|_| RedoSetupError::Version(version.clone()))?;
        installs.insert(number, PgInstall::new(root.clone())?);
    }
    Ok(Arc::new(WalRedoEnv::new(WalRedoConfig {
        installs,
        user: pg_launch::unprivileged_user()?,
        work_dir: work_dir.to_owned(),
        wal_redo_timeout: config.wal_redo_timeout,
        pool_size: NonZeroUsize::new(config.wal_redo_processes).unwrap_or(NonZeroUsize::MIN),
    })))
}
