//! One connection to a page server: a non-blocking socket driven by Postgres' wait functions.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::ToSocketAddrs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use compute_core::conninfo::{ConnInfo, ConnInfoError};
use compute_core::frame::{self, FrameBuffer, FrameError};
use compute_core::handshake::{self, Handshake, HandshakeError, Parameters, Step};
use compute_core::retry::{Stall, Verdict};
use page_protocol::{
    DecodeError, MAX_REQUEST_LEN, Payload, ProtocolVersion, Request, decode_response,
    encode_request,
};
use pg_types::ids::IdParseError;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::counters::{self, Counter};
use crate::ffi::latch::{Interest, LatchKeeper, SocketWaiter, WaitEvent};
use crate::ffi::{guc, process, report};

/// Longest time for a connection to be made and the stream to start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Why there is no connection any more, or not yet.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// `neon.pageserver_connstring` is wrong.
    #[error("neon.pageserver_connstring: {0}")]
    ConnInfo(#[from] ConnInfoError),
    /// `neon.tenant_id` or `neon.timeline_id` is wrong.
    #[error("neon.tenant_id or neon.timeline_id: {0}")]
    Id(#[from] IdParseError),
    /// No address, connection refused, connection reset.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The name has no address.
    #[error("host \"{0}\" has no address")]
    NoAddress(String),
    /// The page server closed the connection.
    #[error("the page server closed the connection")]
    Closed,
    /// Nothing came for too long.
    #[error("nothing received for {} ms while {doing}", waited.as_millis())]
    Silence {
        /// What was going on.
        doing: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The page server did not start a stream.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Bytes that are no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message that is no response to the request.
    #[error("response out of step: {0}")]
    Response(#[from] DecodeError),
    /// A message that does not belong into a page stream.
    #[error("the page server ended the stream: {0}")]
    Ended(String),
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> Lost {
    move |source| Lost::Io { doing, source }
}

thread_local! {
    /// Requests sent by this process, over all its connections.
    static SENT: Cell<u32> = const { Cell::new(0) };
}

/// Process id and a running number: unique among requests that can be confused.
fn next_request_id() -> u64 {
    let number = SENT.get().wrapping_add(1);
    SENT.set(number);
    u64::from(process::pid()) << 32 | u64::from(number)
}

/// An open page stream. Requests go into a buffer of its own first, so that neither side ever waits for the other to
/// read: whoever waits for the socket here sends and receives.
pub struct Connection {
    // Dropped before the socket that it watches.
    waiter: SocketWaiter,
    socket: Socket,
    received: FrameBuffer,
    unsent: Unsent,
    version: ProtocolVersion,
    connstring: String,
}

/// Bytes that the socket has not taken yet.
#[derive(Default)]
struct Unsent {
    bytes: Vec<u8>,
    start: usize,
    requests: usize,
}

impl Connection {
    /// Connects and starts a page stream.
    pub fn open(keeper: &mut LatchKeeper) -> Result<Connection, Lost> {
        let connstring = guc::connstring();
        let info = ConnInfo::parse(&connstring)?;
        let version = guc::protocol_version();
        let query = version.command(guc::tenant_id().parse()?, guc::timeline_id().parse()?);
        let socket = connecting_socket(&info)?;
        let waiter = SocketWaiter::new(socket.as_raw_fd());
        let received = FrameBuffer::default();
        let unsent = Unsent::default();
        let mut connection = Connection { waiter, socket, received, unsent, version, connstring };
        let started = Instant::now();
        connection.wait(keeper, Interest::Write, WaitEvent::Connect, "connecting", started)?;
        let refused = connection.socket.take_error().and_then(|e| e.map_or(Ok(()), Err));
        refused.map_err(io_error("could not connect"))?;
        connection.start_stream(keeper, &info, &query, started)?;
        Ok(connection)
    }

    fn start_stream(
        &mut self,
        keeper: &mut LatchKeeper,
        info: &ConnInfo,
        query: &str,
        started: Instant,
    ) -> Result<(), Lost> {
        let token = std::env::var("NEON_AUTH_TOKEN").ok();
        let name = format!("neon_ext {} {}", guc::endpoint_id(), process::pid());
        let startup =
            [("user", info.user.as_str()), ("database", "neon"), ("application_name", name.trim())];
        let password = info.password.as_deref().or(token.as_deref());
        let parameters = Parameters { startup: &startup, password, query };
        let (mut handshake, hello) = Handshake::start(parameters);
        self.send(keeper, &hello)?;
        loop {
            let step = match self.received.next_frame()? {
                Some(message) => handshake.receive(message)?,
                None => {
                    self.receive(keeper, WaitEvent::Connect, "starting the page stream", started)?;
                    continue;
                }
            };
            match step {
                Step::Wait => {}
                Step::Send(bytes) => self.send(keeper, &bytes)?,
                Step::Open => return Ok(()),
            }
        }
    }

    /// Whether the stream leads to where `connstring` says.
    pub fn leads_to(&self, connstring: &str) -> bool {
        self.connstring == connstring
    }

    /// Whether bytes were received that are no whole response that was taken.
    pub fn has_bytes(&self) -> bool {
        !self.received.is_empty()
    }

    /// Puts a request, with an id of its own, into the buffer of what is to be sent.
    pub fn queue(&mut self, request: &mut Request) {
        if self.version == ProtocolVersion::V3 {
            request.request_id = next_request_id();
        }
        let mut body = Vec::with_capacity(MAX_REQUEST_LEN);
        encode_request(self.version, request, &mut body);
        frame::put(&mut self.unsent.bytes, b'd', &body);
        self.unsent.requests += 1;
    }

    /// Requests that the socket has not been offered yet.
    pub fn queued(&self) -> usize {
        self.unsent.requests
    }

    /// Offers the socket what is queued; it may not take all. Does not wait.
    pub fn flush(&mut self) -> Result<(), Lost> {
        if self.unsent.requests > 0 {
            self.unsent.requests = 0;
            counters::add(Counter::Flushes, 1);
        }
        while let Some(bytes) = self.unsent.bytes.get(self.unsent.start..).filter(|b| !b.is_empty())
        {
            match self.socket.write(bytes) {
                Ok(count) => self.unsent.start += count,
                Err(error) if retry_later(&error) => return Ok(()),
                Err(source) => {
                    return Err(Lost::Io { doing: "could not send to the page server", source });
                }
            }
        }
        self.unsent.bytes.clear();
        self.unsent.start = 0;
        Ok(())
    }

    /// The next response if it is here: `request` is the oldest one without a response. Does not wait.
    pub fn response(&mut self, request: &Request) -> Result<Option<Payload<'_>>, Lost> {
        while !self.has_response()? {
            if !self.fill()? {
                return Ok(None);
            }
        }
        let message = self.received.next_frame()?;
        let body = message.map(|message| message.body).unwrap_or_default();
        Ok(Some(decode_response(self.version, body, request)?))
    }

    /// Waits until a whole response to `request` is in the buffer, with a look at the clock (L011, L013). What is
    /// queued is sent meanwhile.
    pub fn await_response(
        &mut self,
        keeper: &mut LatchKeeper,
        request: &Request,
    ) -> Result<(), Lost> {
        let started = Instant::now();
        let mut stall = Stall::new(guc::response_log_timeout(), guc::response_disconnect_timeout());
        let mut logged = false;
        self.flush()?;
        while !self.has_response()? {
            if self.fill()? {
                continue;
            }
            let waited = started.elapsed();
            match stall.judge(waited) {
                Verdict::WaitFor(time) => {
                    let interest =
                        if self.unsent.bytes.is_empty() { Interest::Read } else { Interest::Both };
                    self.waiter.wait(keeper, interest, time, WaitEvent::Response);
                    self.flush()?;
                }
                Verdict::Log => {
                    if !logged {
                        counters::add(Counter::StuckRequests, 1);
                    }
                    logged = true;
                    report::log(&self.stalled(request, waited));
                }
                Verdict::Disconnect => {
                    counters::add(Counter::ResponseTimeouts, 1);
                    report::log(&format!(
                        "no response from the page server for {:.3} s to {}, disconnecting",
                        waited.as_secs_f64(),
                        request.kind.name()
                    ));
                    return Err(Lost::Silence { doing: "waiting for a response", waited });
                }
            }
        }
        if logged {
            let waited = started.elapsed().as_secs_f64();
            report::log(&format!("response from the page server after {waited:.3} s"));
        }
        Ok(())
    }

    fn stalled(&self, request: &Request, waited: Duration) -> String {
        let port =
            self.socket.local_addr().ok().and_then(|a| a.as_socket()).map_or(0, |a| a.port());
        format!(
            "no response from the page server for {:.3} s to {} {:?} not modified since {} (local port {port})",
            waited.as_secs_f64(),
            request.kind.name(),
            request.kind,
            request.not_modified_since,
        )
    }

    /// Whether the next message is complete. Messages other than CopyData end the stream.
    fn has_response(&mut self) -> Result<bool, Lost> {
        match self.received.peek_frame()? {
            None => Ok(false),
            Some(message) => match message.tag {
                b'd' => Ok(true),
                b'E' => Err(Lost::Ended(handshake::error_text(message.body))),
                tag => Err(Lost::Ended(format!("message '{}'", tag.escape_ascii()))),
            },
        }
    }

    /// Reads what is there; `false` when nothing is.
    fn fill(&mut self) -> Result<bool, Lost> {
        match self.socket.read(self.received.room()) {
            Ok(0) => Err(Lost::Closed),
            Ok(count) => {
                self.received.filled(count);
                Ok(true)
            }
            Err(error) if retry_later(&error) => Ok(false),
            Err(source) => {
                Err(Lost::Io { doing: "could not receive from the page server", source })
            }
        }
    }

    fn receive(
        &mut self,
        keeper: &mut LatchKeeper,
        event: WaitEvent,
        doing: &'static str,
        started: Instant,
    ) -> Result<(), Lost> {
        while !self.fill()? {
            self.wait(keeper, Interest::Read, event, doing, started)?;
        }
        Ok(())
    }

    fn send(&mut self, keeper: &mut LatchKeeper, mut bytes: &[u8]) -> Result<(), Lost> {
        let started = Instant::now();
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if retry_later(&error) => {
                    let doing = "sending to the page server";
                    self.wait(keeper, Interest::Write, WaitEvent::Send, doing, started)?;
                }
                Err(source) => {
                    return Err(Lost::Io { doing: "could not send to the page server", source });
                }
            }
        }
        Ok(())
    }

    /// Waits for the socket until it is ready or [`CONNECT_TIMEOUT`] after `started`.
    fn wait(
        &mut self,
        keeper: &mut LatchKeeper,
        interest: Interest,
        event: WaitEvent,
        doing: &'static str,
        started: Instant,
    ) -> Result<(), Lost> {
        loop {
            let waited = started.elapsed();
            let Some(left) = CONNECT_TIMEOUT.checked_sub(waited) else {
                return Err(Lost::Silence { doing, waited });
            };
            if self.waiter.wait(keeper, interest, left, event) {
                return Ok(());
            }
        }
    }
}

fn retry_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A socket whose connection is being made.
fn connecting_socket(info: &ConnInfo) -> Result<Socket, Lost> {
    let doing = "could not connect";
    let (address, is_tcp) = if info.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", info.host, info.port);
        (SockAddr::unix(path).map_err(io_error(doing))?, false)
    } else {
        let mut addresses = (info.host.as_str(), info.port)
            .to_socket_addrs()
            .map_err(io_error("could not look up the page server's host"))?;
        let address = addresses.next().ok_or_else(|| Lost::NoAddress(info.host.clone()))?;
        (address.into(), true)
    };
    let domain: Domain = address.domain();
    let protocol = is_tcp.then_some(Protocol::TCP);
    let socket = Socket::new(domain, Type::STREAM, protocol).map_err(io_error(doing))?;
    socket.set_nonblocking(true).map_err(io_error(doing))?;
    if is_tcp {
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10));
        let tcp = SockRef::from(&socket);
        tcp.set_tcp_nodelay(true).map_err(io_error(doing))?;
        tcp.set_tcp_keepalive(&keepalive).map_err(io_error(doing))?;
    }
    match socket.connect(&address) {
        Ok(()) => Ok(socket),
        // EINPROGRESS has no error kind of its own.
        Err(error) if retry_later(&error) || error.raw_os_error() == Some(EINPROGRESS) => {
            Ok(socket)
        }
        Err(source) => Err(Lost::Io { doing, source }),
    }
}

const EINPROGRESS: i32 = 115;
