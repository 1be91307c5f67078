//! The object store: what is done to it, with time limits.
//!
//! All requests run on the runtime that opened the store: connections of an HTTP client live on the runtime that made
//! them, and those of WAL readers have runtimes of their own that end with them.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::Deserialize;
use tokio::runtime::Handle;

use super::names;
use crate::durable::{self, FileError};
use crate::timeline::TenantTimelineId;

/// A segment must get through a slow line.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Everything else is small.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Where WAL is backed up: `[remote_storage]` in `safekeeper.toml`. Either `local_path` or `bucket_name`. Credentials of a
/// bucket come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and their relatives) or the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteStorage {
    /// A folder, of a network file system for instance; made when missing.
    #[serde(default)]
    pub local_path: Option<PathBuf>,
    /// An S3 bucket.
    #[serde(default)]
    pub bucket_name: Option<String>,
    /// Its region; `us-east-1` when not given, which servers other than Amazon's accept.
    #[serde(default)]
    pub bucket_region: Option<String>,
    /// What all keys begin with.
    #[serde(default)]
    pub prefix_in_bucket: Option<String>,
    /// Address of a server other than Amazon's, such as `http://127.0.0.1:9000`.
    #[serde(default)]
    pub endpoint: Option<String>,
}

impl RemoteStorage {
    /// Why these settings cannot work, if so.
    pub fn problem(&self) -> Option<&'static str> {
        match (&self.local_path, &self.bucket_name) {
            (None, None) => Some("needs local_path or bucket_name"),
            (Some(_), Some(_)) => Some("has both local_path and bucket_name"),
            (Some(_), None) if self.bucket_region.is_some() || self.endpoint.is_some() => {
                Some("has settings of a bucket beside local_path")
            }
            _ if Path::parse(self.prefix()).is_err() => {
                Some("has a prefix_in_bucket with an empty or relative part")
            }
            _ => None,
        }
    }

    fn prefix(&self) -> &str {
        self.prefix_in_bucket.as_deref().unwrap_or_default()
    }
}

/// Why the object store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("no object {0}")]
    NotFound(String),
    /// The store refused, could not be reached, or its answer made no sense.
    #[error("object store: {0}")]
    Store(#[source] object_store::Error),
    /// It did not answer in time.
    #[error("object store did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// This program was built without what the settings need.
    #[error("this program was built without support for S3")]
    NoS3,
    /// The process stops.
    #[error("the process is being shut down")]
    Stopping,
}

impl From<object_store::Error> for StoreError {
    fn from(error: object_store::Error) -> StoreError {
        match error {
            object_store::Error::NotFound { path, .. } => StoreError::NotFound(path),
            error => StoreError::Store(error),
        }
    }
}

/// An object store, or the part of it that belongs to us.
#[derive(Debug, Clone)]
pub struct WalStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Handle,
}

impl WalStore {
    /// Opens it; nothing is asked of it yet. Requests will run on `runtime`.
    pub fn open(settings: &RemoteStorage, runtime: Handle) -> Result<WalStore, StoreError> {
        let prefix =
            Path::parse(settings.prefix()).map_err(|error| StoreError::Store(error.into()))?;
        let store: Arc<dyn ObjectStore> = match &settings.local_path {
            Some(dir) => {
                durable::create_dir_all(dir)?;
                // WAL is deleted here when it is there: it must be durable there, too.
                Arc::new(LocalFileSystem::new_with_prefix(dir)?.with_fsync(true))
            }
            None => bucket(settings)?,
        };
        Ok(WalStore { store, prefix, runtime })
    }

    async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let work = self.runtime.spawn(tokio::time::timeout(limit, work));
        match work.await {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(_)) => Err(StoreError::Timeout(limit)),
            Err(error) if error.is_cancelled() => Err(StoreError::Stopping),
            Err(error) => Err(StoreError::Store(object_store::Error::JoinError { source: error })),
        }
    }

    fn key(&self, parts: &[String]) -> Path {
        parts.iter().fold(self.prefix.clone(), |path, part| path.join(part.as_str()))
    }

    /// Where a whole segment is.
    pub fn segment_key(&self, id: TenantTimelineId, segno: u64) -> Path {
        self.key(&names::segment(id, segno))
    }

    /// Where the unfinished segments of a timeline are.
    pub fn partial_dir(&self, id: TenantTimelineId) -> Path {
        self.key(&names::partial_dir(id))
    }

    /// Bytes of an object; `None` when there is no such object.
    pub async fn size(&self, key: &Path) -> Result<Option<u64>, StoreError> {
        let (store, key) = (Arc::clone(&self.store), key.clone());
        match self.run(REQUEST_TIMEOUT, async move { store.head(&key).await }).await {
            Ok(object) => Ok(Some(object.size)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an object, whole or not at all (L250), in place of one of the same key.
    pub async fn put(&self, key: &Path, data: Bytes) -> Result<(), StoreError> {
        let (store, key) = (Arc::clone(&self.store), key.clone());
        let work = async move { store.put(&key, PutPayload::from_bytes(data)).await };
        self.run(UPLOAD_TIMEOUT, work).await.map(drop)
    }

    /// Reads a part of an object; fewer bytes when it ends before.
    pub async fn read(&self, key: &Path, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        let (store, key) = (Arc::clone(&self.store), key.clone());
        self.run(REQUEST_TIMEOUT, async move { store.get_range(&key, range).await }).await
    }

    /// Keys of all objects below a prefix.
    pub async fn list(&self, below: &Path) -> Result<Vec<Path>, StoreError> {
        let (store, below) = (Arc::clone(&self.store), below.clone());
        let work = async move {
            let objects = store.list(Some(&below)).map_ok(|object| object.location);
            objects.try_collect().await
        };
        self.run(UPLOAD_TIMEOUT, work).await
    }

    /// Deletes objects; those that are not there are no error.
    pub async fn delete(&self, keys: Vec<Path>) -> Result<(), StoreError> {
        let store = Arc::clone(&self.store);
        let work = async move {
            let keys = futures_util::stream::iter(keys.into_iter().map(Ok)).boxed();
            let mut deleted = store.delete_stream(keys);
            while let Some(result) = deleted.next().await {
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        self.run(UPLOAD_TIMEOUT, work).await
    }

    /// Deletes everything of a timeline that was itself deleted for ever. Doing it again is fine.
    pub async fn delete_timeline(&self, id: TenantTimelineId) -> Result<(), StoreError> {
        let keys = self.list(&self.key(&names::timeline(id))).await?;
        let count = keys.len();
        self.delete(keys).await?;
        tracing::info!(ttid = %id, "deleted {count} objects of WAL");
        Ok(())
    }
}

#[cfg(feature = "s3")]
fn bucket(settings: &RemoteStorage) -> Result<Arc<dyn ObjectStore>, StoreError> {
    use object_store::aws::AmazonS3Builder;
    use object_store::{ClientOptions, RetryConfig};

    let client = ClientOptions::new()
        .with_timeout(UPLOAD_TIMEOUT)
        .with_connect_timeout(Duration::from_secs(5));
    // Whoever asks has its own pauses, and its own reasons to give up.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(settings.bucket_name.clone().unwrap_or_default())
        .with_client_options(client)
        .with_retry(retry);
    match &settings.bucket_region {
        Some(region) => builder = builder.with_region(region),
        None if std::env::var_os("AWS_REGION").is_none() => {
            builder = builder.with_region("us-east-1");
        }
        None => {}
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    Ok(Arc::new(builder.build()?))
}

#[cfg(not(feature = "s3"))]
fn bucket(_settings: &RemoteStorage) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Err(StoreError::NoS3)
}
