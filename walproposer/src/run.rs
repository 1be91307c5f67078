//! Beside a compute: its WAL to the safekeepers, the quorum's position back.

use pg_types::{Lsn, Term};
use pg_wire::replication::{StandbyStatusUpdate, current_timestamp};
use tokio_util::sync::CancellationToken;
use wal_consensus::proposer::{LostReason, ProposerConfig, ProposerMode};

use crate::backoff::Backoff;
use crate::compute::{Compute, ComputeStream, ServerIdentity, StreamEvent, wait_for_server};
use crate::config::{ComputeConfig, Config, ConfigError};
use crate::driver::{Driver, Milestones};
use crate::feedback::{FEEDBACK_FILE_NAME, FeedbackFile};
use crate::limits::OUTVOTED_PAUSE;
use crate::outcome::{Outcome, Verdict, WalproposerError, judge};
use crate::sync::wal_segment_size;
use crate::term_file::TermFile;

/// Streams the WAL of the configured compute until the compute stops, another one takes over, or `shutdown` is cancelled.
/// Safekeepers that are down are waited for, for ever; commits wait with it.
///
/// To be run on a current-thread runtime of its own: a commit then passes through without changing threads.
///
/// # Errors
/// When the configuration is wrong, a file in the data directory cannot be written, or no campaign can succeed.
pub async fn run(
    config: &Config,
    shutdown: CancellationToken,
) -> Result<Outcome, WalproposerError> {
    config.endpoints()?;
    let compute = config.compute.as_ref().ok_or(ConfigError::NoCompute)?;
    let identity = tokio::select! {
        () = shutdown.cancelled() => return Ok(Outcome::Cancelled),
        identity = wait_for_server(compute) => identity,
    };
    let stream = ComputeStream::new(compute.clone(), identity);
    tokio::select! {
        () = shutdown.cancelled() => Ok(Outcome::Cancelled),
        outcome = run_with(config, identity, stream) => outcome,
    }
}

/// Like [`run`], with another way to the compute's WAL than its walsender.
///
/// # Errors
/// Those of [`run`].
pub async fn run_with(
    config: &Config,
    identity: ServerIdentity,
    stream: impl Compute,
) -> Result<Outcome, WalproposerError> {
    config.endpoints()?;
    let compute = config.compute.as_ref().ok_or(ConfigError::NoCompute)?;
    let term_file = TermFile::open(&compute.pgdata)?;
    let feedback =
        FeedbackFile::open(&compute.pgdata).map_err(|source| feedback_failed(compute, source))?;
    Reign::start(config, compute, identity, stream, term_file, feedback)?.rule().await
}

fn feedback_failed(compute: &ComputeConfig, source: std::io::Error) -> WalproposerError {
    WalproposerError::Feedback { path: compute.pgdata.join(FEEDBACK_FILE_NAME), source }
}

struct Reign<'a, C> {
    config: &'a Config,
    compute: &'a ComputeConfig,
    identity: ServerIdentity,
    driver: Driver,
    stream: C,
    feedback: FeedbackFile,
    backoff: Backoff,
    min_term: Term,
    has_reigned: bool,
    /// What the compute was told last about the page server.
    reported_apply_lsn: Lsn,
}

impl<'a, C: Compute> Reign<'a, C> {
    fn start(
        config: &'a Config,
        compute: &'a ComputeConfig,
        identity: ServerIdentity,
        stream: C,
        term_file: TermFile,
        feedback: FeedbackFile,
    ) -> Result<Reign<'a, C>, WalproposerError> {
        let terms = term_file.terms().clone();
        let proposer = proposer_config(
            config,
            identity,
            terms.campaign_term,
            ProposerMode::Stream { start_lsn: compute.start_lsn, own_terms: terms.elected_terms },
        );
        Ok(Reign {
            config,
            compute,
            identity,
            driver: Driver::start(config, proposer, Some(term_file))?,
            stream,
            feedback,
            backoff: Backoff::new(),
            min_term: terms.campaign_term,
            has_reigned: false,
            reported_apply_lsn: Lsn::INVALID,
        })
    }

    async fn rule(&mut self) -> Result<Outcome, WalproposerError> {
        loop {
            let wants_wal = self.driver.wants_wal();
            tokio::select! {
                turn = self.driver.turn() => turn?,
                event = self.stream.next(), if wants_wal => match event {
                    StreamEvent::Wal { begin_lsn, wal } => self.wal(begin_lsn, wal)?,
                    StreamEvent::Opened | StreamEvent::ReplyRequested => self.report().await,
                    StreamEvent::Ended => return self.stopped().await,
                },
            }
            let milestones = self.driver.take_milestones();
            if let Some(outcome) = self.act(milestones).await? {
                return Ok(outcome);
            }
        }
    }

    async fn stopped(&mut self) -> Result<Outcome, WalproposerError> {
        let commit_lsn = self.driver.commit_lsn();
        tracing::info!(%commit_lsn, "the compute has stopped");
        self.driver.say_goodbye().await?;
        Ok(Outcome::ComputeStopped { commit_lsn })
    }

    fn wal(&mut self, begin_lsn: Lsn, wal: bytes::Bytes) -> Result<(), WalproposerError> {
        if let Err(error) = self.driver.wal(begin_lsn, wal)? {
            // The stream was opened at another place than the window: open it at the right one.
            tracing::error!(%error, "the compute's WAL");
            self.stream.open_at(self.driver.held_until());
        }
        Ok(())
    }

    async fn act(&mut self, milestones: Milestones) -> Result<Option<Outcome>, WalproposerError> {
        if let Some(reason) = milestones.lost {
            return self.lost(reason).await;
        }
        if let Some(term_start_lsn) = milestones.elected {
            self.has_reigned = true;
            self.stream.open_at(term_start_lsn);
        }
        if let Some(lsn) = milestones.rewind {
            tracing::info!(%lsn, "streaming the compute's WAL again");
            self.driver.wal_begins(lsn)?;
            self.stream.open_at(lsn);
        }
        let applied = self.driver.storage().merged().disk_consistent_lsn;
        if milestones.committed || milestones.heartbeat || self.reported_apply_lsn != applied {
            self.report().await;
        }
        if milestones.publish {
            self.feedback
                .write(&self.driver.storage().merged(), self.driver.commit_lsn())
                .map_err(|source| feedback_failed(self.compute, source))?;
        }
        Ok(None)
    }

    async fn lost(&mut self, reason: LostReason) -> Result<Option<Outcome>, WalproposerError> {
        tracing::warn!(%reason, has_reigned = self.has_reigned, "outvoted");
        match judge(reason, self.has_reigned) {
            Verdict::End(outcome) => return Ok(Some(outcome)),
            Verdict::Fail(reason) => return Err(WalproposerError::Consensus(reason)),
            Verdict::Retry(term) => self.min_term = self.min_term.max(term),
        }
        self.stream.close();
        if self.has_reigned {
            tokio::time::sleep(OUTVOTED_PAUSE).await;
        }
        self.backoff.pause().await;
        let own_terms = self.driver.term_file().map(|file| file.terms().elected_terms.clone());
        let own_terms = own_terms.unwrap_or_default();
        let min_term = self.min_term.max(self.driver.term());
        let mode = ProposerMode::Stream { start_lsn: self.compute.start_lsn, own_terms };
        self.driver.restart(proposer_config(self.config, self.identity, min_term, mode));
        Ok(None)
    }

    /// Tells the compute what is durable: backends that wait for their commit are released by it.
    async fn report(&mut self) {
        let commit_lsn = self.driver.commit_lsn();
        let apply_lsn = self.driver.storage().merged().disk_consistent_lsn;
        self.reported_apply_lsn = apply_lsn;
        let status = StandbyStatusUpdate {
            write_lsn: commit_lsn,
            flush_lsn: commit_lsn,
            apply_lsn,
            timestamp: current_timestamp(),
            reply_requested: false,
        };
        self.stream.report(status).await;
    }
}

fn proposer_config(
    config: &Config,
    identity: ServerIdentity,
    min_term: Term,
    mode: ProposerMode,
) -> ProposerConfig {
    ProposerConfig {
        tenant_id: config.tenant_id,
        timeline_id: config.timeline_id,
        pg_version: identity.version_num,
        system_id: identity.system_id,
        wal_seg_size: wal_segment_size(),
        safekeepers: config.safekeepers.len(),
        mconf: config.mconf.clone(),
        min_term,
        mode,
    }
}
