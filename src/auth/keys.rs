//! The keys that verify and sign tokens, and their sources.
use super::{
    IssuerRoles,
    api_keys::{ApiKey, Opaque},
    keyset::{KeySet, SECRET_BYTES_MIN},
    principal::Role,
    source::{BYTES_MAX, KeyLocation, Source},
};
use crate::{files, scope::Scope, telemetry::without_login};
use jsonwebtoken::{DecodingKey, EncodingKey};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    fmt::{self, Write as _},
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file in `data_dir` that holds a generated secret.
pub const SECRET_FILE: &str = "jwt.secret";
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Settings of token verification.
#[derive(Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Shared secret of HS256/384/512 tokens, at least 32 bytes. Defaults to one that is generated in
    /// `data_dir`.
    pub jwt_secret: Option<SecretString>,
    /// A JSON Web Key Set, `{"keys":[…]}`, with the public keys of other issuers.
    pub jwks: Option<String>,
    /// A file with a key set, read every ten minutes, and for an unknown key id.
    pub jwks_file: Option<PathBuf>,
    /// URL of a key set, like the issuer's `/.well-known/jwks.json`; read every ten minutes, and for an
    /// unknown key id.
    pub jwks_url: Option<String>,
    /// Claims that must have exactly this value in every token that has them, like `aud` or `iss`.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// Opaque keys (`sb_publishable_…`, `sb_secret_…`) and the roles that they stand for.
    pub api_keys: Vec<ApiKey>,
    /// The database roles that tokens may name. A token with any other role has only the rights of public
    /// rooms. Predefined roles (`pg_…`) are refused here, superusers at the start of the daemon.
    pub roles: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        let roles = [Role::Anon, Role::Authenticated, Role::ServiceRole];
        Self {
            jwt_secret: None,
            jwks: None,
            jwks_file: None,
            jwks_url: None,
            claims: serde_json::Map::new(),
            api_keys: Vec::new(),
            roles: roles.map(|role| role.as_str().to_owned()).to_vec(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("jwt_secret", &self.jwt_secret.as_ref().map(|_| "…"))
            .field("jwks", &self.jwks.as_ref().map(|_| "…"))
            .field("jwks_file", &self.jwks_file)
            .field("jwks_url", &self.jwks_url.as_deref().map(without_login))
            .field("claims", &self.claims)
            .field("api_keys", &self.api_keys)
            .field("roles", &self.roles)
            .finish()
    }
}

impl Config {
    /// Returns every problem that can be found without a data folder: key in the section, and message.
    #[must_use]
    pub fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        // Each part is checked alone: `Keys::checked` stops at its first problem, which would hide the
        // others.
        let secret = self.jwt_secret.as_ref().map(|secret| secret.expose_secret().to_owned());
        let good = check_roles(&self.roles).is_ok();
        let roles = if good { self.roles.clone() } else { Self::default().roles };
        let parts = [
            Self { jwks: self.jwks.clone(), ..Self::default() },
            Self { jwks_file: self.jwks_file.clone(), ..Self::default() },
            Self { jwks_url: self.jwks_url.clone(), ..Self::default() },
            Self { api_keys: self.api_keys.clone(), roles, ..Self::default() },
            Self { roles: self.roles.clone(), ..Self::default() },
        ];
        let placeholder = "-".repeat(SECRET_BYTES_MIN);
        let checked = parts.iter().map(|part| Keys::checked(placeholder.as_bytes(), String::new, part));
        let secret = secret.map(|secret| Keys::checked(secret.as_bytes(), String::new, &Self::default()));
        for error in secret.into_iter().chain(checked).filter_map(Result::err) {
            wrong.push(match error {
                Error::TooShort { bytes, .. } => (
                    "jwt_secret".into(),
                    format!("{bytes} bytes: a secret needs at least {SECRET_BYTES_MIN}"),
                ),
                Error::KeySet { origin, reason } => {
                    (origin.trim_start_matches("auth.").into(), format!("cannot be used: {reason}"))
                }
                Error::ApiKey { at, reason } => (format!("api_keys.{at}"), reason),
                Error::Role { at, role, reason } => (format!("roles.{at}"), format!("{role:?} {reason}")),
                error @ Error::File(_) => ("jwt_secret".into(), error.to_string()),
            });
        }
        wrong
    }
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configured or stored secret is too short.
    #[error("{origin} has {bytes} bytes: an HS256 secret needs at least {SECRET_BYTES_MIN}")]
    TooShort {
        /// `auth.jwt_secret`, or the file.
        origin: String,
        /// Its length.
        bytes: usize,
    },
    /// A key set is not usable.
    #[error("{origin} cannot be used: {reason}")]
    KeySet {
        /// `auth.jwks`, `auth.jwks_file` or `auth.jwks_url`.
        origin: &'static str,
        /// The reason, without content of the key set.
        reason: String,
    },
    /// An opaque key is not usable.
    #[error("auth.api_keys[{at}] {reason}")]
    ApiKey {
        /// Index, from 0.
        at: usize,
        /// The reason, without the key.
        reason: String,
    },
    /// A role must not be named by tokens.
    #[error("auth.roles[{at}] {role:?} {reason}")]
    Role {
        /// Index, from 0.
        at: usize,
        /// Its name.
        role: String,
        /// The reason.
        reason: &'static str,
    },
    /// The file of the generated secret is not readable or writable, or others may write to it.
    #[error("the secret of the tokens cannot be used")]
    File(#[from] files::Error),
}

/// The keys that sign and verify tokens. Clones share them.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

pub(super) struct Inner {
    pub(super) encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
    /// The key set of the settings.
    pub(super) fixed: KeySet,
    /// Key sets in a file and behind a URL.
    pub(super) sources: Vec<Source>,
    pub(super) claims: serde_json::Map<String, serde_json::Value>,
    pub(super) roles: Vec<String>,
    pub(super) opaque: Opaque,
    pub(super) issuer_roles: IssuerRoles,
    mark: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// Creates keys with one shared secret.
    ///
    /// # Errors
    /// [`Error::TooShort`] below 32 bytes.
    pub fn from_secret(secret: &SecretString) -> Result<Self, Error> {
        let origin = || "auth.jwt_secret".to_owned();
        let inner = Self::checked(secret.expose_secret().as_bytes(), origin, &Config::default())?;
        Ok(Self(Arc::new(inner)))
    }

    /// Starts the periodic reads of key sets in `scope`; the first read is immediate.
    pub fn keep_fresh(&self, scope: &Scope) {
        self.0.sources.iter().for_each(|source| source.keep_fresh(scope));
    }

    /// Returns keys with the configured secret, else with the one in `data_dir/jwt.secret`. Creates that file
    /// (mode 0600) and its folder if they are missing. Processes that start concurrently get the same secret.
    /// A folder or file that others may write to is refused.
    ///
    /// Blocks for a few file operations.
    ///
    /// # Errors
    /// [`Error`] with the file or setting.
    pub fn load_or_generate(config: &Config, data_dir: &Path) -> Result<Self, Error> {
        Self::load_with_roles(config, &IssuerRoles::default(), data_dir)
    }

    /// Like [`Keys::load_or_generate`], with the roles of people whom other issuers name.
    ///
    /// # Errors
    /// [`Error`] with the file or setting.
    pub fn load_with_roles(
        config: &Config,
        issuer_roles: &IssuerRoles,
        data_dir: &Path,
    ) -> Result<Self, Error> {
        let inner = Self::load(config, data_dir)?;
        Ok(Self(Arc::new(Inner { issuer_roles: issuer_roles.clone(), ..inner })))
    }

    fn load(config: &Config, data_dir: &Path) -> Result<Inner, Error> {
        if let Some(secret) = &config.jwt_secret {
            let secret = secret.expose_secret().as_bytes();
            return Self::checked(secret, || "auth.jwt_secret".to_owned(), config);
        }
        let path = data_dir.join(SECRET_FILE);
        let origin = || path.display().to_string();
        files::check_own_folder(data_dir)?;
        let secret = match files::read_secret(&path, SECRET_BYTES_MAX)? {
            Some(secret) => secret,
            None => {
                generate(data_dir, &path)?;
                // Read back: another process may have created the file first, and its secret counts.
                files::read_secret(&path, SECRET_BYTES_MAX)?.unwrap_or_default()
            }
        };
        Self::checked(secret.trim().as_bytes(), origin, config)
    }

    fn checked(secret: &[u8], origin: impl FnOnce() -> String, config: &Config) -> Result<Inner, Error> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(Error::TooShort { origin: origin(), bytes: secret.len() });
        }
        let (encoding, decoding) = (EncodingKey::from_secret(secret), DecodingKey::from_secret(secret));
        let bad = |origin: &'static str| move |reason: String| Error::KeySet { origin, reason };
        let fixed = config.jwks.as_ref().map(|json| KeySet::parse(json.as_bytes()));
        let fixed = fixed.transpose().map_err(bad("auth.jwks"))?.unwrap_or_default();
        fixed.check().map_err(bad("auth.jwks"))?;
        let mut sources = Vec::new();
        if let Some(path) = &config.jwks_file {
            let json = files::read_named(path, BYTES_MAX)
                .map_err(|e| bad("auth.jwks_file")(format!("{}: {e}", path.display())))?;
            let keys = KeySet::parse(&json).map_err(bad("auth.jwks_file"))?;
            keys.check().map_err(bad("auth.jwks_file"))?;
            sources.push(Source::new(KeyLocation::File(path.clone()), keys));
        }
        if let Some(url) = &config.jwks_url {
            if !url.starts_with("https://") && !url.starts_with("http://") {
                return Err(bad("auth.jwks_url")("it must begin with https://".to_owned()));
            }
            // Read later, by `keep_fresh`: an issuer that is down must not prevent the start.
            sources.push(Source::new(KeyLocation::Url(url.clone()), KeySet::default()));
        }
        check_roles(&config.roles)?;
        let opaque = Opaque::new(&config.api_keys, &config.roles)?;
        let roles = config.roles.clone();
        let claims = config.claims.clone();
        let mark = mark(secret);
        let issuer_roles = IssuerRoles::default();
        Ok(Inner { encoding, decoding, fixed, sources, claims, roles, opaque, issuer_roles, mark })
    }

    /// Eight hexadecimal digits that belong to the shared secret and do not reveal it: names that must differ between
    /// daemons contain them.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.0.mark
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }
}

fn mark(secret: &[u8]) -> String {
    let hash = Sha256::new().chain_update("convoke mark").chain_update(secret).finalize();
    hash.iter().take(4).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn check_roles(roles: &[String]) -> Result<(), Error> {
    for (at, role) in roles.iter().enumerate() {
        let reason = match role.to_ascii_lowercase().as_str() {
            "" => "is empty",
            "none" | "public" | "current_user" | "current_role" | "session_user" => {
                "is a keyword and not a role"
            }
            lower if lower.starts_with("pg_") => "is a predefined role of PostgreSQL",
            _ if role.contains(char::is_control) => "has control characters",
            _ => continue,
        };
        return Err(Error::Role { at, role: role.clone(), reason });
    }
    Ok(())
}

/// Writes a complete temporary file and hard-links it to its name: no process reads a partial secret, and of
/// several concurrent processes the first wins.
fn generate(data_dir: &Path, path: &Path) -> Result<(), files::Error> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    files::own_folder(data_dir)?;
    let secret: [u8; 48] = rand::random();
    let temporary = data_dir.join(format!(".{SECRET_FILE}.{}", uuid::Uuid::new_v4()));
    let made = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{}", URL_SAFE_NO_PAD.encode(secret))?;
        // Synced before the link, so that the name never points to an incomplete file after a crash.
        file.sync_all()?;
        let linked = match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            done => done,
        };
        linked.and(fs::remove_file(&temporary))
    })();
    made.map_err(|source| files::Error::Io { doing: "write", path: path.to_owned(), source })?;
    files::sync_folder_of(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{MintRequest, mint};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn concurrent_starts_share_one_secret_with_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("new");
        let now = chrono::DateTime::UNIX_EPOCH;
        let all: Vec<Keys> = std::thread::scope(|scope| {
            let start = || Keys::load_or_generate(&Config::default(), &home).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let token = mint(&all[0], &MintRequest::new(Role::Anon), now).unwrap();
        for keys in &all {
            keys.verify(&token, now).unwrap();
        }
        let mode = fs::metadata(home.join(SECRET_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&home).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn check_names_every_invalid_setting() {
        let text = r#"
            jwt_secret = "hunter2"
            jwks = "no set"
            jwks_file = "/nonexistent/jwks.json"
            jwks_url = "ftp://example.com/jwks"
            api_keys = [{ key = "sb_secret_0123456789abcdef", role = "anon" }, { key = "sb_x", role = "anon" }]
        "#;
        let config: Config = toml::from_str(text).unwrap();
        let found = config.check();
        let keys: Vec<_> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["jwt_secret", "jwks", "jwks_file", "jwks_url", "api_keys.1"]);
        assert!(found.iter().all(|(_, message)| !message.contains("hunter2") && !message.contains("sb_x")));
        assert_eq!(Config::default().check(), []);
    }

    #[test]
    fn predefined_and_invalid_roles_are_refused_by_name() {
        for role in ["pg_read_all_data", "PG_monitor", "none", "", "public", "a\nb"] {
            let roles = vec!["anon".to_owned(), role.to_owned()];
            let config = Config { jwt_secret: Some("x".repeat(32).into()), roles, ..Config::default() };
            let refused = Keys::load_or_generate(&config, Path::new("/nonexistent")).unwrap_err();
            assert!(refused.to_string().starts_with("auth.roles[1]"), "{refused}");
        }
    }

    #[test]
    fn short_secret_is_refused_by_name() {
        let config = Config { jwt_secret: Some("short".into()), ..Config::default() };
        let refused = Keys::load_or_generate(&config, Path::new("/nonexistent")).unwrap_err();
        assert_eq!(refused.to_string(), "auth.jwt_secret has 5 bytes: an HS256 secret needs at least 32");
        assert!(!format!("{config:?}").contains("short"));
    }
}
