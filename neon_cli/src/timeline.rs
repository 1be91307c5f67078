//! Tenants and timelines: made on the page server first, then on every safekeeper, then connected.

use pg_types::{Lsn, TenantId, TimelineId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wal_consensus::quorum::majority;

use crate::environment::{
    Branch, Environment, SafekeeperNode, check_name, first_membership, main_branch,
};
use crate::error::{CliError, Result};
use crate::http::Api;
use crate::quorum::committed_lsn;
use crate::services::{pageserver_api, progress, safekeeper_api};

/// What the page server says of a timeline; it says more, which is not needed here.
#[derive(Debug, Clone, Deserialize)]
pub struct TimelineDetail {
    pub last_record_lsn: Lsn,
    #[serde(default)]
    pub ancestor_lsn: Option<Lsn>,
    #[serde(default)]
    pub initdb_lsn: Option<Lsn>,
}

/// One row of `neon timeline list`.
#[derive(Debug, Serialize)]
pub struct Row {
    pub branch: String,
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    pub ancestor: Option<String>,
    pub ancestor_lsn: Option<Lsn>,
    pub last_record_lsn: Option<Lsn>,
    pub state: &'static str,
}

/// Creates a tenant with its branch `main`.
pub fn create_tenant(
    environment: &mut Environment,
    id: Option<TenantId>,
    set_default: bool,
) -> Result<Branch> {
    let tenant_id = id.unwrap_or_else(|| TenantId(rand::random()));
    if environment.description.branches.iter().any(|branch| branch.tenant_id == tenant_id) {
        return Err(CliError::conflict(format!("there is already a tenant {tenant_id}")));
    }
    if set_default {
        environment.description.default_tenant = tenant_id;
    }
    add_branch(environment, main_branch(tenant_id))
}

/// Creates an empty branch.
pub fn create(
    environment: &mut Environment,
    tenant: Option<TenantId>,
    name: &str,
) -> Result<Branch> {
    let tenant_id = tenant.unwrap_or(environment.description.default_tenant);
    add_branch(environment, Branch { name: name.to_owned(), ..main_branch(tenant_id) })
}

/// Branches off at `lsn`, or at the newest position that the page server has.
pub fn branch(
    environment: &mut Environment,
    tenant: Option<TenantId>,
    name: &str,
    from: &str,
    lsn: Option<Lsn>,
) -> Result<Branch> {
    let parent = environment.branch(tenant, from)?.clone();
    let ancestor_lsn = match lsn {
        Some(lsn) => lsn,
        None => committed_lsn(environment, &parent)?,
    };
    add_branch(
        environment,
        Branch {
            name: name.to_owned(),
            ancestor_timeline_id: Some(parent.timeline_id),
            ancestor_lsn: Some(ancestor_lsn),
            ..main_branch(parent.tenant_id)
        },
    )
}

fn add_branch(environment: &mut Environment, branch: Branch) -> Result<Branch> {
    check_name("a branch", &branch.name)?;
    if environment.branch(Some(branch.tenant_id), &branch.name).is_ok() {
        return Err(CliError::conflict(format!("there is already a branch \"{}\"", branch.name)));
    }
    let timeline_id = branch.timeline_id;
    environment.description.branches.push(branch);
    environment.save()?;
    match make_ready(environment, timeline_id) {
        Ok(branch) => Ok(branch),
        // A refusal (say, of the position) leaves nothing behind; anything else is finished by `neon start`.
        Err(error) if error.kind != crate::error::Kind::NotReady => {
            environment.description.branches.retain(|branch| branch.timeline_id != timeline_id);
            environment.save()?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Makes every branch that was written down but not finished.
pub fn finish_unready(environment: &mut Environment) -> Result<()> {
    let unready: Vec<TimelineId> = environment
        .description
        .branches
        .iter()
        .filter(|branch| !branch.ready)
        .map(|branch| branch.timeline_id)
        .collect();
    for timeline_id in unready {
        make_ready(environment, timeline_id)?;
    }
    Ok(())
}

/// Every step can be repeated: what exists already is left as it is.
fn make_ready(environment: &mut Environment, timeline_id: TimelineId) -> Result<Branch> {
    let position = environment
        .description
        .branches
        .iter()
        .position(|branch| branch.timeline_id == timeline_id)
        .ok_or_else(|| CliError::not_found("the branch is gone"))?;
    let mut branch = environment.description.branches[position].clone();
    progress(&format!("creating branch \"{}\"", branch.name));
    if branch.membership.mconf.members.is_empty() {
        branch.membership = first_membership(environment.staying());
        environment.save_branch(&branch)?;
    }
    let api = pageserver_api(environment);
    ensure_tenant(&api, branch.tenant_id)?;
    let detail = ensure_timeline(&api, &branch)?;
    let start_lsn = detail.ancestor_lsn.or(detail.initdb_lsn).unwrap_or(detail.last_record_lsn);
    branch.membership.finished = ensure_on_safekeepers(environment, &branch, start_lsn)?;
    set_wal_source(environment, &branch)?;
    branch.ready = true;
    environment.save_branch(&branch)?;
    Ok(branch)
}

/// Tells the page server where the WAL of a branch comes from.
pub fn set_wal_source(environment: &Environment, branch: &Branch) -> Result<()> {
    let sources: Vec<String> =
        environment.safekeepers_of(branch).iter().map(SafekeeperNode::address).collect();
    let path = format!("{}/wal_source", branch.path());
    pageserver_api(environment)
        .put(&path, &json!({ "safekeepers": sources }))?
        .expect_success("tell the page server where its WAL comes from")
        .map(drop)
}

fn ensure_tenant(api: &Api, tenant_id: TenantId) -> Result<()> {
    let answer = api.post("/v1/tenant", &json!({ "new_tenant_id": tenant_id }))?;
    if answer.status == 409 {
        return Ok(());
    }
    answer.expect_success("create the tenant").map(drop)
}

fn ensure_timeline(api: &Api, branch: &Branch) -> Result<TimelineDetail> {
    let base = format!("/v1/tenant/{}/timeline", branch.tenant_id);
    let path = format!("{base}/{}", branch.timeline_id);
    let existing = api.get(&path)?;
    if existing.status == 200 {
        return existing.parse("read the timeline");
    }
    let mut request = json!({
        "new_timeline_id": branch.timeline_id,
        "pg_version": pg_types::PG_MAJORVERSION,
    });
    if let (Some(ancestor), Value::Object(fields)) = (branch.ancestor_timeline_id, &mut request) {
        fields.insert("ancestor_timeline_id".to_owned(), json!(ancestor));
        fields.insert("ancestor_start_lsn".to_owned(), json!(branch.ancestor_lsn));
    }
    api.post(&base, &request)?.expect_success("create the timeline on the page server")?;
    api.get(&path)?.parse("read the timeline")
}

/// A majority is enough: the others get the timeline from it ([`crate::membership`]).
/// Says whether all have it.
fn ensure_on_safekeepers(
    environment: &Environment,
    branch: &Branch,
    start_lsn: Lsn,
) -> Result<bool> {
    let request = json!({
        "tenant_id": branch.tenant_id,
        "timeline_id": branch.timeline_id,
        "mconf": branch.membership.mconf,
        "pg_version": pg_types::PG_MAJORVERSION * 10_000,
        "start_lsn": pg_types::xlog::normalize(start_lsn),
    });
    let create = |node: &SafekeeperNode| -> Result<()> {
        let answer = safekeeper_api(environment, node).post("/v1/tenant/timeline", &request)?;
        if answer.status != 409 {
            answer.expect_success(&format!("create the timeline on safekeeper {}", node.id))?;
        }
        Ok(())
    };
    let nodes = environment.safekeepers_of(branch);
    let (mut made, mut failures) = (0, Vec::new());
    for node in &nodes {
        match create(node) {
            Ok(()) => made += 1,
            Err(error) => failures.push(error),
        }
    }
    let enough = majority(nodes.len()) <= made;
    match failures.pop() {
        Some(error) if !enough => Err(error),
        Some(error) => {
            eprintln!("{error}; it gets the branch with the next `neon start`");
            Ok(false)
        }
        None => Ok(true),
    }
}

/// All branches of a tenant.
pub fn list(environment: &Environment, tenant: Option<TenantId>) -> Vec<Row> {
    let tenant = tenant.unwrap_or(environment.description.default_tenant);
    let api = pageserver_api(environment);
    let branches = &environment.description.branches;
    let name_of = |id: TimelineId| {
        branches.iter().find(|other| other.timeline_id == id).map(|other| other.name.clone())
    };
    branches
        .iter()
        .filter(|branch| branch.tenant_id == tenant)
        .map(|branch| {
            let path = format!("/v1/tenant/{tenant}/timeline/{}", branch.timeline_id);
            let detail: Option<TimelineDetail> =
                api.get(&path).ok().and_then(|answer| answer.parse("read the timeline").ok());
            Row {
                branch: branch.name.clone(),
                tenant_id: tenant,
                timeline_id: branch.timeline_id,
                ancestor: branch.ancestor_timeline_id.and_then(name_of),
                ancestor_lsn: branch.ancestor_lsn,
                last_record_lsn: detail.map(|detail| detail.last_record_lsn),
                state: if branch.ready { "ready" } else { "unfinished" },
            }
        })
        .collect()
}

/// Deletes a branch everywhere; refused while an endpoint or another branch needs it.
pub fn delete(environment: &mut Environment, tenant: Option<TenantId>, name: &str) -> Result<()> {
    let branch = environment.branch(tenant, name)?.clone();
    let users = environment.endpoints()?;
    if let Some(user) = users.iter().find(|endpoint| endpoint.timeline_id == branch.timeline_id) {
        return Err(CliError::conflict(format!("endpoint \"{}\" is on that branch", user.name)));
    }
    let path = branch.path();
    let answer = pageserver_api(environment).delete(&path)?;
    if answer.status != 404 {
        answer.expect_success("delete the timeline on the page server")?;
    }
    for node in &environment.description.safekeepers {
        let answer = safekeeper_api(environment, node).delete(&path)?;
        if answer.status != 404 {
            answer.expect_success(&format!("delete the timeline on safekeeper {}", node.id))?;
        }
    }
    environment.description.branches.retain(|other| other.timeline_id != branch.timeline_id);
    environment.save()
}
