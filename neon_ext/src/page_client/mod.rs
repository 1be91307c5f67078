//! Questions to the page server, with the patience that they deserve, and pages asked for ahead of need.
//!
//! Each process has its own connection, opened at the first question. While a question is under way the client is
//! taken out of its place; it is put back when the question is answered. If an error unwinds through here, a cancel
//! request for one, the client is dropped with its connection and all it had asked ahead, and the next question makes
//! another. The same holds for a FATAL exit, which does not unwind: the exit callbacks find the place empty.

mod client;
mod connection;
mod lease;

use std::ops::Range;
use std::time::Instant;

use compute_core::readahead::{Answer, Found, Outcome, Ticket};
use compute_core::request_lsn::{self, RequestLsns};
use compute_core::retry::{AfterFailure, Attempts};
use page_protocol::{Request, RequestKind};
use pg_types::page::Page;
use pg_types::{BlockNumber, Lsn, Oid, RelTag};

use self::client::Client;
use self::connection::Lost;
use self::lease::Lease;
use crate::counters::{self, Counter};
use crate::ffi::latch::{self, LatchKeeper, WaitEvent};
use crate::ffi::{guc, report, xlog};
use crate::last_written_lsn;

/// The page server answered that it cannot answer.
#[derive(Debug, thiserror::Error)]
#[error("page server: {0}")]
pub struct Error(pub String);

/// Whether a fork exists.
pub fn exists(rel: RelTag, last_written: Lsn) -> Result<bool, Error> {
    counters::add(Counter::ExistsRequests, 1);
    match one(RequestKind::Exists(rel), current(last_written))? {
        Answer::Exists(exists) => Ok(exists),
        other => Err(misplaced(&other)),
    }
}

/// Number of blocks of a fork.
pub fn nblocks(rel: RelTag, last_written: Lsn) -> Result<BlockNumber, Error> {
    counters::add(Counter::NblocksRequests, 1);
    match one(RequestKind::Nblocks(rel), current(last_written))? {
        Answer::Number(blocks) => BlockNumber::try_from(blocks).map_err(|_| too_big(blocks)),
        other => Err(misplaced(&other)),
    }
}

/// Bytes of a database.
pub fn db_size(db_oid: Oid, last_written: Lsn) -> Result<i64, Error> {
    counters::add(Counter::DbSizeRequests, 1);
    match one(RequestKind::DbSize(db_oid), current(last_written))? {
        Answer::Number(bytes) => Ok(bytes),
        other => Err(misplaced(&other)),
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

/// Fills those of consecutive blocks that were asked for ahead of need and are here, and tells `on_taken` of each: which
/// of the pages, and at which last-written LSN if the local file cache does not have it as well.
pub fn take_here(
    rel: RelTag,
    first: BlockNumber,
    pages: &mut [&mut Page],
    mut on_taken: impl FnMut(u32, Option<Lsn>),
) {
    let Some(mut lease) = Lease::of_existing() else { return };
    let ring = &mut lease.client().ring;
    if ring.has_blocks() {
        for ((block, at), page) in (first..).zip(0u32..).zip(pages.iter_mut()) {
            let since = current(last_written_lsn::get(rel, block)).not_modified_since;
            let Found::Here(ticket) = ring.find(rel, block, since) else { continue };
            if let Outcome::Answered(Answer::Page(bytes), cached) = ring.take(ticket) {
                page.copy_from_slice(bytes.as_slice());
                counters::add(Counter::PrefetchHits, 1);
                on_taken(at, (!cached).then_some(since));
            }
        }
    }
    lease.put_back();
}

/// Reads pages of one fork. All requests are sent at once, those for `ahead` behind them, then the answers are awaited.
/// Returns the first block of `ahead` that there was no room for.
pub fn get_pages(
    rel: RelTag,
    reads: &mut [PageRead<'_>],
    ahead: Range<BlockNumber>,
) -> Result<Option<BlockNumber>, Error> {
    if reads.is_empty() {
        return Ok(prefetch(rel, ahead));
    }
    let started = Instant::now();
    let mut lease = Lease::take();
    let mut wanted: Vec<Wanted> = reads
        .iter()
        .map(|read| {
            let request = request(RequestKind::GetPage(rel, read.block), read.lsns);
            let ticket = find_under_way(lease.client(), rel, read);
            Wanted { request, ticket, done: false }
        })
        .collect();
    let found = wanted.iter().filter(|wanted| wanted.ticket.is_some()).count() as u64;
    counters::add(Counter::PrefetchHits, found);
    counters::add(Counter::GetPageRequests, wanted.len() as u64 - found);
    let mut skipped = None;
    exchange(lease, &mut wanted, Some((rel, ahead, &mut skipped)), |index, answer| {
        match (answer, reads.get_mut(index)) {
            (Answer::Page(bytes), Some(read)) => {
                read.page.copy_from_slice(bytes.as_slice());
                Ok(())
            }
            (other, _) => Err(misplaced(&other)),
        }
    })?;
    counters::observe_getpage_wait(started.elapsed());
    Ok(skipped)
}

/// A page at an exact position is not what was asked for ahead of need.
fn find_under_way(client: &mut Client, rel: RelTag, read: &PageRead<'_>) -> Option<Ticket> {
    if read.lsns.request_lsn != Lsn::MAX {
        return None;
    }
    match client.ring.find(rel, read.block, read.lsns.not_modified_since) {
        Found::Here(ticket) | Found::UnderWay(ticket) => {
            client.ring.await_ticket(ticket);
            Some(ticket)
        }
        Found::Nothing => None,
    }
}

/// Asks for blocks of a fork ahead of need. Returns the first block that there was no room for. Never waits for an answer,
/// and never fails: whoever needs a page asks for it again. A lost connection is not made anew here, so that a page server
/// that is away costs one wait and one line in the log until somebody needs it.
pub fn prefetch(rel: RelTag, blocks: impl IntoIterator<Item = BlockNumber>) -> Option<BlockNumber> {
    let mut blocks = blocks.into_iter().peekable();
    blocks.peek()?;
    let mut lease = Lease::take();
    let client = lease.client();
    let mut skipped = None;
    if !client.has_lost_connection() {
        let mut keeper = LatchKeeper::default();
        let outcome = client
            .connect(&mut keeper)
            .and_then(|()| client.absorb())
            .and_then(|()| client.ask_ahead(rel, blocks));
        skipped = outcome.unwrap_or_else(|lost| {
            lose(client, &lost);
            None
        });
    }
    lease.put_back();
    skipped
}

/// Asks for blocks of a fork that are to go into the local file cache; at most `most` requests are under way at any time.
/// Those that it does not have to wait for are still when this returns: [`settle`]. A lost connection loses what was under
/// way, and is made anew by the next call.
pub fn ask_for_cache(
    rel: RelTag,
    blocks: impl IntoIterator<Item = BlockNumber>,
    most: u64,
) -> Result<(), Error> {
    let mut keeper = LatchKeeper::default();
    on_client(|client| {
        blocks
            .into_iter()
            .try_for_each(|block| client.ask_for_cache(&mut keeper, (rel, block), most))
    })
}

/// Waits for everything that is under way.
pub fn settle() -> Result<(), Error> {
    on_client(|client| client.settle(&mut LatchKeeper::default(), 0))
}

/// Runs `work` on the client. A lost connection is an error, and the client is as good as new after it.
fn on_client(work: impl FnOnce(&mut Client) -> Result<(), Lost>) -> Result<(), Error> {
    let mut lease = Lease::take();
    let result = work(lease.client()).map_err(|lost| {
        lose(lease.client(), &lost);
        Error(format!("lost the page server: {lost}"))
    });
    lease.put_back();
    result
}

/// The connection broke while nobody waited for an answer. Who needs a page has the patience to try again.
fn lose(client: &mut Client, lost: &Lost) {
    report::log(&format!("lost the page server: {lost}"));
    counters::add(Counter::Disconnects, 1);
    client.drop_connection();
}

/// Sends what is queued and takes in what has come. Called from interrupt processing while something is under way, so
/// that a process that does something else meanwhile does not keep the page server waiting.
pub fn attend() {
    let Some(mut lease) = Lease::of_existing() else { return };
    let client = lease.client();
    if let Err(lost) = client.flush().and_then(|()| client.absorb()) {
        lose(client, &lost);
    }
    lease.put_back();
}

/// Positions for the newest version of something last written at `last_written`.
pub fn current(last_written: Lsn) -> RequestLsns {
    request_lsn::for_primary(last_written)
}

fn misplaced(answer: &Answer<Box<Page>>) -> Error {
    let what = match answer {
        Answer::Exists(_) => "whether a fork exists",
        Answer::Number(_) => "a number",
        Answer::Page(_) => "a page",
        Answer::Error(text) => text,
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

fn one(kind: RequestKind, lsns: RequestLsns) -> Result<Answer<Box<Page>>, Error> {
    let mut result = Answer::Error("nothing".to_owned());
    let mut wanted = [Wanted { request: request(kind, lsns), ticket: None, done: false }];
    exchange(Lease::take(), &mut wanted, None, |_, answer| {
        result = answer;
        Ok(())
    })?;
    Ok(result)
}

/// A request that somebody waits for.
struct Wanted {
    request: Request,
    /// Its place in the ring, once it was asked.
    ticket: Option<Ticket>,
    done: bool,
}

/// Pages to ask for behind the awaited ones, and where to say what there was no room for.
type AheadOf<'a> = (RelTag, Range<BlockNumber>, &'a mut Option<BlockNumber>);

/// Sees to it that all requests are answered, and hands each answer to `sink`. Reconnects and asks again for what is
/// missing as often as `neon.max_reconnect_attempts` says; after that the process ends (L015). An error that the page
/// server answers is returned once all answers are in.
fn exchange(
    mut lease: Lease,
    wanted: &mut [Wanted],
    mut ahead: Option<AheadOf<'_>>,
    mut sink: impl FnMut(usize, Answer<Box<Page>>) -> Result<(), Error>,
) -> Result<(), Error> {
    let newest = wanted.iter().map(|w| w.request.not_modified_since).max().unwrap_or_default();
    xlog::flush(newest);
    let mut keeper = LatchKeeper::default();
    let mut attempts = Attempts::default();
    let mut failure = None;
    loop {
        let outcome =
            attempt(lease.client(), &mut keeper, wanted, ahead.take(), |index, answer| {
                attempts.success();
                let result = match answer {
                    Answer::Error(text) => Err(Error(text)),
                    answer => sink(index, answer),
                };
                if let Err(error) = result {
                    failure.get_or_insert(error);
                }
            });
        match outcome {
            Ok(()) => break,
            Err(lost) => {
                lease.client().drop_connection();
                counters::add(Counter::Disconnects, 1);
                pause_or_give_up(&mut keeper, &mut attempts, &lost);
            }
        }
    }
    lease.put_back();
    failure.map_or(Ok(()), Err)
}

fn attempt(
    client: &mut Client,
    keeper: &mut LatchKeeper,
    wanted: &mut [Wanted],
    ahead: Option<AheadOf<'_>>,
    mut on_answer: impl FnMut(usize, Answer<Box<Page>>),
) -> Result<(), Lost> {
    for (index, one) in wanted.iter_mut().enumerate().filter(|(_, one)| !one.done) {
        match one.ticket.map(|ticket| client.ring.take(ticket)) {
            Some(Outcome::Answered(answer, _)) => {
                one.done = true;
                on_answer(index, answer);
            }
            Some(Outcome::UnderWay) => {}
            Some(Outcome::Lost) | None => one.ticket = Some(client.ask(keeper, one.request)?),
        }
    }
    if let Some((rel, blocks, skipped)) = ahead
        && !blocks.is_empty()
    {
        client.connect(keeper)?;
        *skipped = client.ask_ahead(rel, blocks)?;
    }
    client.flush()?;
    for (index, one) in wanted.iter_mut().enumerate().filter(|(_, one)| !one.done) {
        let Some(ticket) = one.ticket else { continue };
        loop {
            match client.ring.take(ticket) {
                Outcome::Answered(answer, _) => {
                    one.done = true;
                    on_answer(index, answer);
                    break;
                }
                Outcome::UnderWay => client.receive(keeper)?,
                // The connection was given up for another one in between.
                Outcome::Lost => return Err(Lost::Closed),
            }
        }
    }
    Ok(())
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
