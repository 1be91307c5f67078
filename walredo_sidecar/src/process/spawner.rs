//! The thread that starts redo processes.
//!
//! A redo process asks the kernel to be killed when its parent ends. Linux takes "parent" to be the *thread*
//! that forked, so a process started from a thread of a blocking pool would be killed when the pool retires
//! the thread. This thread lives as long as the page server.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

type Job = (Command, Sender<io::Result<Child>>);

static SPAWNER: Mutex<Option<Sender<Job>>> = Mutex::new(None);

/// Starts a command from the spawner thread.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    let (reply, answer) = channel();
    {
        let mut spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
        let jobs = match spawner.as_ref() {
            Some(jobs) => jobs,
            None => spawner.insert(start_thread()?),
        };
        jobs.send((command, reply)).map_err(|_| gone())?;
    }
    answer.recv().map_err(|_| gone())?
}

fn gone() -> io::Error {
    io::Error::other("the thread that starts redo processes is gone")
}

fn start_thread() -> io::Result<Sender<Job>> {
    let (jobs, queue) = channel();
    std::thread::Builder::new().name("walredo-spawner".to_owned()).spawn(move || serve(queue))?;
    Ok(jobs)
}

fn serve(queue: Receiver<Job>) {
    for (mut command, reply) in queue {
        // The requester may have given up; then the child is dropped with the channel and ends at the end of
        // its input.
        let _ = reply.send(command.spawn());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_have_one_lasting_parent_thread() {
        let shell = |text: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", text]);
            command
        };
        let mut first = spawn(shell("exit 3")).unwrap();
        let mut second =
            std::thread::spawn(move || spawn(shell("exit 4"))).join().unwrap().unwrap();
        assert_eq!(first.wait().unwrap().code(), Some(3));
        assert_eq!(second.wait().unwrap().code(), Some(4));
        assert_eq!(
            spawn(Command::new("/nonexistent/program")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
