//! Answering the server's authentication requests: trust, password, MD5, SCRAM-SHA-256.

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;

use super::{Client, ClientError, ConnectParams, unexpected};
use crate::pq_proto::{Authentication, BackendMessage};

const DOING: &str = "authenticating";

fn password(params: &ConnectParams) -> Result<&[u8], ClientError> {
    params.password.as_deref().map(str::as_bytes).ok_or_else(|| {
        ClientError::Authentication("the server wants a password and none is known".to_owned())
    })
}

impl Client {
    /// Up to AuthenticationOk.
    pub(super) async fn authenticate(&mut self, params: &ConnectParams) -> Result<(), ClientError> {
        loop {
            match self.next_authentication().await? {
                Authentication::Ok => return Ok(()),
                Authentication::CleartextPassword => {
                    frontend::password_message(password(params)?, self.output())?;
                }
                Authentication::Md5Password(salt) => {
                    let user = params.params.get("user").map(String::as_str).unwrap_or_default();
                    let hash = md5_hash(user.as_bytes(), password(params)?, salt);
                    frontend::password_message(hash.as_bytes(), self.output())?;
                }
                Authentication::Sasl(mechanisms) => {
                    if !mechanisms.iter().any(|name| name.as_str() == SCRAM_SHA_256) {
                        let offered: Vec<_> = mechanisms.iter().map(|name| name.as_str()).collect();
                        return Err(ClientError::Authentication(format!(
                            "the server offers only {offered:?}"
                        )));
                    }
                    self.authenticate_scram(password(params)?).await?;
                    continue;
                }
                other => {
                    return Err(ClientError::Authentication(format!("method {other:?}")));
                }
            }
            self.writer.flush().await?;
        }
    }

    async fn next_authentication(&mut self) -> Result<Authentication, ClientError> {
        match self.next_message(DOING).await? {
            BackendMessage::Authentication(request) => Ok(request),
            other => Err(unexpected(&other, DOING)),
        }
    }

    /// RFC 5802 without channel binding, which needs TLS.
    async fn authenticate_scram(&mut self, password: &[u8]) -> Result<(), ClientError> {
        let refused = |error: std::io::Error| ClientError::Authentication(error.to_string());
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), self.output())?;
        self.writer.flush().await?;
        match self.next_authentication().await? {
            Authentication::SaslContinue(challenge) => scram.update(&challenge).map_err(refused)?,
            other => return Err(ClientError::Authentication(format!("{other:?} in SCRAM"))),
        }
        frontend::sasl_response(scram.message(), self.output())?;
        self.writer.flush().await?;
        match self.next_authentication().await? {
            Authentication::SaslFinal(proof) => scram.finish(&proof).map_err(refused),
            other => Err(ClientError::Authentication(format!("{other:?} in SCRAM"))),
        }
    }
}
