//! Work that goes on for all timelines: flushing by memory and by age, and adding up sizes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pg_types::{Lsn, TenantId, TimelineId};
use tokio_util::sync::CancellationToken;

use crate::tenants::Tenants;
use crate::timeline::Timeline;

/// How often age and sizes are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Sizes are added up no more often than this: it reads one small value for each relation.
const SIZE_INTERVAL: Duration = Duration::from_secs(10);

/// A tenant's redo processes end when it was not read for so long.
const REDO_IDLE: Duration = Duration::from_secs(180);

/// Flushes whichever timeline holds most when memory gets short. Blocks until `shutdown`.
pub fn flush_by_memory(tenants: &Tenants, shutdown: &CancellationToken) {
    while !shutdown.is_cancelled() {
        let Some(store) = tenants.shared().wait_flush_wanted(TICK) else { continue };
        if let Err(error) = store.flush() {
            tracing::error!("could not flush {}: {error}", store.dir().display());
            // What is full stays full: without a pause this would be a busy loop.
            std::thread::sleep(TICK);
        }
    }
}

/// Flushes what has been in memory for `checkpoint_timeout`, and keeps sizes fresh, until `shutdown`.
pub async fn tick(
    tenants: Arc<Tenants>,
    checkpoint_timeout: Duration,
    shutdown: CancellationToken,
) {
    let mut clock = FlushClock::new(checkpoint_timeout);
    let mut sizes: HashMap<(TenantId, TimelineId), (Lsn, Instant)> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        let timelines = tenants.active_timelines();
        let now = Instant::now();
        let mut due = Vec::new();
        let mut resize = Vec::new();
        for timeline in timelines {
            let key = (timeline.tenant_id, timeline.metadata.timeline_id);
            let last = timeline.last_record_lsn();
            if clock.is_due(key, last, timeline.disk_consistent_lsn(), now) {
                due.push(Arc::clone(&timeline));
            }
            let fresh = sizes.get(&key).is_some_and(|(lsn, at)| {
                *lsn == last || now.saturating_duration_since(*at) < SIZE_INTERVAL
            });
            if !fresh {
                sizes.insert(key, (last, now));
                resize.push(timeline);
            }
        }
        let idle = tenants.list();
        let work = move || {
            idle.iter().for_each(|tenant| tenant.quiesce_redo(REDO_IDLE));
            due.iter().for_each(|timeline| flush(timeline));
            resize.iter().for_each(|timeline| timeline.add_up_sizes());
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            tracing::error!("background work failed: {error}");
        }
    }
}

fn flush(timeline: &Timeline) {
    if let Err(error) = timeline.flush() {
        let id = timeline.metadata.timeline_id;
        tracing::error!(timeline_id = %id, "could not flush: {error}");
    }
}

/// Decides when a timeline's memory is old enough to be flushed.
struct FlushClock {
    timeout: Duration,
    /// Since when there is something in memory beyond this position on disk.
    dirty: HashMap<(TenantId, TimelineId), (Lsn, Instant)>,
}

impl FlushClock {
    fn new(timeout: Duration) -> FlushClock {
        FlushClock { timeout, dirty: HashMap::new() }
    }

    fn is_due(
        &mut self,
        key: (TenantId, TimelineId),
        last_record: Lsn,
        disk_consistent: Lsn,
        now: Instant,
    ) -> bool {
        if last_record <= disk_consistent {
            self.dirty.remove(&key);
            return false;
        }
        let (on_disk, since) = self.dirty.entry(key).or_insert((disk_consistent, now));
        if *on_disk != disk_consistent {
            (*on_disk, *since) = (disk_consistent, now);
        }
        let due = now.saturating_duration_since(*since) >= self.timeout;
        if due {
            *since = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_flushed_when_it_is_old() {
        let mut clock = FlushClock::new(Duration::from_secs(60));
        let key = (TenantId([1; 16]), TimelineId([2; 16]));
        let start = Instant::now();
        let mut due = |seconds, last, disk| {
            clock.is_due(key, Lsn(last), Lsn(disk), start + Duration::from_secs(seconds))
        };
        assert!(!due(0, 10, 10));
        assert!(!due(1000, 11, 10), "it became dirty only now");
        assert!(!due(1059, 12, 10));
        assert!(due(1060, 13, 10));
        assert!(!due(1061, 14, 10), "the flush takes a while");
        assert!(!due(1090, 15, 13), "somebody flushed: the time starts anew");
        assert!(!due(1149, 16, 13));
        assert!(due(1150, 17, 13));
        assert!(!due(1151, 17, 17));
    }
}
