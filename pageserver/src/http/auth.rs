//! Who may call what.

use std::sync::Arc;

use auth_token::{Access, Verifier};
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

use super::Answer;

/// Lets a request through when its token allows management. A compute's does not: it needs pages only.
pub(super) async fn require_token(
    State(verifier): State<Option<Arc<Verifier>>>,
    request: Request,
    next: Next,
) -> Answer<Response> {
    if let Some(verifier) = verifier {
        let header = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        verifier.verify_bearer(header)?.scope.permit(Access::PageServer)?;
    }
    Ok(next.run(request).await)
}
