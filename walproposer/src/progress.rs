//! What page servers report, put together for the compute.

use std::collections::BTreeMap;

use bytes::Bytes;
use pg_wire::replication::PageserverFeedback;

/// More shards than any tenant has; the number comes from the network.
const SHARDS_MAX: usize = 256;

/// The newest report of each shard.
#[derive(Debug, Default)]
pub(crate) struct StorageProgress {
    shards: BTreeMap<u32, PageserverFeedback>,
}

impl StorageProgress {
    /// Takes what came with an append response. A report that cannot be read is logged and left out: it is no reason
    /// to stop commits.
    pub(crate) fn take(&mut self, report: Bytes) {
        match PageserverFeedback::parse(report) {
            Ok(feedback) => self.insert(feedback),
            Err(error) => tracing::warn!(%error, "page server feedback"),
        }
    }

    /// Several safekeepers may pass on reports of one page server, and not in order.
    fn insert(&mut self, feedback: PageserverFeedback) {
        let known = self.shards.get(&feedback.shard_number);
        let full = known.is_none() && SHARDS_MAX <= self.shards.len();
        if !full && known.is_none_or(|known| known.replytime <= feedback.replytime) {
            self.shards.insert(feedback.shard_number, feedback);
        }
    }

    /// Positions that every shard has reached; the size is that of the first shard, which alone counts it.
    pub(crate) fn merged(&self) -> PageserverFeedback {
        let mut shards = self.shards.values();
        let Some(first) = shards.next() else { return PageserverFeedback::default() };
        let mut merged = *first;
        for shard in shards {
            merged.last_received_lsn = merged.last_received_lsn.min(shard.last_received_lsn);
            merged.disk_consistent_lsn = merged.disk_consistent_lsn.min(shard.disk_consistent_lsn);
            merged.remote_consistent_lsn =
                merged.remote_consistent_lsn.min(shard.remote_consistent_lsn);
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use pg_types::Lsn;

    use super::*;

    fn report(shard_number: u32, replytime: i64, lsn: u64) -> PageserverFeedback {
        PageserverFeedback {
            shard_number,
            replytime,
            last_received_lsn: Lsn(lsn),
            disk_consistent_lsn: Lsn(lsn),
            remote_consistent_lsn: Lsn(lsn),
            ..PageserverFeedback::default()
        }
    }

    #[test]
    fn the_slowest_shard_and_the_newest_report_count() {
        let mut progress = StorageProgress::default();
        assert_eq!(progress.merged(), PageserverFeedback::default());
        progress.insert(report(0, 2, 50));
        progress.insert(report(0, 1, 40));
        assert_eq!(progress.merged().disk_consistent_lsn, Lsn(50));
        progress.insert(report(1, 1, 30));
        assert_eq!(progress.merged().disk_consistent_lsn, Lsn(30));
        progress.take(Bytes::from_static(b"\xFFnonsense"));
        assert_eq!(progress.merged().disk_consistent_lsn, Lsn(30));
        for shard in 0..1000 {
            progress.insert(report(shard, 9, 1));
        }
        assert_eq!(progress.shards.len(), SHARDS_MAX);
    }
}
