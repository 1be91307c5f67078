//! A safekeeper's runtime over a disk in memory.

use pg_types::{Lsn, NodeId, TenantId, Term, TimelineId};
use wal_consensus::acceptor::{Acceptor, AcceptorInput};
use wal_consensus::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use wal_consensus::message::AcceptorMessage;
use wal_consensus::term_history::{TermHistory, TermLsn};

use crate::rng::Rng;
use crate::wal::{START, lsn_at, offset, whole_records};

pub const TENANT: TenantId = TenantId([1; 16]);
pub const TIMELINE: TimelineId = TimelineId([2; 16]);

/// What a power cut leaves.
#[derive(Clone, Debug)]
pub struct Disk {
    pub state: AcceptorState,
    pub wal: Vec<u8>,
    /// Bytes that were synced; a crash keeps these and any part of what follows.
    pub synced: usize,
}

/// What leaves a safekeeper.
#[derive(Debug)]
pub enum Out {
    Reply(ConnId, AcceptorMessage),
    Close(ConnId),
}

#[derive(Debug)]
pub struct Safekeeper {
    pub disk: Disk,
    pub acceptor: Option<Acceptor>,
    identity: AcceptorIdentity,
    pub flush_wanted: bool,
    record_end: usize,
}

impl Safekeeper {
    pub fn new(node: u64) -> Safekeeper {
        let term_history = TermHistory::new(vec![TermLsn { term: Term(0), lsn: START }]).unwrap();
        let state = AcceptorState {
            term_history,
            pg_version: 170_000,
            wal_seg_size: 16 << 20,
            timeline_start_lsn: START,
            local_start_lsn: START,
            commit_lsn: START,
            truncate_lsn: START,
            ..AcceptorState::default()
        };
        let identity =
            AcceptorIdentity { node_id: NodeId(node), tenant_id: TENANT, timeline_id: TIMELINE };
        let disk = Disk { state, wal: Vec::new(), synced: 0 };
        let mut safekeeper =
            Safekeeper { disk, acceptor: None, identity, flush_wanted: false, record_end: 0 };
        safekeeper.restart().unwrap();
        safekeeper
    }

    pub fn restart(&mut self) -> Result<(), String> {
        self.record_end = whole_records(&self.disk.wal, 0);
        let flush_lsn = lsn_at(self.record_end);
        let acceptor =
            Acceptor::new(self.identity, self.disk.state.clone(), flush_lsn).map_err(|error| {
                format!("safekeeper {} refuses to start: {error}", self.identity.node_id)
            })?;
        self.acceptor = Some(acceptor);
        self.flush_wanted = false;
        Ok(())
    }

    /// Loses everything but the disk, and of the disk any tail that was not synced.
    pub fn crash(&mut self, rng: &mut Rng) {
        self.acceptor = None;
        let unsynced = self.disk.wal.len() - self.disk.synced;
        self.disk.wal.truncate(self.disk.synced + rng.below(unsynced + 1));
        self.disk.synced = self.disk.wal.len();
    }

    pub fn flush_lsn(&self) -> Lsn {
        self.acceptor.as_ref().map(|acceptor| acceptor.ladder().flush_lsn).unwrap_or_default()
    }

    /// WAL that is on the disk for certain, in whole records.
    pub fn durable(&self) -> &[u8] {
        let end = whole_records(&self.disk.wal[..self.disk.synced], 0);
        &self.disk.wal[..end]
    }

    /// Steps the acceptor and does what it says. With `crash_after`, the process dies after so many commands.
    pub fn step(
        &mut self,
        input: AcceptorInput,
        crash_after: Option<usize>,
        trace: &mut Vec<String>,
    ) -> Result<Vec<Out>, String> {
        let mut out = Vec::new();
        let mut inputs = vec![input];
        let mut budget = crash_after;
        while let Some(input) = inputs.pop() {
            let Some(acceptor) = &mut self.acceptor else { return Ok(out) };
            for command in acceptor.step(input) {
                if let Some(left) = &mut budget {
                    if *left == 0 {
                        return Ok(out);
                    }
                    *left -= 1;
                }
                let id = self.identity.node_id;
                if !matches!(command, AcceptorCommand::Reply { .. }) {
                    trace.push(format!("  sk{id}: {}", describe(&command)));
                }
                self.execute(command, &mut out, &mut inputs)?;
            }
        }
        Ok(out)
    }

    fn execute(
        &mut self,
        command: AcceptorCommand,
        out: &mut Vec<Out>,
        inputs: &mut Vec<AcceptorInput>,
    ) -> Result<(), String> {
        let disk = &mut self.disk;
        match command {
            AcceptorCommand::SaveState(state) => disk.state = *state,
            AcceptorCommand::TruncateWal { end_lsn } => {
                disk.wal.truncate(offset(end_lsn));
                disk.synced = disk.wal.len();
                self.record_end = whole_records(&disk.wal, 0);
                if lsn_at(self.record_end) != end_lsn {
                    return Err(format!("truncated at {end_lsn}, which is no end of a record"));
                }
            }
            AcceptorCommand::WriteWal { begin_lsn, wal } => {
                if lsn_at(disk.wal.len()) != begin_lsn {
                    return Err(format!("write at {begin_lsn}, log ends elsewhere"));
                }
                disk.wal.extend_from_slice(&wal);
                self.record_end = whole_records(&disk.wal, self.record_end);
            }
            AcceptorCommand::FlushWal { may_wait: true } => self.flush_wanted = true,
            AcceptorCommand::FlushWal { may_wait: false } => inputs.push(self.sync()),
            AcceptorCommand::CommitAdvanced { .. } => {}
            AcceptorCommand::Reply { conn, message } => out.push(Out::Reply(conn, message)),
            AcceptorCommand::Close { conn, .. } => out.push(Out::Close(conn)),
            AcceptorCommand::Quarantine { reason } => return Err(format!("quarantine: {reason}")),
        }
        Ok(())
    }

    /// Syncs the disk and says so.
    pub fn sync(&mut self) -> AcceptorInput {
        self.flush_wanted = false;
        self.disk.synced = self.disk.wal.len();
        let (flush_lsn, synced_lsn) = (lsn_at(self.record_end), lsn_at(self.disk.synced));
        AcceptorInput::Flushed { flush_lsn, synced_lsn }
    }
}

fn describe(command: &AcceptorCommand) -> String {
    match command {
        AcceptorCommand::SaveState(state) => format!(
            "save state: term {}, commit {}, history {}",
            state.term, state.commit_lsn, state.term_history
        ),
        AcceptorCommand::TruncateWal { end_lsn } => format!("truncate WAL to {end_lsn}"),
        AcceptorCommand::WriteWal { begin_lsn, wal } => {
            format!("write {} bytes at {begin_lsn}", wal.len())
        }
        AcceptorCommand::FlushWal { may_wait: true } => "flush soon".to_owned(),
        AcceptorCommand::FlushWal { may_wait: false } => "flush now".to_owned(),
        AcceptorCommand::CommitAdvanced { commit_lsn } => format!("commit {commit_lsn}"),
        AcceptorCommand::Close { conn, refusal } => format!("close c{}: {refusal}", conn.0),
        AcceptorCommand::Quarantine { reason } => format!("quarantine: {reason}"),
        AcceptorCommand::Reply { .. } => "reply".to_owned(),
    }
}
