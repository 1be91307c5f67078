//! The same requests without waiting in between: what the redo process itself needs.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use pg_types::BLCKSZ;
use pg_types::page::Page;
use walredo_protocol::{put_apply, put_begin, put_get, put_push};
use walredo_sidecar::datadir::Template;
use walredo_sidecar::{NeonWalRecord, WalRedoConfig};

use crate::input::Request;
use crate::{Failure, PG_VERSION};

/// Requests that are under way at the same time.
const DEPTH: usize = 64;

/// Mean time of a request in microseconds when the process never waits for the next one.
pub fn mean_us(
    config: &WalRedoConfig,
    request: &Request,
    seconds: Duration,
) -> Result<f64, Failure> {
    let install = config.installs.get(&PG_VERSION).ok_or("no installation")?;
    let user = config.user.as_ref();
    let template = Template::create(install, PG_VERSION, &config.work_dir, user)?;
    let data_dir = template.instantiate(&config.work_dir, user)?;
    let mut command = install.command("postgres", user);
    command.arg("--wal-redo").env("PGDATA", data_dir.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;

    let batch = bytes_of(request)?.repeat(DEPTH);
    let mut answers = vec![0; BLCKSZ * DEPTH];
    let (mut count, mut elapsed) = (0u32, Duration::ZERO);
    let (go, going) = std::sync::mpsc::channel::<()>();
    let writer =
        std::thread::spawn(move || going.iter().try_for_each(|()| stdin.write_all(&batch)));
    go.send(())?;
    stdout.read_exact(&mut answers)?;
    go.send(())?;
    while elapsed < seconds {
        go.send(())?;
        let start = Instant::now();
        stdout.read_exact(&mut answers)?;
        elapsed += start.elapsed();
        count += u32::try_from(DEPTH)?;
    }
    stdout.read_exact(&mut answers)?;
    drop(go);
    writer.join().map_err(|_| "the writer panicked")??;
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("redo process ended with {status}").into());
    }
    Ok(elapsed.as_secs_f64() * 1e6 / f64::from(count))
}

fn bytes_of(request: &Request) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    put_begin(&mut bytes, request.tag);
    if let Some((_, image)) = &request.base {
        let page: &Page = image[..].try_into()?;
        put_push(&mut bytes, request.tag, page);
    }
    for (lsn, record) in &request.records {
        let NeonWalRecord::Postgres { rec, .. } = record else {
            return Err("not a Postgres record".into());
        };
        put_apply(&mut bytes, *lsn, rec);
    }
    put_get(&mut bytes, request.tag);
    Ok(bytes)
}
