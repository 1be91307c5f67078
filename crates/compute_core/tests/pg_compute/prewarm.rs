//! Filling the local file cache again (L031, L032).

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::compute::{Server, World};
use crate::page_service::PageService;
use page_protocol::RequestKind;

const COUNT: &str = "select count(*), sum(id) from t";
const ANSWER: &str = "10000|50005000";
const SETTINGS: [(&str, &str); 3] = [
    ("shared_buffers", "1MB"),
    ("neon.max_file_cache_size", "64MB"),
    ("neon.file_cache_size_limit", "64MB"),
];
/// Nothing happens at the start.
const BY_HAND: [(&str, &str); 4] =
    [SETTINGS[0], SETTINGS[1], SETTINGS[2], ("neon.file_cache_prewarm", "off")];
const SAVED: &str = "neon_file_cache.saved";

fn declare(server: &Server<'_>) {
    server.ok("create function state(max_chunks int) returns bytea
         as 'neon', 'get_local_cache_state_wrapper' language c volatile;;
         create function prewarm(state bytea) returns bigint
         as 'neon', 'prewarm_local_cache_wrapper' language c volatile strict;;
         create function info(out total bigint, out prewarmed bigint, out skipped bigint, out active bigint)
         returns setof record as 'neon', 'get_prewarm_info_wrapper' language c volatile");
}

/// How often pages of the table with this file number were asked for.
fn pages_asked_for(service: &PageService, number: u32) -> usize {
    let requests = service.requests();
    let of_table =
        |kind| matches!(kind, RequestKind::GetPage(rel, _) if rel.locator.rel_number == number);
    requests.iter().filter(|request| of_table(request.kind)).count()
}

fn file_number(server: &Server<'_>) -> u32 {
    server.ok("select pg_relation_filenode('t')").parse().expect("a number")
}

/// The bytes of the list, made by a compute that read the whole table.
fn saved_by_a_compute(world: &World, service: &PageService, data: &Path) -> Vec<u8> {
    let server = Server::start_compute(world, data, service.port(), &SETTINGS);
    assert_eq!(server.ok(COUNT), ANSWER);
    server.stop();
    let list = fs::read(data.join(SAVED)).expect("the list");
    fs::remove_dir_all(data).expect("the compute's folder");
    list
}

#[test]
fn a_new_compute_has_the_pages_of_the_last_one() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let list = saved_by_a_compute(&world, &service, &world.compute_data());
    let data = world.compute_data();
    fs::write(data.join(SAVED), &list).expect("the list");
    let server = Server::start_compute(&world, &data, service.port(), &SETTINGS);
    server.wait_for("the cache to be filled", || {
        server.log().contains("were brought into the local")
    });
    let number = file_number(&server);
    let asked = pages_asked_for(&service, number);
    assert_eq!(server.ok(COUNT), ANSWER);
    assert_eq!(pages_asked_for(&service, number), asked, "all pages of the table are here");
    server.stop();
    assert!(fs::read(data.join(SAVED)).is_ok_and(|saved| saved.len() >= list.len()));
}

/// A list of what the page server does not have any more, a damaged one, one that is not there: the compute starts.
#[test]
fn a_bad_list_stops_nobody() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let mut list = saved_by_a_compute(&world, &service, &world.compute_data());
    list[20] ^= 1;
    let data = world.compute_data();
    fs::write(data.join(SAVED), &list).expect("the list");
    let server = Server::start_compute(&world, &data, service.port(), &SETTINGS);
    assert_eq!(server.ok(COUNT), ANSWER);
    server.wait_for("the complaint", || {
        server.log().contains("could not fill the local file cache: this is no list of cached pages: its checksum is wrong")
    });
    declare(&server);
    let refused = server.fails("select prewarm('\\x00')");
    assert!(refused.contains("does not begin as a list"), "{refused}");
    server.stop();
}

/// The page server of this test answers with the pages as they were at the start: if one of them replaced a page that was
/// changed since, a sum would be wrong.
#[test]
fn filling_never_replaces_a_newer_page() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let list = saved_by_a_compute(&world, &service, &world.compute_data());
    let hex: String = list.iter().map(|byte| format!("{byte:02x}")).collect();
    let data = world.compute_data();
    let server = Server::start_compute(&world, &data, service.port(), &BY_HAND);
    declare(&server);
    service.add_latency(Duration::from_millis(1));
    let prewarm =
        format!("set neon.file_cache_prewarm_batch = 3;; select prewarm('\\x{hex}') > 100");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let filler = scope.spawn(|| {
            let brought = server.ok(&prewarm);
            done.store(true, Ordering::Release);
            brought
        });
        server.wait_for("progress", || {
            server.ok("select prewarmed between 1 and total from info()") == "t"
        });
        let busy = server.psql(&prewarm);
        let complaint = String::from_utf8_lossy(&busy.stderr);
        assert!(done.load(Ordering::Acquire) || complaint.contains("already"), "{complaint}");
        for round in 0..4 {
            // Rows in the order of the table and against it, on pages that have come and on such that have not.
            server.ok(&format!("update t set filler = 'new' where id % 8 = {round}"));
            server.ok(&format!("update t set filler = 'new' where id % 8 = {}", 7 - round));
        }
        assert_eq!(filler.join().expect("an answer"), "t");
    });
    assert_eq!(server.ok(COUNT), ANSWER);
    assert_eq!(server.ok("select count(*) from t where filler = 'new'"), "10000");
    assert_eq!(server.ok("select prewarmed + skipped = total, active from info()"), "t|0");
    server.stop();
}

#[test]
fn filling_can_be_ended_and_begun_again() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let list = saved_by_a_compute(&world, &service, &world.compute_data());
    let hex: String = list.iter().map(|byte| format!("{byte:02x}")).collect();
    let server = {
        let data = world.compute_data();
        Server::start_compute(&world, &data, service.port(), &BY_HAND)
    };
    declare(&server);
    let begun = "select active from info()";
    let end = |how: &str| {
        format!(
            "select pg_{how}_backend(pid) from pg_stat_activity
             where query like '%slowly%' and pid <> pg_backend_pid()"
        )
    };
    // What these read is in the cache from here on: they do not wait for the page server below.
    server.ok(begun);
    server.ok(&end("cancel"));
    service.add_latency(Duration::from_millis(200));
    for (how, complaint) in [("cancel", "canceling statement"), ("terminate", "terminating")] {
        std::thread::scope(|scope| {
            let filler =
                scope.spawn(|| server.fails(&format!("select /* slowly */ prewarm('\\x{hex}')")));
            server.wait_for("the work to begin", || server.ok(begun) == "1");
            server.ok(&end(how));
            assert!(filler.join().expect("an answer").contains(complaint));
        });
    }
    service.add_latency(Duration::ZERO);
    assert_eq!(server.ok(begun), "0");
    server.ok(&format!("select prewarm('\\x{hex}')"));
    assert_eq!(server.ok("select prewarmed + skipped = total, active from info()"), "t|0");
    server.stop();
}
