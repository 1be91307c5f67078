//! Runs a [`Proposer`]: feeds it what happens and does what it says, in its order. Shared by `run` and `sync`.

mod outgoing;

use std::collections::BTreeMap;

use pg_types::{Lsn, Term};
use pg_wire::client::Endpoint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until};
use wal_consensus::membership::MembershipConf;
use wal_consensus::message::{AcceptorMessage, AppendResponse};
use wal_consensus::proposer::{
    LostReason, Proposer, ProposerCommand, ProposerConfig, ProposerInput, SkId,
};

use crate::config::{Config, ConfigError};
use crate::held::HeldAppends;
use crate::leisure::Leisure;
use crate::limits::{
    EVENTS_PER_TURN, GOODBYE_MAX, HEARTBEAT_INTERVAL, TELL_COMMIT_PAUSE, WINDOW_BYTES_MAX,
};
use crate::link::{Event, LinkSender};
use crate::progress::StorageProgress;
use crate::safekeepers::Safekeepers;
use crate::term_file::{TermFile, TermFileError};
use crate::window::{GapError, Window};

/// Events that may wait for the driver; more and the connections read no further.
const EVENTS_MAX: usize = 1024;

/// What the campaign and the reign have come to, for the caller to act upon.
#[derive(Debug, Default)]
pub(crate) struct Milestones {
    /// The election is won; WAL is wanted from here.
    pub(crate) elected: Option<Lsn>,
    /// Sync mode is done.
    pub(crate) synced: Option<Lsn>,
    /// This proposer is history.
    pub(crate) lost: Option<LostReason>,
    /// Somebody lacks WAL that only the compute has: its stream must begin again here.
    pub(crate) rewind: Option<Lsn>,
    /// The commit position has moved.
    pub(crate) committed: bool,
    /// A second has passed: the compute hears from us.
    pub(crate) heartbeat: bool,
    /// The page server has reported, or a second has passed: time to tell the backends.
    pub(crate) publish: bool,
}

struct Link {
    conn: u64,
    sender: LinkSender,
    /// Append responses over this connection.
    answers: u64,
    /// What the last one said.
    flush_lsn: Lsn,
    /// A little WAL was sent, and no answer has come since: what the compute writes meanwhile goes out in one piece after it.
    awaits_answer: bool,
}

struct Fetch {
    number: u64,
    end_lsn: Lsn,
    window: Window,
    tasks: JoinSet<()>,
}

/// See the module's description.
pub(crate) struct Driver {
    proposer: Proposer,
    safekeepers: Safekeepers,
    /// The newest configuration that is known.
    mconf: MembershipConf,
    links: BTreeMap<SkId, Link>,
    leisure: Leisure,
    held: HeldAppends,
    /// The safekeeper that has told of a page server last.
    reader: Option<SkId>,
    fetches: BTreeMap<SkId, Fetch>,
    fetch_count: u64,
    window: Window,
    term_file: Option<TermFile>,
    storage: StorageProgress,
    milestones: Milestones,
    events: mpsc::Receiver<Event>,
    events_sender: mpsc::Sender<Event>,
    heartbeat: Interval,
    /// When [`ProposerInput::TellCommit`] is due, unless this position has been told by then.
    tell_commit: Option<(Instant, Lsn)>,
    /// When what is held goes out, answered or not.
    release_at: Option<Instant>,
}

impl Driver {
    /// Connects to the safekeepers and begins a campaign. With a term file, terms are remembered there.
    ///
    /// # Errors
    /// When the configuration is wrong.
    pub(crate) fn start(
        config: &Config,
        proposer: ProposerConfig,
        term_file: Option<TermFile>,
    ) -> Result<Driver, ConfigError> {
        let (events_sender, events) = mpsc::channel(EVENTS_MAX);
        let safekeepers = Safekeepers::connect(config, events_sender.clone())?;
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Driver {
            mconf: proposer.mconf.clone(),
            proposer: Proposer::new(proposer),
            safekeepers,
            links: BTreeMap::new(),
            leisure: Leisure::default(),
            held: HeldAppends::default(),
            reader: None,
            fetches: BTreeMap::new(),
            fetch_count: 0,
            window: Window::default(),
            term_file,
            storage: StorageProgress::default(),
            milestones: Milestones::default(),
            events,
            events_sender,
            heartbeat,
            tell_commit: None,
            release_at: None,
        })
    }

    /// Begins another campaign, with the newest membership that is known; everybody is met anew.
    pub(crate) fn restart(&mut self, mut config: ProposerConfig) {
        config.safekeepers = self.safekeepers.count();
        config.mconf = self.mconf.clone();
        self.links.clear();
        self.leisure = Leisure::default();
        self.held = HeldAppends::default();
        self.fetches.clear();
        self.window = Window::default();
        self.milestones = Milestones::default();
        self.proposer = Proposer::new(config);
    }

    pub(crate) fn term(&self) -> Term {
        self.proposer.term()
    }

    pub(crate) fn commit_lsn(&self) -> Lsn {
        self.proposer.commit_lsn()
    }

    /// End of the compute's WAL that is here.
    pub(crate) fn held_until(&self) -> Lsn {
        self.window.end_lsn()
    }

    pub(crate) fn storage(&self) -> &StorageProgress {
        &self.storage
    }

    pub(crate) fn term_file(&self) -> Option<&TermFile> {
        self.term_file.as_ref()
    }

    /// What has happened since the last call.
    pub(crate) fn take_milestones(&mut self) -> Milestones {
        std::mem::take(&mut self.milestones)
    }

    /// Tells everybody the last commit position, and waits a moment for their answers: what is committed and not known to
    /// be would come to the page server only with the next compute.
    pub(crate) async fn say_goodbye(&mut self) -> Result<(), TermFileError> {
        let answers = |driver: &Driver| -> Vec<(SkId, u64)> {
            driver.links.iter().map(|(sk, link)| (*sk, link.answers)).collect()
        };
        // Who has never answered is not listening yet.
        let mut waiting = answers(self);
        waiting.retain(|(_, answers)| 0 < *answers);
        self.leisure = Leisure::default();
        self.release()?;
        self.step(ProposerInput::Heartbeat)?;
        let heard = async {
            while waiting.iter().any(|before| answers(self).contains(before)) {
                self.turn().await?;
            }
            Ok(())
        };
        tokio::time::timeout(GOODBYE_MAX, heard).await.unwrap_or(Ok(()))
    }

    /// Whether more WAL of the compute can be held, and sent at once to somebody.
    pub(crate) fn wants_wal(&self) -> bool {
        self.window.len() < WINDOW_BYTES_MAX && !self.all_await_answers()
    }

    /// Waits for the next event and takes it, and a few more if they are there. Cancellation-safe.
    ///
    /// # Errors
    /// When the terms cannot be remembered.
    pub(crate) async fn turn(&mut self) -> Result<(), TermFileError> {
        tokio::select! {
            event = self.events.recv() => {
                if let Some(event) = event {
                    self.take(event)?;
                }
                for _ in 1..EVENTS_PER_TURN {
                    match self.events.try_recv() {
                        Ok(event) => self.take(event)?,
                        Err(_) => break,
                    }
                }
                self.trim()
            }
            () = sleep_until(self.tell_commit.map_or_else(Instant::now, |(at, _)| at)),
                if self.tell_commit.is_some() =>
            {
                self.tell_commit()
            }
            () = sleep_until(self.release_at.unwrap_or_else(Instant::now)),
                if self.release_at.is_some() =>
            {
                self.look_for_the_slow();
                self.release()
            }
            _ = self.heartbeat.tick() => {
                self.milestones.heartbeat = true;
                self.milestones.publish = true;
                self.step(ProposerInput::Heartbeat)
            }
        }
    }

    /// The compute's WAL begins, or begins again, here.
    pub(crate) fn wal_begins(&mut self, lsn: Lsn) -> Result<(), TermFileError> {
        // While its WAL is still here.
        self.release()?;
        self.window = Window::at(lsn);
        self.hold()
    }

    /// The compute's next WAL.
    pub(crate) fn wal(
        &mut self,
        begin_lsn: Lsn,
        wal: bytes::Bytes,
    ) -> Result<Result<(), GapError>, TermFileError> {
        if let Err(gap) = self.window.push(begin_lsn, wal, None) {
            return Ok(Err(gap));
        }
        self.hold()?;
        self.trim()?;
        Ok(Ok(()))
    }

    fn hold(&mut self) -> Result<(), TermFileError> {
        let (begin_lsn, end_lsn) = (self.window.begin_lsn(), self.window.end_lsn());
        self.step(ProposerInput::WalHeld { begin_lsn, end_lsn })
    }

    /// Forgets WAL that everybody has, and, when there is too much, WAL that a quorum has.
    fn trim(&mut self) -> Result<(), TermFileError> {
        let before = self.window.begin_lsn();
        self.window.evict_below(self.proposer.truncate_lsn());
        if WINDOW_BYTES_MAX <= self.window.len() {
            self.release()?;
            self.window.evict_below(self.proposer.evictable_lsn());
        }
        if self.window.begin_lsn() == before { Ok(()) } else { self.hold() }
    }

    fn take(&mut self, event: Event) -> Result<(), TermFileError> {
        match event {
            Event::Connected { sk, conn, sender } => {
                self.give_up(sk);
                let flush_lsn = Lsn::INVALID;
                let link = Link { conn, sender, answers: 0, flush_lsn, awaits_answer: false };
                self.links.insert(sk, link);
                self.step(ProposerInput::Connected { sk })
            }
            Event::Message { sk, conn, message } if self.is_current(sk, conn) => {
                if let AcceptorMessage::AppendResponse(response) = &message {
                    self.note_answer(sk, response);
                }
                self.step(ProposerInput::Message { sk, message })?;
                self.send_next(sk)
            }
            Event::Written { sk, conn, wal_bytes } if self.is_current(sk, conn) => {
                self.step(ProposerInput::Written { sk, wal_bytes })
            }
            Event::Disconnected { sk, conn } if self.is_current(sk, conn) => {
                self.give_up(sk);
                self.step(ProposerInput::Disconnected { sk })
            }
            Event::Fetched { sk, fetch, begin_lsn, wal, permit } => {
                let Some(current) = self.fetches.get_mut(&sk).filter(|f| f.number == fetch) else {
                    return Ok(());
                };
                if let Err(error) = current.window.push(begin_lsn, wal, Some(permit)) {
                    tracing::warn!(%error, "fetched WAL");
                    self.fetches.remove(&sk);
                    return self.step(ProposerInput::FetchFailed { sk });
                }
                let (begin_lsn, end_lsn) = (current.window.begin_lsn(), current.window.end_lsn());
                self.step(ProposerInput::FetchedHeld { sk, begin_lsn, end_lsn })
            }
            Event::FetchEnded { sk, fetch, failed: true }
                if self.fetches.get(&sk).is_some_and(|current| current.number == fetch) =>
            {
                self.fetches.remove(&sk);
                self.step(ProposerInput::FetchFailed { sk })
            }
            // From a connection or a fetch that was given up.
            Event::Message { .. }
            | Event::Written { .. }
            | Event::Disconnected { .. }
            | Event::FetchEnded { .. } => Ok(()),
        }
    }

    fn is_current(&self, sk: SkId, conn: u64) -> bool {
        self.links.get(&sk).is_some_and(|link| link.conn == conn)
    }

    fn note_answer(&mut self, sk: SkId, response: &AppendResponse) {
        let Some(link) = self.links.get_mut(&sk) else { return };
        link.answers += 1;
        link.flush_lsn = response.flush_lsn;
        link.awaits_answer = false;
        let mut news = link.answers == 1;
        if !response.pageserver_feedback.is_empty() {
            self.storage.take(response.pageserver_feedback.clone());
            self.milestones.publish = true;
            news |= self.reader.replace(sk) != Some(sk);
        }
        if news {
            self.arrange();
        }
    }

    fn step(&mut self, input: ProposerInput) -> Result<(), TermFileError> {
        let mut inputs = vec![input];
        // Doing what was said can itself be news, such as a connection that has to be given up.
        while let Some(input) = inputs.pop() {
            for command in self.proposer.step(input) {
                inputs.extend(self.execute(command)?);
            }
        }
        Ok(())
    }

    fn execute(&mut self, command: ProposerCommand) -> Result<Vec<ProposerInput>, TermFileError> {
        match command {
            ProposerCommand::RecordCampaign { term } => {
                tracing::info!(%term, "campaigning");
                if let Some(file) = &mut self.term_file {
                    file.save(crate::term_file::Terms {
                        campaign_term: term,
                        ..file.terms().clone()
                    })?;
                }
            }
            ProposerCommand::RecordElected { term } => {
                if let Some(file) = &mut self.term_file {
                    let mut terms = file.terms().clone();
                    terms.elected_terms.push(term);
                    file.save(terms)?;
                }
            }
            ProposerCommand::Elected { term, term_start_lsn, donor } => {
                let donor = self.address(donor);
                tracing::info!(%term, %term_start_lsn, donor, "elected");
                self.window = Window::at(term_start_lsn);
                self.milestones.elected = Some(term_start_lsn);
            }
            ProposerCommand::Send { sk, message } => {
                let held = self.held.take(sk);
                let input = held.and_then(|header| self.append_now(sk, &header));
                if let Some(link) = self.links.get(&sk) {
                    link.sender.send(&message);
                }
                return Ok(input.into_iter().collect());
            }
            ProposerCommand::Append { sk, header } => {
                return Ok(self.append(sk, &header).into_iter().collect());
            }
            ProposerCommand::FetchWal { sk, begin_lsn, end_lsn, donor } => {
                return Ok(self.fetch(sk, begin_lsn, end_lsn, donor).into_iter().collect());
            }
            ProposerCommand::CommitAdvanced { commit_lsn } => {
                tracing::trace!(%commit_lsn, "commit");
                self.tell_commit
                    .get_or_insert_with(|| (Instant::now() + TELL_COMMIT_PAUSE, commit_lsn));
                self.milestones.committed = true;
            }
            ProposerCommand::ConfAdopted { mconf } => {
                tracing::info!(%mconf, "membership configuration adopted");
                return Ok(self.follow(*mconf));
            }
            ProposerCommand::Synced { end_lsn } => self.milestones.synced = Some(end_lsn),
            ProposerCommand::Reconnect { sk, fault } => {
                let endpoint = self.address(sk);
                tracing::warn!(safekeeper = endpoint, %fault, "giving up a connection");
                self.give_up(sk);
            }
            ProposerCommand::Lost { reason } => {
                if let LostReason::ConfChanged { mconf, .. } = &reason {
                    // The next campaign begins with it; this one hears nothing any more.
                    self.follow(MembershipConf::clone(mconf));
                }
                self.milestones.lost = Some(reason);
            }
        }
        Ok(Vec::new())
    }

    fn address(&self, sk: SkId) -> Option<String> {
        self.safekeepers.get(sk).map(|params| params.endpoint()).map(Endpoint::to_string)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}
