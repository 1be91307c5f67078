//! Settings of the local file cache.

use std::ffi::CString;
use std::path::PathBuf;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

static MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(0);
static SIZE_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(0);
static PATH: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"file.cache"));
static CHUNK_SIZE: GucSetting<i32> = GucSetting::<i32>::new(4);
/// `neon.store_prefetch_result_in_lfc`.
pub static STORE_PREFETCHED: GucSetting<bool> = GucSetting::<bool>::new(true);

/// `neon.file_cache_prewarm`.
pub static PREWARM: GucSetting<bool> = GucSetting::<bool>::new(true);
static SAVE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(300);
static PREWARM_BATCH: GucSetting<i32> = GucSetting::<i32>::new(64);

static HOLD_WRITES: GucSetting<i32> = GucSetting::<i32>::new(0);

/// Defines the settings.
pub fn define() {
    define_sizes();
    define_prewarm();
    GucRegistry::define_string_guc(
        c"neon.file_cache_path",
        c"The local file cache's file.",
        c"Emptied at server start. A relative path is one in the data directory.",
        &PATH,
        GucContext::Postmaster,
        GucFlags::empty(),
    );
    GucRegistry::define_bool_guc(
        c"neon.store_prefetch_result_in_lfc",
        c"Put pages into the local file cache as soon as a read-ahead brings them.",
        c"",
        &STORE_PREFETCHED,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"neon.file_cache_hold_writes",
        c"File number of a relation whose pages this process does not write to the local file cache yet.",
        c"For tests: it waits while the data directory has a file neon_hold_file_cache, and nobody can cancel that.",
        &HOLD_WRITES,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::empty(),
    );
}

fn define_sizes() {
    let mebibytes = |name, what, more, setting, context| {
        let (min, max, unit) = (0, i32::MAX, GucFlags::UNIT_MB);
        GucRegistry::define_int_guc(name, what, more, setting, min, max, context, unit);
    };
    mebibytes(
        c"neon.max_file_cache_size",
        c"Size that the local file cache can grow to; 0 means that there is none.",
        c"Shared memory is set aside for it.",
        &MAX_SIZE,
        GucContext::Postmaster,
    );
    mebibytes(
        c"neon.file_cache_size_limit",
        c"Size of the local file cache; 0 switches it off.",
        c"At most neon.max_file_cache_size. A smaller size gives disk space back.",
        &SIZE_LIMIT,
        GucContext::Sighup,
    );
    GucRegistry::define_int_guc(
        c"neon.file_cache_chunk_size",
        c"Blocks that the local file cache keeps and gives up together.",
        c"Rounded down to a power of two.",
        &CHUNK_SIZE,
        1,
        128,
        GucContext::Postmaster,
        GucFlags::empty(),
    );
}

fn define_prewarm() {
    GucRegistry::define_bool_guc(
        c"neon.file_cache_prewarm",
        c"Fill the local file cache at server start with the pages it had when the server stopped.",
        c"Also switches saving which pages these are.",
        &PREWARM,
        GucContext::Postmaster,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"neon.file_cache_save_interval",
        c"Time after which it is saved again which pages the local file cache holds; 0 means only at shutdown.",
        c"",
        &SAVE_INTERVAL,
        0,
        i32::MAX / 1000,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"neon.file_cache_prewarm_batch",
        c"Pages that a process asks for at a time when it fills the local file cache.",
        c"",
        &PREWARM_BATCH,
        1,
        1024,
        GucContext::Suset,
        GucFlags::empty(),
    );
}

/// `neon.file_cache_save_interval`; `None` for never.
pub fn save_interval() -> Option<Duration> {
    u64::try_from(SAVE_INTERVAL.get()).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// `neon.file_cache_prewarm_batch`.
pub fn prewarm_batch() -> u64 {
    u64::try_from(PREWARM_BATCH.get()).unwrap_or(1)
}

fn bytes(setting: &GucSetting<i32>) -> u64 {
    u64::try_from(setting.get()).unwrap_or(0) * 1024 * 1024
}

/// `neon.max_file_cache_size` in bytes.
pub fn max_size() -> u64 {
    bytes(&MAX_SIZE)
}

/// `neon.file_cache_size_limit` in bytes.
pub fn size_limit() -> u64 {
    bytes(&SIZE_LIMIT)
}

/// `neon.file_cache_chunk_size`.
pub fn chunk_blocks() -> u32 {
    u32::try_from(CHUNK_SIZE.get()).unwrap_or(1)
}

/// `neon.file_cache_path`.
pub fn path() -> PathBuf {
    PathBuf::from(PATH.get().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default())
}

/// Whether `neon.file_cache_hold_writes` is for a relation with this file number.
pub fn holds_writes(rel_number: u32) -> bool {
    let held = HOLD_WRITES.get();
    held != 0 && u32::try_from(held) == Ok(rel_number)
}
