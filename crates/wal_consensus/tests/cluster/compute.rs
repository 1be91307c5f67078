//! Computes and their walproposers.

use std::collections::BTreeMap;

use bytes::Bytes;
use pg_types::{Lsn, Term};
use wal_consensus::message::AppendHeader;
use wal_consensus::proposer::{Proposer, ProposerConfig, ProposerMode, SkId};

use crate::safekeeper::{TENANT, TIMELINE};
use crate::wal::record;

/// A running server: WAL from its basebackup's position on, and the file that remembers its terms.
#[derive(Debug)]
pub struct Compute {
    pub id: u8,
    pub start_lsn: Lsn,
    pub wal: Vec<u8>,
    pub alive: bool,
    pub acked_lsn: Lsn,
    pub campaign_term: Term,
    pub elected_terms: Vec<Term>,
    records: u8,
}

impl Compute {
    pub fn new(id: u8, start_lsn: Lsn) -> Compute {
        Compute {
            id,
            start_lsn,
            wal: Vec::new(),
            alive: true,
            acked_lsn: start_lsn,
            campaign_term: Term(0),
            elected_terms: Vec::new(),
            records: 0,
        }
    }

    pub fn end_lsn(&self) -> Lsn {
        Lsn(self.start_lsn.0 + self.wal.len() as u64)
    }

    pub fn write_record(&mut self, words: u8) {
        self.records = self.records.wrapping_add(1);
        self.wal.extend(record(self.end_lsn(), self.id, self.records, words));
    }

    /// WAL of a range that lies in what this compute has.
    pub fn slice(&self, begin_lsn: Lsn, end_lsn: Lsn) -> Bytes {
        let at = |lsn: Lsn| usize::try_from(lsn.0 - self.start_lsn.0).unwrap();
        Bytes::copy_from_slice(&self.wal[at(begin_lsn)..at(end_lsn)])
    }
}

/// A walproposer process; `compute` is `None` for one in sync mode.
#[derive(Debug)]
pub struct Walproposer {
    pub proposer: Proposer,
    pub compute: Option<usize>,
    pub elected_at: Option<Lsn>,
    /// Where the WAL that it holds in memory begins.
    pub held_from: Lsn,
    /// What it fetched for single safekeepers: position and bytes.
    pub fetched: BTreeMap<SkId, (Lsn, Bytes)>,
}

impl Walproposer {
    pub fn sync(safekeepers: usize, min_term: Term) -> Walproposer {
        Walproposer::with(safekeepers, min_term, ProposerMode::Sync, None)
    }

    pub fn stream(safekeepers: usize, index: usize, compute: &Compute) -> Walproposer {
        let own_terms = compute.elected_terms.clone();
        let mode = ProposerMode::Stream { start_lsn: compute.start_lsn, own_terms };
        Walproposer::with(safekeepers, compute.campaign_term, mode, Some(index))
    }

    fn with(
        safekeepers: usize,
        min_term: Term,
        mode: ProposerMode,
        compute: Option<usize>,
    ) -> Walproposer {
        let config = ProposerConfig {
            tenant_id: TENANT,
            timeline_id: TIMELINE,
            pg_version: 170_011,
            system_id: 7,
            wal_seg_size: 16 << 20,
            safekeepers,
            mconf: wal_consensus::membership::MembershipConf::default(),
            min_term,
            mode,
        };
        Walproposer {
            proposer: Proposer::new(config),
            compute,
            elected_at: None,
            held_from: Lsn::INVALID,
            fetched: BTreeMap::new(),
        }
    }

    /// The WAL of an append request.
    pub fn wal_for(
        &self,
        sk: SkId,
        header: &AppendHeader,
        compute: Option<&Compute>,
    ) -> Result<Bytes, String> {
        let (begin_lsn, end_lsn) = (header.begin_lsn, header.end_lsn);
        if begin_lsn == end_lsn {
            return Ok(Bytes::new());
        }
        if let Some(compute) = compute
            && self.held_from <= begin_lsn
            && end_lsn <= compute.end_lsn()
        {
            return Ok(compute.slice(begin_lsn, end_lsn));
        }
        let (from, bytes) = self.fetched.get(&sk).ok_or("append of WAL that nobody holds")?;
        let at = |lsn: Lsn| lsn.0.checked_sub(from.0).and_then(|at| usize::try_from(at).ok());
        match (at(begin_lsn), at(end_lsn)) {
            (Some(begin), Some(end)) if end <= bytes.len() => Ok(bytes.slice(begin..end)),
            _ => Err(format!("append of {begin_lsn}..{end_lsn}, which was not fetched")),
        }
    }
}
