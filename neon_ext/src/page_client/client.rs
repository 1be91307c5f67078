//! The connection of this process together with what was asked over it.

use compute_core::readahead::{Answer, Purpose, Ring, Ticket};
use page_protocol::{Payload, Request, RequestKind};
use pg_types::page::Page;
use pg_types::{BlockNumber, RelTag};

use super::connection::{Connection, Lost};
use super::current;
use crate::counters::{self, Counter};
use crate::ffi::guc;
use crate::ffi::latch::LatchKeeper;
use crate::ffi::xlog;
use crate::{file_cache, last_written_lsn};

/// Requests ahead of need that are collected before they are sent, unless somebody waits.
const SEND_AT: usize = 8;

/// See the module.
pub struct Client {
    connection: Option<Box<Connection>>,
    /// The last connection broke, and there was no new one since.
    lost: bool,
    /// Public to the module: waiting for answers and taking them is its business.
    pub(super) ring: Ring<Box<Page>>,
}

impl Client {
    /// Not connected yet.
    pub fn new() -> Client {
        let ring = Ring::new(guc::readahead_buffer_size());
        Client { connection: None, lost: false, ring }
    }

    /// The connection, made if need be. A connection to where the page server was is of no use, nor is one on which
    /// something came that nobody asked for.
    fn connection(&mut self, keeper: &mut LatchKeeper) -> Result<&mut Connection, Lost> {
        let idle = self.ring.under_way() == 0;
        let is_usable =
            |open: &Connection| open.leads_to(&guc::connstring()) && !(idle && open.has_bytes());
        if self.connection.as_ref().is_some_and(|open| !is_usable(open)) {
            self.drop_connection();
        }
        match &mut self.connection {
            Some(open) => Ok(open),
            closed => {
                let new = Connection::open(keeper)?;
                counters::add(Counter::Connects, 1);
                self.lost = false;
                Ok(closed.insert(Box::new(new)))
            }
        }
    }

    /// Forgets the connection and what is under way on it. Pages that have come stay.
    pub fn drop_connection(&mut self) {
        self.connection = None;
        self.lost = true;
        self.ring.connection_lost();
    }

    /// Whether the last connection broke and nobody has made a new one.
    pub fn has_lost_connection(&self) -> bool {
        self.lost
    }

    /// Asks for something that somebody waits for. It is sent when that wait begins.
    pub fn ask(&mut self, keeper: &mut LatchKeeper, mut request: Request) -> Result<Ticket, Lost> {
        self.connection(keeper)?.queue(&mut request);
        Ok(self.ring.push(request, Purpose::Awaited))
    }

    /// Asks for pages ahead of need. Returns the first block that there was no room for. Does not wait, so there must be a
    /// connection already.
    pub fn ask_ahead(
        &mut self,
        rel: RelTag,
        blocks: impl Iterator<Item = BlockNumber>,
    ) -> Result<Option<BlockNumber>, Lost> {
        let Some(connection) = &mut self.connection else { return Ok(None) };
        self.ring.set_capacity(guc::readahead_buffer_size());
        for block in blocks {
            if file_cache::contains(rel, block) {
                continue;
            }
            let lsns = current(last_written_lsn::get_stable(rel, block));
            if self.ring.knows(rel, block, lsns.not_modified_since) {
                counters::add(Counter::PrefetchDuplicates, 1);
                continue;
            }
            if !self.ring.make_room() {
                return Ok(Some(block));
            }
            xlog::flush(lsns.not_modified_since);
            let mut request = super::request(RequestKind::GetPage(rel, block), lsns);
            connection.queue(&mut request);
            self.ring.push(request, Purpose::Ahead);
            counters::add(Counter::PrefetchRequests, 1);
        }
        if connection.queued() >= SEND_AT {
            connection.flush()?;
        }
        Ok(None)
    }

    /// Asks for a page that is to go into the local file cache, once fewer than `most` requests are under way, unless the
    /// page is known already.
    pub fn ask_for_cache(
        &mut self,
        keeper: &mut LatchKeeper,
        (rel, block): (RelTag, BlockNumber),
        most: u64,
    ) -> Result<(), Lost> {
        let lsns = current(last_written_lsn::get_stable(rel, block));
        if self.ring.knows(rel, block, lsns.not_modified_since) {
            return Ok(());
        }
        self.settle(keeper, most.saturating_sub(1))?;
        xlog::flush(lsns.not_modified_since);
        let mut request = super::request(RequestKind::GetPage(rel, block), lsns);
        self.connection(keeper)?.queue(&mut request);
        self.ring.push(request, Purpose::Cache);
        Ok(())
    }

    /// Waits until at most `most` requests are under way.
    pub fn settle(&mut self, keeper: &mut LatchKeeper, most: u64) -> Result<(), Lost> {
        while self.ring.under_way() > most {
            self.flush()?;
            self.receive(keeper)?;
        }
        Ok(())
    }

    /// Connects unless there is a connection.
    pub fn connect(&mut self, keeper: &mut LatchKeeper) -> Result<(), Lost> {
        self.connection(keeper).map(drop)
    }

    /// Sends what is queued. Does not wait.
    pub fn flush(&mut self) -> Result<(), Lost> {
        self.connection.as_mut().map_or(Ok(()), |connection| connection.flush())
    }

    /// Takes in all answers that are here, so that the page server never waits for this process to read them. Does
    /// not wait.
    pub fn absorb(&mut self) -> Result<(), Lost> {
        while self.take_in()? {}
        Ok(())
    }

    /// Waits for the next answer and takes it in.
    pub fn receive(&mut self, keeper: &mut LatchKeeper) -> Result<(), Lost> {
        let (Some(connection), Some(request)) = (&mut self.connection, self.ring.next_request())
        else {
            return Err(Lost::Closed);
        };
        connection.await_response(keeper, request)?;
        self.take_in().map(drop)
    }

    /// Takes in one answer if it is here.
    fn take_in(&mut self) -> Result<bool, Lost> {
        let (Some(connection), Some(request)) = (&mut self.connection, self.ring.next_request())
        else {
            return Ok(false);
        };
        let Some(payload) = connection.response(request)? else { return Ok(false) };
        let since = request.not_modified_since;
        let cached = match (&payload, request.kind, self.ring.next_purpose()) {
            // All processes can have it then (L007).
            (Payload::Page(page), RequestKind::GetPage(rel, block), Some(Purpose::Ahead)) => {
                file_cache::fill_prefetched(rel, block, page, since)
            }
            (Payload::Page(page), RequestKind::GetPage(rel, block), Some(Purpose::Cache)) => {
                file_cache::fill_prewarmed(rel, block, page, since)
            }
            _ => false,
        };
        if matches!(payload, Payload::Error(_)) {
            counters::add(Counter::ErrorResponses, 1);
        }
        let answer = own(payload);
        self.ring.answered(answer, cached);
        Ok(true)
    }
}

/// An answer without borrowed bytes.
fn own(payload: Payload<'_>) -> Answer<Box<Page>> {
    match payload {
        Payload::Page(page) => Answer::Page(Box::new(*page)),
        Payload::Exists(exists) => Answer::Exists(exists),
        Payload::Nblocks(blocks) => Answer::Number(blocks.into()),
        Payload::DbSize(bytes) => Answer::Number(bytes),
        Payload::SlruSegment(_) => {
            Answer::Error("an SLRU segment that nobody asked for".to_owned())
        }
        Payload::Error(text) => Answer::Error(text.into_owned()),
    }
}
