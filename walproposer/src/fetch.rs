//! WAL for one safekeeper that lacks it, from another that has it.

use std::sync::Arc;

use pg_types::{Lsn, Term};
use pg_wire::client::{Client, ClientError, ConnectParams};
use pg_wire::replication::WalSenderMessage;
use tokio::sync::{Semaphore, mpsc};
use wal_consensus::limits::APPEND_BYTES_MAX;
use wal_consensus::proposer::SkId;

use crate::limits::FETCH_BYTES_MAX;
use crate::link::Event;

/// What to fetch, for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FetchOrder {
    pub(crate) sk: SkId,
    /// Number of this fetch.
    pub(crate) fetch: u64,
    pub(crate) begin_lsn: Lsn,
    pub(crate) end_lsn: Lsn,
    /// The donor serves what is not yet known to be committed only while it is in this term.
    pub(crate) term: Term,
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("donor ended the stream at {0}")]
    Ended(Lsn),
    #[error("donor sent WAL at {got_lsn} where {wanted_lsn} was due")]
    Gap { got_lsn: Lsn, wanted_lsn: Lsn },
}

/// Fetches to the end or to the first failure; the driver hears of either.
pub(crate) async fn fetch(order: FetchOrder, donor: ConnectParams, events: mpsc::Sender<Event>) {
    let result = fetch_all(order, &donor, &events).await;
    if let Err(error) = &result {
        tracing::warn!(donor = %donor.endpoint(), %error, "fetching WAL for another safekeeper");
    }
    let (sk, fetch, failed) = (order.sk, order.fetch, result.is_err());
    drop(events.send(Event::FetchEnded { sk, fetch, failed }).await);
}

async fn fetch_all(
    order: FetchOrder,
    donor: &ConnectParams,
    events: &mpsc::Sender<Event>,
) -> Result<(), FetchError> {
    let FetchOrder { sk, fetch, begin_lsn, end_lsn, term } = order;
    let client = Client::connect(donor).await?;
    let command = format!("START_REPLICATION PHYSICAL {begin_lsn} (term='{term}')");
    let mut copy = client.copy_both(&command).await?;
    let room = Arc::new(Semaphore::new(FETCH_BYTES_MAX));
    let mut next_lsn = begin_lsn;
    while next_lsn < end_lsn {
        let message = copy.reader.recv_wal().await?.ok_or(FetchError::Ended(next_lsn))?;
        let WalSenderMessage::XLogData { wal_start, data, .. } = message else { continue };
        if wal_start != next_lsn {
            return Err(FetchError::Gap { got_lsn: wal_start, wanted_lsn: next_lsn });
        }
        let wanted = usize::try_from(end_lsn.saturating_sub(next_lsn)).unwrap_or(usize::MAX);
        let mut wal = data.slice(..data.len().min(wanted));
        while !wal.is_empty() {
            let part = wal.split_to(wal.len().min(APPEND_BYTES_MAX));
            let begin_lsn = next_lsn;
            next_lsn += part.len() as u64;
            let permits = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let Ok(permit) = Arc::clone(&room).acquire_many_owned(permits).await else {
                return Ok(());
            };
            let event = Event::Fetched { sk, fetch, begin_lsn, wal: part, permit };
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
