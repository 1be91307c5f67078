//! Catching up with a peer while no compute streams: what the leader of the newest term would have sent is taken from who
//! got it, and given to the acceptor in the leader's name.
//!
//! That is safe because nothing is invented: the donor's last WAL is of the term it is in, so its history is the one that
//! the leader of that term announced, and its bytes are the leader's. The acceptor checks everything as it would from the
//! leader itself, the membership generation included. A proposer that connects takes over at once: the acceptor listens to
//! one connection.

use auth_token::OwnTokenError;
use bytes::Bytes;
use pg_types::{Lsn, Term};
use pg_wire::replication::WalSenderMessage;
use pg_wire::{Client, ClientError, ConnectParams};
use wal_consensus::limits::APPEND_BYTES_MAX;
use wal_consensus::membership::Member;
use wal_consensus::message::{
    AppendHeader, AppendRequest, ProposerElected, ProposerMessage, VoteRequest,
};
use wal_consensus::term_history::{TermHistoryError, common_point};
use wal_consensus::version::ProtocolVersion;

use super::PeerStatus;
use crate::timeline::core::{CopyState, Outgoing};
use crate::timeline::{Timeline, TimelineError};
use wal_consensus::command::ConnId;

/// Why catching up has ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoveryError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    #[error(transparent)]
    Token(#[from] OwnTokenError),
    #[error("the logs do not belong together: {0}")]
    History(#[from] TermHistoryError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("a proposer has come")]
    Proposer,
    #[error("the donor sent WAL at {got_lsn} where {wanted_lsn} was due")]
    Gap { got_lsn: Lsn, wanted_lsn: Lsn },
    #[error("the donor ended the stream at {0}")]
    Ended(Lsn),
}

/// The peer that has the most of what is missing here, if there is one to catch up with.
pub(super) fn choose<'a>(
    own: &CopyState,
    peers: &'a [(Member, PeerStatus)],
) -> Option<&'a (Member, PeerStatus)> {
    let here = (own.last_log_term, own.flush_lsn);
    let usable = |status: &PeerStatus| {
        here < (status.last_log_term, status.flush_lsn)
            // In another term than that of its WAL nobody serves the WAL that is not committed.
            && status.term == status.last_log_term
            && own.control.acceptor_state.term <= status.term
    };
    let usable = peers.iter().filter(|(_, status)| usable(status));
    usable.max_by_key(|(_, status)| (status.last_log_term, status.flush_lsn))
}

/// Catches up with what the donor has flushed; where the log ends then.
pub(super) async fn run(
    timeline: &Timeline,
    donor: ConnectParams,
    status: &PeerStatus,
) -> Result<Lsn, RecoveryError> {
    let leader = Leader { timeline, conn: timeline.number_connection(), status };
    let result = leader.lead(&donor).await;
    timeline.disconnect(leader.conn).await;
    result
}

/// Speaks for the leader whose WAL the donor has.
struct Leader<'a> {
    timeline: &'a Timeline,
    conn: ConnId,
    status: &'a PeerStatus,
}

impl Leader<'_> {
    async fn lead(&self, donor: &ConnectParams) -> Result<Lsn, RecoveryError> {
        let term = self.status.term;
        let generation = self.timeline.state().await?.mconf.generation;
        self.say(vec![ProposerMessage::VoteRequest(VoteRequest { generation, term })]).await?;
        let own = self.timeline.copy_state().await?;
        let own_history = own.control.acceptor_state.term_history.up_to(own.flush_lsn);
        let history = self.status.term_history.clone();
        let start_lsn = common_point(&history, &own_history, own.flush_lsn)?;
        let client = Client::connect(donor).await?;
        let command = format!("START_REPLICATION PHYSICAL {start_lsn} (term='{term}')");
        let mut copy = client.copy_both(&command).await?;
        // Only now that there is somebody to take WAL from is anything cut here.
        let elected = ProposerElected {
            generation,
            term,
            start_streaming_at: start_lsn,
            term_history: history,
        };
        self.say(vec![ProposerMessage::Elected(elected)]).await?;
        let (mut next_lsn, end_lsn) = (start_lsn, self.status.flush_lsn);
        while next_lsn < end_lsn {
            let message = copy.reader.recv_wal().await?.ok_or(RecoveryError::Ended(next_lsn))?;
            let WalSenderMessage::XLogData { wal_start, data, .. } = message else { continue };
            if wal_start != next_lsn {
                let (got_lsn, wanted_lsn) = (wal_start, next_lsn);
                return Err(RecoveryError::Gap { got_lsn, wanted_lsn });
            }
            let mut messages = Vec::new();
            let mut wal = data;
            while !wal.is_empty() {
                let part = wal.split_to(wal.len().min(APPEND_BYTES_MAX));
                messages.push(self.append(generation, next_lsn, part));
                next_lsn += messages.last().map_or(0, wal_bytes);
            }
            if self.timeline.connected_proposers() > 0 {
                return Err(RecoveryError::Proposer);
            }
            self.say(messages).await?;
        }
        Ok(self.timeline.progress().ladder.flush_lsn)
    }

    fn append(
        &self,
        generation: pg_types::Generation,
        begin_lsn: Lsn,
        wal: Bytes,
    ) -> ProposerMessage {
        let header = AppendHeader {
            generation,
            term: self.status.term,
            begin_lsn,
            end_lsn: begin_lsn + wal.len() as u64,
            commit_lsn: self.status.commit_lsn,
            truncate_lsn: self.status.truncate_lsn,
        };
        ProposerMessage::Append(AppendRequest { header, wal })
    }

    /// Gives the acceptor messages; its answers are for nobody, but a refusal or another term ends it.
    async fn say(&self, messages: Vec<ProposerMessage>) -> Result<(), RecoveryError> {
        let (conn, term) = (self.conn, self.status.term);
        let payloads = messages.iter().map(ProposerMessage::encode).collect();
        let out = self
            .timeline
            .with_core(|core| core.receive(conn, ProtocolVersion::V3, payloads))
            .await?;
        let (mine, others): (Vec<_>, Vec<_>) =
            out.into_iter().partition(|outgoing| outgoing.conn() == conn);
        self.timeline.dispatch(others);
        for outgoing in mine {
            if let Outgoing::Close { reason, .. } = outgoing {
                return Err(RecoveryError::Refused(reason));
            }
        }
        let now: Term = self.timeline.progress().term;
        if now == term { Ok(()) } else { Err(RecoveryError::Proposer) }
    }
}

fn wal_bytes(message: &ProposerMessage) -> u64 {
    match message {
        ProposerMessage::Append(request) => request.header.wal_bytes(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::{NodeId, TenantId, TimelineId};
    use wal_consensus::command::AcceptorState;
    use wal_consensus::term_history::TermHistory;

    use crate::control_file::ControlFile;

    fn own(term: u64, last_log_term: u64, flush: u64) -> CopyState {
        CopyState {
            control: ControlFile {
                tenant_id: TenantId([1; 16]),
                timeline_id: TimelineId([2; 16]),
                acceptor_state: AcceptorState { term: Term(term), ..AcceptorState::default() },
                remote_consistent_lsn: Lsn(0),
                backup_lsn: Lsn(0),
            },
            flush_lsn: Lsn(flush),
            last_log_term: Term(last_log_term),
        }
    }

    fn peer(id: u64, term: u64, last_log_term: u64, flush: u64) -> (Member, PeerStatus) {
        let status = PeerStatus {
            flush_lsn: Lsn(flush),
            commit_lsn: Lsn(0),
            truncate_lsn: Lsn(0),
            term: Term(term),
            last_log_term: Term(last_log_term),
            term_history: TermHistory::default(),
            pageservers: Default::default(),
        };
        (Member { id: NodeId(id), host: String::new(), pg_port: 1 }, status)
    }

    #[test]
    fn the_newest_log_whose_term_lasts_is_taken() {
        let chosen = |own: &CopyState, peers: &[(Member, PeerStatus)]| {
            choose(own, peers).map(|(member, _)| member.id.0)
        };
        let peers = [peer(2, 3, 3, 50), peer(3, 3, 3, 70), peer(4, 9, 3, 90), peer(5, 2, 2, 99)];
        assert_eq!(chosen(&own(3, 3, 40), &peers), Some(3));
        assert_eq!(chosen(&own(3, 2, 98), &peers), Some(3), "a longer log of an older term");
        assert_eq!(chosen(&own(3, 3, 70), &peers), None, "level");
        assert_eq!(chosen(&own(4, 3, 40), &peers), None, "promised to somebody newer");
    }
}
