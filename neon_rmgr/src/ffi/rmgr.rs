//! The resource manager and its callbacks, each of which leads to the stock one.

use std::ffi::{CStr, c_char};
use std::io::Write;

use neon_wal::{HeapOp, RM_NEON_ID, RelationExtend, Trailer};
use pgrx::{pg_guard, pg_sys};

use super::{TRAILER_LEN, fail, info, main_data, page_mut, redo::redo, server};

/// Registers the resource manager.
pub fn register() {
    let rmgr = pg_sys::RmgrData {
        rm_name: c"neon".as_ptr(),
        rm_redo: Some(redo),
        rm_desc: Some(desc),
        rm_identify: Some(identify),
        rm_startup: None,
        rm_cleanup: None,
        rm_mask: Some(mask),
        rm_decode: Some(decode),
    };
    // SAFETY: Postgres copies the table entry; the name is static.
    unsafe { pg_sys::RegisterCustomRmgr(RM_NEON_ID, &rmgr) };
}

/// The resource manager that a kind of heap record comes from.
pub fn stock(op: HeapOp) -> &'static pg_sys::RmgrData {
    // SAFETY: the table is filled before main() and has an entry for each number.
    unsafe { &server::RmgrTable[usize::from(op.stock_rmgr())] }
}

/// `rm_desc`.
///
/// Runs also while an error in redo is reported, so it must not raise another one.
#[pg_guard]
unsafe extern "C-unwind" fn desc(buffer: pg_sys::StringInfo, record: *mut pg_sys::XLogReaderState) {
    // SAFETY: Postgres calls this with a decoded record.
    let (info, main_data) = unsafe { (info(record), main_data(record)) };
    let mut text = [0; 128];
    let mut rest = &mut text[..127];
    // What does not fit is left out.
    let _ = match HeapOp::of_neon(info) {
        Some(op) => {
            if let Some(desc) = stock(op).rm_desc {
                // SAFETY: the stock callbacks look at the stock main data only.
                unsafe { desc(buffer, record) };
            }
            match Trailer::split(main_data) {
                Some((_, Trailer { cids: [new, old] })) => {
                    let combo = |combo| if combo { " (combo)" } else { "" };
                    write!(
                        rest,
                        ", cid: {}{}, old_cid: {}{}",
                        new.raw,
                        combo(new.combo),
                        old.raw,
                        combo(old.combo)
                    )
                }
                None => write!(rest, ", no command ids"),
            }
        }
        None => match RelationExtend::decode(main_data) {
            Ok(RelationExtend { rel, nblocks }) => write!(rest, "{rel}, nblocks: {nblocks}"),
            Err(error) => write!(rest, "{error}"),
        },
    };
    append(buffer, &text);
}

/// Appends a text that ends with a zero.
fn append(buffer: pg_sys::StringInfo, text: &[u8]) {
    if let Ok(text) = CStr::from_bytes_until_nul(text) {
        // SAFETY: a buffer that Postgres gave us and a C string.
        unsafe { server::appendStringInfoString(buffer, text.as_ptr()) };
    }
}

/// `rm_identify`.
#[pg_guard]
unsafe extern "C-unwind" fn identify(info: u8) -> *const c_char {
    match HeapOp::of_neon(info) {
        Some(op) => match stock(op).rm_identify {
            // SAFETY: a look-up by number.
            Some(identify) => unsafe { identify(info) },
            None => std::ptr::null(),
        },
        None if info & 0xF0 == RelationExtend::INFO => c"RELATION_EXTEND".as_ptr(),
        None => std::ptr::null(),
    }
}

/// `rm_mask`: as for heap pages, but command ids stay, so that `wal_consistency_checking` compares them.
#[pg_guard]
unsafe extern "C-unwind" fn mask(pagedata: *mut c_char, block: pg_sys::BlockNumber) {
    // SAFETY: Postgres masks a copy of its own.
    unsafe {
        let original = *page_mut(pagedata);
        if let Some(mask) = stock(HeapOp::Insert).rm_mask {
            mask(pagedata, block);
        }
        neon_wal::keep_cids(page_mut(pagedata), &original);
    }
}

/// `rm_decode`. Logical decoding derives the length of an old tuple from that of the main data, so the trailer
/// is taken off before.
#[pg_guard]
unsafe extern "C-unwind" fn decode(
    context: *mut pg_sys::LogicalDecodingContext,
    buffer: *mut pg_sys::XLogRecordBuffer,
) {
    // SAFETY: Postgres calls this with a decoded record, which it does not use again afterwards.
    unsafe {
        let server::XLogRecordBuffer { origptr, record, .. } =
            *buffer.cast::<server::XLogRecordBuffer>();
        let decoded = (*record).record;
        match HeapOp::of_neon(info(record)) {
            Some(op) => {
                if Trailer::split(main_data(record)).is_none() {
                    fail("cannot decode a record", &"no command ids in it");
                }
                (*decoded).main_data_len -= TRAILER_LEN;
                if let Some(decode) = stock(op).rm_decode {
                    decode(context, buffer);
                }
            }
            // As LogicalDecodingProcessRecord does where there is nothing to decode.
            None => server::ReorderBufferProcessXid(
                (*context).reorder,
                (*decoded).header.xl_xid,
                origptr,
            ),
        }
    }
}
