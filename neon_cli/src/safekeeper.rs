//! `neon safekeeper`: adding, removing and looking at safekeepers while everything runs.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use pg_types::{Lsn, NodeId, Term};
use serde::{Deserialize, Serialize};
use wal_consensus::membership::MembershipConf;

use crate::environment::{Environment, new_safekeeper};
use crate::error::{CliError, IoContext, Result};
use crate::membership::settle_all;
use crate::ports::free_ports;
use crate::services::{
    StatusRow, progress, safekeeper_api, safekeeper_row, safekeeper_service, start_safekeeper,
};

/// How long one that leaves may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Processes of all safekeepers.
pub fn list(environment: &Environment) -> Result<Vec<StatusRow>> {
    environment
        .description
        .safekeepers
        .iter()
        .map(|node| safekeeper_row(environment, node))
        .collect()
}

/// Adds so many safekeepers and brings every branch to them.
pub fn add(environment: &mut Environment, count: u16) -> Result<Vec<NodeId>> {
    let highest = environment.description.safekeepers.iter().map(|node| node.id.0).max();
    let first = highest.unwrap_or(0).max(environment.description.safekeepers_ever);
    let mut ports = free_ports(2 * usize::from(count))?.into_iter();
    let mut port = || ports.next().unwrap_or_default();
    let nodes: Vec<_> = (1..=u64::from(count))
        .map(|number| new_safekeeper(NodeId(first + number), port(), port()))
        .collect();
    environment.description.safekeepers_ever = first + u64::from(count);
    environment.description.safekeepers.extend(nodes.clone());
    environment.save()?;
    for node in &nodes {
        start_safekeeper(environment, node)?;
    }
    settle_all(environment)?;
    advise(environment);
    Ok(nodes.into_iter().map(|node| node.id).collect())
}

/// Takes every branch from a safekeeper, running or not, and removes it.
pub fn remove(environment: &mut Environment, id: NodeId) -> Result<()> {
    let nodes = &mut environment.description.safekeepers;
    let others = nodes.iter().filter(|node| node.id != id && !node.leaving).count();
    let Some(node) = nodes.iter_mut().find(|node| node.id == id) else {
        return Err(CliError::not_found(format!("there is no safekeeper {id}")));
    };
    if others == 0 {
        return Err(CliError::conflict(format!(
            "safekeeper {id} is the last one: add another one first (`neon safekeeper add`)"
        )));
    }
    node.leaving = true;
    environment.save()?;
    settle_all(environment)?;
    finish_removals(environment)?;
    advise(environment);
    Ok(())
}

/// Stops and deletes safekeepers that are to leave and are no member of any branch.
pub fn finish_removals(environment: &mut Environment) -> Result<()> {
    let (branches, nodes) =
        (&environment.description.branches, &environment.description.safekeepers);
    let free: Vec<_> = nodes
        .iter()
        .filter(|node| node.leaving && !branches.iter().any(|branch| branch.has_member(node.id)))
        .cloned()
        .collect();
    for node in free {
        progress(&format!("removing safekeeper {}", node.id));
        safekeeper_service(environment, &node).stop(Signal::SIGTERM, STOP_PATIENCE)?;
        let dir = environment.safekeeper_dir(node.id);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).doing("remove", &dir);
            }
            _ => {}
        }
        // Its directory was all that it had: nobody needs to ask it to forget anything.
        for branch in &mut environment.description.branches {
            branch.membership.leavers.retain(|leaver| leaver.id != node.id);
        }
        environment.description.safekeepers.retain(|other| other.id != node.id);
        environment.save()?;
    }
    Ok(())
}

fn advise(environment: &Environment) {
    let count = environment.staying().count();
    if count.is_multiple_of(2) {
        eprintln!(
            "{count} safekeepers survive the loss of no more of them than {} would: an odd number is better",
            count - 1
        );
    }
}

/// One safekeeper's part of one branch.
#[derive(Debug, Serialize)]
pub struct PartRow {
    pub branch: String,
    pub safekeeper: NodeId,
    /// What it thinks the members are.
    pub members: Option<MembershipConf>,
    pub term: Option<Term>,
    pub flush_lsn: Option<Lsn>,
    pub commit_lsn: Option<Lsn>,
    pub remote_consistent_lsn: Option<Lsn>,
    /// Who reads its WAL.
    pub readers: Vec<String>,
    pub state: String,
}

#[derive(Debug, Deserialize)]
struct Part {
    mconf: MembershipConf,
    acceptor_state: AcceptorPart,
    flush_lsn: Lsn,
    commit_lsn: Lsn,
    remote_consistent_lsn: Lsn,
    walreceivers: usize,
    walsenders: Vec<Reader>,
}

#[derive(Debug, Deserialize)]
struct Reader {
    application_name: String,
}

#[derive(Debug, Deserialize)]
struct AcceptorPart {
    term: Term,
}

impl Part {
    fn readers(&self) -> Vec<String> {
        self.walsenders.iter().map(|reader| reader.application_name.clone()).collect()
    }
}

/// Where every safekeeper stands in every branch.
pub fn status(environment: &Environment) -> Vec<PartRow> {
    let mut rows = Vec::new();
    for branch in &environment.description.branches {
        for node in environment.safekeepers_of(branch) {
            let answer = safekeeper_api(environment, &node).get(&branch.path());
            let part: Result<Part> = answer.and_then(|answer| answer.parse("ask a safekeeper"));
            let state = match &part {
                Ok(part) if part.walreceivers > 0 => "receives WAL".to_owned(),
                Ok(_) => "idle".to_owned(),
                Err(error) if error.kind == crate::error::Kind::NotFound => "missing".to_owned(),
                Err(error) if error.kind == crate::error::Kind::NotReady => "down".to_owned(),
                Err(error) => error.message.clone(),
            };
            let part = part.ok();
            rows.push(PartRow {
                branch: branch.name.clone(),
                safekeeper: node.id,
                term: part.as_ref().map(|part| part.acceptor_state.term),
                flush_lsn: part.as_ref().map(|part| part.flush_lsn),
                commit_lsn: part.as_ref().map(|part| part.commit_lsn),
                remote_consistent_lsn: part.as_ref().map(|part| part.remote_consistent_lsn),
                readers: part.iter().flat_map(Part::readers).collect(),
                members: part.map(|part| part.mconf),
                state,
            });
        }
    }
    rows
}
