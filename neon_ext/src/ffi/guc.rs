//! Settings. Names that operators of such systems know are kept.

use std::ffi::{CStr, CString};
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

/// `neon.wal_redo` (L084): this process replays WAL for the page server and is no compute.
pub static WAL_REDO: GucSetting<bool> = GucSetting::<bool>::new(false);
static CONNSTRING: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static TENANT_ID: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static TIMELINE_ID: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static PROJECT_ID: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static BRANCH_ID: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static ENDPOINT_ID: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static PROTOCOL_VERSION: GucSetting<i32> = GucSetting::<i32>::new(3);
static SAFEKEEPER_PROTO_VERSION: GucSetting<i32> = GucSetting::<i32>::new(3);
static MAX_RECONNECT_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(60);
static RESPONSE_LOG_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static RESPONSE_DISCONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(120_000);
static ENABLE_PREFETCH: GucSetting<bool> = GucSetting::<bool>::new(true);
static EXPLAIN_STORAGE: GucSetting<bool> = GucSetting::<bool>::new(true);
static READAHEAD_BUFFER_SIZE: GucSetting<i32> = GucSetting::<i32>::new(128);
static READAHEAD_PULL_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(50);
static RELSIZE_HASH_SIZE: GucSetting<i32> = GucSetting::<i32>::new(65_536);
static LAST_WRITTEN_LSN_CACHE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(131_072);
static MAX_CLUSTER_SIZE: GucSetting<i32> = GucSetting::<i32>::new(-1);
static MAX_WRITE_LAG: GucSetting<i32> = GucSetting::<i32>::new(500);
static MAX_FLUSH_LAG: GucSetting<i32> = GucSetting::<i32>::new(10_240);
static MAX_APPLY_LAG: GucSetting<i32> = GucSetting::<i32>::new(0);
/// `neon.huge_pages`: shared memory that is in use becomes huge pages.
pub static HUGE_PAGES: GucSetting<bool> = GucSetting::<bool>::new(true);
/// `neon.audit_pages`: compare every evicted page with the page server's version.
pub static AUDIT_PAGES: GucSetting<bool> = GucSetting::<bool>::new(false);

/// Defines the one setting that the redo process needs.
pub fn define_redo() {
    GucRegistry::define_bool_guc(
        c"neon.wal_redo",
        c"Serve WAL redo requests instead of clients.",
        c"Set by the page server when it starts a WAL redo process.",
        &WAL_REDO,
        GucContext::Postmaster,
        GucFlags::NO_SHOW_ALL,
    );
}

/// Defines the settings of a compute.
pub fn define_compute() {
    define_identity();
    define_page_client();
    define_readahead();
    define_caches();
    define_backpressure();
    super::guc_file_cache::define();
    reserve_prefix();
}

/// A misspelled setting of ours is told at start instead of being kept and ignored.
#[expect(unsafe_code, reason = "calls a function of the server")]
fn reserve_prefix() {
    // SAFETY: a NUL-terminated text; called while libraries are loaded, as the function wants.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"neon".as_ptr()) };
}

fn text(
    name: &'static CStr,
    what: &'static CStr,
    more: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
    context: GucContext,
) {
    GucRegistry::define_string_guc(name, what, more, setting, context, GucFlags::empty());
}

fn define_identity() {
    GucRegistry::define_string_guc(
        c"neon.pageserver_connstring",
        c"Connection string of the page server.",
        c"Empty at server start: all relations are local files.",
        &CONNSTRING,
        GucContext::Sighup,
        // It may have a password.
        GucFlags::SUPERUSER_ONLY,
    );
    let start = || GucContext::Postmaster;
    text(c"neon.tenant_id", c"Tenant of this compute.", c"", &TENANT_ID, start());
    text(c"neon.timeline_id", c"Timeline of this compute.", c"", &TIMELINE_ID, start());
    text(c"neon.project_id", c"Label of the project.", c"", &PROJECT_ID, start());
    text(c"neon.branch_id", c"Label of the branch.", c"", &BRANCH_ID, start());
    text(c"neon.endpoint_id", c"Label of the endpoint.", c"", &ENDPOINT_ID, start());
}

fn define_page_client() {
    let none = GucFlags::empty();
    GucRegistry::define_int_guc(
        c"neon.protocol_version",
        c"Version of the page stream.",
        c"Version 3 lets the compute check that each response belongs to its request.",
        &PROTOCOL_VERSION,
        2,
        3,
        GucContext::SuBackend,
        none,
    );
    GucRegistry::define_int_guc(
        c"neon.safekeeper_proto_version",
        c"Version of the protocol that safekeepers are spoken to in.",
        c"Version 2 is for timelines without membership. Read by what starts the compute.",
        &SAFEKEEPER_PROTO_VERSION,
        2,
        3,
        GucContext::Postmaster,
        none,
    );
    GucRegistry::define_int_guc(
        c"neon.max_reconnect_attempts",
        c"Failed attempts in a row to get an answer from the page server.",
        c"After more failures the process ends with SIGABRT.",
        &MAX_RECONNECT_ATTEMPTS,
        0,
        i32::MAX,
        GucContext::Suset,
        none,
    );
    GucRegistry::define_int_guc(
        c"neon.pageserver_response_log_timeout",
        c"Time without a response after which a message is logged, and again after each such time.",
        c"",
        &RESPONSE_LOG_TIMEOUT,
        100,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"neon.pageserver_response_disconnect_timeout",
        c"Time without a response after which the connection is closed and the request sent again.",
        c"",
        &RESPONSE_DISCONNECT_TIMEOUT,
        100,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"neon.audit_pages",
        c"Compare each page that leaves shared buffers with the page server's version of it.",
        c"For tests: a difference is logged with both pages and stops the server.",
        &AUDIT_PAGES,
        GucContext::Suset,
        none,
    );
}

fn define_readahead() {
    GucRegistry::define_bool_guc(
        c"neon.enable_prefetch",
        c"Ask the page server for pages before they are needed.",
        c"",
        &ENABLE_PREFETCH,
        GucContext::Userset,
        GucFlags::empty(),
    );
    GucRegistry::define_bool_guc(
        c"neon.explain_storage",
        c"Show in EXPLAIN (ANALYZE, BUFFERS) what a statement read from storage.",
        c"Off: the output is that of stock PostgreSQL.",
        &EXPLAIN_STORAGE,
        GucContext::Userset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"neon.readahead_buffer_size",
        c"Pages that a process may have asked for ahead of need.",
        c"Also bounds how far ahead of a sequential reader requests go: half of it.",
        &READAHEAD_BUFFER_SIZE,
        16,
        1024,
        GucContext::Userset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"neon.readahead_getpage_pull_timeout",
        c"Time after which a busy process takes waiting answers of the page server off the socket; 0 means never.",
        c"",
        &READAHEAD_PULL_TIMEOUT,
        0,
        300_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

fn define_caches() {
    let none = GucFlags::empty();
    GucRegistry::define_int_guc(
        c"neon.relsize_hash_size",
        c"Relation forks whose size is kept in shared memory.",
        c"",
        &RELSIZE_HASH_SIZE,
        1024,
        i32::MAX / 64,
        GucContext::Postmaster,
        none,
    );
    GucRegistry::define_int_guc(
        c"neon.last_written_lsn_cache_size",
        c"Pages whose last change is kept in shared memory.",
        c"",
        &LAST_WRITTEN_LSN_CACHE_SIZE,
        1024,
        i32::MAX / 64,
        GucContext::Postmaster,
        none,
    );
    GucRegistry::define_int_guc(
        c"neon.max_cluster_size",
        c"Size of the timeline beyond which relations cannot be extended; -1 and 0 mean any size.",
        c"",
        &MAX_CLUSTER_SIZE,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_bool_guc(
        c"neon.huge_pages",
        c"Have the kernel put shared memory that is in use into huge pages.",
        c"It needs none that were reserved (huge_pages). Linux 6.1 or later.",
        &HUGE_PAGES,
        GucContext::Postmaster,
        none,
    );
}

fn define_backpressure() {
    let lag = |name, what, more, setting| {
        let (min, max) = (0, i32::MAX);
        let context = GucContext::Sighup;
        GucRegistry::define_int_guc(
            name,
            what,
            more,
            setting,
            min,
            max,
            context,
            GucFlags::UNIT_MB,
        );
    };
    lag(
        c"neon.max_replication_write_lag",
        c"WAL that the page server has not received at which each writer gets 1 MB/s; 0 means any.",
        c"Writers slow down from half of it on, and nearly stop at twice of it.",
        &MAX_WRITE_LAG,
    );
    lag(
        c"neon.max_replication_flush_lag",
        c"WAL that the page server has not made durable at which each writer gets 1 MB/s; 0 means any.",
        c"Must be well above the amount of WAL that the page server collects before it writes a layer.",
        &MAX_FLUSH_LAG,
    );
    lag(
        c"neon.max_replication_apply_lag",
        c"WAL that is not durable in the object store at which each writer gets 1 MB/s; 0 means any.",
        c"",
        &MAX_APPLY_LAG,
    );
}

fn string(setting: &GucSetting<Option<CString>>) -> String {
    setting.get().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn millis(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(u64::try_from(setting.get()).unwrap_or(0))
}

fn mebibytes(setting: &GucSetting<i32>) -> u64 {
    u64::try_from(setting.get()).unwrap_or(0).saturating_mul(1024 * 1024)
}

/// `neon.pageserver_connstring`.
pub fn connstring() -> String {
    string(&CONNSTRING)
}

/// `neon.tenant_id`.
pub fn tenant_id() -> String {
    string(&TENANT_ID)
}

/// `neon.timeline_id`.
pub fn timeline_id() -> String {
    string(&TIMELINE_ID)
}

/// `neon.endpoint_id`.
pub fn endpoint_id() -> String {
    string(&ENDPOINT_ID)
}

/// `neon.protocol_version`.
pub fn protocol_version() -> page_protocol::ProtocolVersion {
    match PROTOCOL_VERSION.get() {
        2 => page_protocol::ProtocolVersion::V2,
        _ => page_protocol::ProtocolVersion::V3,
    }
}

/// `neon.max_reconnect_attempts`.
pub fn max_reconnect_attempts() -> u32 {
    u32::try_from(MAX_RECONNECT_ATTEMPTS.get()).unwrap_or(0)
}

/// `neon.pageserver_response_log_timeout`.
pub fn response_log_timeout() -> Duration {
    millis(&RESPONSE_LOG_TIMEOUT)
}

/// `neon.pageserver_response_disconnect_timeout`.
pub fn response_disconnect_timeout() -> Duration {
    millis(&RESPONSE_DISCONNECT_TIMEOUT)
}

/// `neon.enable_prefetch`.
pub fn enable_prefetch() -> bool {
    ENABLE_PREFETCH.get()
}

/// `neon.explain_storage`.
pub fn explain_storage() -> bool {
    EXPLAIN_STORAGE.get()
}

/// `neon.readahead_buffer_size`.
pub fn readahead_buffer_size() -> usize {
    usize::try_from(READAHEAD_BUFFER_SIZE.get()).unwrap_or(0)
}

/// `neon.readahead_getpage_pull_timeout`, in milliseconds; 0 means never.
pub fn pull_timeout_ms() -> i32 {
    READAHEAD_PULL_TIMEOUT.get()
}

/// `neon.relsize_hash_size`.
pub fn relsize_hash_size() -> usize {
    usize::try_from(RELSIZE_HASH_SIZE.get()).unwrap_or(0)
}

/// `neon.last_written_lsn_cache_size`.
pub fn last_written_lsn_cache_size() -> usize {
    usize::try_from(LAST_WRITTEN_LSN_CACHE_SIZE.get()).unwrap_or(0)
}

/// `neon.max_cluster_size` in bytes; `None` when there is no limit.
pub fn max_cluster_size() -> Option<u64> {
    Some(mebibytes(&MAX_CLUSTER_SIZE)).filter(|bytes| *bytes > 0)
}

/// The three lag limits, in bytes.
pub fn lag_limits() -> compute_core::backpressure::Limits {
    compute_core::backpressure::Limits {
        write: mebibytes(&MAX_WRITE_LAG),
        flush: mebibytes(&MAX_FLUSH_LAG),
        apply: mebibytes(&MAX_APPLY_LAG),
    }
}
