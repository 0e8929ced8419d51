//! Commands beside the usual course: confirm, ask and answer, postpone, request a part, requeue.
use crate::fault;
use crate::task::commands::command::{Action, CommandReply, TaskCommand};
use crate::task::machine::TaskEvent;
use crate::task::model::validate::{check_json, one_line};
use crate::task::storage::locked_task::lock;
use crate::task::storage::rows;
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, AssignmentKey, Error, Notice, OrgId, QUESTION_BYTES_MAX, Question, RESULT_BYTES_MAX, Request,
    Requested, Requester, TaskCommands, TaskId, TaskState, Update, commands::request, decisions,
};
use serde_json::Value;
use std::time::Duration;
use uuid::Uuid;

/// Largest answer to a question, in bytes of JSON.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl TaskCommands {
    /// Confirms an award without starting; the work must be [accepted](TaskCommands::accept) within the policy's
    /// `start`, else it goes to the next standby offer. For agents that must get ready first.
    ///
    /// # Errors
    /// `Fenced` when the award is over, `Conflict` when the work has started.
    pub async fn confirm(&self, key: AssignmentKey, agent: &AgentId) -> Result<Update, Error> {
        self.ended(key, agent, Action::Confirm).await
    }

    /// Asks for what the assignee needs: input, approval or budget. Its run ends: the task is `waiting`, its slot is
    /// free, its lease suspended. With the answer it is awarded again, to the same agent first, as the same attempt,
    /// with the checkpoint and all answers in its start. A repeated call returns the same.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over, `Conflict` when the task was canceled meanwhile, `BadRequest`
    /// and `TooLarge` for what cannot be asked.
    pub async fn ask(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        question: Question,
    ) -> Result<Update, Error> {
        if question.question.trim().is_empty() {
            return Err(Error::BadRequest("the question is empty".into()));
        }
        if question.question.len() > QUESTION_BYTES_MAX {
            let bytes = question.question.len();
            return Err(Error::TooLarge { what: "question", bytes, bytes_max: QUESTION_BYTES_MAX });
        }
        check_json("question", &question.question.clone().into(), 2 * QUESTION_BYTES_MAX)?;
        if let Some(checkpoint) = &question.checkpoint {
            check_json("checkpoint", checkpoint, RESULT_BYTES_MAX)?;
        }
        let update = self.ended(key, agent, Action::Wait(Box::new(question))).await?;
        fault::point(fault::Point::TaskWaiting);
        Ok(update)
    }

    /// Answers the question of a task, which resumes as soon as an agent is free. `by` is recorded.
    ///
    /// # Errors
    /// `UnknownTask`; `Conflict` with the state when it does not wait; `Forbidden` to the agent that asked, and to
    /// every agent of the tree if it is about calls to approve; `BadRequest` and `TooLarge` for an answer that cannot
    /// be stored, or decides about no such call.
    pub async fn answer(
        &self,
        task: TaskId,
        by: impl Into<Requester>,
        answer: Value,
    ) -> Result<Update, Error> {
        let by: Requester = by.into();
        check_json("answer", &answer, ANSWER_BYTES_MAX)?;
        let found = self.get(task).await?;
        if found.state == TaskState::Waiting
            && found.agent_id.is_some()
            && found.agent_id.as_ref() == by.agent()
        {
            return Err(Error::Forbidden("the agent that asked cannot answer".into()));
        }
        if let Some(calls) = found.question.as_ref().filter(|_| found.state == TaskState::Waiting) {
            self.check_approval(task, &by, calls, &answer).await?;
        }
        let action = Action::Answer { answer, by: by.to_string() };
        match self.endings.send(TaskCommand { task, holder: None, action }).await? {
            CommandReply::Moved(update) => {
                fault::point(fault::Point::TaskAnswered);
                Ok(update)
            }
            CommandReply::Started(_) | CommandReply::Nothing | CommandReply::Unchecked(..) => {
                Err(Error::UnknownTask(task))
            }
        }
    }

    /// Checks an answer to a question about calls: who gives it, and its form. If the task asks something else
    /// meanwhile, the ids of the calls are unknown there, and the answer decides nothing.
    async fn check_approval(
        &self,
        task: TaskId,
        by: &Requester,
        question: &Value,
        answer: &Value,
    ) -> Result<(), Error> {
        let Some(calls) = question.get("calls").and_then(Value::as_array) else { return Ok(()) };
        if let Some(agent) = by.agent() {
            let rows = self.query(sql!("works_in_tree"), &[&task.as_uuid(), &agent.as_str()]).await?;
            if rows::all::<bool>(&rows, "works_in_tree")?.contains(&true) {
                return Err(Error::Forbidden(
                    "an agent that works in the tree of the task cannot approve".into(),
                ));
            }
        }
        let ids: Vec<&str> = calls.iter().filter_map(|call| call.get("id")?.as_str()).collect();
        decisions(&ids, answer).map(drop).map_err(|why| Error::BadRequest(format!("answer: {why}")))
    }

    /// Gives the task back because of an outage, like a stop of the daemon. It counts as no attempt for
    /// `policy.outage`.
    ///
    /// # Errors
    /// As [`TaskCommands::finish`].
    pub async fn postpone(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        reason: &str,
        checkpoint: Option<Value>,
    ) -> Result<Update, Error> {
        self.give_up(key, agent, reason, checkpoint, true).await
    }

    /// Gives the task back for a time, in which it holds no slot; then the same agent is asked first to go on with the
    /// same attempt.
    ///
    /// # Errors
    /// As [`TaskCommands::finish`].
    pub async fn defer(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        reason: &str,
        after: Duration,
    ) -> Result<Update, Error> {
        let reason = one_line(reason, 1000);
        let action = Action::Release { reason, checkpoint: None, outage: false, after: Some(after) };
        self.ended(key, agent, action).await
    }

    pub(in crate::task) async fn give_up(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        reason: &str,
        checkpoint: Option<Value>,
        outage: bool,
    ) -> Result<Update, Error> {
        if let Some(checkpoint) = &checkpoint {
            check_json("checkpoint", checkpoint, RESULT_BYTES_MAX)?;
        }
        let reason = one_line(reason, 1000);
        self.ended(key, agent, Action::Release { reason, checkpoint, outage, after: None }).await
    }

    /// Requests a part of the task that this assignment works on: its parent is that task, its requester the
    /// assignee.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over; else as [`TaskCommands::request`].
    pub async fn request_part(
        &self,
        org: &OrgId,
        key: AssignmentKey,
        agent: &AgentId,
        mut wish: Request,
    ) -> Result<Requested, Error> {
        if wish.parent_id.is_some_and(|parent| parent != key.task_id) {
            return Err(Error::BadRequest("parent_id is not the task of the assignment".into()));
        }
        wish.parent_id = Some(key.task_id);
        let requester = Requester::Agent { org: org.clone(), id: agent.clone() };
        let mut new = request::NewTask::check(&self.context.policies, org, requester, wish)?;
        new.compile_schema(&self.context.schemas).await?;
        new.held_by(key, agent.clone());
        self.send_request(new).await
    }

    /// Opens a failed or canceled task again, with all its attempts, a rising epoch, and without a deadline that has
    /// passed. Its dependencies are checked again.
    ///
    /// # Errors
    /// `UnknownTask`; `Conflict` with the state when it has not failed and was not canceled; `ParentEnded` for a part
    /// whose parent ended without it.
    pub async fn requeue(&self, task: TaskId, by: impl Into<Requester>) -> Result<Update, Error> {
        let context = &self.context;
        let mut client = context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let parent = run(&tx, sql!("parent"), &[&task.as_uuid()]).await?;
        let parent =
            rows::all::<Option<Uuid>>(&parent, "parent_id")?.into_iter().flatten().next().map(TaskId::from);
        let ids: Vec<TaskId> = parent.into_iter().chain([task]).collect();
        let (mut found, broken) = lock(&tx, &ids).await?;
        if let Some(one) = broken.first() {
            return Err(one.refusal());
        }
        let at = found.iter().position(|row| row.id == task).ok_or(Error::UnknownTask(task))?;
        let row = found.swap_remove(at);
        let parent = found.pop();
        if let Some(ended) = parent.as_ref().filter(|parent| {
            matches!(parent.facts.state, TaskState::Canceling | TaskState::Canceled | TaskState::Failed)
        }) {
            return Err(Error::ParentEnded { parent: ended.id, state: ended.facts.state });
        }
        let event = TaskEvent::Requeue { blocked: row.depends };
        let step = row.facts.next(event).map_err(|refused| Error::Conflict { state: refused.state })?;
        let by = by.into().to_string();
        let rows = run(&tx, sql!("requeue"), &[&task.as_uuid(), &step.state.as_str(), &by]).await?;
        let parents: Vec<Uuid> = parent.iter().map(|parent| parent.id.as_uuid()).collect();
        run(&tx, sql!("mark_followed"), &[&Vec::<Uuid>::new(), &parents]).await?;
        context.call_arbiter(&tx).await?;
        let update = Update::from_row(rows.first().ok_or(Error::Conflict { state: row.facts.state })?)?;
        tx.commit().await?;
        fault::point(fault::Point::TaskRequeued);
        context.notify_arbiter();
        context.publish(vec![Notice::Updated(update.clone())]);
        Ok(update)
    }
}
