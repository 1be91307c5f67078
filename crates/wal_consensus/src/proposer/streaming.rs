//! The elected proposer: WAL out, acknowledgements in, the commit position from them.

use std::collections::BTreeMap;

use pg_types::{Lsn, NodeId};

use super::{
    Commands, Phase, Proposer, ProposerCommand, ProposerMode, Range, SkFault, SkId, SlotPhase, Step,
};
use crate::limits::{APPEND_BYTES_MAX, QUEUED_BYTES_MAX};
use crate::message::{AppendHeader, AppendResponse};
use crate::mutant::{self, Mutant};

impl Proposer {
    pub(super) fn append_response(
        &mut self,
        sk: SkId,
        response: &AppendResponse,
        commands: &mut Commands,
    ) -> Step {
        if !self.is_of_own_generation(sk, response.generation, commands) {
            return Ok(());
        }
        self.check_term(sk, response.term)?;
        let own_term = self.term;
        let Some(slot) = self.slot_mut(sk, SlotPhase::Active) else {
            self.fault(sk, SkFault::Unexpected("append response"), commands);
            return Ok(());
        };
        let (flush_lsn, sent_lsn) = (response.flush_lsn, slot.next_lsn);
        let acked_lsn = slot.acked_lsn.unwrap_or_default();
        let fault = if response.term < own_term {
            Some(SkFault::TermWentBack(response.term))
        } else if sent_lsn < flush_lsn {
            Some(SkFault::ClaimsUnsent { flush_lsn, sent_lsn })
        } else if flush_lsn < acked_lsn {
            Some(SkFault::FlushWentBack { flush_lsn, acked_lsn })
        } else {
            None
        };
        if let Some(fault) = fault {
            self.fault(sk, fault, commands);
            return Ok(());
        }
        slot.acked_lsn = Some(flush_lsn);
        let flush_lsn = if mutant::is(Mutant::CountsSent) { sent_lsn } else { flush_lsn };
        if let Some(node_id) = slot.node_id {
            self.flushed.insert(node_id, flush_lsn);
            let saved = self.saved_commits.entry(node_id).or_default();
            *saved = response.commit_lsn.max(*saved);
        }
        self.advance(commands);
        // What this one has, it can give to those that lack it.
        for index in 0..self.slots.len() {
            self.fetch(SkId(index), commands);
        }
        Ok(())
    }

    /// Only WAL counts that reaches into the own term: a majority that has nothing but older WAL can still be overruled
    /// by a log with a newer term that is not among them.
    fn advance(&mut self, commands: &mut Commands) {
        let counted: BTreeMap<NodeId, Lsn> = self
            .flushed
            .iter()
            .filter(|(_, lsn)| self.term_start_lsn <= **lsn)
            .map(|(node, lsn)| (*node, *lsn))
            .collect();
        let commit_lsn = self.electorate.common_lsn(&counted);
        self.truncate_lsn =
            self.truncate_lsn.max(self.electorate.everybody_lsn(&self.flushed).min(commit_lsn));
        if self.commit_lsn < commit_lsn {
            self.commit_lsn = commit_lsn;
            commands.push(ProposerCommand::CommitAdvanced { commit_lsn });
            // While WAL flows the next append says it, which saves a message and its answer for each commit.
            let told_at_once = self.config.mode == ProposerMode::Sync;
            self.pump_all(told_at_once, commands);
        }
        if self.config.mode == ProposerMode::Sync {
            self.finish_sync(commands);
        }
    }

    /// A quorum must have *saved* the commit position: the page server is served up to it, and whoever starts next
    /// waits for the page server to reach the end of the log.
    fn finish_sync(&mut self, commands: &mut Commands) {
        let nodes: Vec<NodeId> = self.saved_commits.keys().copied().collect();
        let saved = |node: NodeId| {
            self.saved_commits.get(&node).is_some_and(|lsn| self.term_start_lsn <= *lsn)
        };
        if self.electorate.decides(&nodes, saved) {
            self.phase = Phase::Over;
            commands.push(ProposerCommand::Synced { end_lsn: self.term_start_lsn });
        }
    }

    /// Whether everybody who is streamed to has been told that WAL up to `lsn`, or more, is committed.
    pub fn has_told(&self, lsn: Lsn) -> bool {
        let mut active = self.slots.iter().filter(|slot| slot.phase == SlotPhase::Active);
        active.all(|slot| lsn <= slot.told_commit_lsn)
    }

    /// Tells the commit position to those that no append has told since it moved.
    pub(super) fn tell_commit(&mut self, commands: &mut Commands) {
        for index in 0..self.slots.len() {
            let untold = self.slots.get(index).is_some_and(|s| s.told_commit_lsn < self.commit_lsn);
            if untold {
                self.pump(SkId(index), true, commands);
            }
        }
    }

    pub(super) fn pump_all(&mut self, even_if_empty: bool, commands: &mut Commands) {
        for index in 0..self.slots.len() {
            self.pump(SkId(index), even_if_empty, commands);
        }
    }

    /// Sends what there is to send, as far as the queue of the connection has room.
    pub(super) fn pump(&mut self, sk: SkId, even_if_empty: bool, commands: &mut Commands) {
        if self.phase != Phase::Elected {
            return;
        }
        let mut sent = false;
        while let Some(header) = self.next_append(sk) {
            sent = true;
            commands.push(ProposerCommand::Append { sk, header });
        }
        if even_if_empty && !sent {
            let commit_lsn = self.commit_lsn;
            let active = self.slot_mut(sk, SlotPhase::Active).map(|slot| {
                slot.told_commit_lsn = commit_lsn;
                slot.next_lsn
            });
            if let Some(next_lsn) = active {
                let header = self.append_header(next_lsn, next_lsn);
                commands.push(ProposerCommand::Append { sk, header });
            }
        }
        self.fetch(sk, commands);
    }

    fn next_append(&mut self, sk: SkId) -> Option<AppendHeader> {
        let (held, commit_lsn) = (self.held, self.commit_lsn);
        let slot = self.slot_mut(sk, SlotPhase::Active)?;
        let begin_lsn = slot.next_lsn;
        let source = [held, slot.fetched].into_iter().find(|range| range.contains(begin_lsn))?;
        if QUEUED_BYTES_MAX <= slot.queued_bytes {
            return None;
        }
        let available = source.end_lsn.saturating_sub(begin_lsn);
        let wal_bytes = available.min(u64::try_from(APPEND_BYTES_MAX).unwrap_or(available));
        slot.next_lsn = begin_lsn + wal_bytes;
        slot.queued_bytes += wal_bytes;
        slot.told_commit_lsn = commit_lsn;
        Some(self.append_header(begin_lsn, begin_lsn + wal_bytes))
    }

    fn append_header(&self, begin_lsn: Lsn, end_lsn: Lsn) -> AppendHeader {
        AppendHeader {
            generation: self.config.mconf.generation,
            term: self.term,
            begin_lsn,
            end_lsn,
            commit_lsn: self.commit_lsn,
            truncate_lsn: self.truncate_lsn,
        }
    }

    /// Asks for WAL that is no longer, or never was, in the runtime's hands. One request at a time.
    fn fetch(&mut self, sk: SkId, commands: &mut Commands) {
        let held_from = self.held.begin_lsn;
        let Some(slot) = self.slot_mut(sk, SlotPhase::Active) else { return };
        if held_from <= slot.next_lsn {
            slot.fetching = false;
            slot.fetched = Range::default();
            return;
        }
        if slot.fetching {
            return;
        }
        let begin_lsn = slot.next_lsn;
        let donor = self.donor_above(sk, begin_lsn);
        if donor.is_none() && begin_lsn < self.term_start_lsn {
            // The compute may never have had it, and nobody has answered yet who does.
            return;
        }
        if let Some(slot) = self.slots.get_mut(sk.0) {
            slot.fetching = true;
            slot.fetched = Range::default();
        }
        commands.push(ProposerCommand::FetchWal { sk, begin_lsn, end_lsn: held_from, donor });
    }

    /// The safekeeper that is known to hold most above a position.
    fn donor_above(&self, but: SkId, lsn: Lsn) -> Option<SkId> {
        let active = self.slots.iter().enumerate().filter(|(index, slot)| {
            *index != but.0 && slot.phase == SlotPhase::Active && Some(lsn) < slot.acked_lsn
        });
        active.max_by_key(|(_, slot)| slot.acked_lsn).map(|(index, _)| SkId(index))
    }
}
