//! The PostgreSQL database of the daemon: a configured one, or a private one that it runs itself.
//!
//! Owns the pool, transactions with retries, connections outside the pool, the migrations of schema
//! `convoke`, the decoding of columns, the checks of a server, and the private server's whole life. Knows no
//! table of another module. Fails with [`Error`], whose variants tell what the caller or the operator can do.
//! If the server is lost, calls fail as transient until it is back.
mod config;
mod connect;
mod error;
mod flights;
mod inspect;
mod migrate;
pub mod private;
mod reader;
mod rows;
pub(crate) mod session;
mod target;
mod tls;
mod transaction;

pub use config::Config;
pub use error::{Error, is_read_only, is_transient};
pub use flights::{FlightResult, Flights};
pub use inspect::{Finding, inspect};
pub use migrate::{Migrated, migrate, unapplied};
pub use reader::{ReadError, ReadRows, Reader, Reading};
pub use rows::{Columns, Unreadable};
pub use target::{Host, Target, TlsMode};
pub use transaction::Transaction;

use crate::scope::Scope;
use connect::SessionSetup;
use deadpool_postgres::{Object, Pool, PoolError, TimeoutType};
use private::Private;
use secrecy::{ExposeSecret, SecretString};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_postgres::{Client, Notification, SimpleQueryMessage};

/// A database. Clones share the pool and the server.
///
/// If the last clone is dropped without [`Database::stop`], the private server gets the signal to stop,
/// without a wait.
#[derive(Clone, Debug)]
pub struct Database {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    target: Target,
    url: SecretString,
    pool: Pool,
    sessions: Arc<connect::Sessions>,
    connect_timeout: Duration,
    private: Option<Private>,
}

impl Database {
    /// Connects to `config.url`; without one, adopts or starts the private PostgreSQL under `config.data_dir`
    /// and connects to that.
    ///
    /// `scope` gets the task that supervises the private server. Creating a new private server takes some
    /// seconds, everything else well under one.
    ///
    /// # Errors
    /// Every variant except those of statements and migrations. A started server is stopped.
    pub async fn open(config: &Config, scope: &Scope) -> Result<Self, Error> {
        let Some(url) = &config.url else {
            let private = Private::open(config, scope).await?;
            let target = private.target().clone();
            let url = private.url();
            return Self::build(config, target, url, Some(private)).await;
        };
        let target = Target::parse(url.expose_secret())?;
        Self::build(config, target, url.clone(), None).await
    }

    /// Connects to the database of a running daemon, and never starts or stops a server: to `config.url`,
    /// else to the private PostgreSQL under `config.data_dir`.
    ///
    /// # Errors
    /// [`Error::File`] if no private PostgreSQL has run there, and errors of connecting.
    pub async fn attach(config: &Config) -> Result<Self, Error> {
        let url = match &config.url {
            Some(url) => url.clone(),
            None => private::last_url(&config.data_dir)?,
        };
        Self::build(config, Target::parse(url.expose_secret())?, url, None).await
    }

    async fn build(
        config: &Config,
        target: Target,
        url: SecretString,
        private: Option<Private>,
    ) -> Result<Self, Error> {
        let sessions = Arc::default();
        let pool = connect::pool(config, &target, "convoke", SessionSetup::default(), &sessions)?;
        let connect_timeout = config.connect_timeout;
        let inner = Inner { target, url, pool, sessions, connect_timeout, private };
        let database = Self { inner: Arc::new(inner) };
        // Connects now, so that a wrong password is an error of the start and not of the first request.
        drop(database.client().await?);
        Ok(database)
    }

    /// Returns the same database with a pool of its own, for work that must not take connections from the
    /// rest.
    ///
    /// Connects on first use. Never stops the server. `more` are statements that each new session runs after
    /// its settings, like `reset timezone`.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the pool cannot be built.
    pub fn beside(
        &self,
        application_name: &str,
        size_max: usize,
        statement_timeout: Duration,
        more: &str,
    ) -> Result<Self, Error> {
        let setup = SessionSetup { more, low_priority: false };
        self.pool_apart(application_name, size_max, statement_timeout, setup)
    }

    /// As [`Database::beside`], for statements whose cost clients decide: on the private PostgreSQL their server
    /// processes get the processor time that others leave.
    ///
    /// # Errors
    /// Those of [`Database::beside`].
    pub fn beside_at_low_priority(
        &self,
        application_name: &str,
        size_max: usize,
        statement_timeout: Duration,
    ) -> Result<Self, Error> {
        // A process id of another machine would name some process of this one.
        let setup = SessionSetup { more: "", low_priority: self.is_private() };
        self.pool_apart(application_name, size_max, statement_timeout, setup)
    }

    fn pool_apart(
        &self,
        application_name: &str,
        size_max: usize,
        statement_timeout: Duration,
        setup: SessionSetup<'_>,
    ) -> Result<Self, Error> {
        let (target, url) = (self.inner.target.clone(), self.inner.url.clone());
        let sessions = self.inner.sessions.clone();
        let connect_timeout = self.inner.connect_timeout;
        let config =
            Config { pool_size_max: size_max, statement_timeout, connect_timeout, ..Config::default() };
        let pool = connect::pool(&config, &target, application_name, setup, &sessions)?;
        let inner = Inner { target, url, pool, sessions, connect_timeout, private: None };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns a connection of the pool, with `database.statement_timeout`. Dropping it returns it to the
    /// pool.
    ///
    /// # Errors
    /// [`Error::Busy`] if none became free within 10 s, and errors of connecting.
    pub async fn client(&self) -> Result<Object, Error> {
        self.inner.pool.get().await.map_err(|e| match e {
            PoolError::Timeout(TimeoutType::Wait) => Error::Busy(connect::WAIT),
            PoolError::Timeout(_) => connect::timed_out(&self.inner.target, self.inner.connect_timeout),
            PoolError::Backend(e) => connect::explain(&self.inner.target, e),
            PoolError::PostCreateHook(e) => connect::explain_hook(&self.inner.target, e),
            PoolError::Closed | PoolError::NoRuntimeSpecified => Error::Closed,
        })
    }

    /// Opens a connection outside the pool, for locks, notifications and long statements. It has no statement
    /// timeout.
    ///
    /// Its driver is a task of `scope` that ends when the client is dropped, and not when the scope stops:
    /// drop the client before the scope is drained.
    ///
    /// # Errors
    /// Errors of connecting.
    pub async fn connect(&self, application_name: &str, scope: &Scope) -> Result<Client, Error> {
        Ok(self.outside_the_pool(application_name, scope).await?.0)
    }

    async fn outside_the_pool(&self, application_name: &str, scope: &Scope) -> Result<(Client, bool), Error> {
        let Inner { target, connect_timeout, sessions, .. } = &*self.inner;
        connect::connect(target, application_name, *connect_timeout, scope, sessions).await
    }

    /// Whether the database answers and accepts writes.
    ///
    /// If the newest session is read-only, a new one is tried: each session keeps the default at its login,
    /// so only a new one shows that the database is writable again.
    ///
    /// # Errors
    /// Errors of connecting, and [`Error::Query`].
    pub async fn is_writable(&self) -> Result<bool, Error> {
        if self.inner.sessions.newest_is_read_only() {
            // The driver's task ends with the client, so the scope needs no draining.
            let (_client, read_only) = self.outside_the_pool("convoke health", &Scope::default()).await?;
            return Ok(!read_only);
        }
        let messages = self.client().await?.simple_query("show transaction_read_only").await?;
        let read_only = messages.iter().any(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0) == Some("on"),
            _ => false,
        });
        Ok(!read_only)
    }

    /// Like [`Database::connect`], with the notifications of the channels that the client `listen`s to.
    ///
    /// A receiver that is not read blocks the connection after 1,024 notifications, statements included. It
    /// ends when the connection is lost.
    ///
    /// # Errors
    /// Errors of connecting.
    pub async fn listen(
        &self,
        application_name: &str,
        scope: &Scope,
    ) -> Result<(Client, mpsc::Receiver<Notification>), Error> {
        let Inner { target, connect_timeout, sessions, .. } = &*self.inner;
        connect::listen(target, application_name, *connect_timeout, scope, sessions).await
    }

    /// Address, role and password of the database.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.inner.target
    }

    /// A URL with which other programs can connect. Contains the password.
    #[must_use]
    pub fn url(&self) -> String {
        self.inner.url.expose_secret().to_owned()
    }

    /// The URL with `***` for the password, for logs and people.
    #[must_use]
    pub fn url_redacted(&self) -> String {
        Target::parse(self.inner.url.expose_secret())
            .map_or_else(|_| self.inner.target.url_redacted(), |target| target.url_redacted())
    }

    /// Whether the daemon runs the server itself.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.inner.private.is_some()
    }

    /// Closes the pool, stops the private server and unlocks the data folder. Idempotent.
    ///
    /// Running statements are canceled. Takes up to [`private::STOP_TIMEOUT`] if the server is busy.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the server did not stop.
    pub async fn stop(&self) -> Result<(), Error> {
        self.inner.pool.close();
        match &self.inner.private {
            Some(private) => private.stop().await,
            None => Ok(()),
        }
    }
}
