//! An unpatched PostgreSQL from the same source, as the other side of a comparison.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pg_launch::{PgInstall, SystemUser};
use postgres::Client;

use crate::cluster::{SUPERUSER, connect, wait_until_every};

/// A stock server with a data directory of its own; stopped when dropped.
#[derive(Debug)]
pub struct StockServer {
    install: PgInstall,
    user: Option<SystemUser>,
    pgdata: PathBuf,
    port: u16,
    postmaster: Option<Child>,
}

impl StockServer {
    /// Runs initdb in `dir`, which must not exist yet, and starts the server with these settings.
    pub fn start(install: PgInstall, dir: &Path, settings: &[(&str, &str)]) -> Result<StockServer> {
        let user = pg_launch::ensure_system_user()?;
        fs::create_dir(dir).with_context(|| format!("could not create {}", dir.display()))?;
        if let Some(user) = &user {
            user.give(dir)?;
        }
        let pgdata = dir.join("pgdata");
        let output = install
            .command("initdb", user.as_ref())
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "-U", SUPERUSER])
            .arg("-D")
            .arg(&pgdata)
            .output()?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        StockServer::start_on(install, dir, settings)
    }

    /// Starts the server on the data directory `dir/pgdata`, which exists.
    pub fn start_on(
        install: PgInstall,
        dir: &Path,
        settings: &[(&str, &str)],
    ) -> Result<StockServer> {
        let user = pg_launch::ensure_system_user()?;
        let pgdata = dir.join("pgdata");
        fs::set_permissions(&pgdata, PermissionsExt::from_mode(0o700))?;
        if let Some(user) = &user {
            user.give(dir)?;
        }
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut server = StockServer { install, user, pgdata, port, postmaster: None };
        server.launch(settings)?;
        Ok(server)
    }

    /// Copies this server into `dir`, which must not exist yet, and starts the copy as its standby.
    pub fn standby(&self, dir: &Path, settings: &[(&str, &str)]) -> Result<StockServer> {
        fs::create_dir(dir).with_context(|| format!("could not create {}", dir.display()))?;
        if let Some(user) = &self.user {
            user.give(dir)?;
        }
        let output = self
            .install
            .command("pg_basebackup", self.user.as_ref())
            .args([
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
                "--username",
                SUPERUSER,
            ])
            .args(["--host=127.0.0.1", "--port"])
            .arg(self.port.to_string())
            .arg("--pgdata")
            .arg(dir.join("pgdata"))
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pg_basebackup: {errors}");
        StockServer::start_on(self.install.clone(), dir, settings)
    }

    fn launch(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        let log = fs::File::create(self.pgdata.with_extension("log"))?;
        let mut command: Command = self.install.command("postgres", self.user.as_ref());
        command.arg("-D").arg(&self.pgdata).arg("-p").arg(self.port.to_string());
        command.arg("-c").arg("listen_addresses=127.0.0.1");
        command.arg("-c").arg(format!("unix_socket_directories={}", self.pgdata.display()));
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let errors = log.try_clone()?;
        self.postmaster = Some(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn()?);
        // Often: the benchmark of starts measures this.
        let pause = Duration::from_millis(2);
        wait_until_every(pause, "the stock server takes connections", || {
            Ok(connect(self.port, SUPERUSER, "postgres").is_ok())
        })
    }

    /// Its TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data directory.
    pub fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// Connects to a database.
    pub fn connect(&self, database: &str) -> Result<Client> {
        connect(self.port, SUPERUSER, database)
    }

    /// Stops it with a checkpoint.
    pub fn stop(&mut self) -> Result<()> {
        self.signal("INT")
    }

    /// Stops it at once, without a checkpoint.
    pub fn crash(&mut self) -> Result<()> {
        self.signal("QUIT")
    }

    fn signal(&mut self, signal: &str) -> Result<()> {
        let Some(mut child) = self.postmaster.take() else { return Ok(()) };
        let raw = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        let signal = if signal == "INT" {
            nix::sys::signal::Signal::SIGINT
        } else {
            nix::sys::signal::Signal::SIGQUIT
        };
        nix::sys::signal::kill(raw, signal)?;
        child.wait()?;
        Ok(())
    }
}

impl Drop for StockServer {
    fn drop(&mut self) {
        // There is nobody to tell; the directory goes away anyway.
        let _ = self.signal("QUIT");
    }
}
