//! Redo without the pipe: what a request costs inside the redo process.
//!
//! Two processes get the same requests, in turns. The first serves each once, the second [`rounds`] times
//! before its one answer. Sending, waking up and answering happen once in both, so the difference is the inside of
//! all rounds but one: messages looked at, page set up, records decoded and replayed, page read, all forgotten.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pg_types::page::{Page, ZERO_PAGE};
use walredo_sidecar::WalRedoConfig;
use walredo_sidecar::template::Template;

use crate::child::{RedoChild, bytes_of};
use crate::input::Request;
use crate::{Failure, mean, percentile};

/// Time for all rounds of a request, about: long enough that a hand-over, which varies by microseconds, is noise, and
/// short enough that most requests see no other process come in between.
const REQUEST_US: f64 = 1000.0;
/// Turns of the two processes, so that both meet the same neighbours.
const SLICES: u32 = 10;

/// Microseconds that a caller waits for its request inside the process, when `callers` share one process. One caller:
/// the median. Several: the mean, which holds the requests of the others that are served before. `once_us` is what a
/// request takes one caller through the pipe, about.
pub fn time_us(
    (config, template): (&WalRedoConfig, &Template),
    request: &Request,
    callers: usize,
    once_us: f64,
    seconds: Duration,
) -> Result<f64, Failure> {
    let bytes = bytes_of(request)?;
    let mut processes = Vec::new();
    let rounds = rounds(once_us);
    for count in [1, rounds] {
        let mut process = RedoChild::start(config, template, count)?;
        let mut page = ZERO_PAGE;
        process.ask(&bytes, &mut page)?;
        processes.push((Mutex::new(process), page));
    }
    let [(one, page_of_one), (many, page_of_many)] = &processes[..] else {
        return Err("two processes were started".into());
    };
    if page_of_one != page_of_many {
        return Err("the page depends on how often it was rebuilt".into());
    }
    let mut samples = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        samples.0.extend(slice(one, &bytes, callers, seconds / (2 * SLICES))?);
        samples.1.extend(slice(many, &bytes, callers, seconds / (2 * SLICES))?);
    }
    for (process, _) in processes {
        process.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?;
    }
    let figure = |mut samples: Vec<f64>| {
        let middle = if callers == 1 { percentile(&mut samples, 50) } else { mean(&samples) };
        middle.ok_or("nothing was measured")
    };
    Ok((figure(samples.1)? - figure(samples.0)?) / f64::from(rounds - 1))
}

/// How often the second process serves each request.
fn rounds(once_us: f64) -> u32 {
    (2..200).find(|count| f64::from(*count) * once_us >= REQUEST_US).unwrap_or(200)
}

/// `callers` threads ask one process for some time; how long each request took them.
fn slice(
    process: &Mutex<RedoChild>,
    request: &[u8],
    callers: usize,
    length: Duration,
) -> Result<Vec<f64>, Failure> {
    let caller = || -> Result<Vec<f64>, Failure> {
        let end = Instant::now() + length;
        let mut samples = Vec::new();
        while Instant::now() < end {
            let mut page: Page = ZERO_PAGE;
            let start = Instant::now();
            process.lock().map_err(|_| "a caller panicked")?.ask(request, &mut page)?;
            samples.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(samples)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers).map(|_| scope.spawn(caller)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a caller panicked")??);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_requests_are_repeated_less() {
        assert_eq!(rounds(10.0), 100);
        assert_eq!(rounds(150.0), 7);
        assert_eq!(rounds(0.0), 200);
        assert_eq!(rounds(1e9), 2);
    }
}
