//! The audit finds a page server that misses a change, and says nothing about one that does not.

use crate::compute::{Server, World};
use crate::page_service::PageService;

#[test]
fn a_missed_change_stops_the_server() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let server =
        Server::start_compute(&world, &data, service.port(), &[("neon.audit_pages", "on")]);
    // Hints are no differences: the pages are dirty after a read and have the LSN that the page service has.
    server.ok("alter system set log_checkpoints = on");
    server.ok("select count(*) from t;; checkpoint");
    // This service never sees WAL.
    server.psql("update t set filler = 'changed' where id = 1;; checkpoint");
    let log = server.wait_for_end();
    assert!(log.contains("PANIC:  neon: audit: page "), "{log}");
    assert!(log.contains("differs from the page server's"), "{log}");
    assert!(log.contains("the page server's page"), "both pages are shown: {log}");
}
