//! Commands around the straight way: confirm now and start later, ask and be answered, parts, once more.
use super::desk::{Act, Command, Done};
use super::machine::Event;
use super::store::{self, run, sql};
use super::{
    AgentId, AssignmentKey, Epoch, Error, Notice, OrgId, QUESTION_BYTES_MAX, Question, RESULT_BYTES_MAX,
    Request, Requested, TaskId, TaskState, Tasks, Update, request,
};
use crate::{db, fault};
use serde_json::Value;
use uuid::Uuid;

/// Largest answer to a question, in bytes of JSON.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl Tasks {
    /// Confirms an award without starting; the work must be [accepted](Tasks::accept) within the policy's
    /// `start`, else it goes to the next standby offer. For agents that must get ready first.
    ///
    /// # Errors
    /// `Fenced` when the award is over, `Conflict` when the work has started.
    pub async fn confirm(&self, key: AssignmentKey, agent: &AgentId) -> Result<Update, Error> {
        self.ended(key, agent, Act::Confirm).await
    }

    /// Asks for what the assignee needs: a person's word or consent, or budget. Its run ends with this; the
    /// task is `waiting`, its slot is free, its lease suspended. With the answer it is awarded again, to
    /// the same agent first, as the same attempt, with the checkpoint and all answers in its start.
    /// A repeat gets the same answer.
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
        request::check_json("question", &question.question.clone().into(), 2 * QUESTION_BYTES_MAX)?;
        if let Some(checkpoint) = &question.checkpoint {
            request::check_json("checkpoint", checkpoint, RESULT_BYTES_MAX)?;
        }
        let update = self.ended(key, agent, Act::Wait(Box::new(question))).await?;
        fault::point("task.waiting");
        Ok(update)
    }

    /// Answers what a task waits for; `by` is who answers. It goes on as soon as an agent is free.
    ///
    /// # Errors
    /// `UnknownTask`; `Conflict` with the state when it does not wait; `Forbidden` to the agent that asked;
    /// `BadRequest` and `TooLarge` for what is no answer.
    pub async fn answer(&self, task: TaskId, by: &str, answer: Value) -> Result<Update, Error> {
        request::check_json("answer", &answer, ANSWER_BYTES_MAX)?;
        let found = self.get(task).await?;
        if found.state == TaskState::Waiting && found.agent_id.is_some_and(|agent| agent.as_str() == by) {
            return Err(Error::Forbidden("who asked cannot answer".into()));
        }
        let act = Act::Answer { answer, by: request::one_line(by, 200) };
        match self.endings.send(Command { task, holder: None, act }).await? {
            Done::Moved(update) => {
                fault::point("task.answered");
                Ok(update)
            }
            Done::Started(_) | Done::Nothing => Err(Error::UnknownTask(task)),
        }
    }

    /// Requests a task that is a part of the one that this assignment works on: its parent is that task,
    /// its requester the assignee.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over; else as [`Tasks::request`].
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
        let mut new = request::New::check(&self.shared, org, agent.as_str(), wish)?;
        new.held_by(key, agent.clone());
        self.send_request(new).await
    }

    /// Tries a task again that has failed or was canceled: open again, with all its attempts before it, an
    /// epoch that rises on, and no deadline that has passed. What it depends on is asked for again.
    ///
    /// # Errors
    /// `UnknownTask`; `Conflict` with the state when it has not failed and was not canceled; `ParentEnded` for
    /// a part of a task that ended without it, which nobody would use.
    pub async fn requeue(&self, task: TaskId, by: &str) -> Result<Update, Error> {
        let shared = &self.shared;
        let mut client = shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        let parent = run(&tx, sql!("parent"), &[&task.as_uuid()]).await?;
        let parent = parent.first().and_then(|row| row.get::<_, Option<Uuid>>("parent_id")).map(TaskId::from);
        let ids: Vec<TaskId> = parent.into_iter().chain([task]).collect();
        let mut rows = store::lock(&tx, &ids).await?;
        let at = rows.iter().position(|row| row.id == task).ok_or(Error::UnknownTask(task))?;
        let row = rows.swap_remove(at);
        let parent = rows.pop();
        if let Some(ended) = parent.as_ref().filter(|parent| {
            matches!(parent.facts.state, TaskState::Canceling | TaskState::Canceled | TaskState::Failed)
        }) {
            return Err(Error::ParentEnded { parent: ended.id, state: ended.facts.state });
        }
        let event = Event::Requeue { blocked: row.depends };
        let step = row.facts.next(event).map_err(|refused| Error::Conflict { state: refused.state })?;
        let by = request::one_line(by, 200);
        let rows = run(&tx, sql!("requeue"), &[&task.as_uuid(), &step.state.as_str(), &by]).await?;
        let parents: Vec<Uuid> = parent.iter().map(|parent| parent.id.as_uuid()).collect();
        run(&tx, sql!("mark"), &[&Vec::<Uuid>::new(), &parents]).await?;
        shared.call_arbiter(&tx).await?;
        let row = rows.first().ok_or(Error::Conflict { state: row.facts.state })?;
        let update = Update {
            id: task,
            org: OrgId::try_from(row.get::<_, &str>("org")).map_err(|e| Error::BadRequest(e.to_string()))?,
            kind: row.get("kind"),
            state: step.state,
            state_reason: None,
            epoch: Epoch(row.get("epoch")),
            agent_id: None,
            requester: row.get("requester"),
        };
        tx.commit().await.map_err(db::Error::from)?;
        fault::point("task.requeued");
        shared.committed(vec![Notice::Updated(update.clone())], true);
        Ok(update)
    }
}
