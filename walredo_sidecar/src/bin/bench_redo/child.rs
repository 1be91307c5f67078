//! A redo process of the benchmark's own, whose settings it chooses.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use pg_types::page::Page;
use walredo_protocol::{put_apply, put_begin, put_get, put_push};
use walredo_sidecar::datadir::PrivateDir;
use walredo_sidecar::template::Template;
use walredo_sidecar::{NeonWalRecord, WalRedoConfig};

use crate::input::Request;
use crate::{Failure, PG_VERSION};

/// A running process; it ends when its input does.
pub struct RedoChild {
    child: Child,
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    _data_dir: PrivateDir,
}

impl RedoChild {
    /// Starts a process that serves each request `rounds` times before it answers.
    pub fn start(
        config: &WalRedoConfig,
        template: &Template,
        rounds: u32,
    ) -> Result<RedoChild, Failure> {
        let install = config.installs.get(&PG_VERSION).ok_or("no installation")?;
        let user = config.user.as_ref();
        let data_dir = template.instantiate(&config.work_dir, user)?;
        let settings = data_dir.path().join("postgresql.conf");
        let mut settings = std::fs::OpenOptions::new().append(true).open(settings)?;
        writeln!(settings, "neon.wal_redo_repeat={rounds}")?;
        let mut command = install.command("postgres", user);
        command.arg("--wal-redo").env("PGDATA", data_dir.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().ok_or("no stdin")?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        Ok(RedoChild { child, stdin, stdout, _data_dir: data_dir })
    }

    /// Sends a request and waits for the page.
    pub fn ask(&mut self, request: &[u8], page: &mut Page) -> io::Result<()> {
        self.stdin.write_all(request)?;
        self.stdout.read_exact(page)
    }

    /// Closes the input and waits.
    pub fn finish(self) -> Result<(), Failure> {
        let RedoChild { mut child, stdin, .. } = self;
        drop(stdin);
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("redo process ended with {status}").into());
        }
        Ok(())
    }
}

/// A request as it goes over the pipe.
pub fn bytes_of(request: &Request) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    put_begin(&mut bytes, request.tag);
    if let Some((_, image)) = &request.base {
        let page: &Page = image[..].try_into()?;
        put_push(&mut bytes, request.tag, page);
    }
    for (lsn, record) in &request.records {
        let NeonWalRecord::Postgres { rec, .. } = record else {
            return Err("not a Postgres record".into());
        };
        put_apply(&mut bytes, *lsn, rec);
    }
    put_get(&mut bytes, request.tag);
    Ok(bytes)
}
