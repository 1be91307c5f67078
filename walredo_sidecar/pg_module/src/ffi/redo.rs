//! One request: base page, records, answer, and back to a clean slate.
#![expect(unsafe_code, reason = "drives Postgres' redo routines")]

use std::ffi::{CStr, c_char};
use std::fmt;

use pg_types::page::Page;
use pg_types::{BLCKSZ, Lsn};
use pgrx::pg_sys;
use walredo_protocol::{BufferTag, check_record};

use super::inmem_smgr::{self, locator};
use super::pg;
use super::single::Single;
use super::stdio::{STDOUT, die, write_all};

/// Scratch memory that a huge record made bigger than this (in 8-byte words) is given back after its request.
const KEEP_WORDS: usize = 128 * 1024;
/// Storage manager entries are dropped once this many were made; a process that lives long would otherwise keep
/// one for every relation it ever saw.
const MAX_OPEN_RELATIONS: u32 = 64;

/// Where redo is, for the error report.
#[derive(Clone, Copy, Default)]
pub(super) struct Position {
    tag: Option<BufferTag>,
    /// End LSN and resource manager of the record being applied.
    record: Option<(Lsn, u8)>,
}

static POSITION: Single<Position> = Single::new(Position { tag: None, record: None });

/// A copy of where redo is.
pub(super) fn current_position() -> Position {
    // SAFETY: a copy of a plain value by the only thread.
    unsafe { *POSITION.get() }
}

impl Position {
    /// The page of the request that is running.
    pub(super) fn tag(self) -> Option<BufferTag> {
        self.tag
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.tag, self.record) {
            (Some(tag), Some((lsn, rmid))) => {
                write!(f, "WAL redo of {tag}, record of resource manager {rmid} that ends at {lsn}")
            }
            (Some(tag), None) => write!(f, "WAL redo of {tag}"),
            (None, _) => f.write_str("WAL redo start-up"),
        }
    }
}

/// Redo state that lives as long as the process.
pub(super) struct Redo {
    reader: *mut pg_sys::XLogReaderState,
    /// Holds whatever a request allocates; reset after each.
    context: pg_sys::MemoryContext,
    /// Copy of the record being applied: decoding wants it MAXALIGNed.
    record: Vec<u64>,
    /// The decoded record.
    decoded: Vec<u64>,
    opened: u32,
}

impl Redo {
    /// Makes this process one that can redo.
    ///
    /// # Safety
    /// Shared memory exists, this process has a PGPROC, and nothing runs in it but this.
    pub(super) unsafe fn start() -> Redo {
        let mut routine =
            pg_sys::XLogReaderRoutine { page_read: None, segment_open: None, segment_close: None };
        // SAFETY: by contract the process is far enough in its start-up for every call here; the reader copies
        // the routine. `reachedConsistency` makes redo PANIC on the spot when a record needs a page that has no
        // content (`log_invalid_page`), instead of noting it in a table that grows: the target was pushed or
        // the first record makes it, else the request is wrong and must not be answered with zeros.
        unsafe {
            pg_sys::CurrentMemoryContext = pg_sys::TopMemoryContext;
            pg_sys::InRecovery = true;
            pg_sys::reachedConsistency = true;
            pg_sys::RmgrStartup();
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"WAL redo request".as_ptr(),
                0,
                8 * 1024,
                8 * 1024 * 1024,
            );
            let reader = pg_sys::XLogReaderAllocate(
                pg_sys::wal_segment_size,
                std::ptr::null(),
                &raw mut routine,
                std::ptr::null_mut(),
            );
            if reader.is_null() {
                die("out of memory");
            }
            Redo { reader, context, record: Vec::new(), decoded: Vec::new(), opened: 0 }
        }
    }

    /// Starts a request.
    pub(super) fn begin(&mut self, tag: BufferTag) {
        if current_position().tag.is_some() {
            self.reset();
        }
        inmem_smgr::begin(tag);
        // SAFETY: a store of a plain value by the only thread.
        unsafe {
            *POSITION.get() = Position { tag: Some(tag), record: None };
            pg_sys::CurrentMemoryContext = self.context;
        }
    }

    /// The page before the first record.
    pub(super) fn push(&mut self, page: &Page) {
        inmem_smgr::push(page);
    }

    /// Applies one record.
    pub(super) fn apply(&mut self, end_lsn: Lsn, record: &[u8]) {
        let rmid = check_record(record).unwrap_or_else(|error| die(&error.to_string()));
        // SAFETY: a store of a plain value by the only thread; see `decode` and `rm_redo` for the calls.
        unsafe {
            (*POSITION.get()).record = Some((end_lsn, rmid));
            let decoded = self.decode(end_lsn, record);
            if (*decoded).max_block_id < 0 {
                die("WAL record references no block");
            }
            (*self.reader).record = decoded;
            (*self.reader).ReadRecPtr = end_lsn.0;
            (*self.reader).EndRecPtr = end_lsn.0;
            rm_redo(rmid)(self.reader);
            if (*decoded).max_block_id > 0 {
                fence_other_pages();
            }
        }
    }

    /// Decodes a record into `self.decoded`.
    ///
    /// # Safety
    /// `record` has passed [`check_record`], so its length is what its header says.
    unsafe fn decode(&mut self, end_lsn: Lsn, record: &[u8]) -> *mut pg_sys::DecodedXLogRecord {
        let reserve = |words: &mut Vec<u64>, bytes: usize| {
            let needed = bytes.div_ceil(size_of::<u64>());
            if words.len() < needed {
                words.resize(needed, 0);
            }
        };
        reserve(&mut self.record, record.len());
        // SAFETY: pure arithmetic on the length.
        let space = unsafe { pg::DecodeXLogRecordRequiredSpace(record.len()) };
        reserve(&mut self.decoded, space);
        let mut message: *mut c_char = std::ptr::null_mut();
        let decoded = self.decoded.as_mut_ptr().cast::<pg_sys::DecodedXLogRecord>();
        // SAFETY: both buffers are 8-byte aligned and were just made big enough; DecodeXLogRecord reads
        // `xl_tot_len` bytes, which check_record found equal to `record.len()`, and bounds itself by it. On
        // failure it points `message` at the reader's error buffer.
        unsafe {
            let copy = self.record.as_mut_ptr();
            std::ptr::copy_nonoverlapping(record.as_ptr(), copy.cast::<u8>(), record.len());
            let ok = pg::DecodeXLogRecord(
                self.reader,
                decoded,
                copy.cast(),
                end_lsn.0,
                &raw mut message,
            );
            if !ok {
                die(&CStr::from_ptr(message).to_string_lossy());
            }
        }
        decoded
    }

    /// Answers with the page and forgets the request.
    pub(super) fn answer(&mut self, tag: BufferTag) {
        self.finish(tag, |page| {
            if write_all(STDOUT, page).is_err() {
                die("could not write the answer");
            }
        });
    }

    /// Rebuilds the page like [`Redo::answer`] and forgets the request, but tells nobody.
    pub(super) fn rehearse(&mut self, tag: BufferTag) {
        self.finish(tag, |_| ());
    }

    fn finish(&mut self, tag: BufferTag, take: impl FnOnce(&[u8])) {
        // SAFETY: as in `begin`.
        unsafe { (*POSITION.get()).record = None };
        let fork = i32::from(tag.rel.fork.number());
        // SAFETY: reading a block through the buffer pool; the storage manager serves every block. The buffer
        // stays pinned until the page has been taken, and nobody else can modify it.
        unsafe {
            let buffer = pg::ReadBufferWithoutRelcache(
                locator(tag.rel),
                fork,
                tag.blkno,
                pg_sys::ReadBufferMode::RBM_NORMAL,
                std::ptr::null_mut(),
                true,
            );
            let Some(index) = usize::try_from(buffer).ok().and_then(|n| n.checked_sub(1)) else {
                die("the page was read into a local buffer");
            };
            let page = pg_sys::BufferBlocks.cast::<u8>().add(index * BLCKSZ);
            take(std::slice::from_raw_parts(page, BLCKSZ));
            pg::ReleaseBuffer(buffer);
        }
        self.reset();
    }

    /// Forgets everything a request left: buffers, memory, storage manager entries.
    fn reset(&mut self) {
        self.drop_buffers();
        self.opened = self.opened.saturating_add(inmem_smgr::take_opened());
        // SAFETY: nothing keeps a pointer into the request's context or to a storage manager entry between
        // requests: buffers are dropped, and redo routines leave none behind.
        unsafe {
            if self.opened > MAX_OPEN_RELATIONS {
                pg::smgrdestroyall();
                self.opened = 0;
            }
            pg_sys::CurrentMemoryContext = pg_sys::TopMemoryContext;
            pg::MemoryContextReset(self.context);
            *POSITION.get() = Position::default();
        }
        for scratch in [&mut self.record, &mut self.decoded] {
            if scratch.len() > KEEP_WORDS {
                *scratch = Vec::new();
            }
        }
    }

    /// Drops the buffers of every relation that has one. A buffer that is still pinned is an error in a redo
    /// routine; Postgres says so and the process ends.
    fn drop_buffers(&mut self) {
        // SAFETY: no redo routine is running. A relation's entry stays valid until smgrdestroyall.
        unsafe {
            for_each_buffer(|_, tag| {
                let rlocator = pg_sys::RelFileLocator {
                    spcOid: tag.spcOid,
                    dbOid: tag.dbOid,
                    relNumber: tag.relNumber,
                };
                let mut reln = pg::smgropen(rlocator, pg_sys::INVALID_PROC_NUMBER);
                pg::DropRelationsAllBuffers(&raw mut reln, 1);
            });
        }
    }
}

/// Gives every page in the buffer pool but the target the greatest LSN.
///
/// A record may make pages beside the target. A later record of the same request may change such a page again,
/// but what happened to it in between is not part of the request; redo on it would fail or, worse, be applied to
/// the wrong content. With this LSN it counts as up to date, as do pages that were never touched (see
/// [`inmem_smgr`]).
///
/// # Safety
/// No redo routine is running.
unsafe fn fence_other_pages() {
    // SAFETY: descriptors and blocks exist for NBuffers buffers, nobody else is attached, and a valid tag means
    // that the block holds a page, whose first 8 bytes are its LSN.
    unsafe {
        for_each_buffer(|index, tag| {
            if !inmem_smgr::is_target_tag(tag) {
                let page = pg_sys::BufferBlocks.cast::<u8>().add(index * BLCKSZ);
                std::ptr::write_bytes(page, 0xFF, size_of::<u64>());
            }
        });
    }
}

/// Calls `visit` for every buffer that holds a page.
///
/// # Safety
/// Shared memory exists and no other process is attached to it.
unsafe fn for_each_buffer(mut visit: impl FnMut(usize, pg_sys::BufferTag)) {
    // SAFETY: `BufferDescriptors` holds NBuffers descriptors (bufmgr.c); nobody changes them meanwhile but
    // `visit`, which gets copies.
    unsafe {
        let count = usize::try_from(pg_sys::NBuffers).unwrap_or(0);
        for index in 0..count {
            let descriptor = &raw const (*pg_sys::BufferDescriptors.add(index)).bufferdesc;
            if (*descriptor).state.value & pg_sys::BM_TAG_VALID != 0 {
                visit(index, (*descriptor).tag);
            }
        }
    }
}

/// The redo routine of a resource manager.
///
/// # Safety
/// All libraries that register resource managers are loaded.
unsafe fn rm_redo(rmid: u8) -> unsafe extern "C-unwind" fn(*mut pg_sys::XLogReaderState) {
    // SAFETY: `RmgrTable` (rmgr.c) has RM_MAX_ID + 1 = 256 entries, so any u8 is inside; entries of managers
    // that are not registered are all zero.
    let entry =
        unsafe { &*(&raw const pg_sys::RmgrTable).cast::<pg_sys::RmgrData>().add(rmid.into()) };
    match entry.rm_redo {
        Some(redo) => redo,
        None => die(&format!("resource manager with ID {rmid} not registered")),
    }
}
