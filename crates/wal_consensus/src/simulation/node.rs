//! A safekeeper's runtime over a disk in memory.

use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};

use super::rng::Rng;
use super::trace::Trace;
use super::wal::{START, lsn_at, offset, whole_records};
use crate::acceptor::{Acceptor, AcceptorInput};
use crate::change::MemberReport;
use crate::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use crate::membership::MembershipConf;
use crate::message::AcceptorMessage;
use crate::refusal::Refusal;
use crate::term_history::{TermHistory, TermLsn};

pub(super) const TENANT: TenantId = TenantId([1; 16]);
pub(super) const TIMELINE: TimelineId = TimelineId([2; 16]);

/// Bytes that a disk writes as one: of what was not synced, each may survive a power cut or not.
const SECTOR_BYTES: usize = 16;

/// A timeline's files.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) state: AcceptorState,
    /// What a reader finds.
    pub(super) wal: Vec<u8>,
    /// What a power cut leaves for certain.
    pub(super) synced: usize,
    /// End of the whole records in `synced`.
    pub(super) durable_end: usize,
    /// The lowest end since the judge looked last.
    pub(super) cut_at: usize,
}

impl Disk {
    pub(super) fn new(mconf: MembershipConf) -> Disk {
        let term_history = TermHistory::new(vec![TermLsn { term: Term(0), lsn: START }]).unwrap();
        let state = AcceptorState {
            mconf,
            term_history,
            pg_version: 170_000,
            wal_seg_size: 16 << 20,
            timeline_start_lsn: START,
            local_start_lsn: START,
            commit_lsn: START,
            truncate_lsn: START,
            ..AcceptorState::default()
        };
        Disk { state, wal: Vec::new(), synced: 0, durable_end: 0, cut_at: 0 }
    }

    /// What another safekeeper gets when it pulls this timeline.
    pub(super) fn snapshot(&self, mconf: MembershipConf) -> Disk {
        let wal = self.wal[..self.durable_end].to_vec();
        let term_history = self.state.term_history.up_to(lsn_at(wal.len()));
        let (synced, durable_end) = (wal.len(), wal.len());
        let state = AcceptorState { mconf, term_history, ..self.state.clone() };
        Disk { state, wal, synced, durable_end, cut_at: 0 }
    }

    pub(super) fn durable(&self) -> &[u8] {
        &self.wal[..self.durable_end]
    }

    fn sync(&mut self) {
        self.synced = self.wal.len();
        self.durable_end = whole_records(&self.wal, self.durable_end);
    }

    fn cut(&mut self, end: usize) {
        self.wal.truncate(end);
        self.cut_at = self.cut_at.min(end);
        self.synced = self.synced.min(end);
        self.durable_end = self.durable_end.min(end);
    }

    /// Loses, sector by sector, some of what was not synced.
    fn tear(&mut self, rng: &mut Rng) {
        let keep_all = rng.one_in(4);
        let synced = self.synced;
        for sector in self.wal[synced..].chunks_mut(SECTOR_BYTES) {
            if !keep_all && rng.one_in(3) {
                sector.fill(0);
            }
        }
        if rng.one_in(2) {
            let unsynced = self.wal.len() - self.synced;
            self.wal.truncate(self.synced + rng.below(unsynced + 1));
        }
    }
}

/// What leaves a safekeeper.
#[derive(Debug)]
pub(super) enum Out {
    Reply(ConnId, AcceptorMessage),
    Close(ConnId),
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// It alone: what was written can still be read.
    Kill,
    /// Its machine too.
    PowerCut,
}

/// What will go wrong in a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    /// The process dies after so many commands.
    pub(super) crash_after: Option<usize>,
    /// The next sync fails.
    pub(super) failed_sync: bool,
    /// The next save of the state fails; `true`: behind the point where it took effect.
    pub(super) failed_save: Option<bool>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    /// The timeline, if this safekeeper has it.
    pub(super) disk: Option<Disk>,
    /// The process, if it runs and has the timeline.
    pub(super) acceptor: Option<Acceptor>,
    /// Timelines of this generation and below do not come back.
    pub(super) tombstone: Generation,
    /// No more WAL fits on the disk.
    pub(super) full: bool,
    pub(super) flush_wanted: bool,
    /// The judge has to look again.
    pub(super) touched: bool,
    record_end: usize,
}

impl Node {
    pub(super) fn new(id: u64, mconf: Option<MembershipConf>) -> Node {
        let mut node = Node {
            id: NodeId(id),
            disk: mconf.map(Disk::new),
            acceptor: None,
            tombstone: Generation(0),
            full: false,
            flush_wanted: false,
            touched: true,
            record_end: 0,
        };
        node.start().unwrap();
        node
    }

    pub(super) fn is_up(&self) -> bool {
        self.acceptor.is_some()
    }

    /// Whether there is something to start.
    pub(super) fn is_down(&self) -> bool {
        self.disk.is_some() && self.acceptor.is_none()
    }

    pub(super) fn start(&mut self) -> Result<(), String> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        // What is found counts as durable from now on, so it is synced first.
        disk.sync();
        self.record_end = disk.durable_end;
        self.touched = true;
        let identity =
            AcceptorIdentity { node_id: self.id, tenant_id: TENANT, timeline_id: TIMELINE };
        let acceptor = Acceptor::new(identity, disk.state.clone(), lsn_at(self.record_end));
        let refuses = |error| format!("safekeeper {} refuses to start: {error}", self.id);
        self.acceptor = Some(acceptor.map_err(refuses)?);
        self.flush_wanted = false;
        Ok(())
    }

    pub(super) fn crash(&mut self, crash: Crash, rng: &mut Rng) {
        self.acceptor = None;
        self.touched = true;
        if let Some(disk) = self.disk.as_mut().filter(|_| crash == Crash::PowerCut) {
            disk.tear(rng);
            disk.synced = disk.wal.len();
            disk.durable_end = whole_records(&disk.wal, disk.durable_end.min(disk.wal.len()));
        }
    }

    pub(super) fn report(&self) -> Option<MemberReport> {
        let acceptor = self.acceptor.as_ref()?;
        Some(MemberReport {
            generation: acceptor.state().mconf.generation,
            term: acceptor.state().term,
            last_log_term: acceptor.last_log_term(),
            flush_lsn: acceptor.ladder().flush_lsn,
        })
    }

    pub(super) fn flush_lsn(&self) -> Lsn {
        self.acceptor.as_ref().map(|acceptor| acceptor.ladder().flush_lsn).unwrap_or_default()
    }

    /// Steps the acceptor and does what it says. `Err` inside is trouble with the disk: the process must end.
    pub(super) fn step(
        &mut self,
        input: AcceptorInput,
        trouble: Trouble,
        trace: &mut Trace,
    ) -> Result<(Vec<Out>, bool), String> {
        let Some(acceptor) = &mut self.acceptor else { return Ok((Vec::new(), true)) };
        let commands = acceptor.step(input);
        self.execute_all(commands, trouble, trace)
    }

    /// The HTTP request of the same name.
    pub(super) fn switch(
        &mut self,
        mconf: &MembershipConf,
        trace: &mut Trace,
    ) -> Result<Result<Vec<Out>, Refusal>, String> {
        let Some(acceptor) = &mut self.acceptor else { return Ok(Ok(Vec::new())) };
        match acceptor.switch_membership(mconf) {
            Ok(commands) => {
                let (out, _) = self.execute_all(commands, Trouble::default(), trace)?;
                Ok(Ok(out))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    fn execute_all(
        &mut self,
        commands: Vec<AcceptorCommand>,
        mut trouble: Trouble,
        trace: &mut Trace,
    ) -> Result<(Vec<Out>, bool), String> {
        let mut out = Vec::new();
        let mut due = vec![commands];
        while let Some(commands) = due.pop() {
            for command in commands {
                if let Some(left) = &mut trouble.crash_after {
                    if *left == 0 {
                        return Ok((out, false));
                    }
                    *left -= 1;
                }
                let id = self.id;
                if !matches!(command, AcceptorCommand::Reply { .. }) {
                    trace.say(|| format!("  sk{id}: {}", super::show::command(&command)));
                }
                match self.execute(command, &mut trouble, &mut out)? {
                    Done::Yes => {}
                    Done::Sync => match self.sync(&mut trouble) {
                        Some(input) => {
                            let Some(acceptor) = &mut self.acceptor else { break };
                            due.push(acceptor.step(input));
                        }
                        None => return Ok((out, false)),
                    },
                    Done::Failed => {
                        trace.say(|| format!("  sk{id}: fails"));
                        return Ok((out, false));
                    }
                }
            }
        }
        Ok((out, true))
    }

    fn execute(
        &mut self,
        command: AcceptorCommand,
        trouble: &mut Trouble,
        out: &mut Vec<Out>,
    ) -> Result<Done, String> {
        self.touched = true;
        let Some(disk) = &mut self.disk else { return Ok(Done::Failed) };
        match command {
            AcceptorCommand::SaveState(state) => {
                let failed = trouble.failed_save.take();
                if failed != Some(false) {
                    disk.state = *state;
                }
                if failed.is_some() {
                    return Ok(Done::Failed);
                }
            }
            AcceptorCommand::TruncateWal { end_lsn } => {
                disk.cut(offset(end_lsn));
                disk.sync();
                self.record_end = disk.durable_end;
                if lsn_at(self.record_end) != end_lsn {
                    return Err(format!("truncated at {end_lsn}, which is no end of a record"));
                }
            }
            AcceptorCommand::WriteWal { begin_lsn, wal } => {
                if lsn_at(disk.wal.len()) != begin_lsn {
                    return Err(format!("write at {begin_lsn}, log ends elsewhere"));
                }
                if self.full {
                    disk.wal.extend_from_slice(&wal[..wal.len() / 2]);
                    return Ok(Done::Failed);
                }
                disk.wal.extend_from_slice(&wal);
                self.record_end = whole_records(&disk.wal, self.record_end);
            }
            AcceptorCommand::FlushWal { may_wait: true } => self.flush_wanted = true,
            AcceptorCommand::FlushWal { may_wait: false } => return Ok(Done::Sync),
            AcceptorCommand::CommitAdvanced { .. } => {}
            AcceptorCommand::Reply { conn, message } => out.push(Out::Reply(conn, message)),
            AcceptorCommand::Close { conn, .. } => out.push(Out::Close(conn)),
            AcceptorCommand::Quarantine { reason } => return Err(format!("quarantine: {reason}")),
        }
        Ok(Done::Yes)
    }

    /// Syncs the disk and says so. `None` when that fails: then nobody knows which of the unsynced bytes are there.
    pub(super) fn sync(&mut self, trouble: &mut Trouble) -> Option<AcceptorInput> {
        self.flush_wanted = false;
        self.touched = true;
        let disk = self.disk.as_mut()?;
        if std::mem::take(&mut trouble.failed_sync) {
            let lost = disk.synced + (disk.wal.len() - disk.synced) / 2;
            disk.wal[lost..].fill(0);
            return None;
        }
        disk.sync();
        let (flush_lsn, synced_lsn) = (lsn_at(self.record_end), lsn_at(disk.synced));
        Some(AcceptorInput::Flushed { flush_lsn, synced_lsn })
    }
}

enum Done {
    Yes,
    Sync,
    Failed,
}
