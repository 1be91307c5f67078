//! A timer of this process that has page answers taken off the socket while it does something else.
#![expect(
    unsafe_code,
    reason = "calls the server's timeout functions and runs in a signal handler"
)]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;

use super::{guc, process};

/// `TimeoutId` of `utils/timeout.h`, which the bindings leave out.
type TimeoutId = std::ffi::c_int;

/// The first number that is not PostgreSQL's own; `RegisterTimeout` takes it as "any free one". Held against the header in
/// `tests/modules/abi_probe/abi_probe.c`.
const USER_TIMEOUT: TimeoutId = 13;

mod raw {
    use super::TimeoutId;

    // SAFETY: the declarations of `utils/timeout.h`. None of them raises an error once the process has timeouts, but
    // for RegisterTimeout, which is FATAL when all ten numbers are taken.
    unsafe extern "C-unwind" {
        pub fn RegisterTimeout(
            id: TimeoutId,
            handler: Option<unsafe extern "C-unwind" fn()>,
        ) -> TimeoutId;
        pub fn enable_timeout_after(id: TimeoutId, delay_ms: std::ffi::c_int);
        pub fn get_timeout_active(id: TimeoutId) -> bool;
    }
}

thread_local! {
    /// Once this process has registered one.
    static ID: Cell<Option<TimeoutId>> = const { Cell::new(None) };
}

static DUE: AtomicBool = AtomicBool::new(false);

/// Runs in a signal handler: sets flags, as the handlers of `postinit.c` do.
unsafe extern "C-unwind" fn on_timeout() {
    DUE.store(true, Ordering::Relaxed);
    process::request_interrupt_processing();
    // SAFETY: SetLatch is made for signal handlers; MyLatch is set in a process that has timeouts.
    unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
}

/// Starts the timer unless it runs. Nothing happens in processes without timeouts of their own and with
/// `neon.readahead_getpage_pull_timeout=0`.
pub fn arm() {
    let millis = guc::pull_timeout_ms();
    if millis == 0 || !process::has_timeouts() {
        return;
    }
    let id = ID.get().unwrap_or_else(|| {
        // SAFETY: the process has called InitializeTimeouts (`has_timeouts`); USER_TIMEOUT asks for a free number.
        let id = unsafe { raw::RegisterTimeout(USER_TIMEOUT, Some(on_timeout)) };
        ID.set(Some(id));
        id
    });
    // SAFETY: a registered timeout.
    unsafe {
        if !raw::get_timeout_active(id) {
            raw::enable_timeout_after(id, millis);
        }
    }
}

/// Whether the timer has fired since the last call.
pub fn take_due() -> bool {
    DUE.load(Ordering::Relaxed) && DUE.swap(false, Ordering::Relaxed)
}
