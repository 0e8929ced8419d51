//! Runs and steps of agents that think, as rows: appended, begun and ended under the fence of the assignment.
//!
//! Each write is one guarded statement: it carries the assignment and the epoch, and an assignment that is not
//! `running` writes nothing (`Fenced`). An append also carries the number of the last step that the caller has read, so
//! that two writers cannot both append. A step that has ended is never written again. An intent, a question that is about
//! to be sent, and the end of an effect wait for the disk. An answer and what a statement has read do not: the next commit
//! that waits flushes them too (`docs/decisions/0053-answers-flushed-by-the-next-intent.md`).
mod approvals;
mod database_tool;
mod fork;
mod memory;
mod part_tool;
mod pins;
mod read;
mod threads;

pub use database_tool::{DatabaseCall, DatabaseResult};
pub use fork::ForkPoint;
pub use memory::{MEMORY_BYTES_MAX, Memory, MemoryAction, MemoryChange, MemoryChanged};
pub use part_tool::Part;
pub use pins::{PinnedTool, SeenTool, SeenTools, accept_tool, pinned_tools};
pub use read::LatestRun;
pub use threads::{ThreadResult, Turn};

use crate::task::storage::model_questions;
use crate::task::storage::rows::{self, Columns};
use crate::task::storage::statement::{run, sql, to_i64};
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, AssignmentKey, EarlierEffect, Error, InsufficientBudget, ModelEnd, ModelQuestion, ModelUsage,
    NewCall, NoteKind, StepState, TaskCommands, TaskId,
};
use futures_util::{FutureExt, future::try_join};
use serde_json::Value;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

/// A run, and the assignment that may write it.
#[derive(Clone, Debug)]
pub struct RunKey {
    /// The assignment.
    pub key: AssignmentKey,
    /// Its agent.
    pub agent: AgentId,
    /// The number of the run within its task.
    pub run: i32,
}

/// The definition that a run is begun with.
#[derive(Clone, Copy, Debug)]
pub struct PinnedDefinition<'a> {
    /// Its hash.
    pub hash: &'a str,
    /// Its body.
    pub body: &'a Value,
    /// The model.
    pub model: &'a str,
}

/// A question to a model that is about to be sent.
#[derive(Clone, Copy, Debug)]
pub struct NewQuestion<'a> {
    /// The step that was begun before and has no answer. `None` for a new step.
    pub again: Option<i32>,
    /// SHA-256 of the request, in hexadecimal.
    pub request_sha256: &'a str,
    /// Whether only the tools that end the run are offered.
    pub last: bool,
    /// Why models before it in the list of the agent could not answer, one line.
    pub passed_over: Option<&'a str>,
    /// The most that it may use, and the model.
    pub record: &'a ModelQuestion,
}

/// The end of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallEnd {
    /// `done`, `failed` or `skipped`.
    pub state: StepState,
    /// What the model is shown.
    pub result: String,
    /// Bytes of the output before it was cut.
    pub bytes: u64,
    /// Whether something was cut off.
    pub cut: bool,
}

/// The parameters of the fence, `$1` to `$5` of most statements.
struct Fence<'a> {
    assignment: Uuid,
    task: Uuid,
    epoch: i64,
    agent: &'a str,
    run: i32,
}

impl<'a> Fence<'a> {
    fn of(at: &'a RunKey) -> Self {
        let RunKey { key, agent, run } = at;
        let (assignment, task) = (key.assignment_id.as_uuid(), key.task_id.as_uuid());
        Self { assignment, task, epoch: key.epoch.0, agent: agent.as_str(), run: *run }
    }

    fn with<'b>(&'b self, more: &[&'b (dyn ToSql + Sync)]) -> Vec<&'b (dyn ToSql + Sync)> {
        let fence: [&(dyn ToSql + Sync); 5] =
            [&self.assignment, &self.task, &self.epoch, &self.agent, &self.run];
        fence.into_iter().chain(more.iter().copied()).collect()
    }
}

/// The row of a guarded statement. None means that the assignment is over, or that another writer was faster.
fn written(rows: &[Row]) -> Result<&Row, Error> {
    rows.first().ok_or(Error::Fenced)
}

impl TaskCommands {
    /// Begins the next run of a task with its first note. Returns its number.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over.
    pub async fn begin_run(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        definition: PinnedDefinition<'_>,
        input: &str,
    ) -> Result<RunKey, Error> {
        let PinnedDefinition { hash, body, model } = definition;
        let (assignment, task) = (key.assignment_id.as_uuid(), key.task_id.as_uuid());
        let params: [&(dyn ToSql + Sync); 8] =
            [&assignment, &task, &key.epoch.0, &agent.as_str(), &hash, body, &model, &input];
        let rows = self.query(sql!("run_begin"), &params).await?;
        Ok(RunKey { key, agent: agent.clone(), run: written(&rows)?.read("run")? })
    }

    /// Appends a note after step `head`.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or the run has more steps.
    pub async fn append_note(&self, at: &RunKey, head: i32, kind: NoteKind, text: &str) -> Result<(), Error> {
        let fence = Fence::of(at);
        let kind = kind.as_str();
        let params = fence.with(&[&head, &kind, &text]);
        written(&self.query(sql!("step_note"), &params).await?).map(drop)
    }

    /// Ends the question `seq`, the last step, which its endpoint refused as too large, and appends a note, in one commit.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or the step has ended.
    pub async fn replace_question(
        &self,
        at: &RunKey,
        seq: i32,
        kind: NoteKind,
        text: &str,
    ) -> Result<(), Error> {
        let fence = Fence::of(at);
        let kind = kind.as_str();
        let params = fence.with(&[&seq, &kind, &text]);
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        written(&run(&tx, sql!("step_replace"), &params).await?)?;
        tx.commit().await
    }

    /// Begins a question to the model after step `head`, or begins its step once more, and records the most that it may
    /// use. Returns the number of the step.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or the run has more steps. The inner error when a limit of the day has no
    /// room; nothing is begun then.
    pub async fn begin_question(
        &self,
        at: &RunKey,
        head: i32,
        question: NewQuestion<'_>,
    ) -> Result<Result<i32, InsufficientBudget>, Error> {
        let fence = Fence::of(at);
        let NewQuestion { again, request_sha256, last, passed_over, record } = question;
        let (provider, model) = (&record.provider, &record.model);
        let params = fence.with(&[&head, &again, &request_sha256, &last, provider, model, &passed_over]);
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        tx.prepare_all(&[sql!("step_ask"), sql!("question_ask")]).await?;
        let seq = again.unwrap_or(head.saturating_add(1));
        // Together, in this order. Without the step, the second one writes nothing.
        let asked = try_join(
            run(&tx, sql!("step_ask"), &params),
            model_questions::ask(&tx, at.key, &at.agent, Some((at.run, seq)), record),
        );
        if record.limits.is_empty() {
            let ((begun, asked), _) = tx.commit_after(asked, false).await?;
            written(&begun)?;
            return Ok(asked.map(|()| seq));
        }
        let (begun, asked) = asked.await?;
        written(&begun)?;
        if let Err(short) = asked {
            return Ok(Err(short));
        }
        tx.commit().await?;
        Ok(Ok(seq))
    }

    /// Ends the question `seq` after step `head` with its answer, its calls and what it used, in one commit. It does not
    /// wait for the disk. Returns the run after it. `None` if it could not be read.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or the step has ended.
    pub async fn end_question(
        &self,
        at: &RunKey,
        head: i32,
        seq: i32,
        end: &ModelEnd,
    ) -> Result<Option<LatestRun>, Error> {
        let ModelEnd { answer, ending, finish, request_id, question, used, calls } = end;
        let calls = CallColumns::of(calls);
        let (ending, usage) = (ending.as_str(), used.usage.limited());
        let (tokens, money) = (to_i64(usage.tokens), to_i64(usage.microdollars));
        let fence = Fence::of(at);
        let params = fence.with(&[
            &head,
            answer,
            &ending,
            finish,
            &used.said,
            &tokens,
            &money,
            &usage.presumed,
            &seq,
            &calls.states,
            &calls.wire_ids,
            &calls.names,
            &calls.args,
            &calls.hashes,
            &calls.effects,
            &calls.results,
            request_id,
        ]);
        let mut client = self.context.database.client().await?;
        // A crash of Postgres may lose the answer: the question then counts as its most and is asked again. No effect
        // is lost with it, because the intent of a call, the end of a run and the end of a task flush it first.
        let tx = Transaction::begin_async(&mut client);
        tx.prepare_all(&[sql!("step_answered"), sql!("question_end")]).await?;
        // Together, in this order. Without the answer, the second one writes nothing.
        let ended = try_join(
            run(&tx, sql!("step_answered"), &params),
            model_questions::end_if(&tx, *question, used, true),
        );
        let task = at.key.task_id;
        let ((answered, ()), after) =
            tx.commit_with(ended, |client| read::latest(client, task, false).boxed()).await?;
        written(&answered)?;
        Ok(after.await.ok().flatten())
    }

    /// Begins calls: their intent is on disk when this returns.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or one of them has ended.
    pub async fn begin_calls(&self, at: &RunKey, seqs: &[i32]) -> Result<(), Error> {
        self.move_calls(at, seqs, StepState::Started, None).await
    }

    /// Records that a person is asked about a call: its outcome is unknown, or its tool asks. `answers` is how many
    /// answers the task has, so that only a later one is the answer.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or the call has ended.
    pub async fn ask_about_call(
        &self,
        at: &RunKey,
        seq: i32,
        state: StepState,
        answers: i32,
    ) -> Result<(), Error> {
        self.move_calls(at, &[seq], state, Some(answers)).await
    }

    async fn move_calls(
        &self,
        at: &RunKey,
        seqs: &[i32],
        state: StepState,
        asked_after: Option<i32>,
    ) -> Result<(), Error> {
        let fence = Fence::of(at);
        let state = state.as_str();
        let rows = self.query(sql!("step_begin"), &fence.with(&[&seqs, &state, &asked_after])).await?;
        if rows.len() == seqs.len() { Ok(()) } else { Err(Error::Fenced) }
    }

    /// Ends a call with its result, and in the same commit with what it cost, if that was recorded before as the question
    /// `paid`.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or the call has ended.
    pub async fn end_call(
        &self,
        at: &RunKey,
        seq: i32,
        end: &CallEnd,
        paid: Option<(Uuid, &ModelUsage)>,
    ) -> Result<(), Error> {
        let fence = Fence::of(at);
        let (state, bytes) = (end.state.as_str(), to_i64(end.bytes));
        let params = fence.with(&[&seq, &state, &end.result, &bytes, &end.cut, &0_i32]);
        let Some((question, used)) = paid else {
            return written(&self.query(sql!("step_end"), &params).await?).map(drop);
        };
        let money = to_i64(used.usage.limited().microdollars);
        let cost: [&(dyn ToSql + Sync); 5] = [&fence.task, &fence.run, &seq, &money, &used.usage.presumed];
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        written(&run(&tx, sql!("step_end"), &params).await?)?;
        run(&tx, sql!("step_cost"), &cost).await?;
        model_questions::end(&tx, question, used).await?;
        tx.commit().await
    }

    /// Ends a call with an error for the model that it is unknown whether it had its effect.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, or the call has ended.
    pub async fn end_in_doubt(&self, at: &RunKey, seq: i32, end: &CallEnd) -> Result<(), Error> {
        let fence = Fence::of(at);
        let bytes = to_i64(end.bytes);
        let params = fence.with(&[&seq, &end.result, &bytes, &end.cut]);
        written(&self.query(sql!("step_doubt"), &params).await?).map(drop)
    }

    /// Records how a run ended. A repeated call moves the end to this assignment.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over.
    pub async fn end_run(&self, at: &RunKey, ended_as: &str) -> Result<(), Error> {
        let fence = Fence::of(at);
        written(&self.query(sql!("run_end"), &fence.with(&[&ended_as])).await?).map(drop)
    }

    /// The effects of earlier runs of a task.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn earlier_effects(&self, task: TaskId, run: i32) -> Result<Vec<EarlierEffect>, Error> {
        let rows = self.query(sql!("run_effects"), &[&task.as_uuid(), &run]).await?;
        rows.iter().map(read::effect).collect::<Result<_, rows::Unreadable>>().map_err(Error::from)
    }
}

/// The calls of an answer as columns. A text with the character U+0000 cannot be stored, so it is replaced.
#[derive(Default)]
struct CallColumns {
    states: Vec<&'static str>,
    wire_ids: Vec<Option<String>>,
    names: Vec<String>,
    args: Vec<Value>,
    hashes: Vec<String>,
    effects: Vec<&'static str>,
    results: Vec<Option<String>>,
}

impl CallColumns {
    fn of(calls: &[NewCall]) -> Self {
        let mut columns = Self::default();
        for call in calls {
            columns.states.push(call.state.as_str());
            columns.wire_ids.push(call.wire_id.as_deref().map(storable));
            columns.names.push(storable(&call.name));
            columns.args.push(call.args.clone());
            columns.hashes.push(call.args_sha256.clone());
            columns.effects.push(call.effect.as_str());
            columns.results.push(call.result.as_deref().map(storable));
        }
        columns
    }
}

fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
