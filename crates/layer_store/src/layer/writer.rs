//! Sorted versions to a layer file.

use std::path::{Path, PathBuf};

use pg_types::{Key, Lsn};

use super::block::{self, BlockHome};
use super::filter::{self, LINE_SIZE, LINES_PER_BLOCK};
use super::format::{
    BLOCK_BYTES, BlockKind, BlockPlace, FOOTER_SIZE, Fence, GROUP_HEADER_SIZE, HEADER_SIZE, MAGIC,
    VERSION, VERSION_HEADER_SIZE, file_name,
};
use super::meta::LayerMeta;
use super::root::Root;
use crate::disk::{Disk, NewFile};
use crate::error::IoFailed;
use crate::value::{LayerKind, ValueKind};

/// Bytes collected before they are written.
const OUTPUT_BYTES: usize = 1024 * 1024;

/// Writes one layer file. Versions come by ascending key, for each key by ascending LSN.
#[derive(Debug)]
pub(crate) struct LayerWriter {
    output: Output,
    path: PathBuf,
    disk: Disk,
    meta: LayerMeta,
    data: Vec<u8>,
    /// First version of the open data block.
    first: Option<(Key, Lsn)>,
    /// Where the open group's length goes.
    group_at: Option<usize>,
    fences: Vec<Fence>,
    hashes: Vec<u64>,
}

/// Bytes on their way to the file.
#[derive(Debug)]
struct Output {
    file: NewFile,
    sequence: u64,
    pending: Vec<u8>,
    scratch: Vec<u8>,
    written: u64,
    crc: u32,
}

impl LayerWriter {
    pub(crate) fn create(
        disk: &Disk,
        dir: &Path,
        sequence: u64,
        kind: LayerKind,
    ) -> Result<LayerWriter, IoFailed> {
        let path = dir.join(file_name(sequence));
        let mut output = Output {
            file: disk.create(&path)?,
            sequence,
            pending: Vec::with_capacity(OUTPUT_BYTES + 4 * BLOCK_BYTES),
            scratch: Vec::new(),
            written: 0,
            crc: 0,
        };
        output.pending.extend_from_slice(&MAGIC);
        output.pending.extend_from_slice(&VERSION.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), &output.pending);
        output.pending.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(output.pending.len(), HEADER_SIZE);
        let meta = LayerMeta {
            sequence,
            kind,
            file_bytes: 0,
            file_crc: 0,
            versions: 0,
            min_key: Key::MAX,
            max_key: Key::MIN,
            min_lsn: Lsn::MAX,
            max_lsn: Lsn::INVALID,
        };
        Ok(LayerWriter {
            output,
            path,
            disk: disk.clone(),
            meta,
            data: Vec::with_capacity(2 * BLOCK_BYTES),
            first: None,
            group_at: None,
            fences: Vec::new(),
            hashes: Vec::new(),
        })
    }

    /// Adds a version.
    pub(crate) fn add(
        &mut self,
        key: Key,
        lsn: Lsn,
        kind: ValueKind,
        value: &[u8],
    ) -> Result<(), IoFailed> {
        let new_key = self.meta.versions == 0 || key != self.meta.max_key;
        debug_assert!(self.meta.versions == 0 || key >= self.meta.max_key, "L3: {key}");
        if new_key {
            self.hashes.push(filter::hash(key));
            self.close_group();
        }
        if self.data.len() >= BLOCK_BYTES
            || (!self.data.is_empty() && self.data.len() + value.len() > 2 * BLOCK_BYTES)
        {
            self.close_block()?;
        }
        if self.first.is_none() {
            self.first = Some((key, lsn));
        }
        if self.group_at.is_none() {
            self.data.extend_from_slice(&key.0);
            self.group_at = Some(self.data.len());
            self.data.extend_from_slice(&[0; GROUP_HEADER_SIZE - size_of::<Key>()]);
        }
        let start = self.data.len();
        let len_and_kind = u32::try_from(value.len()).unwrap_or(u32::MAX) | (kind as u32) << 30;
        self.data.extend_from_slice(&lsn.0.to_le_bytes());
        self.data.extend_from_slice(&len_and_kind.to_le_bytes());
        debug_assert_eq!(self.data.len() - start, VERSION_HEADER_SIZE);
        self.data.extend_from_slice(value);
        self.note(key, lsn);
        Ok(())
    }

    /// Bytes of the file so far, about.
    pub(crate) fn size(&self) -> u64 {
        self.output.written + (self.output.pending.len() + self.data.len()) as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.meta.versions == 0
    }

    /// Writes what remains and makes the file's contents durable. Its directory entry is the caller's to sync.
    /// After an error the file is gone.
    pub(crate) fn finish(self) -> Result<LayerMeta, IoFailed> {
        let (path, disk) = (self.path.clone(), self.disk.clone());
        self.complete().inspect_err(|_| delete(&disk, &path))
    }

    fn complete(mut self) -> Result<LayerMeta, IoFailed> {
        let mut root = Root::empty(self.meta.max_key);
        self.close_block()?;
        root.filter_lines = filter::line_count(self.hashes.len() as u64);
        root.filter = self.write_filter(root.filter_lines)?;
        root.index = self.write_index()?;
        let root = self.output.block(BlockKind::Root, &root.write())?;
        self.output.footer(root);
        self.output.drain()?;
        self.meta.file_bytes = self.output.written;
        self.meta.file_crc = self.output.crc;
        self.output.file.sync()?;
        Ok(self.meta)
    }

    /// Gives up: the file is deleted, or left to the next recovery when that fails.
    pub(crate) fn abandon(self) {
        delete(&self.disk, &self.path);
    }

    fn note(&mut self, key: Key, lsn: Lsn) {
        self.meta.versions += 1;
        self.meta.min_key = self.meta.min_key.min(key);
        self.meta.max_key = key;
        self.meta.min_lsn = self.meta.min_lsn.min(lsn);
        self.meta.max_lsn = self.meta.max_lsn.max(lsn);
    }

    /// Writes the length of the open group.
    fn close_group(&mut self) {
        let Some(at) = self.group_at.take() else { return };
        let len = u32::try_from(self.data.len() - at - 4).unwrap_or(u32::MAX);
        self.data[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }

    fn close_block(&mut self) -> Result<(), IoFailed> {
        self.close_group();
        let Some((key, lsn)) = self.first.take() else { return Ok(()) };
        let place = self.output.block(BlockKind::Data, &self.data)?;
        self.fences.push(Fence { key, lsn, place });
        self.data.clear();
        Ok(())
    }

    fn write_filter(&mut self, lines: u32) -> Result<Vec<BlockPlace>, IoFailed> {
        let mut filter = vec![0; lines as usize * LINE_SIZE];
        for hash in &self.hashes {
            let start = filter::line_of(*hash, lines) as usize * LINE_SIZE;
            filter::set(&mut filter[start..start + LINE_SIZE], *hash);
        }
        let blocks = filter.chunks(LINES_PER_BLOCK as usize * LINE_SIZE);
        blocks.map(|chunk| self.output.block(BlockKind::Filter, chunk)).collect()
    }

    fn write_index(&mut self) -> Result<Vec<Fence>, IoFailed> {
        let per_block = BLOCK_BYTES / super::format::INDEX_ENTRY_SIZE;
        let mut index = Vec::new();
        for fences in self.fences.chunks(per_block) {
            let mut payload = Vec::with_capacity(BLOCK_BYTES);
            fences.iter().for_each(|fence| fence.write(&mut payload));
            let place = self.output.block(BlockKind::Index, &payload)?;
            index.extend(fences.first().map(|first| Fence { place, ..*first }));
        }
        Ok(index)
    }
}

fn delete(disk: &Disk, path: &Path) {
    if let Err(error) = disk.remove(path) {
        tracing::warn!("an unfinished layer stays until the store is opened next: {error}");
    }
}

impl Output {
    fn block(&mut self, kind: BlockKind, payload: &[u8]) -> Result<BlockPlace, IoFailed> {
        let offset = self.written + self.pending.len() as u64;
        let home = BlockHome { sequence: self.sequence, offset };
        let len = block::write(home, kind, payload, &mut self.scratch, &mut self.pending);
        if self.pending.len() >= OUTPUT_BYTES {
            self.drain()?;
        }
        Ok(BlockPlace { offset, len: u32::try_from(len).unwrap_or(u32::MAX) })
    }

    fn footer(&mut self, root: BlockPlace) {
        let start = self.pending.len();
        self.pending.extend_from_slice(&MAGIC);
        self.pending.extend_from_slice(&VERSION.to_le_bytes());
        self.pending.extend_from_slice(&root.offset.to_le_bytes());
        self.pending.extend_from_slice(&root.len.to_le_bytes());
        self.pending.extend_from_slice(&[0; 4]);
        let crc = crc32c::crc32c(&self.sequence.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &self.pending[start..]);
        self.pending.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(self.pending.len() - start, FOOTER_SIZE);
    }

    fn drain(&mut self) -> Result<(), IoFailed> {
        self.crc = crc32c::crc32c_append(self.crc, &self.pending);
        self.file.write(&self.pending)?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}
