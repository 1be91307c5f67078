//! The root block: where the index and filter blocks of a layer are.

use pg_types::Key;

use super::format::{BlockPlace, Fence, Fields};

/// The root block's contents; kept in memory while the layer is open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// First version and place of each index block.
    pub(crate) index: Vec<Fence>,
    /// Lines of the filter; 0 when there is none.
    pub(crate) filter_lines: u32,
    /// Places of the filter's blocks.
    pub(crate) filter: Vec<BlockPlace>,
    /// Greatest key.
    pub(crate) max_key: Key,
}

impl Root {
    pub(crate) fn empty(max_key: Key) -> Root {
        Root { index: Vec::new(), filter_lines: 0, filter: Vec::new(), max_key }
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.max_key.0);
        out.extend_from_slice(&self.filter_lines.to_le_bytes());
        out.extend_from_slice(&count(self.filter.len()).to_le_bytes());
        out.extend_from_slice(&count(self.index.len()).to_le_bytes());
        for place in &self.filter {
            out.extend_from_slice(&place.offset.to_le_bytes());
            out.extend_from_slice(&place.len.to_le_bytes());
        }
        self.index.iter().for_each(|fence| fence.write(&mut out));
        out
    }

    /// `None` for bytes that [`Root::write`] does not make. Counts are checked by the bytes that must follow.
    pub(crate) fn read(bytes: &[u8]) -> Option<Root> {
        let mut fields = Fields(bytes);
        let max_key = fields.key()?;
        let filter_lines = fields.u32()?;
        let (filter_count, index_count) = (fields.u32()?, fields.u32()?);
        let mut root = Root { filter_lines, ..Root::empty(max_key) };
        for _ in 0..filter_count {
            root.filter.push(BlockPlace { offset: fields.u64()?, len: fields.u32()? });
        }
        for _ in 0..index_count {
            root.index.push(Fence::read(&mut fields)?);
        }
        fields.0.is_empty().then_some(root)
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
