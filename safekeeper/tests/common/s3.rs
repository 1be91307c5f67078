//! An S3 server in the test's process, which can be told to misbehave.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;

use crate::common::{S3_KEY, S3_SECRET};

/// Its only bucket.
pub const BUCKET: &str = "wal";

/// A server; it ends with the test's runtime.
pub struct S3Server {
    dir: tempfile::TempDir,
    endpoint: String,
    /// Objects are made, but nobody hears of it.
    pub silent: Arc<AtomicBool>,
    /// Every request gets status 503.
    pub failing: Arc<AtomicBool>,
}

impl S3Server {
    pub async fn start() -> S3Server {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(dir.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(S3_KEY, S3_SECRET));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (silent, failing) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let flags = (Arc::clone(&silent), Arc::clone(&failing));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (service, (silent, failing)) = (service.clone(), flags.clone());
                let serve = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let service = service.clone();
                    let (silent, failing) = (Arc::clone(&silent), Arc::clone(&failing));
                    async move {
                        if failing.load(Ordering::Acquire) {
                            let mut refusal = Response::new(s3s::Body::empty());
                            *refusal.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                            return Ok::<_, Infallible>(refusal);
                        }
                        let put = request.method() == Method::PUT;
                        let response = service.call(request.map(s3s::Body::from)).await.unwrap();
                        if put && silent.load(Ordering::Acquire) {
                            std::future::pending::<()>().await;
                        }
                        Ok(response)
                    }
                });
                tokio::spawn(async move {
                    let connection = Builder::new(TokioExecutor::new());
                    // A client that goes away is no news.
                    drop(connection.serve_connection(TokioIo::new(stream), serve).await);
                });
            }
        });
        S3Server { dir, endpoint, silent, failing }
    }

    /// What a safekeeper must be told.
    pub fn settings(&self) -> String {
        format!(
            "[remote_storage]\nbucket_name = '{BUCKET}'\nprefix_in_bucket = 'some/place'\nendpoint = '{}'\n",
            self.endpoint
        )
    }

    /// Folder of the objects.
    pub fn objects(&self) -> PathBuf {
        Path::join(self.dir.path(), BUCKET).join("some/place")
    }
}
