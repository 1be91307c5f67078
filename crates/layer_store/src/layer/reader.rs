//! Reads of one layer file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use pg_types::{Key, Lsn};

use super::block::{self, BlockHome};
use super::cursor::find_versions;
use super::filter::{self, LINE_SIZE, LINES_PER_BLOCK};
use super::format::{
    BlockKind, BlockPlace, FOOTER_SIZE, Fence, Fields, HEADER_SIZE, INDEX_ENTRY_SIZE, MAGIC,
    VERSION, corrupt, file_name,
};
use super::meta::LayerMeta;
use super::root::Root;
use crate::cache::BlockCache;
use crate::error::{Corrupt, IoFailed, ReadError};
use crate::value::Search;

/// An open layer file.
#[derive(Debug)]
pub(crate) struct Layer {
    meta: LayerMeta,
    path: PathBuf,
    file: File,
    root: Root,
    cache: BlockCache,
    /// Names this layer in the cache, for this process.
    cache_id: u64,
    /// Blocks that were not in the cache.
    blocks_read: AtomicU64,
}

impl Layer {
    /// Opens the layer that a manifest names, and checks that file and manifest agree.
    pub(crate) fn open(
        dir: &Path,
        meta: LayerMeta,
        cache: &BlockCache,
    ) -> Result<Layer, ReadError> {
        let path = dir.join(file_name(meta.sequence));
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                ReadError::Corrupt(corrupt(&path, 0, "named by the manifest, but missing"))
            }
            _ => IoFailed::new("open", &path, error).into(),
        })?;
        let mut layer = Layer {
            meta,
            path,
            file,
            root: Root::empty(Key::MIN),
            cache: cache.clone(),
            cache_id: cache.new_id(),
            blocks_read: AtomicU64::new(0),
        };
        layer.root = layer.read_root()?;
        Ok(layer)
    }

    pub(crate) fn meta(&self) -> &LayerMeta {
        &self.meta
    }

    /// Blocks that were read from the file.
    pub(crate) fn blocks_read(&self) -> u64 {
        self.blocks_read.load(Ordering::Relaxed)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the versions of `key` at or below `lsn` to `search`, newest first, until it has enough.
    pub(crate) fn search(&self, key: Key, lsn: Lsn, search: &mut Search) -> Result<(), ReadError> {
        if !self.may_contain(key)? {
            return Ok(());
        }
        let mut at = self.seek(key, lsn)?;
        while let Some((fence, position)) = at {
            let block = self.data(fence.place)?;
            find_versions(&block, key, lsn, search)
                .ok_or_else(|| self.corrupt(fence.place.offset, "bad entry in a data block"))?;
            // Older versions are in the block before only when this one starts with the key.
            if search.is_done() || fence.key != key {
                break;
            }
            at = self.previous(position)?;
        }
        Ok(())
    }

    /// Payload of the index block with number `index`, if there is one.
    fn fences(&self, index: usize) -> Result<Option<Bytes>, ReadError> {
        let Some(fence) = self.root.index.get(index) else { return Ok(None) };
        let bytes = self.cached(fence.place, BlockKind::Index)?;
        match bytes.len() % INDEX_ENTRY_SIZE {
            0 if !bytes.is_empty() => Ok(Some(bytes)),
            _ => Err(self.corrupt(fence.place.offset, "index block of a wrong size").into()),
        }
    }

    /// The fence at `position`, if any.
    pub(crate) fn fence(&self, position: Position) -> Result<Option<Fence>, ReadError> {
        let fences = self.fences(position.index)?;
        Ok(fences.and_then(|bytes| fence_at(&bytes, position.entry)))
    }

    /// The last data block whose first version is at or before (key, LSN); `None` when the layer starts later.
    pub(crate) fn seek(&self, key: Key, lsn: Lsn) -> Result<Option<(Fence, Position)>, ReadError> {
        let target = (key, lsn);
        let after = self.root.index.partition_point(|fence| fence.position() <= target);
        let Some(index) = after.checked_sub(1) else { return Ok(None) };
        let Some(bytes) = self.fences(index)? else { return Ok(None) };
        let count = bytes.len() / INDEX_ENTRY_SIZE;
        let after = partition_point(count, |entry| {
            fence_at(&bytes, entry).is_some_and(|fence| fence.position() <= target)
        });
        let Some(entry) = after.checked_sub(1) else {
            let offset = self.root.index.get(index).map_or(0, |fence| fence.place.offset);
            return Err(self.corrupt(offset, "index block starts behind its fence").into());
        };
        let position = Position { index, entry };
        Ok(fence_at(&bytes, entry).map(|fence| (fence, position)))
    }

    /// The data block before `position`.
    fn previous(&self, position: Position) -> Result<Option<(Fence, Position)>, ReadError> {
        let before = match (position.entry.checked_sub(1), position.index.checked_sub(1)) {
            (Some(entry), _) => Position { entry, ..position },
            (None, Some(index)) => {
                let count = self.fences(index)?.map_or(0, |b| b.len() / INDEX_ENTRY_SIZE);
                Position { index, entry: count.saturating_sub(1) }
            }
            (None, None) => return Ok(None),
        };
        Ok(self.fence(before)?.map(|fence| (fence, before)))
    }

    /// The payload of a data block.
    pub(crate) fn data(&self, place: BlockPlace) -> Result<Bytes, ReadError> {
        self.cached(place, BlockKind::Data)
    }

    fn may_contain(&self, key: Key) -> Result<bool, ReadError> {
        if self.root.filter_lines == 0 {
            return Ok(true);
        }
        let hash = filter::hash(key);
        let line = filter::line_of(hash, self.root.filter_lines);
        let block = usize::try_from(line / LINES_PER_BLOCK).unwrap_or(usize::MAX);
        let place = self.root.filter.get(block);
        let place = place.ok_or_else(|| self.corrupt(0, "filter has too few blocks"))?;
        let bytes = self.cached(*place, BlockKind::Filter)?;
        let start = (line % LINES_PER_BLOCK) as usize * LINE_SIZE;
        let line = bytes.get(start..start + LINE_SIZE);
        let line = line.ok_or_else(|| self.corrupt(place.offset, "filter block is too short"))?;
        Ok(filter::may_contain(line, hash))
    }

    fn cached(&self, place: BlockPlace, kind: BlockKind) -> Result<Bytes, ReadError> {
        if let Some(block) = self.cache.get(self.cache_id, place.offset) {
            return Ok(block);
        }
        let block = self.read_block(place, kind)?;
        self.cache.insert(self.cache_id, place.offset, block.clone());
        Ok(block)
    }

    fn read_block(&self, place: BlockPlace, kind: BlockKind) -> Result<Bytes, ReadError> {
        let end = place.offset.checked_add(u64::from(place.len));
        let fits = end.is_some_and(|end| end <= self.meta.file_bytes);
        let len = place.read_len().filter(|_| fits);
        let len = len.ok_or_else(|| self.corrupt(place.offset, "block does not fit the file"))?;
        let mut bytes = vec![0; len];
        self.blocks_read.fetch_add(1, Ordering::Relaxed);
        self.read_at(&mut bytes, place.offset)?;
        let home = BlockHome { sequence: self.meta.sequence, offset: place.offset };
        Ok(block::read(home, kind, bytes, &self.path)?)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), ReadError> {
        self.file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt(offset, "file ends early").into(),
            _ => IoFailed::new("read", &self.path, error).into(),
        })
    }

    /// Checks header, footer and bounds, and reads the root block.
    fn read_root(&self) -> Result<Root, ReadError> {
        let metadata = self.file.metadata();
        let len = metadata.map_err(|error| IoFailed::new("inspect", &self.path, error))?.len();
        if len != self.meta.file_bytes || len < (HEADER_SIZE + FOOTER_SIZE) as u64 {
            let what = format!("file has {len} bytes, the manifest says {}", self.meta.file_bytes);
            return Err(self.corrupt(len.min(self.meta.file_bytes), what).into());
        }
        let mut header = [0; HEADER_SIZE];
        self.read_at(&mut header, 0)?;
        self.check_frame(&header, 0)?;
        let mut footer = [0; FOOTER_SIZE];
        let footer_offset = len - FOOTER_SIZE as u64;
        self.read_at(&mut footer, footer_offset)?;
        let mut fields = self.check_frame(&footer, footer_offset)?;
        let place = fields.u64().zip(fields.u32());
        let (offset, len) = place.ok_or_else(|| self.corrupt(footer_offset, "bad footer"))?;
        let payload = self.read_block(BlockPlace { offset, len }, BlockKind::Root)?;
        let root = Root::read(&payload).ok_or_else(|| self.corrupt(offset, "bad root block"))?;
        let first = root.index.first().map(|fence| fence.key);
        if first != Some(self.meta.min_key) || root.max_key != self.meta.max_key {
            return Err(self.corrupt(offset, "key bounds differ from the manifest's").into());
        }
        Ok(root)
    }

    /// Checks magic, version and checksum of header or footer; gives the fields between them.
    fn check_frame<'a>(&self, frame: &'a [u8], offset: u64) -> Result<Fields<'a>, Corrupt> {
        let mut fields = Fields(frame);
        if fields.take() != Some(MAGIC) {
            return Err(self.corrupt(offset, "no layer file"));
        }
        let (body, crc) = frame.split_at(frame.len() - 4);
        let computed = crc32c::crc32c(&self.meta.sequence.to_le_bytes());
        let computed = crc32c::crc32c_append(computed, body);
        if Fields(crc).u32() != Some(computed) {
            return Err(self.corrupt(offset, "checksum of header or footer is wrong"));
        }
        match fields.u32() {
            Some(VERSION) => Ok(fields),
            version => {
                Err(self.corrupt(offset, format!("unknown layer format version {version:?}")))
            }
        }
    }

    /// Checksum of the whole file against the manifest, and of every block.
    pub(crate) fn verify(&self) -> Result<(), ReadError> {
        let mut crc = 0;
        let mut chunk = vec![0; 1024 * 1024];
        let mut offset = 0;
        while offset < self.meta.file_bytes {
            let left = self.meta.file_bytes - offset;
            let len = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
            let part = &mut chunk[..len];
            self.read_at(part, offset)?;
            crc = crc32c::crc32c_append(crc, part);
            offset += len as u64;
        }
        if crc == self.meta.file_crc {
            return Ok(());
        }
        self.verify_blocks()?;
        Err(self.corrupt(0, "checksum of the file differs from the manifest's").into())
    }

    /// Finds the damaged block, for the error's offset.
    fn verify_blocks(&self) -> Result<(), ReadError> {
        self.read_root()?;
        for place in &self.root.filter {
            self.read_block(*place, BlockKind::Filter)?;
        }
        for fence in &self.root.index {
            let bytes = self.read_block(fence.place, BlockKind::Index)?;
            for entry in 0..bytes.len() / INDEX_ENTRY_SIZE {
                if let Some(fence) = fence_at(&bytes, entry) {
                    self.read_block(fence.place, BlockKind::Data)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn corrupt(&self, offset: u64, what: impl Into<String>) -> Corrupt {
        corrupt(&self.path, offset, what)
    }
}

/// Place of a data block in the index: number of the index block, number of the entry in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: usize,
    pub(crate) entry: usize,
}

fn fence_at(index: &[u8], entry: usize) -> Option<Fence> {
    let start = entry.checked_mul(INDEX_ENTRY_SIZE)?;
    Fence::read(&mut Fields(index.get(start..)?))
}

/// [`slice::partition_point`] over numbers.
fn partition_point(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// An open layer in a version.
pub(crate) type LayerRef = Arc<Layer>;
