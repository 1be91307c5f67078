//! A PostgreSQL server on a data directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pg_launch::{PgInstall, SystemUser};

use crate::common::open_tempdir;

/// A data directory and the programs for it. A running server is stopped when this goes.
pub struct Server {
    install: PgInstall,
    user: Option<SystemUser>,
    pub data: PathBuf,
    /// Where its socket is; its path must be short.
    sockets: tempfile::TempDir,
    running: bool,
}

impl Server {
    pub fn new(install: PgInstall, data: &Path) -> Server {
        let user = pg_launch::ensure_system_user().unwrap();
        let sockets = open_tempdir();
        if let Some(user) = &user {
            user.give(data).unwrap();
            user.give(sockets.path()).unwrap();
        }
        Server { install, user, data: data.to_owned(), sockets, running: false }
    }

    pub fn start(&mut self) {
        let options = format!(
            "-k {} -c listen_addresses= -c fsync=off -c max_prepared_transactions=5 \
             -c autovacuum=off -c shared_buffers=16MB",
            self.sockets.path().display()
        );
        let mut command = self.program("pg_ctl");
        command.args(["start", "-w", "-t", "120", "-o", &options, "-D"]).arg(&self.data);
        command.arg("-l").arg(self.data.join("server.log"));
        let output = output(&mut command);
        assert!(output.status.success(), "server does not start: {}", self.log());
        self.running = true;
    }

    pub fn stop(&mut self) {
        let mut command = self.program("pg_ctl");
        run(command.args(["stop", "-w", "-t", "120", "-m", "fast", "-D"]).arg(&self.data));
        self.running = false;
    }

    /// Runs a script; an error in it fails the test.
    pub fn psql(&self, database: &str, script: &str) -> String {
        let mut command = self.program("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "cloud_admin", "-h"]);
        command.arg(self.sockets.path()).args(["-d", database]);
        for statement in script.split(";\n").filter(|statement| !statement.trim().is_empty()) {
            command.args(["-c", statement]);
        }
        String::from_utf8(run(&mut command).stdout).unwrap()
    }

    /// What `pg_waldump` says of the WAL from `start` on.
    pub fn waldump(&self, start: pg_types::Lsn) -> String {
        let mut command = self.program("pg_waldump");
        command.arg("-p").arg(self.data.join("pg_wal")).args(["-s", &start.to_string()]);
        // It ends with an error where WAL ends.
        let output = output(&mut command);
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("server.log")).unwrap_or_default()
    }

    fn program(&self, name: &str) -> Command {
        let mut command = self.install.command(name, self.user.as_ref());
        command.current_dir(self.sockets.path());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running {
            let mut command = self.program("pg_ctl");
            let _ = command.args(["stop", "-w", "-m", "immediate", "-D"]).arg(&self.data).output();
        }
    }
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn run(command: &mut Command) -> Output {
    let output = output(command);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output
}
