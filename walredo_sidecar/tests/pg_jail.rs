//! The jail of a real redo process: what is seen from outside, and what a hostile record can do in it (L039,
//! L040, L362).
#![cfg(test)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::direct::{Direct, first_insert, record, request_bytes};
use common::{open_dir, patched, status_field, system_user};

/// Id of the resource manager in hostile_rmgr.c.
const HOSTILE: u8 = 200;

#[test]
fn the_jail_is_closed_when_the_first_answer_comes() {
    let direct = Direct::new();
    let mut process = direct.start(None);
    process.send(&[first_insert(10)]);
    process.page().unwrap();
    let pid = process.id();
    assert_eq!(status_field(pid, "Seccomp"), "2");
    assert_eq!(status_field(pid, "NoNewPrivs"), "1");
    assert_eq!(status_field(pid, "CapEff"), "0000000000000000");
    assert_eq!(status_field(pid, "Threads"), "1");
    let uids = status_field(pid, "Uid");
    assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max processes"), "0");
    assert_eq!(limit("Max file size"), "0");
    assert_eq!(limit("Max open files"), "3");
    assert_eq!(limit("Max address space"), (1u64 << 30).to_string());
    let fds: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(fds.len(), 3, "{fds:?}");
    let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let creator = pid.to_string();
    let named = segments.lines().skip(1).filter(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[4] == creator && fields[0] != "0"
    });
    assert_eq!(named.count(), 0, "no shared memory outlives the process: {segments}");
    let (status, rest, stderr) = process.finish();
    assert!(status.success() && rest.is_empty() && stderr.is_empty(), "{status} {stderr}");
}

#[test]
fn the_end_of_input_ends_the_process() {
    let direct = Direct::new();
    let (status, _, stderr) = direct.start(None).finish();
    assert!(status.success(), "{status} {stderr}");
    let mut process = direct.start(None);
    use std::io::Write;
    process.stdin.write_all(b"B\0\0\0").unwrap();
    let (status, _, stderr) = process.finish();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("input ends inside a message"), "{stderr}");
}

fn build_hostile(dir: &Path) -> PathBuf {
    let config = |flag: &str| {
        let output = patched().command("pg_config", None).arg(flag).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let library = dir.join("hostile_rmgr.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile_rmgr.c");
    let status = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-I"])
        .arg(config("--includedir-server"))
        .arg("-o")
        .arg(&library)
        .arg(source)
        .status()
        .unwrap();
    assert!(status.success());
    library
}

#[test]
fn a_hostile_record_gets_nowhere() {
    let dir = open_dir();
    let library = build_hostile(dir.path());
    let direct = Direct::new();
    let mut tricks = vec![
        (b'r', libc_number("openat")),
        (b'w', libc_number("openat")),
        (b's', libc_number("socket")),
        (b'f', libc_number("clone")),
        (b'e', libc_number("execve")),
        (b'k', libc_number("getppid")),
        (b'p', libc_number("ptrace")),
        (b'm', libc_number("mmap")),
        (b'u', libc_number("setuid")),
        (b'd', libc_number("write")),
    ];
    tricks.sort_unstable();
    for (trick, number) in tricks {
        let mut process = direct.start(Some(&library));
        process.send(&[record(HOSTILE, 0, &[], &[trick])]);
        let (status, answer, stderr) = process.finish();
        let trick = char::from(trick);
        assert_eq!(status.code(), Some(1), "trick {trick}: {status} {stderr}");
        assert!(answer.is_empty(), "trick {trick}: no answer");
        let blocked = stderr
            .lines()
            .filter_map(|line| {
                line.strip_prefix("ERROR:  system call")?
                    .strip_suffix(" is not allowed in WAL redo")
            })
            .map(|number| number.trim().parse::<u32>().unwrap());
        assert_eq!(blocked.collect::<Vec<_>>(), [number], "trick {trick}: {stderr}");
        assert!(!stderr.contains("the hostile record"), "trick {trick}: {stderr}");
    }
    assert!(!Path::new("/tmp/hostile").exists());
}

/// System call numbers of the two architectures that have a filter.
fn libc_number(name: &str) -> u32 {
    let (x86_64, aarch64) = match name {
        "openat" => (257, 56),
        "socket" => (41, 198),
        "clone" => (56, 220),
        "execve" => (59, 221),
        "getppid" => (110, 173),
        "ptrace" => (101, 117),
        "mmap" => (9, 222),
        "setuid" => (105, 146),
        "write" => (1, 64),
        other => panic!("number of {other}"),
    };
    if cfg!(target_arch = "x86_64") { x86_64 } else { aarch64 }
}

#[test]
fn memory_is_limited_and_a_crash_stays_inside() {
    let dir = open_dir();
    let library = build_hostile(dir.path());
    let direct = Direct::new();
    for trick in *b"ac" {
        let mut process = direct.start(Some(&library));
        process.send(&[record(HOSTILE, 0, &[], &[trick])]);
        let (status, answer, _) = process.finish();
        assert!(!status.success() && answer.is_empty(), "{status}");
        assert!(!Path::new("core").exists());
    }
}

/// A process that is busy for ever dies with its parent, not only one that waits for input.
#[test]
fn nobody_is_left_when_the_page_server_is_killed() {
    let dir = open_dir();
    let library = build_hostile(dir.path());
    let direct = Direct::new();
    let data_dir = direct.data_dir(Some(&library));
    let request = dir.path().join("request");
    std::fs::write(&request, request_bytes(&[record(HOSTILE, 0, &[], b"l")])).unwrap();
    // A shell stands for the page server: it starts the process and waits.
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "\"$0\" --wal-redo < \"$1\" > /dev/null & echo $!; wait"]);
    command.arg(patched().program("postgres")).arg(&request).env("PGDATA", data_dir.path());
    if let Some(user) = system_user() {
        use std::os::unix::process::CommandExt;
        command.uid(user.uid).gid(user.gid);
    }
    let mut parent = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let stdout = parent.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let pid: u32 = line.trim().parse().unwrap();
    wait_until("the jail is closed", || status_field(pid, "Seccomp") == "2");
    parent.kill().unwrap();
    parent.wait().unwrap();
    // Whoever inherits the child may take its time to reap it.
    wait_until("the process is dead", || {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .map_or(true, |status| status.contains("State:\tZ"))
    });
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "still waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
