//! Holding back processes that write WAL while storage is behind (L027).
//!
//! Two halves: whoever inserts WAL counts now and then what it has written since, and asks for interrupt processing when
//! that makes a pause; the interrupts hook pauses, slice by slice, and cancel and terminate requests are honoured between
//! slices. Processes that only read owe nothing.

use std::cell::Cell;
use std::time::Instant;

use compute_core::backpressure::{Debt, Pace};

use crate::counters::{self, Counter};
use crate::ffi::latch::{self, WaitEvent};
use crate::ffi::{feedback_map, guc, process, xlog};

/// Records between two looks at the lag. A look costs less than a microsecond.
const RECORDS_PER_LOOK: u32 = 16;

thread_local! {
    static RECORDS: Cell<u32> = const { Cell::new(0) };
    static DEBT: Cell<Debt> = const { Cell::new(Debt::none()) };
    /// A pause is due.
    static DUE: Cell<bool> = const { Cell::new(false) };
}

/// The pace at this moment.
pub fn pace() -> Pace {
    let Some(feedback) = feedback_map::read() else { return Pace::FREE };
    Pace::at(xlog::flush_position(), &feedback, &guc::lag_limits())
}

/// This process inserts a WAL record. Cheap, callable in critical sections.
pub fn wal_inserted() {
    let records = RECORDS.get().wrapping_add(1);
    RECORDS.set(records);
    if !records.is_multiple_of(RECORDS_PER_LOOK) || process::is_walsender() {
        return;
    }
    let pace = pace();
    let mut debt = DEBT.get();
    debt.count(xlog::bytes_written_by_this_process(), pace);
    DEBT.set(debt);
    if debt.pause(pace).is_some() {
        DUE.set(true);
        process::request_interrupt_processing();
    }
}

/// The interrupts hook. `true` asks for another round, with a look at cancel requests before it.
pub fn on_interrupts() -> bool {
    if !DUE.get() {
        return false;
    }
    let mut debt = DEBT.get();
    let Some(pause) = debt.pause(pace()) else {
        DUE.set(false);
        return false;
    };
    let started = Instant::now();
    latch::doze(pause, WaitEvent::Throttle);
    let time = started.elapsed();
    debt.paused(time, pace());
    DEBT.set(debt);
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    counters::add(Counter::ThrottledMicros, micros);
    true
}
