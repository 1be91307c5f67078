//! The same requests without waiting in between: what the redo process itself needs.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use pg_types::BLCKSZ;
use walredo_sidecar::WalRedoConfig;
use walredo_sidecar::template::Template;

use crate::Failure;
use crate::child::{RedoChild, bytes_of};
use crate::input::Request;

/// Requests that are under way at the same time.
const DEPTH: usize = 64;

/// Mean time of a request in microseconds when the process never waits for the next one.
pub fn mean_us(
    config: &WalRedoConfig,
    template: &Template,
    request: &Request,
    seconds: Duration,
) -> Result<f64, Failure> {
    let mut process = RedoChild::start(config, template, 1)?;
    let batch = bytes_of(request)?.repeat(DEPTH);
    let mut answers = vec![0; BLCKSZ * DEPTH];
    let RedoChild { stdin, stdout, .. } = &mut process;
    let (go, going) = std::sync::mpsc::channel::<()>();
    let mean = std::thread::scope(|scope| -> Result<f64, Failure> {
        let writer = scope.spawn(move || going.iter().try_for_each(|()| stdin.write_all(&batch)));
        let (mut count, mut elapsed) = (0u32, Duration::ZERO);
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
        Ok(elapsed.as_secs_f64() * 1e6 / f64::from(count))
    })?;
    process.finish()?;
    Ok(mean)
}
