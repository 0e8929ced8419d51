//! What a row change starts: exactly one task a change, however often it is replayed.
//!
//! The router hands over all that one or more transactions of the log start; one
//! statement records them in `convoke.wakes` and makes the tasks. A change that was
//! recorded before starts nothing. The caller confirms the log position only after
//! the commit.
use super::awards;
use super::rounds::Candidate;
use super::store::{self, run, sql};
use super::{AgentId, Burst, Error, Notice, Request, Shared, TaskState, Tasks, Update, burst, request};
use crate::{
    db,
    id::{Epoch, Lsn, OrgId, TaskId},
};
use deadpool_postgres::Transaction;
use serde_json::{Value, json};
use tokio_postgres::{Row, error::SqlState};
use uuid::Uuid;

/// A row change that an agent's `[[wake]]` asked for.
#[derive(Clone, Debug)]
pub struct Wake {
    /// Which `[[wake]]`: `<agent>#<index>`.
    pub trigger: String,
    /// Whose.
    pub agent: AgentId,
    /// In which org the task is made.
    pub org: OrgId,
    /// The commit that the change belongs to.
    pub lsn: Lsn,
    /// The change's place in that commit.
    pub index: u32,
    /// What it requests, or why no request could be made of the change.
    pub request: Result<Request, String>,
    /// How it is put together with others; nothing for a task of its own.
    pub burst: Option<Burst>,
}

impl Wake {
    /// The request, if it can be made.
    pub(super) fn checked(&self, shared: &Shared, asked: Request) -> Result<Request, String> {
        request::New::check(shared, &self.org, &self.trigger, asked.clone()).map_err(|e| e.to_string())?;
        Ok(asked)
    }
}

/// How often a task of such a request may be tried.
pub(super) fn attempts_max(shared: &Shared, request: &Request) -> i32 {
    let policy = shared.policy_for(&request.kind).with(&request.policy);
    policy.map_or(1, |policy| i32::try_from(policy.attempts_max).unwrap_or(i32::MAX))
}

impl Tasks {
    /// Records the wakes, makes their tasks, and awards them where nobody waits before them: one commit,
    /// which is on disk when this returns.
    ///
    /// A wake that the database does not take is recorded as failed, so that it holds up no others.
    ///
    /// # Errors
    /// `Unavailable` or `Internal`: not all were recorded; try again.
    pub async fn wake(&self, wakes: &[Wake]) -> Result<(), Error> {
        match self.wake_together(wakes).await {
            Err(Error::Internal(cause)) => {
                let sqlstate = cause.sqlstate().map(SqlState::code);
                tracing::warn!(sqlstate, wakes = wakes.len(), "wakes are recorded one by one");
                self.wake_alone(wakes).await
            }
            answer => answer,
        }
    }

    async fn wake_alone(&self, wakes: &[Wake]) -> Result<(), Error> {
        for wake in wakes {
            match self.wake_together(std::slice::from_ref(wake)).await {
                Err(Error::Internal(cause)) => {
                    // The database's own words may hold values of the row.
                    let sqlstate = cause.sqlstate().map(SqlState::code);
                    tracing::error!(sqlstate, trigger = wake.trigger, lsn = %wake.lsn, "a wake is refused");
                    let request = Err("the database does not take the request of this change".to_owned());
                    self.wake_together(&[Wake { request, burst: None, ..wake.clone() }]).await?;
                }
                answer => answer?,
            }
        }
        Ok(())
    }

    async fn wake_together(&self, wakes: &[Wake]) -> Result<(), Error> {
        let shared = &self.shared;
        let mut client = shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        let (together, alone): (Vec<&Wake>, Vec<&Wake>) = wakes.iter().partition(|wake| wake.burst.is_some());
        let ((), mut rows) =
            futures_util::future::try_join(store::relax(&tx), self.record(&tx, &alone)).await?;
        let gathered = burst::gather(shared, &tx, &together).await?;
        rows.extend(gathered.made);
        let doubt = shared.doubt();
        let made = rows.iter().map(|row| (row.get("class"), candidate(row))).collect();
        let written = awards::award_new(shared, &tx, made).await?;
        tx.commit().await.map_err(db::Error::from)?;
        doubt.dispel();
        shared.metrics.requested.inc_by(rows.len() as u64);
        shared.committed(rows.iter().filter_map(opened).collect(), gathered.pending);
        awards::tell(shared, written);
        store::flush(&client).await
    }

    async fn record(&self, tx: &Transaction<'_>, wakes: &[&Wake]) -> Result<Vec<Row>, Error> {
        if wakes.is_empty() {
            return Ok(Vec::new());
        }
        let checked = |wake: &&Wake| wake.checked(&self.shared, wake.request.clone()?);
        let requests: Vec<Result<Request, String>> = wakes.iter().map(checked).collect();
        let good = |at: usize| requests.get(at).and_then(|request| request.as_ref().ok());
        let each = |of: &dyn Fn(&Request) -> Value| -> Vec<Option<Value>> {
            (0..wakes.len()).map(|at| good(at).map(of)).collect()
        };
        let triggers: Vec<&str> = wakes.iter().map(|wake| wake.trigger.as_str()).collect();
        let agents: Vec<&str> = wakes.iter().map(|wake| wake.agent.as_str()).collect();
        let orgs: Vec<&str> = wakes.iter().map(|wake| wake.org.as_str()).collect();
        let lsns: Vec<i64> = wakes.iter().map(|wake| i64::try_from(wake.lsn.0).unwrap_or(i64::MAX)).collect();
        let indexes: Vec<i32> =
            wakes.iter().map(|wake| i32::try_from(wake.index).unwrap_or(i32::MAX)).collect();
        let ids: Vec<Uuid> = wakes.iter().map(|_| TaskId::generate().as_uuid()).collect();
        let kinds: Vec<Option<&str>> = (0..wakes.len()).map(|at| good(at).map(|r| r.kind.as_str())).collect();
        let needs = each(&|request| json!(request.requires));
        let needs: Vec<Value> = needs.into_iter().map(|needs| needs.unwrap_or_else(|| json!([]))).collect();
        let inputs = each(&|request| request.input.clone());
        let priorities: Vec<i16> = (0..wakes.len()).map(|at| good(at).map_or(0, |r| r.priority)).collect();
        let deadlines: Vec<Option<chrono::DateTime<chrono::Utc>>> =
            (0..wakes.len()).map(|at| good(at).and_then(|r| r.deadline)).collect();
        let policies = each(&|request| Value::Object(request.policy.clone()));
        let attempts: Vec<i32> = (0..wakes.len())
            .map(|at| good(at).map_or(1, |request| attempts_max(&self.shared, request)))
            .collect();
        let errors: Vec<Option<&str>> =
            requests.iter().map(|request| request.as_ref().err().map(String::as_str)).collect();
        run(
            tx,
            sql!("wake"),
            &[
                &triggers,
                &agents,
                &orgs,
                &lsns,
                &indexes,
                &ids,
                &kinds,
                &needs,
                &inputs,
                &priorities,
                &deadlines,
                &policies,
                &attempts,
                &errors,
            ],
        )
        .await
    }
}

pub(super) fn candidate(row: &Row) -> Candidate {
    Candidate {
        id: TaskId::from(row.get::<_, Uuid>("id")),
        org: row.get("org"),
        kind: row.get("kind"),
        requires: row.get("requires"),
        round: 0,
        rounds_empty: 0,
        facts: Candidate::open_facts(0),
        policy: row.get("policy"),
        requester: row.get("requester"),
        tried: Vec::new(),
        prefer: None,
    }
}

pub(super) fn opened(row: &Row) -> Option<Notice> {
    Some(Notice::Updated(Update {
        id: TaskId::from(row.get::<_, Uuid>("id")),
        org: OrgId::try_from(row.get::<_, &str>("org")).ok()?,
        kind: row.get("kind"),
        state: TaskState::Open,
        state_reason: None,
        epoch: Epoch(0),
        agent_id: None,
        requester: row.get("requester"),
    }))
}
