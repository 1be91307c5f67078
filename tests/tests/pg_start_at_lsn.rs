//! Starting at an LSN without a checkpoint record (`postgres_patches`, 0003; L120–L123).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pg_launch::PgInstall;
use pg_types::Lsn;
use pg_types::xlog::{WAL_SEGMENT_SIZE, XLOG_BLCKSZ, normalize};
use system_tests::StockServer;
use system_tests::cluster::{install_from_env, single_value, wait_until};
use system_tests::lsn_datadir::{PrevLsn, WalArchive, convert, end_of_wal};

/// Nothing but the test writes WAL.
const SETTINGS: [(&str, &str); 5] = [
    ("autovacuum", "off"),
    ("max_wal_senders", "4"),
    ("wal_keep_size", "512MB"),
    ("max_prepared_transactions", "4"),
    ("fsync", "off"),
];
/// What a shutdown checkpoint record takes, aligned.
const CHECKPOINT_LEN: u64 = 120;

struct Place {
    install: PgInstall,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Place> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
        Ok(Place { install: install_from_env("NEON_PG_INSTALL")?, dir })
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn pgdata(&self) -> PathBuf {
        self.run_dir().join("pgdata")
    }

    fn initdb(&self) -> Result<StockServer> {
        StockServer::start(self.install.clone(), &self.run_dir(), &SETTINGS)
    }

    fn start(&self) -> Result<StockServer> {
        StockServer::start_on(self.install.clone(), &self.run_dir(), &SETTINGS)
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.pgdata().with_extension("log"))?)
    }

    /// Runs a server that is expected to end by itself, and returns what it said.
    fn refused(&self) -> Result<String> {
        let user = pg_launch::ensure_system_user()?;
        if let Some(user) = &user {
            user.give(&self.run_dir())?;
        }
        let mut command = self.install.command("postgres", user.as_ref());
        command.arg("-D").arg(self.pgdata()).args(["-c", "listen_addresses="]);
        command.arg("-c").arg(format!("unix_socket_directories={}", self.pgdata().display()));
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "the server was to refuse: {said}");
        Ok(said)
    }
}

/// Where the WAL of a run is to end, so that the next one begins there.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Somewhere in a page.
    Anywhere,
    /// Exactly at the end of a page.
    Page,
    /// Exactly at the end of a segment.
    Segment,
}

impl End {
    fn is_met(self, end: Lsn) -> bool {
        match self {
            End::Anywhere => end.0 % XLOG_BLCKSZ > 40,
            End::Page => end.0 % XLOG_BLCKSZ == 24,
            End::Segment => end.0 % WAL_SEGMENT_SIZE == 40,
        }
    }

    /// Writes WAL that no one needs until a shutdown checkpoint would end in the right place.
    fn prepare(self, server: &StockServer) -> Result<()> {
        let mut client = server.connect("postgres")?;
        let mut emit = |bytes: u64| -> Result<Lsn> {
            let sql = format!("SELECT pg_logical_emit_message(false, '', repeat('x', {bytes}))");
            client.batch_execute(&sql)?;
            let lsn = single_value(&mut client, "SELECT pg_current_wal_insert_lsn()::text")?;
            lsn.parse().map_err(|error| anyhow::anyhow!("{lsn}: {error}"))
        };
        let room = |from: Lsn, unit: u64| unit - from.0 % unit;
        let mut position = emit(8)?;
        let unit = match self {
            End::Anywhere => return Ok(()),
            End::Page => XLOG_BLCKSZ,
            End::Segment => WAL_SEGMENT_SIZE,
        };
        // Up to the last page of the unit, then to a place with room for one message and the checkpoint.
        while room(position, unit) > XLOG_BLCKSZ {
            position = emit((room(position, unit) / 2).min(1 << 20))?;
        }
        while room(position, unit) < CHECKPOINT_LEN + 512 {
            position = emit(1024)?;
        }
        if room(position, unit) > XLOG_BLCKSZ {
            // The message before went into the next unit.
            return self.prepare(server);
        }
        // A message of 300 bytes shows what one takes beside its text.
        let after = emit(300)?;
        let overhead = after.0 - position.0 - 300;
        position = after;
        let bytes = room(position, unit).checked_sub(CHECKPOINT_LEN + overhead);
        emit(bytes.context("no room left")?)?;
        Ok(())
    }
}

/// Starts, writes, stops; makes a base backup at the end; and again. All WAL must be one readable stream.
fn restarts(ends: &[End]) -> Result<()> {
    let place = Place::new()?;
    let wal = place.pgdata().join("pg_wal");
    let archive_dir = place.dir.path().join("archive");
    fs::create_dir(&archive_dir)?;
    let mut archive = WalArchive::new(&archive_dir);

    let mut server = place.initdb()?;
    server.connect("postgres")?.batch_execute("CREATE TABLE t(run int)")?;
    let mut first = None;
    for (run, end) in ends.iter().enumerate() {
        end.prepare(&server)?;
        server.stop()?;
        let stopped = end_of_wal(&place.install, &place.pgdata())?;
        ensure!(end.is_met(stopped.end), "{end:?}: ended at {}", stopped.end);
        if let Some((_, start)) = first {
            archive.add(&wal, start, stopped.end)?;
        }
        first = Some((first.map_or(stopped.end, |(first, _)| first), stopped.end));
        convert(&place.pgdata(), stopped.end, PrevLsn::At(stopped.checkpoint), "neon.signal")?;

        server = place.start()?;
        let log = place.log()?;
        let said =
            format!("starting at {}, after the record at {}", stopped.end, stopped.checkpoint);
        ensure!(log.contains(&said) && !log.contains("redo starts"), "{log}");
        ensure!(!place.pgdata().join("neon.signal").exists(), "the signal file is still there");
        let mut client = server.connect("postgres")?;
        client.execute("INSERT INTO t VALUES ($1)", &[&i32::try_from(run)?])?;
        let count: i64 = client.query_one("SELECT count(*) FROM t", &[])?.get(0);
        ensure!(count == i64::try_from(run)? + 1);
    }
    server.stop()?;
    let stopped = end_of_wal(&place.install, &place.pgdata())?;
    let (first, start) = first.context("no run")?;
    archive.add(&wal, start, stopped.end)?;
    let records = archive.read(&place.install, first)?;
    let count = |what: &str| records.iter().filter(|line| line.contains(what)).count();
    ensure!(count("CHECKPOINT_SHUTDOWN") == ends.len(), "{records:#?}");
    ensure!(count("rmgr: Heap ") >= ends.len(), "{records:#?}");
    Ok(())
}

#[test]
fn three_restarts_inside_pages() -> Result<()> {
    restarts(&[End::Anywhere; 3])
}

#[test]
fn three_restarts_at_page_ends() -> Result<()> {
    restarts(&[End::Page; 3])
}

#[test]
fn restarts_at_segment_ends() -> Result<()> {
    restarts(&[End::Segment, End::Anywhere, End::Segment, End::Page])
}

/// A stopped server and where its WAL ends.
fn stopped() -> Result<(Place, Lsn, Lsn)> {
    let place = Place::new()?;
    let mut server = place.initdb()?;
    server.connect("postgres")?.batch_execute("CREATE TABLE t AS SELECT 1 AS a")?;
    server.stop()?;
    let end = end_of_wal(&place.install, &place.pgdata())?;
    Ok((place, end.end, end.checkpoint))
}

#[test]
fn without_a_record_before_the_first_points_to_none() -> Result<()> {
    let (place, end, _) = stopped()?;
    // A fresh branch may begin anywhere later too: here far off, behind the header of a segment.
    let start = normalize(Lsn((end.0 / WAL_SEGMENT_SIZE + 70) * WAL_SEGMENT_SIZE));
    convert(&place.pgdata(), start, PrevLsn::None, "zenith.signal")?;
    let mut server = place.start()?;
    let mut client = server.connect("postgres")?;
    client.batch_execute("INSERT INTO t VALUES (2)")?;
    drop(client);
    server.stop()?;
    ensure!(!place.pgdata().join("zenith.signal").exists());
    let stopped = end_of_wal(&place.install, &place.pgdata())?;
    let archive_dir = place.dir.path().join("archive");
    fs::create_dir(&archive_dir)?;
    let mut archive = WalArchive::new(&archive_dir);
    archive.add(&place.pgdata().join("pg_wal"), start, stopped.end)?;
    let records = archive.read(&place.install, start)?;
    // XLogBytePosToRecPtr gives the first place of all for 0.
    ensure!(records[0].contains("prev 0/00000028"), "{}", records[0]);
    Ok(())
}

#[test]
fn a_clean_stop_makes_an_ordinary_data_directory() -> Result<()> {
    let (place, end, checkpoint) = stopped()?;
    convert(&place.pgdata(), end, PrevLsn::At(checkpoint), "neon.signal")?;
    let mut server = place.start()?;
    // Nothing is written: the shutdown checkpoint begins exactly at the start LSN.
    server.stop()?;
    ensure!(end_of_wal(&place.install, &place.pgdata())?.checkpoint == end);
    for run in 0..2 {
        let mut server = place.start()?;
        let log = place.log()?;
        ensure!(!log.contains("starting at"), "run {run}: {log}");
        let mut client = server.connect("postgres")?;
        client.batch_execute("INSERT INTO t VALUES (2)")?;
        drop(client);
        server.stop()?;
    }
    let server = place.start()?;
    ensure!(single_value(&mut server.connect("postgres")?, "SELECT count(*)::text FROM t")? == "3");
    Ok(())
}

#[test]
fn prepared_transactions_and_statistics_survive() -> Result<()> {
    let place = Place::new()?;
    let mut server = place.initdb()?;
    let mut client = server.connect("postgres")?;
    client.batch_execute("CREATE TABLE t(a int)")?;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'p'")?;
    client.batch_execute("INSERT INTO t VALUES (2); SELECT pg_stat_force_next_flush()")?;
    // Rows of the prepared transaction count when it commits.
    let inserted = "SELECT n_tup_ins::text FROM pg_stat_user_tables WHERE relname = 't'";
    ensure!(single_value(&mut client, inserted)? == "1");
    drop(client);
    server.stop()?;
    let end = end_of_wal(&place.install, &place.pgdata())?;
    convert(&place.pgdata(), end.end, PrevLsn::At(end.checkpoint), "neon.signal")?;
    let server = place.start()?;
    let mut client = server.connect("postgres")?;
    ensure!(single_value(&mut client, "SELECT gid FROM pg_prepared_xacts")? == "p");
    ensure!(single_value(&mut client, inserted)? == "1", "statistics were reset");
    client.batch_execute("COMMIT PREPARED 'p'")?;
    ensure!(single_value(&mut client, "SELECT count(*)::text FROM t")? == "2");
    Ok(())
}

#[test]
fn what_cannot_be_right_is_refused() -> Result<()> {
    let (place, end, checkpoint) = stopped()?;
    let signal = place.pgdata().join("neon.signal");
    for (prev, line) in [
        (PrevLsn::Invalid, "invalid"),
        (PrevLsn::At(end), "0/"),
        (PrevLsn::At(Lsn(end.0 - end.0 % XLOG_BLCKSZ)), "0/"),
    ] {
        convert(&place.pgdata(), end, prev, "neon.signal")?;
        let said = place.refused()?;
        let wanted = format!("FATAL:  cannot start at {end} with \"PREV LSN: {line}");
        ensure!(said.contains(&wanted), "{prev:?}: {said}");
        ensure!(signal.exists());
    }
    fs::write(&signal, "something else\n")?;
    let said = place.refused()?;
    ensure!(said.contains("with \"something else\" in the signal file"), "{said}");
    fs::write(&signal, "")?;
    let said = place.refused()?;
    ensure!(said.contains("could not read the signal file"), "{said}");

    // A WAL page that is not that of the start LSN.
    convert(&place.pgdata(), end, PrevLsn::At(checkpoint), "neon.signal")?;
    let segment = fs::read_dir(place.pgdata().join("pg_wal"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.is_file())
        .context("no segment")?;
    let intact = fs::read(&segment)?;
    fs::write(&segment, vec![0; intact.len()])?;
    let said = place.refused()?;
    ensure!(said.contains(&format!("invalid WAL page at start LSN {end}")), "{said}");
    fs::write(&segment, intact)?;
    place.start()?.stop()
}

#[test]
fn a_data_directory_that_crashed_is_not_started_again() -> Result<()> {
    let (place, end, checkpoint) = stopped()?;
    convert(&place.pgdata(), end, PrevLsn::At(checkpoint), "neon.signal")?;
    let mut server = place.start()?;
    server.connect("postgres")?.batch_execute("INSERT INTO t VALUES (2)")?;
    server.crash()?;
    // Killed after its start was complete: there is no checkpoint record to begin with.
    let said = place.refused()?;
    ensure!(
        said.contains(&format!("could not locate a valid checkpoint record at {end}")),
        "{said}"
    );
    // Killed just before: the signal file is still there.
    fs::write(place.pgdata().join("neon.signal"), format!("PREV LSN: {checkpoint}\n"))?;
    let said = place.refused()?;
    ensure!(said.contains(&format!("cannot start at {end} a second time")), "{said}");
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[test]
fn a_standby_starts_at_an_lsn_and_follows() -> Result<()> {
    let (place, end, checkpoint) = stopped()?;
    convert(&place.pgdata(), end, PrevLsn::At(checkpoint), "neon.signal")?;
    let standby_dir = place.dir.path().join("standby");
    fs::create_dir(&standby_dir)?;
    let standby_data = standby_dir.join("pgdata");
    copy_tree(&place.pgdata(), &standby_data)?;
    // A standby may start where the record before is not known.
    fs::write(standby_data.join("neon.signal"), "PREV LSN: invalid\n")?;
    fs::write(standby_data.join("standby.signal"), "")?;

    let primary = place.start()?;
    let mut client = primary.connect("postgres")?;
    client.batch_execute("INSERT INTO t SELECT generate_series(2, 1000)")?;
    let from =
        format!("host=127.0.0.1 port={} user={}", primary.port(), system_tests::cluster::SUPERUSER);
    let mut settings = SETTINGS.to_vec();
    settings.push(("primary_conninfo", &from));
    let mut standby = StockServer::start_on(place.install.clone(), &standby_dir, &settings)?;
    let caught_up = |standby: &StockServer, rows: &str| {
        let mut client = standby.connect("postgres")?;
        Ok(single_value(&mut client, "SELECT count(*)::text FROM t")? == rows)
    };
    wait_until("the standby has the rows", || caught_up(&standby, "1000"))?;
    let log = fs::read_to_string(standby_data.with_extension("log"))?;
    ensure!(log.contains(&format!("starting at {end}")), "{log}");
    ensure!(log.contains(&format!("redo starts at {end}")), "{log}");

    // Stopped and started, with and without a restartpoint in between.
    standby.stop()?;
    standby = StockServer::start_on(place.install.clone(), &standby_dir, &settings)?;
    client.batch_execute("INSERT INTO t VALUES (0); CHECKPOINT")?;
    wait_until("the standby has the row", || caught_up(&standby, "1001"))?;
    standby.connect("postgres")?.batch_execute("CHECKPOINT")?;
    standby.stop()?;
    standby = StockServer::start_on(place.install.clone(), &standby_dir, &settings)?;
    client.batch_execute("INSERT INTO t VALUES (0)")?;
    wait_until("the standby has the last row", || caught_up(&standby, "1002"))?;
    Ok(())
}
