//! Errors as clients see them.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use wal_consensus::refusal::Refusal;

use crate::backup::StoreError;
use crate::timeline::TimelineError;
use crate::timelines::TimelinesError;

#[derive(Debug, Serialize)]
struct ErrorBody {
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
        (self.status, Json(self.body)).into_response()
    }
}

impl From<TimelinesError> for ApiError {
    fn from(error: TimelinesError) -> ApiError {
        use TimelinesError as E;
        let (status, code) = match &error {
            E::NotFound(_) => (StatusCode::NOT_FOUND, "timeline_not_found"),
            E::Deleted(_) => (StatusCode::GONE, "timeline_deleted"),
            E::Exists { .. } => (StatusCode::CONFLICT, "timeline_exists"),
            E::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            E::Timeline(TimelineError::Stopping) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            E::Timeline(TimelineError::Quarantined(_)) | E::Broken(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "timeline_quarantined")
            }
            E::File(_) | E::ControlFile(_) | E::OtherSafekeeper { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal_error")
            }
        };
        ApiError::new(status, code, error.to_string())
    }
}

impl From<TimelineError> for ApiError {
    fn from(error: TimelineError) -> ApiError {
        TimelinesError::from(error).into()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        ApiError::new(StatusCode::BAD_GATEWAY, "object_store_failed", error.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let (status, code) = match &refusal {
            Refusal::NotMember { .. } => (StatusCode::FORBIDDEN, "not_a_member"),
            Refusal::Membership(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            _ => (StatusCode::CONFLICT, "refused"),
        };
        ApiError::new(status, code, refusal.to_string())
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

impl From<prometheus::Error> for ApiError {
    fn from(error: prometheus::Error) -> ApiError {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "internal_error", error.to_string())
    }
}
