//! The page service: one thread for each connection.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use compute_core::frame::{FrameBuffer, put};
use compute_core::route;
use page_protocol::{
    Payload, ProtocolVersion, Request, RequestKind, decode_request, encode_response,
};
use pg_types::page::{Page, ZERO_PAGE};
use pg_types::{BLCKSZ, RelTag};

const CATALOG_VERSION: u32 = 202_406_281;
const SEGMENT_BLOCKS: u32 = 131_072;

/// How requests for pages are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Rightly.
    Serve,
    /// Not at all; connections stay open.
    Stall,
    /// With an error.
    Refuse,
    /// With the answer to another request, once; then rightly.
    Confuse,
    /// Not at all, and new connections hear nothing either.
    Mute,
}

impl Behaviour {
    /// Nothing is said for as long as it lasts.
    fn is_silent(self) -> bool {
        matches!(self, Behaviour::Stall | Behaviour::Mute)
    }
}

struct Shared {
    data_dir: PathBuf,
    behaviour: Mutex<Behaviour>,
    changed: Condvar,
    requests: Mutex<Vec<Request>>,
    /// Time that each response is on its way; later ones do not wait for it.
    latency: Mutex<Duration>,
    connections: Mutex<Vec<TcpStream>>,
    closed: AtomicBool,
}

/// A running page service.
pub struct PageService {
    shared: Arc<Shared>,
    port: u16,
}

impl PageService {
    /// Serves the relations of a data directory.
    pub fn start(data_dir: &Path) -> PageService {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            data_dir: data_dir.to_owned(),
            behaviour: Mutex::new(Behaviour::Serve),
            changed: Condvar::new(),
            requests: Mutex::default(),
            latency: Mutex::default(),
            connections: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if for_thread.closed.load(Ordering::SeqCst) {
                    return;
                }
                let copy = stream.try_clone().expect("a second descriptor");
                for_thread.connections.lock().expect("not poisoned").push(copy);
                let shared = Arc::clone(&for_thread);
                std::thread::spawn(move || drop(Session::run(&shared, stream)));
            }
        });
        PageService { shared, port }
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the answers from now on, also to requests that wait.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().expect("not poisoned") = behaviour;
        self.shared.changed.notify_all();
    }

    /// Has each response take this long to arrive, without sending fewer of them.
    pub fn add_latency(&self, latency: Duration) {
        *self.shared.latency.lock().expect("not poisoned") = latency;
    }

    /// Requests received so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().expect("not poisoned").clone()
    }

    /// Closes all connections and the port.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.behave(Behaviour::Refuse);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        for stream in self.shared.connections.lock().expect("not poisoned").drain(..) {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }
}

impl Drop for PageService {
    fn drop(&mut self) {
        self.close();
    }
}

struct Session<'a> {
    shared: &'a Shared,
    stream: TcpStream,
    received: FrameBuffer,
    /// Responses with the time at which they arrive.
    out: mpsc::Sender<(Instant, Vec<u8>)>,
}

/// Sends each response when its time has come.
fn deliver(mut stream: TcpStream, responses: &mpsc::Receiver<(Instant, Vec<u8>)>) {
    for (due, bytes) in responses {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                // The session looks whether the client is gone, which makes both ends non-blocking for a moment.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => return,
            }
        }
    }
}

impl Session<'_> {
    fn run(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut startup)?;
        let mut hello = Vec::new();
        put(&mut hello, b'R', &[0; 4]);
        put(&mut hello, b'S', b"server_version\x00test\0");
        put(&mut hello, b'Z', b"I");
        let (out, responses) = mpsc::channel();
        let copy = stream.try_clone()?;
        stream.set_nodelay(true)?;
        let mut session = Session { shared, stream, received: FrameBuffer::default(), out };
        session.behaviour_after_silence(|now| now == Behaviour::Mute)?;
        session.stream.write_all(&hello)?;
        std::thread::spawn(move || deliver(copy, &responses));
        let (tag, query) = session.message()?;
        assert_eq!(tag, b'Q');
        assert!(query.starts_with(b"pagestream_v3 "), "{query:?}");
        let mut copy_both = Vec::new();
        put(&mut copy_both, b'W', &[0; 3]);
        session.stream.write_all(&copy_both)?;
        loop {
            let (tag, body) = session.message()?;
            assert_eq!(tag, b'd');
            session.answer(&body)?;
        }
    }

    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = self.received.next_frame().map_err(io::Error::other)? {
                return Ok((frame.tag, frame.body.to_vec()));
            }
            match self.stream.read(self.received.room())? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.received.filled(count),
            }
        }
    }

    fn answer(&mut self, body: &[u8]) -> io::Result<()> {
        let version = ProtocolVersion::V3;
        let mut request = decode_request(version, body).map_err(io::Error::other)?;
        self.shared.requests.lock().expect("not poisoned").push(request);
        let behaviour = self.behaviour_for(&request)?;
        let mut page: Page = ZERO_PAGE;
        let payload = match (behaviour, request.kind) {
            (Behaviour::Refuse, _) => Payload::Error("refused by the test".into()),
            (_, RequestKind::Exists(rel)) => Payload::Exists(self.size(rel).is_some()),
            (_, RequestKind::Nblocks(rel)) => Payload::Nblocks(self.size(rel).unwrap_or(0)),
            (_, RequestKind::GetPage(rel, block)) => {
                self.read(rel, block, &mut page);
                Payload::Page(&page)
            }
            (_, RequestKind::DbSize(_)) => Payload::DbSize(123_456_789),
            (_, RequestKind::SlruSegment(..)) => Payload::Error("not asked by computes".into()),
        };
        if behaviour == Behaviour::Confuse {
            request.request_id ^= 1;
        }
        let mut body = Vec::new();
        encode_response(version, &request, &payload, &mut body);
        let mut out = Vec::new();
        put(&mut out, b'd', &body);
        let latency = *self.shared.latency.lock().expect("not poisoned");
        self.out.send((Instant::now() + latency, out)).map_err(io::Error::other)
    }

    /// Waits while it is to stall. Only pages are treated badly, so that a server can start.
    fn behaviour_for(&self, request: &Request) -> io::Result<Behaviour> {
        if !matches!(request.kind, RequestKind::GetPage(..)) {
            return Ok(Behaviour::Serve);
        }
        let now = self.behaviour_after_silence(Behaviour::is_silent)?;
        if now == Behaviour::Confuse {
            *self.shared.behaviour.lock().expect("not poisoned") = Behaviour::Serve;
        }
        Ok(now)
    }

    /// Waits while the behaviour is a silent one, or until the client has gone.
    fn behaviour_after_silence(&self, silent: impl Fn(Behaviour) -> bool) -> io::Result<Behaviour> {
        let mut behaviour = self.shared.behaviour.lock().expect("not poisoned");
        while silent(*behaviour) {
            let wait = self.shared.changed.wait_timeout(behaviour, Duration::from_millis(50));
            behaviour = wait.expect("not poisoned").0;
            let mut byte = [0];
            self.stream.set_nonblocking(true)?;
            let gone = matches!(self.stream.peek(&mut byte), Ok(0));
            self.stream.set_nonblocking(false)?;
            if gone {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(*behaviour)
    }

    fn segment(&self, rel: RelTag, segment: u32) -> Option<File> {
        let mut path = route::relation_path(rel, CATALOG_VERSION);
        if segment > 0 {
            path = format!("{path}.{segment}");
        }
        File::open(self.shared.data_dir.join(path)).ok()
    }

    fn size(&self, rel: RelTag) -> Option<u32> {
        let length = self.segment(rel, 0)?.metadata().ok()?.len();
        u32::try_from(length / BLCKSZ as u64).ok()
    }

    /// Blocks behind the end are zeros.
    fn read(&self, rel: RelTag, block: u32, page: &mut Page) {
        if let Some(file) = self.segment(rel, block / SEGMENT_BLOCKS) {
            let offset = u64::from(block % SEGMENT_BLOCKS) * BLCKSZ as u64;
            if file.read_exact_at(page, offset).is_err() {
                *page = ZERO_PAGE;
            }
        }
    }
}
