//! The environment: one directory, described by `neon.toml`.
//!
//! ```text
//! .neon/
//!   neon.toml                what exists: ports, ids, branches (written by temp file and rename)
//!   auth/                    keys, with `--auth` (see `auth.rs`)
//!   lock                     held by the command that changes something
//!   pageserver/              pageserver.toml, pageserver.pid, pageserver.log, data
//!   safekeeper-1/            safekeeper.toml, safekeeper.pid, safekeeper.log, data
//!   endpoints/NAME/          endpoint.toml, compute.toml, compute.pid, compute.log, pgdata/
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pg_types::{Generation, Lsn, NodeId, TenantId, TimelineId};
use serde::{Deserialize, Serialize};
use wal_consensus::change::StoredConf;
use wal_consensus::membership::{Member, MembershipConf};

use crate::auth::Signer;
use crate::error::{CliError, IoContext, Result};

/// Everything of an environment runs on one machine.
const LOOPBACK: &str = "127.0.0.1";

/// Format version of `neon.toml`.
const VERSION: u32 = 1;

/// Contents of `neon.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub version: u32,
    /// Root of the built PostgreSQL.
    pub pg_install: PathBuf,
    pub default_tenant: TenantId,
    /// Highest number that a safekeeper was ever given: none is used twice, since votes are counted by it.
    #[serde(default)]
    pub safekeepers_ever: u64,
    /// Whether the services want tokens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auth: bool,
    pub pageserver: PageserverNode,
    #[serde(rename = "safekeeper")]
    pub safekeepers: Vec<SafekeeperNode>,
    #[serde(default, rename = "branch")]
    pub branches: Vec<Branch>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageserverNode {
    pub pg_port: u16,
    pub http_port: u16,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafekeeperNode {
    pub id: NodeId,
    pub pg_port: u16,
    pub http_port: u16,
    /// It was removed: it goes once no branch has it as a member any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

impl SafekeeperNode {
    /// Where computes, page servers and other safekeepers find its WAL.
    pub fn address(&self) -> String {
        format!("{LOOPBACK}:{}", self.pg_port)
    }

    /// Where its HTTP API is.
    pub fn http_address(&self) -> String {
        format!("{LOOPBACK}:{}", self.http_port)
    }

    /// As a member of a timeline.
    pub fn member(&self) -> Member {
        Member { id: self.id, host: LOOPBACK.to_owned(), pg_port: self.pg_port }
    }
}

/// A named timeline. It is written down before it is made, and `ready` once it exists everywhere, so that a
/// command that was killed in between is finished by the next one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    pub name: String,
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestor_timeline_id: Option<TimelineId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestor_lsn: Option<Lsn>,
    pub ready: bool,
    /// Its safekeepers, and those that are to forget it.
    #[serde(default)]
    pub membership: StoredConf,
}

impl Branch {
    /// Its path in the APIs of page servers and safekeepers.
    pub fn path(&self) -> String {
        format!("/v1/tenant/{}/timeline/{}", self.tenant_id, self.timeline_id)
    }

    /// Whether a safekeeper is, or is becoming, a member.
    pub fn has_member(&self, id: NodeId) -> bool {
        self.membership.mconf.contains(id)
    }
}

/// Contents of `endpoint.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    pub name: String,
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    pub branch: String,
    pub port: u16,
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// An opened environment. Holds the lock as long as it lives, so commands take turns.
#[derive(Debug)]
pub struct Environment {
    pub dir: PathBuf,
    pub description: Description,
    /// What signs tokens, if the services want any.
    pub signer: Option<Signer>,
    _lock: File,
}

impl Environment {
    /// Makes the directory and writes its description; refuses an existing environment.
    pub fn create(dir: &Path, description: Description) -> Result<Environment> {
        fs::create_dir_all(dir).doing("create", dir)?;
        let dir = dir.canonicalize().doing("resolve", dir)?;
        let lock = lock(&dir)?;
        if dir.join("neon.toml").exists() {
            return Err(CliError::conflict(format!(
                "there is already an environment in {}: remove it first, or choose another --dir",
                dir.display()
            )));
        }
        let signer = description.auth.then(|| Signer::create(&dir)).transpose()?;
        let environment = Environment { dir, description, signer, _lock: lock };
        environment.save()?;
        Ok(environment)
    }

    /// Opens an existing environment.
    pub fn open(dir: &Path) -> Result<Environment> {
        if !dir.join("neon.toml").exists() {
            return Err(CliError::not_found(format!(
                "no environment in {}: run `neon init` first, or name another one with --dir",
                dir.display()
            )));
        }
        let dir = dir.canonicalize().doing("resolve", dir)?;
        let lock = lock(&dir)?;
        let mut description: Description = read_toml(&dir.join("neon.toml"))?;
        if description.version != VERSION {
            return Err(CliError::failed(format!(
                "{} has version {}, this program knows version {VERSION}",
                dir.join("neon.toml").display(),
                description.version
            )));
        }
        // Made before memberships were written down: all safekeepers had everything.
        let all = first_membership(description.safekeepers.iter());
        for branch in description.branches.iter_mut().filter(|branch| branch.ready) {
            if branch.membership.mconf.members.is_empty() {
                branch.membership = all.clone();
            }
        }
        let signer = description.auth.then(|| Signer::open(&dir)).transpose()?;
        Ok(Environment { dir, description, signer, _lock: lock })
    }

    /// Writes `neon.toml` durably.
    pub fn save(&self) -> Result<()> {
        write_toml(&self.dir.join("neon.toml"), &self.description)
    }

    /// What commands show to the services.
    pub fn own_token(&self) -> Option<&str> {
        self.signer.as_ref().map(Signer::own_token)
    }

    pub fn pageserver_dir(&self) -> PathBuf {
        self.dir.join("pageserver")
    }

    pub fn safekeeper_dir(&self, id: NodeId) -> PathBuf {
        self.dir.join(format!("safekeeper-{id}"))
    }

    pub fn endpoint_dir(&self, name: &str) -> PathBuf {
        self.dir.join("endpoints").join(name)
    }

    /// The branch of a name.
    pub fn branch(&self, tenant: Option<TenantId>, name: &str) -> Result<&Branch> {
        let tenant = tenant.unwrap_or(self.description.default_tenant);
        self.description
            .branches
            .iter()
            .find(|branch| branch.tenant_id == tenant && branch.name == name)
            .ok_or_else(|| CliError::not_found(format!("there is no branch \"{name}\"")))
    }

    /// The safekeepers that stay.
    pub fn staying(&self) -> impl Iterator<Item = &SafekeeperNode> {
        self.description.safekeepers.iter().filter(|node| !node.leaving)
    }

    /// The safekeepers of a branch; during a change the old and the new ones.
    pub fn safekeepers_of(&self, branch: &Branch) -> Vec<SafekeeperNode> {
        let nodes = self.description.safekeepers.iter();
        nodes.filter(|node| branch.has_member(node.id)).cloned().collect()
    }

    /// Replaces what is written down of a branch, durably.
    pub fn save_branch(&mut self, branch: &Branch) -> Result<()> {
        let branches = &mut self.description.branches;
        let place = branches.iter_mut().find(|other| other.timeline_id == branch.timeline_id);
        *place.ok_or_else(|| CliError::not_found("the branch is gone"))? = branch.clone();
        self.save()
    }

    /// Reads the definition of an endpoint.
    pub fn endpoint(&self, name: &str) -> Result<Endpoint> {
        let path = self.endpoint_dir(name).join("endpoint.toml");
        if path.exists() {
            read_toml(&path)
        } else {
            Err(CliError::not_found(format!(
                "there is no endpoint \"{name}\": make one with `neon endpoint create {name}`"
            )))
        }
    }

    /// All endpoints, by name.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let parent = self.dir.join("endpoints");
        if !parent.exists() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&parent).doing("read", &parent)? {
            let entry = entry.doing("read", &parent)?;
            if entry.path().join("endpoint.toml").exists() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        names.iter().map(|name| self.endpoint(name)).collect()
    }
}

/// A name that is safe as a directory name and as a PostgreSQL setting.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=63).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('-') {
        Ok(())
    } else {
        Err(CliError::failed(format!(
            "\"{name}\" is not a name for {what}: use 1 to 63 letters, digits, '-' and '_'"
        )))
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).doing("create", &path)?;
    file.lock().doing("lock", &path)?;
    Ok(file)
}

/// Reads a TOML file; an error names the file and the place.
pub fn read_toml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).doing("read", path)?;
    toml::from_str(&text).map_err(|error| {
        CliError::failed(format!("{} is not valid: {}", path.display(), error.to_string().trim()))
    })
}

/// Writes a TOML file: temporary file, fsync, rename, fsync of the directory.
pub fn write_toml<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_durably(path, to_toml(path, value)?.as_bytes())
}

/// The same for a file that nobody but its owner may read.
pub fn write_secret_toml<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_secret(path, to_toml(path, value)?.as_bytes())
}

fn to_toml<T: Serialize>(path: &Path, value: &T) -> Result<String> {
    toml::to_string_pretty(value)
        .map_err(|error| CliError::failed(format!("could not write {}: {error}", path.display())))
}

/// Replaces a file so that a crash leaves either the old or the new contents.
pub fn write_durably(path: &Path, contents: &[u8]) -> Result<()> {
    replace(path, contents, 0o644)
}

/// The same for a file that nobody but its owner may read.
pub fn write_secret(path: &Path, contents: &[u8]) -> Result<()> {
    replace(path, contents, 0o600)
}

fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let temp = path.with_extension("tmp");
    // One that a killed command left may have another mode.
    match fs::remove_file(&temp) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).doing("remove", &temp);
        }
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp);
    let mut file = file.doing("create", &temp)?;
    file.write_all(contents).doing("write", &temp)?;
    file.sync_all().doing("flush", &temp)?;
    fs::rename(&temp, path).doing("rename", &temp)?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).doing("flush", parent)?;
    }
    Ok(())
}

/// A fresh description with free ports and random ids.
pub fn new_description(pg_install: PathBuf, safekeepers: u16) -> Result<Description> {
    let count = 2 * (usize::from(safekeepers) + 1);
    let mut ports = crate::ports::free_ports(count)?.into_iter();
    let mut port = || ports.next().unwrap_or_default();
    let tenant_id = TenantId(rand::random());
    Ok(Description {
        version: VERSION,
        pg_install,
        default_tenant: tenant_id,
        auth: false,
        pageserver: PageserverNode { pg_port: port(), http_port: port() },
        safekeepers: (1..=u64::from(safekeepers))
            .map(|id| new_safekeeper(NodeId(id), port(), port()))
            .collect(),
        safekeepers_ever: safekeepers.into(),
        branches: vec![main_branch(tenant_id)],
    })
}

/// A safekeeper that stays.
pub fn new_safekeeper(id: NodeId, pg_port: u16, http_port: u16) -> SafekeeperNode {
    SafekeeperNode { id, pg_port, http_port, leaving: false }
}

/// The first configuration of a new branch.
pub fn first_membership<'a>(nodes: impl Iterator<Item = &'a SafekeeperNode>) -> StoredConf {
    let members = nodes.map(SafekeeperNode::member).collect();
    let mconf = MembershipConf { generation: Generation(1), members, new_members: None };
    StoredConf { mconf, leavers: Vec::new(), finished: false }
}

/// The first branch of a tenant, not made yet.
pub fn main_branch(tenant_id: TenantId) -> Branch {
    Branch {
        name: "main".to_owned(),
        tenant_id,
        timeline_id: TimelineId(rand::random()),
        ancestor_timeline_id: None,
        ancestor_lsn: None,
        ready: false,
        membership: StoredConf::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_survives_a_round_trip_and_a_second_init_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let description = new_description("/nowhere".into(), 3).unwrap();
        let tenant = description.default_tenant;
        drop(Environment::create(dir.path(), description.clone()).unwrap());
        let opened = Environment::open(dir.path()).unwrap();
        assert_eq!(opened.description.default_tenant, tenant);
        assert_eq!(opened.branch(None, "main").unwrap().tenant_id, tenant);
        drop(opened);
        let error = Environment::create(dir.path(), description).unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Conflict);
    }

    #[test]
    fn a_broken_description_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        drop(
            Environment::create(dir.path(), new_description("/nowhere".into(), 3).unwrap())
                .unwrap(),
        );
        let path = dir.path().join("neon.toml");
        let text = fs::read_to_string(&path).unwrap().replace("pg_port", "pg_prot");
        fs::write(&path, text).unwrap();
        let error = Environment::open(dir.path()).unwrap_err();
        assert!(error.message.contains("neon.toml"), "{error}");
        assert!(error.message.contains("pg_prot"), "{error}");
    }

    #[test]
    fn names_are_checked() {
        for good in ["main", "a-b_C9"] {
            check_name("a branch", good).unwrap();
        }
        for bad in ["", "-x", "a/b", "..", "a b", &"x".repeat(64)] {
            check_name("a branch", bad).unwrap_err();
        }
    }
}
