//! From greetings to the elected message.

use pg_types::{Lsn, NodeId, Term, xlog};

use super::{
    Commands, LostReason, Phase, Proposer, ProposerCommand, ProposerMode, Range, SkFault, SkId,
    SlotPhase, Step, Vote,
};
use crate::message::{
    AcceptorGreeting, ProposerElected, ProposerGreeting, ProposerMessage, VoteRequest, VoteResponse,
};
use crate::mutant::{self, Mutant};
use crate::term_history::{TermLsn, common_point};

impl Proposer {
    pub(super) fn connected(&mut self, sk: SkId, commands: &mut Commands) {
        self.disconnected(sk);
        self.make_room(sk);
        let greeting = self.own_greeting();
        if let Some(slot) = self.slots.get_mut(sk.0) {
            slot.phase = SlotPhase::Greeting;
            commands.push(ProposerCommand::Send { sk, message: greeting });
        }
    }

    pub(super) fn own_greeting(&self) -> ProposerMessage {
        ProposerMessage::Greeting(ProposerGreeting {
            tenant_id: self.config.tenant_id,
            timeline_id: self.config.timeline_id,
            mconf: self.config.mconf.clone(),
            pg_version: self.config.pg_version,
            system_id: self.config.system_id,
            wal_seg_size: self.config.wal_seg_size,
        })
    }

    pub(super) fn greeting(
        &mut self,
        sk: SkId,
        greeting: AcceptorGreeting,
        commands: &mut Commands,
    ) -> Step {
        let duplicate = self.slots.iter().enumerate().any(|(index, slot)| {
            index != sk.0
                && slot.phase != SlotPhase::Offline
                && slot.node_id == Some(greeting.node_id)
        });
        let Some(slot) = self.slot_mut(sk, SlotPhase::Greeting) else {
            self.fault(sk, SkFault::Unexpected("greeting"), commands);
            return Ok(());
        };
        if duplicate {
            self.fault(sk, SkFault::DuplicateNode(greeting.node_id), commands);
            return Ok(());
        }
        if slot.node_id != Some(greeting.node_id) {
            // Another safekeeper behind the same address: what the former one promised does not bind this one.
            slot.vote = None;
        }
        slot.node_id = Some(greeting.node_id);
        slot.term = greeting.term;
        slot.phase = SlotPhase::Greeted;
        let generation = self.config.mconf.generation;
        if generation < greeting.mconf.generation {
            self.adopt_conf(sk, &greeting.mconf, commands)?;
        } else if greeting.mconf.generation < generation {
            let (theirs, ours) = (greeting.mconf.generation, generation);
            self.fault(sk, SkFault::OldConf { theirs, ours }, commands);
            return Ok(());
        }
        match self.phase {
            Phase::CollectingTerms => self.try_campaign(commands),
            Phase::Campaign | Phase::Elected => {
                self.check_term(sk, greeting.term)?;
                self.request_vote(sk, commands);
                Ok(())
            }
            Phase::Over => Ok(()),
        }
    }

    fn try_campaign(&mut self, commands: &mut Commands) -> Step {
        let greeted: Vec<(NodeId, Term)> = self
            .slots
            .iter()
            .filter(|slot| slot.phase == SlotPhase::Greeted)
            .filter_map(|slot| slot.node_id.map(|node_id| (node_id, slot.term)))
            .collect();
        let nodes: Vec<NodeId> = greeted.iter().map(|(node_id, _)| *node_id).collect();
        if !self.electorate.decides(&nodes, |_| true) {
            return Ok(());
        }
        let seen = greeted.iter().map(|(_, term)| *term).max().unwrap_or_default();
        let seen = seen.max(self.config.min_term);
        let Some(term) = seen.0.checked_add(1) else {
            return Err(LostReason::TermsExhausted(seen));
        };
        self.term = Term(term);
        self.phase = Phase::Campaign;
        commands.push(ProposerCommand::RecordCampaign { term: self.term });
        for index in 0..self.slots.len() {
            self.request_vote(SkId(index), commands);
        }
        Ok(())
    }

    pub(super) fn request_vote(&mut self, sk: SkId, commands: &mut Commands) {
        let request = VoteRequest { generation: self.config.mconf.generation, term: self.term };
        if let Some(slot) = self.slot_mut(sk, SlotPhase::Greeted) {
            slot.phase = SlotPhase::Voting;
            let message = ProposerMessage::VoteRequest(request);
            commands.push(ProposerCommand::Send { sk, message });
        }
    }

    pub(super) fn check_term(&self, sk: SkId, term: Term) -> Step {
        if self.term < term {
            return Err(LostReason::HigherTerm { sk, term, own_term: self.term });
        }
        Ok(())
    }

    pub(super) fn vote_response(
        &mut self,
        sk: SkId,
        response: VoteResponse,
        commands: &mut Commands,
    ) -> Step {
        if !self.is_of_own_generation(sk, response.generation, commands) {
            return Ok(());
        }
        let own_term = self.term;
        let Some(slot) = self.slot_mut(sk, SlotPhase::Voting) else {
            self.fault(sk, SkFault::Unexpected("vote response"), commands);
            return Ok(());
        };
        if response.term < own_term {
            self.fault(sk, SkFault::TermWentBack(response.term), commands);
            return Ok(());
        }
        // A vote that was granted over an earlier connection is not lost because the term is not above itself now.
        let granted_before = slot.vote.as_ref().is_some_and(|vote| vote.granted);
        slot.phase = SlotPhase::Voted;
        slot.vote = Some(Vote {
            granted: response.vote_given || granted_before,
            flush_lsn: response.flush_lsn,
            truncate_lsn: response.truncate_lsn,
            history: response.term_history,
        });
        self.check_term(sk, response.term)?;
        match self.phase {
            Phase::Campaign => self.count_votes(commands),
            Phase::Elected => {
                self.announce(sk, commands);
                Ok(())
            }
            Phase::CollectingTerms | Phase::Over => Ok(()),
        }
    }

    fn count_votes(&mut self, commands: &mut Commands) -> Step {
        let answers: Vec<(NodeId, bool)> = self
            .slots
            .iter()
            .filter_map(|slot| Some((slot.node_id?, slot.vote.as_ref()?.granted)))
            .collect();
        let named = |granted: bool| -> Vec<NodeId> {
            answers.iter().filter(|(_, given)| *given == granted).map(|(node, _)| *node).collect()
        };
        if self.electorate.decides(&named(true), |_| true) {
            return self.win(commands);
        }
        if self.electorate.is_blocked_by(&named(false)) {
            return Err(LostReason::VotesTaken { term: self.term });
        }
        Ok(())
    }

    fn win(&mut self, commands: &mut Commands) -> Step {
        let (donor, vote) = self.choose_donor().ok_or(LostReason::EmptyTimeline)?;
        let log_term = vote.history.last_log_term(vote.flush_lsn);
        self.term_start_lsn = self.check_start(vote.flush_lsn, log_term)?;
        let own_entry = TermLsn { term: self.term, lsn: self.term_start_lsn };
        let donor_history = vote.history.up_to(vote.flush_lsn);
        self.history = donor_history.with(own_entry).map_err(LostReason::DonorHistory)?;
        self.truncate_lsn =
            self.votes().map(|(_, vote)| vote.truncate_lsn).max().unwrap_or_default();
        self.held = Range { begin_lsn: self.term_start_lsn, end_lsn: self.term_start_lsn };
        self.phase = Phase::Elected;
        let (term, term_start_lsn) = (self.term, self.term_start_lsn);
        commands.push(ProposerCommand::RecordElected { term });
        commands.push(ProposerCommand::Elected { term, term_start_lsn, donor });
        for index in 0..self.slots.len() {
            self.announce(SkId(index), commands);
        }
        Ok(())
    }

    fn votes(&self) -> impl Iterator<Item = (SkId, &Vote)> {
        let votes = self.slots.iter().enumerate();
        let votes = votes.filter_map(|(index, slot)| Some((SkId(index), slot.vote.as_ref()?)));
        votes.filter(|(_, vote)| vote.granted)
    }

    /// The voter with the newest log: by the term of its last WAL first, by length second.
    fn choose_donor(&self) -> Option<(SkId, Vote)> {
        let newest = self.votes().max_by_key(|(_, vote)| (last_log_term(vote), vote.flush_lsn));
        newest.map(|(sk, vote)| (sk, vote.clone()))
    }

    /// Where the term begins, if this compute may continue the log at all. Its pages are those of `start_lsn`: had
    /// another compute written since, they would be out of date. WAL that this very compute wrote in an earlier term
    /// is in its pages.
    fn check_start(&self, log_end_lsn: Lsn, log_term: Term) -> Result<Lsn, LostReason> {
        match &self.config.mode {
            ProposerMode::Sync if log_end_lsn.is_valid() => Ok(log_end_lsn),
            ProposerMode::Sync => Err(LostReason::EmptyTimeline),
            ProposerMode::Stream { start_lsn, .. } if !log_end_lsn.is_valid() => Ok(*start_lsn),
            ProposerMode::Stream { start_lsn, own_terms } => {
                // One side may name the start of a WAL page, the other the place behind its header.
                let same = xlog::normalize(log_end_lsn) == xlog::normalize(*start_lsn);
                if same || own_terms.contains(&log_term) {
                    Ok(log_end_lsn)
                } else {
                    Err(LostReason::ForeignWal { log_end_lsn, log_term, start_lsn: *start_lsn })
                }
            }
        }
    }

    /// Tells a safekeeper that has answered our vote request, granted or not, where our log and its part.
    fn announce(&mut self, sk: SkId, commands: &mut Commands) {
        let Some(slot) = self.slots.get(sk.0).filter(|slot| slot.phase == SlotPhase::Voted) else {
            return;
        };
        let Some(vote) = &slot.vote else { return };
        let start_lsn = match common_point(&self.history, &vote.history, vote.flush_lsn) {
            Ok(start_lsn) => start_lsn,
            Err(error) => return self.fault(sk, error.into(), commands),
        };
        let message = ProposerMessage::Elected(ProposerElected {
            generation: self.config.mconf.generation,
            term: self.term,
            start_streaming_at: start_lsn,
            term_history: self.history.clone(),
        });
        if let Some(slot) = self.slots.get_mut(sk.0) {
            slot.phase = SlotPhase::Active;
            slot.next_lsn = start_lsn;
        }
        commands.push(ProposerCommand::Send { sk, message });
        // There is no answer to an elected message: the first append request asks for one.
        self.pump(sk, true, commands);
    }
}

fn last_log_term(vote: &Vote) -> Term {
    if mutant::is(Mutant::LongestLogWins) {
        return Term(0);
    }
    if mutant::is(Mutant::BoastsOfHistory) {
        return vote.history.last().map(|entry| entry.term).unwrap_or_default();
    }
    vote.history.last_log_term(vote.flush_lsn)
}

#[cfg(test)]
mod tests {
    use pg_types::{Generation, TenantId, TimelineId};

    use super::super::{ProposerConfig, ProposerInput};
    use super::*;
    use crate::membership::MembershipConf;
    use crate::message::AcceptorMessage;
    use crate::term_history::TermHistory;

    /// A campaign for term 3 at one safekeeper whose log ends at 24 in term 1, where the compute was started at 16.
    fn campaign(own_terms: &[u64]) -> Vec<ProposerCommand> {
        let own_terms = own_terms.iter().copied().map(Term).collect();
        let mut proposer = Proposer::new(ProposerConfig {
            tenant_id: TenantId([1; 16]),
            timeline_id: TimelineId([2; 16]),
            pg_version: 170_000,
            system_id: 7,
            wal_seg_size: 1 << 24,
            safekeepers: 1,
            mconf: MembershipConf::default(),
            min_term: Term(2),
            mode: ProposerMode::Stream { start_lsn: Lsn(16), own_terms },
        });
        let sk = SkId(0);
        let (node_id, mconf) = (NodeId(1), MembershipConf::default());
        let greeting = AcceptorGreeting { node_id, mconf, term: Term(2) };
        let vote = VoteResponse {
            generation: Generation(0),
            term: Term(3),
            vote_given: true,
            flush_lsn: Lsn(24),
            truncate_lsn: Lsn(16),
            term_history: TermHistory::new(vec![(0, 16).into(), (1, 16).into()]).unwrap(),
        };
        proposer.step(ProposerInput::Connected { sk });
        let message = AcceptorMessage::Greeting(greeting);
        proposer.step(ProposerInput::Message { sk, message });
        let message = AcceptorMessage::VoteResponse(vote);
        proposer.step(ProposerInput::Message { sk, message })
    }

    /// Terms 1 and 2 were won, and the walproposer died before the safekeeper heard of the second election.
    #[test]
    fn wal_of_an_earlier_own_term_is_continued() {
        let (term, term_start_lsn, donor) = (Term(3), Lsn(24), SkId(0));
        let elected = ProposerCommand::Elected { term, term_start_lsn, donor };
        assert!(campaign(&[1, 2]).contains(&elected));
        let reason =
            LostReason::ForeignWal { log_end_lsn: Lsn(24), log_term: Term(1), start_lsn: Lsn(16) };
        assert_eq!(campaign(&[2]), [ProposerCommand::Lost { reason }]);
    }
}
