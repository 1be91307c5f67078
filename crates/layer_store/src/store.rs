//! One timeline's storage: its position, its memtables, its layers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use pg_types::Lsn;

use crate::batch::WriteBatch;
use crate::error::{PutError, StoreError};
use crate::memtable::Memtable;
use crate::shared::Shared;

/// How far a store has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordPosition {
    /// End of the last record, which is where the next one starts (8-byte aligned); every LSN up to it can be
    /// read. [`Lsn::INVALID`] for a store without contents.
    pub last_record_lsn: Lsn,
    /// Start of that last record, which is `xl_prev` of the next one; [`Lsn::INVALID`] when unknown.
    pub prev_record_lsn: Lsn,
}

/// The branch point of a child store.
#[derive(Clone, Debug)]
pub struct Ancestor {
    /// The store that was branched.
    pub store: Store,
    /// The last LSN that the child shares with it.
    pub lsn: Lsn,
}

/// Storage of one timeline: versions by (key, LSN). Clones are handles to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<StoreInner>,
}

#[derive(Debug)]
pub(crate) struct StoreInner {
    dir: PathBuf,
    start_lsn: Lsn,
    ancestor: Option<Ancestor>,
    shared: Shared,
    /// Held by the one that puts.
    writer: Mutex<()>,
    position: RwLock<RecordPosition>,
    contents: RwLock<Arc<Contents>>,
}

/// What readers look into; never changed, only replaced.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Takes new versions.
    pub(crate) open: Arc<Memtable>,
    /// Take no more versions and wait to be written; oldest first.
    pub(crate) frozen: Vec<Arc<Memtable>>,
}

impl Store {
    /// Makes a store in `dir`, which must not hold one.
    ///
    /// `start_lsn` is the LSN of the initial contents (for a branch: the branch point). A root store is empty
    /// and at no position until the first `put`, whose versions may carry `start_lsn` itself; a child starts at
    /// `ancestor.lsn`, with the ancestor's `prev_record_lsn` if that is where the ancestor stands.
    pub fn create(
        dir: &Path,
        start_lsn: Lsn,
        ancestor: Option<Ancestor>,
        shared: &Shared,
    ) -> Result<Store, StoreError> {
        let position = match &ancestor {
            None => RecordPosition::default(),
            Some(Ancestor { store, lsn }) => {
                let parent = store.position();
                let at_tip = parent.last_record_lsn == *lsn;
                let prev = if at_tip { parent.prev_record_lsn } else { Lsn::INVALID };
                RecordPosition { last_record_lsn: *lsn, prev_record_lsn: prev }
            }
        };
        let contents =
            Contents { open: Arc::new(Memtable::new(shared.budget_share())), frozen: Vec::new() };
        let inner = Arc::new(StoreInner {
            dir: dir.to_owned(),
            start_lsn,
            ancestor,
            shared: shared.clone(),
            writer: Mutex::default(),
            position: RwLock::new(position),
            contents: RwLock::new(Arc::new(contents)),
        });
        shared.register(&inner);
        Ok(Store { inner })
    }

    pub(crate) fn from_inner(inner: Arc<StoreInner>) -> Store {
        Store { inner }
    }

    /// Directory of the store.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// LSN of the initial contents.
    pub fn start_lsn(&self) -> Lsn {
        self.inner.start_lsn
    }

    /// The branch point of a child.
    pub fn ancestor(&self) -> Option<&Ancestor> {
        self.inner.ancestor.as_ref()
    }

    /// How far the store has come; both LSNs are of the same moment.
    pub fn position(&self) -> RecordPosition {
        *self.inner.position.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// End of the last record.
    pub fn last_record_lsn(&self) -> Lsn {
        self.position().last_record_lsn
    }

    /// Bytes of this store's memtables.
    pub fn memtable_bytes(&self) -> u64 {
        let contents = self.contents();
        contents.frozen.iter().fold(contents.open.size(), |sum, table| sum + table.size())
    }

    /// Adds versions and moves the position. All of the batch becomes readable at once, when this returns.
    ///
    /// Every version must lie behind the current `last_record_lsn` (for the first batch of a root store: at or
    /// behind `start_lsn`) and not behind the new one. An empty batch moves the position alone. Putting the
    /// position where it is already, with an empty batch, does nothing.
    ///
    /// May block for the time of a flush when the memory budget is used up: call it where blocking is allowed.
    pub fn put(&self, batch: WriteBatch, position: RecordPosition) -> Result<(), PutError> {
        let writer = self.lock_writer();
        self.check(&batch, position)?;
        let (entries, chunks) = batch.finish();
        let open = Arc::clone(&self.contents().open);
        if !entries.is_empty() {
            open.insert(&entries, chunks);
        }
        *self.inner.position.write().unwrap_or_else(PoisonError::into_inner) = position;
        drop(writer);
        self.inner.shared.notify_growth(open.size());
        Ok(())
    }

    fn check(&self, batch: &WriteBatch, position: RecordPosition) -> Result<(), PutError> {
        let current = self.position().last_record_lsn;
        let to = position.last_record_lsn;
        // The first batch of a root store may carry the start LSN itself.
        let from = match current {
            Lsn::INVALID => Lsn(self.inner.start_lsn.0.saturating_sub(1)),
            lsn => lsn,
        };
        if to < from || (to == from && !batch.is_empty()) {
            return Err(PutError::Backwards { from, to });
        }
        if let Some((key, lsn, len)) = batch.too_large {
            return Err(PutError::TooLarge { key, lsn, len });
        }
        match batch.entries.iter().find(|entry| entry.lsn <= from || entry.lsn > to) {
            None => Ok(()),
            Some(entry) => Err(PutError::OutsideBatch { key: entry.key, lsn: entry.lsn, from, to }),
        }
    }

    /// What a reader looks into, as of now.
    pub(crate) fn contents(&self) -> Arc<Contents> {
        Arc::clone(&self.inner.contents.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock_writer(&self) -> MutexGuard<'_, ()> {
        self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
