//! Following membership: a newer configuration that a safekeeper tells of is adopted, an older one is left behind (C12).

use pg_types::Generation;

use super::{
    Commands, LostReason, Phase, Proposer, ProposerCommand, SkFault, SkId, Slot, SlotPhase, Step,
};
use crate::limits::SAFEKEEPERS_MAX;
use crate::membership::MembershipConf;
use crate::mutant::{self, Mutant};
use crate::quorum::Electorate;

impl Proposer {
    /// A safekeeper that came with a newer configuration gets a slot. Without named members it would change the quorum.
    pub(super) fn make_room(&mut self, sk: SkId) {
        let named = matches!(self.electorate, Electorate::Named(_));
        if named && self.slots.len() <= sk.0 && sk.0 < SAFEKEEPERS_MAX {
            self.slots.resize(sk.0 + 1, Slot::default());
        }
    }

    /// Membership has moved on, and who has greeted knows it already; all others have to be greeted with it.
    ///
    /// A leader whose term start is committed stays the leader; before that, WAL below the term start may exist on
    /// nobody but those who leave. Its election was decided by the older electorate, but every leader of a higher term in
    /// any configuration shares a voter with each newer one, and before old members cease to count, a majority of the
    /// new ones has promised the terms of the old ones ([`crate::change`]). Positions that were acknowledged in
    /// the older generation do not count in the newer one; they are told again.
    pub(super) fn adopt_conf(
        &mut self,
        sk: SkId,
        mconf: &MembershipConf,
        commands: &mut Commands,
    ) -> Step {
        let established = self.commit_lsn.is_valid() && self.term_start_lsn <= self.commit_lsn;
        if self.phase == Phase::Campaign || (self.phase == Phase::Elected && !established) {
            return Err(LostReason::ConfChanged { sk, mconf: Box::new(mconf.clone()) });
        }
        let (theirs, ours) = (self.config.mconf.generation, mconf.generation);
        self.config.mconf = mconf.clone();
        self.electorate = Electorate::of(mconf, self.config.safekeepers);
        self.flushed.clear();
        self.saved_commits.clear();
        commands.push(ProposerCommand::ConfAdopted { mconf: Box::new(mconf.clone()) });
        let message = self.own_greeting();
        for index in (0..self.slots.len()).filter(|index| *index != sk.0) {
            let other = SkId(index);
            match self.slots.get(index).map(|slot| slot.phase) {
                None | Some(SlotPhase::Offline) => {}
                // Nothing is under way on this connection.
                Some(SlotPhase::Greeted) => {
                    if let Some(slot) = self.slot_mut(other, SlotPhase::Greeted) {
                        slot.phase = SlotPhase::Greeting;
                    }
                    let message = message.clone();
                    commands.push(ProposerCommand::Send { sk: other, message });
                }
                Some(_) => self.fault(other, SkFault::OldConf { theirs, ours }, commands),
            }
        }
        for slot in &mut self.slots {
            slot.vote = None;
        }
        Ok(())
    }

    /// Before the election, who has answered is silent, also when its configuration changes. Asking again finds that out:
    /// without it a campaign could wait for ever for safekeepers that are no members any more.
    ///
    /// A campaign that had a refusal and is not decided after all that time is given up. The refusal may be our own vote,
    /// whose answer was lost with a connection, and the safekeeper that could still decide it may be down.
    pub(super) fn ask_again(&mut self, commands: &mut Commands) -> Step {
        let refused = self.slots.iter().any(|slot| {
            slot.phase == SlotPhase::Voted && slot.vote.as_ref().is_some_and(|vote| !vote.granted)
        });
        if self.phase == Phase::Campaign && refused {
            return Err(LostReason::VotesTaken { term: self.term });
        }
        let greeting = self.own_greeting();
        for index in 0..self.slots.len() {
            let sk = SkId(index);
            if self.phase == Phase::CollectingTerms
                && let Some(slot) = self.slot_mut(sk, SlotPhase::Greeted)
            {
                slot.phase = SlotPhase::Greeting;
                commands.push(ProposerCommand::Send { sk, message: greeting.clone() });
            } else if self.phase == Phase::Campaign
                && let Some(slot) = self.slot_mut(sk, SlotPhase::Voted)
            {
                slot.phase = SlotPhase::Greeted;
                self.request_vote(sk, commands);
            }
        }
        Ok(())
    }

    /// Whether an answer belongs to the configuration that counts. If not, its connection is made anew: the greeting
    /// tells whose configuration is the newer one.
    pub(super) fn is_of_own_generation(
        &mut self,
        sk: SkId,
        theirs: Generation,
        commands: &mut Commands,
    ) -> bool {
        let ours = self.config.mconf.generation;
        if mutant::is(Mutant::IgnoresGeneration) {
            return true;
        }
        if theirs < ours {
            self.fault(sk, SkFault::OldConf { theirs, ours }, commands);
        } else if ours < theirs {
            self.fault(sk, SkFault::NewConf { theirs, ours }, commands);
        }
        theirs == ours
    }
}

#[cfg(test)]
mod tests;
