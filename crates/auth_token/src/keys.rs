//! Keys and the files they are in: PEM, Ed25519 (RFC 8410).

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, ParsedPublicKey};
use jsonwebtoken::{DecodingKey, EncodingKey};
use pem::{EncodeConfig, LineEnding, Pem};

/// Most keys that are accepted at a time: a signature is tried with each. A rotation has two.
pub const KEYS_MAX: usize = 16;
/// Largest file that is taken for a key.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// What names of key files in a directory end with.
const EXTENSION: &str = "pem";
const PUBLIC: &str = "PUBLIC KEY";
const SECRET: &str = "PRIVATE KEY";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file or directory cannot be read.
    #[error("could not read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Its contents are none.
    #[error("{} {reason}", .path.display())]
    Contents {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Others may read a secret.
    #[error("{} can be read by others (mode {mode:o}): take that right from them", .path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A directory without keys.
    #[error("{} has no key: expected files whose names end with .{EXTENSION}", .0.display())]
    None(PathBuf),
    /// Too many.
    #[error("{} has more than {KEYS_MAX} keys", .0.display())]
    TooMany(PathBuf),
    /// No key could be made.
    #[error("could not make a key")]
    Generate,
}

/// Keys whose tokens are accepted; any of them will do.
#[derive(Clone)]
pub struct PublicKeys(Vec<DecodingKey>);

impl fmt::Debug for PublicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl PublicKeys {
    /// Reads a file, or all files of a directory whose names end with `.pem`. Each may hold several keys.
    ///
    /// # Errors
    /// Names the file and what is wrong with it; one bad file is enough.
    pub fn load(path: &Path) -> Result<PublicKeys, KeyError> {
        let failed = |source| KeyError::Read { path: path.to_owned(), source };
        let mut files = Vec::new();
        if fs::metadata(path).map_err(failed)?.is_dir() {
            for entry in fs::read_dir(path).map_err(failed)? {
                let file = entry.map_err(failed)?.path();
                if file.extension().is_some_and(|extension| extension == EXTENSION) {
                    files.push(file);
                }
            }
            files.sort();
        } else {
            files.push(path.to_owned());
        }
        let mut keys = Vec::new();
        for file in files {
            keys.extend(PublicKeys::of_text(&file, &read(&file)?)?.0);
        }
        match keys.len() {
            0 => Err(KeyError::None(path.to_owned())),
            1..=KEYS_MAX => Ok(PublicKeys(keys)),
            _ => Err(KeyError::TooMany(path.to_owned())),
        }
    }

    /// From a text that came from `path`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_text(path: &Path, text: &[u8]) -> Result<PublicKeys, KeyError> {
        let parts = parts(path, text)?;
        let key = |part: &Pem| {
            check_tag(path, part, PUBLIC)?;
            let wrong = |_| contents(path, "has a public key that is not an Ed25519 one");
            ParsedPublicKey::new(&ED25519, part.contents()).map_err(wrong)?;
            Ok(DecodingKey::from_ed_der(part.contents()))
        };
        parts.iter().map(key).collect::<Result<_, _>>().map(PublicKeys)
    }

    pub(crate) fn decoding_keys(&self) -> &[DecodingKey] {
        &self.0
    }
}

/// A key that tokens are signed with.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    encoding: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> Result<SigningKey, KeyError> {
        SigningKey::of_pair(Ed25519KeyPair::generate().map_err(|_| KeyError::Generate)?)
    }

    /// Reads a file that nobody but its owner may read: PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519`
    /// writes it.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<SigningKey, KeyError> {
        let failed = |source| KeyError::Read { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        SigningKey::of_text(path, &read(path)?)
    }

    /// From a text that came from `path`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_text(path: &Path, text: &[u8]) -> Result<SigningKey, KeyError> {
        let parts = parts(path, text)?;
        let [part] = parts.as_slice() else {
            return Err(contents(path, "has several keys where one belongs"));
        };
        check_tag(path, part, SECRET)?;
        let pair = Ed25519KeyPair::from_pkcs8(part.contents());
        SigningKey::of_pair(pair.map_err(|_| contents(path, "has no Ed25519 key in PKCS#8"))?)
    }

    fn of_pair(pair: Ed25519KeyPair) -> Result<SigningKey, KeyError> {
        let der = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        let encoding = EncodingKey::from_ed_der(der.as_ref());
        Ok(SigningKey { pair, encoding })
    }

    /// For its file, which nobody but its owner may read.
    pub fn secret_pem(&self) -> String {
        in_pem(SECRET, self.encoding.as_bytes())
    }

    /// For those who check its tokens.
    ///
    /// # Errors
    /// Not in practice.
    pub fn public_pem(&self) -> Result<String, KeyError> {
        let der = self.pair.public_key().as_der().map_err(|_| KeyError::Generate)?;
        Ok(in_pem(PUBLIC, der.as_ref()))
    }

    pub(crate) fn encoding_key(&self) -> &EncodingKey {
        &self.encoding
    }
}

fn in_pem(tag: &str, der: &[u8]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(tag, der), config)
}

fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::new();
    let file = File::open(path);
    let read = file.and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

fn contents(path: &Path, reason: &'static str) -> KeyError {
    KeyError::Contents { path: path.to_owned(), reason }
}

/// The parts of a PEM file; at least one. What is wrong inside them is not told: it may be a secret.
fn parts(path: &Path, text: &[u8]) -> Result<Vec<Pem>, KeyError> {
    match pem::parse_many(text) {
        Ok(parts) if !parts.is_empty() => Ok(parts),
        _ => Err(contents(path, "is not a PEM file")),
    }
}

fn check_tag(path: &Path, part: &Pem, wanted: &str) -> Result<(), KeyError> {
    let reason = match (part.tag(), wanted) {
        (tag, wanted) if tag == wanted => return Ok(()),
        (SECRET, _) => "has a private key where public ones belong",
        (PUBLIC, _) => "has a public key where a private one belongs",
        _ => "is neither a PUBLIC KEY nor a PRIVATE KEY in PEM",
    };
    Err(contents(path, reason))
}

#[cfg(test)]
mod tests;
