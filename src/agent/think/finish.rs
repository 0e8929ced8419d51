//! Performs the calls that end a run: `finish` and `give_up`.
use super::{calls::error, catalog, machine, session::Session};
use crate::{
    agent::{
        Finished,
        job::{permanent, retryable},
    },
    fault,
    task::{Failure, Step, StepState},
};

impl Session<'_> {
    /// Refuses a call of `finish` beside one that failed.
    pub(super) async fn refuse_finish(&self, seq: i32) -> Result<(), Failure> {
        let text = error("failed", "a call beside finish failed: look at the results first", true);
        self.end_call(seq, StepState::Failed, &text, 32 << 10, None).await
    }

    /// Ends the run with the result of the call `finish`. `None` if the result was refused: the model is told why.
    pub(super) async fn finish(&self, steps: &[Step], seq: i32) -> Result<Option<Finished>, Failure> {
        let found = steps.iter().filter_map(machine::tool).find(|(step, _)| step.seq == seq);
        let Some((step, call)) = found else { return Err(retryable("the step of the result is gone")) };
        let result = match self.judged_answer(self.catalog.result_of(&call.args)).await? {
            Ok(result) => result,
            Err(why) if step.state.has_ended() => return Err(permanent(format!("the result: {why}"))),
            Err(why) => {
                self.end_call(seq, StepState::Failed, &error("denied", &why, true), 32 << 10, None).await?;
                return Ok(None);
            }
        };
        if !step.state.has_ended() {
            self.end_call(seq, StepState::Done, "accepted", 32 << 10, None).await?;
        }
        self.end_run("finish").await?;
        fault::point(fault::Point::RunFinishing);
        Ok(Some(Finished::Result { result, usage: self.used }))
    }

    /// Ends the run with the reason of the call `give_up`. Returns the failure of the job.
    pub(super) async fn give_up(&self, steps: &[Step], seq: i32) -> Result<Failure, Failure> {
        let found = steps.iter().filter_map(machine::tool).find(|(step, _)| step.seq == seq);
        let Some((step, call)) = found else { return Err(retryable("the step of the reason is gone")) };
        if !step.state.has_ended() {
            self.end_call(seq, StepState::Done, "accepted", 32 << 10, None).await?;
        }
        self.end_run("give_up").await?;
        // The reason is a text of the model, so it stays in the rows.
        let message = format!("the agent gave up: step {seq} of run {} has the reason", self.at.run);
        Ok(if catalog::give_up(&call.args) { retryable(message) } else { permanent(message) })
    }
}
