//! `neon.wal_redo_repeat`, which the benchmark sets: requests are served again and again, and answered once, rightly.
#![cfg(test)]

mod common;

use common::direct::{Direct, Process, first_insert, request_bytes, tag};
use pg_types::BLCKSZ;
use pg_types::page::Page;
use std::io::Write;
use walredo_protocol::{put_begin, put_get, put_push};

fn answers(mut process: Process) -> Vec<Vec<u8>> {
    let mut base: Page = [0xAB; BLCKSZ];
    // A header that passes for one: pd_flags, pd_lower, pd_upper, pd_special, pd_pagesize_version.
    base[10..20].copy_from_slice(&[0, 0, 24, 0, 0, 0x20, 0, 0x20, 4, 0x20]);
    let mut pushed = Vec::new();
    put_begin(&mut pushed, tag());
    put_push(&mut pushed, tag(), &base);
    put_get(&mut pushed, tag());
    let requests =
        [request_bytes(&[first_insert(10)]), pushed, request_bytes(&[first_insert(500)])];
    let mut pages = Vec::new();
    for request in &requests {
        process.stdin.write_all(request).unwrap();
        pages.push(process.page().unwrap());
    }
    assert_eq!(pages[1], base);
    let (status, rest, stderr) = process.finish();
    assert!(status.success() && rest.is_empty() && stderr.is_empty(), "{status} {stderr}");
    pages
}

#[test]
fn repeated_requests_are_answered_once_and_like_any_other() {
    let direct = Direct::new();
    let once = answers(direct.start(None));
    let often = answers(direct.start_with("neon.wal_redo_repeat=7\n"));
    assert_eq!(once, often);
    assert_ne!(once[0], once[2]);
}

#[test]
fn a_repeated_request_for_another_page_is_refused() {
    let direct = Direct::new();
    let mut process = direct.start_with("neon.wal_redo_repeat=7\n");
    let mut request = Vec::new();
    put_begin(&mut request, tag());
    let mut other = tag();
    other.blkno += 1;
    put_get(&mut request, other);
    process.stdin.write_all(&request).unwrap();
    let (status, answer, stderr) = process.finish();
    assert!(!status.success() && answer.is_empty());
    assert!(stderr.contains("outside a request"), "{stderr}");
}
