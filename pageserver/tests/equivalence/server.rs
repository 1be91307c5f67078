//! A stock server in a directory of its own: the one that writes the WAL, or one that is recovered to an LSN.

use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pg_launch::{PgInstall, SystemUser};
use pg_types::Lsn;

/// A temporary directory that the system user may use.
pub fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    if let Some(user) = pg_launch::ensure_system_user().unwrap() {
        user.give(dir.path()).unwrap();
    }
    dir
}

/// The installation named by a variable.
pub fn install(variable: &str) -> PgInstall {
    let root = std::env::var_os(variable).unwrap_or_else(|| {
        panic!("{variable} is not set: it names the root of a PostgreSQL (run `cargo xtask test`)")
    });
    PgInstall::new(PathBuf::from(root)).unwrap()
}

/// A cluster's directory and the programs for it. A running server is stopped when this goes.
pub struct Cluster {
    install: PgInstall,
    user: Option<SystemUser>,
    pub data: PathBuf,
    /// Where its socket is; its path must be short.
    socket_dir: tempfile::TempDir,
    running: bool,
}

impl Cluster {
    pub fn new(data: PathBuf) -> Cluster {
        let user = pg_launch::ensure_system_user().unwrap();
        let install = install("NEON_PG_STOCK");
        Cluster { install, user, data, socket_dir: open_dir(), running: false }
    }

    pub fn initdb(&self) {
        let mut command = self.program("initdb");
        command.args(["-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"]);
        run(command.arg(&self.data));
    }

    /// A copy of the stopped cluster.
    pub fn copy_to(&self, to: &Path) {
        let mut command = Command::new("cp");
        run(command.arg("-a").arg(&self.data).arg(to));
    }

    pub fn append(&self, file: &str, text: &str) {
        let path = self.data.join(file);
        let mut content = std::fs::read_to_string(&path).unwrap_or_default();
        content.push_str(text);
        std::fs::write(&path, content).unwrap();
        if let Some(user) = &self.user {
            user.give(&path).unwrap();
        }
    }

    pub fn start(&mut self) {
        let mut command = self.program("pg_ctl");
        command.args(["start", "-w", "-t", "300", "-D"]).arg(&self.data);
        command
            .arg("-o")
            .arg(format!("-k {} -c listen_addresses=", self.socket_dir.path().display()));
        command.arg("-l").arg(self.data.join("server.log"));
        let output = command_output(&mut command);
        let log = || std::fs::read_to_string(self.data.join("server.log")).unwrap_or_default();
        assert!(output.status.success(), "server does not start: {}", log());
        self.running = true;
    }

    /// Waits for the end of recovery: without hot standby a server takes connections only then.
    pub fn wait_promoted(&self) {
        let deadline = Instant::now() + Duration::from_secs(600);
        loop {
            let mut command = self.program("pg_isready");
            command.arg("-h").arg(self.socket_dir.path());
            if command_output(&mut command).status.success() {
                return;
            }
            let log = || std::fs::read_to_string(self.data.join("server.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "recovery does not end: {}", log());
            assert!(self.data.join("postmaster.pid").exists(), "recovery failed: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop(&mut self) {
        let mut command = self.program("pg_ctl");
        run(command.args(["stop", "-w", "-t", "300", "-m", "fast", "-D"]).arg(&self.data));
        self.running = false;
    }

    /// Runs a script; an error in it fails the test.
    pub fn psql(&self, database: &str, script: &Path) -> String {
        let mut command = self.program("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]);
        command.arg(self.socket_dir.path()).args(["-d", database, "-f"]).arg(script);
        String::from_utf8(run(&mut command).stdout).unwrap()
    }

    pub fn program(&self, name: &str) -> Command {
        self.install.command(name, self.user.as_ref())
    }

    /// PostgreSQL's regression suite, from the build tree and the source that `cargo xtask test` names. Its
    /// verdict does not matter here, its WAL does.
    pub fn pg_regress(&self, output_dir: &Path) {
        let place = |variable: &str| {
            PathBuf::from(std::env::var_os(variable).unwrap_or_else(|| {
                panic!("{variable} is not set: NEON_EQUIV_FULL needs it (run `cargo xtask test`)")
            }))
        };
        let (build, source) = (place("NEON_PG_STOCK_BUILD"), place("NEON_PG_SOURCE"));
        let regress = source.join("src/test/regress");
        let mut command = Command::new(build.join("src/test/regress/pg_regress"));
        command.env_clear().env("LD_LIBRARY_PATH", self.install.lib_dir());
        command.env("PATH", format!("{}:/usr/bin:/bin", self.install.bin_dir().display()));
        command.arg(format!("--bindir={}", self.install.bin_dir().display()));
        command.arg(format!("--inputdir={}", regress.display()));
        command.arg(format!("--outputdir={}", output_dir.display()));
        command.arg(format!("--dlpath={}", build.join("src/test/regress").display()));
        command.arg(format!("--schedule={}", regress.join("parallel_schedule").display()));
        command.arg(format!("--host={}", self.socket_dir.path().display()));
        command.args(["--user=postgres", "--max-connections=20"]).current_dir(output_dir);
        if let Some(user) = &self.user {
            use std::os::unix::process::CommandExt;
            command.uid(user.uid).gid(user.gid);
        }
        let output = command_output(&mut command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text.lines().rev().find(|line| line.starts_with('#') || line.contains("tests"));
        println!("pg_regress: {}", last.unwrap_or("no summary"));
        assert!(text.contains("ok 1 "), "pg_regress did not run: {text}");
    }

    /// Where the last checkpoint record of a stopped cluster starts.
    pub fn checkpoint_lsn(&self) -> Lsn {
        let mut command = self.program("pg_controldata");
        let output = run(command.arg("-D").arg(&self.data));
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Latest checkpoint location:"));
        line.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.running {
            let mut command = self.program("pg_ctl");
            command.args(["stop", "-w", "-m", "immediate", "-D"]).arg(&self.data);
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command_output(command);
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// `pg_ctl start` leaves a server behind that keeps its output open: it goes to files, not to pipes.
fn command_output(command: &mut Command) -> Output {
    let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(Stdio::null());
    command.stdout(Stdio::from(out.try_clone().unwrap()));
    command.stderr(Stdio::from(err.try_clone().unwrap()));
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let read = |mut file: std::fs::File| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    Output { status, stdout: read(out), stderr: read(err) }
}
