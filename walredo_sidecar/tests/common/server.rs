//! A server that makes WAL.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pg_launch::{PgInstall, SystemUser};
use pg_types::page::Page;
use pg_types::relation::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID};
use pg_types::{BLCKSZ, BlockNumber, Lsn, RelTag};

use super::{open_dir, system_user};

const SEGMENT_BLOCKS: u32 = 131_072;

/// A server on a unix socket in its own directory; stopped when dropped.
pub struct Server {
    install: PgInstall,
    user: Option<SystemUser>,
    dir: tempfile::TempDir,
    running: bool,
}

impl Server {
    /// Runs initdb and starts with these settings added.
    pub fn start(install: PgInstall, settings: &str) -> Server {
        let (dir, user) = (open_dir(), system_user());
        if let Some(user) = &user {
            user.give(dir.path()).unwrap();
        }
        let mut server = Server { install, user, dir, running: false };
        let data = server.data_dir();
        let mut initdb = server.program("initdb");
        initdb.args(["-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D"]).arg(&data);
        run(&mut initdb);
        let common = format!(
            "listen_addresses=''\nunix_socket_directories='{}'\nfsync=off\nautovacuum=off\n\
             wal_keep_size='4GB'\nmax_wal_size='16GB'\ncheckpoint_timeout='1h'\nshared_buffers='64MB'\n\
             log_min_messages=warning\n{settings}\n",
            server.dir.path().display()
        );
        let path = data.join("postgresql.conf");
        let mut config = std::fs::read_to_string(&path).unwrap();
        config.push_str(&common);
        std::fs::write(&path, config).unwrap();
        let mut pg_ctl = server.program("pg_ctl");
        pg_ctl.args(["start", "-w", "-t", "120", "-D"]).arg(&data);
        pg_ctl.arg("-l").arg(data.join("server.log"));
        run(&mut pg_ctl);
        server.running = true;
        server
    }

    fn program(&self, name: &str) -> Command {
        self.install.command(name, self.user.as_ref())
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs SQL with psql; any error fails the test. Returns unaligned tuples.
    pub fn sql(&self, text: &str) -> String {
        let mut psql = self.program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]);
        psql.arg(self.dir.path()).args(["-d", "postgres", "-f", "-"]);
        let input = self.dir.path().join("input.sql");
        std::fs::write(&input, text).unwrap();
        psql.stdin(std::fs::File::open(&input).unwrap());
        let output = run(&mut psql);
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Where the next record will go.
    pub fn insert_lsn(&self) -> Lsn {
        self.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap()
    }

    /// Stops in good order: everything is on disk then.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            let mut pg_ctl = self.program("pg_ctl");
            pg_ctl.args(["stop", "-w", "-t", "120", "-m", "fast", "-D"]).arg(self.data_dir());
            run(&mut pg_ctl);
        }
    }

    /// A block as it is on disk; `None` behind the end of the relation.
    pub fn block(&self, rel: RelTag, blkno: BlockNumber) -> Option<Page> {
        let locator = rel.locator;
        let directory = match locator.spc_oid {
            GLOBALTABLESPACE_OID => "global".to_owned(),
            DEFAULTTABLESPACE_OID => format!("base/{}", locator.db_oid),
            other => panic!("tablespace {other} is not used in tests"),
        };
        let segment = match blkno / SEGMENT_BLOCKS {
            0 => String::new(),
            n => format!(".{n}"),
        };
        let name = format!("{}{}{segment}", locator.rel_number, rel.fork.file_suffix());
        let path = self.data_dir().join(directory).join(name);
        read_block(&path, blkno % SEGMENT_BLOCKS)
    }

    /// A page of an SLRU as it is on disk.
    pub fn slru_page(&self, kind: pg_types::SlruKind, pageno: u32) -> Option<Page> {
        let (segno, blkno) = pg_types::slru::page_to_segment(pageno);
        let name = pg_types::slru::segment_file_name(segno);
        read_block(&self.data_dir().join(kind.directory()).join(name), blkno)
    }
}

fn read_block(path: &Path, blkno: u32) -> Option<Page> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).ok()?;
    let mut page = [0; BLCKSZ];
    file.read_exact_at(&mut page, u64::from(blkno) * BLCKSZ as u64).ok()?;
    Some(page)
}

fn run(command: &mut Command) -> Output {
    // pg_ctl leaves a server behind that keeps its output open, so output goes to files, not pipes.
    let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdout(Stdio::from(out.try_clone().unwrap()));
    command.stderr(Stdio::from(err.try_clone().unwrap()));
    let status = command.status().unwrap();
    let read = |mut file: std::fs::File| {
        use std::io::{Read, Seek};
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let output = Output { status, stdout: read(out), stderr: read(err) };
    assert!(
        status.success(),
        "{command:?} failed: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running {
            let mut pg_ctl = self.program("pg_ctl");
            pg_ctl.args(["stop", "-w", "-m", "immediate", "-D"]).arg(self.data_dir());
            let _ = pg_ctl.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}
