//! A compute and a page server that is well, slow, wrong or gone.

use crate::compute::{Server, World, relation_files};
use crate::page_service::{Behaviour, PageService};
use page_protocol::RequestKind;
use pg_types::Lsn;

const COUNT: &str = "select count(*), sum(id) from t";
const ANSWER: &str = "10000|50005000";

fn counter(server: &Server<'_>, name: &str) -> u64 {
    let sql = format!("select value::bigint from counters() where metric = '{name}'");
    server.ok(&sql).parse().expect("a number")
}

fn declare_counters(server: &Server<'_>) {
    server.ok("create function counters(out metric text, out bucket_le float8, out value float8)
         returns setof record as 'neon', 'get_perf_counters_wrapper' language c volatile");
}

#[test]
fn permanent_relations_have_no_files() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &[]);
    assert_eq!(server.ok(COUNT), ANSWER);
    server.ok("create table p (a int, b text);;
               insert into p select g, repeat('y', 100) from generate_series(1, 5000) g");
    assert_eq!(server.ok("select count(*), sum(a) from p"), "5000|12502500");
    assert_eq!(relation_files(server.data()), Vec::<std::path::PathBuf>::new());

    assert_eq!(server.ok("select pg_relation_size('t') = 8192 * (select count(distinct (ctid::text::point)[0]) from t)"), "t");
    assert_eq!(server.ok("select pg_database_size('postgres')"), "123456789");
    declare_counters(&server);
    let pages =
        service.requests().iter().filter(|r| matches!(r.kind, RequestKind::GetPage(..))).count();
    assert!(pages > 300, "{pages} pages were asked for");
    let counted = counter(&server, "getpage_sync_requests_total")
        + counter(&server, "getpage_prefetch_requests_total");
    assert!(counted >= 300, "{counted}");
    assert!(counter(&server, "relation_extend_records_total") > 0);
    for request in service.requests() {
        assert_eq!(request.request_lsn, Lsn::MAX);
        assert!(request.not_modified_since.is_valid());
    }
    // Sequential reads come in batches: fewer flushes than pages.
    assert!(counter(&server, "pageserver_send_flushes_total") < counted);
    server.stop();
}

#[test]
fn unlogged_and_temporary_relations_are_local() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &[]);
    let before = service.requests().len();
    server.ok("create unlogged table u (a int primary key);; insert into u select generate_series(1, 5000)");
    let path = server.ok("select pg_relation_filepath('u')");
    assert!(data.join(&path).exists());
    assert!(data.join(format!("{path}_init")).exists());
    let number: u32 = server.ok("select pg_relation_filenode('u')").parse().expect("a number");
    server.ok("checkpoint");
    assert_eq!(server.ok("select count(*) from u"), "5000");
    assert_eq!(server.ok("select pg_relation_size('u') > 0"), "t");
    let asked =
        service.requests().split_off(before).into_iter().any(|request| match request.kind {
            RequestKind::Exists(rel) | RequestKind::Nblocks(rel) | RequestKind::GetPage(rel, _) => {
                rel.locator.rel_number == number
            }
            _ => false,
        });
    assert!(!asked, "the page server was asked for an unlogged table");
    server.ok("drop table u");
    assert_eq!(
        server.ok(
            "create temp table x as select generate_series(1, 10000) a;; select count(*) from x"
        ),
        "10000"
    );
    server.stop();
}

#[test]
fn a_silent_page_server_is_logged_left_and_asked_again() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let settings = [
        ("neon.pageserver_response_log_timeout", "200ms"),
        ("neon.pageserver_response_disconnect_timeout", "700ms"),
    ];
    let server = Server::start_compute(&world, &data, service.port(), &settings);
    server.ok("select 1 from pg_class limit 1");
    service.behave(Behaviour::Stall);
    std::thread::scope(|scope| {
        let query = scope.spawn(|| server.ok(COUNT));
        server.wait_for("both messages", || {
            let log = server.log();
            log.contains("no response from the page server for 0.") && log.contains("disconnecting")
        });
        service.behave(Behaviour::Serve);
        assert_eq!(query.join().expect("the query"), ANSWER);
    });
    server.stop();
}

#[test]
fn a_slow_response_is_waited_for() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let settings = [("neon.pageserver_response_log_timeout", "100ms")];
    let server = Server::start_compute(&world, &data, service.port(), &settings);
    assert_eq!(server.ok("show neon.pageserver_response_disconnect_timeout"), "2min");
    declare_counters(&server);
    service.behave(Behaviour::Stall);
    std::thread::scope(|scope| {
        let query = scope.spawn(|| server.ok(COUNT));
        server.wait_for("three messages", || {
            server.log().matches("no response from the page server").count() >= 3
        });
        service.behave(Behaviour::Serve);
        assert_eq!(query.join().expect("the query"), ANSWER);
    });
    assert!(server.log().contains("response from the page server after"));
    assert_eq!(counter(&server, "pageserver_disconnects_total"), 0);
    server.stop();
}

#[test]
fn a_cancelled_read_leaves_nothing_behind() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &[]);
    // A session that has read its catalogs.
    service.behave(Behaviour::Serve);
    server.ok(COUNT.replace("from t", "from t where false").as_str());
    service.behave(Behaviour::Stall);
    let message = server.fails(&format!("set statement_timeout = 300;; {COUNT}"));
    assert!(message.contains("statement timeout"), "{message}");
    service.behave(Behaviour::Serve);
    assert_eq!(server.ok(COUNT), ANSWER);
    server.stop();
}

/// Waiting for a response, for a connection, and between two attempts to connect: each wait ends with the statement's time,
/// and at a cancel request.
#[test]
fn every_wait_ends_with_the_statement() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &[]);
    let held = |event: &str| {
        format!(
            "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = '{event}' and query like '%sum(id)%'"
        )
    };
    // Sessions find their catalogs in shared buffers from here on.
    server.ok(&held("none"));
    server.ok(&COUNT.replace("from t", "from t where false"));
    let waits: [(&dyn Fn(), &str); 3] = [
        (&|| service.behave(Behaviour::Stall), "NeonPageServerResponse"),
        (&|| service.behave(Behaviour::Mute), "NeonPageServerConnect"),
        (&|| service.close(), "NeonPageServerConnect"),
    ];
    for (begin, event) in waits {
        begin();
        let message = server.fails(&format!("set statement_timeout = 300;; {COUNT}"));
        assert!(message.contains("statement timeout"), "{event}: {message}");
        std::thread::scope(|scope| {
            let query = scope.spawn(|| server.fails(COUNT));
            server.wait_for("a query that waits, and its end", || {
                server.ok(&held(event));
                query.is_finished()
            });
            let message = query.join().expect("the query");
            assert!(message.contains("user request"), "{event}: {message}");
        });
    }
    server.stop();
}

#[test]
fn an_error_fails_the_query_alone() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &[]);
    server.ok("select id from t where false");
    service.behave(Behaviour::Refuse);
    let message = server.fails(COUNT);
    assert!(message.contains("page server: refused by the test"), "{message}");
    service.behave(Behaviour::Serve);
    assert_eq!(server.ok(COUNT), ANSWER);
    server.stop();
}

#[test]
fn a_response_to_another_request_is_not_taken() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &[]);
    server.ok("select id from t where false");
    service.behave(Behaviour::Confuse);
    assert_eq!(server.ok(COUNT), ANSWER);
    assert!(server.log().contains("out of step"), "{}", server.log());
    server.stop();
}

/// L015, L338.
#[test]
fn without_a_page_server_the_compute_aborts() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let settings = [("neon.max_reconnect_attempts", "3")];
    let server = Server::start_compute(&world, &data, service.port(), &settings);
    server.ok("select id from t where false");
    service.close();
    server.fails(COUNT);
    let log = server.wait_for_end();
    assert!(log.contains("PANIC:  neon: page server unavailable after 4 attempts"), "{log}");
    assert!(log.contains("was terminated by signal 6"), "{log}");
}
