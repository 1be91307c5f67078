//! Writers are held back while storage is behind, and can be cancelled (L027).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::compute::{Server, World};
use crate::page_service::PageService;
use compute_core::feedback::{FILE_LEN, FILE_NAME, MAGIC, VERSION};

/// Does what walproposer does: the page with everything at one position.
fn report(file: &File, sequence: u64, lsn: u64) {
    let word = |at: u64, value: u64| {
        file.write_all_at(&value.to_le_bytes(), at * 8).expect("feedback file");
    };
    word(2, sequence * 2 - 1);
    word(0, MAGIC);
    word(1, VERSION);
    (3..=6).for_each(|at| word(at, lsn));
    word(2, sequence * 2);
}

fn insert_position(server: &Server<'_>) -> u64 {
    server.ok("select pg_current_wal_insert_lsn() - '0/0'").parse().expect("a number")
}

#[test]
fn writers_wait_for_storage() {
    let world = World::new();
    let service = PageService::start(&world.stock_data());
    let data = world.compute_data();
    let mut options = OpenOptions::new();
    let path = data.join(FILE_NAME);
    let file = options.write(true).create(true).truncate(true).open(path).expect("feedback file");
    file.set_len(FILE_LEN as u64).expect("feedback file");
    let settings = [("neon.max_replication_write_lag", "4MB")];
    let server = Server::start_compute(&world, &data, service.port(), &settings);
    server.ok("create table w (a text)");

    let bulk = "insert into w select repeat('x', 1000) from generate_series(1, 50000)";
    // Nothing is known of storage yet: nobody waits, whatever the lag.
    server.ok(&format!("set statement_timeout = '30s';; {bulk}"));

    report(&file, 1, insert_position(&server));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| server.psql(bulk));
        let held = "select count(*) from pg_stat_activity where wait_event = 'NeonBackpressure'";
        server.wait_for("a writer that is held back", || server.ok(held) == "1");
        // Reading is not held back.
        assert_eq!(server.ok("select count(*) from t"), "10000");
        let cancel = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'NeonBackpressure'";
        server.wait_for("the writer to obey", || {
            server.ok(cancel);
            writer.is_finished()
        });
        let message = writer.join().expect("the writer").stderr;
        let message = String::from_utf8_lossy(&message).into_owned();
        assert!(message.contains("canceling statement due to user request"), "{message}");
    });

    std::thread::scope(|scope| {
        let writer = scope.spawn(|| server.psql(bulk));
        let mut sequence = 1;
        // Storage catches up: so does the writer.
        while !writer.is_finished() {
            sequence += 1;
            report(&file, sequence, insert_position(&server));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(writer.join().expect("the writer").status.success());
    });
    server.ok(
        "create function throttled() returns bigint as 'neon', 'backpressure_throttling_time_wrapper' language c",
    );
    let micros: u64 = server.ok("select throttled()").parse().expect("a number");
    assert!(micros > 0);
    server.stop();
}
