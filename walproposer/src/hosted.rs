//! A walproposer that a compute runs itself, inside a walsender (README, "Hosted"): this end asks for it and waits.

use std::path::Path;

use pg_wire::client::{Client, ClientError};
use tokio_util::sync::CancellationToken;

use crate::compute::{params, wait_for_server};
use crate::config::{Config, ConfigError};

/// Name of the target of `BASE_BACKUP` behind which the extension keeps its walproposer.
pub const TARGET: &str = "neon_walproposer";

/// How a hosted walproposer ended. What cannot go on is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostedEnd {
    /// The compute has shut down in good order, and a quorum has all its WAL; or this process was told to end.
    Stopped,
    /// Another compute has taken over.
    Fenced,
    /// The log has WAL that this compute did not know from the beginning.
    Diverged,
}

impl HostedEnd {
    const ALL: [HostedEnd; 3] = [HostedEnd::Stopped, HostedEnd::Fenced, HostedEnd::Diverged];

    /// What stands in the DETAIL of the error that says so: a replication command that does not return has no other way to.
    pub fn word(self) -> &'static str {
        match self {
            HostedEnd::Stopped => "stopped",
            HostedEnd::Fenced => "fenced",
            HostedEnd::Diverged => "diverged",
        }
    }

    fn from_word(word: &str) -> Option<HostedEnd> {
        HostedEnd::ALL.into_iter().find(|end| end.word() == word)
    }
}

/// Why there is no walproposer in the compute any more.
#[derive(Debug, thiserror::Error)]
pub enum HostedError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The compute refused, or its walproposer failed, or the compute is gone.
    #[error("the compute's walproposer: {0}")]
    Compute(#[from] ClientError),
    /// `BASE_BACKUP` has come to an end, which it never does.
    #[error("the compute's walproposer returned")]
    Returned,
}

/// Has the compute of `config`, which is the content of the file `path`, run its walproposer, until that ends or
/// `shutdown` is cancelled. When this process ends, however it does, the compute's walproposer does so, too.
///
/// # Errors
/// When the configuration is wrong, and for everything but the ends of [`HostedEnd`].
pub async fn run_hosted(
    path: &Path,
    config: &Config,
    shutdown: CancellationToken,
) -> Result<HostedEnd, HostedError> {
    let compute = config.compute.as_ref().ok_or(ConfigError::NoCompute)?;
    config.endpoints()?;
    let reign = async {
        wait_for_server(compute).await;
        let mut client = Client::connect(&params(compute)).await?;
        client.simple_query(&command(path)).await
    };
    let result = tokio::select! {
        () = shutdown.cancelled() => return Ok(HostedEnd::Stopped),
        result = reign => result,
    };
    let error = result.err().ok_or(HostedError::Returned)?;
    let detail = error.server_error().and_then(|error| error.detail.as_deref());
    let end = detail.and_then(HostedEnd::from_word);
    end.ok_or(HostedError::Compute(error))
}

fn command(path: &Path) -> String {
    let detail = path.display().to_string().replace('\'', "''");
    format!("BASE_BACKUP (TARGET '{TARGET}', TARGET_DETAIL '{detail}')")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_word() {
        for end in HostedEnd::ALL {
            assert_eq!(HostedEnd::from_word(end.word()), Some(end));
        }
        assert_eq!(HostedEnd::from_word("Key (id)=(1) already exists."), None);
    }

    #[test]
    fn a_path_is_quoted() {
        let expected = "BASE_BACKUP (TARGET 'neon_walproposer', TARGET_DETAIL '/o''clock/w.toml')";
        assert_eq!(command(Path::new("/o'clock/w.toml")), expected);
    }
}
