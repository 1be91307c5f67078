//! An event loop of Rust's in a process of Postgres: what wakes Postgres' own loops wakes it as well.
//!
//! Two facts of `latch.c` (17, Linux) carry this. A latch that is set by another process sends SIGURG when
//! `maybe_sleeping` is set; SIGURG is blocked in every process and read from a descriptor. And a latch that is set by a
//! signal handler of this process sends nothing, because the signal itself ends the wait. So the signals that have
//! handlers stay blocked while the loop waits and show at a second descriptor; they are let through one after another in
//! between, which also keeps threads that a library may start from ever running a handler.
#![expect(unsafe_code, reason = "reads and writes this process' latch, sets signal handlers")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use pgrx::pg_sys;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::xlog_sender;

/// Signals that processes of Postgres handle by setting flags and their latch. SIGQUIT is not among them: it ends the process.
const HANDLED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

static TERMINATE: AtomicBool = AtomicBool::new(false);
static LAST_CYCLE: AtomicBool = AtomicBool::new(false);

/// Not guarded: a signal handler that stores a flag.
unsafe extern "C-unwind" fn on_terminate(_signal: std::ffi::c_int) {
    TERMINATE.store(true, Ordering::Relaxed);
}

/// Not guarded, as above.
unsafe extern "C-unwind" fn on_last_cycle(_signal: std::ffi::c_int) {
    LAST_CYCLE.store(true, Ordering::Relaxed);
}

/// Whether SIGTERM has arrived. A walsender that runs no replication command of its own kind is sent it by itself when
/// the server shuts down (`HandleWalSndInitStopping`), and by `pg_terminate_backend`.
pub fn told_to_terminate() -> bool {
    TERMINATE.load(Ordering::Relaxed)
}

/// Whether the shutdown checkpoint is written and no more WAL will come (SIGUSR2 of `PostmasterStateMachine`).
pub fn is_last_cycle() -> bool {
    LAST_CYCLE.load(Ordering::Relaxed)
}

/// See the module's description. Dropped, it leaves signals as it found them.
pub struct Wake {
    urgent: AsyncFd<SignalFd>,
    handled: AsyncFd<SignalFd>,
    client: AsyncFd<OwnedFd>,
    postmaster: AsyncFd<OwnedFd>,
    mask: SigSet,
    mask_before: SigSet,
    handlers_before: [(Signal, pg_sys::pqsigfunc); 2],
}

/// What a wait of [`Wake`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The latch was set, or a signal has been handled.
    Latch,
    /// The client of this process has said something, or is gone.
    Client,
    /// The postmaster is dead.
    Postmaster,
}

fn readable<T: AsRawFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: a signal descriptor and an owned one return the same open descriptor as long as they live.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

fn signal_fd(mask: &SigSet) -> io::Result<AsyncFd<SignalFd>> {
    readable(SignalFd::with_flags(mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// The socket of the client of this process.
fn client_socket() -> RawFd {
    // SAFETY: MyProcPort is set in every process with a client; its first field is the socket (`libpq-be.h`, 17).
    unsafe { pg_sys::MyProcPort.cast::<RawFd>().read() }
}

/// The end of a pipe that shows its end when the postmaster dies (`InitPostmasterDeathWatchHandle`, `POSTMASTER_FD_WATCH`).
fn postmaster_pipe() -> io::Result<OwnedFd> {
    // SAFETY: made before the postmaster has children, and open as long as this process lives; only borrowed for the call.
    unsafe { BorrowedFd::borrow_raw(pg_sys::postmaster_alive_fds[0]) }.try_clone_to_owned()
}

impl Wake {
    /// To be made within the event loop that will wait on it, in a process with a client.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Wake> {
        let urgent = SigSet::from_iter([Signal::SIGURG]);
        let mask = SigSet::from_iter(HANDLED);
        // SAFETY: the socket is open as long as the process lives, and it is only borrowed for the call.
        let client = unsafe { BorrowedFd::borrow_raw(client_socket()) }.try_clone_to_owned()?;
        let (client, postmaster) = (readable(client)?, readable(postmaster_pipe()?)?);
        let (urgent, handled) = (signal_fd(&urgent)?, signal_fd(&mask)?);
        let mask_before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        TERMINATE.store(false, Ordering::Relaxed);
        LAST_CYCLE.store(false, Ordering::Relaxed);
        let install = |signal: Signal, handler: pg_sys::pqsigfunc| {
            // SAFETY: the handler stores a flag.
            (signal, unsafe { pg_sys::pqsignal(signal as i32, handler) })
        };
        let handlers_before = [
            install(Signal::SIGTERM, Some(on_terminate)),
            install(Signal::SIGUSR2, Some(on_last_cycle)),
        ];
        Ok(Wake { urgent, handled, client, postmaster, mask, mask_before, handlers_before })
    }

    /// Resets the latch. What it announced is to be looked at after this.
    pub fn reset(&self) {
        // SAFETY: MyLatch is set in every process.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
    }

    /// Waits until the latch is set, a signal has been handled, the client speaks or the postmaster dies.
    ///
    /// # Errors
    /// When a descriptor cannot be read, which would be a mistake of this module.
    pub async fn wait(&self) -> io::Result<Woken> {
        if !arm() {
            // Others of the loop have their turn before the latch is looked at again.
            tokio::task::yield_now().await;
            return Ok(Woken::Latch);
        }
        let woken = tokio::select! {
            biased;
            ready = self.handled.readable() => {
                ready?.clear_ready();
                self.mask.thread_unblock()?;
                self.mask.thread_block()?;
                Woken::Latch
            }
            ready = self.urgent.readable() => {
                // SIGURG is never pending twice, and one that comes after this makes the descriptor ready again.
                self.urgent.get_ref().read_signal()?;
                ready?.clear_ready();
                Woken::Latch
            }
            ready = self.client.readable() => {
                ready?.clear_ready();
                Woken::Client
            }
            ready = self.postmaster.readable() => {
                ready?.clear_ready();
                Woken::Postmaster
            }
        };
        disarm();
        Ok(woken)
    }
}

/// Asks whoever sets the latch from now on for SIGURG. `false` when it is set already.
fn arm() -> bool {
    // SAFETY: MyLatch points to shared memory of this process' own; the order is that of `WaitEventSetWait`: first
    // `maybe_sleeping`, then a full barrier, then a look at `is_set`, which the setter does the other way round.
    unsafe {
        (&raw mut (*pg_sys::MyLatch).maybe_sleeping).write_volatile(1);
        fence(Ordering::SeqCst);
        let is_set = (&raw const (*pg_sys::MyLatch).is_set).read_volatile() != 0;
        if is_set {
            disarm();
        }
        !is_set
    }
}

fn disarm() {
    // SAFETY: as in `arm`.
    unsafe { (&raw mut (*pg_sys::MyLatch).maybe_sleeping).write_volatile(0) };
}

impl Drop for Wake {
    fn drop(&mut self) {
        disarm();
        xlog_sender::ignore_flushes();
        for (signal, handler) in self.handlers_before {
            // SAFETY: what was there before.
            unsafe { pg_sys::pqsignal(signal as i32, handler) };
        }
        // The mask of this thread can be set to anything.
        let _ = self.mask_before.thread_set_mask();
    }
}

/// Ends this process as SIGTERM does.
pub fn die() -> ! {
    super::report::terminated()
}

impl std::fmt::Debug for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wake").field("client", &self.client.as_raw_fd()).finish_non_exhaustive()
    }
}
