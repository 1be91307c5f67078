//! How long a page takes over the page service, and how many there are in a second, beside the bare loopback
//! round trip of messages of the same lengths, measured in the same run.
//!
//! `NEON_PG_INSTALL` names the PostgreSQL installation. Rows are printed as a JSON array.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use layer_store::{RecordPosition, WriteBatch};
use page_protocol::{
    Payload, ProtocolVersion, Request, RequestKind, decode_response, encode_request,
};
use pageserver::Server;
use pageserver::config::Config;
use pageserver::tenants::NewTimeline;
use pageserver::timeline::Timeline;
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, RelFileLocator, RelTag, TenantId, TimelineId};
use serde_json::{Value, json};
use walredo_sidecar::NeonWalRecord;

const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);
/// Pages of each relation: 32 MiB, more than the second-level cache and less than the page cache.
const PAGES: u32 = 4096;
/// Records of a short chain.
const CHAIN: u16 = 4;
const WARM_UP: usize = 2000;
const ROUND_TRIPS: usize = 20_000;
const CLIENTS: usize = 8;
const PIPELINE: usize = 32;
/// CopyData header and message.
const REQUEST_BYTES: usize = 5 + 42;
const RESPONSE_BYTES: usize = 5 + 8234;

fn images() -> RelTag {
    RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 100_001 }.fork(ForkNumber::Main)
}

fn chains() -> RelTag {
    RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 100_002 }.fork(ForkNumber::Main)
}

fn main() -> Result<()> {
    let install = std::env::var_os("NEON_PG_INSTALL")
        .context("NEON_PG_INSTALL must name a PostgreSQL installation (cargo xtask pg)")?;
    let scratch = Scratch::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let server = runtime.block_on(start(&scratch.0, Path::new(&install)))?;
    let address = server.pg_addr();

    let mut rows = Vec::new();
    let echo = Echo::start()?;
    let reference = latencies(|| Ok(echo.connect()?), 1, ROUND_TRIPS)?;
    for (case, rel) in [("image", images()), ("chain4", chains())] {
        let connect = || PageClient::connect(address, rel);
        latencies(connect, 1, WARM_UP)?;
        let ours = latencies(connect, 1, ROUND_TRIPS)?;
        let round_trip = "loopback round trip of the same lengths";
        rows.push(row(&format!("{case}/1/p50"), ours.p50, reference.p50, round_trip, "us"));
        rows.push(row(&format!("{case}/1/p99"), ours.p99, reference.p99, round_trip, "us"));
        let theirs = latencies(|| Ok(echo.connect()?), CLIENTS, ROUND_TRIPS / CLIENTS)?;
        let ours = latencies(connect, CLIENTS, ROUND_TRIPS / CLIENTS)?;
        let what = "loopback round trips of 8 clients";
        rows.push(row(&format!("{case}/8"), ours.rate, theirs.rate, what, "pages/s"));
        let pipelined = connect()?.pipelined(ROUND_TRIPS)?;
        let what = "loopback round trips of 1 client";
        rows.push(row(&format!("{case}/pipeline32"), pipelined, reference.rate, what, "pages/s"));
    }
    runtime.block_on(server.stop());
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

fn row(case: &str, ours: f64, reference: f64, reference_is: &str, unit: &str) -> Value {
    let better = if unit == "us" { "lower" } else { "higher" };
    let ratio = if unit == "us" { reference / ours } else { ours / reference };
    json!({
        "case": case, "ours": ours, "reference": reference, "reference_is": reference_is,
        "ratio": ratio, "unit": unit, "better": better
    })
}

/// A directory that PostgreSQL's user may enter and that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("bench-getpage-{}", std::process::id()));
        std::fs::create_dir(&path)
            .with_context(|| format!("could not create {}", path.display()))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-overs in a temporary directory are no reason to fail a measurement.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn start(dir: &Path, install: &Path) -> Result<Server> {
    let server = Server::start(Config::for_tests(&dir.join("data"), install)).await?;
    server.tenants().create_tenant(TENANT).await?;
    let new = NewTimeline {
        timeline_id: TIMELINE,
        ancestor_timeline_id: None,
        ancestor_start_lsn: None,
        pg_version: 17,
    };
    let (timeline, _) = server.tenants().create_timeline(TENANT, new).await?;
    tokio::task::spawn_blocking(move || fill(&timeline)).await??;
    Ok(server)
}

/// Writes one relation of images and one whose pages are chains of records, and flushes them to a layer file.
fn fill(timeline: &Timeline) -> Result<()> {
    let mut lsn = timeline.last_record_lsn().0;
    let mut batch = WriteBatch::new();
    let mut next = || {
        lsn += 256;
        Lsn(lsn)
    };
    for rel in [images(), chains()] {
        batch.put_image(Key::rel_dir_entry(rel), next(), b"r");
        batch.put_image(Key::rel_size(rel), next(), &PAGES.to_le_bytes());
    }
    for blkno in 0..PAGES {
        let mut page = [0; BLCKSZ];
        page.iter_mut().enumerate().for_each(|(i, byte)| *byte = low_byte(i ^ blkno as usize));
        batch.put_image(Key::rel_block(images(), blkno), next(), &page);
        for offset in 1..=CHAIN {
            let lsn = next();
            let record = NeonWalRecord::Postgres {
                will_init: offset == 1,
                rec: heap_insert(chains(), blkno, offset),
            };
            let key = Key::rel_block(chains(), blkno);
            batch.put_delta(key, lsn, record.will_init(), &record.encode());
        }
    }
    let position = RecordPosition { last_record_lsn: next(), prev_record_lsn: Lsn::INVALID };
    timeline.store().put(batch, position)?;
    timeline.publish_positions();
    timeline.flush()?;
    Ok(())
}

fn low_byte(value: usize) -> u8 {
    let [byte, ..] = value.to_le_bytes();
    byte
}

/// A heap record that inserts a tuple of 100 bytes as line pointer `offset` (`heapam_xlog.h`, `xlogrecord.h`);
/// the first one makes the page.
fn heap_insert(rel: RelTag, blkno: u32, offset: u16) -> Bytes {
    const RM_HEAP_ID: u8 = 10;
    const XLOG_HEAP_INIT_PAGE: u8 = 0x80;
    const BKPBLOCK_HAS_DATA: u8 = 0x20;
    const BKPBLOCK_WILL_INIT: u8 = 0x40;
    const XLR_BLOCK_ID_DATA_SHORT: u8 = 255;
    const HEAP_XMAX_INVALID: u16 = 0x0800;
    let (info, init) = if offset == 1 { (XLOG_HEAP_INIT_PAGE, BKPBLOCK_WILL_INIT) } else { (0, 0) };
    let mut block_data = Vec::new();
    block_data.extend(1u16.to_le_bytes());
    block_data.extend(HEAP_XMAX_INVALID.to_le_bytes());
    block_data.push(24);
    block_data.extend([0x55; 77]);
    let mut body = vec![0, BKPBLOCK_HAS_DATA | init];
    body.extend(u16::try_from(block_data.len()).unwrap_or(0).to_le_bytes());
    let l = rel.locator;
    [l.spc_oid, l.db_oid, l.rel_number, blkno]
        .iter()
        .for_each(|field| body.extend(field.to_le_bytes()));
    body.extend([XLR_BLOCK_ID_DATA_SHORT, 3]);
    body.extend(block_data);
    body.extend(offset.to_le_bytes());
    body.push(0);
    let mut record = Vec::new();
    record.extend(u32::try_from(24 + body.len()).unwrap_or(0).to_le_bytes());
    record.extend(1000u32.to_le_bytes());
    record.extend(0u64.to_le_bytes());
    record.extend([info, RM_HEAP_ID, 0, 0]);
    record.extend(0u32.to_le_bytes());
    record.extend(body);
    Bytes::from(record)
}

/// Something that can be asked and answers.
trait RoundTrip: Send {
    fn round_trip(&mut self, number: usize) -> Result<()>;
}

struct Figures {
    p50: f64,
    p99: f64,
    rate: f64,
}

/// Times `count` round trips of each of `clients` clients: microseconds, and round trips a second of all.
fn latencies<C: RoundTrip>(
    connect: impl Fn() -> Result<C>,
    clients: usize,
    count: usize,
) -> Result<Figures> {
    let clients = (0..clients).map(|_| connect()).collect::<Result<Vec<C>>>()?;
    let started = Instant::now();
    let timings = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(index, client)| scope.spawn(move || time_each(client, index, count)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
            .collect::<Result<Vec<Vec<f64>>>>()
    })?;
    let elapsed = started.elapsed().as_secs_f64();
    let mut all = timings.concat();
    all.sort_by(f64::total_cmp);
    let at = |share: usize| all.get(all.len() * share / 100).copied().unwrap_or_default();
    Ok(Figures { p50: at(50), p99: at(99), rate: as_f64(all.len()) / elapsed })
}

fn time_each(mut client: impl RoundTrip, index: usize, count: usize) -> Result<Vec<f64>> {
    let mut timings = Vec::with_capacity(count);
    for number in 0..count {
        let started = Instant::now();
        client.round_trip(index * 7919 + number)?;
        timings.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(timings)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are small")]
fn as_f64(value: usize) -> f64 {
    value as f64
}

/// Answers messages of the lengths of a page request with as many bytes as a page response has.
struct Echo(SocketAddr);

impl Echo {
    fn start() -> Result<Echo> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                thread::spawn(move || Echo::answer(stream));
            }
        });
        Ok(Echo(address))
    }

    fn answer(mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut request, response) = ([0; REQUEST_BYTES], [0; RESPONSE_BYTES]);
        loop {
            stream.read_exact(&mut request)?;
            stream.write_all(&response)?;
        }
    }

    fn connect(&self) -> io::Result<EchoClient> {
        let stream = TcpStream::connect(self.0)?;
        stream.set_nodelay(true)?;
        Ok(EchoClient(stream))
    }
}

struct EchoClient(TcpStream);

impl RoundTrip for EchoClient {
    fn round_trip(&mut self, _number: usize) -> Result<()> {
        self.0.write_all(&[0; REQUEST_BYTES])?;
        self.0.read_exact(&mut [0; RESPONSE_BYTES])?;
        Ok(())
    }
}

/// A compute's connection, blocking as libpq is.
struct PageClient {
    stream: TcpStream,
    rel: RelTag,
    answer: Vec<u8>,
}

impl PageClient {
    fn connect(address: SocketAddr, rel: RelTag) -> Result<PageClient> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut client = PageClient { stream, rel, answer: Vec::new() };
        let parameters = b"user\0bench\0\0";
        let mut startup = u32::try_from(8 + parameters.len())?.to_be_bytes().to_vec();
        startup.extend(196_608u32.to_be_bytes());
        startup.extend(parameters);
        client.stream.write_all(&startup)?;
        while client.read_message()? != b'Z' {}
        let mut query = ProtocolVersion::V3.command(TENANT, TIMELINE).into_bytes();
        query.push(0);
        client.stream.write_all(b"Q")?;
        client.stream.write_all(&u32::try_from(4 + query.len())?.to_be_bytes())?;
        client.stream.write_all(&query)?;
        while client.read_message()? != b'W' {}
        Ok(client)
    }

    fn read_message(&mut self) -> Result<u8> {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header)?;
        let [tag, a, b, c, d] = header;
        let len = usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
        self.answer.resize(len.saturating_sub(4), 0);
        self.stream.read_exact(&mut self.answer)?;
        ensure!(tag != b'E', "{}", String::from_utf8_lossy(&self.answer));
        Ok(tag)
    }

    /// Pages are asked for in an order that no read-ahead guesses.
    fn request(&self, number: usize) -> Request {
        let blkno = (u32::try_from(number).unwrap_or(0)).wrapping_mul(2_654_435_761) % PAGES;
        Request {
            request_id: number as u64,
            request_lsn: Lsn::MAX,
            not_modified_since: Lsn::INVALID,
            kind: RequestKind::GetPage(self.rel, blkno),
        }
    }

    fn put(&self, number: usize, out: &mut Vec<u8>) -> Result<()> {
        out.push(b'd');
        out.extend(u32::try_from(REQUEST_BYTES - 1)?.to_be_bytes());
        encode_request(ProtocolVersion::V3, &self.request(number), out);
        Ok(())
    }

    fn take(&mut self, number: usize) -> Result<()> {
        self.read_message()?;
        match decode_response(ProtocolVersion::V3, &self.answer, &self.request(number))? {
            Payload::Page(page) => ensure!(page.iter().any(|byte| *byte != 0), "page of zeros"),
            other => anyhow::bail!("no page: {other:?}"),
        }
        Ok(())
    }

    /// Pages a second with [`PIPELINE`] requests under way.
    fn pipelined(&mut self, count: usize) -> Result<f64> {
        let started = Instant::now();
        for first in (0..count).step_by(PIPELINE) {
            let mut out = Vec::new();
            (first..first + PIPELINE).try_for_each(|number| self.put(number, &mut out))?;
            self.stream.write_all(&out)?;
            (first..first + PIPELINE).try_for_each(|number| self.take(number))?;
        }
        Ok(as_f64(count) / started.elapsed().as_secs_f64())
    }
}

impl RoundTrip for PageClient {
    fn round_trip(&mut self, number: usize) -> Result<()> {
        let mut out = Vec::with_capacity(REQUEST_BYTES);
        self.put(number, &mut out)?;
        self.stream.write_all(&out)?;
        self.take(number)
    }
}
