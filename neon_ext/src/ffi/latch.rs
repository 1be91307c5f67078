//! Waiting that a cancel request, a terminate request or the postmaster's death ends.
#![expect(unsafe_code, reason = "calls the server's latch functions")]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgrx::pg_sys;

use super::process;

/// What is shown in `pg_stat_activity.wait_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEvent {
    /// Connecting to the page server, or pausing before.
    Connect,
    /// Sending a request.
    Send,
    /// Waiting for a response.
    Response,
    /// Held back because storage is behind.
    Throttle,
    /// Another process is writing a page to the local file cache.
    FileCache,
}

static WAIT_EVENTS: [AtomicU32; 5] = [const { AtomicU32::new(0) }; 5];
const NAMES: [&std::ffi::CStr; 5] = [
    c"NeonPageServerConnect",
    c"NeonPageServerSend",
    c"NeonPageServerResponse",
    c"NeonBackpressure",
    c"NeonFileCache",
];

impl WaitEvent {
    /// Postgres' number of the event, the same in all processes; it is made at the first use.
    pub(super) fn info(self) -> u32 {
        let (slot, name) = match self {
            WaitEvent::Connect => (&WAIT_EVENTS[0], NAMES[0]),
            WaitEvent::Send => (&WAIT_EVENTS[1], NAMES[1]),
            WaitEvent::Response => (&WAIT_EVENTS[2], NAMES[2]),
            WaitEvent::Throttle => (&WAIT_EVENTS[3], NAMES[3]),
            WaitEvent::FileCache => (&WAIT_EVENTS[4], NAMES[4]),
        };
        let known = slot.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        if process::in_critical_section() {
            return pg_sys::PG_WAIT_EXTENSION;
        }
        // SAFETY: the name is NUL-terminated; the call takes an LWLock and allocates in shared memory.
        let info = unsafe { pg_sys::WaitEventExtensionNew(name.as_ptr()) };
        slot.store(info, Ordering::Relaxed);
        info
    }
}

/// Remembers that this process' latch was reset, and sets it again when dropped: whoever called into the storage
/// manager may be in the middle of a loop that relies on the latch.
#[derive(Default)]
pub struct LatchKeeper {
    was_reset: bool,
}

impl LatchKeeper {
    /// Resets the latch and serves interrupts. A cancel or terminate request raises an error from here.
    fn serve(&mut self) {
        self.was_reset = true;
        // SAFETY: MyLatch is set in every process that reads relations.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        pgrx::check_for_interrupts!();
    }
}

impl Drop for LatchKeeper {
    fn drop(&mut self) {
        if self.was_reset {
            // SAFETY: as in `serve`; setting a latch never fails.
            unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
        }
    }
}

/// Sleeps, and ends early when the latch is set.
pub fn pause(keeper: &mut LatchKeeper, time: Duration, event: WaitEvent) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: MyLatch is set.
    let woken = unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events.cast_signed(), millis(time), event.info())
    };
    if woken & pg_sys::WL_LATCH_SET.cast_signed() != 0 {
        keeper.serve();
    } else {
        pgrx::check_for_interrupts!();
    }
}

/// Sleeps without a look at interrupts, for use while they are being processed.
pub fn doze(time: Duration, event: WaitEvent) {
    let events = pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the latch is not looked at without WL_LATCH_SET.
    unsafe {
        let latch = std::ptr::null_mut();
        pg_sys::WaitLatch(latch, events.cast_signed(), millis(time), event.info());
    }
}

/// Whole milliseconds, rounded up so that a loop with a deadline does not spin through the last one.
fn millis(time: Duration) -> std::ffi::c_long {
    let millis = time.as_micros().div_ceil(1000);
    std::ffi::c_long::try_from(millis).unwrap_or(std::ffi::c_long::MAX).min(i32::MAX.into())
}

/// What to wait for at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, or the end of the connection.
    Read,
    /// Room to write, or a connection that is made or refused.
    Write,
    /// Whichever comes first.
    Both,
}

/// A socket together with the latch and the postmaster's death, for repeated waits.
pub struct SocketWaiter {
    set: *mut pg_sys::WaitEventSet,
    socket_at: i32,
    interest: Interest,
    latch: *mut pg_sys::Latch,
}

impl SocketWaiter {
    /// Watches `socket`, which stays open until the waiter is dropped.
    pub fn new(socket: RawFd) -> SocketWaiter {
        // SAFETY: plain calls as in `WaitLatchOrSocket`; without a resource owner the set lives until it is freed.
        unsafe {
            pg_sys::ReserveExternalFD();
            let set = pg_sys::CreateWaitEventSet(std::ptr::null_mut(), 3);
            let latch = pg_sys::MyLatch;
            let add = |events, socket, latch| {
                pg_sys::AddWaitEventToSet(set, events, socket, latch, std::ptr::null_mut())
            };
            let no_latch = std::ptr::null_mut();
            add(pg_sys::WL_LATCH_SET, -1, latch);
            add(pg_sys::WL_EXIT_ON_PM_DEATH, -1, no_latch);
            let socket_at = add(pg_sys::WL_SOCKET_WRITEABLE, socket, no_latch);
            SocketWaiter { set, socket_at, interest: Interest::Write, latch }
        }
    }

    /// Waits for the socket, the latch or the end of `time`. Whether the socket is ready.
    pub fn wait(
        &mut self,
        keeper: &mut LatchKeeper,
        interest: Interest,
        time: Duration,
        event: WaitEvent,
    ) -> bool {
        let mut occurred = [pg_sys::WaitEvent::default(); 2];
        // SAFETY: the set is alive; the array has as many elements as are said.
        let count = unsafe {
            if !std::ptr::eq(self.latch, pg_sys::MyLatch) {
                self.latch = pg_sys::MyLatch;
                pg_sys::ModifyWaitEvent(self.set, 0, pg_sys::WL_LATCH_SET, self.latch);
            }
            if self.interest != interest {
                self.interest = interest;
                let events = match interest {
                    Interest::Read => pg_sys::WL_SOCKET_READABLE,
                    Interest::Write => pg_sys::WL_SOCKET_WRITEABLE,
                    Interest::Both => pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE,
                };
                let null = std::ptr::null_mut();
                pg_sys::ModifyWaitEvent(self.set, self.socket_at, events, null);
            }
            pg_sys::WaitEventSetWait(self.set, millis(time), occurred.as_mut_ptr(), 2, event.info())
        };
        let seen = occurred.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
        let any = |bit: u32| seen.iter().any(|event| event.events & bit != 0);
        if any(pg_sys::WL_LATCH_SET) {
            keeper.serve();
        }
        any(pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE)
    }
}

impl Drop for SocketWaiter {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once.
        unsafe {
            pg_sys::FreeWaitEventSet(self.set);
            pg_sys::ReleaseExternalFD();
        }
    }
}
