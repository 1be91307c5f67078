//! Votes: one for each term, answered when everything in the log is durable (C2, C3).

use super::{Acceptor, Commands, PendingVote};
use crate::command::{AcceptorCommand, ConnId};
use crate::message::{AcceptorMessage, VoteRequest, VoteResponse};
use crate::mutant::{self, Mutant};
use crate::refusal::Refusal;

impl Acceptor {
    pub(super) fn vote_request(
        &mut self,
        conn: ConnId,
        request: VoteRequest,
        commands: &mut Commands,
    ) -> Result<(), Refusal> {
        self.check_generation(request.generation)?;
        let mut granted = None;
        let twice = mutant::is(Mutant::VotesTwice) && self.state.term == request.term;
        if self.state.term < request.term || twice {
            // Raised before the flush, so that no WAL of an older proposer can come in behind it.
            self.raise_term(request.term, commands);
            granted = Some(request.term);
        } else if self.state.term == request.term {
            // The elected proposer comes back over a new connection; what is still on its way over the old one must
            // not change the log that the answer describes. Over the old one again, it begins again.
            if self.streaming == Some(conn) {
                self.streaming = None;
            }
            self.supersede(None, commands);
        }
        let vote = PendingVote { conn, granted };
        if self.ladder.synced_lsn < self.ladder.write_lsn {
            self.pending_votes.push(vote);
            commands.push(AcceptorCommand::FlushWal { may_wait: false });
        } else {
            commands.push(self.vote_response(vote));
        }
        Ok(())
    }

    pub(super) fn vote_response(&self, vote: PendingVote) -> AcceptorCommand {
        let message = AcceptorMessage::VoteResponse(VoteResponse {
            generation: self.state.mconf.generation,
            term: self.state.term,
            // A higher term may have come while the flush ran: then this vote is worth nothing any more.
            vote_given: vote.granted == Some(self.state.term),
            flush_lsn: self.ladder.flush_lsn,
            truncate_lsn: self.ladder.truncate_lsn,
            term_history: if mutant::is(Mutant::BoastsOfHistory) {
                self.state.term_history.clone()
            } else {
                self.state.term_history.up_to(self.ladder.flush_lsn)
            },
        });
        AcceptorCommand::Reply { conn: vote.conn, message }
    }
}
