//! The log: cut by an elected message, grown by append requests, committed as far as it is durable (C6, C8, C9).

use bytes::Bytes;
use pg_types::Lsn;

use super::{Acceptor, Commands};
use crate::command::{AcceptorCommand, ConnId};
use crate::message::{
    AcceptorMessage, AppendRequest, AppendResponse, HotStandbyFeedback, ProposerElected,
};
use crate::mutant::{self, Mutant};
use crate::refusal::{Quarantine, Refusal};
use crate::term_history::common_point;

impl Acceptor {
    pub(super) fn elected(
        &mut self,
        conn: ConnId,
        elected: ProposerElected,
        commands: &mut Commands,
    ) -> Result<(), Refusal> {
        self.check_generation(elected.generation)?;
        if elected.term < self.state.term {
            commands.push(self.outdated(conn));
            return Ok(());
        }
        let start_lsn = self.check_elected(&elected)?;
        if self.state.term < elected.term {
            self.raise_term(elected.term, commands);
        }
        self.supersede(Some(conn), commands);
        let cut = !mutant::is(Mutant::DoesNotCut);
        if cut && (self.truncation_pending || self.ladder.write_lsn != start_lsn) {
            // Before the new history is saved: a crash in between must not make old bytes look like new ones.
            commands.push(AcceptorCommand::TruncateWal { end_lsn: start_lsn });
            self.truncation_pending = false;
            self.ladder.flush_lsn = start_lsn;
            self.ladder.synced_lsn = start_lsn;
            self.ladder.write_lsn = start_lsn;
        }
        self.state.term_history = elected.term_history;
        if !self.ladder.timeline_start_lsn.is_valid() {
            // The first WAL ever: below it there is nothing, so all of that is committed.
            self.ladder.timeline_start_lsn = start_lsn;
            self.ladder.local_start_lsn = start_lsn;
            self.ladder.commit_lsn = self.ladder.commit_lsn.max(start_lsn);
        }
        self.leader_commit_lsn = self.ladder.commit_lsn;
        self.save_state(commands);
        Ok(())
    }

    fn check_elected(&self, elected: &ProposerElected) -> Result<Lsn, Refusal> {
        let flush_lsn = self.ladder.flush_lsn;
        let ours = common_point(&elected.term_history, &self.state.term_history, flush_lsn)?;
        let last = elected.term_history.last().map(|entry| entry.term).unwrap_or_default();
        if last != elected.term {
            return Err(Refusal::HistoryOfOtherTerm { term: elected.term, last });
        }
        let start_lsn = elected.start_streaming_at;
        if start_lsn != ours {
            return Err(Refusal::StartMismatch { theirs: start_lsn, ours });
        }
        let commit_lsn = self.ladder.commit_lsn;
        if start_lsn < commit_lsn {
            return Err(Refusal::TruncatesCommitted { start_lsn, commit_lsn });
        }
        Ok(start_lsn)
    }

    pub(super) fn append(
        &mut self,
        conn: ConnId,
        request: AppendRequest,
        commands: &mut Commands,
    ) -> Result<(), Refusal> {
        let header = request.header;
        self.check_generation(header.generation)?;
        if header.term < self.state.term {
            commands.push(self.outdated(conn));
            return Ok(());
        }
        if self.state.term < header.term {
            return Err(Refusal::NotElected { theirs: header.term, ours: self.state.term });
        }
        if self.streaming != Some(conn) {
            return Err(Refusal::NotStreaming(header.term));
        }
        check_position(&request, self.ladder.write_lsn)?;
        self.leader_commit_lsn = self.leader_commit_lsn.max(header.commit_lsn);
        if !request.wal.is_empty() {
            self.ladder.write_lsn = header.end_lsn;
            commands.push(AcceptorCommand::WriteWal {
                begin_lsn: header.begin_lsn,
                wal: request.wal.clone(),
            });
        }
        self.advance_commit(commands);
        self.ladder.truncate_lsn =
            self.ladder.truncate_lsn.max(header.truncate_lsn.min(self.ladder.commit_lsn));
        self.state.truncate_lsn = self.ladder.truncate_lsn;
        if request.wal.is_empty() || mutant::is(Mutant::AcknowledgesBeforeSync) {
            commands.push(self.append_response(conn));
        } else {
            commands.push(AcceptorCommand::FlushWal { may_wait: true });
        }
        Ok(())
    }

    pub(super) fn flushed(&mut self, flush_lsn: Lsn, synced_lsn: Lsn, commands: &mut Commands) {
        let ladder = &mut self.ladder;
        let possible = flush_lsn <= synced_lsn
            && synced_lsn <= ladder.write_lsn
            && ladder.flush_lsn <= flush_lsn
            && ladder.synced_lsn <= synced_lsn;
        if !possible {
            let reason = Quarantine::FlushReport {
                flush_lsn,
                synced_lsn,
                write_lsn: ladder.write_lsn,
                known_lsn: ladder.synced_lsn,
            };
            self.quarantine(reason, commands);
            return;
        }
        ladder.flush_lsn = flush_lsn;
        ladder.synced_lsn = synced_lsn;
        self.advance_commit(commands);
        if self.ladder.synced_lsn == self.ladder.write_lsn {
            for vote in std::mem::take(&mut self.pending_votes) {
                commands.push(self.vote_response(vote));
            }
        } else if !self.pending_votes.is_empty() {
            commands.push(AcceptorCommand::FlushWal { may_wait: false });
        }
        if let Some(conn) = self.streaming {
            commands.push(self.append_response(conn));
        }
    }

    /// The rule of the leader's commit position on a log that may be shorter: what is committed and here.
    fn advance_commit(&mut self, commands: &mut Commands) {
        let commit_lsn = self.leader_commit_lsn.min(self.ladder.flush_lsn);
        if commit_lsn <= self.ladder.commit_lsn {
            return;
        }
        self.ladder.commit_lsn = commit_lsn;
        let term_start_lsn = self.state.term_history.last().map(|e| e.lsn).unwrap_or_default();
        let saved_lsn = self.ladder.persisted_commit_lsn;
        // Saved at once when the log of the new term becomes the committed one, because the start of a compute
        // waits for exactly this; otherwise once per segment, so that recovery has little to scan.
        let crosses_term = saved_lsn < term_start_lsn && term_start_lsn <= commit_lsn;
        let segment = u64::from(self.state.wal_seg_size).max(1 << 20);
        if crosses_term || segment <= commit_lsn.saturating_sub(saved_lsn) {
            self.save_state(commands);
        }
        commands.push(AcceptorCommand::CommitAdvanced { commit_lsn });
    }

    fn acknowledged_lsn(&self) -> Lsn {
        if mutant::is(Mutant::AcknowledgesBeforeSync) {
            return self.ladder.write_lsn;
        }
        self.ladder.flush_lsn
    }

    fn append_response(&self, conn: ConnId) -> AcceptorCommand {
        let response = AppendResponse {
            generation: self.state.mconf.generation,
            term: self.state.term,
            flush_lsn: self.acknowledged_lsn(),
            commit_lsn: self.ladder.persisted_commit_lsn,
            hs_feedback: HotStandbyFeedback::default(),
            pageserver_feedback: Bytes::new(),
        };
        AcceptorCommand::Reply { conn, message: AcceptorMessage::AppendResponse(response) }
    }
}

fn check_position(request: &AppendRequest, write_lsn: Lsn) -> Result<(), Refusal> {
    let (begin_lsn, end_lsn) = (request.header.begin_lsn, request.header.end_lsn);
    let wal_bytes = request.wal.len();
    if end_lsn.checked_sub(begin_lsn) != u64::try_from(wal_bytes).ok() {
        return Err(Refusal::WalLength { begin_lsn, end_lsn, wal_bytes });
    }
    match begin_lsn.cmp(&write_lsn) {
        std::cmp::Ordering::Less => Err(Refusal::Rewrite { begin_lsn, write_lsn }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Refusal::Gap { begin_lsn, write_lsn }),
    }
}
