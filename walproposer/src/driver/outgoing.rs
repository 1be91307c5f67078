//! What goes to whom, and when: appends, now or a moment later; WAL that somebody lacks; who is connected to.

use std::collections::BTreeSet;

use pg_types::Lsn;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wal_consensus::membership::MembershipConf;
use wal_consensus::message::AppendHeader;
use wal_consensus::proposer::{ProposerInput, SkId};

use super::{Driver, Fetch};
use crate::fetch::{FetchOrder, fetch};
use crate::leisure;
use crate::limits::{LEISURE_BYTES_MAX, LEISURE_PAUSE, TELL_COMMIT_PAUSE};
use crate::term_file::TermFileError;
use crate::window::Window;

impl Driver {
    /// Decides anew who may wait.
    pub(super) fn arrange(&mut self) {
        let answering = self.links.iter().filter(|(_, link)| 0 < link.answers);
        let stream: BTreeSet<SkId> = answering.map(|(sk, _)| *sk).collect();
        let enough = leisure::enough(&self.mconf, self.safekeepers.count());
        self.leisure.arrange(&stream, enough, self.reader);
    }

    /// A prompt safekeeper that has held a commit up for as long as others may wait is prompt no more.
    pub(super) fn look_for_the_slow(&mut self) {
        if self.proposer.commit_lsn() < self.held.first_end_lsn() {
            let prompt = self.links.iter().filter(|(sk, _)| !self.leisure.may_wait(**sk));
            if let Some((slow, _)) = prompt.min_by_key(|(_, link)| link.flush_lsn) {
                self.leisure.demote(*slow);
            }
        }
    }

    /// Sends everything that was held.
    pub(super) fn release(&mut self) -> Result<(), TermFileError> {
        self.release_at = None;
        while let Some((sk, header)) = self.held.take_next() {
            if let Some(input) = self.append_now(sk, &header) {
                self.step(input)?;
            }
        }
        Ok(())
    }

    /// Whether a moment's wait makes one piece of what would be several, and delays nothing: everybody who is prompt is still busy
    /// with the piece before.
    pub(super) fn all_await_answers(&self) -> bool {
        let streaming = self.links.iter().filter(|(_, link)| 0 < link.answers);
        let mut prompt = streaming.filter(|(sk, _)| !self.leisure.may_wait(**sk)).peekable();
        prompt.peek().is_some() && prompt.all(|(_, link)| link.awaits_answer)
    }

    /// What was held for a prompt safekeeper that has answered now.
    pub(super) fn send_next(&mut self, sk: SkId) -> Result<(), TermFileError> {
        if self.leisure.may_wait(sk) {
            return Ok(());
        }
        let held = self.held.take(sk);
        let input = held.and_then(|header| self.append_now(sk, &header));
        input.map_or(Ok(()), |input| self.step(input))
    }

    /// Tells the commit position to those who have not learnt with WAL of what was to be told; what has come since waits in turn.
    pub(super) fn tell_commit(&mut self) -> Result<(), TermFileError> {
        let Some((_, committed)) = self.tell_commit.take() else { return Ok(()) };
        if !self.proposer.has_told(committed) {
            return self.step(ProposerInput::TellCommit);
        }
        let commit_lsn = self.proposer.commit_lsn();
        self.tell_commit =
            (committed < commit_lsn).then(|| (Instant::now() + TELL_COMMIT_PAUSE, commit_lsn));
        Ok(())
    }

    /// Closes the connection to a safekeeper, and forgets what was on its way there.
    pub(super) fn give_up(&mut self, sk: SkId) {
        self.links.remove(&sk);
        self.fetches.remove(&sk);
        self.held.take(sk);
        self.arrange();
    }

    /// Connects to the members of a newer configuration, and gives up who is none any more.
    pub(super) fn follow(&mut self, mconf: MembershipConf) -> Vec<ProposerInput> {
        let gone = self.safekeepers.follow(&mconf);
        self.mconf = mconf;
        self.arrange();
        let gone = gone.into_iter().map(|sk| {
            self.give_up(sk);
            ProposerInput::Disconnected { sk }
        });
        gone.collect()
    }

    pub(super) fn append(&mut self, sk: SkId, header: &AppendHeader) -> Option<ProposerInput> {
        if self.held.extend(sk, header) {
            return None;
        }
        let held = self.held.take(sk);
        if let Some(input) = held.and_then(|held| self.append_now(sk, &held)) {
            return Some(input);
        }
        let is_little = header.wal_bytes() < LEISURE_BYTES_MAX;
        // Not for who catches up: WAL that is fetched for it has nowhere to wait.
        let is_newest = header.end_lsn == self.window.end_lsn();
        let awaits_answer = self.links.get(&sk).is_some_and(|link| link.awaits_answer);
        if is_little && is_newest && (awaits_answer || self.leisure.may_wait(sk)) {
            self.held.hold(sk, header);
            self.release_at.get_or_insert_with(|| Instant::now() + LEISURE_PAUSE);
            return None;
        }
        self.append_now(sk, header)
    }

    pub(super) fn append_now(&mut self, sk: SkId, header: &AppendHeader) -> Option<ProposerInput> {
        let link = self.links.get_mut(&sk)?;
        let (begin_lsn, end_lsn) = (header.begin_lsn, header.end_lsn);
        if begin_lsn == end_lsn {
            link.sender.append(header, Vec::new());
            return None;
        }
        link.awaits_answer = header.wal_bytes() < LEISURE_BYTES_MAX;
        if let Some(wal) = self.window.slice(begin_lsn, end_lsn) {
            link.sender.append(header, wal);
            return None;
        }
        let fetch = self.fetches.get_mut(&sk);
        if let Some(fetch) = fetch
            && let Some(wal) = fetch.window.slice(begin_lsn, end_lsn)
        {
            link.sender.append(header, wal);
            fetch.window.evict_below(end_lsn);
            if fetch.end_lsn <= end_lsn {
                self.fetches.remove(&sk);
            }
            return None;
        }
        tracing::error!(%begin_lsn, %end_lsn, "WAL that was said to be held is not");
        self.give_up(sk);
        Some(ProposerInput::Disconnected { sk })
    }

    /// From a donor when there is one; otherwise from the compute, which keeps everything that is not committed.
    pub(super) fn fetch(
        &mut self,
        sk: SkId,
        begin_lsn: Lsn,
        end_lsn: Lsn,
        donor: Option<SkId>,
    ) -> Option<ProposerInput> {
        let donor = donor.and_then(|donor| self.safekeepers.get(donor).cloned());
        let Some(donor) = donor else {
            if begin_lsn < self.proposer.commit_lsn() {
                return Some(ProposerInput::FetchFailed { sk });
            }
            let earlier = self.milestones.rewind.map_or(begin_lsn, |lsn| lsn.min(begin_lsn));
            self.milestones.rewind = Some(earlier);
            return None;
        };
        self.fetch_count += 1;
        let (number, term) = (self.fetch_count, self.proposer.term());
        tracing::info!(%begin_lsn, %end_lsn, donor = %donor.endpoint(), "fetching WAL");
        let order = FetchOrder { sk, fetch: number, begin_lsn, end_lsn, term };
        let mut tasks = JoinSet::new();
        tasks.spawn(fetch(order, donor, self.events_sender.clone()));
        self.fetches.insert(sk, Fetch { number, end_lsn, window: Window::at(begin_lsn), tasks });
        None
    }
}
