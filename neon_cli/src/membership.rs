//! Brings every branch to the safekeepers that stay in the environment, while computes write. What is to be asked of whom is
//! decided by [`wal_consensus::change`]; here it is asked, and what is agreed upon is written down in `neon.toml`.
//!
//! A command that was killed half-way leaves a joint configuration, in which commits need both majorities. The next command
//! that comes here finishes it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pg_types::{Generation, Lsn, NodeId, Term};
use serde::Deserialize;
use serde_json::{Value, json};
use wal_consensus::change::{
    ChangeError, ChangeGoal, ChangeRequest, MemberReport, MembershipChange,
};
use wal_consensus::membership::{Member, MembershipConf, same_set};

use crate::endpoint;
use crate::environment::{Branch, Environment, SafekeeperNode};
use crate::error::{CliError, Result};
use crate::http::Api;
use crate::quorum::settle;
use crate::services::{progress, safekeeper_api};
use crate::timeline::set_wal_source;

/// How long the new members of one branch may take to be in charge: copies of all WAL, and perhaps an election.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a safekeeper that is not needed at once, and answers, is asked to take or to leave a branch.
const TIDY_ATTEMPTS: u32 = 5;
const POLL: Duration = Duration::from_millis(50);

/// Gives every branch that is ready the safekeepers that stay.
pub fn settle_all(environment: &mut Environment) -> Result<()> {
    let branches = environment.description.branches.clone();
    let mut away = BTreeSet::new();
    for branch in branches.into_iter().filter(|branch| branch.ready) {
        settle_branch(environment, branch, &mut away)?;
    }
    for id in environment.staying().map(|node| node.id).filter(|id| away.contains(id)) {
        eprintln!("safekeeper {id} is not reached; it gets its branches with a later `neon start`");
    }
    Ok(())
}

/// Whether what is written down is not what is wanted.
pub fn is_unsettled(environment: &Environment) -> bool {
    let target: Vec<Member> = environment.staying().map(SafekeeperNode::member).collect();
    let settled = |branch: &Branch| {
        branch.membership.finished && same_set(&branch.membership.mconf.members, &target)
    };
    !environment.description.branches.iter().filter(|branch| branch.ready).all(settled)
}

/// `away` are safekeepers that were not reached: they are not waited for again and again.
fn settle_branch(
    environment: &mut Environment,
    mut branch: Branch,
    away: &mut BTreeSet<NodeId>,
) -> Result<()> {
    let target: Vec<Member> = environment.staying().map(SafekeeperNode::member).collect();
    loop {
        let goal = ChangeGoal::Members(target.clone());
        match MembershipChange::new(branch.membership.clone(), goal) {
            Ok(change) => {
                return Run { environment, branch, change, heard: BTreeSet::new(), away }.run();
            }
            // To another set, and it was not finished: that one first.
            Err(ChangeError::UnderWay { stored }) => {
                let goal = ChangeGoal::Members(stored.new_members.unwrap_or_default());
                let change = MembershipChange::new(branch.membership.clone(), goal);
                let change = change.map_err(|error| refused(&branch, &error))?;
                Run { environment, branch: branch.clone(), change, heard: BTreeSet::new(), away }
                    .run()?;
                let id = branch.timeline_id;
                let now = environment.description.branches.iter().find(|b| b.timeline_id == id);
                branch = now.cloned().ok_or_else(|| CliError::not_found("the branch is gone"))?;
            }
            Err(error) => return Err(refused(&branch, &error)),
        }
    }
}

fn refused(branch: &Branch, error: &ChangeError) -> CliError {
    CliError::failed(format!("branch \"{}\": {error}", branch.name))
}

/// One change of one branch.
struct Run<'a> {
    environment: &'a mut Environment,
    branch: Branch,
    change: MembershipChange,
    /// Who has told of the stored configuration.
    heard: BTreeSet<NodeId>,
    away: &'a mut BTreeSet<NodeId>,
}

/// What is read of a safekeeper's answer.
#[derive(Debug, Deserialize)]
struct Report {
    current_conf: Conf,
    term: Term,
    last_log_term: Term,
    flush_lsn: Lsn,
}

#[derive(Debug, Deserialize)]
struct Conf {
    generation: Generation,
}

impl From<Report> for MemberReport {
    fn from(report: Report) -> MemberReport {
        MemberReport {
            generation: report.current_conf.generation,
            term: report.term,
            last_log_term: report.last_log_term,
            flush_lsn: report.flush_lsn,
        }
    }
}

impl Run<'_> {
    fn run(mut self) -> Result<()> {
        let before = self.branch.membership.clone();
        let give_up = Instant::now() + PATIENCE;
        let mut levelled = false;
        while !self.change.is_effective() {
            let failure = self.ask_all()?;
            if Instant::now() > give_up {
                return Err(self.unfinished(failure));
            }
            let waits = self.waits_for_a_leader();
            if waits && !levelled && !self.a_compute_runs()? {
                // Nobody writes, so nobody brings the new members level but an election.
                settle(self.environment, &self.branch)?;
                levelled = true;
            } else if failure.is_some() || waits {
                std::thread::sleep(POLL);
            }
        }
        self.tidy()?;
        // A command that died behind the last store has told neither.
        if self.branch.membership.mconf != before.mconf || !before.finished {
            set_wal_source(self.environment, &self.branch)?;
            endpoint::update_safekeepers(self.environment, self.branch.timeline_id)?;
        }
        Ok(())
    }

    /// Brings the branch to members that were not needed so far, and takes it from those that left. What is down stays
    /// for the next time.
    fn tidy(&mut self) -> Result<()> {
        for attempt in 1..=TIDY_ATTEMPTS {
            let mut failure = None;
            for request in self.change.requests() {
                let (ChangeRequest::Pull { member, .. }
                | ChangeRequest::Switch { member, .. }
                | ChangeRequest::RaiseTerm { member, .. }
                | ChangeRequest::Exclude { member, .. }) = &request
                else {
                    continue;
                };
                if !self.away.contains(&member.id)
                    && let Err(error) = self.ask(&request)
                {
                    failure = Some(error);
                }
            }
            match failure {
                None => break,
                // The branch works without it, but with one safekeeper less to lose.
                Some(error) if attempt == TIDY_ATTEMPTS => {
                    eprintln!(
                        "branch \"{}\": {error}; tried again by `neon start`",
                        self.branch.name
                    );
                }
                Some(_) => std::thread::sleep(POLL),
            }
        }
        let concluded = self.change.concluded();
        if self.branch.membership != concluded {
            self.branch.membership = concluded;
            self.environment.save_branch(&self.branch)?;
        }
        Ok(())
    }

    /// Does everything that is to be done now; the last failure, if there was one.
    fn ask_all(&mut self) -> Result<Option<CliError>> {
        let mut failure = None;
        for request in self.change.requests() {
            let asked = match request {
                ChangeRequest::Store { conf, .. } => {
                    self.store(*conf)?;
                    Ok(())
                }
                request => self.ask(&request),
            };
            if let Err(error) = asked {
                failure = Some(error);
            }
        }
        Ok(failure)
    }

    fn store(&mut self, conf: wal_consensus::change::StoredConf) -> Result<()> {
        progress(&format!("branch \"{}\": safekeepers {}", self.branch.name, conf.mconf));
        self.branch.membership = conf.clone();
        self.environment.save_branch(&self.branch)?;
        if conf.mconf.is_joint() {
            // Before anything is committed by it: the page server may have to read from the new ones.
            set_wal_source(self.environment, &self.branch)?;
        }
        self.change.stored(conf);
        self.heard.clear();
        Ok(())
    }

    fn ask(&mut self, request: &ChangeRequest) -> Result<()> {
        let path = self.branch.path();
        let (member, answer) = match request {
            ChangeRequest::Switch { member, mconf } => {
                (member, self.api(member)?.put(&format!("{path}/membership"), &json!(mconf)))
            }
            ChangeRequest::Pull { member, donors, mconf } => {
                let body = self.pull_body(donors, mconf);
                let api = self.api(member)?.within(PATIENCE);
                (member, api.post("/v1/pull_timeline", &body))
            }
            ChangeRequest::RaiseTerm { member, term } => {
                let body = json!({ "term": term });
                (member, self.api(member)?.post(&format!("{path}/term_bump"), &body))
            }
            ChangeRequest::Exclude { member, mconf } => return self.exclude(member, mconf),
            ChangeRequest::Store { .. } => return Ok(()),
        };
        let doing = format!("change the membership of safekeeper {}", member.id);
        if answer.is_err() {
            self.away.insert(member.id);
        } else {
            self.away.remove(&member.id);
        }
        let report: Report = answer?.parse(&doing)?;
        self.change.heard(member.id, report.into());
        self.heard.insert(member.id);
        Ok(())
    }

    fn pull_body(&self, donors: &[Member], mconf: &MembershipConf) -> Value {
        let hosts: Vec<String> = donors
            .iter()
            .filter_map(|donor| self.node(donor.id))
            .map(SafekeeperNode::http_address)
            .collect();
        json!({
            "tenant_id": self.branch.tenant_id,
            "timeline_id": self.branch.timeline_id,
            "http_hosts": hosts,
            "mconf": mconf,
        })
    }

    fn exclude(&mut self, member: &Member, mconf: &MembershipConf) -> Result<()> {
        if self.node(member.id).is_some() {
            let path = format!("{}/exclude", self.branch.path());
            let doing = format!("take the branch from safekeeper {}", member.id);
            let answer = self.api(member)?.put(&path, &json!(mconf));
            if answer.is_err() {
                self.away.insert(member.id);
            }
            answer?.expect_success(&doing)?;
        }
        // One that is no part of the environment any more has nothing.
        self.change.excluded(member.id);
        Ok(())
    }

    fn node(&self, id: NodeId) -> Option<&SafekeeperNode> {
        self.environment.description.safekeepers.iter().find(|node| node.id == id)
    }

    fn api(&self, member: &Member) -> Result<Api> {
        let gone = || CliError::not_found(format!("there is no safekeeper {}", member.id));
        self.node(member.id).map(|node| safekeeper_api(self.environment, node)).ok_or_else(gone)
    }

    /// Those that can be reached have the joint configuration, and some of them are not level.
    fn waits_for_a_leader(&self) -> bool {
        let again = |request: &ChangeRequest| match request {
            ChangeRequest::Switch { member, .. } => self.heard.contains(&member.id),
            _ => false,
        };
        self.change.stored_conf().mconf.is_joint() && self.change.requests().iter().any(again)
    }

    fn a_compute_runs(&self) -> Result<bool> {
        endpoint::any_runs_on(self.environment, self.branch.timeline_id)
    }

    fn unfinished(&self, failure: Option<CliError>) -> CliError {
        let cause = failure.map(|error| format!(": {error}")).unwrap_or_default();
        CliError::not_ready(format!(
            "branch \"{}\": the change to safekeepers {} is not finished{cause}; `neon start` goes on with it",
            self.branch.name,
            self.change.stored_conf().mconf
        ))
    }
}
