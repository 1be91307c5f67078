//! From `_PG_init` to the request loop.
#![expect(unsafe_code, reason = "start-up of a Postgres process")]

use std::ffi::CStr;

use pgrx::pg_sys;
use walredo_protocol::{BufferTag, Input, Message, MessageError};

use crate::repeat::{self, Repeat};

use super::redo::{Redo, current_position};
use super::stdio::{die, exit, read_stdin};
use super::{inmem_smgr, jail, log};

/// Settings of a process that serves nobody but its parent: as little shared memory as possible, and nothing
/// that outlives the process (shared memory files would, when it is killed; in the data directory they go with
/// it).
const SETTINGS: [(&CStr, &CStr); 9] = [
    (c"max_connections", c"1"),
    (c"max_wal_senders", c"0"),
    (c"max_worker_processes", c"0"),
    (c"max_replication_slots", c"0"),
    (c"max_prepared_transactions", c"0"),
    (c"autovacuum_max_workers", c"1"),
    (c"huge_pages", c"off"),
    (c"dynamic_shared_memory_type", c"mmap"),
    (c"summarize_wal", c"off"),
];

/// Makes this process a redo process. Called from `_PG_init` of the library `neon` while
/// `shared_preload_libraries` is processed. Libraries with custom resource managers may be loaded after it.
///
/// Returns; the process is taken over when Postgres has set up shared memory.
pub fn install() {
    log::install();
    jail::die_with_parent();
    inmem_smgr::register();
    repeat::define_setting();
    // SAFETY: settings of context "postmaster" may be set while libraries are preloaded; the strings are
    // constants. The hook variable is stored by the only thread, and an earlier hook has nothing to do here.
    unsafe {
        for (name, value) in SETTINGS {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_POSTMASTER,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
        pg_sys::shmem_startup_hook = Some(take_over);
    }
}

/// `shmem_startup_hook`: Postgres has made shared memory and has not touched a data file yet.
unsafe extern "C-unwind" fn take_over() {
    // SAFETY: what PostgresSingleUserMain and PostgresMain would do next, in their order: a PGPROC, then
    // BaseInit; buffers are pinned on behalf of a resource owner.
    let redo = unsafe {
        pg_sys::InitProcess();
        pg_sys::BaseInit();
        pg_sys::CurrentResourceOwner =
            pg_sys::ResourceOwnerCreate(std::ptr::null_mut(), c"WAL redo".as_ptr());
        Redo::start()
    };
    jail::enter();
    serve(redo)
}

/// Answers requests until the input ends.
fn serve(mut redo: Redo) -> ! {
    let mut input = Input::default();
    let mut repeat = Repeat::from_setting();
    loop {
        match input.next_message() {
            Ok(Some(message)) => {
                repeat.rehearse(&message, |message| handle(&mut redo, message, Redo::rehearse));
                handle(&mut redo, message, Redo::answer);
            }
            Ok(None) => match input.fill::<ReadError>(|target| Ok(read_stdin(target)?)) {
                Ok(0) if input.is_empty() => exit(0),
                Ok(0) => die("input ends inside a message"),
                Ok(_) => (),
                Err(ReadError::Message(error)) => die(&error.to_string()),
                Err(ReadError::Io(error)) => die(&format!("could not read a request: {error}")),
            },
            Err(error) => die(&error.to_string()),
        }
    }
}

fn handle(redo: &mut Redo, message: Message<'_>, get: impl FnOnce(&mut Redo, BufferTag)) {
    let target = current_position().tag();
    match message {
        Message::Begin(tag) => redo.begin(tag),
        Message::Push(tag, page) if target == Some(tag) => redo.push(page),
        Message::Apply { end_lsn, record } if target.is_some() => redo.apply(end_lsn, record),
        Message::Get(tag) if target == Some(tag) => get(redo, tag),
        Message::Push(tag, _) | Message::Get(tag) => {
            die(&format!("message about {tag} outside a request for it"))
        }
        Message::Apply { .. } => die("record outside a request"),
    }
}

enum ReadError {
    Message(MessageError),
    Io(std::io::Error),
}

impl From<MessageError> for ReadError {
    fn from(error: MessageError) -> ReadError {
        ReadError::Message(error)
    }
}

impl From<std::io::Error> for ReadError {
    fn from(error: std::io::Error) -> ReadError {
        ReadError::Io(error)
    }
}
