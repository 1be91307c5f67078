//! `PGDATA/neon.walproposer`: which terms this compute has used and won.
//!
//! ```text
//! {"campaign_term": 8, "elected_terms": [7]}
//! ```
//!
//! It lives and dies with the data directory. `elected_terms` tells WAL of this compute's own earlier walproposer from WAL
//! of another compute; `campaign_term` keeps a new campaign above promises that an earlier one got from a minority.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pg_types::Term;
use serde::{Deserialize, Serialize};

/// Name of the file in the data directory.
pub const TERM_FILE_NAME: &str = "neon.walproposer";

/// Content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// The last campaign's term; 0 before the first one.
    pub(crate) campaign_term: Term,
    /// All elections that were won. The last one alone would not do: the walproposer may die before any safekeeper hears
    /// of it, and the log then still ends in an earlier one.
    pub(crate) elected_terms: Vec<Term>,
}

/// Why the terms cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum TermFileError {
    /// The disk says no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Not what we wrote.
    #[error("{path}: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The file and its last content.
#[derive(Debug)]
pub(crate) struct TermFile {
    dir: PathBuf,
    terms: Terms,
}

impl TermFile {
    /// Reads the file; a data directory without one has campaigned for nothing yet.
    pub(crate) fn open(pgdata: &Path) -> Result<TermFile, TermFileError> {
        let path = pgdata.join(TERM_FILE_NAME);
        let terms = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| TermFileError::Content { path, source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Terms::default(),
            Err(source) => return Err(TermFileError::Io { path, source }),
        };
        Ok(TermFile { dir: pgdata.to_owned(), terms })
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Makes new content durable.
    pub(crate) fn save(&mut self, terms: Terms) -> Result<(), TermFileError> {
        let path = self.dir.join(TERM_FILE_NAME);
        let failed = |source| TermFileError::Io { path: path.clone(), source };
        let bytes = serde_json::to_vec(&terms)
            .map_err(|source| TermFileError::Content { path: path.clone(), source })?;
        let temporary = self.dir.join(format!("{TERM_FILE_NAME}.tmp"));
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        self.terms = terms;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_and_names_damage() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = TermFile::open(dir.path()).unwrap();
        assert_eq!(*file.terms(), Terms::default());
        let terms = Terms { campaign_term: Term(8), elected_terms: vec![Term(7)] };
        file.save(terms.clone()).unwrap();
        assert_eq!(*TermFile::open(dir.path()).unwrap().terms(), terms);
        fs::write(dir.path().join(TERM_FILE_NAME), b"{\"campaign_term\": 8").unwrap();
        let error = TermFile::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(TERM_FILE_NAME), "{error}");
    }
}
