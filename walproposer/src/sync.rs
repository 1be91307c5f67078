//! Before a compute exists: make a quorum agree on the end of the log (L300).

use pg_types::{Lsn, PG_MAJORVERSION, Term, xlog};
use tokio_util::sync::CancellationToken;
use wal_consensus::proposer::{ProposerConfig, ProposerMode};

use crate::backoff::Backoff;
use crate::config::Config;
use crate::driver::Driver;
use crate::outcome::{Verdict, WalproposerError, judge};

/// Wins an election, brings a quorum level and returns the end of the log: the position for the basebackup of the next
/// compute. Everything below it is committed, and a quorum has saved that. Waits for a quorum, and for nobody beyond.
///
/// A compute that is running on this timeline is fenced by it.
///
/// # Errors
/// When the configuration is wrong, when the timeline is empty and its beginning unknown, or when cancelled.
pub async fn sync(config: &Config, shutdown: CancellationToken) -> Result<Lsn, WalproposerError> {
    let mut min_term = Term(0);
    let mut driver = Driver::start(config, proposer_config(config, min_term), None)?;
    let mut backoff = Backoff::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Err(WalproposerError::Cancelled),
            turn = driver.turn() => turn?,
        }
        let milestones = driver.take_milestones();
        if let Some(lsn) = milestones.synced {
            tracing::info!(%lsn, term = %driver.term(), "safekeepers are in sync");
            return Ok(lsn);
        }
        let Some(reason) = milestones.lost else { continue };
        tracing::info!(%reason, "campaign lost");
        match judge(reason, false) {
            Verdict::Retry(term) => min_term = min_term.max(term),
            Verdict::Fail(reason) => return Err(WalproposerError::Consensus(reason)),
            Verdict::End(_) => return Err(WalproposerError::Cancelled),
        }
        backoff.pause().await;
        driver.restart(proposer_config(config, min_term));
    }
}

fn proposer_config(config: &Config, min_term: Term) -> ProposerConfig {
    ProposerConfig {
        tenant_id: config.tenant_id,
        timeline_id: config.timeline_id,
        pg_version: PG_MAJORVERSION * 10_000,
        system_id: 0,
        wal_seg_size: wal_segment_size(),
        safekeepers: config.safekeepers.len(),
        mconf: config.mconf.clone(),
        min_term,
        mode: ProposerMode::Sync,
    }
}

/// Bytes in a WAL segment as it stands in messages.
pub(crate) fn wal_segment_size() -> u32 {
    u32::try_from(xlog::WAL_SEGMENT_SIZE).unwrap_or(u32::MAX)
}
