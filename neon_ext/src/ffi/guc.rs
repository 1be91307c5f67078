//! Settings.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

/// `neon.wal_redo` (L084): this process replays WAL for the page server and is no compute.
pub static WAL_REDO: GucSetting<bool> = GucSetting::<bool>::new(false);

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
