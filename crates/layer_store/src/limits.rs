//! Named bounds, each with its reason.

/// Bytes of one value at most. The widest WAL record that names a block stays far below (32 block references of
/// 64 KiB at most, `XLR_MAX_BLOCK_ID` in `access/xlogrecord.h`, plus its main data).
pub const VALUE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of one chunk of values in memory: big enough that the chunk's own cost vanishes, small enough that a
/// reader which keeps one value alive does not keep much else.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Values put under one hold of the memtable's lock: bounds the time a reader waits (about 10 µs).
pub const PUT_SLICE: usize = 64;

/// Length of an ancestor chain at most; a longer one is a cycle or an accident.
pub const ANCESTORS_MAX: usize = 1000;

/// Bytes at which an import starts the next image layer.
pub const IMPORT_LAYER_BYTES: u64 = 128 * 1024 * 1024;
