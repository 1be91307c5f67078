//! Which thread does what.
//!
//! Each connection has a thread and an event loop of its own. What a proposer sends is read, written, made durable and
//! answered without a change of threads, which on a commit's way would cost a good part of an `fdatasync`; and whoever
//! waits for the disk keeps nobody else waiting. Everything else (HTTP, maintenance, accepting) shares one runtime.

use std::future::Future;
use std::io;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, RuntimeFlavor};

/// Serves an accepted connection on a thread of its own.
///
/// # Errors
/// When there is no thread or no event loop to be had; the connection is closed then.
pub fn serve_connection<F: Future<Output = ()>>(
    cid: u64,
    stream: TcpStream,
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> io::Result<()> {
    let stream = stream.into_std()?;
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let work = move || {
        runtime.block_on(async {
            match TcpStream::from_std(stream) {
                Ok(stream) => serve(stream).await,
                Err(error) => tracing::warn!(cid, "could not take a connection over: {error}"),
            }
        });
    };
    std::thread::Builder::new().name(format!("connection {cid}")).spawn(work).map(drop)
}

/// Runs blocking work in place: on a connection's own thread that disturbs nobody; on the shared runtime other tasks go on
/// elsewhere meanwhile.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
