//! Who may call what.

use auth_token::Access;
use axum::extract::{RawPathParams, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;

use super::{Api, ApiResult};

/// Lets a request through when its token allows it.
pub(super) async fn require_token(
    State(api): State<Api>,
    path: RawPathParams,
    request: Request,
    next: Next,
) -> ApiResult<Response> {
    if let Some(verifier) = &api.verifier {
        let header = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        verifier.verify_bearer(header)?.scope.permit(needed(request.method(), &path))?;
    }
    Ok(next.run(request).await)
}

/// Computes hold tokens of their tenant: with one they may look at its timelines, as they may read its WAL, but neither
/// delete them nor have them copied.
fn needed(method: &Method, path: &RawPathParams) -> Access {
    let tenant = path.iter().find(|(name, _)| *name == "tenant_id");
    match tenant.and_then(|(_, id)| id.parse().ok()) {
        Some(tenant) if method == Method::GET => Access::Wal(tenant),
        _ => Access::Safekeeper,
    }
}
