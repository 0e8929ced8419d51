//! Requests: checked before they reach the database, inserted in batches, idempotent.
use crate::task::commands::dependencies::{self, Relations};
use crate::task::model::{
    policies::Policies,
    validate::{check_depth, check_map_depth, check_text, check_time, word},
};
use crate::task::rounds::awards;
use crate::task::storage::candidate::{Candidate, NewCandidate};
use crate::task::storage::charges;
use crate::task::storage::columns::columns;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, AssignmentKey, DEPENDS_ON_MAX, Error, INPUT_BYTES_MAX, Notice, Request, Requested, Requester,
    Schemas, Task, TaskContext, TaskState, Update,
};
use crate::{
    fault,
    id::{Epoch, OrgId, TaskId},
};
use chrono::{DateTime, Utc};
use futures_util::future::ready;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};
use tokio_postgres::types::Json;
use uuid::Uuid;

/// Capabilities that a request may name.
const REQUIRES_MAX: usize = 50;
/// The version of a task's row when it is inserted.
const FIRST_VERSION: i64 = 1;

/// A request that passed its checks.
#[derive(Clone, Debug)]
pub(in crate::task) struct CheckedRequest {
    pub(in crate::task) request: Request,
    /// The input as JSON text, serialised once for the checks, the hash and the row.
    pub(in crate::task) input: Box<RawValue>,
    pub(in crate::task) attempts_max: i32,
    hash: Vec<u8>,
}

/// The members of a serialised request whose text is checked.
#[derive(Deserialize)]
struct Texts<'a> {
    #[serde(borrow)]
    input: &'a RawValue,
    #[serde(borrow)]
    policy: &'a RawValue,
}

impl CheckedRequest {
    /// Checks all members of a request.
    ///
    /// # Errors
    /// `BadRequest` and `TooLarge`.
    pub(in crate::task) fn new(policies: &Policies, request: Request) -> Result<Self, Error> {
        word("kind", &request.kind)?;
        if request.requires.len() > REQUIRES_MAX {
            let count = request.requires.len();
            return Err(Error::BadRequest(format!(
                "requires has {count} members; use at most {REQUIRES_MAX}"
            )));
        }
        for (at, need) in request.requires.iter().enumerate() {
            word(&format!("requires[{at}]"), need)?;
        }
        if let Some(key) = &request.idempotency_key {
            word("idempotency_key", key)?;
        }
        if request.depends_on.len() > DEPENDS_ON_MAX {
            let count = request.depends_on.len();
            return Err(Error::BadRequest(format!(
                "depends_on has {count} members; use at most {DEPENDS_ON_MAX}"
            )));
        }
        check_depth("input", &request.input)?;
        // Stored hashes of earlier versions are of this text: another order of members would refuse a repeated request.
        let text = serde_json::to_vec(&request).map_err(unserialised)?;
        let Texts { input, policy: policy_text } = serde_json::from_slice(&text).map_err(unserialised)?;
        check_text("input", input.get(), INPUT_BYTES_MAX)?;
        check_time("run_at", request.run_at)?;
        check_time("deadline", request.deadline)?;
        request.budget.map_or(Ok(()), |budget| budget.check(request.parent_id.is_some()))?;
        let policy = policies.of_kind(&request.kind).with(&request.policy).map_err(Error::BadRequest)?;
        check_map_depth("policy", &request.policy)?;
        check_text("policy", policy_text.get(), INPUT_BYTES_MAX)?;
        let (hash, input) = (Sha256::digest(&text).to_vec(), input.to_owned());
        let attempts_max = i32::try_from(policy.attempts_max).unwrap_or(i32::MAX);
        Ok(Self { request, input, attempts_max, hash })
    }
}

/// A request holds nothing that has no JSON text.
fn unserialised(error: serde_json::Error) -> Error {
    Error::BadRequest(format!("the request has no JSON text: {error}"))
}

/// A task to be inserted.
#[derive(Clone, Debug)]
pub(in crate::task) struct NewTask {
    pub(in crate::task) id: TaskId,
    pub(in crate::task) org: OrgId,
    requester: Requester,
    checked: CheckedRequest,
    /// The assignment that requests it as a part of its task.
    pub(in crate::task) holder: Option<(AssignmentKey, AgentId)>,
    /// The class of the task, if one like it was made before.
    pub(in crate::task) class: Option<i64>,
}

impl NewTask {
    pub(in crate::task) fn check(
        policies: &Policies,
        org: &OrgId,
        requester: Requester,
        request: Request,
    ) -> Result<Self, Error> {
        let checked = CheckedRequest::new(policies, request)?;
        Ok(Self { id: TaskId::generate(), org: org.clone(), requester, checked, holder: None, class: None })
    }

    pub(in crate::task) fn request(&self) -> &Request {
        &self.checked.request
    }

    /// Refuses a schema that cannot be compiled. Not a part of [`NewTask::check`], because it may take seconds.
    pub(in crate::task) async fn compile_schema(&self, schemas: &Schemas) -> Result<(), Error> {
        match self.request().policy.get("result_schema") {
            Some(schema) if !schema.is_null() => {
                schemas.of(&self.org, &self.requester.to_string()).compile(schema).await
            }
            _ => Ok(()),
        }
    }

    /// Moves the parsed input out, for the answer to the request: the row is written from its text, and a batch that
    /// is retried copies no input.
    pub(in crate::task) fn take_input(&mut self) -> Value {
        std::mem::take(&mut self.checked.request.input)
    }

    /// Requires that this assignment still holds the parent when the task is inserted.
    pub(in crate::task) fn held_by(&mut self, key: AssignmentKey, agent: AgentId) {
        self.holder = Some((key, agent));
    }

    fn candidate(&self) -> Candidate {
        Candidate::new(NewCandidate {
            id: self.id,
            org: self.org.clone(),
            kind: self.request().kind.clone(),
            requires: self.request().requires.clone(),
            policy: Value::Object(self.request().policy.clone()),
            requester: self.requester.clone(),
        })
    }

    /// The task with its class, if the class is known and the task has nothing to do with other rows: no key, no parent,
    /// no dependency, no budget, and no time at which it may begin.
    fn alone(&self) -> Option<(i64, Candidate)> {
        let Request { idempotency_key, parent_id, depends_on, budget, run_at, .. } = self.request();
        let related = idempotency_key.is_some()
            || parent_id.is_some()
            || !depends_on.is_empty()
            || budget.is_some()
            || run_at.is_some()
            || self.holder.is_some();
        if related { None } else { Some((self.class?, self.candidate())) }
    }

    /// The task just after it was made.
    pub(in crate::task) fn update(&self, state: TaskState) -> Update {
        Update {
            id: self.id,
            org: self.org.clone(),
            kind: self.request().kind.clone(),
            state,
            state_reason: None,
            epoch: Epoch(0),
            agent_id: None,
            requester: self.requester.clone(),
            version: FIRST_VERSION,
        }
    }

    fn task(&self, made: &Inserted) -> Task {
        let &Inserted { state, created_at, .. } = made;
        Task {
            id: self.id,
            org: self.org.clone(),
            kind: self.request().kind.clone(),
            requires: self.request().requires.clone(),
            // The caller has it, see `take_input`.
            input: Value::Null,
            requester: self.requester.clone(),
            state,
            state_reason: None,
            priority: self.request().priority,
            round: 0,
            epoch: Epoch(0),
            attempt: 0,
            attempts_max: self.checked.attempts_max,
            agent_id: None,
            progress: None,
            result: None,
            error: None,
            created_at,
            updated_at: created_at,
            version: FIRST_VERSION,
            deadline_at: self.request().deadline,
            run_at: self.request().run_at,
            parent_id: self.request().parent_id,
            root_id: Some(made.root),
            budget: None,
            depends_on: self.request().depends_on.clone(),
            question: None,
            unreadable: Vec::new(),
        }
    }
}

/// The columns of a request that the database sets.
pub(in crate::task) struct Inserted {
    state: TaskState,
    created_at: DateTime<Utc>,
    class: i64,
    root: TaskId,
}

/// A batch of requests: one transaction.
///
/// One round trip, if nothing but the tasks themselves is to be read and written, and all of their classes are known.
pub(in crate::task) async fn make(
    context: Arc<TaskContext>,
    batch: Arc<Vec<NewTask>>,
) -> Result<Vec<Result<Requested, Error>>, Error> {
    let mut client = context.database.client().await?;
    let tx = Transaction::begin_async(&mut client);
    let open: Option<Vec<(i64, Candidate)>> = batch.iter().map(NewTask::alone).collect();
    // Where another node arbitrates, it is called in the transaction.
    let Some(open) = open.filter(|_| context.arbitrates.load(Ordering::Relaxed)) else {
        return write(&tx, &batch).await?.commit(&context, &tx).await;
    };
    tx.prepare_all(&[sql!("request")]).await?;
    let roster_guard = context.roster_guard();
    let insert = async {
        let (made, _) = insert(&tx, &batch).await?;
        let all = made.len() == batch.len();
        Ok((made, all))
    };
    let (made, written, flushed) = awards::award_new(&context, &tx, insert, open).await?;
    roster_guard.keep();
    context.metrics.requested.inc_by(made.len() as u64);
    let requested = batch.iter().filter_map(|new| Some(new.update(made.get(&new.id)?.state)));
    context.publish(requested.map(Notice::Updated).collect());
    awards::publish(&context, written);
    flushed.await?;
    fault::point(fault::Point::TaskRequested);
    drop(tx);
    let mut answers = Vec::with_capacity(batch.len());
    for new in batch.iter() {
        answers.push(match made.get(&new.id) {
            Some(found) => Ok(Requested { task: new.task(found), replayed: false }),
            // It was made before a retry.
            None => {
                let tx = Transaction::begin(&mut client);
                earlier(&tx, new).await.and_then(|found| found.ok_or(Error::Unavailable(None)))
            }
        });
    }
    Ok(answers)
}

/// What requests made in a transaction that is not committed.
pub(in crate::task) struct Made {
    /// The answer to each request.
    pub(in crate::task) answers: Vec<Result<Requested, Error>>,
    notices: Vec<Notice>,
    /// The new tasks that may be awarded, each with its class.
    open: Vec<(i64, Candidate)>,
}

/// Writes requests into a transaction.
pub(in crate::task) async fn write(tx: &Transaction<'_>, batch: &[NewTask]) -> Result<Made, Error> {
    let (made, mut refused) = insert(tx, batch).await?;
    let budgets = batch.iter().filter(|new| made.contains_key(&new.id));
    let budgets: Vec<_> = budgets.filter_map(|new| Some((new.id, new.request().budget?))).collect();
    charges::set(tx, &budgets).await?;
    let mut answers = Vec::with_capacity(batch.len());
    let mut notices = Vec::new();
    for new in batch.iter() {
        if let Some(found) = made.get(&new.id) {
            notices.push(Notice::Updated(new.update(found.state)));
            answers.push(Ok(Requested { task: new.task(found), replayed: false }));
        } else {
            // A repeated request gets its task, even if it could not be requested now.
            let unmade = || Err(refused.remove(&new.id).unwrap_or(Error::Unavailable(None)));
            answers.push(earlier(tx, new).await.and_then(|found| found.map_or_else(unmade, Ok)));
        }
    }
    let open = batch.iter().filter_map(|new| {
        let made = made.get(&new.id).filter(|made| made.state == TaskState::Open)?;
        Some((made.class, new.candidate()))
    });
    Ok(Made { answers, notices, open: open.collect() })
}

impl Made {
    /// Awards the new tasks and commits. Returns the answers when the commit is on disk.
    pub(in crate::task) async fn commit(
        self,
        context: &TaskContext,
        tx: &Transaction<'_>,
    ) -> Result<Vec<Result<Requested, Error>>, Error> {
        context.call_arbiter(tx).await?;
        for (class, task) in &self.open {
            context.classes.learn(&task.org, &task.requires, *class);
        }
        let roster_guard = context.roster_guard();
        let ((), written, flushed) = awards::award_new(context, tx, ready(Ok(((), true))), self.open).await?;
        roster_guard.keep();
        context.metrics.requested.inc_by(self.notices.len() as u64);
        context.publish(self.notices);
        awards::publish(context, written);
        flushed.await?;
        fault::point(fault::Point::TaskRequested);
        Ok(self.answers)
    }
}

/// Inserts the tasks. Returns those that were inserted, and why others were refused.
pub(in crate::task) async fn insert(
    tx: &Transaction<'_>,
    batch: &[NewTask],
) -> Result<(HashMap<TaskId, Inserted>, HashMap<TaskId, Error>), Error> {
    let dependencies = dependencies::resolve(tx, batch).await?;
    let batch: Vec<&NewTask> =
        batch.iter().filter(|new| !dependencies.refused.contains_key(&new.id)).collect();
    let keyed: Vec<&&NewTask> = batch.iter().filter(|new| new.request().idempotency_key.is_some()).collect();
    if !keyed.is_empty() {
        let columns = columns!("free_keys", keyed, |new| {
            org: &str = new.org.as_str(),
            requester: &Requester = &new.requester,
            key: Option<&str> = new.request().idempotency_key.as_deref(),
        });
        columns.run(tx, &[]).await?;
    }
    let columns = columns!("request", batch, |new| {
        id: Uuid = new.id.as_uuid(),
        org: &str = new.org.as_str(),
        kind: &str = new.request().kind.as_str(),
        requires: Json<&Vec<String>> = Json(&new.request().requires),
        input: Json<&RawValue> = Json(&*new.checked.input),
        requester: &Requester = &new.requester,
        parent_id: Option<Uuid> = new.request().parent_id.map(TaskId::as_uuid),
        idempotency_key: Option<&str> = new.request().idempotency_key.as_deref(),
        request_hash: &[u8] = new.checked.hash.as_slice(),
        priority: i16 = new.request().priority,
        run_at: Option<DateTime<Utc>> = new.request().run_at,
        deadline_at: Option<DateTime<Utc>> = new.request().deadline,
        policy: Json<&Map<String, Value>> = Json(&new.request().policy),
        attempts_max: i32 = new.checked.attempts_max,
        more: Option<Json<&Relations>> = dependencies.relations.get(&new.id).map(Json),
        traceparent: Option<String> = new.request().traceparent.map(String::from),
        holder: Option<Uuid> = new.holder.as_ref().map(|(key, _)| key.assignment_id.as_uuid()),
        known_class: Option<i64> = new.class,
    });
    let rows = columns.run(tx, &[]).await?;
    drop(columns);
    let made = rows.iter().map(|row| {
        let root = rows::task_id(row, "root_id")?;
        let (created_at, class) = (row.read("created_at")?, row.read("class")?);
        Ok((
            rows::task_id(row, "id")?,
            Inserted { state: rows::state(row, "state")?, created_at, class, root },
        ))
    });
    Ok((made.collect::<Result<_, Unreadable>>()?, dependencies.refused))
}

/// The task of an earlier request with the same key, or of this request before a retry.
async fn earlier(tx: &Transaction<'_>, new: &NewTask) -> Result<Option<Requested>, Error> {
    let key = new.request().idempotency_key.as_deref();
    let found =
        run(tx, sql!("earlier"), &[&new.id.as_uuid(), &new.org.as_str(), &new.requester, &key]).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let id = rows::task_id(row, "id")?;
    if row.read::<Option<&[u8]>>("request_hash")? != Some(new.checked.hash.as_slice()) {
        return Err(Error::IdempotencyConflict(id));
    }
    let rows = run(tx, sql!("get"), &[&id.as_uuid()]).await?;
    let task = Task::from_row(rows.first().ok_or(Error::UnknownTask(id))?)?;
    Ok(Some(Requested { task, replayed: id != new.id }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::JSON_DEPTH_MAX;
    use serde_json::json;

    #[test]
    fn hash_of_a_request_is_that_of_earlier_versions() {
        let policies = Policies::new(&crate::task::Config::default());
        let request =
            json!({ "kind": "k", "input": { "a": [1.5, "\u{e9}"] }, "policy": { "attempts_max": 2 } });
        let checked = CheckedRequest::new(&policies, serde_json::from_value(request).unwrap()).unwrap();
        // A stored hash is compared with it when a request is repeated.
        let text =
            r#"{"kind":"k","requires":[],"input":{"a":[1.5,"é"]},"priority":0,"policy":{"attempts_max":2}}"#;
        assert_eq!(checked.hash, Sha256::digest(text).to_vec());
        assert_eq!(checked.input.get(), r#"{"a":[1.5,"é"]}"#);
        assert_eq!(checked.attempts_max, 2);
    }

    #[test]
    fn policy_is_checked_like_an_input() {
        let policies = Policies::new(&crate::task::Config::default());
        let check = |policy: Value| {
            let request = json!({ "kind": "k", "policy": policy });
            CheckedRequest::new(&policies, serde_json::from_value(request).unwrap()).map(drop)
        };
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        let schema = |value: Value| json!({ "result_schema": { "const": value } });
        assert!(check(schema(nested(JSON_DEPTH_MAX - 2))).is_ok());
        let deep = check(schema(nested(JSON_DEPTH_MAX - 1))).unwrap_err();
        assert_eq!(deep.to_string(), "policy is nested more than 100 deep");
        let nul = check(schema(json!("\u{0}"))).unwrap_err();
        assert_eq!(nul.to_string(), "policy contains the character U+0000, which cannot be stored");
    }
}
