//! What a user does wrong gets one clear sentence and an exit code that says what kind of wrong it was.

use std::fs;
use std::net::TcpListener;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use system_tests::cluster::open_tempdir;
use system_tests::{Cluster, Place};

/// Checks a refusal: exit code, and words of its one sentence.
fn refused(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "exit {:?}: {text}", output.status.code());
    let last = text.lines().last().unwrap_or_default();
    ensure!(last.starts_with("neon: "), "not a sentence of ours: {text}");
    for word in words {
        ensure!(last.contains(word), "\"{word}\" is missing in: {last}");
    }
    Ok(())
}

#[test]
fn mistakes_are_told_apart() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let install = cluster.place().install.root().to_string_lossy().into_owned();
    refused(&cluster.try_neon(&["start"])?, 4, &["already running"])?;
    refused(
        &cluster.try_neon(&["init", "--pg-install", &install])?,
        4,
        &["already an environment"],
    )?;
    refused(&cluster.try_neon(&["endpoint", "start", "nobody"])?, 3, &["no endpoint \"nobody\""])?;
    refused(
        &cluster.try_neon(&["timeline", "branch", "x", "--from", "y"])?,
        3,
        &["no branch \"y\""],
    )?;

    let endpoint = cluster.endpoint("main", "main", &[])?;
    refused(&cluster.try_neon(&["endpoint", "start", "main"])?, 4, &["already running"])?;
    refused(&cluster.try_neon(&["endpoint", "create", "main"])?, 4, &["already an endpoint"])?;
    cluster.neon(&["endpoint", "create", "second"])?;
    refused(&cluster.try_neon(&["endpoint", "start", "second"])?, 4, &["\"main\" already runs"])?;

    cluster.stop_endpoint(&endpoint, "fast")?;
    refused(&cluster.try_neon(&["endpoint", "stop", "main"])?, 6, &["not running"])?;
    let _taken = TcpListener::bind(("127.0.0.1", endpoint.port))?;
    refused(&cluster.try_neon(&["endpoint", "start", "main"])?, 4, &[&endpoint.port.to_string()])?;
    Ok(())
}

#[test]
fn a_setting_that_the_storage_depends_on_is_refused() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    cluster.neon(&["endpoint", "create", "main", "--set", "fsync=on"])?;
    refused(&cluster.try_neon(&["endpoint", "start", "main"])?, 1, &["fsync"])
}

#[test]
fn a_broken_configuration_or_a_taken_port_stops_a_service_with_its_name() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    cluster.neon(&["stop"])?;
    let override_file = cluster.dir().join("pageserver/pageserver.override.toml");
    fs::write(&override_file, "no_such_key = 1\n")?;
    refused(&cluster.try_neon(&["start"])?, 1, &["page server", "no_such_key"])?;
    fs::remove_file(&override_file)?;
    cluster.neon(&["stop"])?;

    let text = fs::read_to_string(cluster.dir().join("neon.toml"))?;
    let description: serde_json::Value = {
        // Only one number is needed of it.
        let port = text
            .lines()
            .find_map(|line| line.strip_prefix("http_port = ")?.parse::<u16>().ok())
            .context("neon.toml names no port")?;
        serde_json::json!({ "port": port })
    };
    let port = u16::try_from(description["port"].as_u64().context("a port")?)?;
    let _taken = TcpListener::bind(("127.0.0.1", port))?;
    refused(&cluster.try_neon(&["start"])?, 4, &[&port.to_string()])
}

#[test]
fn a_missing_environment_or_installation_is_named() -> Result<()> {
    let place = Place::from_env()?;
    let temp = open_tempdir("neon-test-")?;
    let run = |args: &[&str]| {
        std::process::Command::new(&place.neon).arg("--dir").arg(temp.path()).args(args).output()
    };
    refused(&run(&["start"])?, 3, &["neon init"])?;
    refused(&run(&["init", "--pg-install", "/nonexistent"])?, 1, &["/nonexistent", "postgres"])?;
    let usage = run(&["no-such-command"])?;
    ensure!(usage.status.code() == Some(2));
    Ok(())
}
