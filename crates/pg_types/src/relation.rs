//! Relations as storage sees them.

use std::fmt;

use crate::{ForkNumber, Oid};

/// Default tablespace (`pg_tablespace.dat`).
pub const DEFAULTTABLESPACE_OID: Oid = 1663;
/// Tablespace of the shared catalogs.
pub const GLOBALTABLESPACE_OID: Oid = 1664;

/// `RelFileLocator` of `storage/relfilelocator.h`: where a relation's files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFileLocator {
    /// Tablespace.
    pub spc_oid: Oid,
    /// Database; 0 for shared relations.
    pub db_oid: Oid,
    /// Relation file number; never 0 for a real relation.
    pub rel_number: Oid,
}

impl RelFileLocator {
    /// The relation together with one of its forks.
    pub fn fork(self, fork: ForkNumber) -> RelTag {
        RelTag { locator: self, fork }
    }
}

impl fmt::Display for RelFileLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.spc_oid, self.db_oid, self.rel_number)
    }
}

/// One fork of one relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelTag {
    /// The relation.
    pub locator: RelFileLocator,
    /// The fork.
    pub fork: ForkNumber,
}

impl fmt::Display for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.locator, self.fork.file_suffix())
    }
}
