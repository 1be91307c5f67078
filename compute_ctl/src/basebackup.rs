//! Fetching a basebackup from the page server and unpacking it while it arrives.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes};
use pg_types::Lsn;
use pg_wire::client::{Client, ClientError, ConnectParams, Endpoint};
use tokio::sync::mpsc::{Receiver, channel};

use crate::config::{Config, SUPERUSER};
use crate::pgdata::{self, PgdataError};

/// Chunks that may wait for the unpacking thread.
const CHUNKS_MAX: usize = 32;
/// The page server may have to wait for WAL before it answers.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a basebackup could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BasebackupError {
    /// The configured address is none.
    #[error("the page server's address is wrong: {0}")]
    Address(String),
    /// The page server cannot be reached, refused, or broke off.
    #[error("the page server gave no basebackup of timeline {timeline} at {lsn}")]
    Fetch {
        /// Which timeline.
        timeline: pg_types::TimelineId,
        /// At which position.
        lsn: Lsn,
        /// Cause.
        #[source]
        source: ClientError,
    },
    /// It cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] PgdataError),
    /// The unpacking thread panicked.
    #[error("unpacking the basebackup failed")]
    Thread,
}

/// Fetches the basebackup at `lsn` and unpacks it into the empty directory `pgdata`.
pub async fn fetch(config: &Config, lsn: Lsn, pgdata: &Path) -> Result<(), BasebackupError> {
    let endpoint: Endpoint = config.pageserver.parse().map_err(BasebackupError::Address)?;
    let failed = |source| BasebackupError::Fetch { timeline: config.timeline_id, lsn, source };
    let mut params = ConnectParams::new(endpoint, SUPERUSER)
        .param("application_name", &config.endpoint_id)
        .read_timeout(Some(READ_TIMEOUT));
    if let Some(token) = &config.auth_token {
        params = params.password(token);
    }
    let mut client = Client::connect(&params).await.map_err(failed)?;
    let query = format!("basebackup {} {} {lsn}", config.tenant_id, config.timeline_id);
    let mut stream = client.copy_out(&query).await.map_err(failed)?;

    let (chunks, receiver) = channel(CHUNKS_MAX);
    let target = pgdata.to_owned();
    let unpack = tokio::task::spawn_blocking(move || {
        pgdata::unpack(ChunkReader { chunks: receiver, current: Bytes::new() }, &target)
    });
    let mut outcome = Ok(());
    loop {
        match stream.next().await {
            Ok(Some(chunk)) => {
                // A closed channel means that unpacking failed; its result says how.
                if chunks.send(Ok(chunk)).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                // Ends the archive early, so that unpacking cannot succeed.
                let broken = io::Error::new(io::ErrorKind::UnexpectedEof, "the stream broke off");
                let _ = chunks.send(Err(broken)).await;
                outcome = Err(failed(error));
                break;
            }
        }
    }
    drop(chunks);
    let unpacked = unpack.await.map_err(|_| BasebackupError::Thread)?;
    outcome?;
    Ok(unpacked?)
}

/// Reads chunks that another thread receives.
struct ChunkReader {
    chunks: Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let length = target.len().min(self.current.len());
        let (head, _) = target.split_at_mut(length);
        self.current.copy_to_slice(head);
        Ok(length)
    }
}
