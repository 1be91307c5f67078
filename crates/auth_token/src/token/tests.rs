use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use jsonwebtoken::EncodingKey;
use pg_types::TenantId;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::Scope;

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().unwrap());
static KEYS: LazyLock<PublicKeys> = LazyLock::new(|| public(&[&KEY]));

fn public(keys: &[&SigningKey]) -> PublicKeys {
    let text: String = keys.iter().map(|key| key.public_pem().unwrap()).collect();
    PublicKeys::of_text(Path::new("key.pem"), text.as_bytes()).unwrap()
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn check(token: &str) -> Result<Claims, TokenError> {
    verify(token.as_bytes(), &KEYS, now())
}

/// Any header and claims, signed by the right key.
fn signed(header: &Header, claims: &serde_json::Value) -> String {
    jsonwebtoken::encode(header, claims, KEY.encoding_key()).unwrap()
}

/// Base64 as JWTs have it, of texts whose length needs no padding.
fn unsigned(header: &str, claims: &str) -> String {
    let encode = |text: &str| {
        // `encode` is the only encoder at hand: the middle of a token is its claims.
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let token = signed(&Header::new(ALGORITHM), &value);
        token.split('.').nth(1).unwrap().to_owned()
    };
    format!("{}.{}.", encode(header), encode(claims))
}

#[test]
fn what_is_minted_is_accepted_by_any_of_the_keys() {
    let (other, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let keys = public(&[&other, &KEY]);
    for scope in [
        Scope::Tenant(TenantId([7; 16])),
        Scope::PageServerApi,
        Scope::SafekeeperData,
        Scope::Admin,
    ] {
        let claims = Claims::new(scope).expiring(now(), Duration::from_secs(60));
        for key in [&other, &*KEY] {
            let token = mint(&claims, key).unwrap();
            assert_eq!(verify(token.as_bytes(), &keys, now()), Ok(claims));
        }
        let token = mint(&claims, &stranger).unwrap();
        assert_eq!(verify(token.as_bytes(), &keys, now()), Err(TokenError::Signature));
    }
}

#[test]
fn time_counts() {
    let claims = Claims::new(Scope::Admin).expiring(now(), Duration::from_secs(60));
    let token = mint(&claims, &KEY).unwrap();
    let late = now() + Duration::from_secs(60 + LEEWAY_S);
    let expired = TokenError::Expired { seconds: LEEWAY_S };
    assert_eq!(verify(token.as_bytes(), &KEYS, late), Err(expired));
    let header = Header::new(ALGORITHM);
    let early = signed(&header, &json!({ "scope": "admin", "nbf": 1_800_000_100_u64 }));
    assert_eq!(check(&early), Err(TokenError::NotYet { seconds: 100 }));
}

#[test]
fn a_token_does_not_choose_how_it_is_checked() {
    for alg in ["none", "None", "HS256", "RS256", "ES256"] {
        let token = unsigned(&json!({ "alg": alg }).to_string(), r#"{"scope":"admin"}"#);
        assert_eq!(check(&token), Err(TokenError::Algorithm), "{alg}");
    }
    // The public key taken for a secret that both sides have.
    let public = KEY.public_pem().unwrap();
    let secret = EncodingKey::from_secret(public.as_bytes());
    let claims = json!({ "scope": "admin" });
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secret).unwrap();
    assert_eq!(check(&token), Err(TokenError::Algorithm));
    // No signature under the right algorithm.
    let token = unsigned(r#"{"alg":"EdDSA"}"#, r#"{"scope":"admin"}"#);
    assert_eq!(check(&token), Err(TokenError::Signature));
    // An extension that must be understood is not.
    let header = Header { crit: Some(vec!["b64".to_owned()]), ..Header::new(ALGORITHM) };
    assert_eq!(check(&signed(&header, &claims)), Err(TokenError::Algorithm));
}

#[test]
fn refusals_say_what_is_wrong_and_not_what_the_token_is() {
    let header = Header::new(ALGORITHM);
    let long = "x".repeat(TOKEN_BYTES_MAX + 1);
    let no_scope = signed(&header, &json!({ "who": "secret-word" }));
    let odd_scope = signed(&header, &json!({ "scope": "secret-word" }));
    for (token, reason) in [
        ("", TokenError::Missing),
        ("secret-word", TokenError::Malformed),
        ("a.b", TokenError::Malformed),
        ("....", TokenError::Malformed),
        (long.as_str(), TokenError::TooLong { bytes: TOKEN_BYTES_MAX + 1 }),
        (&no_scope, TokenError::Claims("they are not understood")),
        (&odd_scope, TokenError::Claims("scope is unknown")),
    ] {
        let error = check(token).unwrap_err();
        assert_eq!(error, reason);
        assert!(!error.to_string().contains("secret-word"), "{error}");
    }
}

#[test]
fn bearer_headers() {
    for good in ["Bearer a.b.c", "bearer a.b.c", "BEARER  a.b.c "] {
        assert_eq!(bearer(Some(good.as_bytes())), Ok(&b"a.b.c"[..]));
    }
    assert_eq!(bearer(None), Err(TokenError::Missing));
    assert_eq!(bearer(Some(b"Bearer")), Ok(&b""[..]));
    for bad in ["", "Bearera.b.c", "Basic dXNlcg==", "a.b.c"] {
        assert_eq!(bearer(Some(bad.as_bytes())), Err(TokenError::NotBearer), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_bytes_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(verify(&bytes, &KEYS, now()).is_err());
        let _ = bearer(Some(&bytes));
    }

    #[test]
    fn any_text_of_the_right_shape_gives_an_error(text in "[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,90}") {
        prop_assert!(check(&text).is_err());
    }

    #[test]
    fn any_json_under_the_right_signature_is_read_or_refused(
        scope in "tenant|admin|[a-z]{0,8}",
        tenant in proptest::option::of("[0-9a-f]{32}|\\PC{0,40}"),
        exp in proptest::option::of(any::<f64>()),
        nbf in proptest::option::of(any::<i64>()),
    ) {
        let claims = json!({ "scope": scope, "tenant_id": tenant, "exp": exp, "nbf": nbf });
        let _ = check(&signed(&Header::new(ALGORITHM), &claims));
    }

    #[test]
    fn a_token_that_was_touched_is_refused(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut token = mint(&Claims::new(Scope::Admin), &KEY).unwrap().into_bytes();
        let at = at.index(token.len());
        prop_assume!(token[at] != to);
        token[at] = to;
        prop_assert!(verify(&token, &KEYS, now()).is_err());
    }
}
