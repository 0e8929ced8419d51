//! Requests: checked before they reach the database, inserted together, repeated safely.
use super::awards;
use super::budget;
use super::kin;
use super::rounds::Candidate;
use super::store::{self, run, sql};
use super::{
    AgentId, AssignmentKey, DEPENDS_ON_MAX, Error, INPUT_BYTES_MAX, Notice, Request, Requested, Shared, Task,
    TaskState, Update,
};
use crate::{
    db, fault,
    id::{Epoch, OrgId, TaskId},
};
use chrono::{DateTime, Utc};
use deadpool_postgres::Transaction;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

/// Longest task kind, capability and idempotency key in bytes.
const WORD_BYTES_MAX: usize = 200;
/// Capabilities that a request may name.
const REQUIRES_MAX: usize = 50;

/// A request that passed its checks.
#[derive(Clone, Debug)]
pub(super) struct New {
    pub(super) id: TaskId,
    pub(super) org: OrgId,
    requester: String,
    pub(super) request: Request,
    attempts_max: i32,
    hash: Vec<u8>,
    /// The assignment that it is a part of the work of.
    pub(super) holder: Option<(AssignmentKey, AgentId)>,
}

impl New {
    pub(super) fn check(
        shared: &Shared,
        org: &OrgId,
        requester: &str,
        request: Request,
    ) -> Result<Self, Error> {
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
        check_json("input", &request.input, INPUT_BYTES_MAX)?;
        request.budget.map_or(Ok(()), |budget| budget.check(request.parent_id.is_some()))?;
        let policy = shared.policy_for(&request.kind).with(&request.policy).map_err(Error::BadRequest)?;
        check_json("policy", &Value::Object(request.policy.clone()), INPUT_BYTES_MAX)?;
        let hash = Sha256::digest(serde_json::to_vec(&request).unwrap_or_default()).to_vec();
        Ok(Self {
            id: TaskId::generate(),
            org: org.clone(),
            requester: one_line(requester, WORD_BYTES_MAX),
            attempts_max: i32::try_from(policy.attempts_max).unwrap_or(i32::MAX),
            request,
            hash,
            holder: None,
        })
    }

    /// It is requested by the holder of its parent, and only while that holds it.
    pub(super) fn held_by(&mut self, key: AssignmentKey, agent: AgentId) {
        self.holder = Some((key, agent));
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            id: self.id,
            org: self.org.to_string(),
            kind: self.request.kind.clone(),
            requires: self.request.requires.clone(),
            round: 0,
            rounds_empty: 0,
            facts: Candidate::open_facts(0),
            policy: Value::Object(self.request.policy.clone()),
            requester: self.requester.clone(),
            tried: Vec::new(),
            prefer: None,
        }
    }

    fn task(&self, made: &Made) -> Task {
        let &Made { state, created_at, .. } = made;
        Task {
            id: self.id,
            org: self.org.clone(),
            kind: self.request.kind.clone(),
            requires: self.request.requires.clone(),
            input: self.request.input.clone(),
            requester: self.requester.clone(),
            state,
            state_reason: None,
            priority: self.request.priority,
            round: 0,
            epoch: Epoch(0),
            attempt: 0,
            attempts_max: self.attempts_max,
            agent_id: None,
            progress: None,
            result: None,
            error: None,
            created_at,
            updated_at: created_at,
            deadline_at: self.request.deadline,
            run_at: self.request.run_at,
            parent_id: self.request.parent_id,
            root_id: Some(made.root),
            budget: None,
            depends_on: self.request.depends_on.clone(),
            question: None,
        }
    }
}

/// What the database made of a request.
pub(super) struct Made {
    state: TaskState,
    created_at: DateTime<Utc>,
    class: i64,
    root: TaskId,
}

/// 1 to 200 bytes without control characters.
fn word(name: &str, text: &str) -> Result<(), Error> {
    if text.is_empty() || text.len() > WORD_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(Error::BadRequest(format!(
            "{name} has 1 to {WORD_BYTES_MAX} bytes and no control characters"
        )));
    }
    Ok(())
}

/// JSON that the database can store: not too large, and without the character that it cannot hold.
pub(super) fn check_json(what: &'static str, value: &Value, bytes_max: usize) -> Result<(), Error> {
    let text = serde_json::to_string(value).unwrap_or_default();
    if text.len() > bytes_max {
        return Err(Error::TooLarge { what, bytes: text.len(), bytes_max });
    }
    // An escaped backslash before it would make it a plain text; parsing pairs tells them apart.
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next() == Some('u') && chars.as_str().starts_with("0000") {
            return Err(Error::BadRequest(format!(
                "{what} contains the character U+0000, which cannot be stored"
            )));
        }
    }
    Ok(())
}

/// The text as one line of at most so many bytes.
pub(super) fn one_line(text: &str, bytes_max: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while line.len() > bytes_max {
        line.pop();
    }
    line
}

/// A batch of the request lane: one transaction.
pub(super) async fn make(
    shared: Arc<Shared>,
    batch: Vec<New>,
) -> Result<Vec<Result<Requested, Error>>, Error> {
    let mut client = shared.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    let ((), (made, mut refused)) =
        futures_util::future::try_join(store::relax(&tx), insert(&tx, &batch)).await?;
    let budgets = batch.iter().filter(|new| made.contains_key(&new.id));
    let budgets: Vec<_> = budgets.filter_map(|new| Some((new.id, new.request.budget?))).collect();
    budget::set(&tx, &budgets).await?;
    let doubt = shared.doubt();
    let open = batch.iter().filter_map(|new| {
        let made = made.get(&new.id).filter(|made| made.state == TaskState::Open)?;
        Some((made.class, new.candidate()))
    });
    let written = awards::award_new(&shared, &tx, open.collect()).await?;
    let mut answers = Vec::with_capacity(batch.len());
    let mut notices = Vec::new();
    for new in &batch {
        if let Some(found) = made.get(&new.id) {
            notices.push(Notice::Updated(Update {
                id: new.id,
                org: new.org.clone(),
                kind: new.request.kind.clone(),
                state: found.state,
                state_reason: None,
                epoch: Epoch(0),
                agent_id: None,
                requester: new.requester.clone(),
            }));
            answers.push(Ok(Requested { task: new.task(found), replayed: false }));
        } else {
            // What was requested before is answered, even if it could not be requested now.
            let unmade = || Err(refused.remove(&new.id).unwrap_or(Error::Unavailable(None)));
            answers.push(earlier(&tx, new).await.and_then(|found| found.map_or_else(unmade, Ok)));
        }
    }
    shared.call_arbiter(&tx).await?;
    tx.commit().await.map_err(db::Error::from)?;
    doubt.dispel();
    shared.metrics.requested.inc_by(notices.len() as u64);
    shared.committed(notices, false);
    awards::tell(&shared, written);
    store::flush(&client).await?;
    fault::point("task.requested");
    Ok(answers)
}

/// Makes the tasks; gives those that were made, and why others cannot be.
pub(super) async fn insert(
    tx: &Transaction<'_>,
    batch: &[New],
) -> Result<(HashMap<TaskId, Made>, HashMap<TaskId, Error>), Error> {
    let hung = kin::hang(tx, batch).await?;
    let batch: Vec<&New> = batch.iter().filter(|new| !hung.refused.contains_key(&new.id)).collect();
    let keyed: Vec<&&New> = batch.iter().filter(|new| new.request.idempotency_key.is_some()).collect();
    if !keyed.is_empty() {
        let orgs: Vec<&str> = keyed.iter().map(|new| new.org.as_str()).collect();
        let requesters: Vec<&str> = keyed.iter().map(|new| new.requester.as_str()).collect();
        let keys: Vec<Option<&str>> =
            keyed.iter().map(|new| new.request.idempotency_key.as_deref()).collect();
        run(tx, sql!("free_keys"), &[&orgs, &requesters, &keys]).await?;
    }
    let ids: Vec<Uuid> = batch.iter().map(|new| new.id.as_uuid()).collect();
    let orgs: Vec<&str> = batch.iter().map(|new| new.org.as_str()).collect();
    let kinds: Vec<&str> = batch.iter().map(|new| new.request.kind.as_str()).collect();
    let requires: Vec<Value> = batch.iter().map(|new| new.request.requires.clone().into()).collect();
    let inputs: Vec<&Value> = batch.iter().map(|new| &new.request.input).collect();
    let requesters: Vec<&str> = batch.iter().map(|new| new.requester.as_str()).collect();
    let parents: Vec<Option<Uuid>> =
        batch.iter().map(|new| new.request.parent_id.map(TaskId::as_uuid)).collect();
    let keys: Vec<Option<&str>> = batch.iter().map(|new| new.request.idempotency_key.as_deref()).collect();
    let hashes: Vec<&[u8]> = batch.iter().map(|new| new.hash.as_slice()).collect();
    let priorities: Vec<i16> = batch.iter().map(|new| new.request.priority).collect();
    let run_at: Vec<Option<DateTime<Utc>>> = batch.iter().map(|new| new.request.run_at).collect();
    let deadlines: Vec<Option<DateTime<Utc>>> = batch.iter().map(|new| new.request.deadline).collect();
    let policies: Vec<Value> = batch.iter().map(|new| Value::Object(new.request.policy.clone())).collect();
    let attempts: Vec<i32> = batch.iter().map(|new| new.attempts_max).collect();
    let more: Vec<Option<&Value>> = batch.iter().map(|new| hung.more.get(&new.id)).collect();
    let rows = run(
        tx,
        sql!("request"),
        &[
            &ids,
            &orgs,
            &kinds,
            &requires,
            &inputs,
            &requesters,
            &parents,
            &keys,
            &hashes,
            &priorities,
            &run_at,
            &deadlines,
            &policies,
            &attempts,
            &more,
        ],
    )
    .await?;
    let made = rows.iter().filter_map(|row| {
        let state = TaskState::parse(row.get("state"))?;
        let root = TaskId::from(row.get::<_, Uuid>("root_id"));
        let made = Made { state, created_at: row.get("created_at"), class: row.get("class"), root };
        Some((TaskId::from(row.get::<_, Uuid>("id")), made))
    });
    Ok((made.collect(), hung.refused))
}

/// The task that an earlier request with the same key (or this very one, before a lost answer) made.
async fn earlier(tx: &Transaction<'_>, new: &New) -> Result<Option<Requested>, Error> {
    let key = new.request.idempotency_key.as_deref();
    let found =
        run(tx, sql!("earlier"), &[&new.id.as_uuid(), &new.org.as_str(), &new.requester, &key]).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let id = TaskId::from(row.get::<_, Uuid>("id"));
    if row.get::<_, Option<Vec<u8>>>("request_hash").as_deref() != Some(new.hash.as_slice()) {
        return Err(Error::IdempotencyConflict(id));
    }
    let rows = run(tx, sql!("get"), &[&id.as_uuid()]).await?;
    let task = rows.first().and_then(super::query::task).ok_or(Error::UnknownTask(id))?;
    Ok(Some(Requested { task, replayed: id != new.id }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_character_that_cannot_be_stored_is_told_from_its_spelling() {
        assert!(check_json("input", &json!({ "a": "\u{0}" }), 100).is_err());
        assert!(check_json("input", &json!({ "a": "\\u0000" }), 100).is_ok());
        assert!(check_json("input", &json!("x".repeat(200)), 100).is_err());
    }

    #[test]
    fn a_text_of_many_lines_becomes_one_that_fits() {
        assert_eq!(one_line("a\nb\tc", 100), "a b c");
        assert_eq!(one_line("äää", 3), "ä");
    }
}
