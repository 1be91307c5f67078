//! What is stored for a key at an LSN, and what a read hands back.

use bytes::Bytes;
use pg_types::Lsn;

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The whole value. An empty image says that the key is removed from this LSN on.
    Image(Bytes),
    /// A change to the version before it; opaque here.
    Delta {
        /// The change starts from nothing, so no older version is needed.
        will_init: bool,
        /// The change.
        data: Bytes,
    },
}

impl Value {
    /// Bytes of the value.
    pub fn data(&self) -> &Bytes {
        match self {
            Value::Image(data) | Value::Delta { data, .. } => data,
        }
    }

    pub(crate) fn kind(&self) -> ValueKind {
        match self {
            Value::Image(_) => ValueKind::Image,
            Value::Delta { will_init: false, .. } => ValueKind::Delta,
            Value::Delta { will_init: true, .. } => ValueKind::DeltaWillInit,
        }
    }
}

/// A [`Value`] without its bytes; the numbers are those of the layer file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ValueKind {
    Image = 0,
    Delta = 1,
    DeltaWillInit = 2,
}

impl ValueKind {
    pub(crate) fn from_number(number: u8) -> Option<ValueKind> {
        [ValueKind::Image, ValueKind::Delta, ValueKind::DeltaWillInit]
            .get(usize::from(number))
            .copied()
    }

    /// Whether a read needs nothing older than this version.
    pub(crate) fn ends_search(self) -> bool {
        self != ValueKind::Delta
    }
}

/// How a layer came about; the numbers are those of the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LayerKind {
    /// Versions of a stretch of LSNs.
    Delta = 0,
    /// Whole values at one LSN.
    Image = 1,
}

impl LayerKind {
    pub(crate) fn from_number(number: u8) -> Option<LayerKind> {
        [LayerKind::Delta, LayerKind::Image].get(usize::from(number)).copied()
    }
}

/// A version found by a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) lsn: Lsn,
    pub(crate) kind: ValueKind,
    pub(crate) data: Bytes,
}

/// Collects versions of one key, newest first, until there are enough.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) found: Vec<Found>,
    newest_only: bool,
    /// Only versions behind this LSN are wanted.
    pub(crate) floor: Lsn,
    done: bool,
    /// Memtables and layers looked into.
    pub(crate) visited: u32,
}

impl Search {
    /// Wants versions down to one that needs no older.
    pub(crate) fn all() -> Search {
        let found = Vec::new();
        Search { found, newest_only: false, floor: Lsn::INVALID, done: false, visited: 0 }
    }

    /// Wants what is newer than `floor`, down to a version that needs no older.
    pub(crate) fn since(floor: Lsn) -> Search {
        Search { floor, ..Search::all() }
    }

    /// Wants the newest version alone.
    pub(crate) fn newest() -> Search {
        Search { newest_only: true, ..Search::all() }
    }

    pub(crate) fn push(&mut self, found: Found) {
        debug_assert!(!self.done);
        if found.lsn <= self.floor {
            self.done = true;
            return;
        }
        self.done = self.newest_only || found.kind.ends_search();
        self.found.push(found);
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }
}

/// Everything needed to rebuild a key's value at one LSN.
///
/// The value is `base` with `deltas` applied in order. A base of zero length means that the key was removed
/// at that LSN ([`Reconstruct::is_missing`] tells this and "never written" alike when no delta follows).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconstruct {
    /// The newest image at or below the LSN asked for, with its own LSN; `None` when the first delta needs none,
    /// or when there is nothing to start from.
    pub base: Option<(Lsn, Bytes)>,
    /// The changes after the base, oldest first, each with its LSN. Two changes may share an LSN; they are in
    /// the order in which they were put.
    pub deltas: Vec<(Lsn, Bytes)>,
    /// The first delta starts from nothing.
    pub first_will_init: bool,
    /// Memtables and layer files that were looked into.
    pub layers_visited: u32,
}

impl Reconstruct {
    /// Whether there is a version to start from. A chain of deltas without one is what remains when WAL was
    /// ingested from behind the creation of the key.
    pub fn is_complete(&self) -> bool {
        self.base.is_some() || self.first_will_init
    }

    /// Whether the key has no value at that LSN: never written, or removed.
    pub fn is_missing(&self) -> bool {
        self.deltas.is_empty() && self.base.as_ref().is_none_or(|(_, data)| data.is_empty())
    }

    /// LSN of the newest version found, the LSN up to which the result stands.
    pub fn newest_lsn(&self) -> Option<Lsn> {
        let base = self.base.as_ref().map(|(lsn, _)| *lsn);
        self.deltas.last().map(|(lsn, _)| *lsn).or(base)
    }

    /// Bytes of base and deltas.
    pub fn size(&self) -> usize {
        let base = self.base.as_ref().map_or(0, |(_, data)| data.len());
        self.deltas.iter().fold(base, |sum, (_, data)| sum.saturating_add(data.len()))
    }
}
