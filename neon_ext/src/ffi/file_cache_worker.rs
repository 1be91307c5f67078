//! The background worker of the local file cache: applies changes of the limit.
#![expect(unsafe_code, reason = "exports a function and calls the server")]

use std::time::Duration;

use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::pg_guard;
use pgrx::pg_sys;

use super::guc_file_cache as guc;
use crate::file_cache;

/// Time after which the limit is looked at again: chunks that were in use may not be any more.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Registers the worker, unless there is nothing for it to do.
pub fn register() {
    if guc::max_size() == 0 {
        return;
    }
    BackgroundWorkerBuilder::new("neon file cache")
        .set_type("neon file cache")
        .set_library("neon")
        .set_function("neon_file_cache_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::PostmasterStart)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// Entry point of the worker.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn neon_file_cache_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    file_cache::apply_limit(guc::size_limit());
    while BackgroundWorker::wait_latch(Some(LOOK_AGAIN)) {
        if BackgroundWorker::sighup_received() {
            // SAFETY: what every process does in its main loop when it is told that the files have changed.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        }
        file_cache::apply_limit(guc::size_limit());
    }
}
