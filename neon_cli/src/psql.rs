//! `neon psql`: the installation's own psql on an endpoint.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::environment::Environment;
use crate::error::{CliError, Result};
use crate::output::connection_uri;

/// Replaces this process by psql.
pub fn run(environment: Environment, endpoint: &str, args: &[String]) -> Result<ExitCode> {
    let endpoint = environment.endpoint(endpoint)?;
    let install = pg_launch::PgInstall::new(&environment.description.pg_install)?;
    // The lock must not be held while somebody sits at the prompt.
    drop(environment);
    let error = Command::new(install.program("psql"))
        .env("LD_LIBRARY_PATH", install.lib_dir())
        .arg(connection_uri(&endpoint))
        .args(args)
        .exec();
    Err(CliError::failed(format!("could not start psql: {error}")))
}
