//! An environment of real processes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pg_launch::PgInstall;
use postgres::{Client, NoTls};

/// Superuser of every cluster.
pub const SUPERUSER: &str = "cloud_admin";
/// Deadline of every wait: only a hang reaches it.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Place {
    /// The `neon` binary.
    pub neon: PathBuf,
    /// Patched PostgreSQL with our extensions.
    pub install: PgInstall,
}

impl Place {
    /// From `NEON_BIN` and `NEON_PG_INSTALL`.
    pub fn from_env() -> Result<Place> {
        let neon = std::env::var_os("NEON_BIN").context(
            "NEON_BIN is not set: run the system tests with `cargo xtask test`, which builds what they need",
        )?;
        Ok(Place { neon: neon.into(), install: install_from_env("NEON_PG_INSTALL")? })
    }
}

/// An installation named by a variable.
pub fn install_from_env(variable: &str) -> Result<PgInstall> {
    let root = std::env::var_os(variable).with_context(|| {
        format!(
            "{variable} is not set: run the system tests with `cargo xtask test`, which sets it"
        )
    })?;
    Ok(PgInstall::new(PathBuf::from(root))?)
}

/// A temporary directory that the user PostgreSQL runs as can enter.
pub fn open_tempdir(prefix: &str) -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir()?;
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

/// A running environment; stopped when dropped.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    dir: PathBuf,
    keep: bool,
    _temp: Option<tempfile::TempDir>,
}

/// An endpoint of a cluster.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Its TCP port.
    pub port: u16,
}

impl Cluster {
    /// A new environment in a temporary directory, with its services running.
    pub fn start(place: Place) -> Result<Cluster> {
        Cluster::start_with(place, &[])
    }

    /// The same with further arguments for `neon init`.
    pub fn start_with(place: Place, init: &[&str]) -> Result<Cluster> {
        let temp = open_tempdir("neon-test-")?;
        let dir = temp.path().join("env");
        let cluster = Cluster { place, dir, keep: false, _temp: Some(temp) };
        cluster.init_and_start(init)?;
        Ok(cluster)
    }

    /// A new environment in a directory of the caller's, which must not hold one yet.
    pub fn start_in(place: Place, dir: PathBuf, keep: bool) -> Result<Cluster> {
        let cluster = Cluster { place, dir, keep, _temp: None };
        cluster.init_and_start(&[])?;
        Ok(cluster)
    }

    fn init_and_start(&self, init: &[&str]) -> Result<()> {
        let install = self.place.install.root().to_string_lossy().into_owned();
        let mut args = vec!["init", "--pg-install", &install];
        args.extend_from_slice(init);
        self.neon(&args)?;
        self.neon(&["start"])?;
        Ok(())
    }

    /// Directory of the environment.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The programs in use.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Leaves everything running when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Runs a command to its end, whatever that is.
    pub fn try_neon(&self, args: &[&str]) -> Result<Output> {
        Command::new(&self.place.neon)
            .arg("--dir")
            .arg(&self.dir)
            .args(args)
            .output()
            .with_context(|| format!("could not run {}", self.place.neon.display()))
    }

    /// Runs a command that must succeed; its standard output.
    pub fn neon(&self, args: &[&str]) -> Result<String> {
        let output = self.try_neon(args)?;
        ensure!(
            output.status.success(),
            "`neon {}` failed ({}): {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Defines an endpoint and starts it.
    pub fn endpoint(
        &self,
        name: &str,
        branch: &str,
        settings: &[(&str, &str)],
    ) -> Result<Endpoint> {
        let pairs: Vec<String> =
            settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut args = vec!["--json", "endpoint", "create", name, "--branch", branch];
        for pair in &pairs {
            args.extend(["--set", pair]);
        }
        let created: serde_json::Value = serde_json::from_str(&self.neon(&args)?)?;
        let port = created["port"].as_u64().context("an endpoint without a port")?;
        let endpoint = Endpoint { name: name.to_owned(), port: u16::try_from(port)? };
        self.start_endpoint(&endpoint)?;
        Ok(endpoint)
    }

    /// Starts an endpoint that is stopped.
    pub fn start_endpoint(&self, endpoint: &Endpoint) -> Result<()> {
        self.neon(&["endpoint", "start", &endpoint.name]).map(drop)
    }

    /// Stops an endpoint.
    pub fn stop_endpoint(&self, endpoint: &Endpoint, mode: &str) -> Result<()> {
        self.neon(&["endpoint", "stop", &endpoint.name, "--mode", mode]).map(drop)
    }

    /// Directory of an endpoint's files.
    pub fn endpoint_dir(&self, endpoint: &Endpoint) -> PathBuf {
        self.dir.join("endpoints").join(&endpoint.name)
    }

    /// Process id in a pid file below the environment's directory.
    pub fn pid(&self, pid_file: &str) -> Result<u32> {
        let path = self.dir.join(pid_file);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("could not read {}", path.display()))?;
        let first = text.lines().next().unwrap_or_default();
        first.trim().parse().with_context(|| format!("{} holds no pid", path.display()))
    }

    /// Prints the ends of all logs, for a test that fails.
    pub fn print_logs(&self) {
        eprintln!("logs of the failed test:");
        let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries(self.dir.clone()) {
            for log in ["pageserver.log", "safekeeper.log"] {
                print_tail(&entry.path().join(log));
            }
        }
        for entry in entries(self.dir.join("endpoints")) {
            print_tail(&entry.path().join("compute.log"));
            print_tail(&entry.path().join("postgres.log"));
        }
    }

    /// Kills a process with SIGKILL and waits until it is gone.
    pub fn kill(&self, pid_file: &str) -> Result<()> {
        let pid = self.pid(pid_file)?;
        kill_and_wait(pid)
    }
}

/// Sends SIGKILL and waits until the process is gone (or a zombie of somebody else's).
pub fn kill_and_wait(pid: u32) -> Result<()> {
    signal_and_wait(pid, Signal::SIGKILL)
}

/// Sends a signal that ends a process and waits until it is gone (or a zombie of somebody else's).
pub fn signal_and_wait(pid: u32, signal: Signal) -> Result<()> {
    let raw = Pid::from_raw(i32::try_from(pid)?);
    match kill(raw, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => bail!("could not send {signal} to {pid}: {error}"),
    }
    wait_until("a process that was told to end is gone", || Ok(has_ended(pid)))
}

/// Whether a process is gone (or a zombie of somebody else's).
pub fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"));
    // The first thread is a zombie while others still end, and hold what the process had open.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.is_empty() || (zombie && threads <= 1)
}

/// Waits for a condition.
pub fn wait_until(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_until_every(Duration::from_millis(20), what, condition)
}

/// Waits for a condition and looks at it this often.
pub fn wait_until_every(
    pause: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !condition()? {
        ensure!(Instant::now() < deadline, "waited {} s for: {what}", DEADLINE.as_secs());
        std::thread::sleep(pause);
    }
    Ok(())
}

impl Endpoint {
    /// Connects to a database.
    pub fn connect(&self, database: &str) -> Result<Client> {
        connect(self.port, SUPERUSER, database)
    }

    /// One value of one row, as text.
    pub fn value(&self, sql: &str) -> Result<String> {
        single_value(&mut self.connect("postgres")?, sql)
    }
}

/// Connects to a server on the loopback address.
pub fn connect(port: u16, user: &str, database: &str) -> Result<Client> {
    postgres::Config::new()
        .host("127.0.0.1")
        .port(port)
        .user(user)
        .dbname(database)
        .connect_timeout(DEADLINE)
        .connect(NoTls)
        .with_context(|| format!("could not connect to port {port}"))
}

/// The only value of the only row of a query, as text.
pub fn single_value(client: &mut Client, sql: &str) -> Result<String> {
    for message in client.simple_query(sql).with_context(|| format!("`{sql}` failed"))? {
        if let postgres::SimpleQueryMessage::Row(row) = message {
            return Ok(row.get(0).unwrap_or_default().to_owned());
        }
    }
    bail!("`{sql}` gave no row")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Tests must not leave processes behind, whatever state they are in; there is nobody to tell.
        let _ = self.try_neon(&["stop", "--mode", "immediate"]);
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

/// Prints the end of a log, for a test that failed.
fn print_tail(path: &Path) {
    let Ok(text) = fs::read(path) else { return };
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("--- {}", path.display());
    for line in lines.iter().skip(lines.len().saturating_sub(40)) {
        eprintln!("{line}");
    }
}

/// Parent of a process.
fn parent(process: &Path) -> Option<u32> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    // The name before it may hold anything, parentheses too.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// A child process whose command line holds a word.
pub fn child_named(of: u32, word: &str) -> Result<Option<u32>> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let is_child = parent(&entry.path()) == Some(of);
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_child && String::from_utf8_lossy(&command).contains(word) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}
