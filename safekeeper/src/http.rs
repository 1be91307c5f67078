//! The HTTP API: JSON in and out. An error is `{"code": "...", "msg": "..."}`: a word that stays, and a sentence for
//! people. With keys of tokens configured, all but the first two want `Authorization: Bearer TOKEN` ([`auth`]).
//!
//! | method and path | what |
//! |---|---|
//! | GET `/v1/status` | `{"id"}` |
//! | GET `/metrics` | Prometheus |
//! | GET `/v1/utilization` | `{"timeline_count"}`: how much there is on this node, for whoever places timelines |
//! | POST `/v1/tenant/timeline` | create; 201, or 200 when it exists so already |
//! | GET `/v1/tenant/timeline` | list |
//! | GET `/v1/tenant/{tenant_id}/timeline/{timeline_id}` | positions, terms, readers |
//! | DELETE `/v1/tenant/{tenant_id}/timeline/{timeline_id}` | delete for ever, here and in the object store; `{"dir_existed"}` |
//! | PUT `/v1/tenant/{tenant_id}/timeline/{timeline_id}/membership` | switch the configuration; 409 when older |
//! | PUT `/v1/tenant/{tenant_id}/timeline/{timeline_id}/exclude` | leave: remove it here; `{"dir_existed"}`, 403 for a member |
//! | POST `/v1/tenant/{tenant_id}/timeline/{timeline_id}/term_bump` | promise a term |
//! | GET `/v1/tenant/{tenant_id}/timeline/{timeline_id}/snapshot` | a copy as tar stream ([`crate::copy`]) |
//! | POST `/v1/pull_timeline` | copy from another safekeeper, or switch the configuration of what is here |
//! | POST `/v1/tenant/{tenant_id}/timeline/{timeline_id}/checkpoint` | save late positions, remove WAL, now |
//! | GET `/v1/tenant/{tenant_id}/timeline/{timeline_id}/digest?from_lsn=0/0&until_lsn=0/0` | `{"sha256"}` of WAL; 409 when it is not all flushed, 410 when not all here any more |

mod auth;
mod error;
mod membership;
mod types;

use std::sync::Arc;

use auth_token::{OwnToken, Verifier};
use axum::Json;
use axum::Router;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use pg_types::{NodeId, TenantId, TimelineId};
use serde_json::json;

use crate::backup::WalStore;
use crate::digest;
use crate::metrics::Metrics;
use crate::timeline::TenantTimelineId;
use crate::timelines::{Timelines, TimelinesError};
use error::ApiError;
use types::{CreateRequest, DigestRange, TimelineStatus};

/// Longest request body: the largest request is a membership configuration.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// What the handlers need.
#[derive(Debug, Clone)]
pub struct Api {
    /// Number of this safekeeper.
    pub id: NodeId,
    /// The timelines.
    pub timelines: Arc<Timelines>,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// Where WAL is backed up.
    pub store: Option<WalStore>,
    /// Who is let in; `None`: anybody.
    pub verifier: Option<Arc<Verifier>>,
    /// What is shown to other safekeepers.
    pub own_token: OwnToken,
}

type ApiResult<T> = Result<T, ApiError>;
type TimelinePath = Result<Path<(TenantId, TimelineId)>, PathRejection>;

/// All routes.
pub fn router(api: Api) -> Router {
    let timeline = "/v1/tenant/{tenant_id}/timeline/{timeline_id}";
    // What comes before this layer needs a token, and no body is read before the token was looked at.
    let require_token = middleware::from_fn_with_state(api.clone(), auth::require_token);
    Router::new()
        .route("/v1/utilization", get(utilization))
        .route("/v1/tenant/timeline", post(create).get(list))
        .route(timeline, get(detail).delete(delete))
        .route(&format!("{timeline}/membership"), put(membership::switch))
        .route(&format!("{timeline}/exclude"), put(membership::exclude))
        .route(&format!("{timeline}/term_bump"), post(membership::bump_term))
        .route(&format!("{timeline}/snapshot"), get(membership::snapshot))
        .route("/v1/pull_timeline", post(membership::pull))
        .route(&format!("{timeline}/checkpoint"), post(checkpoint))
        .route(&format!("{timeline}/digest"), get(wal_digest))
        .route_layer(require_token)
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no_such_path", "no such path"))
        .method_not_allowed_fallback(async || {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            ApiError::new(status, "method_not_allowed", "the path exists, but not with this method")
        })
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

fn id(path: TimelinePath) -> ApiResult<TenantTimelineId> {
    let Path((tenant_id, timeline_id)) = path?;
    Ok(TenantTimelineId { tenant_id, timeline_id })
}

/// Runs a change of the timelines, to its end also when its client goes away: its files would be half made while the next
/// change believes that nobody works on them.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, TimelinesError>> + Send + 'static,
) -> ApiResult<T> {
    match tokio::spawn(change).await {
        Ok(result) => Ok(result?),
        Err(error) => {
            let (status, msg) = (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
            Err(ApiError::new(status, "internal_error", msg))
        }
    }
}

async fn status(State(api): State<Api>) -> impl IntoResponse {
    Json(json!({ "id": api.id }))
}

/// L272.
async fn utilization(State(api): State<Api>) -> impl IntoResponse {
    Json(json!({ "timeline_count": api.timelines.list().len() }))
}

async fn metrics(State(api): State<Api>) -> ApiResult<String> {
    api.metrics.lsn.reset();
    api.metrics.term.reset();
    api.metrics.quarantined.reset();
    for (id, timeline) in api.timelines.list() {
        let (tenant, timeline_id) = (id.tenant_id.to_string(), id.timeline_id.to_string());
        let labels = [tenant.as_str(), timeline_id.as_str()];
        api.metrics.quarantined.with_label_values(&labels).set(i64::from(timeline.is_err()));
        let Ok(timeline) = timeline else { continue };
        let progress = timeline.progress();
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        api.metrics.term.with_label_values(&labels).set(gauge(progress.term.0));
        let ladder = progress.ladder;
        for (position, lsn) in [
            ("commit", ladder.commit_lsn),
            ("flush", ladder.flush_lsn),
            ("write", ladder.write_lsn),
            ("peer_horizon", ladder.truncate_lsn),
            ("remote_consistent", timeline.feedback().remote_consistent_lsn()),
            ("backup", timeline.backup_lsn()),
        ] {
            let labels = [labels[0], labels[1], position];
            api.metrics.lsn.with_label_values(&labels).set(gauge(lsn.0));
        }
    }
    Ok(api.metrics.render()?)
}

async fn create(
    State(api): State<Api>,
    body: Result<Json<CreateRequest>, JsonRejection>,
) -> ApiResult<impl IntoResponse> {
    let Json(request) = body?;
    let timelines = Arc::clone(&api.timelines);
    let create = async move { timelines.create(request.into()).await };
    let (timeline, new) = to_the_end(create).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(TimelineStatus::of(&timeline).await?)))
}

async fn list(State(api): State<Api>) -> impl IntoResponse {
    let timelines = api.timelines.list();
    let entry = |(id, timeline): (TenantTimelineId, Result<_, crate::timeline::TimelineError>)| {
        json!({
            "tenant_id": id.tenant_id,
            "timeline_id": id.timeline_id,
            "quarantined": timeline.err().map(|error| error.to_string()),
        })
    };
    Json(timelines.into_iter().map(entry).collect::<Vec<_>>())
}

async fn detail(State(api): State<Api>, path: TimelinePath) -> ApiResult<Json<TimelineStatus>> {
    let timeline = api.timelines.get(id(path)?)?;
    Ok(Json(TimelineStatus::of(&timeline).await?))
}

/// The objects of the timeline go, too (`[BK5]`); when that fails, the same request again goes on with it.
async fn delete(State(api): State<Api>, path: TimelinePath) -> ApiResult<impl IntoResponse> {
    let id = id(path)?;
    let timelines = Arc::clone(&api.timelines);
    let dir_existed = to_the_end(async move { timelines.delete(id).await }).await?;
    if let Some(store) = &api.store {
        store.delete_timeline(id).await?;
    }
    Ok(Json(json!({ "dir_existed": dir_existed })))
}

async fn checkpoint(State(api): State<Api>, path: TimelinePath) -> ApiResult<StatusCode> {
    api.timelines.get(id(path)?)?.maintain(api.store.is_some()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn wal_digest(
    State(api): State<Api>,
    path: TimelinePath,
    range: Result<Query<DigestRange>, QueryRejection>,
) -> ApiResult<impl IntoResponse> {
    let id = id(path)?;
    let Query(range) = range?;
    let timeline = api.timelines.get(id)?;
    let sha256 = digest::sha256(&timeline, range.from_lsn, range.until_lsn).await?;
    Ok(Json(json!({ "sha256": sha256 })))
}
