//! Reads runs and steps.
use crate::db;
use crate::id::TraceContext;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::sql;
use crate::task::{
    Approval, AskedModel, EarlierEffect, Effect, Ending, Error, NoteKind, Run, Step, StepBody, StepState,
    TaskId, TaskReader, ToolStep,
};
use deadpool_postgres::Object;
use futures_util::future::try_join;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

/// Most steps of one answer to a reader.
const STEPS_MAX: i64 = 2_000;

impl TaskReader {
    /// The latest run of a task with its steps. `None` if there is none.
    ///
    /// # Errors
    /// `Unavailable`; `NewerSchema` for a step that this version does not know.
    pub async fn latest_run(&self, task: TaskId) -> Result<Option<LatestRun>, Error> {
        latest(&self.database.client().await?, task, true).await
    }

    /// Like [`Self::latest_run`], without the body of the definition.
    ///
    /// # Errors
    /// Likewise.
    pub async fn latest_steps(&self, task: TaskId) -> Result<Option<LatestRun>, Error> {
        latest(&self.database.client().await?, task, false).await
    }

    /// The runs of a task with their steps: `[{run, agent_id, model, …, steps: [{seq, kind, state, …}]}]`. `contents`
    /// adds the texts, answers, arguments and results.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn steps(&self, task: TaskId, contents: bool) -> Result<Vec<Value>, Error> {
        let rows = self.query(sql!("task_steps"), &[&task.as_uuid(), &contents, &STEPS_MAX]).await?;
        let mut runs: Vec<(i32, Value, Vec<Value>)> = Vec::new();
        for row in &rows {
            let number: i32 = row.read("run")?;
            if runs.last().is_none_or(|(last, ..)| *last != number) {
                runs.push((number, shown_run(row)?, Vec::new()));
            }
            let mut shown = shown_step(row, contents)?;
            if let Some(members) = shown.as_object_mut() {
                members.extend(trace_ids(row, task)?);
            }
            if let Some((.., steps)) = runs.last_mut() {
                steps.push(shown);
            }
        }
        let with_steps = |(_, mut run, steps): (i32, Value, Vec<Value>)| {
            if let Some(members) = run.as_object_mut() {
                members.insert("steps".into(), Value::Array(steps));
            }
            run
        };
        Ok(runs.into_iter().map(with_steps).collect())
    }
}

/// The latest run of a task.
#[derive(Clone, Debug)]
pub struct LatestRun {
    /// The run.
    pub run: Run,
    /// Its agent.
    pub agent: String,
    /// How it ended. `None` while it has not ended.
    pub ended_as: Option<String>,
    /// The state of the assignment that ended it. `None` while it has not ended.
    pub ended_state: Option<String>,
}

/// The latest run of a task as this connection sees it, with the body of its definition or without.
pub(super) async fn latest(client: &Object, task: TaskId, body: bool) -> Result<Option<LatestRun>, Error> {
    let (latest, of_run) =
        try_join(client.prepare_cached(sql!("run_latest")), client.prepare_cached(sql!("run_steps")))
            .await
            .map_err(db::Error::from)?;
    let task_id = task.as_uuid();
    // Both in one round trip. The steps are those of the latest run, which may be newer than the row read before.
    let (found, rows) = loop {
        let of_task: [&(dyn ToSql + Sync); 2] = [&task_id, &body];
        let both = try_join(client.query(&latest, &of_task), client.query(&of_run, &of_task[..1]));
        let (found, rows) = both.await.map_err(db::Error::from)?;
        let of = |rows: &[Row]| rows.first().map(|row| row.read::<i32>("run")).transpose();
        if rows.is_empty() || of(&found)? == of(&rows)? {
            break (found, rows);
        }
    };
    let Some(row) = found.first() else { return Ok(None) };
    let number: i32 = row.read("run")?;
    let ended_state: Option<String> = row.read("ended_state")?;
    let head: i32 = row.read("head_seq")?;
    let mut steps: Vec<Step> = rows.iter().map(step).collect::<Result<_, _>>()?;
    // Only the step that ended the run can have been rejected, and nothing followed it.
    if let Some(last) = steps.last_mut().filter(|last| last.seq == head) {
        last.rejected = ended_state.as_deref() == Some("rejected");
    }
    let (tokens, microdollars) = (rows::amount(row, "tokens")?, rows::amount(row, "microdollars")?);
    let run = Run {
        number,
        definition: row.read("definition_hash")?,
        body: row.read::<Option<Value>>("body")?.unwrap_or_default(),
        tokens,
        microdollars,
        steps,
    };
    let (agent, ended_as) = (row.read("agent_id")?, row.read("ended_as")?);
    Ok(Some(LatestRun { run, agent, ended_as, ended_state }))
}

fn known<T>(row: &Row, column: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, Unreadable> {
    let word: &str = row.read(column)?;
    parse(word).ok_or_else(|| rows::newer_schema(word, column))
}

fn step(row: &Row) -> Result<Step, Unreadable> {
    let body = match row.read::<&str>("kind")? {
        "note" => StepBody::Note { kind: known(row, "note_kind", NoteKind::parse)?, text: row.read("note")? },
        "model" => StepBody::Model {
            answer: row.read("answer")?,
            ending: match row.read::<Option<&str>>("ending")? {
                None => None,
                Some(word) => Some(Ending::parse(word).ok_or_else(|| rows::newer_schema(word, "ending"))?),
            },
            last: row.read("last")?,
            asked: asked(row)?,
        },
        "tool" => StepBody::Tool(tool(row)?),
        other => return Err(rows::newer_schema(other, "kind")),
    };
    let state = known(row, "state", StepState::parse)?;
    Ok(Step { seq: row.read("seq")?, state, tries: row.read("tries")?, rejected: false, body })
}

fn asked(row: &Row) -> Result<Option<AskedModel>, Unreadable> {
    let provider: Option<String> = row.read("provider")?;
    let model: Option<String> = row.read("model_asked")?;
    Ok(provider.zip(model).map(|(provider, model)| AskedModel { provider, model }))
}

fn tool(row: &Row) -> Result<ToolStep, Unreadable> {
    Ok(ToolStep {
        after_seq: row.read("after_seq")?,
        place: row.read("place")?,
        name: row.read("name")?,
        args: row.read::<Option<Value>>("args")?.unwrap_or_default(),
        args_sha256: row.read("args_sha256")?,
        edited: row.read("edited_args")?,
        effect: known(row, "effect", Effect::parse)?,
        approval: match row.read::<Option<&str>>("approval")? {
            None => None,
            Some(word) => Some(Approval::parse(word).ok_or_else(|| rows::newer_schema(word, "approval"))?),
        },
        key: row.read("key")?,
        result: row.read("result")?,
        asked_after: row.read("asked_after")?,
        doubtful: row.read("doubtful")?,
        age: Duration::from_millis(
            row.read::<Option<i64>>("age_ms")?.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0),
        ),
    })
}

pub(super) fn effect(row: &Row) -> Result<EarlierEffect, Unreadable> {
    Ok(EarlierEffect {
        name: row.read("name")?,
        args_sha256: row.read("args_sha256")?,
        state: known(row, "state", StepState::parse)?,
        result: row.read("result")?,
    })
}

/// The ids of the trace and the span of a step. None if its task belongs to no trace.
fn trace_ids(row: &Row, task: TaskId) -> Result<Vec<(String, Value)>, Unreadable> {
    let trace = row.read::<Option<&str>>("traceparent")?.and_then(|text| text.parse::<TraceContext>().ok());
    let Some(trace) = trace else { return Ok(Vec::new()) };
    let span = trace.step(task, row.read("run")?, row.read("seq")?);
    let ids =
        [("trace_id", format!("{:032x}", span.trace_id())), ("span_id", format!("{:016x}", span.span_id()))];
    Ok(ids.into_iter().map(|(name, id)| (name.to_owned(), Value::String(id))).collect())
}

fn shown_run(row: &Row) -> Result<Value, Unreadable> {
    let forked_from = row.read::<Option<Uuid>>("forked_from")?.map(TaskId::from);
    Ok(json!({
        "forked_from": forked_from,
        "forked_at": row.read::<Option<i32>>("forked_at")?,
        "run": row.read::<i32>("run")?,
        "agent_id": row.read::<&str>("agent_id")?,
        "model": row.read::<&str>("model")?,
        "definition": row.read::<&str>("definition_hash")?,
        "ended_as": row.read::<Option<&str>>("ended_as")?,
        "started_at": rows::time(row, "run_started_at")?,
        "ended_at": rows::time(row, "run_ended_at")?,
        "tokens": row.read::<i64>("run_tokens")?,
        "microdollars": row.read::<i64>("run_microdollars")?,
    }))
}

/// A step without members that are null.
fn shown_step(row: &Row, contents: bool) -> Result<Value, Unreadable> {
    let mut shown = json!({
        "seq": row.read::<i32>("seq")?,
        "kind": row.read::<&str>("kind")?,
        "state": row.read::<&str>("state")?,
        "tries": row.read::<i32>("tries")?,
        "began_at": rows::time(row, "began_at")?,
        "ended_at": rows::time(row, "ended_at")?,
        "note_kind": row.read::<Option<&str>>("note_kind")?,
        "ending": row.read::<Option<&str>>("ending")?,
        "finish": row.read::<Option<&str>>("finish")?,
        "model": row.read::<Option<&str>>("model_said")?,
        "provider": row.read::<Option<&str>>("provider")?,
        "model_asked": row.read::<Option<&str>>("model_asked")?,
        "passed_over": row.read::<Option<&str>>("passed_over")?,
        "request_sha256": row.read::<Option<&str>>("request_sha256")?,
        "request_id": row.read::<Option<&str>>("request_id")?,
        "tokens": row.read::<Option<i64>>("tokens")?,
        "microdollars": row.read::<Option<i64>>("microdollars")?,
        "presumed": row.read::<Option<bool>>("presumed")?.filter(|it| *it),
        "after": row.read::<Option<i32>>("after_seq")?,
        "tool": row.read::<Option<&str>>("name")?,
        "effect": row.read::<Option<&str>>("effect")?,
        "args_sha256": row.read::<Option<&str>>("args_sha256")?,
        "approval": row.read::<Option<&str>>("approval")?,
        "approved_by": row.read::<Option<&str>>("approved_by")?,
        "approval_expires_at": rows::time(row, "approval_expires_at")?,
        "doubtful": Some(row.read::<bool>("doubtful")?).filter(|it| *it),
        "key": row.read::<Option<&str>>("key")?,
        "bytes": row.read::<Option<i64>>("bytes")?,
        "cut": row.read::<Option<bool>>("cut")?.filter(|it| *it),
        "last": Some(row.read::<bool>("last")?).filter(|it| *it),
    });
    let Some(members) = shown.as_object_mut() else { return Ok(shown) };
    if contents {
        members.insert("note".into(), json!(row.read::<Option<&str>>("note")?));
        members.insert("answer".into(), rows::json(row, "answer"));
        members.insert("args".into(), rows::json(row, "args"));
        members.insert("edited_args".into(), rows::json(row, "edited_args"));
        members.insert("result".into(), json!(row.read::<Option<&str>>("result")?));
    }
    members.retain(|_, value| !value.is_null());
    Ok(shown)
}
