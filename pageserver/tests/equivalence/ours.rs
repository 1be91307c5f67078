//! Our side: a store that took the initial data directory and all the WAL, and pages rebuilt from it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use layer_store::{Options, Shared, Store};
use pageserver::import::import_data_directory;
use pageserver::ingest::{Ingest, IngestLimits, PageReader};
use pg_types::page::{Page, ZERO_PAGE};
use pg_types::xlog::{segment_file_name, segment_number};
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, RelTag, TenantId};
use wal_decoder::{DecodedRecord, WalStream};
use walredo_sidecar::{
    NeonWalRecord, PostgresRedoManager, WalRedoConfig, WalRedoEnv, WalRedoManager,
};

use super::mutate::Damaged;
use super::server;

/// Start and end of a record.
pub type Span = (Lsn, Lsn);

pub struct Ours {
    pub store: Store,
    pub pages: Arc<Pages>,
    pub start_lsn: Lsn,
    _shared: Shared,
}

/// Rebuilds pages, as a timeline does.
pub struct Pages {
    store: Store,
    redo: PostgresRedoManager,
}

impl Ours {
    /// Imports a data directory that was shut down. `work_dir` is one that the system user may enter.
    pub fn import(data: &Path, work_dir: &Path) -> Ours {
        // Small, so that pages come from layers and memtables alike.
        let options = Options { memtable_flush_bytes: 16 << 20, ..Options::default() };
        let shared = Shared::new(options);
        let (store, summary) =
            import_data_directory(data, &work_dir.join("store"), &shared).unwrap();
        let config = WalRedoConfig {
            installs: BTreeMap::from([(17, server::install("NEON_PG_INSTALL"))]),
            user: pg_launch::ensure_system_user().unwrap(),
            work_dir: work_dir.to_owned(),
            wal_redo_timeout: Duration::from_secs(120),
            pool_size: NonZeroUsize::MIN,
        };
        let tenant_dir = work_dir.join("tenant");
        std::fs::create_dir(&tenant_dir).unwrap();
        let env = Arc::new(WalRedoEnv::new(config));
        let redo = PostgresRedoManager::new(env, TenantId([1; 16]), tenant_dir);
        let pages = Arc::new(Pages { store: store.clone(), redo });
        Ours { store, pages, start_lsn: summary.start_lsn, _shared: shared }
    }

    /// Ingests the WAL of a stopped server, up to the shutdown checkpoint's record at `last`. Returns every
    /// record's place.
    pub fn ingest(&self, wal_dir: &Path, last: Lsn) -> Vec<Span> {
        let pages: Arc<dyn PageReader> = self.pages.clone();
        let limits = IngestLimits { batch_records: 500, ..IngestLimits::default() };
        let mut ingest = Ingest::new(self.store.clone(), Some(pages), limits).unwrap();
        let mut stream = WalStream::new(self.start_lsn);
        let mut spans = Vec::new();
        let mut kinds: BTreeMap<(u8, u8), usize> = BTreeMap::new();
        let mut damaged = Damaged::default();
        while spans.last().is_none_or(|(start, _)| *start < last) {
            let segno = segment_number(stream.feed_lsn());
            let segment = std::fs::read(wal_dir.join(segment_file_name(1, segno))).unwrap();
            let skip = usize::try_from(pg_types::xlog::segment_offset(stream.feed_lsn())).unwrap();
            stream.feed(Bytes::from(segment).slice(skip..));
            while spans.last().is_none_or(|(start, _)| *start < last) {
                let Some(raw) = stream.poll().unwrap() else { break };
                let record = DecodedRecord::decode(&raw).unwrap();
                *kinds.entry((record.rmid, record.info & 0x70)).or_default() += 1;
                ingest.ingest(&raw).unwrap();
                damaged.try_copies_of(&raw);
                spans.push((raw.start_lsn, raw.next_lsn));
            }
            self.store.flush().unwrap();
        }
        ingest.commit().unwrap();
        assert_eq!(spans.last().unwrap().0, last, "the shutdown checkpoint ends the WAL");
        println!("{damaged:?}");
        assert!(damaged.decoded > 0 && damaged.refused > 0);
        println!("{} records of {} kinds: {kinds:?}", spans.len(), kinds.len());
        spans
    }

    pub fn nblocks(&self, rel: RelTag, lsn: Lsn) -> Option<u32> {
        self.store.get_image(Key::rel_dir_entry(rel), lsn).unwrap()?;
        let (_, size) = self.store.get_image(Key::rel_size(rel), lsn).unwrap().unwrap();
        Some(u32::from_le_bytes(*size.first_chunk().unwrap()))
    }
}

impl Pages {
    pub fn page(&self, key: Key, lsn: Lsn) -> Page {
        let page = self.page_at(key, lsn).unwrap_or_else(|error| panic!("{key} at {lsn}: {error}"));
        page.map_or(ZERO_PAGE, |page| *page.first_chunk::<BLCKSZ>().unwrap())
    }
}

impl PageReader for Pages {
    fn page_at(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, String> {
        let found = self.store.get(key, lsn).map_err(|error| error.to_string())?;
        if found.is_missing() {
            return Ok(None);
        }
        let is_map = key.to_rel_block().is_ok_and(|(rel, _)| rel.fork == ForkNumber::Vm);
        let base = match found.base.filter(|(_, page)| !page.is_empty()) {
            // The maps are extended by zeros without WAL.
            None if !found.first_will_init && is_map => {
                Some((Lsn(0), Bytes::from_static(&ZERO_PAGE)))
            }
            None if !found.first_will_init => return Err("nothing to start from".to_owned()),
            base => base,
        };
        if found.deltas.is_empty() {
            return Ok(base.map(|(_, page)| page));
        }
        let records = found
            .deltas
            .iter()
            .map(|(lsn, bytes)| Ok((*lsn, NeonWalRecord::decode(bytes)?)))
            .collect::<Result<Vec<_>, walredo_sidecar::RecordDecodeError>>()
            .map_err(|error| error.to_string())?;
        let page = self.redo.request_redo(key, lsn, base, records, 17);
        page.map(Some).map_err(|error| error.to_string())
    }
}
