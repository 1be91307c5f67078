//! What a safekeeper costs: latency of one append after another, and throughput of many under way.
//! `cargo run --release -p safekeeper --example push_bench -- DIRECTORY`

#[path = "../tests/common/wal_builder.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod wal_builder;

use std::time::{Duration, Instant};

use bytes::Bytes;
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};
use pg_wire::client::CopyBoth;
use pg_wire::{Client, ConnectParams, Endpoint};
use safekeeper::{Config, Safekeeper};
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
    latency(&mut copy, &mut wal).await?;
    throughput(&mut copy, &mut wal).await?;
    shutdown.cancel();
    running.await??;
    std::fs::remove_dir_all(data_dir)?;
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

async fn latency(copy: &mut CopyBoth, wal: &mut WalBuilder) -> Result<(), AnyError> {
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
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len())?;
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    println!("one append at a time: mean {mean:?}, p50 {:?}, p99 {:?}", at(50), at(99));
    Ok(())
}

async fn throughput(copy: &mut CopyBoth, wal: &mut WalBuilder) -> Result<(), AnyError> {
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
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    let megabytes = (end - from) as f64 / 1e6;
    println!("streaming: {:.0} MB/s", megabytes / started.elapsed().as_secs_f64());
    Ok(())
}
