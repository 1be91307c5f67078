//! The command line's grammar. What the commands do is elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pg_types::{Lsn, TenantId};

/// PostgreSQL 17 with storage separated from compute: one command line for a local environment.
///
/// An environment is a directory (`.neon` by default) that holds a page server, safekeepers and compute
/// endpoints. `neon init` makes one, `neon start` starts its services, `neon endpoint start` starts a
/// PostgreSQL on a branch. Everything can be stopped, killed and started again.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 exists or conflicts, 6 timed out or not running.
#[derive(Debug, Parser)]
#[command(name = "neon", version, max_term_width = 100)]
pub struct Cli {
    /// Directory of the environment.
    #[arg(long, global = true, env = "NEON_DIR", default_value = ".neon")]
    pub dir: PathBuf,
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new environment.
    Init(InitArgs),
    /// Start the page server and the safekeepers.
    Start,
    /// Stop all endpoints and services.
    Stop {
        /// fast: finish what is under way; immediate: kill.
        #[arg(long, value_enum, default_value_t = StopMode::Fast)]
        mode: StopMode,
    },
    /// Show what runs.
    Status,
    /// Tenants: each is one PostgreSQL cluster with all its branches.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Timelines: the branches of a tenant.
    #[command(subcommand)]
    Timeline(TimelineCommand),
    /// Endpoints: PostgreSQL servers without data of their own, each on one branch.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Tokens: what the services accept in an environment made with `--auth`.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Open psql on an endpoint.
    Psql {
        /// Name of the endpoint.
        #[arg(default_value = "main")]
        endpoint: String,
        /// Further arguments for psql.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run a page server in the foreground.
    #[command(hide = true)]
    Pageserver(ServiceArgs),
    /// Safekeepers: keep the WAL; a commit is on a majority of them.
    Safekeeper(SafekeeperArgs),
    /// Run a walproposer in the foreground.
    #[command(hide = true)]
    Walproposer(ServiceArgs),
    /// Run a compute (PostgreSQL and its walproposer) in the foreground.
    #[command(hide = true)]
    Compute(ServiceArgs),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Built PostgreSQL (default: what `cargo xtask pg` built last).
    #[arg(long, env = "NEON_PG_INSTALL")]
    pub pg_install: Option<PathBuf>,
    /// Number of safekeepers: a commit is on a majority of them. An odd number, since one more than that adds no safety.
    #[arg(long, default_value = "1", value_parser = safekeeper_count)]
    pub safekeepers: u16,
    /// Make a key, and let the page server and the safekeepers serve nobody without a token.
    #[arg(long)]
    pub auth: bool,
}

/// Most safekeepers of an environment.
const SAFEKEEPERS_MAX: u16 = 9;

fn safekeeper_count(text: &str) -> Result<u16, String> {
    let number: u16 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number % 2 == 1 && number <= SAFEKEEPERS_MAX {
        Ok(number)
    } else {
        Err(format!("must be an odd number up to {SAFEKEEPERS_MAX}"))
    }
}

#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// Configuration file.
    #[arg(short, long)]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct SafekeeperArgs {
    #[command(subcommand)]
    pub command: Option<SafekeeperCommand>,
    /// Run a safekeeper in the foreground, with this configuration file.
    #[arg(short, long, hide = true)]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum SafekeeperCommand {
    /// List the safekeepers.
    List,
    /// Show where each safekeeper stands in each branch.
    Status,
    /// Add safekeepers and bring every branch to them, while computes run.
    Add {
        /// How many.
        #[arg(long, default_value = "1", value_parser = clap::value_parser!(u16).range(1..=8))]
        count: u16,
    },
    /// Take every branch from a safekeeper, while computes run, and remove it. It may be down.
    Remove {
        /// Its number.
        id: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StopMode {
    Fast,
    Immediate,
}

#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Create a tenant with a branch `main`.
    Create {
        /// Its id (default: random).
        #[arg(long)]
        id: Option<TenantId>,
        /// Use it where a command names no tenant.
        #[arg(long)]
        set_default: bool,
    },
    /// List tenants.
    List,
}

#[derive(Debug, Subcommand)]
pub enum TimelineCommand {
    /// Create an empty branch (a new PostgreSQL cluster).
    Create {
        /// Name of the branch.
        name: String,
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Branch off another branch.
    Branch {
        /// Name of the new branch.
        name: String,
        /// Branch to start from.
        #[arg(long, default_value = "main")]
        from: String,
        /// Position to start from (default: the newest).
        #[arg(long)]
        lsn: Option<Lsn>,
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// List branches.
    List {
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Write a data directory that a stock PostgreSQL 17 starts on, as a tar archive.
    Backup {
        /// Name of the branch.
        name: String,
        /// Position (default: the newest).
        #[arg(long)]
        lsn: Option<Lsn>,
        /// The archive; must not exist yet.
        #[arg(long)]
        output: PathBuf,
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Delete a branch.
    Delete {
        /// Name of the branch.
        name: String,
        #[arg(long)]
        tenant: Option<TenantId>,
    },
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a new token.
    Create {
        /// What it allows.
        #[arg(long, value_enum)]
        scope: ScopeName,
        /// Whose token it is (default: the default tenant's); for scope tenant alone.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// How long it is valid, as in 30min, 1h or 7d; or "never".
        #[arg(long, default_value = "1h", value_parser = expires)]
        expires: Expires,
    },
    /// Make a new key. Tokens of the older ones are accepted until `retire`.
    Rotate,
    /// Stop accepting tokens of older keys. Endpoints that were started before `rotate` must be started again first.
    Retire,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScopeName {
    /// WAL and pages of one tenant: for a compute.
    Tenant,
    /// Pages of all tenants, and the page server's API.
    Pageserverapi,
    /// WAL of all tenants, and the safekeepers' API.
    Safekeeperdata,
    /// Everything.
    Admin,
}

/// How long a token is valid; `None`: as long as its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expires(pub Option<Duration>);

fn expires(text: &str) -> Result<Expires, String> {
    if text == "never" {
        return Ok(Expires(None));
    }
    match humantime::parse_duration(text) {
        Ok(after) if !after.is_zero() => Ok(Expires(Some(after))),
        _ => Err("expected a duration such as 1h, or \"never\"".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// Define an endpoint on a branch.
    Create {
        /// Name of the endpoint.
        name: String,
        #[arg(long, default_value = "main")]
        branch: String,
        #[arg(long)]
        tenant: Option<TenantId>,
        /// TCP port (default: a free one).
        #[arg(long)]
        port: Option<u16>,
        /// A PostgreSQL setting, as in `--set shared_buffers=256MB`.
        #[arg(long = "set", value_name = "NAME=VALUE")]
        settings: Vec<String>,
    },
    /// Start an endpoint.
    Start {
        name: String,
        /// Show how long each phase took.
        #[arg(long)]
        timings: bool,
    },
    /// Stop an endpoint.
    Stop {
        name: String,
        #[arg(long, value_enum, default_value_t = StopMode::Fast)]
        mode: StopMode,
    },
    /// Forget an endpoint and delete its local files; no data is lost.
    Delete { name: String },
    /// List endpoints.
    List,
}
