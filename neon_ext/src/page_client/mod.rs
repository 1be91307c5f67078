//! Questions to the page server, with the patience that they deserve.
//!
//! Each process has its own connection, opened at the first question. While a question is under way the connection
//! is taken out of its place; it is put back only when all responses have been read. If an error unwinds through
//! here, a cancel request for one, the connection is dropped with its unread responses, and the next question opens
//! another. The same holds for a FATAL exit, which does not unwind: the exit callbacks find the place empty.

mod connection;

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::time::Instant;

use compute_core::request_lsn::{self, RequestLsns};
use compute_core::retry::{AfterFailure, Attempts};
use page_protocol::{Payload, Request, RequestKind};
use pg_types::page::Page;
use pg_types::{BlockNumber, Lsn, Oid, RelTag};

use self::connection::{Connection, Lost};
use crate::counters::{self, Counter};
use crate::ffi::guc;
use crate::ffi::latch::{self, LatchKeeper, WaitEvent};
use crate::ffi::{report, xlog};

/// The page server answered that it cannot answer.
#[derive(Debug, thiserror::Error)]
#[error("page server: {0}")]
pub struct Error(pub String);

thread_local! {
    /// Not dropped when the process ends: Postgres' functions must not be called any more then, and the kernel closes
    /// the socket.
    static CONNECTION: Cell<Option<ManuallyDrop<Box<Connection>>>> = const { Cell::new(None) };
}

/// Whether a fork exists.
pub fn exists(rel: RelTag, last_written: Lsn) -> Result<bool, Error> {
    counters::add(Counter::ExistsRequests, 1);
    match one(RequestKind::Exists(rel), current(last_written))? {
        Answer::Exists(exists) => Ok(exists),
        other => Err(misplaced(other)),
    }
}

/// Number of blocks of a fork.
pub fn nblocks(rel: RelTag, last_written: Lsn) -> Result<BlockNumber, Error> {
    counters::add(Counter::NblocksRequests, 1);
    match one(RequestKind::Nblocks(rel), current(last_written))? {
        Answer::Number(blocks) => BlockNumber::try_from(blocks).map_err(|_| too_big(blocks)),
        other => Err(misplaced(other)),
    }
}

/// Bytes of a database.
pub fn db_size(db_oid: Oid, last_written: Lsn) -> Result<i64, Error> {
    counters::add(Counter::DbSizeRequests, 1);
    match one(RequestKind::DbSize(db_oid), current(last_written))? {
        Answer::Number(bytes) => Ok(bytes),
        other => Err(misplaced(other)),
    }
}

/// One page to read, and where it goes.
pub struct PageRead<'a> {
    /// Block number.
    pub block: BlockNumber,
    /// Positions to ask at.
    pub lsns: RequestLsns,
    /// Where the page goes.
    pub page: &'a mut Page,
}

/// Reads pages of one fork: all requests are sent at once, then the responses are awaited.
pub fn get_pages(rel: RelTag, reads: &mut [PageRead<'_>]) -> Result<(), Error> {
    if reads.is_empty() {
        return Ok(());
    }
    counters::add(Counter::GetPageRequests, reads.len() as u64);
    let started = Instant::now();
    let mut requests: Vec<Request> = reads
        .iter()
        .map(|read| request(RequestKind::GetPage(rel, read.block), read.lsns))
        .collect();
    exchange(&mut requests, |index, payload| match (payload, reads.get_mut(index)) {
        (Payload::Page(page), Some(read)) => {
            read.page.copy_from_slice(page);
            Ok(())
        }
        (other, _) => Err(misplaced(Answer::from(other))),
    })?;
    counters::observe_getpage_wait(started.elapsed());
    Ok(())
}

/// Positions for the newest version of something last written at `last_written`.
pub fn current(last_written: Lsn) -> RequestLsns {
    request_lsn::for_primary(last_written)
}

/// A payload without borrowed bytes.
#[derive(Debug)]
enum Answer {
    Exists(bool),
    Number(i64),
    Other(&'static str),
}

impl From<Payload<'_>> for Answer {
    fn from(payload: Payload<'_>) -> Answer {
        match payload {
            Payload::Exists(exists) => Answer::Exists(exists),
            Payload::Nblocks(blocks) => Answer::Number(blocks.into()),
            Payload::DbSize(bytes) => Answer::Number(bytes),
            Payload::Page(_) => Answer::Other("a page"),
            Payload::SlruSegment(_) => Answer::Other("an SLRU segment"),
            Payload::Error(_) => Answer::Other("an error"),
        }
    }
}

fn misplaced(answer: Answer) -> Error {
    let what = match answer {
        Answer::Exists(_) => "whether a fork exists",
        Answer::Number(_) => "a number",
        Answer::Other(what) => what,
    };
    Error(format!("response of an unexpected kind: {what}"))
}

fn too_big(blocks: i64) -> Error {
    Error(format!("{blocks} blocks are more than a relation can have"))
}

fn request(kind: RequestKind, lsns: RequestLsns) -> Request {
    let RequestLsns { request_lsn, not_modified_since } = lsns;
    Request { request_id: 0, request_lsn, not_modified_since, kind }
}

fn one(kind: RequestKind, lsns: RequestLsns) -> Result<Answer, Error> {
    let mut answer = Answer::Other("nothing");
    exchange(&mut [request(kind, lsns)], |_, payload| {
        answer = Answer::from(payload);
        Ok(())
    })?;
    Ok(answer)
}

/// Sends requests and hands each response to `sink`, in order. Reconnects and asks again for what is missing as often
/// as `neon.max_reconnect_attempts` says; after that the process ends (L015). An error that the page server answers
/// is returned once all responses are in.
fn exchange(
    requests: &mut [Request],
    mut sink: impl FnMut(usize, Payload<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let newest = requests.iter().map(|r| r.not_modified_since).max().unwrap_or_default();
    xlog::flush(newest);
    let mut keeper = LatchKeeper::default();
    let mut attempts = Attempts::default();
    let mut done = 0;
    let mut failure = None;
    let mut connection = CONNECTION.take().map(ManuallyDrop::into_inner);
    while let Some(missing) = requests.get_mut(done..).filter(|missing| !missing.is_empty()) {
        let base = done;
        let outcome = attempt(&mut connection, &mut keeper, missing, |index, payload| {
            attempts.success();
            done = base + index + 1;
            let result = match payload {
                Payload::Error(text) => {
                    counters::add(Counter::ErrorResponses, 1);
                    Err(Error(text.into_owned()))
                }
                payload => sink(base + index, payload),
            };
            if let Err(error) = result {
                failure.get_or_insert(error);
            }
        });
        if let Err(lost) = outcome {
            connection = None;
            counters::add(Counter::Disconnects, 1);
            pause_or_give_up(&mut keeper, &mut attempts, &lost);
        }
    }
    CONNECTION.set(connection.map(ManuallyDrop::new));
    failure.map_or(Ok(()), Err)
}

fn attempt(
    connection: &mut Option<Box<Connection>>,
    keeper: &mut LatchKeeper,
    requests: &mut [Request],
    on_response: impl FnMut(usize, Payload<'_>),
) -> Result<(), Lost> {
    // A connection to where the page server was is of no use.
    if connection.as_ref().is_some_and(|c| !c.is_usable(&guc::connstring())) {
        *connection = None;
    }
    let connection = match connection {
        Some(open) => open,
        closed => {
            let new = Connection::open(keeper)?;
            counters::add(Counter::Connects, 1);
            closed.insert(Box::new(new))
        }
    };
    connection.exchange(keeper, requests, on_response)
}

fn pause_or_give_up(keeper: &mut LatchKeeper, attempts: &mut Attempts, lost: &Lost) {
    let most = guc::max_reconnect_attempts();
    match attempts.failure(most) {
        AfterFailure::RetryAfter(pause) => {
            report::log(&format!(
                "no answer from the page server (attempt {} of {most}): {lost}",
                attempts.failed()
            ));
            latch::pause(keeper, pause, WaitEvent::Connect);
        }
        AfterFailure::GiveUp => {
            report::panic(&format!(
                "page server unavailable after {} attempts: {lost}",
                attempts.failed()
            ));
        }
    }
}
