//! `neon timeline backup`: a full backup as a tar archive.

use std::fs::{self, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use pg_types::{Lsn, TenantId};
use pg_wire::client::{Client, ClientError, ConnectParams, Endpoint};

use crate::environment::Environment;
use crate::error::{CliError, IoContext, Result, with_causes};
use crate::quorum::committed_lsn;

/// The page server may have to wait for WAL, and reads every page.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// Writes the backup of a branch at a position into a new file. A backup that broke off leaves no file.
pub fn run(
    environment: &Environment,
    tenant: Option<TenantId>,
    name: &str,
    lsn: Option<Lsn>,
    output: &Path,
) -> Result<()> {
    let branch = environment.branch(tenant, name)?.clone();
    let lsn = match lsn {
        Some(lsn) => lsn,
        None => committed_lsn(environment, &branch)?,
    };
    let file = OpenOptions::new().write(true).create_new(true).open(output);
    let mut file = BufWriter::new(file.doing("create", output)?);
    let port = environment.description.pageserver.pg_port;
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port };
    let mut params = ConnectParams::new(endpoint, compute_ctl::SUPERUSER)
        .param("application_name", "neon")
        .read_timeout(Some(READ_TIMEOUT));
    if let Some(token) = environment.own_token() {
        params = params.password(token);
    }
    let query = format!("fullbackup {} {} {lsn}", branch.tenant_id, branch.timeline_id);
    crate::services::progress(&format!("writing the backup of \"{name}\" at {lsn}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.doing("start a runtime for", output).and_then(|runtime| {
        runtime.block_on(fetch(params, &query, &mut file, output))?;
        file.flush().doing("write", output)?;
        file.get_ref().sync_all().doing("flush", output)
    });
    if result.is_err() {
        // The first error is the one worth telling.
        let _ = fs::remove_file(output);
    }
    result
}

async fn fetch(
    params: ConnectParams,
    query: &str,
    file: &mut impl Write,
    path: &Path,
) -> Result<()> {
    let failed = |error: ClientError| {
        CliError::failed(format!("the page server gave no backup: {}", with_causes(&error)))
    };
    let mut client = Client::connect(&params).await.map_err(failed)?;
    let mut stream = client.copy_out(query).await.map_err(failed)?;
    while let Some(chunk) = stream.next().await.map_err(failed)? {
        file.write_all(&chunk).doing("write", path)?;
    }
    Ok(())
}
