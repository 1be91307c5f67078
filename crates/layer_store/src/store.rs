//! One timeline's storage: its position, its memtables, its version.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use pg_types::{Key, Lsn};

use crate::batch::WriteBatch;
use crate::disk::Disk;
use crate::error::{PutError, StoreError};
use crate::memtable::Memtable;
use crate::shared::Shared;
use crate::value::LayerKind;
use crate::version::Version;
use crate::version::manifest::{self, MANIFEST, Manifest, PublishError};
use crate::version::recover;

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
    pub(crate) inner: Arc<StoreInner>,
}

#[derive(Debug)]
pub(crate) struct StoreInner {
    pub(crate) dir: PathBuf,
    pub(crate) disk: Disk,
    start_lsn: Lsn,
    ancestor: Option<Ancestor>,
    pub(crate) shared: Shared,
    next_sequence: AtomicU64,
    /// Held by the one that puts; always taken after `flusher` by whoever needs both.
    writer: Mutex<()>,
    /// Held by the one that changes the version.
    pub(crate) flusher: Mutex<Flusher>,
    /// Set together with [`Flusher::poison`], for those who must not wait for a flush to look.
    pub(crate) poisoned: AtomicBool,
    position: RwLock<RecordPosition>,
    contents: RwLock<Arc<Contents>>,
}

/// State of whoever changes the version.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    /// Why it is not known which manifest a crash would leave.
    pub(crate) poison: Option<String>,
}

/// What readers look into; never changed, only replaced.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    /// Takes new versions.
    pub(crate) open: Arc<Memtable>,
    /// Take no more versions and wait to be written; oldest first.
    pub(crate) frozen: Vec<Frozen>,
    /// What is in files.
    pub(crate) version: Arc<Version>,
}

/// A memtable that takes no more versions, and the store's position when it was frozen.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) memtable: Arc<Memtable>,
    pub(crate) position: RecordPosition,
}

/// A layer, for whoever wants to list them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Path of the file.
    pub path: PathBuf,
    /// Level in the version: 0 for flushed memtables, 6 for initial images.
    pub level: u8,
    /// Changes or whole values.
    pub kind: LayerKind,
    /// Size of the file.
    pub bytes: u64,
    /// Number of versions.
    pub versions: u64,
    /// Smallest and greatest key, both included.
    pub keys: (Key, Key),
    /// Lowest and highest LSN, both included.
    pub lsns: (Lsn, Lsn),
    /// Blocks read from the file since it was opened.
    pub blocks_read: u64,
}

impl Store {
    /// Makes a store in `dir`, which must not hold one; missing directories are made.
    ///
    /// `start_lsn` is the LSN of the initial contents (for a branch: the branch point). A root store is empty
    /// and at no position until the first `put`, whose versions may carry `start_lsn` itself, or until
    /// [`Store::import`]; a child starts at `ancestor.lsn`, with the ancestor's `prev_record_lsn` if that is where
    /// the ancestor stands. The new store is durable when this returns.
    pub fn create(
        dir: &Path,
        start_lsn: Lsn,
        ancestor: Option<Ancestor>,
        shared: &Shared,
    ) -> Result<Store, StoreError> {
        let disk = shared.disk();
        disk.create_dir_all(dir)?;
        if dir.join(MANIFEST).exists() {
            return Err(StoreError::Exists(dir.to_owned()));
        }
        let manifest = Manifest {
            start_lsn,
            ancestor_lsn: ancestor.as_ref().map(|ancestor| ancestor.lsn),
            consistent: initial_position(ancestor.as_ref()),
            next_sequence: 1,
            layers: Vec::new(),
        };
        // Nobody uses the store yet, so either outcome of a failure is harmless.
        manifest::publish(disk, dir, &manifest).map_err(|error| match error {
            PublishError::Before(error) | PublishError::Unknown(error) => error,
        })?;
        Store::start(dir, &manifest, ancestor, shared)
    }

    /// Opens the store in `dir`, with the ancestor it was created with. Its position is its
    /// `disk_consistent_lsn`: WAL from there on must be put again. Files that a crash left behind are deleted, so
    /// no other process may have it open.
    pub fn open(
        dir: &Path,
        ancestor: Option<Ancestor>,
        shared: &Shared,
    ) -> Result<Store, StoreError> {
        let manifest = recover::read_manifest(dir)?;
        let given = ancestor.as_ref().map(|ancestor| ancestor.lsn);
        if given != manifest.ancestor_lsn {
            let words = |lsn: Option<Lsn>| {
                lsn.map_or("from no ancestor".to_owned(), |lsn| {
                    format!("from an ancestor at {lsn}")
                })
            };
            return Err(StoreError::WrongAncestor {
                path: dir.to_owned(),
                wanted: words(manifest.ancestor_lsn),
                given: words(given),
            });
        }
        Store::start(dir, &manifest, ancestor, shared)
    }

    fn start(
        dir: &Path,
        manifest: &Manifest,
        ancestor: Option<Ancestor>,
        shared: &Shared,
    ) -> Result<Store, StoreError> {
        let version = recover::open_version(dir, manifest, shared.cache())?;
        let next_sequence = recover::remove_orphans(shared.disk(), dir, manifest)?;
        let contents = Contents {
            open: Arc::new(Memtable::new(shared.budget_share())),
            frozen: Vec::new(),
            version: Arc::new(version),
        };
        let inner = Arc::new(StoreInner {
            dir: dir.to_owned(),
            disk: shared.disk().clone(),
            start_lsn: manifest.start_lsn,
            ancestor,
            shared: shared.clone(),
            next_sequence: AtomicU64::new(next_sequence),
            writer: Mutex::default(),
            flusher: Mutex::default(),
            poisoned: AtomicBool::new(false),
            position: RwLock::new(manifest.consistent),
            contents: RwLock::new(Arc::new(contents)),
        });
        shared.register(&inner);
        Ok(Store { inner })
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

    /// Everything up to here survives a crash.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        self.contents().version.consistent.last_record_lsn
    }

    /// Bytes of this store's memtables.
    pub fn memtable_bytes(&self) -> u64 {
        let contents = self.contents();
        contents
            .frozen
            .iter()
            .fold(contents.open.size(), |sum, frozen| sum + frozen.memtable.size())
    }

    /// The layers, by level, level 0 oldest first and the others by key.
    pub fn layers(&self) -> Vec<LayerInfo> {
        let contents = self.contents();
        let info = |(level, layer): (u8, &Arc<crate::layer::Layer>)| {
            let meta = layer.meta();
            LayerInfo {
                path: layer.path().to_owned(),
                level,
                kind: meta.kind,
                bytes: meta.file_bytes,
                versions: meta.versions,
                keys: (meta.min_key, meta.max_key),
                lsns: (meta.min_lsn, meta.max_lsn),
                blocks_read: layer.blocks_read(),
            }
        };
        contents.version.layers().map(info).collect()
    }

    /// Reads every layer file whole and compares checksums.
    pub fn verify(&self) -> Result<(), StoreError> {
        let version = Arc::clone(&self.contents().version);
        version.layers().try_for_each(|(_, layer)| Ok(layer.verify()?))
    }

    /// Adds versions and moves the position. All of the batch becomes readable at once, when this returns.
    ///
    /// Every version must lie behind the current `last_record_lsn` (for the first batch of a root store: at or
    /// behind `start_lsn`) and not behind the new one. An empty batch moves the position alone. Putting the
    /// position where it is already, with an empty batch, does nothing.
    ///
    /// May block for the time of a flush when the memory budget is used up: call it where blocking is allowed.
    pub fn put(&self, batch: WriteBatch, position: RecordPosition) -> Result<(), PutError> {
        self.inner.shared.make_room()?;
        let writer = self.lock_writer();
        self.check(&batch, position)?;
        let (entries, chunks) = batch.finish();
        let open = Arc::clone(&self.contents().open);
        if !entries.is_empty() {
            open.insert(&entries, chunks);
        }
        self.set_position(position);
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

    /// Replaces what readers look into.
    pub(crate) fn change_contents(&self, change: impl FnOnce(&Contents) -> Contents) {
        let mut contents = self.inner.contents.write().unwrap_or_else(PoisonError::into_inner);
        let changed = Arc::new(change(&contents));
        let old = std::mem::replace(&mut *contents, changed);
        drop(contents);
        // Freeing a memtable takes a while; readers need not wait for it.
        drop(old);
    }

    pub(crate) fn set_position(&self, position: RecordPosition) {
        *self.inner.position.write().unwrap_or_else(PoisonError::into_inner) = position;
    }

    pub(crate) fn new_sequence(&self) -> u64 {
        self.inner.next_sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// A manifest for `version`.
    pub(crate) fn manifest(&self, version: &Version) -> Manifest {
        Manifest {
            start_lsn: self.inner.start_lsn,
            ancestor_lsn: self.inner.ancestor.as_ref().map(|ancestor| ancestor.lsn),
            consistent: version.consistent,
            next_sequence: self.inner.next_sequence.load(Ordering::Relaxed),
            layers: version.layers().map(|(level, l)| (level, l.meta().clone())).collect(),
        }
    }

    pub(crate) fn lock_writer(&self) -> MutexGuard<'_, ()> {
        self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a new store stands.
fn initial_position(ancestor: Option<&Ancestor>) -> RecordPosition {
    let Some(Ancestor { store, lsn }) = ancestor else { return RecordPosition::default() };
    let parent = store.position();
    let at_tip = parent.last_record_lsn == *lsn;
    let prev_record_lsn = if at_tip { parent.prev_record_lsn } else { Lsn::INVALID };
    RecordPosition { last_record_lsn: *lsn, prev_record_lsn }
}
