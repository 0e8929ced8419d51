//! Connecting, pooled and not, and saying why it did not work.
use super::{Config, Error, Target};
use crate::scope::{OnExit, Scope};
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::ClientConfig;
use std::{error::Error as _, future::poll_fn, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_postgres::{AsyncMessage, Client, Connection, Notification, Socket, error::SqlState};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

/// How long a caller waits for a pooled connection to become free.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// How many notifications wait for their reader before the connection is read no further.
const NOTIFICATIONS_MAX: usize = 1024;

pub(super) fn pool(config: &Config, target: &Target, application_name: &str) -> Result<Pool, Error> {
    let mut driver = target.driver_config();
    driver.application_name(application_name).connect_timeout(config.connect_timeout);
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(driver, tls(&target.tls), recycling);
    // Statements are planned once a connection, on tables that may be empty then and have millions of rows
    // later: reading a table from end to end is only for where no index will do.
    let settings = format!(
        "set statement_timeout = {0}; set idle_in_transaction_session_timeout = {0}; \
         set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set jit = off",
        config.statement_timeout.as_millis()
    );
    let set = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
        let settings = settings.clone();
        Box::pin(async move { client.batch_execute(&settings).await.map_err(HookError::Backend) })
    });
    Pool::builder(manager)
        .max_size(config.pool_size_max.max(1))
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(config.connect_timeout))
        .recycle_timeout(Some(config.connect_timeout))
        .runtime(Runtime::Tokio1)
        .post_create(set)
        .build()
        .map_err(|e| Error::Unfit(format!("the database pool cannot be built: {e}")))
}

pub(super) async fn connect(
    target: &Target,
    application_name: &str,
    within: Duration,
    scope: &Scope,
) -> Result<Client, Error> {
    let (client, connection) = attempt(target, application_name, within).await?;
    scope.spawn("database connection", OnExit::Log, |_| async move {
        if let Err(error) = connection.await {
            debug!(%error, "database connection lost");
        }
        Ok(())
    });
    Ok(client)
}

pub(super) async fn listen(
    target: &Target,
    application_name: &str,
    within: Duration,
    scope: &Scope,
) -> Result<(Client, mpsc::Receiver<Notification>), Error> {
    let (client, mut connection) = attempt(target, application_name, within).await?;
    let (sender, receiver) = mpsc::channel(NOTIFICATIONS_MAX);
    scope.spawn("database listener", OnExit::Log, |_| async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                // A reader that went away may still use the client.
                Ok(AsyncMessage::Notification(notification)) => drop(sender.send(notification).await),
                Ok(_) => {}
                Err(error) => {
                    debug!(%error, "database connection lost");
                    break;
                }
            }
        }
        Ok(())
    });
    Ok((client, receiver))
}

async fn attempt(
    target: &Target,
    application_name: &str,
    within: Duration,
) -> Result<(Client, Connection<Socket, impl AsyncRead + AsyncWrite + Unpin + Send + use<>>), Error> {
    let mut driver = target.driver_config();
    driver.application_name(application_name).connect_timeout(within);
    let attempt = driver.connect(tls(&target.tls));
    let connected = tokio::time::timeout(within, attempt).await.map_err(|_| timed_out(target, within))?;
    connected.map_err(|e| explain(target, e))
}

pub(super) fn timed_out(target: &Target, within: Duration) -> Error {
    let source = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}"));
    Error::Unreachable { address: target.address(), source }
}

/// What a failed attempt to connect means.
pub(super) fn explain(target: &Target, source: tokio_postgres::Error) -> Error {
    let (address, user) = (target.address(), target.user.clone());
    if let Some(code) = source.code().cloned() {
        return match code {
            SqlState::INVALID_PASSWORD => Error::WrongPassword { address, user, source },
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION => Error::Refused { address, user, source },
            SqlState::INSUFFICIENT_PRIVILEGE => Error::NoRight {
                role: user.clone(),
                lacks: format!("may not connect to database {}", target.database),
                remedy: format!("grant connect on database {} to {}", quote(&target.database), quote(&user)),
            },
            SqlState::INVALID_CATALOG_NAME => {
                Error::UnknownDatabase { address, name: target.database.clone() }
            }
            SqlState::TOO_MANY_CONNECTIONS => Error::TooManyConnections { address, source },
            SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => {
                let reason = source.as_db_error().map_or_else(String::new, |e| e.message().to_owned());
                // It starts, recovers or stops.
                let source = io::Error::new(io::ErrorKind::ResourceBusy, reason);
                Error::Unreachable { address, source }
            }
            _ => Error::Query(source),
        };
    }
    // The driver keeps its kinds private; what it prints is the only way to tell them apart.
    match source.to_string().as_str() {
        "invalid configuration" | "authentication error" => Error::WrongPassword { address, user, source },
        "error performing TLS handshake" => Error::Tls { address, source },
        text => {
            let kind = source.source().and_then(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
            let reason = source.source().map_or_else(|| text.to_owned(), ToString::to_string);
            let source = io::Error::new(kind.unwrap_or(io::ErrorKind::ConnectionAborted), reason);
            Error::Unreachable { address, source }
        }
    }
}

pub(super) fn explain_hook(target: &Target, error: HookError) -> Error {
    match error {
        HookError::Backend(e) => explain(target, e),
        HookError::Message(e) => Error::Unfit(format!("a database connection could not be set up: {e}")),
    }
}

/// An SQL identifier in quotes.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn tls(config: &Arc<ClientConfig>) -> MakeRustlsConnect {
    MakeRustlsConnect::new(ClientConfig::clone(config))
}
