//! What those who read a timeline's WAL report back, put together for two uses: which WAL can go, and what the
//! compute is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};
use pg_types::Lsn;
use pg_wire::replication::{HotStandbyFeedback, PageserverFeedback, StandbyStatusUpdate};
use tokio::sync::watch;
use wal_consensus::message::HotStandbyFeedback as Aggregated;

/// Shards that a timeline keeps account of: a peer cannot make the table grow without bound.
const SHARDS_MAX: usize = 256;

/// A reader of WAL, numbered while it is connected.
pub type ReaderId = u64;

/// One reader, as status answers show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReaderState {
    /// `application_name`.
    pub application_name: String,
    /// Sent up to here.
    pub sent_lsn: Lsn,
    /// From a standby.
    pub status: Option<StandbyStatusUpdate>,
    /// From a standby that asks to keep rows.
    pub hot_standby: Option<HotStandbyFeedback>,
    /// From a page server.
    pub pageserver: Option<PageserverFeedback>,
}

#[derive(Debug, Default)]
struct Table {
    next_id: ReaderId,
    readers: HashMap<ReaderId, ReaderState>,
    /// Highest `remote_consistent_lsn` that each shard ever reported. A shard that is not connected right now
    /// still needs its WAL, so entries outlive connections.
    remote_consistent: HashMap<u32, Lsn>,
}

/// Feedback of all readers of one timeline.
#[derive(Debug)]
pub struct Feedback {
    table: Mutex<Table>,
    /// Newest report of a page server, encoded for an append response; empty before the first one.
    latest: watch::Sender<Bytes>,
}

/// Full transaction id from its halves; 0 stands for none in both forms.
fn full_xid(epoch: u32, xid: u32) -> u64 {
    if xid == 0 { 0 } else { u64::from(epoch) << 32 | u64::from(xid) }
}

/// The lower of two ids of which 0 means none.
fn least(a: u64, b: u64) -> u64 {
    match (a, b) {
        (0, other) | (other, 0) => other,
        (a, b) => a.min(b),
    }
}

impl Feedback {
    /// Nobody has said anything yet; what an earlier process heard is `remote_consistent_lsn`.
    pub fn new(remote_consistent_lsn: Lsn) -> Feedback {
        let mut table = Table::default();
        if remote_consistent_lsn.is_valid() {
            table.remote_consistent.insert(0, remote_consistent_lsn);
        }
        Feedback { table: Mutex::new(table), latest: watch::Sender::new(Bytes::new()) }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // Every change below is whole in one statement: a panicked holder leaves nothing half done.
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds a reader.
    pub fn connect(&self, application_name: &str) -> ReaderId {
        let mut table = self.table();
        table.next_id += 1;
        let id = table.next_id;
        let application_name = application_name.to_owned();
        table.readers.insert(id, ReaderState { application_name, ..ReaderState::default() });
        id
    }

    /// Removes a reader.
    pub fn disconnect(&self, id: ReaderId) {
        self.table().readers.remove(&id);
    }

    /// Notes how far a reader was sent.
    pub fn sent(&self, id: ReaderId, sent_lsn: Lsn) {
        if let Some(reader) = self.table().readers.get_mut(&id) {
            reader.sent_lsn = sent_lsn;
        }
    }

    /// Takes a standby's status.
    pub fn status(&self, id: ReaderId, status: StandbyStatusUpdate) {
        if let Some(reader) = self.table().readers.get_mut(&id) {
            reader.status = Some(status);
        }
    }

    /// Takes a standby's wishes.
    pub fn hot_standby(&self, id: ReaderId, feedback: HotStandbyFeedback) {
        if let Some(reader) = self.table().readers.get_mut(&id) {
            reader.hot_standby = Some(feedback);
        }
    }

    /// Takes a page server's report; `false` when it comes from one shard too many.
    pub fn pageserver(&self, id: ReaderId, feedback: PageserverFeedback) -> bool {
        {
            let mut table = self.table();
            let Table { readers, remote_consistent, .. } = &mut *table;
            let known = remote_consistent.contains_key(&feedback.shard_number);
            if !known && remote_consistent.len() >= SHARDS_MAX {
                return false;
            }
            let position = remote_consistent.entry(feedback.shard_number).or_default();
            *position = (*position).max(feedback.remote_consistent_lsn);
            if let Some(reader) = readers.get_mut(&id) {
                reader.pageserver = Some(feedback);
            }
        }
        let mut encoded = BytesMut::new();
        feedback.write(&mut encoded);
        self.latest.send_replace(encoded.freeze());
        true
    }

    /// Takes what a peer knows of page servers, as far as there is room.
    pub fn peer(&self, known: &BTreeMap<u32, Lsn>) {
        let mut table = self.table();
        for (shard, lsn) in known {
            let is_known = table.remote_consistent.contains_key(shard);
            if is_known || table.remote_consistent.len() < SHARDS_MAX {
                let position = table.remote_consistent.entry(*shard).or_default();
                *position = (*position).max(*lsn);
            }
        }
    }

    /// How far the shards are that ever reported, here or to a peer.
    pub fn shards(&self) -> BTreeMap<u32, Lsn> {
        self.table().remote_consistent.iter().map(|(shard, lsn)| (*shard, *lsn)).collect()
    }

    /// WAL below this is needed by no page server any more: the least over the shards that ever reported; 0 when
    /// none has.
    pub fn remote_consistent_lsn(&self) -> Lsn {
        self.table().remote_consistent.values().copied().min().unwrap_or_default()
    }

    /// What hot standbys want kept, all of them together.
    pub fn hot_standbys(&self) -> Aggregated {
        let mut all = Aggregated::default();
        for feedback in self.table().readers.values().filter_map(|reader| reader.hot_standby) {
            all.ts = all.ts.max(feedback.timestamp);
            all.xmin = least(all.xmin, full_xid(feedback.xmin_epoch, feedback.xmin));
            let catalog = full_xid(feedback.catalog_xmin_epoch, feedback.catalog_xmin);
            all.catalog_xmin = least(all.catalog_xmin, catalog);
        }
        all
    }

    /// Follows the newest report of a page server.
    pub fn subscribe(&self) -> watch::Receiver<Bytes> {
        self.latest.subscribe()
    }

    /// All readers that are connected.
    pub fn readers(&self) -> Vec<ReaderState> {
        self.table().readers.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(shard_number: u32, remote: u64) -> PageserverFeedback {
        let remote_consistent_lsn = Lsn(remote);
        PageserverFeedback { shard_number, remote_consistent_lsn, ..Default::default() }
    }

    #[test]
    fn the_slowest_shard_decides_even_when_away() {
        let feedback = Feedback::new(Lsn(0));
        assert_eq!(feedback.remote_consistent_lsn(), Lsn(0));
        let (fast, slow) = (feedback.connect("ps"), feedback.connect("ps"));
        assert!(feedback.pageserver(fast, report(1, 900)));
        assert!(feedback.pageserver(slow, report(2, 300)));
        assert_eq!(feedback.remote_consistent_lsn(), Lsn(300));
        feedback.disconnect(slow);
        assert_eq!(feedback.remote_consistent_lsn(), Lsn(300));
        // A page server that restarts from an older state does not bring WAL back that is gone.
        assert!(feedback.pageserver(fast, report(2, 100)));
        assert_eq!(feedback.remote_consistent_lsn(), Lsn(300));
    }

    #[test]
    fn the_table_of_shards_is_bounded() {
        let feedback = Feedback::new(Lsn(0));
        let id = feedback.connect("ps");
        let accepted = (0..1000).filter(|&shard| feedback.pageserver(id, report(shard, 1))).count();
        assert_eq!(accepted, SHARDS_MAX);
    }

    #[test]
    fn oldest_snapshot_of_all_standbys() {
        let feedback = Feedback::new(Lsn(0));
        let (a, b) = (feedback.connect("a"), feedback.connect("b"));
        feedback
            .hot_standby(a, HotStandbyFeedback { xmin: 7, xmin_epoch: 1, ..Default::default() });
        feedback
            .hot_standby(b, HotStandbyFeedback { xmin: 9, catalog_xmin: 5, ..Default::default() });
        let all = feedback.hot_standbys();
        assert_eq!((all.xmin, all.catalog_xmin), (9, 5));
        feedback.disconnect(b);
        assert_eq!(feedback.hot_standbys().xmin, 1 << 32 | 7);
    }

    #[test]
    fn the_newest_report_is_followed() {
        let feedback = Feedback::new(Lsn(0));
        let mut latest = feedback.subscribe();
        feedback.pageserver(feedback.connect("ps"), report(0, 5));
        assert!(latest.has_changed().unwrap());
        let bytes = latest.borrow_and_update().clone();
        assert_eq!(PageserverFeedback::parse(bytes), Ok(report(0, 5)));
    }
}
