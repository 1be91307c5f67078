//! Layer files: immutable, sorted by (key, LSN), every byte under a checksum.

pub(crate) mod block;
pub(crate) mod cursor;
pub(crate) mod filter;
pub(crate) mod format;
pub(crate) mod meta;
pub(crate) mod reader;
mod root;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

pub(crate) use meta::LayerMeta;
pub(crate) use reader::Layer;
pub(crate) use writer::LayerWriter;
