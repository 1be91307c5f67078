//! Checks tokens with keys that may change while a process runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::claims::Claims;
use crate::keys::{KeyError, PublicKeys};
use crate::token::{TokenError, bearer, verify};

/// A key whose file is gone is accepted for no longer than this.
const KEYS_AGE_MAX: Duration = Duration::from_secs(10);

/// Checks tokens with the keys of a file or directory.
#[derive(Debug)]
pub struct Verifier {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Clone)]
struct Known {
    keys: Arc<PublicKeys>,
    read_at: Instant,
}

impl Verifier {
    /// Reads the keys ([`PublicKeys::load`]).
    ///
    /// # Errors
    /// There are none that can be used.
    pub fn open(path: &Path) -> Result<Verifier, KeyError> {
        let keys = Arc::new(PublicKeys::load(path)?);
        let known = Mutex::new(Known { keys, read_at: Instant::now() });
        Ok(Verifier { path: path.to_owned(), known })
    }

    /// Claims of a token. One that no known key has signed is checked with the keys as they are by now, so a new key
    /// is accepted at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, token: &[u8]) -> Result<Claims, TokenError> {
        let now = SystemTime::now();
        match verify(token, &self.keys(KEYS_AGE_MAX), now) {
            Err(TokenError::Signature) => verify(token, &self.keys(Duration::ZERO), now),
            result => result,
        }
    }

    /// The same for the value of an `Authorization` header.
    ///
    /// # Errors
    /// There is no token, or something is wrong with it.
    pub fn verify_bearer(&self, header: Option<&[u8]>) -> Result<Claims, TokenError> {
        self.verify(bearer(header)?)
    }

    /// The keys, read again when they are this old. As long as that fails, those that were read last count.
    fn keys(&self, age_max: Duration) -> Arc<PublicKeys> {
        // Each change is one assignment.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if age_max <= known.read_at.elapsed() {
            match PublicKeys::load(&self.path) {
                Ok(keys) => known.keys = Arc::new(keys),
                Err(error) => tracing::warn!("the keys for tokens stay as they are: {error}"),
            }
            known.read_at = Instant::now();
        }
        Arc::clone(&known.keys)
    }

    #[cfg(test)]
    fn grow_old(&self) {
        let mut known = self.known.lock().unwrap();
        known.read_at = known.read_at.checked_sub(KEYS_AGE_MAX).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Login, Scope, SigningKey, mint};

    fn token(key: &SigningKey) -> Vec<u8> {
        mint(&Claims::new(Scope::Admin), key).unwrap().into_bytes()
    }

    #[test]
    fn keys_come_and_go_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Verifier::open(dir.path()), Err(KeyError::None(_))));
        let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        std::fs::write(dir.path().join("1.pem"), old.public_pem().unwrap()).unwrap();
        let verifier = Verifier::open(dir.path()).unwrap();
        assert!(verifier.verify(&token(&old)).is_ok());
        assert_eq!(verifier.verify(&token(&new)), Err(TokenError::Signature));
        std::fs::write(dir.path().join("2.pem"), new.public_pem().unwrap()).unwrap();
        assert!(verifier.verify(&token(&new)).is_ok(), "at once");
        assert!(verifier.verify(&token(&old)).is_ok());
        std::fs::remove_file(dir.path().join("1.pem")).unwrap();
        verifier.grow_old();
        assert_eq!(verifier.verify(&token(&old)), Err(TokenError::Signature));
        assert!(verifier.verify(&token(&new)).is_ok());
        // A broken directory locks nobody out.
        std::fs::write(dir.path().join("3.pem"), "nonsense").unwrap();
        verifier.grow_old();
        assert!(verifier.verify(&token(&new)).is_ok());
        assert_eq!(verifier.verify_bearer(None), Err(TokenError::Missing));
    }

    #[test]
    fn who_has_not_logged_in_may_do_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        let path = dir.path().join("key.pem");
        std::fs::write(&path, key.public_pem().unwrap()).unwrap();
        let verifier = Arc::new(Verifier::open(&path).unwrap());
        assert!(Login::new(None).permit(Access::Safekeeper).is_ok());
        let mut login = Login::new(Some(&verifier));
        assert!(login.wants_token());
        let error = login.permit(Access::Safekeeper).unwrap_err().to_string();
        assert!(error.starts_with("a connection without a token"), "{error}");
        assert_eq!(login.show(b"x"), Err(TokenError::Malformed));
        assert!(login.permit(Access::Safekeeper).is_err());
        login.show(&token(&key)).unwrap();
        assert!(!login.wants_token());
        login.permit(Access::Safekeeper).unwrap();
    }
}
