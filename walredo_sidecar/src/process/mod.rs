//! One redo process.

mod exchange;
mod spawner;
mod stderr;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use bytes::Bytes;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use pg_launch::{PgInstall, SystemUser};
use pg_types::Lsn;
use pg_types::page::Page;
use tracing::{error, info};
use walredo_protocol::{BufferTag, put_apply, put_begin, put_get, put_push};

use crate::datadir::PrivateDir;
use crate::template::Template;

/// A request buffer that one huge record made bigger than this is given back after its request.
const KEEP_BUFFER: usize = 1 << 20;

/// A running `postgres --wal-redo` with the parent's ends of its pipes. Dropping it kills it and waits.
///
/// A process that a request failed on must be dropped: its pipes may hold half a request or half an answer
/// (design.md invariant 6). The pool sees to that.
#[derive(Debug)]
pub struct RedoProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
    /// Request being sent; kept for its memory.
    request: Vec<u8>,
    /// Removed after the process is gone: fields are dropped after [`Drop::drop`] has run.
    _data_dir: PrivateDir,
}

impl RedoProcess {
    /// Starts a process in a new data directory below `tenant_dir`. It is ready when it answers.
    pub fn launch(
        install: &PgInstall,
        template: &Template,
        tenant_dir: &Path,
        user: Option<&SystemUser>,
    ) -> io::Result<RedoProcess> {
        let data_dir = template.instantiate(tenant_dir, user)?;
        let mut command = install.command("postgres", user);
        command.arg("--wal-redo").env("PGDATA", data_dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawner::spawn(command).map_err(|error| {
            let text = format!("postgres --wal-redo command failed to start: {error}");
            io::Error::new(error.kind(), text)
        })?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            kill_and_wait(&mut child);
            return Err(io::Error::other("a pipe of the redo process is missing"));
        };
        let path = data_dir.path().to_owned();
        let request = Vec::new();
        let process = RedoProcess { child, stdin, stdout, stderr, request, _data_dir: data_dir };
        set_nonblocking(&process.stdin)?;
        set_nonblocking(&process.stdout)?;
        set_nonblocking(&process.stderr)?;
        info!("launched WAL redo postgres process on {}", path.display());
        Ok(process)
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends one request and waits for the page. After an error this process is of no use any more.
    ///
    /// `timeout` bounds each wait for a pipe, not their sum (L100).
    pub fn apply_wal_records(
        &mut self,
        tag: BufferTag,
        base_img: Option<&Page>,
        records: &[(Lsn, &Bytes)],
        timeout: Duration,
    ) -> io::Result<Bytes> {
        self.request.clear();
        put_begin(&mut self.request, tag);
        if let Some(page) = base_img {
            put_push(&mut self.request, tag, page);
        }
        for (lsn, record) in records {
            put_apply(&mut self.request, *lsn, record);
        }
        put_get(&mut self.request, tag);
        let page = exchange::run(&self.request, &self.stdin, &self.stdout, &self.stderr, timeout)?;
        if self.request.capacity() > KEEP_BUFFER {
            self.request = Vec::new();
        }
        Ok(page)
    }
}

impl Drop for RedoProcess {
    fn drop(&mut self) {
        kill_and_wait(&mut self.child);
    }
}

/// Kills and waits, so that no zombie stays (L088). The wait is short: nothing survives SIGKILL but a process
/// stuck in the kernel.
fn kill_and_wait(child: &mut Child) {
    if let Err(error) = child.kill() {
        error!("could not kill wal-redo-postgres: {error}");
    }
    match child.wait() {
        Ok(status) => info!("wal-redo-postgres exited with code {status}"),
        Err(error) => error!("could not wait for wal-redo-postgres: {error}"),
    }
}

/// Sets O_NONBLOCK on one end of a pipe (L087).
fn set_nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
