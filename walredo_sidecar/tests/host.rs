//! The host side alone, against children that are shell scripts: launch, protocol, time-outs, broken pipes.
//! No Postgres is needed.
#![cfg(test)]

mod common;

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::fake::{FakeInstall, INITDB};
use common::{Fixture, PG_VERSION, logs, redo_pids};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use pg_types::page::{ZERO_PAGE, set_lsn};
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, RelFileLocator, SlruKind};
use walredo_sidecar::metrics::{
    WAL_REDO_BYTES_HISTOGRAM, WAL_REDO_RECORD_COUNTER, WAL_REDO_RECORDS_HISTOGRAM, WAL_REDO_TIME,
    WAL_REDO_WAIT_TIME,
};
use walredo_sidecar::{NeonWalRecord, PostgresRedoManager, WalRedoError, WalRedoManager};

const LOCATOR: RelFileLocator = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

fn key() -> Key {
    Key::rel_block(LOCATOR.fork(ForkNumber::Main), 7)
}

fn postgres(lsn: u64, bytes: usize) -> (Lsn, NeonWalRecord) {
    (Lsn(lsn), NeonWalRecord::Postgres { will_init: true, rec: vec![b'r'; bytes].into() })
}

/// Answers one request of `size` bytes with a page of zeros, again and again.
fn answering(size: usize) -> String {
    format!(
        "while [ \"$(/usr/bin/head -c {size} | /usr/bin/wc -c)\" = {size} ]; do /usr/bin/head -c 8192 /dev/zero; done"
    )
}

/// B and G of 22 bytes each, and for each record 13 bytes and itself.
fn request_size(records: &[usize], image: bool) -> usize {
    44 + records.iter().map(|len| 13 + len).sum::<usize>() + if image { 22 + BLCKSZ } else { 0 }
}

struct Fake {
    fixture: Fixture,
    install: FakeInstall,
}

impl Fake {
    fn new(postgres: &str) -> Fake {
        Fake::with_timeout(postgres, Duration::from_secs(60))
    }

    fn with_timeout(postgres: &str, timeout: Duration) -> Fake {
        let install = FakeInstall::new(INITDB, postgres);
        let fixture = Fixture::bare(|config| {
            config.installs.insert(PG_VERSION, install.install());
            config.wal_redo_timeout = timeout;
        });
        Fake { fixture, install }
    }

    fn pids(&self) -> Vec<u32> {
        redo_pids(self.fixture.dir.path())
    }

    /// The only data directory there is.
    fn data_dir(&self) -> PathBuf {
        let entries: Vec<_> = std::fs::read_dir(self.fixture.tenant_dir())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries[0].clone()
    }
}

fn ask(manager: &PostgresRedoManager, len: usize) -> Result<Bytes, WalRedoError> {
    manager.request_redo(key(), Lsn(0x100), None, vec![postgres(0x100, len)], PG_VERSION)
}

fn io_text(result: Result<Bytes, WalRedoError>) -> (ErrorKind, String) {
    match result {
        Err(WalRedoError::IoError(error)) => (error.kind(), error.to_string()),
        other => panic!("expected an I/O error, got {other:?}"),
    }
}

#[test]
fn the_child_gets_begin_push_apply_get_byte_for_byte() {
    let size = request_size(&[3, 4], true);
    let script = format!(
        "/usr/bin/head -c {size} > \"$PGDATA/stdin\"; /usr/bin/head -c 8192 /dev/zero; exec /bin/cat"
    );
    let fake = Fake::new(&script);
    let manager = fake.fixture.manager();
    let mut base = ZERO_PAGE;
    set_lsn(&mut base, Lsn(0x50));
    base[100] = 7;
    let records = vec![
        (
            Lsn(0x0102_0304_0506_0708),
            NeonWalRecord::Postgres { will_init: false, rec: Bytes::from_static(b"abc") },
        ),
        (
            Lsn(0x0102_0304_0506_0710),
            NeonWalRecord::Postgres { will_init: false, rec: Bytes::from_static(b"defg") },
        ),
    ];
    let base_img = Some((Lsn(0x50), Bytes::copy_from_slice(&base)));
    let page = manager.request_redo(key(), Lsn(0x200), base_img, records, PG_VERSION).unwrap();
    assert_eq!(page, ZERO_PAGE[..]);

    let tag = b"\x00\x00\x00\x06\x7f\x00\x00\x00\x05\x00\x00\x40\x00\x00\x00\x00\x07";
    let mut expected = Vec::new();
    expected.extend_from_slice(b"B\x00\x00\x00\x15");
    expected.extend_from_slice(tag);
    expected.extend_from_slice(b"P\x00\x00\x20\x15");
    expected.extend_from_slice(tag);
    expected.extend_from_slice(&base);
    expected.extend_from_slice(b"A\x00\x00\x00\x0f\x01\x02\x03\x04\x05\x06\x07\x08abc");
    expected.extend_from_slice(b"A\x00\x00\x00\x10\x01\x02\x03\x04\x05\x06\x07\x10defg");
    expected.extend_from_slice(b"G\x00\x00\x00\x15");
    expected.extend_from_slice(tag);
    let sent = std::fs::read(fake.data_dir().join("stdin")).unwrap();
    assert!(sent == expected, "{sent:02x?}");
}

#[test]
fn launch_gives_the_child_arguments_environment_and_three_descriptors() {
    // A descriptor that would be inherited: close-on-exec is off.
    let leaked = tempfile::tempfile().unwrap();
    fcntl(leaked.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let script = format!(
        "echo \"$@\" > \"$PGDATA/args\"; /usr/bin/env > \"$PGDATA/env\"; /bin/ls -l /proc/$$/fd > \"$PGDATA/fds\"; {}",
        answering(request_size(&[3], false))
    );
    let fake = Fake::new(&script);
    let manager = fake.fixture.manager();
    assert_eq!(fake.pids(), Vec::<u32>::new(), "nothing is launched before it is needed");
    ask(&manager, 3).unwrap();

    let dir = fake.data_dir();
    let name = dir.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("wal-redo-datadir.") && name.ends_with(".___temp"), "{name}");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read("args"), "--wal-redo\n");
    let lib = fake.install.lib_dir();
    let mut env: Vec<_> = read("env").lines().map(str::to_owned).collect();
    // The shell adds these by itself.
    env.retain(|line| {
        !line.starts_with("PWD=")
            && !line.starts_with("_=")
            && !line.starts_with("SHLVL=")
            && !line.starts_with("OLDPWD=")
    });
    env.sort();
    assert_eq!(
        env,
        [
            format!("DYLD_LIBRARY_PATH={}", lib.display()),
            format!("LD_LIBRARY_PATH={}", lib.display()),
            format!("PGDATA={}", dir.display()),
        ]
    );
    // The leaked file has no name any more; what else is open beside the pipes, the shell itself opened.
    let fds = read("fds");
    assert!(!fds.contains("(deleted)"), "{fds}");
    assert_eq!(fds.matches("-> pipe:").count(), 3, "{fds}");
    assert!(read("postgresql.conf").ends_with(
        "shared_buffers=128kB\nfsync=off\nshared_preload_libraries=neon\nneon.wal_redo=on\n"
    ));
    assert_eq!(
        logs::lines(&format!("launched WAL redo postgres process on {}", dir.display())).len(),
        1
    );
    let template =
        format!("running initdb in {}/wal-redo-initdb", fake.fixture.dir.path().display());
    assert_eq!(logs::lines(&template).len(), 1);

    // The parent's ends of the child's pipes are non-blocking.
    let pid = fake.pids()[0];
    let ends: Vec<_> =
        (0..3).map(|fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap()).collect();
    let mut nonblocking = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if ends.contains(&target) {
            let info = std::fs::read_to_string(format!(
                "/proc/self/fdinfo/{}",
                entry.file_name().to_str().unwrap()
            ))
            .unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            assert_ne!(u32::from_str_radix(flags, 8).unwrap() & 0o4000, 0, "O_NONBLOCK in {info}");
            nonblocking += 1;
        }
    }
    assert_eq!(nonblocking, 3);

    drop(manager);
    assert!(!dir.exists(), "the data directory goes with the process");
}

#[test]
fn one_process_serves_all_requests_one_after_the_other() {
    let fake = Fake::new(&answering(request_size(&[3], false)));
    let manager = fake.fixture.manager();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                (0..5).for_each(|_| assert_eq!(ask(&manager, 3).unwrap(), ZERO_PAGE[..]))
            });
        }
    });
    assert_eq!(fake.pids().len(), 1);
    assert!(manager.has_process());
    manager.quiesce(Duration::ZERO);
    assert!(!manager.has_process());
    assert_eq!(fake.pids(), Vec::<u32>::new());
    ask(&manager, 3).unwrap();
    manager.shutdown();
    assert_eq!(fake.pids(), Vec::<u32>::new());
    assert!(matches!(ask(&manager, 3), Err(WalRedoError::InvalidState)));
}

#[test]
fn a_pool_runs_several_processes() {
    // Each process answers when both have been asked: a pool of one would wait for ever.
    let script = format!(
        "/usr/bin/head -c {} > /dev/null; : > \"$PGDATA/../asked.$$\"; \
         while [ $(/bin/ls \"$PGDATA/..\" | /bin/grep -c asked) -lt 2 ]; do /bin/sleep 0.01; done; \
         /usr/bin/head -c 8192 /dev/zero; exec /bin/cat > /dev/null",
        request_size(&[3], false)
    );
    let install = FakeInstall::new(INITDB, &script);
    let fixture = Fixture::bare(|config| {
        config.installs.insert(PG_VERSION, install.install());
        config.pool_size = 2.try_into().unwrap();
    });
    let dir = fixture.tenant_dir();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let manager = fixture.manager();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| ask(&manager, 3).unwrap());
        }
    });
    let entries = std::fs::read_dir(&dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("wal-redo-datadir.")).count(), 2);
}

#[test]
fn two_managers_of_one_tenant_work_side_by_side_and_stale_directories_go() {
    let fake = Fake::new(&answering(request_size(&[3], false)));
    let stale = fake.fixture.tenant_dir().join("wal-redo-datadir.left.___temp");
    std::fs::create_dir(&stale).unwrap();
    let (first, second) = (fake.fixture.manager(), fake.fixture.manager());
    ask(&first, 3).unwrap();
    assert!(!stale.exists());
    assert_eq!(
        logs::lines(&format!("removing old temporary data directory {}", stale.display())).len(),
        1
    );
    ask(&second, 3).unwrap();
    ask(&first, 3).unwrap();
    assert_eq!(fake.pids().len(), 2);
}

#[test]
fn a_silent_child_times_out_and_is_replaced() {
    let fake = Fake::with_timeout("exec /bin/sleep 600", Duration::from_millis(100));
    let manager = fake.fixture.manager();
    let start = Instant::now();
    let (_, text) = io_text(ask(&manager, 3));
    assert_eq!(text, "WAL redo timed out");
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(fake.pids(), Vec::<u32>::new(), "killed and waited for");
    let dir = fake.fixture.tenant_dir();
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "its data directory is gone");
}

#[test]
fn a_failed_process_is_never_used_again() {
    // The first process stalls, every later one answers.
    let script = format!(
        "if [ ! -e \"$PGDATA/../stalled\" ]; then : > \"$PGDATA/../stalled\"; exec /bin/sleep 600; fi; {}",
        answering(request_size(&[3], false))
    );
    let fake = Fake::with_timeout(&script, Duration::from_millis(500));
    let dir = fake.fixture.tenant_dir();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let manager = fake.fixture.manager();
    let (_, text) = io_text(ask(&manager, 3));
    assert_eq!(text, "WAL redo timed out");
    let failed = "error applying 1 WAL records (3 bytes) to reconstruct page image at LSN 0/100: WAL redo timed out";
    assert!(!logs::lines(failed).is_empty());
    assert!(!logs::lines("wal-redo-postgres exited with code").is_empty());
    assert_eq!(ask(&manager, 3).unwrap(), ZERO_PAGE[..]);
}

#[test]
fn hang_ups_name_the_pipe() {
    // Bigger than a pipe, so that data is left to write.
    const BIG: usize = 1 << 20;
    for (script, pipe) in [
        ("exec 2>&-; exec /bin/sleep 600", "stderr"),
        ("exec 0<&-; exec /bin/sleep 600", "stdin"),
        ("exec 1>&-; exec /bin/sleep 600", "stdout"),
    ] {
        let fake = Fake::new(script);
        let (kind, text) = io_text(ask(&fake.fixture.manager(), BIG));
        assert_eq!(kind, ErrorKind::BrokenPipe);
        assert_eq!(text, format!("WAL redo process closed its {pipe} unexpectedly"));
    }
}

#[test]
fn all_that_a_failing_child_printed_is_logged() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo \"complaint number $i.\" >&2; i=$((i+1)); done; exit 1";
    let fake = Fake::new(script);
    let (kind, _) = io_text(ask(&fake.fixture.manager(), 3));
    assert_eq!(kind, ErrorKind::BrokenPipe);
    let text = logs::text();
    assert!(text.contains("wal-redo-postgres: complaint number 0."));
    assert!(text.contains("complaint number 1999."));
}

#[test]
fn a_child_cannot_keep_a_request_alive_by_printing() {
    let fake = Fake::new("while :; do echo 'yet another line that says nothing at all' >&2; done");
    let (_, text) = io_text(ask(&fake.fixture.manager(), 3));
    assert_eq!(text, "WAL redo process printed too much to its stderr");
}

#[test]
fn requests_and_answers_bigger_than_a_pipe_do_not_deadlock() {
    let big = 3 << 20;
    let fake = Fake::new(&answering(request_size(&[big], false)));
    let manager = fake.fixture.manager();
    for _ in 0..2 {
        assert_eq!(ask(&manager, big).unwrap(), ZERO_PAGE[..]);
    }
    assert_eq!(fake.pids().len(), 1);
}

#[test]
fn an_answer_that_cannot_be_the_page_is_refused() {
    // 0xFF everywhere: an LSN far beyond the last record.
    let script = format!(
        "/usr/bin/head -c {} > /dev/null; /usr/bin/head -c 8192 /dev/zero | /usr/bin/tr '\\0' '\\377'; exec /bin/cat",
        request_size(&[3], false)
    );
    let fake = Fake::new(&script);
    let (_, text) = io_text(ask(&fake.fixture.manager(), 3));
    assert!(text.contains("which is not between 0/0 and 0/100"), "{text}");
    assert_eq!(fake.pids(), Vec::<u32>::new());
}

#[test]
fn launch_failures_are_told() {
    let install = FakeInstall::new("echo no; echo because >&2; exit 1", "");
    let fixture = Fixture::bare(|config| {
        config.installs.insert(PG_VERSION, install.install());
    });
    let (_, text) = io_text(ask(&fixture.manager(), 3));
    assert_eq!(text, "initdb failed\nstdout:\nno\n\nstderr:\nbecause\n");

    let fake = Fake::new("");
    let manager = fake.fixture.manager();
    let install = fake.install.install();
    let program = install.program("postgres");
    // This one ends without an answer; by then there is a template.
    ask(&manager, 3).unwrap_err();
    std::fs::remove_file(&program).unwrap();
    let (_, text) = io_text(ask(&manager, 3));
    assert!(text.starts_with("postgres --wal-redo command failed to start: "), "{text}");
    let fixture = Fixture::bare(|config| {
        config.installs.insert(PG_VERSION, install);
    });
    let (_, text) = io_text(ask(&fixture.manager(), 3));
    assert!(text.starts_with(&format!("could not look at {}: ", program.display())), "{text}");
}

#[test]
fn each_version_runs_its_own_programs() {
    let size = request_size(&[3], false);
    let seventeen =
        FakeInstall::new(INITDB, &format!("echo 17 > \"$PGDATA/version\"; {}", answering(size)));
    let sixteen =
        FakeInstall::new(INITDB, &format!("echo 16 > \"$PGDATA/version\"; {}", answering(size)));
    let fixture = Fixture::bare(|config| {
        config.installs.insert(17, seventeen.install());
        config.installs.insert(16, sixteen.install());
    });
    let manager = fixture.manager();
    let request =
        |version| manager.request_redo(key(), Lsn(0x100), None, vec![postgres(0x100, 3)], version);
    for version in [17, 16, 17] {
        request(version).unwrap();
    }
    let mut versions: Vec<_> = std::fs::read_dir(fixture.tenant_dir())
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path().join("version")).unwrap())
        .collect();
    versions.sort();
    assert_eq!(versions, ["16\n", "17\n"], "one process for each version");
    assert!(matches!(request(15), Err(WalRedoError::InvalidRequest)));
}

#[test]
fn requests_that_make_no_sense_start_nothing() {
    let fake = Fake::new("exit 1");
    let manager = fake.fixture.manager();
    let request = |key, base: Option<usize>, records| {
        let base = base.map(|len| (Lsn(8), Bytes::from(vec![0; len])));
        manager.request_redo(key, Lsn(0x1234), base, records, PG_VERSION)
    };
    let commit = (Lsn(8), NeonWalRecord::ClogSetCommitted { xids: vec![5], timestamp: 1 });
    let clog = Key::slru_block(SlruKind::Clog, 0, 0);

    assert!(matches!(request(key(), None, vec![]), Err(WalRedoError::InvalidRequest)));
    assert!(!logs::lines("invalid WAL redo request with no records").is_empty());
    let no_base = request(clog, None, vec![commit.clone()]);
    assert!(matches!(no_base, Err(WalRedoError::InvalidRequest)));
    assert!(!logs::lines("invalid neon WAL redo request with no base image").is_empty());
    let slru = request(clog, None, vec![postgres(8, 3)]);
    assert!(matches!(slru, Err(WalRedoError::InvalidRecord)));
    let long = request(key(), Some(8200), vec![postgres(8, 3)]);
    assert!(matches!(long, Err(WalRedoError::InvalidRequest)));
    let rust = request(clog, Some(BLCKSZ), vec![commit]).unwrap();
    assert_eq!(rust.len(), 8200);
    assert!(!manager.has_process());
    assert!(
        !logs::lines("running initdb")
            .iter()
            .any(|line| line.contains(&fake.fixture.dir.path().display().to_string()))
    );
}

#[test]
fn metrics_and_debug_lines() {
    let fake = Fake::new(&answering(request_size(&[30, 40], false)));
    let manager = fake.fixture.manager();
    let before = (
        WAL_REDO_RECORD_COUNTER.get(),
        WAL_REDO_RECORDS_HISTOGRAM.get_sample_count(),
        WAL_REDO_BYTES_HISTOGRAM.get_sample_count(),
        WAL_REDO_WAIT_TIME.get_sample_count(),
        WAL_REDO_TIME.get_sample_count(),
    );
    let records = vec![postgres(0x100, 30), postgres(0xABCDE0, 40)];
    manager.request_redo(key(), Lsn(0xABCDEF), None, records, PG_VERSION).unwrap();
    // Other tests of this binary count, too.
    assert!(WAL_REDO_RECORD_COUNTER.get() >= before.0 + 2);
    assert!(WAL_REDO_RECORDS_HISTOGRAM.get_sample_count() > before.1);
    assert!(WAL_REDO_BYTES_HISTOGRAM.get_sample_count() > before.2);
    assert!(WAL_REDO_WAIT_TIME.get_sample_count() > before.3);
    assert!(WAL_REDO_TIME.get_sample_count() > before.4);
    let line = logs::lines("to reconstruct page image at LSN 0/ABCDEF");
    assert_eq!(line.len(), 1, "{line:?}");
    assert!(line[0].contains("postgres applied 2 WAL records (70 bytes) in "), "{line:?}");
    assert!(line[0].contains(" us to reconstruct"), "{line:?}");

    let clog = Key::slru_block(SlruKind::Clog, 0, 0);
    let base = Some((Lsn(8), Bytes::from(vec![0; BLCKSZ])));
    let records = vec![(Lsn(8), NeonWalRecord::ClogSetAborted { xids: vec![5] })];
    manager.request_redo(clog, Lsn(0xFEDC), base, records, PG_VERSION).unwrap();
    let line = logs::lines("to reconstruct page image at LSN 0/FEDC");
    assert_eq!(line.len(), 1, "{line:?}");
    assert!(line[0].contains("neon applied 1 WAL records in "), "{line:?}");
    assert!(line[0].contains(" us to reconstruct"), "{line:?}");
}

#[test]
fn signals_do_not_disturb() {
    use nix::sys::signal::{Signal, kill};
    use std::os::unix::thread::JoinHandleExt;
    let interrupted = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, interrupted.clone()).unwrap();
    let fake = Fake::new(&answering(request_size(&[3], false)));
    let manager = fake.fixture.manager();
    ask(&manager, 3).unwrap();
    let child = nix::unistd::Pid::from_raw(fake.pids()[0].try_into().unwrap());
    kill(child, Signal::SIGSTOP).unwrap();
    let manager = std::sync::Arc::new(manager);
    let asking = std::thread::spawn({
        let manager = manager.clone();
        move || ask(&manager, 3)
    });
    while !interrupted.load(std::sync::atomic::Ordering::SeqCst) {
        nix::sys::pthread::pthread_kill(asking.as_pthread_t(), Signal::SIGUSR1).unwrap();
        std::thread::yield_now();
    }
    for _ in 0..1000 {
        nix::sys::pthread::pthread_kill(asking.as_pthread_t(), Signal::SIGUSR1).unwrap();
    }
    kill(child, Signal::SIGCONT).unwrap();
    assert_eq!(asking.join().unwrap().unwrap(), ZERO_PAGE[..]);
}

#[test]
fn mocks_need_the_trait_alone() {
    struct Mock;
    impl WalRedoManager for Mock {
        fn request_redo(
            &self,
            _: Key,
            lsn: Lsn,
            _: Option<(Lsn, Bytes)>,
            _: Vec<(Lsn, NeonWalRecord)>,
            _: u32,
        ) -> Result<Bytes, WalRedoError> {
            if lsn.is_valid() {
                Ok(Bytes::from_static(b"page"))
            } else {
                Err(WalRedoError::InvalidState)
            }
        }
    }
    let managers: [Box<dyn WalRedoManager>; 1] = [Box::new(Mock)];
    let page = managers[0].request_redo(key(), Lsn(8), None, vec![], PG_VERSION).unwrap();
    assert_eq!(page, b"page"[..]);
}
