//! Errors as clients see them.

use auth_token::{Forbidden, TokenError};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::tenants::TenantError;

/// Body of an error response.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody {
    code: &'static str,
    msg: String,
}

/// An error with its status.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, msg: impl Into<String>) -> ApiError {
        ApiError { status, body: ErrorBody { code, msg: msg.into() } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!("HTTP request failed: {}", self.body.msg);
        }
        let challenge =
            (self.status == StatusCode::UNAUTHORIZED).then_some([(WWW_AUTHENTICATE, "Bearer")]);
        (self.status, challenge, Json(self.body)).into_response()
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", error.to_string())
    }
}

impl From<Forbidden> for ApiError {
    fn from(error: Forbidden) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "forbidden", error.to_string())
    }
}

impl From<TenantError> for ApiError {
    fn from(error: TenantError) -> ApiError {
        use TenantError as E;
        let (status, code) = match &error {
            E::TenantNotFound(_) => (StatusCode::NOT_FOUND, "tenant_not_found"),
            E::TimelineNotFound { .. } => (StatusCode::NOT_FOUND, "timeline_not_found"),
            E::TenantExists(_) => (StatusCode::CONFLICT, "tenant_exists"),
            E::TimelineExists { .. } => (StatusCode::CONFLICT, "timeline_exists"),
            E::TenantDeleting(_) => (StatusCode::CONFLICT, "tenant_deleting"),
            E::TimelineBusy { .. } => (StatusCode::CONFLICT, "timeline_busy"),
            E::HasChildren { .. } => (StatusCode::PRECONDITION_FAILED, "timeline_has_branches"),
            E::BadBranchPoint { .. } => (StatusCode::NOT_ACCEPTABLE, "bad_branch_point"),
            E::BranchPointNotReached { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "branch_point_not_reached")
            }
            E::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            E::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            E::TimelineBroken { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "timeline_broken"),
            E::Initdb(_) => (StatusCode::INTERNAL_SERVER_ERROR, "initdb_failed"),
            E::Redo(_)
            | E::Layout(_)
            | E::Metadata(_)
            | E::Store(_)
            | E::Import(_)
            | E::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        ApiError::new(status, code, with_causes(&error))
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> ApiError {
        ApiError::new(rejection.status(), "bad_request", rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> ApiError {
        ApiError::new(rejection.status(), "bad_request", rejection.body_text())
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent errors repeat their source's text.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
