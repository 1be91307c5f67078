//! Initial contents of a store, written as image layers.

use std::sync::Arc;

use pg_types::{Key, Lsn};

use crate::error::StoreError;
use crate::layer::{Layer, LayerWriter};
use crate::limits::IMPORT_LAYER_BYTES;
use crate::store::{Contents, RecordPosition, Store};
use crate::value::{LayerKind, ValueKind};
use crate::version::{BASE_LEVEL, VersionEdit};

/// Writes the initial contents of an empty root store as image layers, without going through memory. Nothing is
/// visible before [`ImageImport::finish`]; dropped before, it leaves the store empty.
#[derive(Debug)]
pub struct ImageImport {
    store: Store,
    writer: Option<LayerWriter>,
    layers: Vec<Arc<Layer>>,
    last: Option<Key>,
}

impl Store {
    /// Starts the import of the initial contents, which get the LSN `start_lsn`.
    pub fn import(&self) -> Result<ImageImport, StoreError> {
        if self.ancestor().is_some() || self.position() != RecordPosition::default() {
            return Err(StoreError::ImportOrder("the store is not an empty root".to_owned()));
        }
        Ok(ImageImport { store: self.clone(), writer: None, layers: Vec::new(), last: None })
    }
}

impl ImageImport {
    /// Adds the value of a key. Keys come in ascending order, each once.
    pub fn add(&mut self, key: Key, value: &[u8]) -> Result<(), StoreError> {
        if let Some(last) = self.last.filter(|last| *last >= key) {
            return Err(StoreError::ImportOrder(format!("{key} after {last}")));
        }
        self.last = Some(key);
        let mut writer = match self.writer.take() {
            Some(writer) if writer.size() < IMPORT_LAYER_BYTES => writer,
            full => {
                self.keep(full)?;
                let inner = &self.store.inner;
                let sequence = self.store.new_sequence();
                LayerWriter::create(&inner.disk, &inner.dir, sequence, LayerKind::Image)?
            }
        };
        let lsn = self.store.start_lsn();
        let added = writer.add(key, lsn, ValueKind::Image, value);
        self.writer = Some(writer);
        Ok(added?)
    }

    /// Makes the contents durable and visible. The store then stands at `start_lsn`.
    pub fn finish(mut self, prev_record_lsn: Lsn) -> Result<(), StoreError> {
        let writer = self.writer.take();
        self.keep(writer)?;
        let store = self.store.clone();
        let mut flusher = store.lock_flusher();
        let writer = store.lock_writer();
        if store.position() != RecordPosition::default() {
            return Err(StoreError::ImportOrder("the store is not empty any more".to_owned()));
        }
        let consistent = RecordPosition { last_record_lsn: store.start_lsn(), prev_record_lsn };
        let add = std::mem::take(&mut self.layers);
        let add = add.into_iter().map(|layer| (BASE_LEVEL, layer)).collect();
        store.publish(&mut flusher, VersionEdit { add, consistent }, |contents, version| {
            Contents { version, ..contents.clone() }
        })?;
        store.set_position(consistent);
        drop(writer);
        Ok(())
    }

    fn keep(&mut self, writer: Option<LayerWriter>) -> Result<(), StoreError> {
        match writer {
            Some(writer) if !writer.is_empty() => {
                self.layers.push(Arc::new(self.store.finish_layer(writer)?));
            }
            Some(writer) => writer.abandon(),
            None => {}
        }
        Ok(())
    }
}

impl Drop for ImageImport {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.abandon();
        }
        for layer in self.layers.drain(..) {
            if let Err(error) = self.store.inner.disk.remove(layer.path()) {
                tracing::warn!("a layer of an unfinished import stays: {error}");
            }
        }
    }
}
