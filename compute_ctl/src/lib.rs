//! Compute supervisor: safekeeper sync, basebackup, configuration, Postgres and walproposer as children
