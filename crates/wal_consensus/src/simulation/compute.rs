//! Computes and their walproposers.

use std::collections::BTreeMap;

use super::node::{TENANT, TIMELINE};
use super::wal::record;
use crate::membership::MembershipConf;
use crate::message::AppendHeader;
use crate::proposer::{Proposer, ProposerConfig, ProposerMode, SkId};
use bytes::Bytes;
use pg_types::{Lsn, Term};

/// A running server: WAL from its basebackup's position on, and the file that remembers its terms.
#[derive(Debug)]
pub(super) struct Compute {
    pub(super) id: u8,
    pub(super) start_lsn: Lsn,
    pub(super) wal: Vec<u8>,
    pub(super) alive: bool,
    pub(super) acked_lsn: Lsn,
    pub(super) campaign_term: Term,
    pub(super) elected_terms: Vec<Term>,
    records: u8,
}

impl Compute {
    pub(super) fn new(id: u8, start_lsn: Lsn) -> Compute {
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

    pub(super) fn end_lsn(&self) -> Lsn {
        Lsn(self.start_lsn.0 + self.wal.len() as u64)
    }

    pub(super) fn write_record(&mut self, words: u8) {
        self.records = self.records.wrapping_add(1);
        self.wal.extend(record(self.end_lsn(), self.id, self.records, words));
    }

    /// WAL of a range that lies in what this compute has.
    pub(super) fn slice(&self, begin_lsn: Lsn, end_lsn: Lsn) -> Bytes {
        let at = |lsn: Lsn| usize::try_from(lsn.0 - self.start_lsn.0).unwrap();
        Bytes::copy_from_slice(&self.wal[at(begin_lsn)..at(end_lsn)])
    }
}

/// A walproposer process; `compute` is `None` for one in sync mode.
#[derive(Debug)]
pub(super) struct Walproposer {
    pub(super) proposer: Proposer,
    pub(super) compute: Option<usize>,
    pub(super) elected_at: Option<Lsn>,
    /// Where the WAL that it holds in memory begins.
    pub(super) held_from: Lsn,
    /// What it fetched for single safekeepers: position and bytes.
    pub(super) fetched: BTreeMap<SkId, (Lsn, Bytes)>,
}

impl Walproposer {
    pub(super) fn sync(safekeepers: usize, mconf: MembershipConf) -> Walproposer {
        Walproposer::with(safekeepers, mconf, Term(0), ProposerMode::Sync, None)
    }

    pub(super) fn stream(
        safekeepers: usize,
        mconf: MembershipConf,
        index: usize,
        compute: &Compute,
    ) -> Walproposer {
        let own_terms = compute.elected_terms.clone();
        let mode = ProposerMode::Stream { start_lsn: compute.start_lsn, own_terms };
        Walproposer::with(safekeepers, mconf, compute.campaign_term, mode, Some(index))
    }

    fn with(
        safekeepers: usize,
        mconf: MembershipConf,
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
            mconf,
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
    pub(super) fn wal_for(
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
