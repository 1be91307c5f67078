//! How fast the machine is right now: figures without these beside them say nothing.

use std::fmt;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::machine::load_average;
use super::stats::median;

const ROUNDS: usize = 2000;
const SYNCS: usize = 200;

/// Median round trip of 32 bytes out and a page back over loopback, median fdatasync of a page, load average.
#[derive(Debug, Serialize)]
pub struct Calibration {
    tcp_rtt_us: f64,
    fdatasync_us: f64,
    loadavg: f64,
}

impl Calibration {
    /// Measures now; takes well under a second.
    pub fn measure() -> Result<Calibration> {
        let loadavg = load_average()?;
        Ok(Calibration { tcp_rtt_us: tcp_rtt()?, fdatasync_us: fdatasync()?, loadavg })
    }

    /// Whether the disk was about as fast then as now.
    pub fn agrees_with(&self, other: &Calibration) -> bool {
        let factor = self.fdatasync_us / other.fdatasync_us;
        (0.5..=2.0).contains(&factor)
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Calibration { tcp_rtt_us, fdatasync_us, loadavg } = self;
        write!(
            f,
            "loopback round trip {tcp_rtt_us:.0} us, fdatasync {fdatasync_us:.0} us, load average {loadavg:.1}"
        )
    }
}

fn tcp_rtt() -> Result<f64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut peer, _) = listener.accept()?;
        peer.set_nodelay(true)?;
        let (mut request, page) = ([0; 32], [0; 8192]);
        while peer.read_exact(&mut request).is_ok() {
            peer.write_all(&page)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (request, mut page) = ([0; 32], [0; 8192]);
    let mut samples = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        stream.write_all(&request)?;
        stream.read_exact(&mut page)?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    drop(stream);
    echo.join().map_err(|_| anyhow::anyhow!("the echo thread panicked"))??;
    median(&samples).context("nothing was measured")
}

fn fdatasync() -> Result<f64> {
    let mut file = tempfile::tempfile()?;
    file.write_all(&vec![0; 16 << 20])?;
    file.sync_all()?;
    let mut samples = Vec::with_capacity(SYNCS);
    for block in 0..SYNCS {
        let start = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8192], (block * 8192) as u64)?;
        file.sync_data()?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    median(&samples).context("nothing was measured")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_slows_down_is_noticed() {
        let at = |fdatasync_us| Calibration { tcp_rtt_us: 10.0, fdatasync_us, loadavg: 0.0 };
        assert!(at(100.0).agrees_with(&at(150.0)));
        assert!(!at(100.0).agrees_with(&at(250.0)));
        assert!(!at(250.0).agrees_with(&at(100.0)));
    }
}
