//! From claims to a token and back (pure).

use std::time::SystemTime;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};

use crate::claims::{Claims, WireClaims};
use crate::keys::{PublicKeys, SigningKey};

/// Longest token that is looked at; ours have some 250 bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// By how many seconds the clocks of who mints and who checks may differ.
pub const LEEWAY_S: u64 = 30;

/// The only algorithm. A token does not choose how it is checked.
const ALGORITHM: Algorithm = Algorithm::EdDSA;

/// Why a token is worth nothing. No message has a part of the token in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error("a token is needed")]
    Missing,
    /// The `Authorization` header is something else.
    #[error("the Authorization header is not of the form \"Bearer TOKEN\"")]
    NotBearer,
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("the token has {bytes} bytes, at most {TOKEN_BYTES_MAX} are looked at")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not three parts in base64.
    #[error("the token is not a JSON Web Token")]
    Malformed,
    /// Another algorithm, none, or a header that wants something else that is not done here.
    #[error("the token is not one that is signed with EdDSA")]
    Algorithm,
    /// By a stranger, or altered.
    #[error("the token is not signed with a key that is accepted here")]
    Signature,
    /// Signed, but it does not say what a token has to.
    #[error("the token's claims are not valid: {0}")]
    Claims(&'static str),
    /// Too late.
    #[error("the token has expired {seconds} s ago")]
    Expired {
        /// Since when.
        seconds: u64,
    },
    /// Too early.
    #[error("the token is valid in {seconds} s only")]
    NotYet {
        /// Until when.
        seconds: u64,
    },
}

/// A token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("could not sign a token")]
pub struct MintError(#[source] jsonwebtoken::errors::Error);

/// Signs a token.
///
/// # Errors
/// Not in practice: the key was checked when it was read.
pub fn mint(claims: &Claims, key: &SigningKey) -> Result<String, MintError> {
    let header = Header::new(ALGORITHM);
    jsonwebtoken::encode(&header, &WireClaims::from(claims), key.encoding_key()).map_err(MintError)
}

/// Claims of a token that one of the keys has signed. Total: any bytes give claims or an error.
///
/// # Errors
/// What is wrong with it.
pub fn verify(token: &[u8], keys: &PublicKeys, now: SystemTime) -> Result<Claims, TokenError> {
    if token.is_empty() {
        return Err(TokenError::Missing);
    }
    if TOKEN_BYTES_MAX < token.len() {
        return Err(TokenError::TooLong { bytes: token.len() });
    }
    let header = decode_header(token).map_err(|error| match error.kind() {
        // Of well-formed JSON only the name of the algorithm has to be one of a list.
        ErrorKind::Json(_) => TokenError::Algorithm,
        _ => TokenError::Malformed,
    })?;
    if header.alg != ALGORITHM || header.crit.is_some() {
        return Err(TokenError::Algorithm);
    }
    let mut validation = Validation::new(ALGORITHM);
    // Times are checked below, against the clock that was given.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    for key in keys.decoding_keys() {
        match decode::<WireClaims>(token, key, &validation) {
            Ok(data) => {
                let claims = Claims::try_from(data.claims)?;
                claims.check_time(now)?;
                return Ok(claims);
            }
            Err(error) => match error.kind() {
                ErrorKind::InvalidSignature => {}
                ErrorKind::Json(_) => return Err(TokenError::Claims("they are not understood")),
                _ => return Err(TokenError::Malformed),
            },
        }
    }
    Err(TokenError::Signature)
}

/// The token in the value of an `Authorization` header (RFC 6750).
///
/// # Errors
/// There is none.
pub fn bearer(header: Option<&[u8]>) -> Result<&[u8], TokenError> {
    let value = header.ok_or(TokenError::Missing)?;
    let end = value.iter().position(u8::is_ascii_whitespace).unwrap_or(value.len());
    match value.split_at_checked(end) {
        // An empty one is missed by whoever checks it.
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"Bearer") => Ok(token.trim_ascii()),
        _ => Err(TokenError::NotBearer),
    }
}

#[cfg(test)]
mod tests;
