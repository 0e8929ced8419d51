//! Connections for checks: few, apart from the pool, with the statements that they have prepared.
//!
//! Statements are prepared as the daemon's role and run as the viewer's, as Postgres reads a policy
//! when it is made and not when it is used: a viewer needs no right to the schema of a function that a
//! policy calls.
use super::plan::Question;
use crate::{
    db::{self, Database},
    scope::Scope,
};
use futures_util::FutureExt;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::{Client, Error, Statement, types::Type};

/// Statements that one connection keeps prepared; with more it forgets them all.
const STATEMENTS_MAX: usize = 1000;
/// The first pause before another try to connect; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A plan that is made anew for each run costs more than the check, as does compiling it.
const SETTINGS: &str = "set plan_cache_mode = force_generic_plan; set jit = off; \
    set default_transaction_read_only = on; set idle_in_transaction_session_timeout = '1min'";

/// Policies see these, as they do behind PostgREST.
const DRESS: &str = "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true), \
    set_config('request.jwt.claim.role', $1, true), set_config('request.jwt.claim.sub', $3, true)";

/// The connections; each is used by one check at a time.
#[derive(Debug)]
pub(super) struct Sessions {
    database: Database,
    scope: Scope,
    free: Mutex<Vec<Session>>,
    permits: Semaphore,
}

/// A connection, and what it has prepared.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    /// Becomes the viewer until the transaction ends: role, all claims, `sub`.
    pub(super) dress: Statement,
    statements: HashMap<u64, Statement>,
}

/// A connection on loan; [`Lent::give_back`] it once its transaction is over, or it is closed.
pub(super) struct Lent<'a> {
    pub(super) session: Session,
    sessions: &'a Sessions,
    _permit: SemaphorePermit<'a>,
}

impl Sessions {
    pub(super) fn new(scope: &Scope, database: Database, size: usize) -> Self {
        let permits = Semaphore::new(size.max(1));
        Self { database, scope: scope.clone(), free: Mutex::default(), permits }
    }

    /// A connection; waits while all are in use, and while the database is away.
    pub(super) async fn lend(&self) -> Lent<'_> {
        let permit = loop {
            // The semaphore is never closed.
            match self.permits.acquire().await {
                Ok(permit) => break permit,
                Err(_) => std::future::pending().await,
            }
        };
        let free = self.free.lock().pop();
        let session = match free {
            Some(session) if !session.client.is_closed() => session,
            _ => self.connect().await,
        };
        Lent { session, sessions: self, _permit: permit }
    }

    /// Lets go of the connections that nobody uses: the scope cannot end before them.
    pub(super) fn close(&self) {
        self.free.lock().clear();
    }

    async fn connect(&self) -> Session {
        let mut pause = PAUSE;
        let mut told = false;
        loop {
            match self.open().await {
                Ok(session) => return session,
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "row checks wait for the database"
                    );
                }
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn open(&self) -> Result<Session, db::Error> {
        let client = self.database.connect("convoke row checks", &self.scope).await?;
        client.batch_execute(SETTINGS).await?;
        let dress = client.prepare_typed(DRESS, &[Type::TEXT, Type::TEXT, Type::TEXT]).await?;
        Ok(Session { client, dress, statements: HashMap::new() })
    }
}

impl Session {
    /// The question's statement; must be called outside a transaction, as the daemon's own role.
    pub(super) async fn prepare(&mut self, question: &Arc<Question>) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(&question.id) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare_typed(&question.sql, &[Type::TEXT_ARRAY]).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(question.id, statement.clone());
        Ok(statement)
    }

    /// Forgets the question's statement, so that it is read again as the daemon's own role.
    pub(super) fn forget(&mut self, question: &Question) -> bool {
        self.statements.remove(&question.id).is_some()
    }

    /// Ends the transaction without waiting for it: what is sent next comes after it.
    pub(super) fn roll_back(&self) {
        let _ = self.client.batch_execute("rollback").now_or_never();
    }
}

impl Lent<'_> {
    /// Ends the transaction and lets others use the connection.
    pub(super) fn give_back(self) {
        self.session.roll_back();
        // Under the lock: after a stop none is added behind the back of `close`.
        let mut free = self.sessions.free.lock();
        if !self.sessions.scope.stopping().is_cancelled() && !self.session.client.is_closed() {
            free.push(self.session);
        }
    }
}
