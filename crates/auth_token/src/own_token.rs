//! The token with which a process shows others who it is.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::token::TOKEN_BYTES_MAX;

/// A file with a token, read anew for each connection: whoever exchanges the key exchanges the file, and nothing needs to
/// be started again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnToken(Option<PathBuf>);

/// Why the token is not known.
#[derive(Debug, thiserror::Error)]
pub enum OwnTokenError {
    /// The file cannot be read.
    #[error("could not read the token in {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It has none.
    #[error("{} holds no token", .0.display())]
    None(PathBuf),
}

impl OwnToken {
    /// In this file; `None`: others want no token.
    pub fn new(path: Option<PathBuf>) -> OwnToken {
        OwnToken(path)
    }

    /// The token as it is now.
    ///
    /// # Errors
    /// The file cannot be read, or holds none.
    pub fn read(&self) -> Result<Option<String>, OwnTokenError> {
        let Some(path) = &self.0 else { return Ok(None) };
        let mut text = String::new();
        // One byte more, so that who gets it says that it is too long.
        let limit = u64::try_from(TOKEN_BYTES_MAX).map_or(u64::MAX, |limit| limit + 1);
        let read = File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text));
        read.map_err(|source| OwnTokenError::Read { path: path.clone(), source })?;
        match text.trim() {
            "" => Err(OwnTokenError::None(path.clone())),
            token => Ok(Some(token.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_each_time() {
        assert_eq!(OwnToken::default().read().unwrap(), None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let own = OwnToken::new(Some(path.clone()));
        assert!(own.read().unwrap_err().to_string().contains("token"));
        for (text, token) in [("a.b.c\n", "a.b.c"), ("d.e.f", "d.e.f")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(own.read().unwrap().as_deref(), Some(token));
        }
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(own.read(), Err(OwnTokenError::None(_))));
    }
}
