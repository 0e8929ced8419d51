//! Selects that others write, each in a session of its own under a login role of its own.
//!
//! A select can call functions: it can become any role of which its session's user is a member, change settings, and
//! take locks that outlive its transaction. So the session never belongs to the daemon's role, and none is used twice.
//! The text is one statement of the extended protocol, behind `declare … cursor for`, whose grammar admits `select`
//! and `values` only; there is no list of forbidden words. The transaction is read-only and always rolled back, so
//! that notifications and logical messages of the select are never sent. The bytes of the connection are counted,
//! because one value can have a gigabyte. Before each select the role is checked: it may have changed since the last.
use super::{Database, Error, Target, connect, session};
use parking_lot::Mutex;
use secrecy::SecretString;
use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{CancelToken, Client, SimpleQueryMessage, error::ErrorPosition, tls::MakeTlsConnect};

/// Concurrent selects of a role.
const SESSIONS_MAX: usize = 2;
/// Rows that are made at a time, so that those beyond the limit of bytes are not made.
const BATCH: usize = 10;
/// Most bytes that a session may receive: one value over it ends the session.
const RECEIVED_BYTES_MAX: usize = 4 << 20;
/// How long a select waits for a lock.
const LOCK_TIMEOUT: &str = "1s";
/// Time limit of a connection, and of the request to cancel a select.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads from one database. Clones share the limit of sessions.
#[derive(Clone, Debug)]
pub struct Reader {
    target: Target,
    places: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

/// Who reads, and within which limits.
#[derive(Clone, Debug)]
pub struct Reading<'a> {
    /// The login role.
    pub role: &'a str,
    /// Its password, if it has one.
    pub password: Option<SecretString>,
    /// Shown in `pg_stat_activity`.
    pub application_name: &'a str,
    /// Time limit of the select.
    pub timeout: Duration,
    /// Most rows.
    pub rows_max: usize,
    /// Most bytes of their values.
    pub bytes_max: usize,
}

/// The rows of a select, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRows {
    /// The names of the columns, which need not be unique.
    pub columns: Vec<String>,
    /// Values in the form that `psql` prints; `None` for null.
    pub rows: Vec<Vec<Option<String>>>,
    /// Whether there were more.
    pub more: bool,
}

/// Why a select has no rows.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The role has rights that no reader may have.
    #[error("role unfit for reading: {0}")]
    Unfit(String),
    /// Postgres refused the statement.
    #[error("SQLSTATE {sqlstate}")]
    Refused {
        /// The SQLSTATE.
        sqlstate: String,
        /// The position in the statement, in characters from 1.
        position: Option<u32>,
        /// The message, which may contain values of rows.
        message: String,
    },
    /// A row is too large.
    #[error("the rows are over {RECEIVED_BYTES_MAX} bytes")]
    TooLarge,
    /// No end in time.
    #[error("no end within {0:?}")]
    Late(Duration),
    /// The role cannot log in, or the database is not available.
    #[error(transparent)]
    Connect(Error),
}

impl Reader {
    /// A reader of the database to which the daemon connects.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self { target, places: Arc::default() }
    }

    /// Checks the role as [`Self::read`] does.
    ///
    /// # Errors
    /// All but those of a statement.
    pub async fn check(&self, reading: &Reading<'_>) -> Result<(), ReadError> {
        self.within(reading, None).await.map(drop)
    }

    /// Runs one select and returns its rows. Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, reading: &Reading<'_>, statement: &str) -> Result<ReadRows, ReadError> {
        let rows = self.within(reading, Some(statement)).await?;
        Ok(rows.unwrap_or(ReadRows { columns: Vec::new(), rows: Vec::new(), more: false }))
    }

    /// The functions that a role may execute although they do more than read: their effects are not stopped by a
    /// transaction that only reads, or they run with the rights of another role.
    ///
    /// # Errors
    /// Errors of connecting, and [`Error::Query`], also if there is no such role.
    pub async fn reach(database: &Database, role: &str) -> Result<Vec<String>, Error> {
        let rows = database.client().await?.query(include_str!("sql/reader_reach.sql"), &[&role]).await?;
        rows.iter().map(|row| row.try_get(0).map_err(Error::Query)).collect()
    }

    fn places_of(&self, role: &str) -> Arc<Semaphore> {
        let mut places = self.places.lock();
        places.entry(role.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(SESSIONS_MAX))).clone()
    }

    async fn within(
        &self,
        reading: &Reading<'_>,
        statement: Option<&str>,
    ) -> Result<Option<ReadRows>, ReadError> {
        // Longer than the server's own limit, which gives the better answer.
        let deadline = Instant::now() + reading.timeout * 2;
        let late = || ReadError::Late(reading.timeout);
        let place = timeout_at(deadline, self.places_of(reading.role).acquire_owned()).await;
        let place = place.map_err(|_| late())?;
        let _place = place.map_err(|_| late())?;
        let target = self.target.with_login(reading.role, reading.password.clone());
        let over = Arc::new(AtomicBool::new(false));
        let stream = timeout(CONNECT_TIMEOUT, open(&target, over.clone())).await;
        let stream = stream.map_err(|_| ReadError::Connect(connect::timed_out(&target, CONNECT_TIMEOUT)))?;
        let stream = stream
            .map_err(|source| ReadError::Connect(Error::Unreachable { address: target.address(), source }))?;
        let mut driver = target.driver_config();
        driver.application_name(reading.application_name);
        driver.options(session::options(&target, &settings(reading.timeout)));
        let tls = tls(&target)?;
        let connected = timeout(CONNECT_TIMEOUT, driver.connect_raw(stream, tls)).await;
        let connected =
            connected.map_err(|_| ReadError::Connect(connect::timed_out(&target, CONNECT_TIMEOUT)))?;
        let (client, connection) = connected.map_err(|e| ReadError::Connect(connect::explain(&target, e)))?;
        // Driven here and not in a task of its own: whoever drops this future closes the socket.
        let work = async {
            check_role(&client, &self.target.user).await?;
            match statement {
                Some(statement) => Ok(Some(select(&client, reading, statement).await?)),
                None => Ok(None),
            }
        };
        let found = tokio::select! {
            biased;
            found = timeout_at(deadline, work) => found,
            ended = connection => Ok(Err(match ended {
                Err(e) => refused(&e, ""),
                Ok(()) => ReadError::Connect(Error::Closed),
            })),
        };
        match found {
            _ if over.load(Ordering::Relaxed) => Err(ReadError::TooLarge),
            Ok(found) => found,
            Err(_) => {
                // A select can have switched its own time limit off; the server then runs it without reader.
                let _ = timeout(CONNECT_TIMEOUT, cancel(&target, client.cancel_token())).await;
                Err(late())
            }
        }
    }
}

fn settings(timeout: Duration) -> [(&'static str, String); 5] {
    let timeout = timeout.as_millis().max(1).to_string();
    [
        ("statement_timeout", timeout.clone()),
        ("idle_in_transaction_session_timeout", timeout),
        ("lock_timeout", LOCK_TIMEOUT.to_owned()),
        ("search_path", "public".to_owned()),
        ("timezone", "UTC".to_owned()),
    ]
}

async fn check_role(client: &Client, daemon: &str) -> Result<(), ReadError> {
    let row = client.query_one(include_str!("sql/reader_unfit.sql"), &[&daemon]).await;
    let row = row.map_err(|e| ReadError::Connect(Error::Query(e)))?;
    match row.try_get::<_, Option<String>>(0).map_err(|e| ReadError::Connect(Error::Query(e)))? {
        Some(unfit) => Err(ReadError::Unfit(unfit)),
        None => Ok(()),
    }
}

async fn select(client: &Client, reading: &Reading<'_>, statement: &str) -> Result<ReadRows, ReadError> {
    let before = "declare found no scroll cursor for ";
    let of_ours = |e: tokio_postgres::Error| refused(&e, "");
    client.batch_execute("begin transaction read only").await.map_err(of_ours)?;
    // Prepared, and so of the extended protocol: a second statement in the text is a syntax error. It takes no
    // parameters.
    let declare = client.prepare(&format!("{before}{statement}")).await.map_err(|e| refused(&e, before))?;
    if !declare.params().is_empty() {
        let (sqlstate, message) = ("42P02".to_owned(), "there are no parameters".to_owned());
        return Err(ReadError::Refused { sqlstate, position: None, message });
    }
    client.execute(&declare, &[]).await.map_err(|e| refused(&e, before))?;
    let (mut found, mut bytes) = (ReadRows { columns: Vec::new(), rows: Vec::new(), more: false }, 0);
    loop {
        // Set again for each part, because the part before may have changed them.
        let [(_, limit), ..] = settings(reading.timeout);
        let limits = format!(
            "set local statement_timeout = {limit}; set local idle_in_transaction_session_timeout = {limit}; \
             set local lock_timeout = '{LOCK_TIMEOUT}'"
        );
        client.batch_execute(&limits).await.map_err(of_ours)?;
        let part = client.simple_query(&format!("fetch {BATCH} from found")).await.map_err(of_ours)?;
        let mut rows = 0;
        for message in part {
            match message {
                SimpleQueryMessage::RowDescription(columns) if found.columns.is_empty() => {
                    found.columns = columns.iter().map(|column| column.name().to_owned()).collect();
                }
                SimpleQueryMessage::Row(row) => {
                    rows += 1;
                    let values: Vec<Option<String>> =
                        (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect();
                    bytes += values.iter().flatten().map(String::len).sum::<usize>();
                    if found.rows.len() == reading.rows_max || bytes > reading.bytes_max {
                        found.more = true;
                        return Ok(found);
                    }
                    found.rows.push(values);
                }
                _ => {}
            }
        }
        if rows < BATCH {
            return Ok(found);
        }
    }
}

/// Classifies an error. `before` is the text before the statement, which is not counted in the position.
fn refused(error: &tokio_postgres::Error, before: &str) -> ReadError {
    let Some(db) = error.as_db_error() else {
        let source = io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string());
        return ReadError::Connect(Error::Unreachable { address: "the database".into(), source });
    };
    let skipped = u32::try_from(before.len()).unwrap_or(u32::MAX);
    let position = match db.position() {
        Some(ErrorPosition::Original(at)) if !before.is_empty() => at.checked_sub(skipped),
        _ => None,
    };
    let sqlstate = db.code().code().to_owned();
    ReadError::Refused { sqlstate, position, message: db.message().to_owned() }
}

async fn cancel(target: &Target, token: CancelToken) {
    if let (Ok(stream), Ok(tls)) = (open(target, Arc::default()).await, tls(target)) {
        let _ = token.cancel_query_raw(stream, tls).await;
    }
}

type TlsOf = <tokio_postgres_rustls::MakeRustlsConnect as MakeTlsConnect<Counted>>::TlsConnect;

fn tls(target: &Target) -> Result<TlsOf, ReadError> {
    let name = match &target.host {
        super::Host::Tcp(name) => name.as_str(),
        super::Host::Unix(_) => "localhost",
    };
    let connect = MakeTlsConnect::<Counted>::make_tls_connect(&mut connect::tls(&target.tls), name);
    connect.map_err(|e| ReadError::Connect(Error::Unfit(format!("TLS cannot be set up: {e}"))))
}

/// A connection that fails after so many bytes were received.
struct Counted {
    stream: Box<dyn Duplex>,
    left: usize,
    over: Arc<AtomicBool>,
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

async fn open(target: &Target, over: Arc<AtomicBool>) -> io::Result<Counted> {
    let stream: Box<dyn Duplex> = match &target.host {
        super::Host::Tcp(name) => {
            let stream = TcpStream::connect((name.as_str(), target.port)).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        super::Host::Unix(folder) => {
            Box::new(UnixStream::connect(folder.join(format!(".s.PGSQL.{}", target.port))).await?)
        }
    };
    Ok(Counted { stream, left: RECEIVED_BYTES_MAX, over })
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        match self.left.checked_sub(buf.filled().len() - before) {
            Some(left) => self.left = left,
            None => {
                self.over.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::Error::other("too many bytes")));
            }
        }
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
