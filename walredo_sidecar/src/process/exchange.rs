//! One request and its answer over three pipes.

use std::io;
use std::os::fd::AsFd;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pg_types::BLCKSZ;

use super::stderr::StderrLog;

/// What poll found on one pipe.
#[derive(Clone, Copy)]
struct Events(PollFlags);

impl Events {
    fn readable(self) -> bool {
        self.0.contains(PollFlags::POLLIN)
    }

    fn writable(self) -> bool {
        self.0.contains(PollFlags::POLLOUT)
    }

    fn hung_up(self) -> bool {
        self.0.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL)
    }
}

/// Sends `request` and returns the page. Writing, reading and forwarding of stderr go on at the same time, so
/// that neither side can block the other (L098).
pub(super) fn run(
    request: &[u8],
    stdin: &ChildStdin,
    stdout: &ChildStdout,
    stderr: &ChildStderr,
    timeout: Duration,
) -> io::Result<Bytes> {
    let mut log = StderrLog::new(stderr);
    let result = talk(request, stdin, stdout, stderr, &mut log, timeout);
    if result.is_err() {
        log.drain();
    }
    result
}

fn talk(
    request: &[u8],
    stdin: &ChildStdin,
    stdout: &ChildStdout,
    stderr: &ChildStderr,
    log: &mut StderrLog<'_>,
    timeout: Duration,
) -> io::Result<Bytes> {
    let mut page = vec![0; BLCKSZ];
    let mut received = 0;
    // An idle process has an empty pipe, so the first write needs no poll (L097).
    let mut unsent = write(stdin, request)?;
    while received < BLCKSZ {
        let writing = !unsent.is_empty();
        let [err, out, inp] = wait(stdin, stdout, stderr, writing, timeout)?;
        if err.readable() {
            log.forward()?;
            // All that a failing process printed is read before its death is noticed.
            continue;
        }
        if err.hung_up() {
            return Err(closed("stderr"));
        }
        if writing && inp.writable() {
            unsent = write(stdin, unsent)?;
        } else if writing && inp.hung_up() {
            return Err(closed("stdin"));
        }
        if out.readable() {
            let Some(rest) = page.get_mut(received..) else { break };
            received += read(stdout, rest)?;
        } else if out.hung_up() {
            return Err(closed("stdout"));
        }
    }
    if !unsent.is_empty() {
        return Err(io::Error::other("WAL redo process answered before it was asked"));
    }
    Ok(page.into())
}

fn closed(pipe: &str) -> io::Error {
    let text = format!("WAL redo process closed its {pipe} unexpectedly");
    io::Error::new(io::ErrorKind::BrokenPipe, text)
}

/// Waits until a pipe is ready: stderr, stdout, stdin, in this order.
fn wait(
    stdin: &ChildStdin,
    stdout: &ChildStdout,
    stderr: &ChildStderr,
    writing: bool,
    timeout: Duration,
) -> io::Result<[Events; 3]> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut pipes = [
        PollFd::new(stderr.as_fd(), PollFlags::POLLIN),
        PollFd::new(stdout.as_fd(), PollFlags::POLLIN),
        PollFd::new(stdin.as_fd(), PollFlags::POLLOUT),
    ];
    let watched = if writing { &mut pipes[..] } else { &mut pipes[..2] };
    loop {
        match poll(watched, timeout) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "WAL redo timed out")),
            Ok(_) => break,
            Err(Errno::EINTR) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(pipes.map(|pipe| Events(pipe.revents().unwrap_or(PollFlags::empty()))))
}

/// Writes what the pipe takes; returns what is left.
fn write<'a>(stdin: &ChildStdin, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
    match nix::unistd::write(stdin, bytes) {
        Ok(n) => Ok(bytes.get(n..).unwrap_or_default()),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(bytes),
        Err(Errno::EPIPE) => Err(closed("stdin")),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads what is there; the end of the stream is an error.
fn read(stdout: &ChildStdout, target: &mut [u8]) -> io::Result<usize> {
    match nix::unistd::read(stdout, target) {
        Ok(0) => Err(closed("stdout")),
        Ok(n) => Ok(n),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}
