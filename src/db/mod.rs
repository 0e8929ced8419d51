//! The one PostgreSQL of the daemon: an outside one, or a private one of its own.
//!
//! Owns the pool, transactions with retry, connections outside the pool, the
//! migrations of schema `convoke`, the look at what a server lacks, and the
//! private server's whole life. Never knows a table of another module. Fails with
//! [`Error`], whose variants say what the caller or the operator can do. A lost
//! server is not an end: calls fail as transient until it is back.
mod config;
mod connect;
mod error;
mod inspect;
mod migrate;
pub mod private;
mod target;
mod tls;
mod transaction;

pub use config::Config;
pub use error::{Error, is_transient};
pub use inspect::{Finding, inspect};
pub use migrate::{Migrated, migrate};
pub use target::{Host, Target, TlsMode};
pub use transaction::Transaction;

use crate::scope::Scope;
use deadpool_postgres::{Object, Pool, PoolError, TimeoutType};
use private::Private;
use secrecy::{ExposeSecret, SecretString};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_postgres::{Client, Notification};

/// A database that can be used. Clones name the same pool and the same server.
///
/// When the last clone is dropped without [`Database::stop`], the private server is told to stop,
/// but nobody waits for it.
#[derive(Clone, Debug)]
pub struct Database {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    target: Target,
    url: SecretString,
    pool: Pool,
    connect_timeout: Duration,
    private: Option<Private>,
}

impl Database {
    /// Connects to `config.url`; without one, starts the private PostgreSQL under `config.data_dir`
    /// (or takes over the one that a killed daemon left running) and connects to that.
    ///
    /// `scope` gets the task that watches the private server. Making a new private server takes some
    /// seconds, everything else well under one.
    ///
    /// # Errors
    /// Every variant but the ones of statements and migrations; nothing is left running.
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

    /// Connects to the database of a daemon that runs now, and never starts or stops a server: to
    /// `config.url`, else to the private PostgreSQL that runs under `config.data_dir`.
    ///
    /// # Errors
    /// [`Error::File`] when no private PostgreSQL has run there, and those of connecting.
    pub async fn attach(config: &Config) -> Result<Self, Error> {
        let url = match &config.url {
            Some(url) => url.clone(),
            None => private::left_url(&config.data_dir)?,
        };
        Self::build(config, Target::parse(url.expose_secret())?, url, None).await
    }

    async fn build(
        config: &Config,
        target: Target,
        url: SecretString,
        private: Option<Private>,
    ) -> Result<Self, Error> {
        let pool = connect::pool(config, &target, "convoke")?;
        let connect_timeout = config.connect_timeout;
        let database = Self { inner: Arc::new(Inner { target, url, pool, connect_timeout, private }) };
        // The first connection tells a wrong password now and not at the first request.
        drop(database.client().await?);
        Ok(database)
    }

    /// The same database with a pool of its own, for work that must not take connections from the rest. It
    /// connects when it is first used; the server is not its to stop.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the pool cannot be built.
    pub fn beside(
        &self,
        application_name: &str,
        size_max: usize,
        statement_timeout: Duration,
    ) -> Result<Self, Error> {
        let (target, url) = (self.inner.target.clone(), self.inner.url.clone());
        let connect_timeout = self.inner.connect_timeout;
        let config =
            Config { pool_size_max: size_max, statement_timeout, connect_timeout, ..Config::default() };
        let pool = connect::pool(&config, &target, application_name)?;
        Ok(Self { inner: Arc::new(Inner { target, url, pool, connect_timeout, private: None }) })
    }

    /// A connection of the pool, with `database.statement_timeout` set; it goes back when dropped.
    ///
    /// # Errors
    /// [`Error::Busy`] when none became free in time, and those of connecting.
    pub async fn client(&self) -> Result<Object, Error> {
        self.inner.pool.get().await.map_err(|e| match e {
            PoolError::Timeout(TimeoutType::Wait) => Error::Busy(connect::WAIT),
            PoolError::Timeout(_) => connect::timed_out(&self.inner.target, self.inner.connect_timeout),
            PoolError::Backend(e) => connect::explain(&self.inner.target, e),
            PoolError::PostCreateHook(e) => connect::explain_hook(&self.inner.target, e),
            PoolError::Closed | PoolError::NoRuntimeSpecified => Error::Closed,
        })
    }

    /// A connection outside the pool, for locks, listening and long statements: no statement timeout.
    ///
    /// Its driver is a task of `scope` that ends when the client is dropped, whether the scope stops
    /// or not: drop the client before the scope is drained.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn connect(&self, application_name: &str, scope: &Scope) -> Result<Client, Error> {
        connect::connect(&self.inner.target, application_name, self.inner.connect_timeout, scope).await
    }

    /// Like [`Database::connect`], with what arrives for the channels that the client `listen`s to.
    ///
    /// A reader that does not read holds up the connection, statements included. The receiver ends when
    /// the connection is lost.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn listen(
        &self,
        application_name: &str,
        scope: &Scope,
    ) -> Result<(Client, mpsc::Receiver<Notification>), Error> {
        connect::listen(&self.inner.target, application_name, self.inner.connect_timeout, scope).await
    }

    /// Where the database is and how one gets in.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.inner.target
    }

    /// A URL that other programs can connect with: it holds the password.
    #[must_use]
    pub fn url(&self) -> String {
        self.inner.url.expose_secret().to_owned()
    }

    /// The URL with `***` for the password: for logs and people.
    #[must_use]
    pub fn url_redacted(&self) -> String {
        Target::parse(self.inner.url.expose_secret())
            .map_or_else(|_| self.inner.target.url_redacted(), |target| target.url_redacted())
    }

    /// Whether the server is the daemon's own.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.inner.private.is_some()
    }

    /// Closes the pool, stops the private server and lets go of the data folder. A second call does nothing.
    ///
    /// Running statements are cut off. Takes up to [`private::STOP_TIMEOUT`] when the server is busy.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the server did not stop at all.
    pub async fn stop(&self) -> Result<(), Error> {
        self.inner.pool.close();
        match &self.inner.private {
            Some(private) => private.stop().await,
            None => Ok(()),
        }
    }
}
