//! The keys that tokens are checked with, and where they come from.
use super::{
    keyset::KeySet,
    opaque::{ApiKey, Opaque},
    source::{Place, Source},
};
use crate::scope::Scope;
use jsonwebtoken::{DecodingKey, EncodingKey};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::{
    fmt, fs,
    io::{ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file in `data_dir` that holds a generated secret.
pub const SECRET_FILE: &str = "jwt.secret";
/// Shortest secret that is taken, in bytes; HS256 is as weak as its secret is short.
const SECRET_BYTES_MIN: usize = 32;
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// How tokens are checked.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The shared secret of HS256/384/512 tokens, at least 32 bytes; generated in `data_dir` when absent.
    pub jwt_secret: Option<SecretString>,
    /// A JSON Web Key Set, `{"keys":[…]}`: the public keys of other issuers.
    pub jwks: Option<String>,
    /// A file with one, read again when it changes.
    pub jwks_file: Option<PathBuf>,
    /// An `https://` URL of one, like the issuer's `/.well-known/jwks.json`; read again every ten minutes, and
    /// for a key id that is not known.
    pub jwks_url: Option<String>,
    /// Claims that must have exactly this value in every token that has them, like `aud` or `iss`.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// Opaque keys (`sb_publishable_…`, `sb_secret_…`) and the roles that they stand for.
    pub api_keys: Vec<ApiKey>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("jwt_secret", &self.jwt_secret.as_ref().map(|_| "…"))
            .field("jwks", &self.jwks.as_ref().map(|_| "…"))
            .field("jwks_file", &self.jwks_file)
            .field("jwks_url", &self.jwks_url)
            .field("claims", &self.claims)
            .field("api_keys", &self.api_keys)
            .finish()
    }
}

/// Why there is no usable secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configured or stored secret could be guessed.
    #[error("{origin} has {bytes} bytes: an HS256 secret needs at least {SECRET_BYTES_MIN}")]
    TooShort {
        /// `auth.jwt_secret`, or the file.
        origin: String,
        /// How long it is.
        bytes: usize,
    },
    /// A key set cannot be used.
    #[error("{origin} cannot be used: {reason}")]
    KeySet {
        /// `auth.jwks`, `auth.jwks_file` or `auth.jwks_url`.
        origin: &'static str,
        /// Why, without any of it.
        reason: String,
    },
    /// An opaque key cannot be used.
    #[error("auth.api_keys[{at}] {reason}")]
    ApiKey {
        /// Which one, from 0.
        at: usize,
        /// Why, without the key.
        reason: String,
    },
    /// The file of the generated secret cannot be read or made.
    #[error("cannot {action} the token secret {}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The keys that sign and verify. Clones share them.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

pub(super) struct Inner {
    pub(super) encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
    /// Of the settings.
    pub(super) fixed: KeySet,
    /// A file and a URL.
    pub(super) sources: Vec<Source>,
    pub(super) claims: serde_json::Map<String, serde_json::Value>,
    pub(super) opaque: Opaque,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// Keys of one shared secret.
    ///
    /// # Errors
    /// [`Error::TooShort`] under 32 bytes.
    pub fn from_secret(secret: &SecretString) -> Result<Self, Error> {
        Self::checked(secret.expose_secret().as_bytes(), || "auth.jwt_secret".to_owned(), &Config::default())
    }

    /// Reads again what may change: at once, and then from time to time, in `scope`.
    pub fn keep_fresh(&self, scope: &Scope) {
        self.0.sources.iter().for_each(|source| source.keep_fresh(scope));
    }

    /// The configured secret, else the one in `data_dir/jwt.secret`, made there (mode 0600, with the folder)
    /// when there is none. Processes that start at once end with the same secret.
    ///
    /// Blocks for a few file operations.
    ///
    /// # Errors
    /// [`Error`] says which file or setting is wrong.
    pub fn load_or_generate(config: &Config, data_dir: &Path) -> Result<Self, Error> {
        if let Some(secret) = &config.jwt_secret {
            let secret = secret.expose_secret().as_bytes();
            return Self::checked(secret, || "auth.jwt_secret".to_owned(), config);
        }
        let path = data_dir.join(SECRET_FILE);
        let origin = || path.display().to_string();
        match read(&path) {
            Ok(secret) => return Self::checked(secret.trim().as_bytes(), origin, config),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(Error::File { action: "read", path, source }),
        }
        generate(data_dir, &path).map_err(|source| Error::File {
            action: "write",
            path: path.clone(),
            source,
        })?;
        let secret =
            read(&path).map_err(|source| Error::File { action: "read", path: path.clone(), source })?;
        Self::checked(secret.trim().as_bytes(), origin, config)
    }

    fn checked(secret: &[u8], origin: impl FnOnce() -> String, config: &Config) -> Result<Self, Error> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(Error::TooShort { origin: origin(), bytes: secret.len() });
        }
        let (encoding, decoding) = (EncodingKey::from_secret(secret), DecodingKey::from_secret(secret));
        let bad = |origin: &'static str| move |reason: String| Error::KeySet { origin, reason };
        let fixed = config.jwks.as_ref().map(|json| KeySet::parse(json.as_bytes()));
        let fixed = fixed.transpose().map_err(bad("auth.jwks"))?.unwrap_or_default();
        let mut sources = Vec::new();
        if let Some(path) = &config.jwks_file {
            let json =
                fs::read(path).map_err(|e| bad("auth.jwks_file")(format!("{}: {e}", path.display())))?;
            let keys = KeySet::parse(&json).map_err(bad("auth.jwks_file"))?;
            sources.push(Source::new(Place::File(path.clone()), keys));
        }
        if let Some(url) = &config.jwks_url {
            if !url.starts_with("https://") && !url.starts_with("http://") {
                return Err(bad("auth.jwks_url")("it must begin with https://".to_owned()));
            }
            // An issuer that is away when the daemon starts is asked again.
            sources.push(Source::new(Place::Url(url.clone()), KeySet::default()));
        }
        let opaque = Opaque::new(&config.api_keys)?;
        let claims = config.claims.clone();
        Ok(Self(Arc::new(Inner { encoding, decoding, fixed, sources, claims, opaque })))
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut secret = String::new();
    fs::File::open(path)?.take(SECRET_BYTES_MAX).read_to_string(&mut secret)?;
    Ok(secret)
}

/// Writes a complete file of its own first and links it into place, so that nobody reads half a secret and
/// the first of several wins.
fn generate(data_dir: &Path, path: &Path) -> std::io::Result<()> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    fs::create_dir_all(data_dir)?;
    let secret: [u8; 48] = rand::random();
    let mine = data_dir.join(format!(".{SECRET_FILE}.{}", uuid::Uuid::new_v4()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&mine)?;
    let linked = (|| {
        writeln!(file, "{}", URL_SAFE_NO_PAD.encode(secret))?;
        file.sync_all()?;
        match fs::hard_link(&mine, path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    })();
    fs::remove_file(&mine)?;
    linked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{MintRequest, Role, mint};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn daemons_that_start_at_once_share_one_secret_only_the_owner_can_read() {
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
    fn a_short_secret_is_refused_by_name() {
        let config = Config { jwt_secret: Some("short".into()), ..Config::default() };
        let refused = Keys::load_or_generate(&config, Path::new("/nonexistent")).unwrap_err();
        assert_eq!(refused.to_string(), "auth.jwt_secret has 5 bytes: an HS256 secret needs at least 32");
        assert!(!format!("{config:?}").contains("short"));
    }
}
