//! Data directories and servers of the tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pg_launch::{PgInstall, SystemUser};

const DEADLINE: Duration = Duration::from_secs(60);

/// What all servers of a test share.
pub struct World {
    install: PgInstall,
    user: Option<SystemUser>,
    dir: tempfile::TempDir,
}

fn is_relation_file(name: &str) -> bool {
    let stem = name.split(['_', '.']).next().unwrap_or_default();
    !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_digit())
}

impl World {
    /// A folder that the server's user may enter.
    pub fn new() -> World {
        let root = std::env::var_os("NEON_PG_INSTALL")
            .expect("set NEON_PG_INSTALL to the folder of the patched PostgreSQL (cargo xtask pg)");
        let install = PgInstall::new(PathBuf::from(root)).expect("a patched PostgreSQL");
        let user = pg_launch::ensure_system_user().expect("a user for PostgreSQL");
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let folder = install.command("pg_config", None).arg("--pkglibdir").output();
        let folder = folder.expect("pg_config runs").stdout;
        let folder = String::from_utf8_lossy(&folder).trim().to_owned();
        for library in ["neon.so", "neon_rmgr.so"] {
            let path = Path::new(&folder).join(library);
            assert!(
                path.exists(),
                "NEON_PG_INSTALL has no {library} (cargo xtask pg, then cargo xtask test)"
            );
        }
        let world = World { install, user, dir };
        world.make_data();
        world
    }

    /// Where the page service's data directory is.
    pub fn stock_data(&self) -> PathBuf {
        self.dir.path().join("stock")
    }

    fn command(&self, program: &str) -> Command {
        self.install.command(program, self.user.as_ref())
    }

    fn own(&self, path: &Path) {
        if let Some(user) = &self.user {
            user.give(path).expect("chown");
        }
    }

    fn run(&self, command: &mut Command) {
        let output = command.output().expect("program starts");
        assert!(output.status.success(), "{command:?}: {output:?}");
    }

    /// A cluster with two tables of 300 pages or so, the second with an index in the order of its rows and one in any
    /// order, a value of 240 pages, and two tables of points, with a GiST and with an SP-GiST index.
    fn make_data(&self) {
        let data = self.stock_data();
        fs::create_dir(&data).expect("mkdir");
        self.own(&data);
        let mut initdb = self.command("initdb");
        initdb.args(["--no-sync", "--no-instructions", "--username=test", "--auth=trust", "-D"]);
        self.run(initdb.arg(&data));
        let server = Server::start(self, &data, &[]);
        server.ok("create table t as select g as id, repeat('x', 200) as filler from generate_series(1, 10000) g");
        server.ok("create table r as select g as id, md5(g::text) as k, repeat('x', 200) as filler from generate_series(1, 10000) g");
        server.ok("create index r_id on r (id);; create index r_k on r (k)");
        server.ok("create table long (v text);; alter table long alter v set storage external;; insert into long select string_agg(md5(g::text), '') from generate_series(1, 60000) g");
        for method in ["gist", "spgist"] {
            server.ok(&format!(
                "create table {method} as select point(g * 7919 % 10007, g * 104729 % 10009) as at
                 from generate_series(1, 10000) g;; create index on {method} using {method} (at)"
            ));
        }
        // In this order: a row of a statistic that ANALYZE replaced would be pruned, with WAL, by whoever reads it.
        server.ok("analyze");
        server.ok("vacuum freeze");
        server.ok("checkpoint");
        server.stop();
    }

    /// A data directory like the one of a base backup: everything but permanent relations.
    pub fn compute_data(&self) -> PathBuf {
        let data = self.dir.path().join("compute");
        let mut copy = Command::new("cp");
        self.run(copy.arg("-a").arg(self.stock_data()).arg(&data));
        for path in relation_files(&data) {
            fs::remove_file(path).expect("unlink");
        }
        data
    }
}

/// Files below a data directory that are named like relations.
pub fn relation_files(data: &Path) -> Vec<PathBuf> {
    let mut folders = vec![data.join("global")];
    for entry in fs::read_dir(data.join("base")).expect("base") {
        folders.push(entry.expect("entry").path());
    }
    let mut files = Vec::new();
    for folder in folders {
        for entry in fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.file_name().and_then(|n| n.to_str()).is_some_and(is_relation_file) {
                files.push(path);
            }
        }
    }
    files
}

/// A running server.
pub struct Server<'a> {
    world: &'a World,
    data: PathBuf,
    child: Option<Child>,
    log: PathBuf,
}

impl<'a> Server<'a> {
    /// Starts a server and waits until it answers.
    pub fn start(world: &'a World, data: &Path, settings: &[(&str, String)]) -> Server<'a> {
        let log = data.with_extension("log");
        let mut command = world.command("postgres");
        command.arg("-D").arg(data);
        let fixed = [
            ("listen_addresses", String::new()),
            ("unix_socket_directories", world.dir.path().display().to_string()),
            ("fsync", "off".to_owned()),
            ("autovacuum", "off".to_owned()),
            ("max_parallel_workers", "0".to_owned()),
            ("restart_after_crash", "off".to_owned()),
        ];
        for (name, value) in fixed.iter().chain(settings) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        world.own(world.dir.path());
        let file = fs::File::create(&log).expect("log file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("log file")).stderr(file);
        let child = command.spawn().expect("postgres starts");
        let server = Server { world, data: data.to_owned(), child: Some(child), log };
        server.wait_for("the server to answer", || server.psql("select 1").status.success());
        server
    }

    /// A compute of a page service.
    pub fn start_compute(
        world: &'a World,
        data: &Path,
        port: u16,
        settings: &[(&str, &str)],
    ) -> Server<'a> {
        let id = "0123456789abcdef0123456789abcdef".to_owned();
        let mut all = vec![
            ("shared_preload_libraries", "neon,neon_rmgr".to_owned()),
            ("neon.pageserver_connstring", format!("host=127.0.0.1 port={port}")),
            ("neon.tenant_id", id.clone()),
            ("neon.timeline_id", id),
        ];
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        Server::start(world, data, &all)
    }

    /// Runs one command in a session of its own.
    pub fn psql(&self, sql: &str) -> Output {
        let mut command = self.world.command("psql");
        command.args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "test",
            "-d",
            "postgres",
        ]);
        command.arg("-h").arg(self.world.dir.path());
        for part in sql.split(";;") {
            command.arg("-c").arg(part);
        }
        command.output().expect("psql starts")
    }

    /// The result of commands, separated by two semicolons, that succeed.
    pub fn ok(&self, sql: &str) -> String {
        let output = self.psql(sql);
        assert!(output.status.success(), "{sql}: {output:?}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The message of commands that fail.
    pub fn fails(&self, sql: &str) -> String {
        let output = self.psql(sql);
        assert!(!output.status.success(), "{sql} succeeded: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The server's log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("log")).into_owned()
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Waits for a condition.
    pub fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < DEADLINE, "waited in vain for {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the server ends by itself.
    pub fn wait_for_end(mut self) -> String {
        let mut child = self.child.take().expect("running");
        let started = Instant::now();
        while child.try_wait().expect("own child").is_none() {
            assert!(started.elapsed() < DEADLINE, "the server goes on:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.log()
    }

    /// Fast shutdown.
    pub fn stop(mut self) {
        self.end("fast");
    }

    fn end(&mut self, mode: &str) {
        let Some(mut child) = self.child.take() else { return };
        let mut stop = self.world.command("pg_ctl");
        stop.args(["stop", "-w", "-m", mode, "-D"]).arg(&self.data);
        let stopped = stop.output().is_ok_and(|output| output.status.success());
        if !stopped {
            drop(child.kill());
        }
        drop(child.wait());
        assert!(stopped || std::thread::panicking(), "no clean stop:\n{}", self.log());
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.end("immediate");
    }
}
