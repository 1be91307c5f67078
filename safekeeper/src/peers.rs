//! What the members of a timeline tell each other (D8: there is no broker): how far page servers are, so that WAL is removed
//! on all of them and not only where a page server reads; and how far each log is, so that one that was away gets what it
//! missed also while no compute runs.
//!
//! A timeline whose members have nothing to tell is asked about less and less often.

mod recovery;
mod status;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use auth_token::OwnTokenError;
use pg_types::xlog::segment_number;
use pg_wire::{Client, ClientError, ConnectParams, Endpoint};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wal_consensus::membership::Member;

use crate::config::Config;
use crate::timeline::core::Progress;
use crate::timeline::{TenantTimelineId, Timeline};
use crate::timelines::Timelines;
pub use status::{PeerStatus, StatusError};

/// A peer that does not answer for so long is asked again later.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between two rounds of questions about one timeline.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Why a peer's status is not known.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Token(#[from] OwnTokenError),
    #[error("no answer within {} s", ASK_TIMEOUT.as_secs())]
    Timeout,
}

/// Runs until `stop`.
pub async fn run(timelines: Arc<Timelines>, config: Arc<Config>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(config.peer_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut appointments: HashMap<TenantTimelineId, Appointment> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let loaded: Vec<_> = timelines.list().into_iter().filter_map(|(_, t)| t.ok()).collect();
        let ids: HashSet<_> = loaded.iter().map(|timeline| timeline.id()).collect();
        appointments.retain(|id, _| ids.contains(id));
        for timeline in loaded {
            let appointment = appointments.entry(timeline.id()).or_default();
            if !appointment.is_due(timeline.progress(), config.peer_interval) {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = visit(&timeline, &config) => {}
            }
        }
    }
}

/// When a timeline's peers are asked next.
#[derive(Debug, Default)]
struct Appointment {
    seen: Option<Progress>,
    next: Option<Instant>,
    pause: Duration,
}

impl Appointment {
    /// Whether it is time now, in which case the next time is fixed.
    fn is_due(&mut self, progress: Progress, interval: Duration) -> bool {
        if self.seen != Some(progress) {
            self.seen = Some(progress);
            self.pause = interval;
        } else if self.next.is_some_and(|next| Instant::now() < next) {
            return false;
        }
        self.next = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

/// Asks the other members of one timeline, and takes from them what is missing here.
async fn visit(timeline: &Arc<Timeline>, config: &Config) {
    // Everything below is tried again; a timeline that is out of service has said why.
    let Ok(state) = timeline.copy_state().await else { return };
    let mconf = &state.control.acceptor_state.mconf;
    let removable = segment_number(state.control.removal_horizon())
        < segment_number(state.control.acceptor_state.commit_lsn);
    let alone = timeline.connected_proposers() == 0;
    if !removable && !alone {
        return;
    }
    let mut statuses: Vec<(Member, PeerStatus)> = Vec::new();
    for member in mconf.all_members().filter(|member| member.id != config.id) {
        if statuses.iter().any(|(known, _)| known.id == member.id) {
            continue;
        }
        match ask(timeline.id(), member, config).await {
            Ok(Some(status)) => {
                timeline.feedback().peer(&status.pageservers);
                statuses.push((member.clone(), status));
            }
            // It does not have the timeline yet.
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(ttid = %timeline.id(), peer = %member.id, "asking a peer: {error}");
            }
        }
    }
    if alone && let Some((donor, status)) = recovery::choose(&state, &statuses) {
        let (id, own) = (timeline.id(), state.flush_lsn);
        tracing::info!(ttid = %id, donor = %donor.id, from = %own, to = %status.flush_lsn, "catching up");
        let caught_up = match connect_params(id, donor, config) {
            Ok(params) => recovery::run(timeline, params, status).await,
            Err(error) => Err(error.into()),
        };
        match caught_up {
            Ok(lsn) => tracing::info!(ttid = %id, "caught up to {lsn}"),
            Err(error) => tracing::info!(ttid = %id, donor = %donor.id, "catching up: {error}"),
        }
    }
}

fn connect_params(
    id: TenantTimelineId,
    member: &Member,
    config: &Config,
) -> Result<ConnectParams, OwnTokenError> {
    let endpoint = Endpoint::Tcp { host: member.host.clone(), port: member.pg_port };
    let params = ConnectParams::new(endpoint, "safekeeper")
        .param("application_name", &format!("safekeeper_{}", config.id))
        .option("tenant_id", &id.tenant_id.to_string())
        .option("timeline_id", &id.timeline_id.to_string())
        .connect_timeout(ASK_TIMEOUT)
        .read_timeout(Some(ASK_TIMEOUT))
        .write_timeout(Some(ASK_TIMEOUT));
    Ok(match config.own_token().read()? {
        Some(token) => params.password(&token),
        None => params,
    })
}

async fn ask(
    id: TenantTimelineId,
    member: &Member,
    config: &Config,
) -> Result<Option<PeerStatus>, AskError> {
    let params = connect_params(id, member, config)?;
    let question = async {
        let mut client = Client::connect(&params).await?;
        let results = client.simple_query("TIMELINE_STATUS").await?;
        client.close().await?;
        let row = results.into_iter().next().filter(|result| !result.rows.is_empty());
        Ok(row.map(|result| PeerStatus::of_row(|name| result.value(0, name))).transpose()?)
    };
    tokio::time::timeout(ASK_TIMEOUT, question).await.map_err(|_| AskError::Timeout)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::Term;

    #[tokio::test(start_paused = true)]
    async fn silence_makes_for_longer_pauses_and_news_for_short_ones() {
        let interval = Duration::from_secs(2);
        let mut appointment = Appointment::default();
        let mut asked = 0;
        for _ in 0..3600 {
            asked += u32::from(appointment.is_due(Progress::default(), interval));
            tokio::time::advance(interval).await;
        }
        assert!((20..60).contains(&asked), "{asked} in two hours");
        let news = Progress { term: Term(3), ..Progress::default() };
        assert!(appointment.is_due(news, interval));
        tokio::time::advance(interval).await;
        assert!(appointment.is_due(news, interval));
    }
}
