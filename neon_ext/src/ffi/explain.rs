//! What a statement needed of storage, in the output of `EXPLAIN (ANALYZE, BUFFERS)` (L140).
#![expect(
    unsafe_code,
    reason = "sets a hook variable of the server and prints through its functions"
)]

use std::ffi::{CStr, c_char};

use pgrx::pg_guard;
use pgrx::pg_sys;

use super::guc;
use crate::counters::{self, Counter};

type Hook = unsafe extern "C-unwind" fn(
    *mut pg_sys::Query,
    i32,
    *mut pg_sys::IntoClause,
    *mut pg_sys::ExplainState,
    *const c_char,
    pg_sys::ParamListInfo,
    *mut pg_sys::QueryEnvironment,
);

mod raw {
    use super::{c_char, pg_sys};

    // SAFETY: the declaration of `commands/explain.h`, without the wrapper that pgrx puts around it.
    unsafe extern "C-unwind" {
        #[link_name = "standard_ExplainOneQuery"]
        pub fn standard(
            query: *mut pg_sys::Query,
            cursor_options: i32,
            into: *mut pg_sys::IntoClause,
            state: *mut pg_sys::ExplainState,
            text: *const c_char,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
        );
    }
}

static mut PREVIOUS: Option<Hook> = None;

/// What is shown, and under which name. Parallel workers count for themselves and are not in it.
const SHOWN: [(Counter, &CStr); 4] = [
    (Counter::GetPageRequests, c"Page Server Reads"),
    (Counter::PrefetchRequests, c"Prefetch Requests"),
    (Counter::PrefetchHits, c"Prefetch Hits"),
    (Counter::PrefetchWasted, c"Prefetch Discards"),
];

type Counts = [u64; SHOWN.len()];

fn count() -> Counts {
    SHOWN.map(|(counter, _)| counters::of_this_process(counter))
}

/// Installs the hook.
pub fn install() {
    // SAFETY: runs in the postmaster before it has children.
    unsafe {
        PREVIOUS = pg_sys::ExplainOneQuery_hook;
        pg_sys::ExplainOneQuery_hook = Some(explain_one_query);
    }
}

unsafe extern "C-unwind" fn explain_one_query(
    query: *mut pg_sys::Query,
    cursor_options: i32,
    into: *mut pg_sys::IntoClause,
    state: *mut pg_sys::ExplainState,
    text: *const c_char,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
) {
    let before = count();
    // SAFETY: the arguments are passed on as they came. No value here has a destructor, so an error may jump over this
    // frame.
    unsafe {
        let explain = PREVIOUS.unwrap_or(raw::standard);
        explain(query, cursor_options, into, state, text, params, environment);
        show(state, &raw const before);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn show(state: *mut pg_sys::ExplainState, before: *const Counts) {
    // SAFETY: called above with live values; the printing functions take NUL-terminated names.
    unsafe {
        if !(*state).analyze || !(*state).buffers || !guc::explain_storage() {
            return;
        }
        let now = count();
        let used: Vec<u64> = now.iter().zip(&*before).map(|(now, then)| now - then).collect();
        // Like PostgreSQL's own line on buffers: nothing is said about nothing.
        if used.iter().all(|used| *used == 0) {
            return;
        }
        let group = c"Storage".as_ptr();
        pg_sys::ExplainOpenGroup(group, group, true, state);
        for ((_, name), used) in SHOWN.iter().zip(used) {
            let used = i64::try_from(used).unwrap_or(i64::MAX);
            pg_sys::ExplainPropertyInteger(name.as_ptr(), std::ptr::null(), used, state);
        }
        pg_sys::ExplainCloseGroup(group, group, true, state);
    }
}
