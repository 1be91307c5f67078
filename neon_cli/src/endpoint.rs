//! Endpoints: a compute process each, which supervises a PostgreSQL without data of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use compute_ctl::{ComputeState, ComputeStatus};
use nix::sys::signal::Signal;
use pg_types::TimelineId;

use crate::cli::StopMode;
use crate::environment::{Endpoint, Environment, check_name, write_secret_toml, write_toml};
use crate::error::{CliError, IoContext, Result};
use crate::ports::{check_free, free_ports};
use crate::process::Service;
use crate::services::{StatusRow, progress};

/// How long a compute may take from its start to the first connection.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long a shutdown checkpoint and its way to the safekeepers may take before the compute is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// Whether a compute of this branch runs.
pub fn any_runs_on(environment: &Environment, timeline_id: TimelineId) -> Result<bool> {
    for endpoint in environment.endpoints()? {
        if endpoint.timeline_id == timeline_id
            && service(environment, &endpoint.name).running_pid()?.is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether its compute runs.
pub fn is_running(environment: &Environment, endpoint: &Endpoint) -> Result<bool> {
    Ok(service(environment, &endpoint.name).running_pid()?.is_some())
}

fn service(environment: &Environment, name: &str) -> Service {
    let dir = environment.endpoint_dir(name);
    Service::in_dir(format!("endpoint \"{name}\""), &dir, "compute")
}

/// Defines an endpoint.
pub fn create(
    environment: &Environment,
    name: &str,
    (tenant, branch): (Option<pg_types::TenantId>, &str),
    port: Option<u16>,
    settings: &[String],
) -> Result<Endpoint> {
    check_name("an endpoint", name)?;
    let branch = environment.branch(tenant, branch)?;
    let dir = environment.endpoint_dir(name);
    if dir.join("endpoint.toml").exists() {
        return Err(CliError::conflict(format!("there is already an endpoint \"{name}\"")));
    }
    let port = match port {
        Some(port) => port,
        None => free_ports(1)?.first().copied().unwrap_or_default(),
    };
    let endpoint = Endpoint {
        name: name.to_owned(),
        tenant_id: branch.tenant_id,
        timeline_id: branch.timeline_id,
        branch: branch.name.clone(),
        port,
        settings: parse_settings(settings)?,
    };
    fs::create_dir_all(&dir).doing("create", &dir)?;
    write_toml(&dir.join("endpoint.toml"), &endpoint)?;
    Ok(endpoint)
}

fn parse_settings(settings: &[String]) -> Result<BTreeMap<String, String>> {
    let parse = |text: &String| {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            CliError::failed(format!("\"{text}\" is not a setting: write NAME=VALUE"))
        })?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    settings.iter().map(parse).collect()
}

/// Starts an endpoint and waits until it takes connections.
pub fn start(environment: &Environment, name: &str) -> Result<ComputeStatus> {
    let endpoint = environment.endpoint(name)?;
    let service = service(environment, name);
    if service.running_pid()?.is_some() {
        return Err(service.already_running());
    }
    let branch = environment.branch(Some(endpoint.tenant_id), &endpoint.branch)?;
    if !branch.ready {
        return Err(CliError::not_ready(format!(
            "branch \"{}\" is not finished: run `neon start`",
            branch.name
        )));
    }
    let busy = environment.endpoints()?.into_iter().find(|other| {
        other.name != name
            && other.timeline_id == endpoint.timeline_id
            && self::service(environment, &other.name).running_pid().is_ok_and(|pid| pid.is_some())
    });
    if let Some(other) = busy {
        return Err(CliError::conflict(format!(
            "endpoint \"{}\" already runs on branch \"{}\": one endpoint writes a branch at a time",
            other.name, endpoint.branch
        )));
    }
    compute_ctl::end_orphan(&compute_config(environment, &endpoint).pgdata);
    check_free(endpoint.port, &service.name)?;
    let config_path = write_config(environment, &endpoint)?;
    let status_file = compute_config(environment, &endpoint).status_file;
    match fs::remove_file(&status_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).doing("remove", &status_file);
        }
        _ => {}
    }
    progress(&format!("starting {}", service.name));
    service.spawn("compute", &config_path)?.wait_ready(START_PATIENCE, || {
        let status = ComputeStatus::read(&status_file).ok().flatten();
        Ok(status.filter(|status| status.state == ComputeState::Running))
    })
}

/// Where the configuration of an endpoint's compute is, once it was started.
pub fn config_path(environment: &Environment, name: &str) -> PathBuf {
    environment.endpoint_dir(name).join("compute.toml")
}

fn write_config(environment: &Environment, endpoint: &Endpoint) -> Result<PathBuf> {
    let path = config_path(environment, &endpoint.name);
    let mut config = compute_config(environment, endpoint);
    if let Some(signer) = &environment.signer {
        config.auth_token = Some(signer.tenant_token(endpoint.tenant_id)?);
    }
    write_secret_toml(&path, &config)?;
    Ok(path)
}

/// All but its token, which is made when it is written.
fn compute_config(environment: &Environment, endpoint: &Endpoint) -> compute_ctl::Config {
    let dir = environment.endpoint_dir(&endpoint.name);
    let description = &environment.description;
    let branch = description.branches.iter().find(|b| b.timeline_id == endpoint.timeline_id);
    let members = branch.map(|branch| environment.safekeepers_of(branch)).unwrap_or_default();
    let members = members.into_iter();
    compute_ctl::Config {
        endpoint_id: endpoint.name.clone(),
        tenant_id: endpoint.tenant_id,
        timeline_id: endpoint.timeline_id,
        pg_install: description.pg_install.clone(),
        pgdata: dir.join("pgdata"),
        status_file: dir.join("status.json"),
        postgres_log: dir.join("postgres.log"),
        port: endpoint.port,
        pageserver: format!("127.0.0.1:{}", description.pageserver.pg_port),
        auth_token: None,
        safekeepers: members
            .map(|node| compute_ctl::SafekeeperAddress { id: node.id, address: node.address() })
            .collect(),
        safekeeper_protocol: Default::default(),
        settings: endpoint.settings.clone(),
    }
}

/// Tells the computes of a branch that run which safekeepers it has, in case their walproposers have to start again when
/// nobody that they knew is a member any more.
pub fn update_safekeepers(environment: &Environment, timeline_id: TimelineId) -> Result<()> {
    for endpoint in environment.endpoints()? {
        if endpoint.timeline_id == timeline_id
            && service(environment, &endpoint.name).running_pid()?.is_some()
        {
            let config = compute_config(environment, &endpoint);
            let dir = environment.endpoint_dir(&endpoint.name);
            compute_ctl::update_safekeepers(&config)
                .doing("update the walproposer's file in", &dir)?;
        }
    }
    Ok(())
}

/// Stops an endpoint that runs.
pub fn stop(environment: &Environment, name: &str, mode: StopMode) -> Result<()> {
    let endpoint = environment.endpoint(name)?;
    if stop_if_running(environment, &endpoint, mode)? {
        Ok(())
    } else {
        Err(CliError::not_ready(format!("endpoint \"{name}\" is not running")))
    }
}

/// Stops an endpoint if it runs; says whether it did.
pub fn stop_if_running(
    environment: &Environment,
    endpoint: &Endpoint,
    mode: StopMode,
) -> Result<bool> {
    let signal = match mode {
        StopMode::Fast => Signal::SIGTERM,
        StopMode::Immediate => Signal::SIGKILL,
    };
    let stopped = service(environment, &endpoint.name).stop(signal, STOP_PATIENCE)?;
    compute_ctl::end_orphan(&compute_config(environment, endpoint).pgdata);
    Ok(stopped)
}

/// Deletes an endpoint's definition and its local files; its data is in the storage.
pub fn delete(environment: &Environment, name: &str) -> Result<()> {
    let endpoint = environment.endpoint(name)?;
    stop_if_running(environment, &endpoint, StopMode::Fast)?;
    let dir = environment.endpoint_dir(name);
    fs::remove_dir_all(&dir).doing("remove", &dir)
}

/// One row of `neon status` and `neon endpoint list`.
pub fn status_row(environment: &Environment, endpoint: &Endpoint) -> Result<StatusRow> {
    let pid = service(environment, &endpoint.name).running_pid()?;
    let status_file = compute_config(environment, endpoint).status_file;
    let status = ComputeStatus::read(&status_file).ok().flatten();
    let state = match (pid, status.map(|status| status.state)) {
        (None, _) => "stopped",
        (Some(_), Some(ComputeState::Running)) => "running",
        (Some(_), _) => "starting",
    };
    Ok(StatusRow {
        name: format!("endpoint {} (branch {})", endpoint.name, endpoint.branch),
        state,
        pid,
        ports: vec![endpoint.port],
    })
}
