//! A part that a model requests: the new task and the end of the step that requested it are one commit, so that a crash
//! can neither lose the part nor request it twice.
use super::{CallEnd, Fence, RunKey, written};
use crate::id::OrgId;
use crate::task::commands::request::{self, NewTask};
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::{sql, to_i64};
use crate::task::storage::transaction::Transaction;
use crate::task::{Error, Request, Requester, Task, TaskCommands, TaskId, TaskState};
use serde_json::Value;
use tokio_postgres::Row;

/// Most parts of a task that are read at once.
const PARTS_MAX: i64 = 50;

/// A part of a task, as a model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its id.
    pub id: TaskId,
    /// The kind of work.
    pub kind: String,
    /// Its state.
    pub state: TaskState,
    /// The reason of the state.
    pub state_reason: Option<String>,
    /// The result, if it has at most 16 KiB.
    pub result: Option<Value>,
    /// Whether it has a longer one.
    pub too_long: bool,
}

impl Part {
    fn from_row(row: &Row) -> Result<Self, Unreadable> {
        Ok(Self {
            id: rows::task_id(row, "id")?,
            kind: row.read("kind")?,
            state: rows::state(row, "state")?,
            state_reason: row.read("state_reason")?,
            result: row.read("result")?,
            too_long: row.read("too_long")?,
        })
    }
}

impl TaskCommands {
    /// Requests a part of the task of a run and ends the call `seq` with its result, in one commit. `end` makes the
    /// result that the model is shown, from the new task or from why it was refused.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over or the call has ended: nothing was requested. `Unavailable` and `Internal`
    /// when the database failed: it may be called again.
    pub async fn end_call_requesting(
        &self,
        at: &RunKey,
        org: &OrgId,
        seq: i32,
        mut wish: Request,
        end: impl FnOnce(Result<&Task, &Error>) -> CallEnd + Send,
    ) -> Result<(), Error> {
        wish.parent_id = Some(at.key.task_id);
        let requester = Requester::Agent { org: org.clone(), id: at.agent.clone() };
        let checked = NewTask::check(&self.context.policies, org, requester, wish);
        let mut new = match checked {
            Ok(new) => new,
            Err(refused) => return self.end_call(at, seq, &end(Err(&refused)), None).await,
        };
        if let Err(refused) = new.compile_schema(&self.context.schemas).await {
            return self.end_call(at, seq, &end(Err(&refused)), None).await;
        }
        new.held_by(at.key, at.agent.clone());
        let turn = self.context.request_permits(&new.org);
        let _turn = turn.acquire().await.map_err(|_| Error::Unavailable(None))?;
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let made = request::write(&tx, std::slice::from_ref(&new)).await?;
        let end = match made.answers.first() {
            Some(Ok(requested)) => end(Ok(&requested.task)),
            // They are no words for a model: the assignment is over, or the database failed.
            Some(Err(Error::Fenced)) => return Err(Error::Fenced),
            None | Some(Err(Error::Unavailable(_) | Error::Internal(_))) => {
                return Err(Error::Unavailable(None));
            }
            Some(Err(refused)) => end(Err(refused)),
        };
        let fence = Fence::of(at);
        let (state, bytes) = (end.state.as_str(), to_i64(end.bytes));
        let params = fence.with(&[&seq, &state, &end.result, &bytes, &end.cut, &1_i32]);
        written(&tx.query(sql!("step_end"), &params).await?)?;
        made.commit(&self.context, &tx).await.map(drop)
    }

    /// The parts of a task, oldest first, at most 50.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn parts(&self, parent: TaskId) -> Result<Vec<Part>, Error> {
        let rows = self.query(sql!("parts"), &[&parent.as_uuid(), &PARTS_MAX]).await?;
        rows.iter().map(Part::from_row).collect::<Result<_, _>>().map_err(Error::from)
    }
}
