#![doc = include_str!("README.md")]

mod error;
mod files;
mod plan;
mod relmap;
mod shutdown;
mod two_phase;

use std::path::Path;

use layer_store::{ImageImport, Shared, Store};
use pg_types::{BlockNumber, Key, Lsn};
use wal_decoder::CheckPoint;

pub use error::ImportError;

use crate::control_file::ControlFile;
use plan::{Contents, ForkFiles};

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportSummary {
    /// LSN of the contents: where the first record after the shutdown checkpoint starts.
    pub start_lsn: Lsn,
    /// Start of the shutdown checkpoint's record.
    pub prev_record_lsn: Lsn,
    /// `system_identifier` of the cluster.
    pub system_identifier: u64,
    /// Relation forks.
    pub forks: u64,
    /// Blocks of relations and SLRUs.
    pub blocks: u64,
}

/// Imports the data directory of a PostgreSQL 17 that `initdb` made or that was shut down cleanly into a new store
/// in `store_dir`. Blocks the thread until the store is durable. After an error `store_dir` may hold an empty store.
pub fn import_data_directory(
    data_dir: &Path,
    store_dir: &Path,
    shared: &Shared,
) -> Result<(Store, ImportSummary), ImportError> {
    files::check_version(data_dir)?;
    let control_path = data_dir.join("global/pg_control");
    let refused = |source| ImportError::ControlFile { path: control_path.clone(), source };
    let control = ControlFile::decode(&files::read(&control_path)?).map_err(refused)?;
    control.check_compatible().map_err(refused)?;
    control.check_shut_down().map_err(refused)?;
    let start_lsn = shutdown::end_of_wal(data_dir, &control)?;
    let contents = plan::list(data_dir)?;
    let store = Store::create(store_dir, start_lsn, None, shared)?;
    let mut target = Target { import: store.import()?, blocks: 0 };
    target.databases(&contents)?;
    target.slrus(&contents)?;
    let oldest_prepared = target.two_phase(&contents)?;
    target.control(control.clone(), start_lsn, oldest_prepared)?;
    target.relation_directory(&contents)?;
    let summary = ImportSummary {
        start_lsn,
        prev_record_lsn: control.checkpoint_lsn(),
        system_identifier: control.system_identifier(),
        forks: contents.databases.iter().map(|database| database.forks.len() as u64).sum(),
        blocks: target.blocks,
    };
    target.import.finish(summary.prev_record_lsn)?;
    Ok((store, summary))
}

/// Where values go, in key order.
struct Target {
    import: ImageImport,
    blocks: u64,
}

impl Target {
    /// Everything below key byte 00: databases, relation maps, blocks and sizes.
    fn databases(&mut self, contents: &Contents) -> Result<(), ImportError> {
        for database in &contents.databases {
            let (spc_oid, db_oid) = (database.spc_oid, database.db_oid);
            if let Some(path) = &database.relmap {
                self.import.add(Key::rel_map(spc_oid, db_oid), &relmap::read(path)?)?;
            }
            self.import.add(Key::database(spc_oid, db_oid), crate::ingest::PRESENT)?;
            for fork in &database.forks {
                self.fork(fork)?;
            }
        }
        Ok(())
    }

    fn fork(&mut self, fork: &ForkFiles) -> Result<(), ImportError> {
        let mut blkno: BlockNumber = 0;
        for segment in &fork.segments {
            files::for_each_block(segment, |block| {
                self.import.add(Key::rel_block(fork.rel, blkno), block)?;
                blkno = blkno
                    .checked_add(1)
                    .ok_or_else(|| ImportError::damaged(segment, "too many blocks"))?;
                Ok(())
            })?;
        }
        self.blocks += u64::from(blkno);
        Ok(self.import.add(Key::rel_size(fork.rel), &blkno.to_le_bytes())?)
    }

    fn slrus(&mut self, contents: &Contents) -> Result<(), ImportError> {
        for (kind, segno, path) in &contents.slru_segments {
            let mut blkno = 0;
            files::for_each_block(path, |block| {
                self.import.add(Key::slru_block(*kind, *segno, blkno), block)?;
                blkno += 1;
                Ok(())
            })?;
            self.blocks += u64::from(blkno);
            self.import.add(Key::slru_segment_size(*kind, *segno), &blkno.to_le_bytes())?;
        }
        Ok(())
    }

    /// Gives the oldest prepared transaction.
    fn two_phase(&mut self, contents: &Contents) -> Result<Option<u64>, ImportError> {
        for (xid, path) in &contents.two_phase {
            self.import.add(Key::two_phase(*xid), &two_phase::read(path)?)?;
        }
        Ok(contents.two_phase.iter().map(|(xid, _)| *xid).min())
    }

    fn control(
        &mut self,
        mut control: ControlFile,
        start_lsn: Lsn,
        oldest_prepared: Option<u64>,
    ) -> Result<(), ImportError> {
        let next = control.checkpoint().next_xid;
        let oldest = oldest_prepared.unwrap_or(next).min(next);
        let [.., a, b, c, d] = oldest.to_be_bytes();
        let checkpoint = CheckPoint {
            // Marks a clean shutdown at this LSN, as ingest of a shutdown checkpoint does.
            redo: start_lsn,
            oldest_active_xid: u32::from_be_bytes([a, b, c, d]),
            ..*control.checkpoint()
        };
        control.clear_data_checksums();
        self.import.add(Key::CONTROL_FILE, &control.encode())?;
        Ok(self.import.add(Key::CHECKPOINT, &checkpoint.encode())?)
    }

    fn relation_directory(&mut self, contents: &Contents) -> Result<(), ImportError> {
        for fork in contents.databases.iter().flat_map(|database| &database.forks) {
            self.import.add(Key::rel_dir_entry(fork.rel), crate::ingest::PRESENT)?;
        }
        Ok(())
    }
}
