//! A small pool of connections for checks, apart from the daemon's pool, with prepared statements.
//!
//! Statements are prepared with the daemon's role and run with the viewer's, because Postgres resolves the
//! names in a policy when it is created and not when it is used: a viewer needs no right to the schema of a
//! function that a policy calls.
use super::plan::PolicyQuery;
use crate::{
    db::{self, Database},
    scope::Scope,
};
use futures_util::FutureExt;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::{Client, Error, Statement, types::Type};

/// Most prepared statements of one connection; at the limit all are evicted.
const STATEMENTS_MAX: usize = 1000;
/// First pause between attempts to connect; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Settings of each connection. A custom plan for each run, or JIT, costs more than the check itself.
/// Policies see the default time zone of the database.
const SETTINGS: &str = "reset timezone; set plan_cache_mode = force_generic_plan; set jit = off; \
    set default_transaction_read_only = on; set idle_in_transaction_session_timeout = '1min'";

/// Sets the role and the settings that policies read, like `PostgREST` does.
const SET_ROLE: &str = "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true), \
    set_config('request.jwt.claim.role', $1, true), set_config('request.jwt.claim.sub', $3, true)";

/// The pool. One check at a time uses a connection.
#[derive(Debug)]
pub(super) struct Sessions {
    database: Database,
    scope: Scope,
    free: Mutex<Vec<Session>>,
    permits: Semaphore,
}

/// A connection with its prepared statements.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    /// Sets role, claims and `sub` until the transaction ends.
    pub(super) set_role: Statement,
    statements: HashMap<u64, Statement>,
    /// The prepared statements of the fingerprint check, after their first uses: with known held roles, and without.
    pub(super) fingerprint: Option<Statement>,
    pub(super) first_fingerprint: Option<Statement>,
}

/// A borrowed connection. [`Lent::give_back`] returns it after its transaction, [`Lent::give_back_idle`] after statements
/// outside of one; dropping it closes the connection.
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

    /// Borrows a connection. Waits while all are in use, and while the database is unavailable.
    pub(super) async fn lend(&self) -> Lent<'_> {
        let permit = loop {
            // The semaphore is never closed, so the error cannot occur.
            match self.permits.acquire().await {
                Ok(permit) => break permit,
                Err(_) => std::future::pending().await,
            }
        };
        // Taken while the permit is held, so at most as many connections exist as there are permits.
        let free = self.free.lock().pop();
        let session = match free {
            Some(session) if !session.client.is_closed() => session,
            _ => self.connect().await,
        };
        Lent { session, sessions: self, _permit: permit }
    }

    /// Closes the idle connections, so that the scope can end.
    pub(super) fn close(&self) {
        self.free.lock().clear();
    }

    async fn connect(&self) -> Session {
        let mut pause = PAUSE;
        let mut logged = false;
        loop {
            match self.open().await {
                Ok(session) => return session,
                Err(error) if !logged => {
                    // Logged once for each outage, not for each attempt.
                    logged = true;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "row checks are waiting for the database"
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
        let set_role = client.prepare_typed(SET_ROLE, &[Type::TEXT, Type::TEXT, Type::TEXT]).await?;
        Ok(Session {
            client,
            set_role,
            statements: HashMap::new(),
            fingerprint: None,
            first_fingerprint: None,
        })
    }
}

impl Session {
    /// Returns the query's prepared statement. Call it outside a transaction, with the daemon's own role.
    pub(super) async fn prepare(&mut self, query: &Arc<PolicyQuery>) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(&query.id) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare_typed(&query.sql, &[Type::TEXT_ARRAY]).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(query.id, statement.clone());
        Ok(statement)
    }

    /// Evicts the query's statement, so that the next `prepare` resolves its names anew; false if there was
    /// none.
    pub(super) fn forget(&mut self, query: &PolicyQuery) -> bool {
        self.statements.remove(&query.id).is_some()
    }

    /// Queues a rollback without waiting for the answer: Postgres runs it before whatever is sent next.
    pub(super) fn roll_back(&self) {
        let _ = self.client.batch_execute("rollback").now_or_never();
    }
}

impl Lent<'_> {
    /// Ends the transaction and returns the connection to the pool.
    pub(super) fn give_back(self) {
        self.session.roll_back();
        self.give_back_idle();
    }

    /// Returns a connection without a transaction to the pool.
    pub(super) fn give_back_idle(self) {
        // Checked under the lock that `close` takes: after a stop no connection is added that `close` has
        // missed.
        let mut free = self.sessions.free.lock();
        if !self.sessions.scope.stopping().is_cancelled() && !self.session.client.is_closed() {
            free.push(self.session);
        }
    }
}
