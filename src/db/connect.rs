//! Connections, pooled and not, and the causes of failed ones.
use super::{
    Config, Error, Target,
    session::{self, Adjusted},
};
use crate::scope::{OnExit, Scope, lower_priority_of_process};
use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Metrics, Pool, QueueMode, RecyclingMethod,
    Runtime,
};
use parking_lot::Mutex;
use rustls::ClientConfig;
use std::{
    collections::HashSet,
    error::Error as _,
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::Instant,
};
use tokio_postgres::{AsyncMessage, Client, Connection, Notification, Socket, error::SqlState};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

/// How long a caller waits for a pooled connection.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// The text by which `explain_hook` recognizes a session that dropped the settings: a hook cannot return a
/// typed error.
const SETTINGS_DROPPED: &str = "settings dropped";

/// Most unread notifications; the connection is not read further until the receiver makes room
/// (backpressure).
const NOTIFICATIONS_MAX: usize = 1024;

/// A read-only pooled session older than this is replaced.
const READ_ONLY_AGE_MAX: Duration = Duration::from_secs(1);

/// State of the sessions of one database, shared by its pools.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Whether the newest session is read-only. Relaxed everywhere: a stale value costs one more attempt.
    read_only: AtomicBool,
}

impl Sessions {
    /// Whether the newest session is read-only. Older ones may differ, because each keeps the default at its
    /// login.
    pub(super) fn newest_is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    fn note(&self, adjusted: Adjusted) {
        self.read_only.store(adjusted.read_only, Ordering::Relaxed);
    }
}

/// What a pool does with each new session, after its settings.
#[derive(Clone, Copy, Default)]
pub(super) struct SessionSetup<'a> {
    /// Statements that it runs.
    pub(super) more: &'a str,
    /// Whether its server process, which must be one of this machine, gets a lower priority.
    pub(super) low_priority: bool,
}

/// Builds a pool.
pub(super) fn pool(
    config: &Config,
    target: &Target,
    application_name: &str,
    setup: SessionSetup<'_>,
    sessions: &Arc<Sessions>,
) -> Result<Pool, Error> {
    let timeout = config.statement_timeout.as_millis().to_string();
    // Statements are planned once for each connection, on tables that may be empty then and have millions of
    // rows later. So plans are generic, and a sequential scan is only used where no index fits.
    let own = [
        ("statement_timeout", timeout.clone()),
        ("idle_in_transaction_session_timeout", timeout),
        ("idle_session_timeout", "0".to_owned()),
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        ("enable_seqscan", "off".to_owned()),
        ("jit", "off".to_owned()),
    ];
    let mut driver = target.driver_config();
    driver.application_name(application_name).connect_timeout(config.connect_timeout);
    driver.options(session::options(target, &own));
    // Fast: no query at check-out. A dead connection is found by its driver; a half-open one by its first
    // query.
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(driver, tls(&target.tls), recycling);
    let read_only_since = ReadOnlySessions::default();
    Pool::builder(manager)
        .max_size(config.pool_size_max.max(1))
        // The session that was used last has the statements prepared, and its memory is warm.
        .queue_mode(QueueMode::Lifo)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(config.connect_timeout))
        .recycle_timeout(Some(config.connect_timeout))
        .runtime(Runtime::Tokio1)
        .post_create(set_up(setup, read_only_since.clone(), sessions.clone()))
        .pre_recycle(replace_read_only(read_only_since))
        .build()
        .map_err(|e| Error::Unfit(format!("the database pool cannot be built: {e}")))
}

/// Creation times of a pool's read-only sessions: the pool offers no other key for data about a session.
type ReadOnlySessions = Arc<Mutex<HashSet<Instant>>>;

fn set_up(setup: SessionSetup<'_>, read_only_since: ReadOnlySessions, sessions: Arc<Sessions>) -> Hook {
    let SessionSetup { more, low_priority } = setup;
    let adjust = format!("{}{more}", session::ADJUST);
    Hook::async_fn(move |client: &mut ClientWrapper, metrics: &Metrics| {
        let (adjust, read_only_since, sessions) = (adjust.clone(), read_only_since.clone(), sessions.clone());
        Box::pin(async move {
            let adjusted = client.simple_query(&adjust).await.map_err(HookError::Backend)?;
            let adjusted = Adjusted::of(&adjusted);
            if !adjusted.holds {
                return Err(HookError::message(SETTINGS_DROPPED));
            }
            sessions.note(adjusted);
            if adjusted.read_only {
                // The creation time identifies the session in later hooks.
                read_only_since.lock().insert(Instant::from_std(metrics.created));
            }
            if low_priority {
                let process = client.query_one("select pg_catalog.pg_backend_pid()", &[]).await;
                let process: i32 = process.and_then(|row| row.try_get(0)).map_err(HookError::Backend)?;
                u32::try_from(process).into_iter().for_each(lower_priority_of_process);
            }
            Ok(())
        })
    })
}

/// Replaces read-only sessions: each keeps the default at its login, so only a new one can write again.
fn replace_read_only(read_only_since: ReadOnlySessions) -> Hook {
    Hook::sync_fn(move |_: &mut ClientWrapper, metrics: &Metrics| {
        let made = Instant::from_std(metrics.created);
        let mut read_only_since = read_only_since.lock();
        if made.elapsed() < READ_ONLY_AGE_MAX || !read_only_since.contains(&made) {
            return Ok(());
        }
        read_only_since.remove(&made);
        Err(HookError::message("the session is read-only"))
    })
}

/// Opens a connection outside the pools; returns whether it is read-only.
pub(super) async fn connect(
    target: &Target,
    application_name: &str,
    within: Duration,
    scope: &Scope,
    sessions: &Sessions,
) -> Result<(Client, bool), Error> {
    let (client, connection) = attempt(target, application_name, within).await?;
    scope.spawn("database connection", OnExit::Log, |_| async move {
        if let Err(error) = connection.await {
            debug!(%error, "database connection lost");
        }
        Ok(())
    });
    let adjusted = adjust(target, &client, within, sessions).await?;
    Ok((client, adjusted.read_only))
}

/// Like [`connect`], for a database that has no pool.
pub(super) async fn connect_apart(
    target: &Target,
    application_name: &str,
    within: Duration,
    scope: &Scope,
) -> Result<Client, Error> {
    Ok(connect(target, application_name, within, scope, &Sessions::default()).await?.0)
}

async fn adjust(
    target: &Target,
    client: &Client,
    within: Duration,
    sessions: &Sessions,
) -> Result<Adjusted, Error> {
    let set = tokio::time::timeout(within, client.simple_query(session::ADJUST));
    let set = set.await.map_err(|_| timed_out(target, within))?;
    let adjusted = Adjusted::of(&set.map_err(|e| explain(target, e))?);
    if !adjusted.holds {
        return Err(session::settings_dropped(target));
    }
    sessions.note(adjusted);
    Ok(adjusted)
}

/// Like [`connect`], and returns the notifications.
pub(super) async fn listen(
    target: &Target,
    application_name: &str,
    within: Duration,
    scope: &Scope,
    sessions: &Sessions,
) -> Result<(Client, mpsc::Receiver<Notification>), Error> {
    let (client, mut connection) = attempt(target, application_name, within).await?;
    let (sender, receiver) = mpsc::channel(NOTIFICATIONS_MAX);
    scope.spawn("database listener", OnExit::Log, |_| async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                // Not sent if the receiver was dropped. The client may still be in use, so the connection is
                // driven further.
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
    adjust(target, &client, within, sessions).await?;
    Ok((client, receiver))
}

async fn attempt(
    target: &Target,
    application_name: &str,
    within: Duration,
) -> Result<(Client, Connection<Socket, impl AsyncRead + AsyncWrite + Unpin + Send + use<>>), Error> {
    let mut driver = target.driver_config();
    driver.application_name(application_name).connect_timeout(within);
    // Without timeouts: these connections hold locks, listen, and run long statements.
    let own = ["statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"];
    driver.options(session::options(target, &own.map(|name| (name, "0".to_owned()))));
    let attempt = driver.connect(tls(&target.tls));
    let connected = tokio::time::timeout(within, attempt).await.map_err(|_| timed_out(target, within))?;
    connected.map_err(|e| explain(target, e))
}

pub(super) fn timed_out(target: &Target, within: Duration) -> Error {
    let source = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}"));
    Error::Unreachable { address: target.address(), source }
}

/// Classifies a failed attempt to connect.
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
            // PostgreSQL itself accepts every startup parameter that the driver sends.
            SqlState::PROTOCOL_VIOLATION => {
                Error::Pooler { address, lacks: "refuses the settings of a session" }
            }
            SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => {
                let reason = source.as_db_error().map_or_else(String::new, |e| e.message().to_owned());
                // The server starts, recovers or stops: callers recognize this by `ResourceBusy`.
                let source = io::Error::new(io::ErrorKind::ResourceBusy, reason);
                Error::Unreachable { address, source }
            }
            _ => Error::Query(source),
        };
    }
    // The driver keeps its error kinds private, so its texts are the only way to tell them apart.
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
        HookError::Message(text) if text == SETTINGS_DROPPED => session::settings_dropped(target),
        HookError::Message(e) => Error::Unfit(format!("a database connection could not be set up: {e}")),
    }
}

/// Quotes an SQL identifier.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn tls(config: &Arc<ClientConfig>) -> MakeRustlsConnect {
    MakeRustlsConnect::new(ClientConfig::clone(config))
}
