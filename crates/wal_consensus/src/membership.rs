//! Membership configuration: which safekeepers may vote and count (facts of L225, L226, L238).

use std::fmt;

use pg_types::{Generation, NodeId};
use serde::{Deserialize, Serialize};

use crate::limits::MEMBERS_MAX;

/// One safekeeper of a configuration, with where computes reach it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The safekeeper's number; never 0.
    pub id: NodeId,
    /// Host name or address of its Postgres-protocol port.
    pub host: String,
    /// Its Postgres-protocol port.
    pub pg_port: u16,
}

/// The safekeepers of a timeline. While `new_members` is set the configuration is *joint*: every decision needs a
/// majority of both sets.
///
/// Generation 0 with no members is the empty configuration (L238): the quorum is then a majority of the addresses the
/// proposer was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MembershipConf {
    /// Rises with every change; a generation's content never changes.
    pub generation: Generation,
    /// The current members.
    pub members: Vec<Member>,
    /// The members to be, during a change.
    #[serde(default)]
    pub new_members: Option<Vec<Member>>,
}

/// Why a configuration is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MembershipError {
    /// A generation above 0 must name somebody.
    #[error("membership configuration of generation {0} has no members")]
    NoMembers(Generation),
    /// Generation 0 is the empty configuration and nothing else.
    #[error("membership configuration of generation 0 must be empty")]
    NotEmpty,
    /// A joint configuration must name the new members.
    #[error("membership configuration of generation {0} is joint but names no new members")]
    NoNewMembers(Generation),
    /// The same node twice in one set.
    #[error("membership configuration names node {0} twice in one set")]
    Duplicate(NodeId),
    /// Node number 0.
    #[error("membership configuration names node 0")]
    NodeZero,
    /// More members than [`MEMBERS_MAX`].
    #[error(
        "membership configuration names {0} safekeepers in one set, at most {MEMBERS_MAX} are allowed"
    )]
    TooMany(usize),
    /// A host name that cannot be sent as a C string.
    #[error("host of node {0} contains a NUL byte")]
    HostWithNul(NodeId),
}

impl MembershipConf {
    /// Checks the rules of the type's description.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), MembershipError> {
        if self.generation == Generation(0) {
            let empty = self.members.is_empty() && self.new_members.is_none();
            return if empty { Ok(()) } else { Err(MembershipError::NotEmpty) };
        }
        if self.members.is_empty() {
            return Err(MembershipError::NoMembers(self.generation));
        }
        validate_set(&self.members)?;
        match &self.new_members {
            Some(set) if set.is_empty() => Err(MembershipError::NoNewMembers(self.generation)),
            Some(set) => validate_set(set),
            None => Ok(()),
        }
    }

    /// Whether a safekeeper belongs to the configuration, in either set.
    pub fn contains(&self, id: NodeId) -> bool {
        self.all_members().any(|member| member.id == id)
    }

    /// The members of both sets; a node of both comes twice.
    pub fn all_members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().chain(self.new_members.iter().flatten())
    }

    /// Whether decisions need two majorities.
    pub fn is_joint(&self) -> bool {
        self.new_members.is_some()
    }

    /// Whether both are the same configuration. A set has no order, so the order of members does not matter.
    pub fn same_as(&self, other: &MembershipConf) -> bool {
        let new_sets = (self.new_members.as_deref(), other.new_members.as_deref());
        self.generation == other.generation
            && same_set(&self.members, &other.members)
            && match new_sets {
                (Some(ours), Some(theirs)) => same_set(ours, theirs),
                (ours, theirs) => ours.is_none() && theirs.is_none(),
            }
    }
}

/// Whether two lists name the same safekeepers at the same addresses, in whatever order.
pub fn same_set(left: &[Member], right: &[Member]) -> bool {
    let sorted = |set: &[Member]| {
        let mut set = set.to_vec();
        set.sort();
        set
    };
    sorted(left) == sorted(right)
}

impl fmt::Display for MembershipConf {
    /// `2[1 2 3]`, or `3[1 2 3 | 1 4 5]` while joint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |set: &[Member]| -> String {
            set.iter().map(|member| member.id.to_string()).collect::<Vec<_>>().join(" ")
        };
        write!(f, "{}[{}", self.generation, names(&self.members))?;
        if let Some(set) = &self.new_members {
            write!(f, " | {}", names(set))?;
        }
        f.write_str("]")
    }
}

fn validate_set(set: &[Member]) -> Result<(), MembershipError> {
    if set.len() > MEMBERS_MAX {
        return Err(MembershipError::TooMany(set.len()));
    }
    for (index, member) in set.iter().enumerate() {
        if member.id == NodeId(0) {
            return Err(MembershipError::NodeZero);
        }
        if set.iter().take(index).any(|earlier| earlier.id == member.id) {
            return Err(MembershipError::Duplicate(member.id));
        }
        if member.host.as_bytes().contains(&0) {
            return Err(MembershipError::HostWithNul(member.id));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
