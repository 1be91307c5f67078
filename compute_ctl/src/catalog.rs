//! What a fresh cluster gets once: the extension `neon`.

use std::time::Duration;

use tokio_postgres::{Config as PgConfig, Error, NoTls};

use crate::config::{Config, SUPERUSER};

/// Connecting to a server that said it is ready.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates the extension where it is missing. Writes nothing when it is there, so a start leaves no WAL (L323).
/// A commit waits for the quorum, so this also shows that the walproposer works.
pub async fn prepare(config: &Config) -> Result<(), Error> {
    let (client, connection) = PgConfig::new()
        .host_path(config.socket_dir())
        .port(config.port)
        .user(SUPERUSER)
        .dbname("postgres")
        .application_name("compute_ctl")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect(NoTls)
        .await?;
    let connection = tokio::spawn(connection);
    let present = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'neon')",
            &[],
        )
        .await?
        .try_get::<_, bool>(0)?;
    if !present {
        client.batch_execute("CREATE EXTENSION IF NOT EXISTS neon").await?;
    }
    drop(client);
    // It ends by itself once its client is gone.
    let _ = connection.await;
    Ok(())
}
