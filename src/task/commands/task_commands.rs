//! The handle that gives commands to tasks: each waits for the commit that carries it out.
//!
//! Four group commits run side by side: requests, accepts, endings (everything that ends or moves an assignment)
//! and reports. Accepts have their own, because work waits for them and endings wait for the disk.
use crate::task::commands::{
    batch::carry_out,
    command::{Action, CommandReply, Report, SchemaCheck, TaskCommand},
    group_commit::{GroupCommit, group_commit},
    leases,
    request::{self, NewTask},
};
use crate::task::model::validate::{check_json, one_line};
use crate::task::{
    AssignmentKey, Error, Failure, Progress, RESULT_BYTES_MAX, Request, Requested, Schemas, Start,
    TaskReader, Update, Usage, context::TaskContext,
};
use crate::{
    fault,
    id::{AgentId, OrgId, Requester, TaskId},
    scope::{OnExit, Scope},
};
use serde_json::Value;
use std::{ops::Deref, sync::Arc};

/// How often a result is checked against a schema that changes in the meantime.
const FINISH_TRIES: usize = 3;

/// Gives commands to tasks, for requesters and for agents. Cloning is cheap.
///
/// Commands read as well, so this derefs to [`TaskReader`].
#[derive(Clone)]
pub struct TaskCommands {
    pub(in crate::task) context: Arc<TaskContext>,
    reader: TaskReader,
    requests: GroupCommit<NewTask, Requested>,
    accepts: GroupCommit<TaskCommand, CommandReply>,
    pub(in crate::task) endings: GroupCommit<TaskCommand, CommandReply>,
    reports: GroupCommit<Report, ()>,
}

impl std::fmt::Debug for TaskCommands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskCommands").field("node", &self.context.node).finish_non_exhaustive()
    }
}

impl Deref for TaskCommands {
    type Target = TaskReader;

    fn deref(&self) -> &TaskReader {
        &self.reader
    }
}

impl TaskCommands {
    /// Starts the group commits in `scope`.
    pub(in crate::task) fn start(scope: &Scope, context: &Arc<TaskContext>) -> Self {
        let (requests, request_box) = group_commit();
        let (accepts, accept_box) = group_commit();
        let (endings, ending_box) = group_commit();
        let (reports, report_box) = group_commit();

        let shared = context.clone();
        scope.spawn("task requests", OnExit::StopDaemon, |stop| async move {
            let work = |batch| request::make(shared.clone(), batch);
            // No key: two requests never touch the same row, and equal idempotency keys meet in the statement.
            request_box.serve(&shared, stop, |_: &NewTask| None::<()>, work).await;
            Ok(())
        });
        for (name, mailbox) in [("task accepts", accept_box), ("task endings", ending_box)] {
            let shared = context.clone();
            scope.spawn(name, OnExit::StopDaemon, |stop| async move {
                let work = |batch| carry_out(shared.clone(), batch);
                // One command a task in a transaction: the second must see what the first has written.
                mailbox.serve(&shared, stop, |command: &TaskCommand| Some(command.task), work).await;
                Ok(())
            });
        }
        let shared = context.clone();
        scope.spawn("task reports", OnExit::StopDaemon, |stop| async move {
            let work = |batch| leases::renew(shared.clone(), batch);
            // One report an assignment in a statement: an update takes one row of its input for each row.
            report_box.serve(&shared, stop, |report: &Report| Some(report.key.assignment_id), work).await;
            Ok(())
        });
        Self {
            context: context.clone(),
            reader: TaskReader::new(context),
            requests,
            accepts,
            endings,
            reports,
        }
    }

    /// Requests a task.
    ///
    /// # Errors
    /// `BadRequest` and `TooLarge` say what to change; `IdempotencyConflict` when the key was
    /// used for another request.
    pub async fn request(
        &self,
        org: &OrgId,
        requester: impl Into<Requester>,
        request: Request,
    ) -> Result<Requested, Error> {
        let new = NewTask::check(&self.context.policies, org, requester.into(), request)?;
        new.compile_schema(&self.context.schemas).await?;
        self.send_request(new).await
    }

    /// For those who only read.
    #[must_use]
    pub fn reader(&self) -> TaskReader {
        self.reader.clone()
    }

    pub(in crate::task) async fn send_request(&self, mut new: NewTask) -> Result<Requested, Error> {
        let input = new.take_input();
        new.class = self.context.classes.known(&new.org, &new.request().requires);
        let turn = self.context.request_permits(&new.org);
        let _turn = turn.acquire().await.map_err(|_| Error::Unavailable(None))?;
        let mut requested = self.requests.send(new).await?;
        if !requested.replayed {
            requested.task.input = input;
        }
        Ok(requested)
    }

    /// Accepts an award and starts the work; a repeated call returns the same. For a task with a budget the offered
    /// cost is reserved; without room for it the task waits for budget.
    ///
    /// # Errors
    /// `Fenced` when the award is over, `Conflict` when the task waits for budget now.
    pub async fn accept(&self, key: AssignmentKey, agent: &AgentId) -> Result<Start, Error> {
        match self.command(key, agent, Action::Accept).await? {
            CommandReply::Started(start) => {
                if start.budgeted {
                    self.reserve_offered(key, agent).await?;
                }
                Ok(*start)
            }
            CommandReply::Moved(_) | CommandReply::Nothing | CommandReply::Unchecked(..) => {
                Err(Error::Fenced)
            }
        }
    }

    /// Refuses an award: the next standby offer gets it.
    ///
    /// # Errors
    /// `Fenced` when the award is over, `Conflict` when the work has started.
    pub async fn refuse(&self, key: AssignmentKey, agent: &AgentId, reason: &str) -> Result<(), Error> {
        self.command(key, agent, Action::Refuse { reason: reason.to_owned() }).await.map(drop)
    }

    /// Reports evidence of work; also renews the lease.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over: the work must stop.
    pub async fn progress(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        progress: Progress,
    ) -> Result<(), Error> {
        if progress.progress.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(Error::BadRequest("progress is not between 0 and 1".into()));
        }
        if progress.activity.as_ref().is_some_and(|text| text.len() > 1000) {
            return Err(Error::BadRequest("activity is longer than 1000 bytes".into()));
        }
        if let Some(checkpoint) = &progress.checkpoint {
            check_json("checkpoint", checkpoint, RESULT_BYTES_MAX)?;
        }
        if progress.activity.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(Error::BadRequest(
                "activity contains the character U+0000, which cannot be stored".into(),
            ));
        }
        self.reports.send(Report { key, agent: agent.clone(), evidence: Some(progress) }).await
    }

    /// Renews the lease, without evidence of work.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over: the work must stop.
    pub async fn heartbeat(&self, key: AssignmentKey, agent: &AgentId) -> Result<(), Error> {
        self.reports.send(Report { key, agent: agent.clone(), evidence: None }).await
    }

    /// Delivers the result; a repeated call returns the same.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over: the result is recorded in the event log only. `Conflict` when the task was
    /// canceled in the meantime. `Unstorable` when the database cannot store a value of the result: the assignment
    /// continues. `ResultRefused` when a trigger or constraint refuses it: the task has failed.
    pub async fn finish(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        result: Value,
        usage: Usage,
    ) -> Result<Update, Error> {
        check_json("result", &result, RESULT_BYTES_MAX)?;
        fault::point(fault::Point::TaskFinishing);
        let result = Arc::new(result);
        let mut fit = None;
        for _ in 0..FINISH_TRIES {
            let action = Action::Finish { result: result.clone(), usage, fit: fit.take() };
            let (schema, of) = match self.command(key, agent, action).await {
                Ok(CommandReply::Moved(update)) => return Ok(update),
                Ok(CommandReply::Unchecked(schema, of)) => (schema, of),
                Ok(CommandReply::Started(_) | CommandReply::Nothing) => return Err(Error::Fenced),
                Err(error) => return Err(self.refused(key, agent, usage, error).await),
            };
            // Between two transactions: the check holds no lock and no thread of the runtime, however long it takes.
            let schemas = match &of {
                Some((org, requester)) => self.context.schemas.of(org, &requester.to_string()),
                None => self.context.schemas.clone(),
            };
            let verdict = schemas.fits(&schema, &result).await?;
            fit = Some(Box::new(SchemaCheck { schema, verdict }));
        }
        Err(Error::Busy("the schema of the result keeps changing; try again".into()))
    }

    /// Runs the schemas of results, for agents that check before they deliver.
    #[must_use]
    pub fn schemas(&self) -> Schemas {
        self.context.schemas.clone()
    }

    /// Reports that the attempt failed; another follows while the policy allows it.
    ///
    /// # Errors
    /// As [`TaskCommands::finish`].
    pub async fn fail(&self, key: AssignmentKey, agent: &AgentId, failure: Failure) -> Result<Update, Error> {
        let mut failure = failure;
        failure.message = one_line(&failure.message, 1000);
        self.ended(key, agent, Action::Fail(failure)).await
    }

    /// Gives the task back, with a checkpoint for the next assignee.
    ///
    /// # Errors
    /// As [`TaskCommands::finish`].
    pub async fn release(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        reason: &str,
        checkpoint: Option<Value>,
    ) -> Result<Update, Error> {
        self.give_up(key, agent, reason, checkpoint, false).await
    }

    /// The holder is gone: the task is awarded to another agent at once.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over anyway.
    pub async fn lost(&self, key: AssignmentKey, agent: &AgentId) -> Result<Update, Error> {
        self.ended(key, agent, Action::Lost { daemon: false }).await
    }

    /// Cancels a task: at once if no agent works on it, otherwise when the assignee has stopped or
    /// `policy.cancel_grace` is over. The caller checks the right of its principal to do so
    /// ([`Principal::may_decide_for`](crate::auth::Principal::may_decide_for)).
    ///
    /// # Errors
    /// `UnknownTask`, or `Conflict` with the state when it has ended.
    pub async fn cancel(&self, task: TaskId, reason: &str) -> Result<Update, Error> {
        self.cancel_for(task, reason, None).await
    }

    /// Like [`TaskCommands::cancel`]; `by` is recorded.
    ///
    /// # Errors
    /// As [`TaskCommands::cancel`].
    pub async fn cancel_by(&self, task: TaskId, reason: &str, by: Requester) -> Result<Update, Error> {
        self.cancel_for(task, reason, Some(by.to_string())).await
    }

    async fn cancel_for(&self, task: TaskId, reason: &str, by: Option<String>) -> Result<Update, Error> {
        let action = Action::Cancel { reason: one_line(reason, 1000), by };
        match self.endings.send(TaskCommand { task, holder: None, action }).await? {
            CommandReply::Moved(update) => Ok(update),
            CommandReply::Started(_) | CommandReply::Nothing | CommandReply::Unchecked(..) => {
                Err(Error::UnknownTask(task))
            }
        }
    }

    async fn command(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        action: Action,
    ) -> Result<CommandReply, Error> {
        let command = TaskCommand { task: key.task_id, holder: Some((key, agent.clone())), action };
        let group_commit =
            if matches!(command.action, Action::Accept) { &self.accepts } else { &self.endings };
        match group_commit.send(command).await {
            Err(Error::UnknownTask(_)) => Err(Error::Fenced),
            answer => answer,
        }
    }

    pub(in crate::task) async fn ended(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        action: Action,
    ) -> Result<Update, Error> {
        match self.command(key, agent, action).await? {
            CommandReply::Moved(update) => Ok(update),
            CommandReply::Started(_) | CommandReply::Nothing | CommandReply::Unchecked(..) => {
                Err(Error::Fenced)
            }
        }
    }

    /// Fails the task if a trigger or a constraint of the database refused the result. The work was done and paid, and
    /// another attempt would be refused again.
    async fn refused(&self, key: AssignmentKey, agent: &AgentId, usage: Usage, error: Error) -> Error {
        let Error::Internal(cause) = &error else { return error };
        // An internal error of the database (class XX) may not occur again.
        let Some(code) =
            cause.sqlstate().map(|state| state.code().to_owned()).filter(|it| !it.starts_with("XX"))
        else {
            return error;
        };
        let reason = format!("the database refuses to keep the result (SQLSTATE {code})");
        match self.ended(key, agent, Action::Unstorable { reason, usage }).await {
            Ok(_) => {
                let task = key.task_id;
                self.context.metrics.results_refused.inc();
                if let Some(held_back) = self.context.refused_lines.pass() {
                    tracing::warn!(%task, %agent, sqlstate = code, held_back, "result refused by the database");
                }
                Error::ResultRefused(code)
            }
            Err(_) => error,
        }
    }
}
