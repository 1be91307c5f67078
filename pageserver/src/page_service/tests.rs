//! The page service over real sockets, on hand-made timelines.

use std::time::Duration;

use bytes::Bytes;
use layer_store::{RecordPosition, WriteBatch};
use page_protocol::{
    Payload, ProtocolVersion, Request, RequestKind, decode_response, encode_request,
};
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, TimelineId};
use pg_wire::{Client, ConnectParams, CopyBoth, Endpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{END, Fixture, TENANT, page, rel, timeline_id};
use crate::server::Server;

const V2: ProtocolVersion = ProtocolVersion::V2;
const V3: ProtocolVersion = ProtocolVersion::V3;

async fn start(fixture: &Fixture) -> Server {
    fixture.timeline(timeline_id(1));
    Server::start(fixture.config.clone()).await.unwrap()
}

async fn client(server: &Server) -> Client {
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: server.pg_addr().port() };
    let patience = Some(Duration::from_secs(60));
    let params = ConnectParams::new(endpoint, "compute").read_timeout(patience);
    Client::connect(&params).await.unwrap()
}

async fn stream(server: &Server, version: ProtocolVersion) -> CopyBoth {
    client(server).await.copy_both(&version.command(TENANT, timeline_id(1))).await.unwrap()
}

fn request(id: u64, lsn: Lsn, since: Lsn, kind: RequestKind) -> Request {
    Request { request_id: id, request_lsn: lsn, not_modified_since: since, kind }
}

fn get_page(id: u64, lsn: Lsn, block: u32) -> Request {
    request(id, lsn, Lsn(0), RequestKind::GetPage(rel(), block))
}

async fn send(stream: &mut CopyBoth, version: ProtocolVersion, requests: &[Request]) {
    for request in requests {
        let mut bytes = Vec::new();
        encode_request(version, request, &mut bytes);
        stream.writer.send_noflush(&bytes).unwrap();
    }
    stream.writer.flush().await.unwrap();
}

async fn receive(stream: &mut CopyBoth) -> Bytes {
    stream.reader.recv().await.unwrap().expect("the stream goes on")
}

async fn ask(stream: &mut CopyBoth, version: ProtocolVersion, asked: Request) -> Bytes {
    send(stream, version, &[asked]).await;
    receive(stream).await
}

fn expect(version: ProtocolVersion, answer: &Bytes, asked: &Request, payload: &Payload<'_>) {
    let decoded = decode_response(version, answer, asked).unwrap();
    assert!(decoded == *payload, "answer to {asked:?}: {decoded:?}");
}

fn error_of(version: ProtocolVersion, answer: &Bytes, asked: &Request) -> String {
    match decode_response(version, answer, asked) {
        Ok(Payload::Error(text)) => text.into_owned(),
        other => panic!("{asked:?}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_in_both_versions() {
    let fixture = Fixture::new();
    let server = start(&fixture).await;
    let (one, two, zero) = (page(1), page(2), page(0));
    let as_page = |bytes: &'static [u8; BLCKSZ]| Payload::Page(bytes);
    let leak = |bytes: Vec<u8>| -> &'static [u8; BLCKSZ] {
        Box::leak(bytes.into_boxed_slice().try_into().unwrap())
    };
    let (one, two, zero) = (leak(one), leak(two), leak(zero));
    let vm = rel().locator.fork(ForkNumber::Vm);
    let table = [
        (get_page(1, Lsn(0x100_007F), 0), as_page(one)),
        (get_page(2, Lsn(0x100_0080), 0), as_page(two)),
        (get_page(3, Lsn::MAX, 0), as_page(two)),
        (get_page(4, Lsn::MAX, 1), as_page(zero)),
        (get_page(5, Lsn::MAX, 2), as_page(zero)),
        (request(6, Lsn::MAX, END, RequestKind::Exists(rel())), Payload::Exists(true)),
        (request(7, Lsn::MAX, END, RequestKind::Exists(vm)), Payload::Exists(false)),
        (request(8, Lsn::MAX, END, RequestKind::Nblocks(rel())), Payload::Nblocks(2)),
        (request(9, Lsn::MAX, END, RequestKind::Nblocks(vm)), Payload::Nblocks(0)),
        (request(10, Lsn::MAX, END, RequestKind::DbSize(5)), Payload::DbSize(2 * 8192)),
        (request(11, Lsn::MAX, END, RequestKind::DbSize(6)), Payload::DbSize(0)),
    ];
    for version in [V2, V3] {
        let mut stream = stream(&server, version).await;
        for (asked, payload) in &table {
            let answer = ask(&mut stream, version, *asked).await;
            expect(version, &answer, asked, payload);
        }
        // The same once more, all at once: answers come in order.
        send(&mut stream, version, &table.each_ref().map(|(asked, _)| *asked)).await;
        for (asked, payload) in &table {
            expect(version, &receive(&mut stream).await, asked, payload);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_answers_and_the_stream_goes_on() {
    let fixture = Fixture::new();
    let server = start(&fixture).await;
    let other = pg_types::RelFileLocator { rel_number: 99, ..rel().locator }.fork(ForkNumber::Main);
    let table = [
        (get_page(1, Lsn(0), 0), "invalid LSN 0/0"),
        (get_page(2, Lsn(0x100_0020), 0), "oldest readable position is 0/1000028"),
        (
            request(3, Lsn(0x100_0080), END, RequestKind::GetPage(rel(), 0)),
            "before not_modified_since",
        ),
        (
            request(4, Lsn::MAX, Lsn(END.0 + 8), RequestKind::GetPage(rel(), 0)),
            "timed out after 50ms waiting for WAL up to 0/1000108; received up to 0/1000100",
        ),
        (
            request(5, Lsn::MAX, END, RequestKind::Nblocks(other)),
            "relation 1663/5/99 does not exist",
        ),
        (
            request(6, Lsn::MAX, END, RequestKind::SlruSegment(pg_types::SlruKind::Clog, 7)),
            "segment 0007 of pg_xact does not exist",
        ),
    ];
    for version in [V2, V3] {
        let mut stream = stream(&server, version).await;
        for (asked, text) in &table {
            let answer = ask(&mut stream, version, *asked).await;
            let error = error_of(version, &answer, asked);
            assert!(error.contains(text), "{error}");
        }
        let asked = get_page(7, END, 0);
        let answer = ask(&mut stream, version, asked).await;
        expect(version, &answer, &asked, &Payload::Page(&[2; BLCKSZ]));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_request_does_not_hold_back_earlier_answers_and_is_woken() {
    let mut fixture = Fixture::new();
    fixture.config.wait_lsn_timeout = Duration::from_secs(600);
    let server = start(&fixture).await;
    let mut stream = stream(&server, V3).await;
    let next = Lsn(END.0 + 0x80);
    let asked = [
        get_page(1, Lsn::MAX, 0),
        request(2, Lsn::MAX, next, RequestKind::GetPage(rel(), 0)),
        get_page(3, Lsn::MAX, 0),
    ];
    send(&mut stream, V3, &asked).await;
    expect(V3, &receive(&mut stream).await, &asked[0], &Payload::Page(&[2; BLCKSZ]));

    let timeline = server.tenants().timeline(TENANT, timeline_id(1)).unwrap();
    let mut batch = WriteBatch::new();
    batch.put_image(Key::rel_block(rel(), 0), next, &page(3));
    let position = RecordPosition { last_record_lsn: next, prev_record_lsn: END };
    timeline.store().put(batch, position).unwrap();
    timeline.publish_positions();
    for asked in &asked[1..] {
        expect(V3, &receive(&mut stream).await, asked, &Payload::Page(&[3; BLCKSZ]));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_streams_end_alone() {
    let fixture = Fixture::new();
    let server = start(&fixture).await;
    let mut good = stream(&server, V3).await;

    // Not a request.
    let mut bad = stream(&server, V3).await;
    bad.writer.send_noflush(&[99, 1, 2, 3]).unwrap();
    bad.writer.flush().await.unwrap();
    let error = bad.reader.recv().await.unwrap_err();
    assert!(error.to_string().contains("unknown tag 99"), "{error}");

    // A length of two gigabytes, and noise in place of a start-up packet.
    for bytes in [&b"\x7F\xFF\xFF\xFF\x00\x03\x00\x00"[..], b"GET / HTTP/1.0\r\n\r\n", &[0; 64]] {
        let mut socket = tokio::net::TcpStream::connect(server.pg_addr()).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        assert!(answer.len() < 1000);
    }

    // A client that asks and does not read, then goes.
    let mut deaf = stream(&server, V3).await;
    send(&mut deaf, V3, &vec![get_page(1, Lsn::MAX, 0); 2000]).await;
    drop(deaf);

    let asked = get_page(1, Lsn::MAX, 0);
    let answer = ask(&mut good, V3, asked).await;
    expect(V3, &answer, &asked, &Payload::Page(&[2; BLCKSZ]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_name_nothing_are_refused_and_the_session_goes_on() {
    let fixture = Fixture::new();
    let server = start(&fixture).await;
    let mut client = client(&server).await;
    let table = [
        ("select 1".to_owned(), "42601"),
        ("pagestream_v3 x y".to_owned(), "42601"),
        (V3.command(TENANT, TimelineId([9; 16])), "42704"),
        (V3.command(pg_types::TenantId([9; 16]), timeline_id(1)), "42704"),
        (format!("basebackup {TENANT} {} 0/0", TimelineId([9; 16])), "42704"),
    ];
    for (query, code) in table {
        let error = client.simple_query(&query).await.unwrap_err();
        let error = error.server_error().unwrap();
        assert_eq!(error.code, code, "{query}: {error}");
    }
    client.simple_query("set client_encoding = utf8").await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_timeline_ends_its_streams() {
    let mut fixture = Fixture::new();
    fixture.config.wait_lsn_timeout = Duration::from_secs(600);
    let server = start(&fixture).await;
    let mut waiting = stream(&server, V3).await;
    let asked = request(1, Lsn::MAX, Lsn(END.0 + 8), RequestKind::GetPage(rel(), 0));
    send(&mut waiting, V3, &[asked]).await;
    let mut idle = stream(&server, V3).await;
    server.tenants().delete_timeline(TENANT, timeline_id(1)).await.unwrap();
    for stream in [&mut waiting, &mut idle] {
        let error = stream.reader.recv().await.unwrap_err();
        assert_eq!(error.server_error().unwrap().code, "08006", "{error}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_says_so() {
    let fixture = Fixture::new();
    let server = start(&fixture).await;
    let mut stream = stream(&server, V3).await;
    let stopped = tokio::spawn(server.stop());
    let error = stream.reader.recv().await.unwrap_err();
    assert_eq!(error.server_error().unwrap().code, "57P01", "{error}");
    stopped.await.unwrap();
}
