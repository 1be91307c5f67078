//! WAL of a whole system in an object store: it is what stock tools read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pg_types::Lsn;
use pg_types::xlog::{segment_file_name, segment_number, segment_start};
use system_tests::cluster::{single_value, wait_until};
use system_tests::{Cluster, Place};

/// A file of this name somewhere below.
fn find(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|found| found == name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[test]
fn segments_in_the_store_are_what_postgres_reads() -> Result<()> {
    let place = Place::from_env()?;
    let install = place.install.clone();
    let cluster = Cluster::start(place)?;
    let store = cluster.dir().join("wal-backup");
    let settings = format!("[remote_storage]\nlocal_path = '{}'\n", store.display());
    cluster.neon(&["stop"])?;
    fs::write(cluster.dir().join("safekeeper-1/safekeeper.override.toml"), settings)?;
    cluster.neon(&["start"])?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    let mut client = endpoint.connect("postgres")?;
    client.batch_execute("CREATE TABLE t(a int)")?;
    for _ in 0..3 {
        client.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)")?;
        client.batch_execute("SELECT pg_switch_wal()")?;
    }
    client.batch_execute("INSERT INTO t VALUES (0)")?;
    let now = single_value(&mut client, "SELECT pg_current_wal_flush_lsn()::text")?;
    let now: Lsn = now.parse().map_err(|error| anyhow::anyhow!("{now}: {error}"))?;
    let first = segment_number(now) - 3;
    let last = segment_file_name(1, segment_number(now) - 1);
    let mut found = None;
    wait_until("the segments are in the store", || {
        found = find(&store, &last)?;
        Ok(found.is_some())
    })?;
    let dir = found.as_deref().and_then(Path::parent).context("no folder")?;
    // The first segment of a timeline begins where the timeline does; the others are whole.
    let output = install
        .command("pg_waldump", None)
        .arg("--path")
        .arg(dir)
        .arg(format!("--start={}", segment_start(first + 1)))
        .arg(format!("--end={}", segment_start(segment_number(now))))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    let switches = text.lines().filter(|line| line.contains("desc: SWITCH")).count();
    let inserts = text.lines().filter(|line| line.contains("rmgr: Heap ")).count();
    ensure!(switches == 2 && inserts >= 2000, "{switches} switches, {inserts} inserts");
    Ok(())
}
