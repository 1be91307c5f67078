//! Who is at the other end of a connection.

use std::sync::Arc;

use crate::claims::{Access, Forbidden, Scope};
use crate::token::TokenError;
use crate::verifier::Verifier;

/// What is known of the peer of one connection. Its token is looked at once: a connection outlives its token.
#[derive(Debug, Clone)]
pub enum Login {
    /// No tokens are wanted here.
    Anybody,
    /// A token is wanted and has not been shown.
    Nobody(Arc<Verifier>),
    /// A good token was shown.
    Holder(Scope),
}

impl Login {
    /// Before anything was said.
    pub fn new(verifier: Option<&Arc<Verifier>>) -> Login {
        verifier.map_or(Login::Anybody, |verifier| Login::Nobody(Arc::clone(verifier)))
    }

    /// Whether the peer is to be asked for a token.
    pub fn wants_token(&self) -> bool {
        matches!(self, Login::Nobody(_))
    }

    /// Takes the peer's token.
    ///
    /// # Errors
    /// It is worth nothing.
    pub fn show(&mut self, token: &[u8]) -> Result<(), TokenError> {
        if let Login::Nobody(verifier) = self {
            *self = Login::Holder(verifier.verify(token)?.scope);
        }
        Ok(())
    }

    /// Whether the peer may do that.
    ///
    /// # Errors
    /// It may not.
    pub fn permit(&self, access: Access) -> Result<(), Forbidden> {
        match self {
            Login::Anybody => Ok(()),
            Login::Nobody(_) => Err(Forbidden { holder: None, access }),
            Login::Holder(scope) => scope.permit(access),
        }
    }
}
