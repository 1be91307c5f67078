#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod claims;
mod keys;
mod login;
mod own_token;
mod token;
mod verifier;

pub use claims::{Access, Claims, Forbidden, Scope};
pub use keys::{KEYS_MAX, KeyError, PublicKeys, SigningKey};
pub use login::Login;
pub use own_token::{OwnToken, OwnTokenError};
pub use token::{LEEWAY_S, MintError, TOKEN_BYTES_MAX, TokenError, bearer, mint, verify};
pub use verifier::Verifier;
