//! What a safekeeper costs: latency of one append after another, and throughput of many under way, each beside the
//! same bytes written to a file and synced.
//! `cargo run --release -p safekeeper --example push_bench -- DIRECTORY` prints rows as a JSON array.

#[path = "../tests/common/wal_builder.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod wal_builder;

use std::os::unix::fs::FileExt;
use std::time::Instant;

use bytes::Bytes;
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};
use pg_wire::client::CopyBoth;
use pg_wire::{Client, ConnectParams, Endpoint};
use safekeeper::{Config, Safekeeper};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wal_builder::WalBuilder;
use wal_consensus::limits::APPEND_BYTES_MAX;
use wal_consensus::membership::MembershipConf;
use wal_consensus::message::{
    AcceptorMessage, AppendHeader, AppendResponse, ProposerElected, ProposerGreeting,
    ProposerMessage, VoteRequest,
};
use wal_consensus::term_history::TermHistory;

type AnyError = Box<dyn std::error::Error>;

const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);
const START: Lsn = Lsn(0x100_0028);
const APPENDS: usize = 3000;
const STREAMED_BYTES: u64 = 1 << 30;
/// Bytes under way at most while streaming.
const WINDOW: u64 = 16 << 20;
/// Bytes between two syncs of the plain file.
const PIECE: usize = 1 << 20;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let dir = std::env::args_os().nth(1).ok_or("usage: push_bench DIRECTORY")?;
    let data_dir = std::path::Path::new(&dir).join("push_bench_data");
    let text = format!(
        "id = 1\ndata_dir = '{}'\nlisten_pg_addr = '127.0.0.1:0'\nlisten_http_addr = '127.0.0.1:0'",
        data_dir.display()
    );
    let config = Config::parse(std::path::Path::new("push_bench"), &text, [])?;
    let safekeeper = Safekeeper::start(config).await?;
    let (pg, http) = safekeeper.addresses()?;
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(safekeeper.run(shutdown.clone()));
    create(http).await?;
    let mut copy = elect(pg).await?;
    let mut wal = WalBuilder::new(START);
    let mut rows = latency(&mut copy, &mut wal).await?;
    let (streamed, bytes) = throughput(&mut copy, &mut wal).await?;
    shutdown.cancel();
    running.await??;
    std::fs::remove_dir_all(data_dir)?;
    let file = std::path::Path::new(&dir).join("push_bench_file");
    let (sync_us, plain) = plain_file(&file, &bytes)?;
    for row in &mut rows {
        row["reference"] = sync_us.into();
        row["reference_is"] = "fdatasync of one block, median".into();
    }
    rows.push(json!({
        "case": "safekeeper", "ours": streamed, "unit": "MB/s", "better": "higher",
        "reference": plain, "reference_is": "the same bytes to a file, fdatasync after each MiB",
    }));
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

async fn create(http: std::net::SocketAddr) -> Result<(), AnyError> {
    let url = format!("http://{http}/v1/tenant/timeline");
    let body = serde_json::json!({
        "tenant_id": TENANT, "timeline_id": TIMELINE, "pg_version": 17, "start_lsn": START,
    });
    tokio::task::spawn_blocking(move || ureq::post(url).send_json(body)).await??;
    Ok(())
}

async fn elect(pg: std::net::SocketAddr) -> Result<CopyBoth, AnyError> {
    let endpoint = Endpoint::Tcp { host: pg.ip().to_string(), port: pg.port() };
    let params = ConnectParams::new(endpoint, "bench")
        .option("tenant_id", &TENANT.to_string())
        .option("timeline_id", &TIMELINE.to_string());
    let client = Client::connect(&params).await?;
    let mut copy = client.copy_both("START_WAL_PUSH (proto_version '3')").await?;
    let (generation, term) = (Generation(0), Term(1));
    let greeting = ProposerGreeting {
        tenant_id: TENANT,
        timeline_id: TIMELINE,
        mconf: MembershipConf::default(),
        pg_version: 170_011,
        system_id: NodeId(7).0,
        wal_seg_size: 16 << 20,
    };
    send(&mut copy, &ProposerMessage::Greeting(greeting)).await?;
    copy.reader.recv().await?;
    send(&mut copy, &ProposerMessage::VoteRequest(VoteRequest { generation, term })).await?;
    copy.reader.recv().await?;
    let term_history = TermHistory::new(vec![(0, START.0).into(), (1, START.0).into()])?;
    let elected = ProposerElected { generation, term, start_streaming_at: START, term_history };
    send(&mut copy, &ProposerMessage::Elected(elected)).await?;
    Ok(copy)
}

async fn send(copy: &mut CopyBoth, message: &ProposerMessage) -> Result<(), AnyError> {
    copy.writer.send_noflush(&message.encode())?;
    Ok(copy.writer.flush().await?)
}

fn queue(
    copy: &mut CopyBoth,
    wal: &WalBuilder,
    begin: Lsn,
    end: Lsn,
    commit: Lsn,
) -> Result<(), AnyError> {
    let header = AppendHeader {
        generation: Generation(0),
        term: Term(1),
        begin_lsn: begin,
        end_lsn: end,
        commit_lsn: commit,
        truncate_lsn: Lsn(0),
    };
    copy.writer.send_with_noflush(|buf| {
        buf.extend_from_slice(&header.encode());
        buf.extend_from_slice(wal.slice(begin, end));
        Ok(())
    })?;
    Ok(())
}

async fn response(copy: &mut CopyBoth) -> Result<AppendResponse, AnyError> {
    let payload: Bytes = copy.reader.recv().await?.ok_or("the stream ended")?;
    match AcceptorMessage::decode(payload)? {
        AcceptorMessage::AppendResponse(response) => Ok(response),
        other => Err(format!("{other:?}").into()),
    }
}

async fn latency(copy: &mut CopyBoth, wal: &mut WalBuilder) -> Result<Vec<Value>, AnyError> {
    let mut begin = wal.end_lsn();
    let mut commit = START;
    let mut times = Vec::new();
    for _ in 0..APPENDS {
        let end = wal.record(300, 5);
        let started = Instant::now();
        queue(copy, wal, begin, end, commit)?;
        copy.writer.flush().await?;
        while response(copy).await?.flush_lsn < end {}
        times.push(started.elapsed());
        (begin, commit) = (end, end);
    }
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    let row = |(case, part): (&str, usize)| {
        let micros = at(part).as_secs_f64() * 1e6;
        json!({"case": case, "ours": micros, "unit": "us", "better": "lower"})
    };
    Ok([("append/p50", 50), ("append/p99", 99)].map(row).into())
}

/// MB/s, and the WAL that was streamed.
async fn throughput(copy: &mut CopyBoth, wal: &mut WalBuilder) -> Result<(f64, Vec<u8>), AnyError> {
    let from = wal.end_lsn();
    while wal.end_lsn() < from + STREAMED_BYTES {
        wal.record(400, 9);
    }
    let (end, mut begin, mut flushed) = (wal.end_lsn(), from, from);
    let started = Instant::now();
    let step = u64::try_from(APPEND_BYTES_MAX)?;
    while flushed < end {
        while begin < end && begin.saturating_sub(flushed) < WINDOW {
            let next = Lsn(begin.0 + step).min(end);
            queue(copy, wal, begin, next, flushed)?;
            begin = next;
            copy.writer.flush().await?;
        }
        flushed = flushed.max(response(copy).await?.flush_lsn);
    }
    let speed = megabytes(end - from) / started.elapsed().as_secs_f64();
    Ok((speed, wal.slice(from, end).to_vec()))
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Median microseconds to sync one block, and MB/s of all bytes in pieces that are synced each. The file has its final
/// size beforehand, as a safekeeper's segments have.
fn plain_file(path: &std::path::Path, bytes: &[u8]) -> Result<(f64, f64), AnyError> {
    let file = std::fs::File::create(path)?;
    file.write_all_at(&vec![0; bytes.len()], 0)?;
    file.sync_all()?;
    let mut offset = 0;
    let started = Instant::now();
    for piece in bytes.chunks(PIECE) {
        file.write_all_at(piece, offset)?;
        file.sync_data()?;
        offset += u64::try_from(piece.len())?;
    }
    let speed = megabytes(offset) / started.elapsed().as_secs_f64();
    let mut times = Vec::new();
    for block in 0..500u64 {
        let started = Instant::now();
        file.write_all_at(&[1; 4096], block * 4096)?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    std::fs::remove_file(path)?;
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok((median.as_secs_f64() * 1e6, speed))
}
