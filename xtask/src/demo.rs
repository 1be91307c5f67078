//! `cargo xtask demo`: from nothing to a running system that loses its compute and no row.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pg_launch::PgInstall;
use system_tests::{Cluster, Endpoint, Place};

use crate::build::{self, Built};
use crate::run::{check, root, step};

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave the system running.
    #[arg(long)]
    keep: bool,
    /// Directory of the environment.
    #[arg(long, default_value = ".neon")]
    dir: PathBuf,
    /// Scale of pgbench: 100,000 accounts each.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Seconds of pgbench.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

/// File that says that a demo made an environment, and may remove it.
const MARKER: &str = "made-by-demo";

/// What must be the same before and after the compute is thrown away.
const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' ||
    (SELECT sum(tbalance) FROM pgbench_tellers) || ' ' ||
    (SELECT sum(bbalance) FROM pgbench_branches) || ' ' ||
    (SELECT coalesce(sum(delta), 0) || ' ' || count(*) FROM pgbench_history)";

/// Runs the demo.
pub fn run(options: &Options) -> Result<()> {
    let built = build::everything()?;
    let dir =
        if options.dir.is_absolute() { options.dir.clone() } else { root().join(&options.dir) };
    forget_old(&built, &dir)?;
    let place = Place { neon: built.neon.clone(), install: built.compute.clone() };
    let mut cluster =
        step("start page server and safekeeper", || Cluster::start_in(place, dir.clone(), false))?;
    std::fs::write(dir.join(MARKER), "")?;
    let endpoint = step("start a compute", || cluster.endpoint("main", "main", &[]))?;
    pgbench(&built.compute, &endpoint, options)?;
    let before = endpoint.value(SUMS)?;
    step("throw the compute away (kill -9, data directory deleted)", || {
        cluster.kill("endpoints/main/compute.pid")?;
        let pgdata = cluster.endpoint_dir(&endpoint).join("pgdata");
        std::fs::remove_dir_all(&pgdata).with_context(|| format!("remove {}", pgdata.display()))
    })?;
    step("start a new compute", || cluster.start_endpoint(&endpoint))?;
    let after = step("compare every sum", || endpoint.value(SUMS))?;
    ensure!(before == after, "sums differ: before {before}, after {after}");
    let check_total = endpoint.value(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) =
                (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    )?;
    ensure!(check_total == "t", "balances and history disagree");
    println!("sums before and after are equal: {after}");
    finish(&mut cluster, &built, &endpoint, options)
}

/// An environment left by an earlier demo is stopped and removed; anything else is not touched.
fn forget_old(built: &Built, dir: &std::path::Path) -> Result<()> {
    if !dir.join("neon.toml").exists() {
        return Ok(());
    }
    ensure!(
        dir.join(MARKER).exists(),
        "{} holds an environment that no demo made: remove it, or choose another --dir",
        dir.display()
    );
    step("stop and remove the environment of the last demo", || {
        let mut stop = Command::new(&built.neon);
        check(stop.arg("--dir").arg(dir).args(["stop", "--mode", "immediate"]))?;
        Ok(std::fs::remove_dir_all(dir)?)
    })
}

fn pgbench(install: &PgInstall, endpoint: &Endpoint, options: &Options) -> Result<()> {
    let port = endpoint.port.to_string();
    let command = |args: &[&str]| {
        let mut command = Command::new(install.program("pgbench"));
        command.env("LD_LIBRARY_PATH", install.lib_dir());
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", system_tests::cluster::SUPERUSER]);
        command.args(args).arg("postgres");
        command
    };
    let (scale, seconds) = (options.scale.to_string(), options.seconds.to_string());
    step("load pgbench's tables", || check(&mut command(&["-i", "-q", "-s", &scale])))?;
    step("run pgbench", || {
        check(&mut command(&["-c", "8", "-j", "2", "-M", "prepared", "-P", "2", "-T", &seconds]))
    })
}

fn finish(
    cluster: &mut Cluster,
    built: &Built,
    endpoint: &Endpoint,
    options: &Options,
) -> Result<()> {
    let psql = built.compute.program("psql");
    let line = format!(
        "LD_LIBRARY_PATH={} {} postgresql://{}@127.0.0.1:{}/postgres",
        built.compute.lib_dir().display(),
        psql.display(),
        system_tests::cluster::SUPERUSER,
        endpoint.port
    );
    if options.keep {
        cluster.keep();
        println!("the system runs; connect with\n  {line}");
        println!("stop it with\n  {} --dir {} stop", built.neon.display(), cluster.dir().display());
        return Ok(());
    }
    cluster.neon(&["stop"])?;
    std::fs::remove_dir_all(cluster.dir())?;
    println!("while it ran, this line connected to it (use --keep to leave it running):\n  {line}");
    Ok(())
}
