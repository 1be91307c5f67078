//! `neon`: the command line of an environment, and the one binary that every process of it runs.
//!
//! Data goes to standard output, progress and errors to standard error. An error is one sentence.

mod auth;
mod backup;
mod cli;
mod endpoint;
mod environment;
mod error;
mod http;
mod membership;
mod output;
mod ports;
mod process;
mod psql;
mod quorum;
mod safekeeper;
mod service_main;
mod services;
mod timeline;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use pg_types::NodeId;

use cli::{
    Cli, Command, EndpointCommand, SafekeeperCommand, TenantCommand, TimelineCommand, TokenCommand,
};
use environment::{Environment, new_description};
use error::Result;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("neon: {error}");
            error.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Pageserver(args) => return service_main::pageserver(&args.config),
        Command::Safekeeper(args) if args.command.is_none() => {
            return service_main::safekeeper(args.config.as_deref().unwrap_or(Path::new("")));
        }
        Command::Walproposer(args) => return service_main::walproposer(&args.config),
        Command::Compute(args) => return service_main::compute(&args.config),
        Command::Init(args) => return init(&cli, args),
        _ => {}
    }
    let mut environment = Environment::open(&cli.dir)?;
    match cli.command {
        Command::Start => services::start(&mut environment)?,
        Command::Stop { mode } => services::stop(&environment, mode)?,
        Command::Status => output::status(&services::status(&environment)?, cli.json)?,
        Command::Tenant(command) => tenant(&mut environment, command, cli.json)?,
        Command::Timeline(command) => timeline_command(&mut environment, command, cli.json)?,
        Command::Endpoint(command) => endpoint_command(&environment, command, cli.json)?,
        Command::Token(command) => token(&mut environment, command, cli.json)?,
        Command::Safekeeper(args) => {
            if let Some(command) = args.command {
                safekeeper_command(&mut environment, command, cli.json)?;
            }
        }
        Command::Psql { endpoint, args } => return psql::run(environment, &endpoint, &args),
        // The processes and `init` returned above.
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn init(cli: &Cli, args: &cli::InitArgs) -> Result<ExitCode> {
    let install = match &args.pg_install {
        Some(root) => pg_launch::PgInstall::new(root)?,
        None => pg_launch::PgInstall::latest_built()?,
    };
    pg_launch::ensure_system_user()?;
    let root = install.root().canonicalize().unwrap_or_else(|_| install.root().to_owned());
    let mut description = new_description(root, args.safekeepers)?;
    description.auth = args.auth;
    let environment = Environment::create(&cli.dir, description)?;
    eprintln!("made an environment in {}; start it with `neon start`", environment.dir.display());
    Ok(ExitCode::SUCCESS)
}

fn safekeeper_command(
    environment: &mut Environment,
    command: SafekeeperCommand,
    json: bool,
) -> Result<()> {
    match command {
        SafekeeperCommand::List => output::status(&safekeeper::list(environment)?, json),
        SafekeeperCommand::Status => output::parts(&safekeeper::status(environment), json),
        SafekeeperCommand::Add { count } => {
            output::added(&safekeeper::add(environment, count)?, json)
        }
        SafekeeperCommand::Remove { id } => safekeeper::remove(environment, NodeId(id)),
    }
}

fn token(environment: &mut Environment, command: TokenCommand, json: bool) -> Result<()> {
    match command {
        TokenCommand::Create { scope, tenant, expires } => {
            output::token(&auth::create(environment, scope, tenant, expires.0)?, json)
        }
        TokenCommand::Rotate => auth::rotate(environment),
        TokenCommand::Retire => auth::retire(environment),
    }
}

fn tenant(environment: &mut Environment, command: TenantCommand, json: bool) -> Result<()> {
    match command {
        TenantCommand::Create { id, set_default } => {
            let branch = timeline::create_tenant(environment, id, set_default)?;
            output::branch(&branch, json)
        }
        TenantCommand::List => output::tenants(&environment.description, json),
    }
}

fn timeline_command(
    environment: &mut Environment,
    command: TimelineCommand,
    json: bool,
) -> Result<()> {
    match command {
        TimelineCommand::Create { name, tenant } => {
            output::branch(&timeline::create(environment, tenant, &name)?, json)
        }
        TimelineCommand::Branch { name, from, lsn, tenant } => {
            output::branch(&timeline::branch(environment, tenant, &name, &from, lsn)?, json)
        }
        TimelineCommand::List { tenant } => {
            output::timelines(&timeline::list(environment, tenant), json)
        }
        TimelineCommand::Backup { name, lsn, output, tenant } => {
            backup::run(environment, tenant, &name, lsn, &output)
        }
        TimelineCommand::Delete { name, tenant } => timeline::delete(environment, tenant, &name),
    }
}

fn endpoint_command(environment: &Environment, command: EndpointCommand, json: bool) -> Result<()> {
    match command {
        EndpointCommand::Create { name, branch, tenant, port, settings } => {
            let endpoint =
                endpoint::create(environment, &name, (tenant, &branch), port, &settings)?;
            output::endpoint(&endpoint, json)
        }
        EndpointCommand::Start { name, timings } => {
            let status = endpoint::start(environment, &name)?;
            output::started(&environment.endpoint(&name)?, &status, timings, json)
        }
        EndpointCommand::Stop { name, mode } => endpoint::stop(environment, &name, mode),
        EndpointCommand::Delete { name } => endpoint::delete(environment, &name),
        EndpointCommand::List => {
            let rows = environment
                .endpoints()?
                .iter()
                .map(|definition| endpoint::status_row(environment, definition))
                .collect::<Result<Vec<_>>>()?;
            output::status(&rows, json)
        }
    }
}
