//! What a token allows (pure).

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pg_types::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::Number;

use crate::token::{LEEWAY_S, TokenError};

/// What the holder of a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `tenant`: a compute of this tenant. Its WAL and its pages.
    Tenant(TenantId),
    /// `pageserverapi`: pages of all tenants, and the page server's management.
    PageServerApi,
    /// `safekeeperdata`: WAL of all tenants, and the safekeepers' management. Page servers and safekeepers are such.
    SafekeeperData,
    /// `admin`: everything.
    Admin,
}

impl Scope {
    /// The word for it in a token.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Tenant(_) => "tenant",
            Scope::PageServerApi => "pageserverapi",
            Scope::SafekeeperData => "safekeeperdata",
            Scope::Admin => "admin",
        }
    }

    /// Whether the holder may do that.
    ///
    /// # Errors
    /// It may not.
    pub fn permit(self, access: Access) -> Result<(), Forbidden> {
        let permitted = match (self, access) {
            (Scope::Admin, _)
            | (Scope::SafekeeperData, Access::Wal(_) | Access::Safekeeper)
            | (Scope::PageServerApi, Access::Pages(_) | Access::PageServer) => true,
            (Scope::Tenant(own), Access::Wal(tenant) | Access::Pages(tenant)) => own == tenant,
            _ => false,
        };
        if permitted { Ok(()) } else { Err(Forbidden { holder: Some(self), access }) }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Tenant(tenant) => write!(f, "tenant {tenant}"),
            other => f.write_str(other.name()),
        }
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// On a safekeeper: write a tenant's WAL, read it, ask how far it is.
    Wal(TenantId),
    /// On a safekeeper: anything else.
    Safekeeper,
    /// On a page server: read a tenant's pages.
    Pages(TenantId),
    /// On a page server: anything else.
    PageServer,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Access::Wal(tenant) => write!(f, "the WAL of tenant {tenant}"),
            Access::Safekeeper => f.write_str("the management of a safekeeper"),
            Access::Pages(tenant) => write!(f, "the pages of tenant {tenant}"),
            Access::PageServer => f.write_str("the management of a page server"),
        }
    }
}

/// A good token that is not good for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} does not allow {access}", self.holder())]
pub struct Forbidden {
    /// Of which scope the token is; `None` when nobody has logged in.
    pub holder: Option<Scope>,
    /// What it does not allow.
    pub access: Access,
}

impl Forbidden {
    fn holder(&self) -> String {
        match self.holder {
            Some(scope) => format!("a token of scope {scope}"),
            None => "a connection without a token".to_owned(),
        }
    }
}

/// Contents of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// What it allows.
    pub scope: Scope,
    /// `exp`: seconds since 1970 from which on it is worth nothing; `None`: it lasts as long as its key.
    pub expires_at: Option<u64>,
    /// `nbf`: seconds since 1970 before which it is worth nothing.
    pub not_before: Option<u64>,
}

impl Claims {
    /// Without limits in time.
    pub fn new(scope: Scope) -> Claims {
        Claims { scope, expires_at: None, not_before: None }
    }

    /// Ends so long after `now`.
    #[must_use]
    pub fn expiring(self, now: SystemTime, after: Duration) -> Claims {
        let expires_at = Some(seconds(now).saturating_add(after.as_secs()));
        Claims { expires_at, ..self }
    }

    /// Whether it is worth something at this time; clocks may differ by [`LEEWAY_S`].
    ///
    /// # Errors
    /// By how much it is too late or too early.
    pub fn check_time(&self, now: SystemTime) -> Result<(), TokenError> {
        let now = seconds(now);
        if let Some(at) = self.expires_at.filter(|at| at.saturating_add(LEEWAY_S) <= now) {
            return Err(TokenError::Expired { seconds: now.saturating_sub(at) });
        }
        if let Some(at) = self.not_before.filter(|at| now.saturating_add(LEEWAY_S) < *at) {
            return Err(TokenError::NotYet { seconds: at.saturating_sub(now) });
        }
        Ok(())
    }
}

fn seconds(time: SystemTime) -> u64 {
    // A clock before 1970 has not been set: what expires has not expired by it, what begins has not begun.
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The claims as JSON has them. Others are allowed and mean nothing here.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireClaims {
    scope: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<Number>,
}

impl From<&Claims> for WireClaims {
    fn from(claims: &Claims) -> WireClaims {
        let tenant_id = match claims.scope {
            Scope::Tenant(tenant) => Some(tenant.to_string()),
            _ => None,
        };
        WireClaims {
            scope: claims.scope.name().to_owned(),
            tenant_id,
            exp: claims.expires_at.map(Number::from),
            nbf: claims.not_before.map(Number::from),
        }
    }
}

impl TryFrom<WireClaims> for Claims {
    type Error = TokenError;

    fn try_from(wire: WireClaims) -> Result<Claims, TokenError> {
        let scope = match (wire.scope.as_str(), wire.tenant_id) {
            ("tenant", Some(id)) => {
                let parsed = id.parse().map(Scope::Tenant);
                parsed.map_err(|_| TokenError::Claims("tenant_id is not an id"))?
            }
            ("tenant", None) => return Err(TokenError::Claims("scope tenant needs a tenant_id")),
            ("pageserverapi", None) => Scope::PageServerApi,
            ("safekeeperdata", None) => Scope::SafekeeperData,
            ("admin", None) => Scope::Admin,
            // Whoever minted it meant less than the scope alone says.
            ("pageserverapi" | "safekeeperdata" | "admin", Some(_)) => {
                return Err(TokenError::Claims("tenant_id belongs to scope tenant alone"));
            }
            _ => return Err(TokenError::Claims("scope is unknown")),
        };
        let time = |claim: Option<Number>, wrong| match claim {
            Some(number) => date(&number).map(Some).ok_or(TokenError::Claims(wrong)),
            None => Ok(None),
        };
        Ok(Claims {
            scope,
            expires_at: time(wire.exp, "exp is not a time")?,
            not_before: time(wire.nbf, "nbf is not a time")?,
        })
    }
}

/// `NumericDate` of RFC 7519: seconds since 1970, perhaps with a fraction.
fn date(number: &Number) -> Option<u64> {
    let fractional = || Duration::try_from_secs_f64(number.as_f64()?).ok();
    number.as_u64().or_else(|| fractional().map(|since| since.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: TenantId = TenantId([1; 16]);
    const OTHER: TenantId = TenantId([2; 16]);

    #[test]
    fn each_scope_allows_what_it_is_for() {
        let all = [
            Access::Wal(OWN),
            Access::Wal(OTHER),
            Access::Safekeeper,
            Access::Pages(OWN),
            Access::Pages(OTHER),
            Access::PageServer,
        ];
        let allowed = |scope: Scope| all.map(|access| u8::from(scope.permit(access).is_ok()));
        assert_eq!(allowed(Scope::Tenant(OWN)), [1, 0, 0, 1, 0, 0]);
        assert_eq!(allowed(Scope::SafekeeperData), [1, 1, 1, 0, 0, 0]);
        assert_eq!(allowed(Scope::PageServerApi), [0, 0, 0, 1, 1, 1]);
        assert_eq!(allowed(Scope::Admin), [1; 6]);
        let error = Scope::Tenant(OWN).permit(Access::Pages(OTHER)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("a token of scope tenant {OWN} does not allow the pages of tenant {OTHER}")
        );
    }

    fn of_json(text: &str) -> Result<Claims, TokenError> {
        serde_json::from_str::<WireClaims>(text).unwrap().try_into()
    }

    #[test]
    fn claims_are_read_and_refused_with_a_reason() {
        let tenant = format!(r#"{{"scope":"tenant","tenant_id":"{OWN}","exp":1e9,"other":[]}}"#);
        let claims = of_json(&tenant).unwrap();
        assert_eq!((claims.scope, claims.expires_at), (Scope::Tenant(OWN), Some(1_000_000_000)));
        let fraction = of_json(r#"{"scope":"admin","nbf":12.9}"#).unwrap();
        assert_eq!(fraction.not_before, Some(12));
        for (text, reason) in [
            (r#"{"scope":"tenant"}"#, "scope tenant needs a tenant_id"),
            (r#"{"scope":"tenant","tenant_id":"x"}"#, "tenant_id is not an id"),
            (r#"{"scope":"admin","tenant_id":"x"}"#, "tenant_id belongs to scope tenant alone"),
            (r#"{"scope":"root"}"#, "scope is unknown"),
            (r#"{"scope":"admin","exp":-1}"#, "exp is not a time"),
            (r#"{"scope":"admin","nbf":1e40}"#, "nbf is not a time"),
        ] {
            assert_eq!(of_json(text), Err(TokenError::Claims(reason)), "{text}");
        }
    }

    #[test]
    fn time_is_checked_with_a_little_leeway() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let claims = Claims {
            not_before: Some(1000),
            ..Claims::new(Scope::Admin).expiring(at(1000), Duration::from_secs(60))
        };
        assert_eq!(claims.expires_at, Some(1060));
        assert_eq!(claims.check_time(at(900)), Err(TokenError::NotYet { seconds: 100 }));
        assert_eq!(claims.check_time(at(1000 - LEEWAY_S)), Ok(()));
        assert_eq!(claims.check_time(at(1059 + LEEWAY_S)), Ok(()));
        let late = TokenError::Expired { seconds: LEEWAY_S };
        assert_eq!(claims.check_time(at(1060 + LEEWAY_S)), Err(late));
    }
}
