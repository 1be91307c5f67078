//! From the first byte to AuthenticationOk. Rules: `ProcessStartupPacket` (`backend_startup.c`),
//! `ClientAuthentication` (`auth.c`).

use tokio::io::{AsyncRead, AsyncWrite};

use super::{AuthType, Handler, PostgresBackend, QueryError, misuse};
use crate::framed::MAX_MESSAGE;
use crate::pq_proto::{BeMessage, FeMessage, FeStartupPacket, ProtocolError, StartupParams};

/// Newest minor version of protocol 3 that is spoken here.
const NEWEST_MINOR: u16 = 0;
/// A client may ask for each kind of encryption once; more is no honest client.
const ENCRYPTION_REQUESTS_MAX: usize = 2;

impl<S: AsyncRead + AsyncWrite + Unpin + Send> PostgresBackend<S> {
    /// Reads the startup packet, lets the handler look at it, authenticates. `None` when the client leaves
    /// before that, or only wanted to cancel something.
    pub(super) async fn start_up<H: Handler<S>>(
        &mut self,
        handler: &mut H,
    ) -> Result<Option<()>, QueryError> {
        let Some(params) = self.read_startup().await? else {
            self.closed = true;
            return Ok(None);
        };
        handler.startup(self, &params)?;
        if self.auth == AuthType::CleartextPassword {
            self.write_message(&BeMessage::AuthenticationCleartextPassword).await?;
            match self.read_message().await? {
                None => return Ok(None),
                Some(FeMessage::Password(password)) => {
                    handler.check_password(password.strip_suffix(b"\0").unwrap_or(&password))?;
                }
                Some(other) => {
                    let state = "waiting for a password";
                    return Err(ProtocolError::Unexpected { got: other.name(), state }.into());
                }
            }
        }
        if let Some(reader) = &mut self.reader {
            reader.set_max_message(MAX_MESSAGE);
        }
        self.write_message_noflush(&BeMessage::AuthenticationOk)?;
        // Drivers ask for these; the version is the major one whose WAL and pages are served here.
        for (name, value) in [
            ("server_version", "17.0"),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
        ] {
            self.write_message_noflush(&BeMessage::ParameterStatus { name, value })?;
        }
        Ok(Some(()))
    }

    async fn read_startup(&mut self) -> Result<Option<StartupParams>, QueryError> {
        for _ in 0..=ENCRYPTION_REQUESTS_MAX {
            let Some(reader) = &mut self.reader else {
                return Err(misuse("the reading half is away").into());
            };
            match reader.read_startup_packet().await? {
                None | Some(FeStartupPacket::CancelRequest { .. }) => return Ok(None),
                Some(FeStartupPacket::SslRequest | FeStartupPacket::GssEncRequest) => {
                    // Plaintext sent before our answer would be smuggled past a TLS handshake
                    // (CVE-2021-23214); refuse it here too, so that clients see the same rule everywhere.
                    if reader.has_buffered_bytes() {
                        let state = "answering an encryption request";
                        return Err(ProtocolError::Unexpected { got: "more data", state }.into());
                    }
                    self.write_message(&BeMessage::EncryptionRefused).await?;
                }
                Some(FeStartupPacket::StartupMessage { minor, params }) => {
                    if minor > NEWEST_MINOR {
                        let newest_minor = u32::from(NEWEST_MINOR);
                        let message = BeMessage::NegotiateProtocolVersion { newest_minor };
                        self.write_message_noflush(&message)?;
                    }
                    return Ok(Some(params));
                }
            }
        }
        let state = "waiting for a startup message";
        Err(ProtocolError::Unexpected { got: "encryption request", state }.into())
    }
}
