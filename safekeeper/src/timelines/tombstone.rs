//! What is left of a timeline that is gone: a file that survives restarts.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use pg_types::Generation;

use super::{TenantTimelineId, Timelines, TimelinesError};
use crate::durable::{self, FileError};

const SUFFIX: &str = ".deleted";

/// Why a timeline is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tombstone {
    /// Deleted everywhere: never again.
    Deleted,
    /// This safekeeper left its membership: it may come back in a newer configuration only, so that a request that
    /// was under way for long brings nothing back.
    Excluded {
        /// Generation of the configuration that did not name this safekeeper.
        generation: Generation,
    },
}

impl Tombstone {
    /// Whether a timeline of this membership generation may exist.
    pub(super) fn allows(self, generation: Generation) -> bool {
        match self {
            Tombstone::Deleted => false,
            Tombstone::Excluded { generation: left } => left < generation,
        }
    }

    /// An empty file is a deletion, a number the generation of an exclusion. Anything else was not written here, and
    /// forbids everything.
    fn parse(text: &str) -> Tombstone {
        match text.trim().parse() {
            Ok(generation) => Tombstone::Excluded { generation: Generation(generation) },
            Err(_) => Tombstone::Deleted,
        }
    }

    fn text(self) -> String {
        match self {
            Tombstone::Deleted => String::new(),
            Tombstone::Excluded { generation } => format!("{generation}\n"),
        }
    }
}

impl Timelines {
    pub(super) fn tombstone_path(&self, id: TenantTimelineId) -> PathBuf {
        let name = format!("{}{SUFFIX}", id.timeline_id);
        self.data_dir.join(id.tenant_id.to_string()).join(name)
    }

    /// The tombstone of a timeline, if it has one.
    pub(super) fn tombstone(
        &self,
        id: TenantTimelineId,
    ) -> Result<Option<Tombstone>, TimelinesError> {
        let path = self.tombstone_path(id);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Tombstone::parse(&text))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FileError { action: "read", path, source }.into()),
        }
    }

    /// Sets a tombstone, durably.
    pub(super) fn bury(
        &self,
        id: TenantTimelineId,
        tombstone: Tombstone,
    ) -> Result<(), TimelinesError> {
        let path = self.tombstone_path(id);
        durable::create_dir_all(path.parent().unwrap_or(&self.data_dir))?;
        Ok(durable::replace(&path, tombstone.text().as_bytes())?)
    }

    /// Refuses a timeline of this membership generation if its tombstone does.
    pub(super) fn check_tombstone(
        &self,
        id: TenantTimelineId,
        wanted: Generation,
    ) -> Result<(), TimelinesError> {
        match self.tombstone(id)? {
            Some(Tombstone::Deleted) => Err(TimelinesError::Deleted(id)),
            Some(Tombstone::Excluded { generation: left }) if wanted <= left => {
                Err(TimelinesError::Excluded { id, left, wanted })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_back_and_nonsense_forbids_everything() {
        for tombstone in [Tombstone::Deleted, Tombstone::Excluded { generation: Generation(7) }] {
            assert_eq!(Tombstone::parse(&tombstone.text()), tombstone);
        }
        assert_eq!(Tombstone::parse("-3"), Tombstone::Deleted);
        let excluded = Tombstone::Excluded { generation: Generation(7) };
        assert!(!excluded.allows(Generation(7)) && excluded.allows(Generation(8)));
        assert!(!Tombstone::Deleted.allows(Generation(u32::MAX)));
    }
}
