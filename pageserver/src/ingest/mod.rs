#![doc = include_str!("README.md")]

mod batch;
mod blocks;
mod checkpoint;
mod database;
mod error;
pub mod files;
pub mod maps;
mod multixact;
mod origins;
mod relations;
mod sizes;
mod slru;
mod storage;
#[cfg(test)]
mod tests;
mod xact;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use layer_store::RecordPosition;
use pg_types::key::KeyKind;
use pg_types::{Key, Lsn, Oid};
use wal_decoder::{DecodedRecord, Effect, RawRecord, interpret};

pub use batch::PRESENT;
pub use error::IngestError;
pub use storage::{PageReader, Storage};

use batch::Batch;
use checkpoint::Counters;
use sizes::SizeCache;

/// When a batch is worth putting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngestLimits {
    /// Records of a batch.
    pub batch_records: usize,
    /// Bytes of values of a batch.
    pub batch_bytes: usize,
}

impl Default for IngestLimits {
    /// Enough that putting costs little beside decoding, and little enough that a reader waits milliseconds.
    fn default() -> IngestLimits {
        IngestLimits { batch_records: 2000, batch_bytes: 4 * 1024 * 1024 }
    }
}

/// Applies records, in order, to the store of one timeline. There must be one of these for a timeline at most.
pub struct Ingest<S> {
    storage: S,
    pages: Option<Arc<dyn PageReader>>,
    limits: IngestLimits,
    batch: Batch,
    /// Position at the end of the open batch.
    position: RecordPosition,
    sizes: SizeCache,
    counters: Counters,
    /// Prepared transactions, by full transaction id.
    prepared: BTreeSet<u64>,
    /// Whether database directories have an entry, the open batch included.
    databases: HashMap<(Oid, Oid), bool>,
    /// Page of `pg_multixact/offsets` that a multixact's creation made ahead of its own record
    /// (`pre_initialized_offsets_page` in `multixact.c`).
    pre_initialized_offsets_page: Option<u32>,
    record: DecodedRecord,
    effects: Vec<Effect>,
    stopped: bool,
}

impl<S: Storage> Ingest<S> {
    /// Goes on where the store stands; its contents must have been imported.
    pub fn new(
        storage: S,
        pages: Option<Arc<dyn PageReader>>,
        limits: IngestLimits,
    ) -> Result<Ingest<S>, IngestError> {
        let position = storage.position();
        let lsn = position.last_record_lsn;
        let counters = Counters::load(&storage, lsn)?;
        let prepared = storage
            .scan_keys(Key::two_phase_range(), lsn)?
            .into_iter()
            .filter_map(|key| match key.kind() {
                Some(KeyKind::TwoPhase(full_xid)) => Some(full_xid),
                _ => None,
            })
            .collect();
        Ok(Ingest {
            storage,
            pages,
            limits,
            batch: Batch::new(),
            position,
            sizes: SizeCache::new(),
            counters,
            prepared,
            databases: HashMap::new(),
            pre_initialized_offsets_page: None,
            record: DecodedRecord::default(),
            effects: Vec::new(),
            stopped: false,
        })
    }

    /// End of the last record that was ingested; readable when [`Ingest::commit`] returned.
    pub fn position(&self) -> RecordPosition {
        self.position
    }

    /// The store.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Adds a record to the open batch, and puts the batch when it is big enough. Records must come in order;
    /// one that ends at or before the current position was ingested before, and is skipped.
    pub fn ingest(&mut self, raw: &RawRecord) -> Result<(), IngestError> {
        if self.stopped {
            return Err(IngestError::Stopped);
        }
        if raw.next_lsn <= self.position.last_record_lsn {
            return Ok(());
        }
        let result = self.apply(raw);
        self.stopped = result.is_err();
        result?;
        if self.batch.records >= self.limits.batch_records
            || self.batch.writes.value_bytes() >= self.limits.batch_bytes
        {
            self.commit()?;
        }
        Ok(())
    }

    /// Puts the open batch: all its records become readable. Nothing to do when it is empty.
    pub fn commit(&mut self) -> Result<RecordPosition, IngestError> {
        if self.stopped {
            return Err(IngestError::Stopped);
        }
        if self.batch.records > 0 {
            self.counters.write(&mut self.batch);
            let put = self.storage.put(self.batch.take(), self.position);
            self.stopped = put.is_err();
            put?;
            self.sizes.shrink();
        }
        Ok(self.position)
    }

    fn apply(&mut self, raw: &RawRecord) -> Result<(), IngestError> {
        let mut record = std::mem::take(&mut self.record);
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        let result = self.apply_decoded(raw, &mut record, &mut effects);
        self.record = record;
        self.effects = effects;
        result
    }

    fn apply_decoded(
        &mut self,
        raw: &RawRecord,
        record: &mut DecodedRecord,
        effects: &mut Vec<Effect>,
    ) -> Result<(), IngestError> {
        let understood = understand(raw, record, effects);
        if understood.is_err() || effects.iter().any(reads_the_store) {
            self.commit()?;
        }
        understood?;
        self.counters.see_xid(record.xid, record.next_lsn);
        for effect in effects.drain(..) {
            self.apply_effect(record, effect)?;
        }
        self.apply_blocks(record)?;
        self.batch.records += 1;
        self.position =
            RecordPosition { last_record_lsn: raw.next_lsn, prev_record_lsn: raw.start_lsn };
        Ok(())
    }

    fn apply_effect(&mut self, record: &DecodedRecord, effect: Effect) -> Result<(), IngestError> {
        let lsn = record.next_lsn;
        match effect {
            Effect::NextOid(oid) => self.counters.change(lsn, |c| c.next_oid = oid),
            Effect::Checkpoint { shutdown, checkpoint } => {
                self.counters.see_checkpoint(&checkpoint, shutdown, lsn, self.prepared.first());
            }
            Effect::WalLevel(level) => self.counters.change(lsn, |c| c.wal_level = level),
            Effect::FullPageWrites(on) => self.counters.change(lsn, |c| c.full_page_writes = on),
            Effect::RunningXacts { next_xid, oldest_running_xid } => {
                self.counters.see_running_xacts(next_xid, oldest_running_xid, lsn);
            }
            Effect::TransactionEnd(end) => self.end_transaction(&end, record)?,
            Effect::Prepare { xid, state } => self.prepare_transaction(xid, &state, record)?,
            Effect::RelationCreate(rel) => self.create_relation(rel, lsn)?,
            Effect::RelationTruncate(truncate) => self.truncate_relation(&truncate, lsn)?,
            Effect::RelationExtend { rel, nblocks } => self.extend_relation(rel, nblocks, lsn)?,
            Effect::SlruZeroPage { kind, pageno } => self.zero_slru_page(kind, pageno, lsn)?,
            Effect::ClogTruncate { pageno, oldest_xid, oldest_xid_db } => {
                self.truncate_clog(pageno, oldest_xid, oldest_xid_db, lsn)?;
            }
            Effect::MultiXactCreate { mid, moff, members } => {
                self.create_multixact(mid, moff, &members, lsn)?;
            }
            Effect::MultiXactTruncate(truncate) => self.truncate_multixacts(&truncate, lsn)?,
            Effect::DatabaseCopy { source, target } => {
                self.copy_database(source, target, record)?
            }
            Effect::DatabaseCreate(directory) => self.ensure_database(directory, lsn)?,
            Effect::DatabaseDrop(directory) => self.drop_database(directory, lsn)?,
            Effect::RelMapUpdate { directory, file } => {
                self.ensure_database(directory, lsn)?;
                self.batch.image(Key::rel_map(directory.spc_oid, directory.db_oid), lsn, &file);
            }
            Effect::VmClear(clear) => self.clear_vm(&clear, lsn)?,
            Effect::OriginSet { id, remote_lsn, force } => {
                self.set_origin(id, remote_lsn, force, lsn)?;
            }
            Effect::OriginDrop { id } => self.batch.remove(Key::repl_origin(id), lsn),
            Effect::AuxFile { path, content } => self.put_aux_file(&path, &content, lsn)?,
        }
        Ok(())
    }

    /// LSN at which the store can be read; everything before the current record once the batch was put.
    fn stored_lsn(&self) -> Lsn {
        self.storage.position().last_record_lsn
    }
}

/// Takes a record apart, without changing anything else.
fn understand(
    raw: &RawRecord,
    record: &mut DecodedRecord,
    effects: &mut Vec<Effect>,
) -> Result<(), IngestError> {
    record.decode_into(raw).map_err(|source| IngestError::Record { lsn: raw.start_lsn, source })?;
    interpret(record, effects)?;
    blocks::check(record)
}

/// Effects that look into the store at more than sizes: the open batch must be in it first.
fn reads_the_store(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::DatabaseCopy { .. }
            | Effect::DatabaseDrop(_)
            | Effect::AuxFile { .. }
            | Effect::ClogTruncate { .. }
            | Effect::MultiXactTruncate(_)
            | Effect::OriginSet { .. }
    ) || matches!(effect, Effect::RelationTruncate(truncate) if truncate.fsm)
}
