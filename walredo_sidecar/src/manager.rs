//! The interface callers use, and the real implementation of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use pg_launch::{PgInstall, SystemUser};
use pg_types::page::{self, Page};
use pg_types::{BLCKSZ, Key, Lsn, TenantId};
use tracing::{debug, error};
use walredo_protocol::{BufferTag, MAX_RECORD_SIZE};

use crate::apply::apply_record;
use crate::batch::{Batch, batches};
use crate::metrics::{
    WAL_REDO_BYTES_HISTOGRAM, WAL_REDO_RECORD_COUNTER, WAL_REDO_RECORDS_HISTOGRAM, WAL_REDO_TIME,
    WAL_REDO_WAIT_TIME,
};
use crate::pool::{Pool, Slot};
use crate::process::RedoProcess;
use crate::template::Template;
use crate::{NeonWalRecord, WalRedoError};

/// A request waits this many time-outs for a process before it gives up: more callers than that in front of it
/// would each have to run into theirs.
const ACQUIRE_TIMEOUTS: u32 = 10;

/// Rebuilds pages (L042). Calls block; async callers use a blocking thread.
pub trait WalRedoManager: Send + Sync {
    /// The content of `key` at `lsn`, from `base_img` (with its LSN) and the `records` behind it, in order.
    ///
    /// The result has 8192 bytes, or 8200 for a transaction status page that a commit was applied to (L072).
    /// `pg_version` is the major version whose redo routines are used.
    fn request_redo(
        &self,
        key: Key,
        lsn: Lsn,
        base_img: Option<(Lsn, Bytes)>,
        records: Vec<(Lsn, NeonWalRecord)>,
        pg_version: u32,
    ) -> Result<Bytes, WalRedoError>;
}

/// Configuration that all managers of a page server share.
#[derive(Debug, Clone)]
pub struct WalRedoConfig {
    /// Installation of each major version.
    pub installs: BTreeMap<u32, PgInstall>,
    /// Who redo processes run as, when the page server runs as root.
    pub user: Option<SystemUser>,
    /// Where the template data directories are made; that user must be able to enter it.
    pub work_dir: PathBuf,
    /// How long a request waits for a sign of life of its process (L056, L100).
    pub wal_redo_timeout: Duration,
    /// Processes that one manager may run at the same time, for each version (L046).
    pub pool_size: NonZeroUsize,
}

/// What all managers of a page server share: configuration, and one template data directory for each version.
#[derive(Debug)]
pub struct WalRedoEnv {
    config: WalRedoConfig,
    templates: Mutex<BTreeMap<u32, Arc<Template>>>,
}

impl WalRedoEnv {
    /// Nothing is started or written until the first request needs Postgres.
    pub fn new(config: WalRedoConfig) -> WalRedoEnv {
        WalRedoEnv { config, templates: Mutex::new(BTreeMap::new()) }
    }

    fn install(&self, pg_version: u32) -> Result<&PgInstall, WalRedoError> {
        self.config.installs.get(&pg_version).ok_or_else(|| {
            error!("no installation of PostgreSQL {pg_version} for WAL redo");
            WalRedoError::InvalidRequest
        })
    }

    /// Offers a cluster that `initdb` has just made. If there is no template of the version yet, it is made from that, so
    /// that the first redo does not wait for an `initdb` of its own.
    ///
    /// # Errors
    /// Of the file system; nothing is lost by it but time.
    pub fn offer_cluster(&self, pg_version: u32, cluster: &Path) -> Result<(), WalRedoError> {
        let install = self.install(pg_version)?;
        let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(vacant) = templates.entry(pg_version) {
            let work_dir = &self.config.work_dir;
            let template = Template::open_or_copy(install, pg_version, work_dir, cluster)?;
            vacant.insert(Arc::new(template));
        }
        Ok(())
    }

    fn template(&self, pg_version: u32) -> Result<Arc<Template>, WalRedoError> {
        let install = self.install(pg_version)?;
        let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = templates.get(&pg_version) {
            return Ok(Arc::clone(template));
        }
        let WalRedoConfig { work_dir, user, .. } = &self.config;
        let template = Template::open_or_create(install, pg_version, work_dir, user.as_ref())?;
        let template = Arc::new(template);
        templates.insert(pg_version, Arc::clone(&template));
        Ok(template)
    }
}

/// The redo processes of one tenant (L044). Any number of managers may exist for a tenant.
#[derive(Debug)]
pub struct PostgresRedoManager {
    env: Arc<WalRedoEnv>,
    tenant_id: TenantId,
    tenant_dir: PathBuf,
    pools: BTreeMap<u32, Pool<RedoProcess>>,
}

/// Numbers for logs and metrics.
struct Size {
    records: usize,
    bytes: usize,
}

impl PostgresRedoManager {
    /// A manager whose processes keep their data directories in `tenant_dir`, which exists. Starts nothing.
    pub fn new(env: Arc<WalRedoEnv>, tenant_id: TenantId, tenant_dir: PathBuf) -> Self {
        let capacity = env.config.pool_size.get();
        let versions = env.config.installs.keys();
        let pools = versions.map(|version| (*version, Pool::new(capacity))).collect();
        PostgresRedoManager { env, tenant_id, tenant_dir, pools }
    }

    /// The tenant.
    pub fn tenant_id(&self) -> TenantId {
        self.tenant_id
    }

    /// Kills processes that nobody has used for `age`.
    pub fn quiesce(&self, age: Duration) {
        self.pools.values().for_each(|pool| pool.drop_idle(age));
    }

    /// Kills all processes and makes every later request fail with [`WalRedoError::InvalidState`].
    pub fn shutdown(&self) {
        self.pools.values().for_each(Pool::close);
    }

    /// Whether a process exists at the moment.
    pub fn has_process(&self) -> bool {
        self.pools.values().any(|pool| !pool.is_empty())
    }

    /// Applies a run of Postgres records (L053–L065).
    fn apply_postgres(
        &self,
        key: Key,
        lsn: Lsn,
        base_img: Option<Bytes>,
        records: &[(Lsn, NeonWalRecord)],
        pg_version: u32,
    ) -> Result<Bytes, WalRedoError> {
        let started = Instant::now();
        let (rel, blkno) = key.to_rel_block().map_err(|wrong| {
            error!(%key, %lsn, "{wrong}");
            WalRedoError::InvalidRecord
        })?;
        let tag = BufferTag { rel, blkno };
        let records = postgres_records(key, lsn, records)?;
        let base = base_img.as_deref().map(|image| base_page(key, lsn, image)).transpose()?;
        let size = Size {
            records: records.len(),
            bytes: records.iter().map(|(_, record)| record.len()).sum(),
        };

        let config = &self.env.config;
        self.env.install(pg_version)?;
        let pool = self.pools.get(&pg_version).ok_or(WalRedoError::InvalidRequest)?;
        let slot = pool.acquire(config.wal_redo_timeout.saturating_mul(ACQUIRE_TIMEOUTS));
        let Some(mut slot) = slot else { return Err(WalRedoError::InvalidState) };
        WAL_REDO_WAIT_TIME.observe(started.elapsed().as_secs_f64());
        WAL_REDO_RECORDS_HISTOGRAM.observe(as_f64(size.records));
        WAL_REDO_BYTES_HISTOGRAM.observe(as_f64(size.bytes));

        let held = Instant::now();
        let result = self.run_in(&mut slot, tag, base, &records, pg_version);
        let took = held.elapsed();
        WAL_REDO_TIME.observe(took.as_secs_f64());
        debug!(
            "postgres applied {} WAL records ({} bytes) in {} us to reconstruct page image at LSN {lsn}",
            size.records,
            size.bytes,
            took.as_micros()
        );
        if let Err(error) = &result {
            error!(
                tenant = %self.tenant_id, %tag,
                "error applying {} WAL records ({} bytes) to reconstruct page image at LSN {lsn}: {error}",
                size.records, size.bytes
            );
            // Killed here, and never used again (L064, design.md invariant 6).
            drop(slot.take());
        }
        result
    }

    fn run_in(
        &self,
        slot: &mut Slot<'_, RedoProcess>,
        tag: BufferTag,
        base: Option<&Page>,
        records: &[(Lsn, &Bytes)],
        pg_version: u32,
    ) -> Result<Bytes, WalRedoError> {
        let process = match slot.get() {
            Some(process) => process,
            None => {
                let _ = slot.set(self.launch(pg_version)?);
                slot.get().ok_or(WalRedoError::InvalidState)?
            }
        };
        WAL_REDO_RECORD_COUNTER.inc_by(records.len() as u64);
        let timeout = self.env.config.wal_redo_timeout;
        let image = process.apply_wal_records(tag, base, records, timeout)?;
        check_answer(base, records, &image)?;
        Ok(image)
    }

    fn launch(&self, pg_version: u32) -> Result<RedoProcess, WalRedoError> {
        let template = self.env.template(pg_version)?;
        let install = self.env.install(pg_version)?;
        let user = self.env.config.user.as_ref();
        Ok(RedoProcess::launch(install, &template, &self.tenant_dir, user)?)
    }
}

impl WalRedoManager for PostgresRedoManager {
    fn request_redo(
        &self,
        key: Key,
        lsn: Lsn,
        base_img: Option<(Lsn, Bytes)>,
        records: Vec<(Lsn, NeonWalRecord)>,
        pg_version: u32,
    ) -> Result<Bytes, WalRedoError> {
        if records.is_empty() {
            error!(%key, %lsn, "invalid WAL redo request with no records");
            return Err(WalRedoError::InvalidRequest);
        }
        let mut image = base_img.map(|(_, image)| image);
        for batch in batches(&records) {
            image = Some(match batch {
                Batch::Postgres(run) => self.apply_postgres(key, lsn, image, run, pg_version)?,
                Batch::Neon(run) => apply_neon(key, lsn, image, run)?,
            });
        }
        image.ok_or(WalRedoError::InvalidRequest)
    }
}

/// Applies a run of records in Rust (L063, L066).
fn apply_neon(
    key: Key,
    lsn: Lsn,
    base_img: Option<Bytes>,
    records: &[(Lsn, NeonWalRecord)],
) -> Result<Bytes, WalRedoError> {
    let started = Instant::now();
    let Some(base_img) = base_img else {
        error!(%key, %lsn, "invalid neon WAL redo request with no base image");
        return Err(WalRedoError::InvalidRequest);
    };
    let mut page = BytesMut::from(base_img);
    for (record_lsn, record) in records {
        apply_record(key, &mut page, record, *record_lsn)?;
    }
    let took = started.elapsed();
    WAL_REDO_TIME.observe(took.as_secs_f64());
    debug!(
        "neon applied {} WAL records in {} us to reconstruct page image at LSN {lsn}",
        records.len(),
        took.as_micros()
    );
    Ok(page.freeze())
}

/// The raw records of a Postgres batch (L068).
fn postgres_records(
    key: Key,
    lsn: Lsn,
    records: &[(Lsn, NeonWalRecord)],
) -> Result<Vec<(Lsn, &Bytes)>, WalRedoError> {
    let raw = records.iter().map(|(record_lsn, record)| match record {
        NeonWalRecord::Postgres { rec, .. } if rec.len() <= MAX_RECORD_SIZE => {
            Ok((*record_lsn, rec))
        }
        NeonWalRecord::Postgres { rec, .. } => {
            error!(%key, %lsn, "WAL record of {} bytes is too long for WAL redo", rec.len());
            Err(WalRedoError::InvalidRecord)
        }
        _ => Err(WalRedoError::IoError(std::io::Error::other(
            "tried to pass neon wal record to postgres WAL redo",
        ))),
    });
    raw.collect()
}

/// The base image as a page; any other length is refused (L093).
fn base_page(key: Key, lsn: Lsn, image: &[u8]) -> Result<&Page, WalRedoError> {
    image.try_into().map_err(|_| {
        error!(%key, %lsn, "base image has {} bytes instead of {BLCKSZ}", image.len());
        WalRedoError::InvalidRequest
    })
}

/// An answer carries no header (L095), so this is what can be told about whose it is: a page's LSN never goes
/// back, and never past the last record.
fn check_answer(
    base: Option<&Page>,
    records: &[(Lsn, &Bytes)],
    answer: &[u8],
) -> std::io::Result<()> {
    let Ok(answer) = <&Page>::try_from(answer) else {
        return Err(std::io::Error::other("WAL redo answered with something that is no page"));
    };
    let (found, before) = (page::lsn(answer), base.map_or(Lsn::INVALID, page::lsn));
    let last = records.last().map_or(Lsn::INVALID, |(lsn, _)| *lsn);
    let sane = page::is_new(answer) || (before..=last.max(before)).contains(&found);
    if sane {
        return Ok(());
    }
    Err(std::io::Error::other(format!(
        "WAL redo answered with a page of LSN {found}, which is not between {before} and {last}"
    )))
}

#[expect(clippy::cast_precision_loss, reason = "a metric; 52 bits are plenty")]
fn as_f64(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::page::{ZERO_PAGE, set_lsn};

    const LSN: Lsn = Lsn(0x100);

    #[test]
    fn a_record_applied_in_rust_is_refused_on_the_way_to_postgres() {
        let records = [(LSN, NeonWalRecord::ClogSetAborted { xids: vec![1] })];
        let error = postgres_records(Key::MIN, LSN, &records).unwrap_err();
        assert_eq!(error.to_string(), "tried to pass neon wal record to postgres WAL redo");
    }

    #[test]
    fn answers_are_told_apart_by_their_lsn() {
        let page = |lsn| {
            let mut page = ZERO_PAGE;
            page[15] = 0x20;
            set_lsn(&mut page, Lsn(lsn));
            page
        };
        let rec = Bytes::new();
        let records = [(Lsn(0x200), &rec), (Lsn(0x300), &rec)];
        let check = |base: Option<&Page>, lsn| check_answer(base, &records, &page(lsn)).is_ok();
        assert!(check(None, 0x300) && check(None, 0x200));
        assert!(!check(None, 0x301));
        assert!(check(Some(&page(0x180)), 0x180));
        assert!(!check(Some(&page(0x180)), 0x17F));
        assert!(check(Some(&page(0x400)), 0x400), "a base newer than the records stays");
        assert!(check_answer(None, &records, &ZERO_PAGE).is_ok());
        assert!(check_answer(None, &records, &[0; 100]).is_err());
    }
}
