//! A safekeeper that was out for long, in a majority that cannot do without it.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pg_types::Lsn;
use pg_types::xlog::WAL_SEGMENT_SIZE;
use system_tests::cluster::wait_until;
use system_tests::safekeeper_api::SafekeeperApi;
use system_tests::{Cluster, Place};

/// The page server has everything in durable layers, and says so to the one safekeeper that it reads from. That one must keep
/// what the absent safekeeper lacks all the same: nobody else may be there to give it.
#[test]
fn wal_that_an_absent_safekeeper_lacks_is_kept_for_it() -> Result<()> {
    let cluster = Cluster::start_with(Place::from_env()?, &["--safekeepers", "3"])?;
    let settings = cluster.dir().join("pageserver/pageserver.override.toml");
    fs::write(settings, "memtable_bytes = 4000000\ncheckpoint_timeout = \"1s\"\n")?;
    cluster.kill("pageserver/pageserver.pid")?;
    cluster.neon(&["start"])?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    let safekeepers = SafekeeperApi::all(&cluster)?;
    let [absent, others @ ..] = &safekeepers[..] else { anyhow::bail!("no safekeepers") };
    let timeline = absent.only_timeline()?;
    let [began_at] = absent.lsns(&timeline, ["commit_lsn"])?;
    cluster.kill(&absent.pid_file())?;
    endpoint.connect("postgres")?.batch_execute(
        "CREATE TABLE data AS SELECT i, repeat(md5(i::text), 30) AS t FROM generate_series(1, 50000) i",
    )?;
    // A walproposer that did not see this WAL: what the absent one lacks is on the other safekeepers only.
    cluster.stop_endpoint(&endpoint, "immediate")?;
    cluster.start_endpoint(&endpoint)?;
    let durable = began_at + 2 * WAL_SEGMENT_SIZE;
    let informed = |node: &&SafekeeperApi| -> Result<bool> {
        let [remote_consistent_lsn]: [Lsn; 1] = node.lsns(&timeline, ["remote_consistent_lsn"])?;
        Ok(durable < remote_consistent_lsn)
    };
    let mut found = None;
    wait_until("a safekeeper hears that two segments are in durable layers", || {
        for node in others {
            if informed(&node)? {
                found = Some(node);
            }
        }
        Ok(found.is_some())
    })?;
    let informed = found.context("no safekeeper")?;
    informed.checkpoint(&timeline)?;
    for other in others.iter().filter(|node| node.id != informed.id) {
        let pid = i32::try_from(cluster.pid(&other.pid_file())?)?;
        // Stopped, not killed: the next command would start it again.
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    }
    cluster.neon(&["start"])?;
    let endpoint = endpoint.clone();
    let commit = std::thread::spawn(move || -> Result<()> {
        Ok(endpoint.connect("postgres")?.batch_execute("CREATE TABLE after (i int)")?)
    });
    wait_until("two of three safekeepers commit", || Ok(commit.is_finished()))?;
    commit.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
}
