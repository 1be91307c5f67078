//! Who keeps a timeline: switching, leaving, promising, copying (L239–L242).

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use pg_types::Term;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::io::{ReaderStream, SyncIoBridge};
use wal_consensus::membership::MembershipConf;

use super::error::ApiError;
use super::types::{MembershipResponse, PullRequest, TermBumpRequest};
use super::{Api, ApiResult, TimelinePath, id, to_the_end};
use crate::copy;
use crate::timeline::{Timeline, TimelineError};

/// Bytes of a copy that may be under way between its reader and the connection.
const COPY_BUFFER: usize = 512 * 1024;

/// Where a timeline stands before something is done to it.
struct Before {
    conf: MembershipConf,
    term: Term,
}

impl Before {
    async fn of(timeline: &Timeline) -> Result<Before, TimelineError> {
        let state = timeline.state().await?;
        Ok(Before { conf: state.mconf, term: state.term })
    }

    async fn and_now(
        self,
        timeline: &Timeline,
        safekeeper_host: Option<String>,
    ) -> Result<Json<MembershipResponse>, TimelineError> {
        let now = timeline.copy_state().await?;
        let state = now.control.acceptor_state;
        Ok(Json(MembershipResponse {
            previous_conf: self.conf,
            current_conf: state.mconf,
            previous_term: self.term,
            term: state.term,
            last_log_term: now.last_log_term,
            flush_lsn: now.flush_lsn,
            safekeeper_host,
        }))
    }
}

/// Idempotent, hence PUT (L240).
pub(super) async fn switch(
    State(api): State<Api>,
    path: TimelinePath,
    body: Result<Json<MembershipConf>, JsonRejection>,
) -> ApiResult<Json<MembershipResponse>> {
    let Json(requested) = body?;
    let timeline = api.timelines.get(id(path)?)?;
    let before = Before::of(&timeline).await?;
    let out = timeline.with_core(|core| core.switch_membership(&requested)).await??;
    timeline.dispatch(out);
    Ok(before.and_now(&timeline, None).await?)
}

pub(super) async fn exclude(
    State(api): State<Api>,
    path: TimelinePath,
    body: Result<Json<MembershipConf>, JsonRejection>,
) -> ApiResult<Json<Value>> {
    let Json(mconf) = body?;
    let (timelines, id) = (api.timelines, id(path)?);
    let dir_existed = to_the_end(async move { timelines.exclude(id, mconf).await }).await?;
    Ok(Json(json!({ "dir_existed": dir_existed })))
}

pub(super) async fn bump_term(
    State(api): State<Api>,
    path: TimelinePath,
    body: Result<Json<TermBumpRequest>, JsonRejection>,
) -> ApiResult<Json<MembershipResponse>> {
    let Json(request) = body?;
    let timeline = api.timelines.get(id(path)?)?;
    let before = Before::of(&timeline).await?;
    let next = Term(before.term.0.saturating_add(1));
    let term = request.term.unwrap_or(next);
    if term == Term(u64::MAX) {
        // Nobody could be elected after it.
        let msg = "the last term of all cannot be promised";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_request", msg));
    }
    let out = timeline.with_core(|core| core.raise_term(term)).await?;
    timeline.dispatch(out);
    Ok(before.and_now(&timeline, None).await?)
}

pub(super) async fn pull(
    State(api): State<Api>,
    body: Result<Json<PullRequest>, JsonRejection>,
) -> ApiResult<Json<MembershipResponse>> {
    let Json(request) = body?;
    let (timelines, request) = (api.timelines, request.with_token(api.own_token));
    let pull = async move { timelines.pull(request).await };
    let (timeline, donor) = to_the_end(pull).await?;
    Ok(Before::of(&timeline).await?.and_now(&timeline, donor).await?)
}

/// The stream lacks its last entry when something goes wrong on the way, which the receiver notices.
pub(super) async fn snapshot(
    State(api): State<Api>,
    path: TimelinePath,
) -> ApiResult<impl IntoResponse> {
    let timeline = api.timelines.get(id(path)?)?;
    let working = timeline.enter()?;
    let (reader, writer) = tokio::io::duplex(COPY_BUFFER);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let _working = working;
        let writer = SyncIoBridge::new_with_handle(writer, runtime.clone());
        if let Err(error) = copy::send(&timeline, &runtime, writer) {
            tracing::warn!(ttid = %timeline.id(), "copy broken off: {error}");
        }
    });
    let body = Body::from_stream(ReaderStream::with_capacity(reader, COPY_BUFFER));
    Ok(([(CONTENT_TYPE, "application/x-tar")], body))
}
