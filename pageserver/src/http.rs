//! The management API: JSON over HTTP, paths of the known system where it has them.
//!
//! | method and path | what |
//! |---|---|
//! | GET `/v1/status` | the server answers; its version |
//! | GET `/metrics` | measurements for Prometheus |
//! | GET, POST `/v1/tenant` | list; create `{"new_tenant_id"?}` |
//! | GET, DELETE `/v1/tenant/T` | detail; delete with all timelines |
//! | GET, POST `/v1/tenant/T/timeline` | list; create (see [`types::CreateTimeline`]) |
//! | GET, DELETE `/v1/tenant/T/timeline/L` | detail; delete |
//! | PUT `/v1/tenant/T/timeline/L/wal_source` | `{"safekeepers": ["host:port"]}` |
//! | PUT `/v1/tenant/T/timeline/L/checkpoint` | write what is in memory to disk, now |
//!
//! With keys of tokens configured, all but the first two want `Authorization: Bearer TOKEN` of scope `pageserverapi`
//! or `admin`.
//!
//! An error is `{"code": "...", "msg": "..."}`: a word that stays, and a sentence for people.

mod auth;
mod error;
pub mod types;

use std::sync::Arc;

use auth_token::Verifier;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, put};
use axum::{Json, Router};
use pg_types::{TenantId, TimelineId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::tenants::metadata::WalSource;
use crate::tenants::{NewTimeline, TenantError, Tenants};
use error::ApiError;
use types::{CreateTenant, CreateTimeline, ServerStatus, TenantInfo, TimelineInfo};

type Api = State<Arc<Tenants>>;
type Answer<T> = Result<T, ApiError>;
type TenantPath = Result<Path<TenantId>, PathRejection>;
type TimelinePath = Result<Path<(TenantId, TimelineId)>, PathRejection>;
type Body<T> = Result<Json<T>, JsonRejection>;

/// The routes; with a verifier most of them for holders of tokens only.
pub fn router(tenants: Arc<Tenants>, verifier: Option<Arc<Verifier>>) -> Router {
    // What comes before this layer needs a token, and no body is read before the token was looked at.
    let require_token = middleware::from_fn_with_state(verifier, auth::require_token);
    Router::new()
        .route("/v1/tenant", get(list_tenants).post(create_tenant))
        .route("/v1/tenant/{tenant}", get(tenant_detail).delete(delete_tenant))
        .route("/v1/tenant/{tenant}/timeline", get(list_timelines).post(create_timeline))
        .route(
            "/v1/tenant/{tenant}/timeline/{timeline}",
            get(timeline_detail).delete(delete_timeline),
        )
        .route("/v1/tenant/{tenant}/timeline/{timeline}/wal_source", put(set_wal_source))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/checkpoint", put(checkpoint))
        .route_layer(require_token)
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "no_such_path", "no such path") })
        .method_not_allowed_fallback(|| async {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            ApiError::new(status, "method_not_allowed", "this path has other methods")
        })
        .with_state(tenants)
}

/// Serves the API until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await
}

async fn status() -> Json<ServerStatus> {
    Json(ServerStatus { state: "running", version: env!("CARGO_PKG_VERSION") })
}

async fn metrics() -> Answer<impl IntoResponse> {
    let text =
        crate::metrics::render().map_err(|error| TenantError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

async fn list_tenants(State(tenants): Api) -> Json<Vec<TenantInfo>> {
    Json(tenants.list().iter().map(|tenant| TenantInfo::of(tenant)).collect())
}

async fn create_tenant(
    State(tenants): Api,
    body: Body<CreateTenant>,
) -> Answer<(StatusCode, Json<TenantInfo>)> {
    let id = match body?.0.new_tenant_id {
        Some(id) => id,
        None => types::random_tenant_id()?,
    };
    let tenant = tenants.create_tenant(id).await?;
    Ok((StatusCode::CREATED, Json(TenantInfo::of(&tenant))))
}

async fn tenant_detail(State(tenants): Api, path: TenantPath) -> Answer<Json<TenantInfo>> {
    Ok(Json(TenantInfo::of(&*tenants.tenant(path?.0)?)))
}

async fn delete_tenant(State(tenants): Api, path: TenantPath) -> Answer<Json<()>> {
    tenants.delete_tenant(path?.0).await?;
    Ok(Json(()))
}

async fn list_timelines(State(tenants): Api, path: TenantPath) -> Answer<Json<Vec<TimelineInfo>>> {
    let tenant = tenants.tenant(path?.0)?;
    let timelines = tenant.list().into_iter();
    Ok(Json(timelines.map(|(id, slot)| TimelineInfo::of(tenant.id, id, &slot)).collect()))
}

async fn create_timeline(
    State(tenants): Api,
    path: TenantPath,
    body: Body<CreateTimeline>,
) -> Answer<(StatusCode, Json<TimelineInfo>)> {
    let (timeline, created) = tenants.create_timeline(path?.0, NewTimeline::from(body?.0)).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(TimelineInfo::active(&timeline))))
}

async fn timeline_detail(State(tenants): Api, path: TimelinePath) -> Answer<Json<TimelineInfo>> {
    let Path((tenant_id, timeline_id)) = path?;
    let tenant = tenants.tenant(tenant_id)?;
    let slot =
        tenant.slot(timeline_id).ok_or(TenantError::TimelineNotFound { tenant_id, timeline_id })?;
    Ok(Json(TimelineInfo::of(tenant_id, timeline_id, &slot)))
}

async fn delete_timeline(State(tenants): Api, path: TimelinePath) -> Answer<Json<()>> {
    let Path((tenant, timeline)) = path?;
    tenants.delete_timeline(tenant, timeline).await?;
    Ok(Json(()))
}

async fn set_wal_source(
    State(tenants): Api,
    path: TimelinePath,
    body: Body<WalSource>,
) -> Answer<Json<WalSource>> {
    let Path((tenant, timeline)) = path?;
    let source = body?.0;
    tenants.set_wal_source(tenant, timeline, source.clone()).await?;
    Ok(Json(source))
}

async fn checkpoint(State(tenants): Api, path: TimelinePath) -> Answer<Json<TimelineInfo>> {
    let Path((tenant, timeline)) = path?;
    let timeline = tenants.timeline(tenant, timeline)?;
    let flushed = Arc::clone(&timeline);
    crate::tenants::run_blocking(move || Ok(flushed.flush()?)).await?;
    Ok(Json(TimelineInfo::active(&timeline)))
}
