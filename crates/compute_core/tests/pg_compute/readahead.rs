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
        batch: 4,
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
        name: "VACUUM of a GiST index",
        settings: "set vacuum_buffer_usage_limit = 256",
        sql: "vacuum (disable_page_skipping, truncate off, index_cleanup on) gist",
        answer: "",
        plan: "",
        batch: 4,
    },
    Path {
        name: "VACUUM of an SP-GiST index",
        settings: "set vacuum_buffer_usage_limit = 256",
        sql: "vacuum (disable_page_skipping, truncate off, index_cleanup on) spgist",
        answer: "",
        plan: "",
        batch: 4,
    },
    Path {
        name: "parallel sequential scan",
        settings: "set parallel_setup_cost = 0;; set parallel_tuple_cost = 0;; set min_parallel_table_scan_size = 0;; set parallel_leader_participation = off",
        sql: "select count(filler), sum(id) from t",
        answer: "10000|50005000",
        plan: "Parallel Seq Scan on t",
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

fn check(world: &World, path: &Path, settings: &[(&str, &str)]) {
    let (pages, questions) =
        with_fresh_server(world, settings, |server| measure(server, path, "select 1"));
    assert!(pages >= 50, "{}: {pages} pages are too few to tell", path.name);
    assert!(
        questions * path.batch <= pages,
        "{}: {questions} questions for {pages} pages",
        path.name
    );
}

#[test]
fn each_way_of_reading_asks_ahead() {
    let world = World::new();
    for path in PATHS {
        check(&world, path, &[]);
    }
}

/// PostgreSQL's own look-ahead is cut to nothing there.
#[test]
fn few_buffers_do_not_cut_the_distance() {
    let world = World::new();
    for path in PATHS.iter().take(3) {
        check(&world, path, &[("shared_buffers", "1MB"), ("max_connections", "100")]);
    }
}

/// L140.
#[test]
fn explain_tells_what_a_statement_asked_ahead() {
    let world = World::new();
    let explain = "explain (analyze, buffers, format json, costs off) select count(filler) from t";
    let cold = with_fresh_server(&world, &[], |server| server.ok(explain));
    for name in ["Page Server Reads", "Prefetch Requests", "Prefetch Hits"] {
        let (_, rest) = cold.split_once(&format!("\"{name}\": ")).expect(name);
        let number = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        assert!(number.parse::<u64>().is_ok_and(|number| number > 0), "{cold}");
    }
    let quiet = format!("set neon.explain_storage = off;; {explain}");
    let stock = with_fresh_server(&world, &[], |server| server.ok(&quiet));
    assert!(!stock.contains("Prefetch"), "{stock}");
}

/// Pages that a session asked for and then did not read: while it does something else, a timer takes them off the socket
/// and they go into the local file cache.
#[test]
fn a_busy_session_takes_its_answers_off_the_socket() {
    let world = World::new();
    let cached_pages = |pull_timeout: &str| {
        let settings = [
            ("neon.readahead_getpage_pull_timeout", pull_timeout),
            ("neon.max_file_cache_size", "8MB"),
            ("neon.file_cache_size_limit", "8MB"),
        ];
        let service = PageService::start(&world.stock_data());
        let data = world.compute_data();
        let server = Server::start_compute(&world, &data, service.port(), &settings);
        server.ok("create function cached(out pageoffs int8, out relfilenode oid, out reltablespace oid, out reldatabase oid,
             out relforknumber int2, out relblocknumber int8, out accesscount int4)
             returns setof record as 'neon', 'local_cache_pages_wrapper' language c volatile");
        let count = || -> u64 {
            let sql = "select count(*) from cached() where relfilenode = pg_relation_filenode('t')";
            server.ok(sql).parse().expect("a number")
        };
        let sleeping =
            "from pg_stat_activity where query like '%pg_sleep(100)' and pid <> pg_backend_pid()";
        // Answers are on their way for so long that the session has its rows before the last ones come. What it does then
        // reads nothing, which would take them off the socket as well.
        service.add_latency(Duration::from_millis(100));
        let cached = std::thread::scope(|scope| {
            let session = scope.spawn(|| {
                server.psql(
                    "select pg_sleep(0);; select filler from t limit 80;; select pg_sleep(100)",
                )
            });
            server.wait_for("the rows", || {
                server.ok(&format!("select count(*) {sleeping} and wait_event = 'PgSleep'")) == "1"
            });
            if pull_timeout != "0" {
                server.wait_for("pages that nobody read", || count() >= 12);
            }
            let cached = count();
            server.ok(&format!("select pg_cancel_backend(pid) {sleeping}"));
            session.join().expect("the session");
            cached
        });
        server.stop();
        std::fs::remove_dir_all(&data).expect("the compute's folder");
        cached
    };
    let with_timer = cached_pages("20ms");
    let without = cached_pages("0");
    assert!(without < with_timer, "{without} pages without the timer, {with_timer} with it");
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
