//! Keys and tokens of an environment that was made with `neon init --auth`.
//!
//! ```text
//! .neon/auth/secret.pem     signs; its owner's alone
//! .neon/auth/keys/N.pem     what the services accept; the newest has the highest number
//! .neon/*/auth_token        what a service shows to others; its owner's alone
//! ```
//!
//! A key is exchanged in two steps, between which both are accepted ([`rotate`], [`retire`]).

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use auth_token::{Claims, PublicKeys, Scope, SigningKey};
use pg_types::TenantId;
use toml::Value;

use crate::cli::ScopeName;
use crate::environment::{Environment, read_toml, write_durably, write_secret};
use crate::error::{CliError, IoContext, Result, with_causes};
use crate::{endpoint, services};

/// The command line makes a token for each command; the longest copies all WAL of all branches.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// The key of an environment.
pub struct Signer {
    dir: PathBuf,
    key: SigningKey,
    own: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

fn failed(error: impl std::error::Error) -> CliError {
    CliError::failed(with_causes(&error))
}

fn auth_dir(environment_dir: &Path) -> PathBuf {
    environment_dir.join("auth")
}

impl Signer {
    /// Makes the first key, or another one in place of what an `init` that was killed has left.
    pub fn create(environment_dir: &Path) -> Result<Signer> {
        let dir = auth_dir(environment_dir);
        let keys = dir.join("keys");
        DirBuilder::new().recursive(true).mode(0o700).create(&keys).doing("create", &keys)?;
        Signer::save_new(dir, 1)
    }

    /// Reads the key.
    pub fn open(environment_dir: &Path) -> Result<Signer> {
        let dir = auth_dir(environment_dir);
        let key = SigningKey::load(&dir.join("secret.pem")).map_err(failed)?;
        Signer::new(dir, key)
    }

    fn new(dir: PathBuf, key: SigningKey) -> Result<Signer> {
        let claims = Claims::new(Scope::Admin).expiring(SystemTime::now(), COMMAND_TIME_MAX);
        let own = auth_token::mint(&claims, &key).map_err(failed)?;
        Ok(Signer { dir, key, own })
    }

    /// The public half first: nothing is signed with a key that is not accepted.
    fn save_new(dir: PathBuf, number: u64) -> Result<Signer> {
        let key = SigningKey::generate().map_err(failed)?;
        let public = key.public_pem().map_err(failed)?;
        write_durably(&dir.join("keys").join(format!("{number}.pem")), public.as_bytes())?;
        write_secret(&dir.join("secret.pem"), key.secret_pem().as_bytes())?;
        Signer::new(dir, key)
    }

    /// The token of this command: it may do everything.
    pub fn own_token(&self) -> &str {
        &self.own
    }

    /// A new token.
    pub fn token(&self, claims: &Claims) -> Result<String> {
        auth_token::mint(claims, &self.key).map_err(failed)
    }

    /// A compute's token. Its connections end with it, not it with a time.
    pub fn tenant_token(&self, tenant: TenantId) -> Result<String> {
        self.token(&Claims::new(Scope::Tenant(tenant)))
    }

    /// Gives a service its token; the settings by which it finds that and the keys.
    pub fn prepare_service(&self, dir: &Path) -> Result<[(&'static str, Value); 2]> {
        fs::create_dir_all(dir).doing("create", dir)?;
        let path = dir.join("auth_token");
        write_secret(&path, self.token(&Claims::new(Scope::SafekeeperData))?.as_bytes())?;
        Ok([
            ("auth_validation_public_key_path", services::path_value(&self.dir.join("keys"))),
            ("auth_token_path", services::path_value(&path)),
        ])
    }

    /// Files of keys that are accepted, by number.
    fn key_files(&self) -> Result<Vec<(u64, PathBuf)>> {
        let keys = self.dir.join("keys");
        let mut files = Vec::new();
        for entry in fs::read_dir(&keys).doing("read", &keys)? {
            let path = entry.doing("read", &keys)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            // Keys under other names are somebody's own.
            if let Some(number) = stem.and_then(|stem| stem.parse().ok()) {
                files.push((number, path));
            }
        }
        files.sort();
        Ok(files)
    }

    /// Whether a token is signed with this key, and not with an older one.
    fn has_signed(&self, token: &str) -> Result<bool> {
        let public = self.key.public_pem().map_err(failed)?;
        let keys = PublicKeys::of_text(&self.dir, public.as_bytes()).map_err(failed)?;
        Ok(auth_token::verify(token.as_bytes(), &keys, SystemTime::now()).is_ok())
    }
}

fn signer(environment: &Environment) -> Result<&Signer> {
    environment.signer.as_ref().ok_or_else(|| {
        CliError::conflict("this environment has no tokens: it was made without `neon init --auth`")
    })
}

/// A token for somebody outside; `expires` counts from now.
pub fn create(
    environment: &Environment,
    scope: ScopeName,
    tenant: Option<TenantId>,
    expires: Option<Duration>,
) -> Result<String> {
    let scope = match (scope, tenant) {
        (ScopeName::Tenant, tenant) => {
            Scope::Tenant(tenant.unwrap_or(environment.description.default_tenant))
        }
        (_, Some(_)) => {
            return Err(CliError::failed("--tenant belongs to --scope tenant alone"));
        }
        (ScopeName::Pageserverapi, None) => Scope::PageServerApi,
        (ScopeName::Safekeeperdata, None) => Scope::SafekeeperData,
        (ScopeName::Admin, None) => Scope::Admin,
    };
    let claims = Claims::new(scope);
    signer(environment)?.token(&match expires {
        Some(after) => claims.expiring(SystemTime::now(), after),
        None => claims,
    })
}

/// Makes a new key. The services accept it at once, and show tokens of it from their next connections on.
pub fn rotate(environment: &mut Environment) -> Result<()> {
    let signer = signer(environment)?;
    let newest = signer.key_files()?.last().map_or(0, |(number, _)| *number);
    environment.signer = Some(Signer::save_new(signer.dir.clone(), newest + 1)?);
    prepare_services(environment)
}

fn prepare_services(environment: &Environment) -> Result<()> {
    let signer = signer(environment)?;
    let safekeepers = environment.description.safekeepers.iter();
    let safekeepers = safekeepers.map(|node| environment.safekeeper_dir(node.id));
    for dir in safekeepers.chain([environment.pageserver_dir()]) {
        signer.prepare_service(&dir)?;
    }
    Ok(())
}

/// Takes the older keys away. Refused while a compute would be locked out by it.
pub fn retire(environment: &Environment) -> Result<()> {
    let signer = signer(environment)?;
    let public = signer.key.public_pem().map_err(failed)?;
    for definition in environment.endpoints()? {
        if !endpoint::is_running(environment, &definition)? {
            continue;
        }
        let path = endpoint::config_path(environment, &definition.name);
        let config: compute_ctl::Config = read_toml(&path)?;
        if !signer.has_signed(config.auth_token.as_deref().unwrap_or_default())? {
            return Err(CliError::conflict(format!(
                "endpoint \"{}\" runs with a token of an older key: start it again first",
                definition.name
            )));
        }
    }
    // A rotation that was killed may have left them older ones.
    prepare_services(environment)?;
    for (_, path) in signer.key_files()? {
        if fs::read_to_string(&path).doing("read", &path)? != public {
            fs::remove_file(&path).doing("remove", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::new_description;
    use auth_token::{Verifier, verify};
    use std::os::unix::fs::MetadataExt;

    fn environment(dir: &Path) -> Environment {
        let description = new_description("/nowhere".into(), 1).unwrap();
        Environment::create(dir, crate::environment::Description { auth: true, ..description })
            .unwrap()
    }

    fn accepted(environment: &Environment, token: &str) -> bool {
        // Opened anew: a running service needs some seconds to notice that a key is gone.
        let keys = Verifier::open(&environment.dir.join("auth/keys")).unwrap();
        keys.verify(token.as_bytes()).is_ok()
    }

    #[test]
    fn secrets_are_their_owners_alone_and_tokens_say_what_was_asked_for() {
        let temp = tempfile::tempdir().unwrap();
        let environment = environment(temp.path());
        let signer = environment.signer.as_ref().unwrap();
        signer.prepare_service(&environment.pageserver_dir()).unwrap();
        for file in ["auth/secret.pem", "pageserver/auth_token"] {
            let mode = fs::metadata(environment.dir.join(file)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let keys = PublicKeys::load(&environment.dir.join("auth/keys")).unwrap();
        let claims = |scope, tenant, expires| {
            let token = create(&environment, scope, tenant, expires).unwrap();
            verify(token.as_bytes(), &keys, SystemTime::now()).unwrap()
        };
        let tenant = environment.description.default_tenant;
        assert_eq!(claims(ScopeName::Tenant, None, None), Claims::new(Scope::Tenant(tenant)));
        let hour = claims(ScopeName::Admin, None, Some(Duration::from_secs(3600)));
        assert!(hour.scope == Scope::Admin && hour.expires_at.is_some());
        create(&environment, ScopeName::Admin, Some(tenant), None).unwrap_err();
        let name = format!("{environment:?}");
        assert!(!name.contains(signer.own_token()), "{name}");
    }

    #[test]
    fn keys_are_exchanged_in_two_steps() {
        let temp = tempfile::tempdir().unwrap();
        let mut environment = environment(temp.path());
        let token =
            |environment: &Environment| create(environment, ScopeName::Admin, None, None).unwrap();
        let old = token(&environment);
        rotate(&mut environment).unwrap();
        let new = token(&environment);
        assert!(accepted(&environment, &old) && accepted(&environment, &new));
        retire(&environment).unwrap();
        assert!(!accepted(&environment, &old) && accepted(&environment, &new));
        // The next command reads what this one wrote.
        drop(environment);
        let environment = Environment::open(temp.path()).unwrap();
        let own = environment.signer.as_ref().unwrap().own_token().to_owned();
        assert!(accepted(&environment, &own));
        let shown = fs::read_to_string(environment.pageserver_dir().join("auth_token")).unwrap();
        assert!(accepted(&environment, &shown));
    }

    #[test]
    fn an_environment_without_tokens_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let environment =
            Environment::create(temp.path(), new_description("/nowhere".into(), 1).unwrap())
                .unwrap();
        assert!(environment.signer.is_none() && !environment.dir.join("auth").exists());
        let error = create(&environment, ScopeName::Admin, None, None).unwrap_err();
        assert!(error.message.contains("neon init --auth"), "{error}");
    }
}
