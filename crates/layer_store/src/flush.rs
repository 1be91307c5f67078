//! Memtable to layer file to version.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use pg_types::Lsn;

use crate::error::StoreError;
use crate::layer::{Layer, LayerWriter};
use crate::memtable::Memtable;
use crate::store::{Contents, Flusher, Frozen, Store};
use crate::value::LayerKind;
use crate::version::manifest::{self, PublishError};
use crate::version::{Version, VersionEdit};

impl Store {
    /// Makes everything that was put before durable, and gives the new `disk_consistent_lsn`. Puts and reads go on
    /// meanwhile. One flush runs at a time; a second caller waits.
    ///
    /// After an error nothing is lost but the work: what could not be written stays in memory and the next call
    /// writes it to a new file. Only when the manifest's rename or the sync of the directory fails is it unknown
    /// which of two states a crash would leave; then the store refuses every further flush
    /// ([`StoreError::Poisoned`]) until it is opened anew.
    pub fn flush(&self) -> Result<Lsn, StoreError> {
        let mut flusher = self.lock_flusher();
        self.flush_locked(&mut flusher)
    }

    pub(crate) fn lock_flusher(&self) -> MutexGuard<'_, Flusher> {
        self.inner.flusher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn flush_locked(&self, flusher: &mut Flusher) -> Result<Lsn, StoreError> {
        self.check_poison(flusher)?;
        self.freeze();
        while let Some(frozen) = self.contents().frozen.first().cloned() {
            let layer = self.write_memtable(&frozen.memtable)?;
            let edit = VersionEdit {
                add: layer.into_iter().map(|layer| (0, Arc::new(layer))).collect(),
                consistent: frozen.position,
            };
            self.publish(flusher, edit, |contents, version| Contents {
                open: Arc::clone(&contents.open),
                frozen: contents.frozen.get(1..).unwrap_or_default().to_vec(),
                version,
            })?;
        }
        Ok(self.disk_consistent_lsn())
    }

    /// Puts an empty memtable in the place of the open one, unless nothing happened since the last time.
    fn freeze(&self) {
        let _writer = self.lock_writer();
        let position = self.position();
        let contents = self.contents();
        let newest = contents.frozen.last().map_or(contents.version.consistent, |f| f.position);
        if contents.open.is_empty() && position == newest {
            return;
        }
        let open = Arc::new(Memtable::new(self.inner.shared.budget_share()));
        self.change_contents(|contents| {
            let memtable = Arc::clone(&contents.open);
            let mut frozen = contents.frozen.clone();
            frozen.push(Frozen { memtable, position });
            Contents { open, frozen, version: Arc::clone(&contents.version) }
        });
    }

    /// Writes a memtable to a layer file; none for an empty one.
    fn write_memtable(&self, memtable: &Memtable) -> Result<Option<Layer>, StoreError> {
        if memtable.is_empty() {
            return Ok(None);
        }
        let inner = &self.inner;
        let mut writer =
            LayerWriter::create(&inner.disk, &inner.dir, self.new_sequence(), LayerKind::Delta)?;
        if let Err(error) =
            memtable.visit(|key, lsn, kind, value| writer.add(key, lsn, kind, value))
        {
            writer.abandon();
            return Err(error.into());
        }
        Ok(Some(self.finish_layer(writer)?))
    }

    /// Makes a written layer durable, directory entry and all, and opens it.
    pub(crate) fn finish_layer(&self, writer: LayerWriter) -> Result<Layer, StoreError> {
        let meta = writer.finish()?;
        self.inner.disk.sync_dir(&self.inner.dir)?;
        Ok(Layer::open(&self.inner.dir, meta, self.inner.shared.cache())?)
    }

    /// Publishes a change of the version: first the manifest, then what readers see.
    pub(crate) fn publish(
        &self,
        flusher: &mut Flusher,
        edit: VersionEdit,
        change: impl FnOnce(&Contents, Arc<Version>) -> Contents,
    ) -> Result<(), StoreError> {
        self.check_poison(flusher)?;
        let version = self
            .contents()
            .version
            .apply(edit)
            .map_err(|rule| StoreError::BrokenRule { path: self.inner.dir.clone(), rule })?;
        let manifest = self.manifest(&version);
        manifest::publish(&self.inner.disk, &self.inner.dir, &manifest).map_err(|error| {
            let (PublishError::Before(cause) | PublishError::Unknown(cause)) = &error;
            let cause = cause.clone();
            if let PublishError::Unknown(_) = error {
                flusher.poison = Some(cause.to_string());
                self.inner.poisoned.store(true, Ordering::Relaxed);
            }
            cause
        })?;
        let version = Arc::new(version);
        self.change_contents(|contents| change(contents, version));
        Ok(())
    }

    fn check_poison(&self, flusher: &Flusher) -> Result<(), StoreError> {
        match &flusher.poison {
            None => Ok(()),
            Some(cause) => {
                Err(StoreError::Poisoned { path: self.inner.dir.clone(), cause: cause.clone() })
            }
        }
    }
}
