//! Versions within data blocks: of one key, and of a range of keys in order.

use std::ops::Range;

use bytes::Bytes;
use pg_types::{Key, Lsn};

use super::format::Fields;
use super::reader::{LayerRef, Position};
use crate::error::ReadError;
use crate::value::{Found, Search, ValueKind};

/// A key's versions within one block.
struct Group<'a> {
    key: Key,
    versions: &'a [u8],
}

/// A version within its block; the value is a range of the block.
struct Entry {
    lsn: Lsn,
    kind: ValueKind,
    value: Range<usize>,
}

fn next_group<'a>(fields: &mut Fields<'a>) -> Option<Group<'a>> {
    let key = fields.key()?;
    let len = usize::try_from(fields.u32()?).ok()?;
    Some(Group { key, versions: fields.slice(len)? })
}

/// The versions of a group that starts `base` bytes into its block, oldest first.
fn entries(group: &[u8], base: usize) -> Option<Vec<Entry>> {
    let mut fields = Fields(group);
    let mut entries = Vec::new();
    while !fields.0.is_empty() {
        let lsn = fields.lsn()?;
        let len_and_kind = fields.u32()?;
        let kind = ValueKind::from_number(u8::try_from(len_and_kind >> 30).ok()?)?;
        let len = usize::try_from(len_and_kind & (u32::MAX >> 2)).ok()?;
        let start = base + group.len() - fields.0.len();
        fields.slice(len)?;
        entries.push(Entry { lsn, kind, value: start..start + len });
    }
    Some(entries)
}

/// Gives the versions of `key` at or below `lsn` that a data block holds to `search`, newest first. `None` when the
/// block is malformed.
pub(crate) fn find_versions(block: &Bytes, key: Key, lsn: Lsn, search: &mut Search) -> Option<()> {
    let mut fields = Fields(block);
    while !fields.0.is_empty() {
        let group = next_group(&mut fields)?;
        if group.key > key {
            break;
        }
        if group.key < key {
            continue;
        }
        let base = block.len() - fields.0.len() - group.versions.len();
        for entry in entries(group.versions, base)?.into_iter().rev() {
            if entry.lsn <= lsn && !search.is_done() {
                let data = block.slice(entry.value);
                search.push(Found { lsn: entry.lsn, kind: entry.kind, data });
            }
        }
        break;
    }
    Some(())
}

/// For every key of a range, in order, its newest version at or below an LSN; keys without one are left out.
#[derive(Debug)]
pub(crate) struct LayerCursor {
    layer: LayerRef,
    range: Range<Key>,
    lsn: Lsn,
    next: Option<Position>,
    /// Found in the current block, in reverse order.
    ready: Vec<(Key, Found)>,
    /// The last key of the block before, which may go on in the next one.
    held: Option<(Key, Found)>,
}

impl LayerCursor {
    pub(crate) fn new(
        layer: LayerRef,
        range: Range<Key>,
        lsn: Lsn,
    ) -> Result<LayerCursor, ReadError> {
        let at = layer.seek(range.start, Lsn::INVALID)?;
        let next = at.map_or(Position { index: 0, entry: 0 }, |(_, position)| position);
        Ok(LayerCursor { layer, range, lsn, next: Some(next), ready: Vec::new(), held: None })
    }

    /// Reads the next block; says whether there was one to read.
    fn advance(&mut self) -> Result<bool, ReadError> {
        let Some(position) = self.next.take() else { return Ok(false) };
        let fence = match self.layer.fence(position)? {
            Some(fence) => Some((fence, position)),
            None => {
                let first = Position { index: position.index + 1, entry: 0 };
                self.layer.fence(first)?.map(|fence| (fence, first))
            }
        };
        let Some((fence, position)) = fence.filter(|(fence, _)| fence.key < self.range.end) else {
            return Ok(false);
        };
        let block = self.layer.data(fence.place)?;
        self.next = Some(Position { entry: position.entry + 1, ..position });
        self.collect(&block)
            .ok_or_else(|| self.layer.corrupt(fence.place.offset, "bad entry in a data block"))?;
        Ok(true)
    }

    /// Takes from a block the newest version of each key that counts; the last one is held back.
    fn collect(&mut self, block: &Bytes) -> Option<()> {
        let mut fields = Fields(block);
        let mut found = Vec::new();
        while !fields.0.is_empty() {
            let group = next_group(&mut fields)?;
            if !self.range.contains(&group.key) {
                continue;
            }
            let base = block.len() - fields.0.len() - group.versions.len();
            let newest = entries(group.versions, base)?
                .into_iter()
                .rev()
                .find(|entry| entry.lsn <= self.lsn)
                .map(|e| Found { lsn: e.lsn, kind: e.kind, data: block.slice(e.value) });
            let Some(newest) = newest else { continue };
            match self.held.replace((group.key, newest)) {
                Some(held) if held.0 != group.key => found.push(held),
                _ => {}
            }
        }
        found.reverse();
        self.ready = found;
        Some(())
    }
}

impl Iterator for LayerCursor {
    type Item = Result<(Key, Found), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.ready.pop() {
                return Some(Ok(item));
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return self.held.take().map(Ok),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
