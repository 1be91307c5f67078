//! Client end of a connection: to a walsender over a unix socket, to a safekeeper or a page server over TCP.
//! Simple queries only; TLS is not spoken.

mod auth;
mod copy;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream};

pub use copy::{CopyBoth, CopyBothReader, CopyBothWriter, CopyOut};

use crate::framed::{ConnectionError, Framed, FramedReader, FramedWriter, MAX_MESSAGE};
use crate::pq_proto::{BackendMessage, Column, DataRow, ProtocolError, ServerError};
use crate::socket::{self, SocketOptions};

/// Rows that a simple query may return: callers ask for a handful, so more is a peer gone wrong.
const RESULT_ROWS_MAX: usize = 100_000;
/// Time for TCP connect, start-up and authentication together, unless the caller says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a client operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody there.
    #[error("could not connect to {endpoint}: {source}")]
    Connect {
        /// Address.
        endpoint: Endpoint,
        /// Cause.
        source: io::Error,
    },
    /// Too slow.
    #[error("timed out after {after:?} while {doing}")]
    Timeout {
        /// What was waited for.
        doing: &'static str,
        /// How long.
        after: Duration,
    },
    /// The connection broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The server closed the connection where an answer was due.
    #[error("server closed the connection while {0}")]
    Closed(&'static str),
    /// The server says no.
    #[error("{0}")]
    Server(#[from] Box<ServerError>),
    /// The server wants an authentication that is not possible.
    #[error("cannot authenticate: {0}")]
    Authentication(String),
    /// Well-formed nonsense.
    #[error("unexpected message {got} from the server while {doing}")]
    Unexpected {
        /// Name of the message.
        got: &'static str,
        /// What was waited for.
        doing: &'static str,
    },
    /// A result beyond all expectation.
    #[error("the result has more than {0} rows")]
    TooManyRows(usize),
}

impl From<ProtocolError> for ClientError {
    fn from(error: ProtocolError) -> ClientError {
        ClientError::Connection(error.into())
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> ClientError {
        ClientError::Connection(error.into())
    }
}

impl ClientError {
    /// What the server said, when it was the server that refused.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            ClientError::Server(error) => Some(error),
            _ => None,
        }
    }
}

/// Address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Unix socket `.s.PGSQL.PORT` in a directory.
    Unix {
        /// The directory (`unix_socket_directories`).
        directory: PathBuf,
        /// The port in its name.
        port: u16,
    },
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Unix { directory, port } => {
                write!(f, "{}/.s.PGSQL.{port}", directory.display())
            }
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// `host:port`; an IPv6 address may be in brackets.
    fn from_str(text: &str) -> Result<Endpoint, String> {
        let invalid = || format!("invalid address \"{text}\": expected host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(invalid());
        }
        Ok(Endpoint::Tcp { host: host.to_owned(), port })
    }
}

/// How to connect, and as whom.
#[derive(Clone)]
pub struct ConnectParams {
    endpoint: Endpoint,
    params: BTreeMap<String, String>,
    password: Option<String>,
    connect_timeout: Duration,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    socket: SocketOptions,
}

/// Without the password: connections are logged.
impl std::fmt::Debug for ConnectParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("ConnectParams");
        fields.field("endpoint", &self.endpoint).field("params", &self.params);
        fields.field("has_password", &self.password.is_some()).finish_non_exhaustive()
    }
}

impl ConnectParams {
    /// Connects as `user`, to the database of the same name.
    pub fn new(endpoint: Endpoint, user: &str) -> ConnectParams {
        ConnectParams {
            endpoint,
            params: BTreeMap::from([("user".to_owned(), user.to_owned())]),
            password: None,
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: None,
            write_timeout: None,
            socket: SocketOptions::default(),
        }
    }

    /// Sets a startup parameter: `database`, `application_name`, `options`, …
    #[must_use]
    pub fn param(mut self, name: &str, value: &str) -> ConnectParams {
        self.params.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Asks for a physical walsender (`replication=true`).
    #[must_use]
    pub fn replication(self) -> ConnectParams {
        self.param("replication", "true")
    }

    /// Adds `-c name=value` to the parameter `options`, quoted as `pg_split_opts` reads it.
    #[must_use]
    pub fn option(mut self, name: &str, value: &str) -> ConnectParams {
        let options = self.params.entry("options".to_owned()).or_default();
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str("-c ");
        for c in format!("{name}={value}").chars() {
            if c == '\\' || c.is_ascii_whitespace() {
                options.push('\\');
            }
            options.push(c);
        }
        self
    }

    /// Password, for whatever method the server asks for.
    #[must_use]
    pub fn password(mut self, password: &str) -> ConnectParams {
        self.password = Some(password.to_owned());
        self
    }

    /// Time for connecting, start-up and authentication together.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> ConnectParams {
        self.connect_timeout = timeout;
        self
    }

    /// Reads fail when the server is silent for so long; `None` waits for ever.
    #[must_use]
    pub fn read_timeout(mut self, timeout: Option<Duration>) -> ConnectParams {
        self.read_timeout = timeout;
        self
    }

    /// Flushes fail when the server takes no byte for so long; `None` waits for ever.
    #[must_use]
    pub fn write_timeout(mut self, timeout: Option<Duration>) -> ConnectParams {
        self.write_timeout = timeout;
        self
    }

    /// The address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

/// Any byte stream.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}
type BoxedStream = Box<dyn Duplex>;
type Reader = FramedReader<ReadHalf<BoxedStream>>;
type Writer = FramedWriter<WriteHalf<BoxedStream>>;

/// Result of one statement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueryResult {
    /// Columns; empty when the statement returns no rows.
    pub columns: Vec<Column>,
    /// Rows, values in text format.
    pub rows: Vec<DataRow>,
    /// Command tag.
    pub tag: String,
}

impl QueryResult {
    /// Value of the column called `name` in row `row`; `None` when there is no such row or column, or for NULL.
    pub fn value(&self, row: usize, name: &str) -> Option<&str> {
        let column = self.columns.iter().position(|column| column.name.as_str() == name)?;
        self.rows.get(row)?.text(column)
    }
}

/// A connection that waits for a command.
pub struct Client {
    reader: Reader,
    writer: Writer,
    parameters: BTreeMap<String, String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("parameters", &self.parameters).finish_non_exhaustive()
    }
}

async fn open_stream(params: &ConnectParams) -> io::Result<BoxedStream> {
    match &params.endpoint {
        Endpoint::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            socket::configure(&stream, &params.socket)?;
            Ok(Box::new(stream))
        }
        Endpoint::Unix { directory, port } => {
            let path = directory.join(format!(".s.PGSQL.{port}"));
            Ok(Box::new(UnixStream::connect(path).await?))
        }
    }
}

impl Client {
    /// Connects, authenticates and waits until the server is ready.
    pub async fn connect(params: &ConnectParams) -> Result<Client, ClientError> {
        let connecting = async {
            let stream = open_stream(params).await.map_err(|source| ClientError::Connect {
                endpoint: params.endpoint.clone(),
                source,
            })?;
            Client::start(stream, params).await
        };
        tokio::time::timeout(params.connect_timeout, connecting).await.map_err(|_elapsed| {
            ClientError::Timeout { doing: "connecting", after: params.connect_timeout }
        })?
    }

    async fn start(stream: BoxedStream, params: &ConnectParams) -> Result<Client, ClientError> {
        let Framed { mut reader, writer } = Framed::new(stream);
        reader.set_max_message(MAX_MESSAGE);
        let mut client = Client { reader, writer, parameters: BTreeMap::new() };
        let pairs = params.params.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        frontend::startup_message(pairs, client.writer.buffer())?;
        client.writer.flush().await?;
        client.authenticate(params).await?;
        loop {
            match client.next_message("starting up").await? {
                BackendMessage::ReadyForQuery(_) => break,
                BackendMessage::BackendKeyData { .. } => {}
                other => return Err(unexpected(&other, "starting up")),
            }
        }
        client.reader.set_timeout(params.read_timeout);
        client.writer.set_timeout(params.write_timeout);
        Ok(client)
    }

    /// A setting that the server reported (`ParameterStatus`), such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Next message that means something here: settings are remembered, notices logged.
    /// An ErrorResponse is an error; the session may go on after it, once ReadyForQuery came.
    async fn next_message(&mut self, doing: &'static str) -> Result<BackendMessage, ClientError> {
        loop {
            match self.reader.read_backend_message().await? {
                None => return Err(ClientError::Closed(doing)),
                Some(BackendMessage::ParameterStatus { name, value }) => {
                    self.parameters.insert(name.as_str().to_owned(), value.as_str().to_owned());
                }
                Some(BackendMessage::NoticeResponse(notice)) => tracing::debug!("{notice}"),
                Some(BackendMessage::Ignored(_)) => {}
                Some(BackendMessage::ErrorResponse(error)) => {
                    return Err(ClientError::Server(Box::new(error)));
                }
                Some(message) => return Ok(message),
            }
        }
    }

    async fn send_query(&mut self, query: &str) -> Result<(), ClientError> {
        self.reader.restart_timeout();
        frontend::query(query, self.writer.buffer())?;
        Ok(self.writer.flush().await?)
    }

    /// Reads up to ReadyForQuery after an error, so that the next query finds a clean connection.
    async fn recover(&mut self, doing: &'static str) -> Result<(), ClientError> {
        loop {
            match self.next_message(doing).await {
                Ok(BackendMessage::ReadyForQuery(_)) => return Ok(()),
                Ok(_) | Err(ClientError::Server(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Turns an error of the server into the result, with the connection clean again when it is not fatal.
    async fn fail_query<T>(&mut self, error: ClientError) -> Result<T, ClientError> {
        if error.server_error().is_some_and(|error| error.severity == "ERROR") {
            self.recover("recovering from an error").await?;
        }
        Err(error)
    }

    /// Runs a simple query; one result per statement in it.
    ///
    /// After [`ClientError::Server`] with severity `ERROR` the connection can be used again.
    pub async fn simple_query(&mut self, query: &str) -> Result<Vec<QueryResult>, ClientError> {
        self.send_query(query).await?;
        match self.read_results().await {
            Ok(results) => Ok(results),
            Err(error) => self.fail_query(error).await,
        }
    }

    async fn read_results(&mut self) -> Result<Vec<QueryResult>, ClientError> {
        let doing = "running a query";
        let mut results = Vec::new();
        let mut current = QueryResult::default();
        let mut rows = 0;
        loop {
            match self.next_message(doing).await? {
                BackendMessage::ReadyForQuery(_) => return Ok(results),
                BackendMessage::RowDescription(columns) => current.columns = columns,
                BackendMessage::DataRow(row) => {
                    rows += 1;
                    if rows > RESULT_ROWS_MAX {
                        return Err(ClientError::TooManyRows(RESULT_ROWS_MAX));
                    }
                    current.rows.push(row);
                }
                BackendMessage::CommandComplete(tag) => {
                    current.tag = tag.as_str().to_owned();
                    results.push(std::mem::take(&mut current));
                }
                BackendMessage::EmptyQueryResponse => {}
                other => return Err(unexpected(&other, doing)),
            }
        }
    }

    /// Runs a query that answers with a COPY stream from the server, such as `basebackup`.
    pub async fn copy_out(&mut self, query: &str) -> Result<CopyOut<'_>, ClientError> {
        let doing = "waiting for a COPY stream";
        self.send_query(query).await?;
        match self.next_message(doing).await {
            Ok(BackendMessage::CopyOutResponse) => Ok(CopyOut::new(self)),
            Ok(other) => Err(unexpected(&other, doing)),
            Err(error) => self.fail_query(error).await,
        }
    }

    /// Runs a query that opens a COPY stream in both directions, such as `START_REPLICATION`.
    pub async fn copy_both(mut self, query: &str) -> Result<CopyBoth, ClientError> {
        let doing = "waiting for a COPY stream in both directions";
        self.send_query(query).await?;
        match self.next_message(doing).await? {
            BackendMessage::CopyBothResponse => Ok(CopyBoth::new(self)),
            other => Err(unexpected(&other, doing)),
        }
    }

    /// Says good-bye. Dropping the client does as well, less politely.
    pub async fn close(mut self) -> Result<(), ClientError> {
        frontend::terminate(self.writer.buffer());
        Ok(self.writer.shutdown().await?)
    }

    fn output(&mut self) -> &mut BytesMut {
        self.writer.buffer()
    }
}

fn unexpected(got: &BackendMessage, doing: &'static str) -> ClientError {
    ClientError::Unexpected { got: got.name(), doing }
}

#[cfg(test)]
mod tests;
