//! Page server and safekeepers: starting, stopping, status.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Serialize;
use toml::{Table, Value};

use crate::cli::StopMode;
use crate::endpoint;
use crate::environment::{Environment, SafekeeperNode, write_toml};
use crate::error::{IoContext, Result};
use crate::http::Api;
use crate::membership;
use crate::ports::check_free;
use crate::process::Service;
use crate::safekeeper;
use crate::timeline;

/// How long a service may take to answer after its start; recovery reads every timeline's files.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a service may take to flush and stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// One row of `neon status`.
#[derive(Debug, Serialize)]
pub struct StatusRow {
    pub name: String,
    pub state: &'static str,
    pub pid: Option<u32>,
    pub ports: Vec<u16>,
}

/// The page server's process.
pub fn pageserver_service(environment: &Environment) -> Service {
    Service::in_dir("page server", &environment.pageserver_dir(), "pageserver")
}

/// The page server's HTTP API.
pub fn pageserver_api(environment: &Environment) -> Api {
    let port = environment.description.pageserver.http_port;
    Api::local("page server", port, environment.own_token())
}

/// A safekeeper's process.
pub fn safekeeper_service(environment: &Environment, node: &SafekeeperNode) -> Service {
    Service::in_dir(
        format!("safekeeper {}", node.id),
        &environment.safekeeper_dir(node.id),
        "safekeeper",
    )
}

/// How long a safekeeper may take for anything but a copy: a minority of them may have stopped, and nobody is to wait long
/// for that.
const SAFEKEEPER_TIMEOUT: Duration = Duration::from_secs(5);

/// A safekeeper's HTTP API.
pub fn safekeeper_api(environment: &Environment, node: &SafekeeperNode) -> Api {
    let name = format!("safekeeper {}", node.id);
    Api::local(name, node.http_port, environment.own_token()).within(SAFEKEEPER_TIMEOUT)
}

/// Starts everything that does not run yet, then finishes what an earlier command left half done.
pub fn start(environment: &mut Environment) -> Result<()> {
    let mut started = 0;
    for node in environment.description.safekeepers.clone() {
        started += u32::from(start_safekeeper(environment, &node)?);
    }
    started += u32::from(start_pageserver(environment)?);
    timeline::finish_unready(environment)?;
    if started > 0 || membership::is_unsettled(environment) {
        membership::settle_all(environment)?;
    }
    safekeeper::finish_removals(environment)?;
    if started == 0 {
        return Err(crate::error::CliError::conflict("all services are already running"));
    }
    Ok(())
}

fn start_pageserver(environment: &Environment) -> Result<bool> {
    let service = pageserver_service(environment);
    if service.running_pid()?.is_some() {
        return Ok(false);
    }
    let node = &environment.description.pageserver;
    check_free(node.pg_port, &service.name)?;
    check_free(node.http_port, &service.name)?;
    let dir = environment.pageserver_dir();
    let mut installs = Table::new();
    installs.insert("17".to_owned(), path_value(&environment.description.pg_install));
    let config = config_file(
        environment,
        &dir,
        "pageserver.toml",
        [
            ("listen_pg_addr", Value::String(format!("127.0.0.1:{}", node.pg_port))),
            ("listen_http_addr", Value::String(format!("127.0.0.1:{}", node.http_port))),
            ("data_dir", path_value(&dir.join("data"))),
            ("pg_install_dirs", Value::Table(installs)),
        ],
    )?;
    progress("starting the page server");
    let api = pageserver_api(environment);
    service
        .spawn("pageserver", &config)?
        .wait_ready(START_PATIENCE, || Ok(api.is_up().then_some(())))?;
    Ok(true)
}

/// Starts a safekeeper; says whether it was not running.
pub fn start_safekeeper(environment: &Environment, node: &SafekeeperNode) -> Result<bool> {
    let service = safekeeper_service(environment, node);
    if service.running_pid()?.is_some() {
        return Ok(false);
    }
    check_free(node.pg_port, &service.name)?;
    check_free(node.http_port, &service.name)?;
    let dir = environment.safekeeper_dir(node.id);
    let id = i64::try_from(node.id.0).unwrap_or(i64::MAX);
    let config = config_file(
        environment,
        &dir,
        "safekeeper.toml",
        [
            ("id", Value::Integer(id)),
            ("listen_pg_addr", Value::String(format!("127.0.0.1:{}", node.pg_port))),
            ("listen_http_addr", Value::String(format!("127.0.0.1:{}", node.http_port))),
            ("data_dir", path_value(&dir.join("data"))),
        ],
    )?;
    progress(&format!("starting safekeeper {}", node.id));
    let api = safekeeper_api(environment, node);
    service
        .spawn("safekeeper", &config)?
        .wait_ready(START_PATIENCE, || Ok(api.is_up().then_some(())))?;
    Ok(true)
}

/// Stops the endpoints, then the page server, then the safekeepers.
pub fn stop(environment: &Environment, mode: StopMode) -> Result<()> {
    for definition in environment.endpoints()? {
        endpoint::stop_if_running(environment, &definition, mode)?;
    }
    let signal = match mode {
        StopMode::Fast => Signal::SIGTERM,
        StopMode::Immediate => Signal::SIGKILL,
    };
    pageserver_service(environment).stop(signal, STOP_PATIENCE)?;
    for node in &environment.description.safekeepers {
        safekeeper_service(environment, node).stop(signal, STOP_PATIENCE)?;
    }
    Ok(())
}

/// What runs and what does not.
pub fn status(environment: &Environment) -> Result<Vec<StatusRow>> {
    let node = &environment.description.pageserver;
    let mut rows = vec![status_row(
        &pageserver_service(environment),
        &pageserver_api(environment),
        vec![node.pg_port, node.http_port],
    )?];
    for node in &environment.description.safekeepers {
        rows.push(safekeeper_row(environment, node)?);
    }
    for definition in environment.endpoints()? {
        rows.push(endpoint::status_row(environment, &definition)?);
    }
    Ok(rows)
}

/// A safekeeper's row.
pub fn safekeeper_row(environment: &Environment, node: &SafekeeperNode) -> Result<StatusRow> {
    let service = safekeeper_service(environment, node);
    status_row(&service, &safekeeper_api(environment, node), vec![node.pg_port, node.http_port])
}

fn status_row(service: &Service, api: &Api, ports: Vec<u16>) -> Result<StatusRow> {
    let pid = service.running_pid()?;
    let state = match pid {
        None => "stopped",
        Some(_) if api.is_up() => "running",
        Some(_) => "not answering",
    };
    Ok(StatusRow { name: service.name.clone(), state, pid, ports })
}

/// Writes a service's configuration. It is made anew at each start from `neon.toml`; settings of the user's own
/// go into `NAME.override.toml` beside it, which wins.
fn config_file<const N: usize>(
    environment: &Environment,
    dir: &Path,
    name: &str,
    entries: [(&str, Value); N],
) -> Result<std::path::PathBuf> {
    fs::create_dir_all(dir).doing("create", dir)?;
    let mut table: Table =
        entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    if let Some(signer) = &environment.signer {
        let keys = signer.prepare_service(dir)?.map(|(key, value)| (key.to_owned(), value));
        table.extend(keys);
    }
    let overrides = dir.join(name).with_extension("override.toml");
    if overrides.exists() {
        table.extend(crate::environment::read_toml::<Table>(&overrides)?);
    }
    let path = dir.join(name);
    write_toml(&path, &table)?;
    Ok(path)
}

/// A path as a setting.
pub fn path_value(path: &Path) -> Value {
    Value::String(path.to_string_lossy().into_owned())
}

/// One line on standard error for a step that takes longer than a moment.
pub fn progress(step: &str) {
    eprintln!("{step} ...");
}
