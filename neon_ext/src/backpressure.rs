//! Holding back processes that write WAL while storage is behind (L027).
//!
//! Two halves: whoever inserts WAL looks at the lag now and then and asks for interrupt processing; the interrupts
//! hook sleeps, where cancel and terminate requests are honoured between slices. Processes that only read are never
//! held back.

use std::cell::Cell;
use std::time::{Duration, Instant};

use compute_core::backpressure::{Pressure, SLICE, pressure};

use crate::counters::{self, Counter};
use crate::ffi::latch::{self, WaitEvent};
use crate::ffi::{feedback_map, guc, process, xlog};

/// Records between two looks at the lag. A look costs less than a microsecond.
const RECORDS_PER_LOOK: u32 = 16;

thread_local! {
    static RECORDS: Cell<u32> = const { Cell::new(0) };
    /// WAL was inserted under pressure and the sleep is still owed.
    static OWED: Cell<bool> = const { Cell::new(false) };
}

fn current() -> Pressure {
    let Some(feedback) = feedback_map::read() else { return Pressure::None };
    pressure(xlog::flush_position(), &feedback, &guc::lag_limits())
}

/// This process inserts a WAL record. Cheap, callable in critical sections.
pub fn wal_inserted() {
    let records = RECORDS.get().wrapping_add(1);
    RECORDS.set(records);
    if !records.is_multiple_of(RECORDS_PER_LOOK) || process::is_walsender() {
        return;
    }
    if current() != Pressure::None {
        OWED.set(true);
        process::request_interrupt_processing();
    }
}

/// The interrupts hook. `true` asks for another round, with a look at cancel requests before it.
pub fn on_interrupts() -> bool {
    if !OWED.get() {
        return false;
    }
    match current() {
        Pressure::None => {
            OWED.set(false);
            false
        }
        Pressure::Pause(time) => {
            OWED.set(false);
            sleep(time);
            false
        }
        Pressure::Hold => {
            sleep(SLICE);
            true
        }
    }
}

fn sleep(time: Duration) {
    let started = Instant::now();
    latch::doze(time, WaitEvent::Throttle);
    let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    counters::add(Counter::ThrottledMicros, micros);
}
