//! The raw entry points of this crate: what must happen between fork and exec, and the choice of a scheduling policy.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Marks every descriptor from 3 up close-on-exec in the child, so that a program inherits 0, 1 and 2 only,
/// even when a library of ours opened a file without that flag (L077).
#[expect(unsafe_code, reason = "pre_exec is the only place between fork and exec")]
pub fn close_inherited_descriptors(command: &mut Command) {
    let mark = || {
        // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC only sets a flag on descriptors of this process;
        // it takes no pointer.
        let result = unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed; it makes
    // one raw system call, allocates nothing and takes no lock.
    unsafe { command.pre_exec(mark) };
}

/// Has the kernel send `signal` to the child when the thread that starts it ends, so that a killed supervisor
/// leaves no process behind. Start such children from a thread that lives as long as the process.
///
/// Works together with [`std::os::unix::process::CommandExt::uid`]: changing the user clears the setting, and
/// the standard library changes it before it runs this step.
#[expect(unsafe_code, reason = "pre_exec is the only place between fork and exec")]
pub fn die_with_parent(command: &mut Command, signal: nix::sys::signal::Signal) {
    let arm = move || {
        nix::sys::prctl::set_pdeathsig(signal)?;
        Ok(())
    };
    // SAFETY: the closure makes one prctl(2) call, which is async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(arm) };
}

/// Makes the child the leader of a new session, so that it outlives the terminal it was started from.
#[expect(unsafe_code, reason = "pre_exec is the only place between fork and exec")]
pub fn detach(command: &mut Command) {
    let detach = || {
        nix::unistd::setsid()?;
        Ok(())
    };
    // SAFETY: the closure makes one setsid(2) call, which is async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(detach) };
}

/// Has this thread, and those it starts from now on, wait for their turn when they wake up on a busy processor
/// (`SCHED_BATCH`, sched(7)), instead of interrupting who runs. On a processor that is free it changes nothing.
///
/// # Errors
/// What sched_setscheduler(2) says; no privilege is needed.
#[expect(unsafe_code, reason = "no safe wrapper of sched_setscheduler exists in our libraries")]
pub fn take_turns() -> std::io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the structure is read only, and lives until the call returns.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const priority) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
