//! Address and credentials of a database: the parsed `database.url`.
//!
//! Owns everything that a connection needs, for the pool and for the replication client, which implements the
//! protocol itself. Never connects. Parses `sslmode` itself, because the driver does not know `verify-full`.
//! An invalid URL is [`Error::BadUrl`], whose text never contains the URL.
use super::{Error, tls};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use std::{fmt, path::PathBuf, sync::Arc};
use tokio_postgres::config::{Host as PgHost, SslMode};

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or an IP address.
    Tcp(String),
    /// The folder of the socket `.s.PGSQL.<port>`.
    Unix(PathBuf),
}

/// The TLS requirement of a connection. Unix sockets never use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it; the certificate is not verified.
    Prefer,
    /// TLS or no connection; the certificate is not verified.
    Require,
    /// TLS or no connection; the certificate must be valid for the host name.
    VerifyFull,
}

/// One database on one server, with a role and its credentials.
#[derive(Clone)]
pub struct Target {
    /// Address of the server.
    pub host: Host,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Password, if any.
    pub password: Option<SecretString>,
    /// Name of the database.
    pub database: String,
    /// TLS requirement.
    pub tls_mode: TlsMode,
    /// TLS configuration that implements `tls_mode`.
    pub tls: Arc<ClientConfig>,
    base: tokio_postgres::Config,
}

impl Target {
    /// Parses a URL like `postgres://user:password@host:5432/database?sslmode=verify-full`.
    ///
    /// A folder as host (`?host=/run/postgresql`, or percent-encoded) is a unix socket. `sslmode` defaults to
    /// `prefer`. `sslrootcert` names a PEM file of certificates to trust instead of the system's. Other
    /// parameters are those of the driver: `options`, `keepalives_idle`, ….
    ///
    /// # Errors
    /// [`Error::BadUrl`] with the reason; [`Error::File`] if `sslrootcert` is not readable.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let url = url.trim();
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            let reason = "must look like postgres://user:password@host:5432/database";
            return Err(Error::BadUrl(reason.into()));
        }
        let (rest, own) = split_tls(url)?;
        let base: tokio_postgres::Config = rest.parse().map_err(|e| bad_url(&e))?;
        // `user@:5433/name?host=/folder` yields an empty host in addition to the folder.
        let hosts = base.get_hosts().iter().filter(|host| **host != PgHost::Tcp(String::new()));
        let host = match (hosts.collect::<Vec<_>>().as_slice(), base.get_hostaddrs()) {
            ([PgHost::Tcp(name)], []) => Host::Tcp(name.clone()),
            ([PgHost::Unix(folder)], []) => Host::Unix(folder.clone()),
            ([], []) => return Err(Error::BadUrl("names no host".into())),
            _ => return Err(Error::BadUrl("must name one host, and no hostaddr".into())),
        };
        let user = base.get_user().filter(|user| !user.is_empty());
        let user = user.ok_or_else(|| Error::BadUrl("names no user".into()))?.to_owned();
        let database = base.get_dbname().filter(|name| !name.is_empty()).unwrap_or(&user).to_owned();
        let password =
            base.get_password().map(|p| SecretString::from(String::from_utf8_lossy(p).into_owned()));
        // A unix socket is local and never uses TLS, whatever `sslmode` is.
        let tls_mode = if matches!(host, Host::Unix(_)) { TlsMode::Disable } else { own.mode };
        let tls = tls::client_config(tls_mode, own.root.as_deref())?;
        let port = base.get_ports().first().copied().unwrap_or(5432);
        Ok(Self { host, port, user, password, database, tls_mode, tls, base })
    }

    /// A server on this machine behind a unix socket.
    pub(super) fn unix(
        folder: PathBuf,
        port: u16,
        user: &str,
        password: SecretString,
        database: &str,
    ) -> Result<Self, Error> {
        Ok(Self {
            host: Host::Unix(folder),
            port,
            user: user.to_owned(),
            password: Some(password),
            database: database.to_owned(),
            tls_mode: TlsMode::Disable,
            tls: tls::client_config(TlsMode::Disable, None)?,
            base: tokio_postgres::Config::new(),
        })
    }

    /// The same server and role with another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// The same database with another role.
    pub(super) fn with_login(&self, user: &str, password: Option<SecretString>) -> Self {
        Self { user: user.to_owned(), password, ..self.clone() }
    }

    /// The same role and database at another address of the same server.
    pub(super) fn with_host(&self, host: Host) -> Self {
        Self { host, ..self.clone() }
    }

    /// The driver's configuration; the caller adds an application name and a timeout.
    #[must_use]
    pub fn driver_config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        match &self.host {
            Host::Tcp(name) => config.host(name),
            Host::Unix(folder) => config.host_path(folder),
        };
        config.port(self.port).user(&self.user).dbname(&self.database);
        if let Some(password) = &self.password {
            config.password(password.expose_secret());
        }
        config.ssl_mode(match self.tls_mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyFull => SslMode::Require,
        });
        if let Some(options) = self.base.get_options() {
            config.options(options);
        }
        config.keepalives(self.base.get_keepalives()).keepalives_idle(self.base.get_keepalives_idle());
        config.target_session_attrs(self.base.get_target_session_attrs());
        config.channel_binding(self.base.get_channel_binding());
        config
    }

    /// The startup parameter `options` of the URL, like `-c search_path=app`.
    #[must_use]
    pub fn options(&self) -> Option<&str> {
        self.base.get_options()
    }

    /// Host and port, or the socket's path, for messages.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{}", self.port),
            Host::Tcp(name) => format!("{name}:{}", self.port),
            Host::Unix(folder) => format!("{}/.s.PGSQL.{}", folder.display(), self.port),
        }
    }

    /// A URL with the password.
    #[must_use]
    pub fn url(&self) -> String {
        self.render(self.password.as_ref().map(|p| encode(p.expose_secret())).as_deref())
    }

    /// The URL with `***` for the password, for people and logs.
    #[must_use]
    pub fn url_redacted(&self) -> String {
        self.render(self.password.as_ref().map(|_| "***"))
    }

    /// The URL without the password.
    #[must_use]
    pub fn url_without_password(&self) -> String {
        self.render(None)
    }

    fn render(&self, password: Option<&str>) -> String {
        let (user, database) = (encode(&self.user), encode(&self.database));
        let user = password.map_or(user.clone(), |password| format!("{user}:{password}"));
        match &self.host {
            Host::Tcp(_) => {
                let mode = match self.tls_mode {
                    TlsMode::Disable => "?sslmode=disable",
                    TlsMode::Prefer => "",
                    TlsMode::Require => "?sslmode=require",
                    TlsMode::VerifyFull => "?sslmode=verify-full",
                };
                format!("postgres://{user}@{}/{database}{mode}", self.address())
            }
            Host::Unix(folder) => {
                let folder = encode(&folder.to_string_lossy());
                format!("postgres://{user}@{folder}:{}/{database}", self.port)
            }
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.url_redacted()).finish()
    }
}

struct OwnParameters {
    mode: TlsMode,
    root: Option<PathBuf>,
}

/// Splits off the parameters that the driver does not know.
fn split_tls(url: &str) -> Result<(String, OwnParameters), Error> {
    let mut own = OwnParameters { mode: TlsMode::Prefer, root: None };
    let Some((base, query)) = url.split_once('?') else { return Ok((url.to_owned(), own)) };
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", mode)) => own.mode = tls_mode(mode)?,
            Some(("sslrootcert", "system")) => own.root = None,
            Some(("sslrootcert", path)) => own.root = Some(PathBuf::from(path.replace("%2F", "/"))),
            _ => rest.push(pair),
        }
    }
    let base = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((base, own))
}

fn tls_mode(text: &str) -> Result<TlsMode, Error> {
    match text {
        "disable" => Ok(TlsMode::Disable),
        "prefer" => Ok(TlsMode::Prefer),
        "require" => Ok(TlsMode::Require),
        "verify-full" => Ok(TlsMode::VerifyFull),
        other => {
            let known = "use disable, prefer, require or verify-full";
            Err(Error::BadUrl(format!("has sslmode={other:.20}: {known}")))
        }
    }
}

fn bad_url(error: &tokio_postgres::Error) -> Error {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Error::BadUrl(format!("is not a connection URL: {reason}"))
}

/// Percent-encodes everything but unreserved characters.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_parsed_and_rendered_unchanged() {
        let url = "postgres://an%40n:p%3Aw%2F@db.example:6000/my%20db?sslmode=require";
        let target = Target::parse(url).unwrap();
        assert_eq!((target.user.as_str(), target.port, target.database.as_str()), ("an@n", 6000, "my db"));
        assert_eq!(target.password.as_ref().unwrap().expose_secret(), "p:w/");
        assert_eq!(target.tls_mode, TlsMode::Require);
        assert_eq!(target.url(), url);
        assert_eq!(target.url_redacted(), "postgres://an%40n:***@db.example:6000/my%20db?sslmode=require");
        assert!(!format!("{target:?}").contains("p:w"));
    }

    #[test]
    fn folder_as_host_is_a_unix_socket_without_tls() {
        for url in
            ["postgres://me@%2Frun%2Fpg:5433/app?sslmode=require", "postgresql://me@:5433/app?host=/run/pg"]
        {
            let target = Target::parse(url).unwrap();
            assert_eq!(target.host, Host::Unix("/run/pg".into()), "{url}");
            assert_eq!(target.tls_mode, TlsMode::Disable);
            assert_eq!(target.address(), "/run/pg/.s.PGSQL.5433");
            assert_eq!(Target::parse(&target.url()).unwrap().host, target.host);
        }
    }

    #[test]
    fn missing_parts_of_a_url_have_defaults() {
        let target = Target::parse("postgres://me@localhost").unwrap();
        assert_eq!((target.port, target.database.as_str()), (5432, "me"));
        assert_eq!(target.tls_mode, TlsMode::Prefer);
    }

    #[test]
    fn invalid_url_is_refused_without_its_password() {
        for (url, reason) in [
            ("mysql://a:hunter2@b/c", "must look like"),
            ("", "must look like"),
            ("postgres://a:hunter2@b/c?sslmode=verify-ca", "sslmode=verify-ca"),
            ("postgres://a:hunter2@b:port/c", "port"),
            ("postgres://a:hunter2@b/c?shoe_size=44", "shoe_size"),
            ("postgres://a:hunter2@b,c/d", "one host"),
            ("postgres://localhost/d", "names no user"),
        ] {
            let message = Target::parse(url).unwrap_err().to_string();
            assert!(message.contains(reason), "{url}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
