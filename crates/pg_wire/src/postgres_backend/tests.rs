//! The backend against the client of this crate, over real sockets, and against `tokio-postgres`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::client::{Client, ClientError, ConnectParams, Endpoint};
use crate::pq_proto::{RowDescriptor, TypeOid};

type Backend = PostgresBackend<TcpStream>;

#[derive(Clone, Default)]
struct Echo {
    /// Reads of the COPY stream after its first error.
    reads_after_error: Arc<AtomicUsize>,
}

impl Handler<TcpStream> for Echo {
    fn startup(&mut self, _pgb: &mut Backend, params: &StartupParams) -> Result<(), QueryError> {
        match params.get("user") {
            Some("mallory") => Err(QueryError::Unauthorized("not you".into())),
            _ => Ok(()),
        }
    }

    fn check_password(&mut self, password: &[u8]) -> Result<(), QueryError> {
        if password == b"secret" {
            Ok(())
        } else {
            Err(QueryError::Unauthorized("wrong password".into()))
        }
    }

    async fn process_query(&mut self, pgb: &mut Backend, query: &str) -> Result<(), QueryError> {
        match query {
            "row" => {
                let columns = [RowDescriptor { name: "answer", type_oid: TypeOid::Text }];
                pgb.write_message_noflush(&BeMessage::RowDescription(&columns))?;
                pgb.write_message_noflush(&BeMessage::DataRow(&[Some(b"42")]))?;
                pgb.write_message_noflush(&BeMessage::CommandComplete("SELECT 1"))?;
                Ok(())
            }
            "missing" => Err(QueryError::NotFound("the thing".into())),
            "hang" => std::future::pending().await,
            "copy out" => {
                pgb.write_message_noflush(&BeMessage::CopyOutResponse)?;
                for chunk in [&b"one"[..], b"two"] {
                    pgb.write_message(&BeMessage::CopyData(chunk)).await?;
                }
                pgb.write_message_noflush(&BeMessage::CopyDone)?;
                pgb.write_message_noflush(&BeMessage::CommandComplete("COPY"))?;
                Ok(())
            }
            "copy out, broken" => {
                pgb.write_message_noflush(&BeMessage::CopyOutResponse)?;
                pgb.write_message(&BeMessage::CopyData(b"one")).await?;
                Err(QueryError::other("disk on fire"))
            }
            "echo" => self.echo(pgb).await,
            other => Err(QueryError::Syntax(other.to_owned().into())),
        }
    }
}

impl Echo {
    async fn echo(&self, pgb: &mut Backend) -> Result<(), QueryError> {
        pgb.write_message(&BeMessage::CopyBothResponse).await?;
        let mut reader = pgb.split()?;
        let end = loop {
            match reader.read_copy_data().await {
                Ok(data) if &data[..] == b"fail" => {
                    break CopyStreamEnd::Failed(QueryError::other("as you wish"));
                }
                Ok(data) => {
                    if let Err(error) = pgb.write_message(&BeMessage::CopyData(&data)).await {
                        break error.into();
                    }
                }
                Err(end) => break end,
            }
        };
        if matches!(end, CopyStreamEnd::Disconnected(_)) {
            // L258: after an error the socket is not read again; this must not wait.
            assert!(matches!(reader.read_copy_data().await, Err(CopyStreamEnd::Eof)));
            self.reads_after_error.fetch_add(1, Ordering::Relaxed);
        }
        pgb.unsplit(reader)?;
        pgb.finish_copy_both(end).await
    }
}

struct Server {
    port: u16,
    handler: Echo,
    shutdown: CancellationToken,
    session: tokio::task::JoinHandle<Result<(), QueryError>>,
}

/// A server for one connection.
async fn serve(auth: AuthType, timeouts: Timeouts) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    let handler = Echo::default();
    let session = tokio::spawn({
        let (shutdown, mut handler) = (shutdown.clone(), handler.clone());
        async move {
            let (stream, _) = listener.accept().await.unwrap();
            Backend::new(stream, auth, timeouts).run(&mut handler, &shutdown).await
        }
    });
    Server { port, handler, shutdown, session }
}

fn params(port: u16) -> ConnectParams {
    ConnectParams::new(Endpoint::Tcp { host: "127.0.0.1".into(), port }, "alice")
}

async fn connect() -> (Client, Server) {
    let server = serve(AuthType::Trust, Timeouts::default()).await;
    (Client::connect(&params(server.port)).await.unwrap(), server)
}

fn code(error: &ClientError) -> &str {
    &error.server_error().unwrap().code
}

#[tokio::test]
async fn queries_and_errors_on_one_connection() {
    let (mut client, server) = connect().await;
    assert_eq!(client.parameter("server_version"), Some("17.0"));
    let results = client.simple_query("row").await.unwrap();
    assert_eq!(results[0].value(0, "answer"), Some("42"));
    assert_eq!(results[0].tag, "SELECT 1");
    assert_eq!(code(&client.simple_query("missing").await.unwrap_err()), "42704");
    assert_eq!(code(&client.simple_query("gibberish").await.unwrap_err()), "42601");
    assert_eq!(client.simple_query(" ; ").await.unwrap(), []);
    assert_eq!(client.simple_query("row").await.unwrap().len(), 1);
    client.close().await.unwrap();
    server.session.await.unwrap().unwrap();
}

#[tokio::test]
async fn copy_out_is_complete_or_an_error() {
    let (mut client, _server) = connect().await;
    let mut stream = client.copy_out("copy out").await.unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    assert_eq!(all, b"onetwo");
    let mut stream = client.copy_out("copy out, broken").await.unwrap();
    assert_eq!(&stream.next().await.unwrap().unwrap()[..], b"one");
    let error = stream.next().await.unwrap_err();
    assert!(error.to_string().contains("disk on fire"), "{error}");
    assert_eq!(code(&client.copy_out("missing").await.unwrap_err()), "42704");
    client.simple_query("row").await.unwrap();
}

#[tokio::test]
async fn copy_both_ends_clean_and_the_connection_goes_on() {
    // L264, L267.
    let (client, server) = connect().await;
    let mut copy = client.copy_both("echo").await.unwrap();
    let big = vec![3u8; 1 << 20];
    copy.writer.send_noflush(&big).unwrap();
    copy.writer.send_noflush(b"small").unwrap();
    let (flushed, echoed) = tokio::join!(copy.writer.flush(), copy.reader.recv());
    flushed.unwrap();
    assert_eq!(echoed.unwrap().unwrap(), big);
    assert_eq!(&copy.reader.recv().await.unwrap().unwrap()[..], b"small");
    let mut client = copy.finish().await.unwrap();
    client.simple_query("row").await.unwrap();
    drop(client);
    server.session.await.unwrap().unwrap();
}

#[tokio::test]
async fn failure_inside_copy_both_is_reported() {
    let (client, _server) = connect().await;
    let mut copy = client.copy_both("echo").await.unwrap();
    copy.writer.send_noflush(b"fail").unwrap();
    // Data behind the failure is dropped by the server's command loop.
    copy.writer.send_noflush(b"too late").unwrap();
    copy.writer.flush().await.unwrap();
    let error = copy.reader.recv().await.unwrap_err();
    assert_eq!(error.server_error().unwrap().message, "as you wish");
}

#[tokio::test]
async fn timed_out_reader_is_not_read_again() {
    // L256, L258.
    let timeouts = Timeouts { read: Some(Duration::from_millis(50)), write: None };
    let server = serve(AuthType::Trust, timeouts).await;
    let client = Client::connect(&params(server.port)).await.unwrap();
    let _copy = client.copy_both("echo").await.unwrap();
    let error = server.session.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "timed out");
    assert_eq!(server.handler.reads_after_error.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn shutdown_ends_a_hanging_query() {
    let (mut client, server) = connect().await;
    let (answer, ()) = tokio::join!(client.simple_query("hang"), async {
        server.shutdown.cancel();
    });
    assert_eq!(code(&answer.unwrap_err()), "57P01");
    assert!(matches!(server.session.await.unwrap(), Err(QueryError::Shutdown)));
}

#[tokio::test]
async fn passwords() {
    for (password, expected) in [(Some("secret"), Ok(())), (Some("guess"), Err("wrong password"))] {
        let server = serve(AuthType::CleartextPassword, Timeouts::default()).await;
        let params = params(server.port).password(password.unwrap());
        match (Client::connect(&params).await, expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (result, _) => panic!("{result:?}"),
        }
    }
    let server = serve(AuthType::CleartextPassword, Timeouts::default()).await;
    let error = Client::connect(&params(server.port)).await.unwrap_err();
    assert!(matches!(error, ClientError::Authentication(_)), "{error}");
}

#[tokio::test]
async fn refused_at_startup() {
    let server = serve(AuthType::Trust, Timeouts::default()).await;
    let params = params(server.port).param("user", "mallory");
    let error = Client::connect(&params).await.unwrap_err();
    assert_eq!(error.server_error().unwrap().severity, "FATAL");
    assert_eq!(code(&error), "28000");
}

#[tokio::test]
async fn oversized_message_before_authentication() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = serve(AuthType::CleartextPassword, Timeouts::default()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let mut startup = BytesMut::new();
    let params = [("user", "alice")];
    postgres_protocol::message::frontend::startup_message(params, &mut startup).unwrap();
    stream.write_all(&startup).await.unwrap();
    stream.write_all(b"p\x7F\xFF\xFF\xFF").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.contains("08P01") && text.contains("exceeds the limit"), "{text}");
    assert!(server.session.await.unwrap().is_err());
}

#[tokio::test]
async fn tokio_postgres_is_served() {
    // Its startup begins with an SSLRequest when asked to prefer TLS; an extended query is refused, and the
    // session goes on.
    let server = serve(AuthType::Trust, Timeouts::default()).await;
    let config = format!("host=127.0.0.1 port={} user=alice sslmode=prefer", server.port);
    let (client, connection) =
        tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let error = client.query("row", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "0A000");
    let messages = client.simple_query("row").await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get("answer"),
        _ => None,
    });
    assert_eq!(row, Some("42"));
    drop(client);
    connection.await.unwrap().unwrap();
}

/// A handler over any stream that nobody ever gets to.
struct Unreached;

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Handler<S> for Unreached {
    async fn process_query(
        &mut self,
        _pgb: &mut PostgresBackend<S>,
        query: &str,
    ) -> Result<(), QueryError> {
        panic!("{query}");
    }
}

/// `[PW8]`
#[tokio::test(start_paused = true)]
async fn who_does_not_say_who_it_is_is_disconnected() {
    for sent in [&b""[..], b"\0\0\0\x10\0\x03\0\0user\0x\0\0"] {
        let (server, mut client) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut client, sent).await.unwrap();
        let auth = AuthType::CleartextPassword;
        let backend = PostgresBackend::new(server, auth, Timeouts::default());
        let started = tokio::time::Instant::now();
        let error = backend.run(&mut Unreached, &CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "timed out");
        assert!(started.elapsed() < AUTHENTICATION_TIMEOUT * 2);
    }
}
