//! Errors as clients see them.

use auth_token::{Forbidden, TokenError};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use wal_consensus::membership::MembershipConf;
use wal_consensus::refusal::Refusal;

use crate::backup::StoreError;
use crate::digest::DigestError;
use crate::timeline::TimelineError;
use crate::timelines::TimelinesError;
use crate::wal_storage::ReadError;

#[derive(Debug, Serialize)]
struct ErrorBody {
    code: &'static str,
    msg: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested: Option<Box<MembershipConf>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<Box<MembershipConf>>,
}

/// An error with its status.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, msg: impl Into<String>) -> ApiError {
        ApiError {
            status,
            body: ErrorBody { code, msg: msg.into(), requested: None, current: None },
        }
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

impl From<TimelinesError> for ApiError {
    fn from(error: TimelinesError) -> ApiError {
        use TimelinesError as E;
        let error = match error {
            E::Refused(refusal) => return refusal.into(),
            other => other,
        };
        let (status, code) = match &error {
            E::NotFound(_) => (StatusCode::NOT_FOUND, "timeline_not_found"),
            E::Deleted(_) => (StatusCode::GONE, "timeline_deleted"),
            E::Exists { .. } => (StatusCode::CONFLICT, "timeline_exists"),
            E::Excluded { .. } => (StatusCode::CONFLICT, "timeline_has_left"),
            E::StillMember { .. } => (StatusCode::FORBIDDEN, "still_a_member"),
            E::Pull(_) => (StatusCode::BAD_GATEWAY, "pull_failed"),
            E::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            E::Timeline(TimelineError::Stopping) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            E::Timeline(TimelineError::Quarantined(_)) | E::Broken(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "timeline_quarantined")
            }
            E::Refused(_) => (StatusCode::CONFLICT, "refused"),
            E::File(_) | E::ControlFile(_) | E::OtherSafekeeper { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal_error")
            }
        };
        ApiError::new(status, code, error.to_string())
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

/// A refused configuration answers 409 with both (L241).
impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let msg = refusal.to_string();
        let (status, code, confs) = match refusal {
            Refusal::NotMember { .. } => (StatusCode::FORBIDDEN, "not_a_member", None),
            Refusal::Membership(_) => (StatusCode::BAD_REQUEST, "bad_request", None),
            Refusal::ConfOlder { requested, current } => {
                (StatusCode::CONFLICT, "membership_is_newer", Some((requested, current)))
            }
            Refusal::ConfConflict { requested, current } => {
                (StatusCode::CONFLICT, "membership_differs", Some((requested, current)))
            }
            _ => (StatusCode::CONFLICT, "refused", None),
        };
        let (requested, current) = confs.unzip();
        ApiError { status, body: ErrorBody { code, msg, requested, current } }
    }
}

impl From<DigestError> for ApiError {
    fn from(error: DigestError) -> ApiError {
        use DigestError as E;
        let msg = error.to_string();
        let (status, code) = match error {
            E::Backwards { .. } => (StatusCode::BAD_REQUEST, "bad_request"),
            E::NotFlushed { .. } => (StatusCode::CONFLICT, "wal_not_flushed"),
            E::BeforeStart { .. } | E::Read(ReadError::Removed(_)) => {
                (StatusCode::GONE, "wal_removed")
            }
            E::Read(ReadError::File(_) | ReadError::Read { .. }) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal_error")
            }
            E::Timeline(error) => return error.into(),
        };
        ApiError::new(status, code, msg)
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

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> ApiError {
        ApiError::new(rejection.status(), "bad_request", rejection.body_text())
    }
}

impl From<prometheus::Error> for ApiError {
    fn from(error: prometheus::Error) -> ApiError {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "internal_error", error.to_string())
    }
}
