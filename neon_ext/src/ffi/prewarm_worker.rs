//! The background worker that fills the local file cache at server start and saves now and then what is in it.
#![expect(unsafe_code, reason = "exports a function and sets a signal handler")]

use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::pg_guard;
use pgrx::pg_sys;

use super::{guc_file_cache as guc, report};
use crate::file_cache::prewarm;

mod raw {
    use std::ffi::c_int;

    unsafe extern "C-unwind" {
        /// `postgres.c`; the bindings have it as a wrapper, which is no signal handler.
        pub fn die(signal: c_int);
    }
}

/// Registers the worker, unless there is nothing for it to do.
pub fn register() {
    if guc::max_size() == 0 || !guc::PREWARM.get() {
        return;
    }
    BackgroundWorkerBuilder::new("neon prewarm")
        .set_type("neon prewarm")
        .set_library("neon")
        .set_function("neon_prewarm_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::ConsistentState)
        // An error, like one that a page server answers, ends it. It does not begin again: queries come first.
        .set_restart_time(None)
        .load();
}

/// Entry point of the worker.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn neon_prewarm_main(_argument: pg_sys::Datum) {
    // SAFETY: what `BackgroundWorkerMain` leaves to the worker. `die` ends the process at its next look at interrupts, also
    // in the middle of a wait for the page server: a list that was half worked off is not saved over the whole one.
    unsafe {
        pg_sys::pqsignal(pg_sys::SIGTERM.cast_signed(), Some(raw::die));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
    // A list that could not be worked off is better than what little is cached shortly after.
    let mut is_worth_saving = true;
    match prewarm::restore() {
        Ok(None | Some(0)) => {}
        Ok(Some(pages)) => {
            report::log(&format!("{pages} pages were brought into the local file cache"));
        }
        Err(error) => {
            is_worth_saving = !matches!(error, prewarm::Error::PageServer(_));
            report::log(&format!("could not fill the local file cache: {error}"));
        }
    }
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    while BackgroundWorker::wait_latch(guc::save_interval()) {
        if BackgroundWorker::sighup_received() {
            // SAFETY: what every process does in its main loop when it is told that the files have changed.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            continue;
        }
        save();
        is_worth_saving = true;
    }
    if is_worth_saving {
        save();
    }
}

fn save() {
    if let Err(error) = prewarm::save() {
        report::log(&error.to_string());
    }
}
