//! Which reads are asked for ahead of need: each way of reading that the README of `neon_ext` lists, on a page service
//! whose responses take a millisecond. What is counted does not depend on time: questions sent, each of which is a round
//! trip that nobody may have to wait for, against the pages that came.

use std::time::Duration;

use crate::compute::{Server, World};
use crate::page_service::PageService;

/// Settings under which the planner has no choice but the wanted plan.
struct Path {
    name: &'static str,
    settings: &'static str,
    sql: &'static str,
    answer: &'static str,
    /// What EXPLAIN must show; empty for commands that it does not explain.
    plan: &'static str,
    /// Pages in a question, at least. Commands that EXPLAIN does not plan read catalogs as well, a page at a time.
    batch: u64,
}

const PATHS: &[Path] = &[
    Path {
        name: "sequential scan",
        settings: "set enable_indexscan = off",
        sql: "select count(filler), sum(id) from t",
        answer: "10000|50005000",
        plan: "Seq Scan on t",
        batch: 12,
    },
    Path {
        name: "sequential scan, block by block",
        settings: "set io_combine_limit = 1",
        sql: "select count(filler), sum(id) from t",
        answer: "10000|50005000",
        plan: "Seq Scan on t",
        batch: 8,
    },
    Path {
        name: "index scan in the order of the table",
        settings: "set enable_seqscan = off;; set enable_bitmapscan = off",
        sql: "select count(filler) from r where id > 0",
        answer: "10000",
        plan: "Index Scan using r_id",
        batch: 8,
    },
    Path {
        name: "index scan in any order",
        settings: "set enable_seqscan = off;; set enable_bitmapscan = off",
        sql: "select count(filler) from r where k between '0' and '2'",
        answer: "1292",
        plan: "Index Scan using r_k",
        batch: 4,
    },
    Path {
        name: "index scan backward",
        settings: "set enable_seqscan = off;; set enable_bitmapscan = off",
        sql: "select count(filler) from (select filler from r where k < '2' order by k desc) x",
        answer: "1292",
        plan: "Index Scan Backward using r_k",
        batch: 4,
    },
    Path {
        name: "index-only scan",
        settings: "set enable_seqscan = off;; set enable_bitmapscan = off",
        sql: "select count(k) from r where k > ''",
        answer: "10000",
        plan: "Index Only Scan using r_k",
        batch: 6,
    },
    Path {
        name: "bitmap scan",
        settings: "set enable_seqscan = off;; set enable_indexscan = off;; set effective_io_concurrency = 64",
        sql: "select count(filler) from r where k between '0' and '2'",
        answer: "1292",
        plan: "Bitmap Heap Scan on r",
        batch: 6,
    },
    Path {
        name: "VACUUM",
        settings: "set vacuum_buffer_usage_limit = 256",
        sql: "vacuum (disable_page_skipping, truncate off) t",
        answer: "",
        plan: "",
        batch: 4,
    },
    Path {
        name: "ANALYZE",
        settings: "set default_statistics_target = 10000",
        sql: "analyze t",
        answer: "",
        plan: "",
        batch: 4,
    },
    Path {
        name: "CREATE INDEX",
        settings: "set max_parallel_maintenance_workers = 0",
        sql: "create index on r (id)",
        answer: "",
        plan: "",
        batch: 4,
    },
    Path {
        name: "a long value",
        settings: "set enable_seqscan = on",
        sql: "select length(md5(v)) from long",
        answer: "32",
        plan: "Seq Scan on long",
        batch: 6,
    },
];

const COUNTED: &str = "select (select sum(value)::bigint from counters() where metric in
         ('getpage_sync_requests_total', 'getpage_prefetch_requests_total')),
         (select value::bigint from counters() where metric = 'pageserver_send_flushes_total')";

/// Pages and questions of a path in a server that has just started.
fn measure(server: &Server<'_>, path: &Path, more: &str) -> (u64, u64) {
    // Before it is counted the statement is planned, which reads catalogs, and counting is done once.
    let warm = match path.plan {
        "" => "select 1".to_owned(),
        _ => format!("explain (costs off) {}", path.sql),
    };
    let output = server.ok(&format!(
        "{};; {more};; {COUNTED};; {warm};; select 'start';; {COUNTED};; {};; {COUNTED}",
        path.settings, path.sql
    ));
    assert!(output.contains(path.plan), "{}: {output}", path.name);
    let (_, counted) = output.split_once("start\n").expect("the mark");
    let lines: Vec<&str> = counted.lines().collect();
    let numbers = |line: Option<&&str>| -> (u64, u64) {
        let (pages, questions) = line.and_then(|line| line.split_once('|')).expect("two numbers");
        (pages.parse().expect("a number"), questions.parse().expect("a number"))
    };
    if !path.answer.is_empty() {
        assert_eq!(lines.get(1), Some(&path.answer), "{}", path.name);
    }
    let (before, after) = (numbers(lines.first()), numbers(lines.last()));
    (after.0 - before.0, after.1 - before.1)
}

fn with_fresh_server<R>(
    world: &World,
    settings: &[(&str, &str)],
    run: impl FnOnce(&Server<'_>) -> R,
) -> R {
    let service = PageService::start(&world.stock_data());
    service.add_latency(Duration::from_millis(1));
    let data = world.compute_data();
    let server = Server::start_compute(world, &data, service.port(), settings);
    server.ok("create function counters(out metric text, out bucket_le float8, out value float8)
         returns setof record as 'neon', 'get_perf_counters_wrapper' language c volatile");
    let result = run(&server);
    server.stop();
    std::fs::remove_dir_all(&data).expect("the compute's folder");
    result
}

#[test]
fn each_way_of_reading_asks_ahead() {
    let world = World::new();
    for path in PATHS {
        let (pages, questions) =
            with_fresh_server(&world, &[], |server| measure(server, path, "select 1"));
        assert!(pages >= 50, "{}: {pages} pages are too few to tell", path.name);
        assert!(
            questions * path.batch <= pages,
            "{}: {questions} questions for {pages} pages",
            path.name
        );
    }
}

/// PostgreSQL's own look-ahead is cut to nothing there.
#[test]
fn few_buffers_do_not_cut_the_distance() {
    let world = World::new();
    let settings = [("shared_buffers", "1MB"), ("max_connections", "100")];
    for path in PATHS.iter().take(3) {
        let (pages, questions) =
            with_fresh_server(&world, &settings, |server| measure(server, path, "select 1"));
        assert!(
            questions * path.batch <= pages,
            "{}: {questions} questions for {pages} pages",
            path.name
        );
    }
}

#[test]
fn nothing_is_asked_ahead_when_it_is_switched_off() {
    let world = World::new();
    let path = PATHS.iter().find(|path| path.name.contains("block by block")).expect("a path");
    let (pages, questions) = with_fresh_server(&world, &[], |server| {
        measure(server, path, "set neon.enable_prefetch = off")
    });
    assert!(questions >= pages, "{questions} questions for {pages} pages");
}
