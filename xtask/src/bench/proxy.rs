//! A TCP proxy that adds latency and takes away no bandwidth: what is under way stays under way.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes taken at once.
const CHUNK: usize = 64 * 1024;
/// Chunks under way in one direction: 64 MiB, far more than a millisecond's worth of any network.
const CHUNKS_MAX: usize = 1024;

/// Forwards connections to `target` until dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of the loopback address. A round trip takes `added` longer than without the proxy, half
    /// of it in each direction.
    pub fn start(target: SocketAddr, added: Duration) -> io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let acceptor = thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // A connection that fails is one that its client sees failing.
                let _ = client.and_then(|client| forward(client, target, added / 2));
            }
        });
        Ok(Proxy { address, stop, acceptor: Some(acceptor) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The acceptor looks up when somebody knocks; connections go on until their ends close them.
        let knocked = TcpStream::connect(self.address).is_ok();
        if let Some(acceptor) = self.acceptor.take().filter(|_| knocked) {
            let _ = acceptor.join();
        }
    }
}

fn forward(client: TcpStream, target: SocketAddr, delay: Duration) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
    }
    one_way(client.try_clone()?, server.try_clone()?, delay);
    one_way(server, client, delay);
    Ok(())
}

/// Two threads: one takes bytes as they come and notes when, the other passes them on when their time has come. So the
/// sender is never held back by the delay.
fn one_way(mut from: TcpStream, to: TcpStream, delay: Duration) {
    let (sender, receiver) = sync_channel(CHUNKS_MAX);
    thread::spawn(move || take(&mut from, &sender, delay));
    thread::spawn(move || pass_on(to, &receiver));
}

fn take(from: &mut TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        let bytes = chunk.get(..count).unwrap_or_default().to_vec();
        if sender.send((Instant::now() + delay, bytes)).is_err() {
            break;
        }
    }
}

fn pass_on(mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>) {
    for (due, bytes) in receiver {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // An end is passed on like bytes; the other side may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}

/// Median time of a round trip of a few bytes to an echo server, through a proxy that adds `added`: what a sleeping
/// thread wakes up late comes on top.
pub fn measured_round_trip(added: Duration) -> io::Result<Duration> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let target = listener.local_addr()?;
    let echo = thread::spawn(move || -> io::Result<()> {
        let (mut peer, _) = listener.accept()?;
        peer.set_nodelay(true)?;
        let mut bytes = [0; 32];
        while peer.read_exact(&mut bytes).is_ok() {
            peer.write_all(&bytes)?;
        }
        Ok(())
    });
    let proxy = Proxy::start(target, added)?;
    let mut stream = TcpStream::connect(proxy.address())?;
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        stream.write_all(&[7; 32])?;
        stream.read_exact(&mut [0; 32])?;
        times.push(started.elapsed());
    }
    drop(stream);
    echo.join().map_err(|_| io::Error::other("the echo thread panicked"))??;
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Echoes everything; each connection on its own.
    fn echo_server() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for peer in listener.incoming() {
                let mut peer = peer.unwrap();
                thread::spawn(move || {
                    let mut reader = peer.try_clone().unwrap();
                    let _ = io::copy(&mut reader, &mut peer);
                    let _ = peer.shutdown(Shutdown::Write);
                });
            }
        });
        address
    }

    #[test]
    fn a_round_trip_takes_at_least_what_is_added() {
        assert!(measured_round_trip(Duration::from_millis(4)).unwrap() >= Duration::from_millis(4));
    }

    #[test]
    fn what_is_under_way_is_delayed_once_and_not_one_after_the_other() {
        // A thousand messages that each wait for their own delay would take a hundred seconds, more than any machine
        // is late.
        let proxy = Proxy::start(echo_server(), Duration::from_millis(100)).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let started = Instant::now();
        let writer = thread::spawn(move || {
            for number in 0..1000u32 {
                stream.write_all(&number.to_be_bytes()).unwrap();
            }
            stream
        });
        for number in 0..1000u32 {
            let mut bytes = [0; 4];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(u32::from_be_bytes(bytes), number);
        }
        assert!(started.elapsed() < Duration::from_secs(50));
        drop(writer.join().unwrap());
    }

    #[test]
    fn all_bytes_arrive_and_the_end_does_too() {
        let proxy = Proxy::start(echo_server(), Duration::from_millis(2)).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let sent: Vec<u8> =
            (0..3_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let copy = sent.clone();
        let writer = thread::spawn(move || stream.write_all(&copy).unwrap());
        let mut received = vec![0; sent.len()];
        reader.read_exact(&mut received).unwrap();
        assert!(received == sent);
        writer.join().unwrap();
        // The stream is closed by both of its handles only when both are dropped.
        let rest = TcpStream::connect(proxy.address()).and_then(|mut late| {
            late.shutdown(Shutdown::Write)?;
            late.read(&mut [0; 1])
        });
        assert_eq!(rest.unwrap(), 0);
    }
}
