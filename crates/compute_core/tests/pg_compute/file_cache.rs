//! The local file cache: hits, waits, space on disk, errors.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::compute::{Server, World};
use crate::page_service::{Behaviour, PageService};
use page_protocol::RequestKind;

const COUNT: &str = "select count(*), sum(id) from t";
const ANSWER: &str = "10000|50005000";
/// Fewer buffers than the table has pages.
const FEW_BUFFERS: (&str, &str) = ("shared_buffers", "1MB");
const LARGE: [(&str, &str); 3] =
    [FEW_BUFFERS, ("neon.max_file_cache_size", "64MB"), ("neon.file_cache_size_limit", "64MB")];

fn declare_stats(server: &Server<'_>) {
    server.ok("create function lfc(out key text, out value bigint)
         returns setof record as 'neon', 'neon_get_lfc_stats_wrapper' language c volatile");
}

fn stat(server: &Server<'_>, name: &str) -> u64 {
    let sql = format!("select value from lfc() where key = 'file_cache_{name}'");
    server.ok(&sql).parse().expect("a number")
}

fn pages_asked_for(service: &PageService) -> usize {
    service.requests().iter().filter(|r| matches!(r.kind, RequestKind::GetPage(..))).count()
}

fn log_lines(server: &Server<'_>, text: &str) -> usize {
    server.log().lines().filter(|line| line.contains(text)).count()
}

/// Bytes on disk.
fn space(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

#[test]
fn what_was_read_once_is_not_asked_for_again() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &LARGE);
    declare_stats(&server);
    assert_eq!(server.ok(COUNT), ANSWER);
    let (hits, asked) = (stat(&server, "hits"), pages_asked_for(&service));
    service.behave(Behaviour::Refuse);
    assert_eq!(server.ok(COUNT), ANSWER);
    assert_eq!(pages_asked_for(&service), asked);
    service.behave(Behaviour::Serve);
    assert!(stat(&server, "hits") >= hits + 100);
    // What was changed is written here when it leaves the buffers, and comes back as it was left.
    server.ok("update t set filler = 'new' where id % 2 = 0");
    assert_eq!(server.ok(COUNT), ANSWER);
    assert_eq!(server.ok("select count(*) from t where filler = 'new'"), "5000");
    assert!(stat(&server, "used_pages") > 300);
    server.ok("create function cached(out pageoffs bigint, out relfilenode oid, out reltablespace oid, out reldatabase oid,
         out relforknumber smallint, out relblocknumber bigint, out accesscount integer)
         returns setof record as 'neon', 'local_cache_pages_wrapper' language c volatile;;
         create function working_set(duration integer) returns integer
         as 'neon', 'approximate_working_set_size_seconds_wrapper' language c volatile");
    let pages = "select count(*) > 300, count(distinct relblocknumber) = count(*) from cached()
         where relfilenode = pg_relation_filenode('t') and relforknumber = 0";
    assert_eq!(server.ok(pages), "t|t");
    assert_eq!(server.ok("select working_set(null) between 300 and 3000"), "t");
    server.stop();
}

/// L009. The reader without a buffer is `pg_prewarm`, which reads past the buffers.
#[test]
fn a_reader_waits_while_another_process_fills_the_page() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &LARGE);
    server.ok("create extension pg_prewarm");
    let number: u32 = server.ok("select pg_relation_filenode('t')").parse().expect("a number");
    let times = |block| {
        let is_it = |kind| matches!(kind, RequestKind::GetPage(rel, b) if b == block && rel.locator.rel_number == number);
        service.requests().iter().filter(|request| is_it(request.kind)).count()
    };
    let hold = data.join("neon_hold_file_cache");
    fs::write(&hold, b"").expect("a file");
    let waiting = |event: &str| {
        let sql = format!("select count(*) from pg_stat_activity where wait_event = '{event}'");
        server.ok(&sql) == "1"
    };
    std::thread::scope(|scope| {
        let filler = scope.spawn(|| {
            server.ok(&format!(
                "set neon.file_cache_hold_writes = {number};;
                 select pg_prewarm('t', 'read', 'main', 5, 5)"
            ))
        });
        server.wait_for("the page to be asked for", || times(5) == 1);
        let reader = scope.spawn(|| {
            server.ok("set enable_seqscan = off;; select count(*) from t where ctid = '(5,1)'")
        });
        server.wait_for("the reader to wait", || waiting("NeonFileCache"));
        assert!(!reader.is_finished());
        // Who waits can be cancelled.
        server.ok("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'NeonFileCache'");
        server.wait_for("the reader to end", || reader.is_finished());
        assert!(reader.join().is_err(), "cancelled");
        let reader = scope.spawn(|| {
            server.ok("set enable_seqscan = off;; select count(*) from t where ctid = '(5,1)'")
        });
        server.wait_for("the second reader to wait", || waiting("NeonFileCache"));
        fs::remove_file(&hold).expect("the file");
        assert_eq!(reader.join().expect("an answer"), "1");
        assert_eq!(filler.join().expect("an answer"), "1");
    });
    assert_eq!(times(5), 1, "the reader got the page that the filler had asked for");
    server.stop();
}

/// L010.
#[test]
fn the_file_is_as_large_as_what_is_in_it() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let mut conf =
        fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).expect("a file");
    // In the file, so that it can be changed.
    writeln!(conf, "neon.file_cache_size_limit = 64MB").expect("written");
    let settings =
        [FEW_BUFFERS, ("neon.max_file_cache_size", "64MB"), ("neon.file_cache_chunk_size", "128")];
    let server = Server::start_compute(&world, &data, service.port(), &settings);
    declare_stats(&server);
    let file = data.join("file.cache");
    // One page in each chunk of 128.
    server.ok(
        "set enable_seqscan = off;; select * from t where ctid in ('(0,1)', '(130,1)', '(260,1)')",
    );
    let chunks = stat(&server, "used") * 1024 * 1024;
    let pages = stat(&server, "used_pages") * 8192;
    assert!(chunks >= 3 * 1024 * 1024);
    assert!(space(&file) <= pages + 64 * 1024, "{} for {pages}", space(&file));
    assert!(space(&file) < chunks / 2, "{} of {chunks}", space(&file));
    assert_eq!(server.ok(COUNT), ANSWER);
    let full = space(&file);
    assert!(full >= 300 * 8192);
    let limit = |size: &str| {
        server.ok(&format!(
            "alter system set neon.file_cache_size_limit = '{size}';; select pg_reload_conf()"
        ));
    };
    limit("1MB");
    server.wait_for("space to be given back", || space(&file) <= 1024 * 1024 + 64 * 1024);
    assert_eq!(server.ok(COUNT), ANSWER);
    assert!(space(&file) <= 1024 * 1024 + 64 * 1024);
    limit("0");
    server.wait_for("all space to be given back", || space(&file) <= 64 * 1024);
    assert_eq!(server.ok(COUNT), ANSWER);
    limit("64MB");
    server.wait_for("the cache to be used again", || {
        server.ok(COUNT) == ANSWER && space(&file) >= 300 * 8192
    });
    server.stop();
}

#[test]
fn errors_of_the_file_switch_the_cache_off() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    for (path, what) in [("/dev/full", "No space left"), ("missing/file.cache", "could not open")] {
        let settings = [&LARGE[..], &[("neon.file_cache_path", path)]].concat();
        let server = Server::start_compute(&world, &data, service.port(), &settings);
        assert_eq!(server.ok(COUNT), ANSWER);
        assert_eq!(server.ok(COUNT), ANSWER);
        assert_eq!(log_lines(&server, "the local file cache is off"), 1, "{}", server.log());
        assert_eq!(log_lines(&server, what), 1);
        server.stop();
    }
    let server = Server::start_compute(&world, &data, service.port(), &LARGE);
    assert_eq!(server.ok(COUNT), ANSWER);
    server.ok("checkpoint");
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(data.join("file.cache"))
        .expect("a file");
    assert_eq!(server.ok(COUNT), ANSWER);
    assert_eq!(log_lines(&server, "the local file cache is off"), 1, "{}", server.log());
    server.stop();
}
