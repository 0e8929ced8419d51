//! Questions to models outside of a step: recorded before they are sent, and settled with what they used.
use crate::task::storage::model_questions;
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, AssignmentKey, Error, InsufficientBudget, ModelQuestion, ModelUsage, TaskCommands, TaskId,
};
use uuid::Uuid;

impl TaskCommands {
    /// Records a question of an assignment before it is sent. `step`: the run and the number of the step that asks.
    /// Until it has ended, it counts as its most if the assignment ends.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over. The inner error when a limit of the day has no room; nothing is recorded
    /// then.
    pub async fn ask_model(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        step: Option<(i32, i32)>,
        question: &ModelQuestion,
    ) -> Result<Result<(), InsufficientBudget>, Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        if let Err(short) = model_questions::ask(&tx, key, agent, step, question).await? {
            return Ok(Err(short));
        }
        tx.commit().await?;
        Ok(Ok(()))
    }

    /// Ends a question with what it used. It counts also if the assignment is over: a late report replaces what was
    /// presumed. A question that has ended with its usage stays as it is.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn end_model_question(&self, question: Uuid, used: &ModelUsage) -> Result<(), Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        // The assignment before the question, as where it ends; and a statement of its own, so that the next one sees
        // the charge of an assignment that has just ended.
        run(&tx, sql!("question_lock"), &[&question]).await?;
        model_questions::end(&tx, question, used).await?;
        tx.commit().await
    }

    /// Records what an agent used to make an offer for a task. Nothing if the task is gone.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn record_offer_usage(
        &self,
        task: TaskId,
        agent: &AgentId,
        provider: &str,
        model: &str,
        used: &ModelUsage,
    ) -> Result<(), Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let id = Uuid::new_v4();
        run(&tx, sql!("question_offer"), &[&id, &task.as_uuid(), &agent.as_str(), &provider, &model]).await?;
        model_questions::end(&tx, id, used).await?;
        tx.commit().await
    }
}
