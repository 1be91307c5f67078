//! Everything that calls Postgres or is called by it.
#![expect(unsafe_code, reason = "callbacks from Postgres and calls into it")]

mod insert_hook;
mod redo;
mod rmgr;
mod server;

use pg_types::page::Page;
use pgrx::{pg_guard, pg_sys};

/// Registers the resource manager and the hook. Postgres refuses the first unless it is preloading libraries.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    rmgr::register();
    insert_hook::install();
}

/// [`SIZE_OF_TRAILER`](neon_wal::SIZE_OF_TRAILER) as Postgres counts main data.
const TRAILER_LEN: u32 = 12;
const _: () = assert!(TRAILER_LEN as usize == neon_wal::SIZE_OF_TRAILER);

/// Ends the current operation. In a critical section, as around WAL insertion and in redo of a page, Postgres
/// makes it a panic of the server: going on would lose command ids.
fn fail(what: &str, error: &dyn std::fmt::Display) -> ! {
    pgrx::error!("resource manager neon: {what}: {error}")
}

/// Main data of a decoded record.
///
/// # Safety
/// `record` is a record that Postgres has decoded and keeps for `'a`.
unsafe fn main_data<'a>(record: *const pg_sys::XLogReaderState) -> &'a [u8] {
    // SAFETY: DecodeXLogRecord has set both fields: a pointer into the decoded record, and the bytes there.
    // Without main data the pointer is not defined.
    unsafe {
        let decoded = (*record).record;
        let len = (*decoded).main_data_len as usize;
        if len == 0 {
            return &[];
        }
        std::slice::from_raw_parts((*decoded).main_data.cast::<u8>(), len)
    }
}

/// `XLogRecGetInfo` without the bits of the WAL machinery (`XLR_INFO_MASK`).
///
/// # Safety
/// As [`main_data`].
unsafe fn info(record: *const pg_sys::XLogReaderState) -> u8 {
    // SAFETY: the header is part of every decoded record.
    unsafe { (*(*record).record).header.xl_info & 0xF0 }
}

/// The bytes of a page.
///
/// # Safety
/// `page` leads to a page that nobody changes during `'a`.
unsafe fn page_ref<'a>(page: *const std::ffi::c_char) -> &'a Page {
    // SAFETY: a page has BLCKSZ bytes, and bytes need no alignment.
    unsafe { &*page.cast::<Page>() }
}

/// The bytes of a page, to be changed.
///
/// # Safety
/// `page` leads to a page that nobody else uses during `'a`.
unsafe fn page_mut<'a>(page: *mut std::ffi::c_char) -> &'a mut Page {
    // SAFETY: as for `page_ref`.
    unsafe { &mut *page.cast::<Page>() }
}
