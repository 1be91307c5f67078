//! An environment that wants tokens: everything works as without, nobody gets in without one, and keys are exchanged while
//! a compute writes.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use postgres::NoTls;
use system_tests::cluster::{DEADLINE, open_tempdir, wait_until};
use system_tests::load::Meter;
use system_tests::safekeeper_api::SafekeeperApi;
use system_tests::{Cluster, Place, bank};

/// Transfers that must be acknowledged after each step.
const TRANSFERS_BETWEEN: u64 = 20;

fn wait_for_transfers(cluster: &Cluster, load: &Meter, step: &str) -> Result<()> {
    let before = load.acknowledged();
    wait_until("transfers are acknowledged", || {
        Ok(load.acknowledged() >= before + TRANSFERS_BETWEEN)
    })
    .inspect_err(|_| cluster.print_logs())
    .with_context(|| step.to_owned())
}

/// A port of the Postgres protocol refuses a login with this password; what it says.
fn login_refused(port: u16, password: Option<&str>) -> Result<String> {
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(port).user("x").connect_timeout(DEADLINE);
    if let Some(password) = password {
        config.password(password);
    }
    match config.connect(NoTls) {
        Ok(_) => anyhow::bail!("port {port} lets {password:?} in"),
        Err(error) => Ok(format!("{:?} {error:?}", error.code())),
    }
}

/// Status of a request.
fn http(port: u16, path: &str, token: Option<&str>) -> Result<u16> {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent: ureq::Agent = config.timeout_global(Some(DEADLINE)).build().into();
    let mut request = agent.get(format!("http://127.0.0.1:{port}{path}"));
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    Ok(request.call()?.status().as_u16())
}

struct Ports {
    page_server: (u16, u16),
    safekeeper: (u16, u16),
}

impl Ports {
    fn of(cluster: &Cluster) -> Result<Ports> {
        let status: serde_json::Value =
            serde_json::from_str(&cluster.neon(&["--json", "status"])?)?;
        let port = |index: usize| -> Option<u16> {
            u16::try_from(status[0]["ports"][index].as_u64()?).ok()
        };
        let page_server = port(0).zip(port(1)).context("the page server has no ports")?;
        let safekeepers = SafekeeperApi::all(cluster)?;
        let safekeeper = safekeepers.first().context("there is no safekeeper")?;
        Ok(Ports { page_server, safekeeper: (safekeeper.pg_port, safekeeper.http_port) })
    }
}

fn token(cluster: &Cluster, args: &[&str]) -> Result<String> {
    Ok(cluster.neon(&[&["token", "create"], args].concat())?.trim().to_owned())
}

fn check_refusals(cluster: &Cluster, ports: &Ports) -> Result<()> {
    for port in [ports.page_server.0, ports.safekeeper.0] {
        login_refused(port, None)?;
        let said = login_refused(port, Some("nonsense"))?;
        ensure!(said.contains("28000") && said.contains("not a JSON Web Token"), "{said}");
    }
    let tenant = token(cluster, &["--scope", "tenant"])?;
    for (port, list) in
        [(ports.page_server.1, "/v1/tenant"), (ports.safekeeper.1, "/v1/tenant/timeline")]
    {
        ensure!(http(port, list, None)? == 401);
        ensure!(http(port, list, Some("nonsense"))? == 401);
        ensure!(http(port, list, Some(&tenant))? == 403);
        ensure!(http(port, "/v1/status", None)? == 200);
        let admin = token(cluster, &["--scope", "admin", "--expires", "1h"])?;
        ensure!(http(port, list, Some(&admin))? == 200);
    }
    Ok(())
}

#[test]
fn everything_works_with_tokens_and_nothing_without() -> Result<()> {
    let cluster = Cluster::start_with(Place::from_env()?, &["--safekeepers", "3", "--auth"])?;
    let ports = Ports::of(&cluster)?;
    check_refusals(&cluster, &ports)?;
    let endpoint = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    bank::create(&mut endpoint.connect("postgres")?)?;
    let meter = Arc::default();
    let load = bank::Load::start(&endpoint, 2, &meter);
    wait_for_transfers(&cluster, &meter, "at first")?;
    // Copies from the others, and elections.
    cluster.neon(&["safekeeper", "add"])?;
    cluster.neon(&["safekeeper", "remove", "3"])?;
    wait_for_transfers(&cluster, &meter, "with another safekeeper")?;
    // One that was away catches up, and the page server finds somebody else to read from.
    cluster.kill("safekeeper-2/safekeeper.pid")?;
    wait_for_transfers(&cluster, &meter, "without one")?;
    cluster.kill("pageserver/pageserver.pid")?;
    cluster.neon(&["start"])?;
    wait_for_transfers(&cluster, &meter, "after a restart")?;

    // A new key: what runs goes on, what is new uses it, and the old one is needed until the compute was started again.
    let old = token(&cluster, &["--scope", "admin"])?;
    cluster.neon(&["token", "rotate"])?;
    let list = "/v1/tenant/timeline";
    ensure!(http(ports.safekeeper.1, list, Some(&old))? == 200);
    wait_for_transfers(&cluster, &meter, "with two keys")?;
    cluster.neon(&["timeline", "branch", "copy"])?;
    let refusal = cluster.try_neon(&["token", "retire"])?;
    let words = String::from_utf8_lossy(&refusal.stderr).into_owned();
    ensure!(refusal.status.code() == Some(4) && words.contains("start it again first"), "{words}");
    let acknowledged = load.finish()?;
    cluster.stop_endpoint(&endpoint, "fast")?;
    cluster.start_endpoint(&endpoint)?;
    cluster.neon(&["token", "retire"])?;
    for port in [ports.safekeeper.1, ports.page_server.1] {
        wait_until("the old key is worth nothing", || Ok(http(port, list, Some(&old))? == 401))?;
    }
    bank::check(&mut endpoint.connect("postgres")?, &acknowledged)?;
    cluster.kill("safekeeper-1/safekeeper.pid")?;
    cluster.neon(&["start"])?;
    endpoint.connect("postgres")?.batch_execute("CREATE TABLE late AS SELECT 1 AS one")?;

    let copy = cluster.endpoint("copy", "copy", &[])?;
    bank::check(&mut copy.connect("postgres")?, &std::collections::BTreeSet::new())?;
    let temp = open_tempdir("neon-backup-")?;
    let tar = temp.path().join("backup.tar");
    cluster.neon(&["timeline", "backup", "copy", "--output", &tar.to_string_lossy()])?;
    Ok(())
}

#[test]
fn users_of_the_database_do_not_see_the_token() -> Result<()> {
    let cluster = Cluster::start_with(Place::from_env()?, &["--auth"])?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    endpoint.connect("postgres")?.batch_execute("CREATE ROLE reader LOGIN")?;
    let mut reader = system_tests::cluster::connect(endpoint.port, "reader", "postgres")?;
    for sql in [
        "SHOW neon.pageserver_connstring",
        "SELECT pg_read_file('/proc/self/environ')",
        "COPY pg_temp.t FROM PROGRAM 'env'",
    ] {
        ensure!(reader.simple_query(sql).is_err(), "{sql}");
    }
    // A token is in no log, and files that hold one are their owner's alone.
    let file = cluster.endpoint_dir(&endpoint).join("compute.toml");
    let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata()?);
    ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", file.display());
    for log in [
        "pageserver/pageserver.log",
        "safekeeper-1/safekeeper.log",
        "endpoints/main/compute.log",
        "endpoints/main/postgres.log",
        "endpoints/main/walproposer.toml",
    ] {
        let text = std::fs::read_to_string(cluster.dir().join(log))?;
        ensure!(!text.contains("eyJ"), "{log} has a token in it");
    }
    Ok(())
}

#[test]
fn an_environment_without_tokens_wants_none() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let ports = Ports::of(&cluster)?;
    ensure!(http(ports.page_server.1, "/v1/tenant", None)? == 200);
    let refusal = cluster.try_neon(&["token", "create", "--scope", "admin"])?;
    ensure!(refusal.status.code() == Some(4));
    Ok(())
}
