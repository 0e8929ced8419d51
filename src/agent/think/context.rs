//! The room of a question in the context of its model: the limit of its answer, the results that are left out of it, and
//! the tool that reads them.
use super::{
    compact,
    machine::{self, tool},
    session::{Session, unwritten},
};
use crate::{
    agent::{failover::Choice, kind::llm::ANSWER_TOKENS_MAX, retry::again, tool::Outcome},
    fault,
    task::{Failure, NoteKind, Step, ToolStep},
};
use serde_json::{Value, json};

/// Most bytes of a part of a result.
const PART_BYTES_MAX: usize = 24 << 10;

impl Session<'_> {
    /// The most tokens of an answer of this model. A small context is not all for the answer.
    pub(super) fn answer_tokens(&self, choice: &Choice) -> u32 {
        let half = choice.model.context_tokens.map(|tokens| tokens / 2);
        let half = half.map_or(u32::MAX, |half| u32::try_from(half).unwrap_or(u32::MAX));
        self.pinned.run.answer_tokens.unwrap_or(ANSWER_TOKENS_MAX).min(half).max(1)
    }

    /// Leaves long results out of the next question, if it would fill the context of its model. Returns whether it does.
    pub(super) async fn compact(&self, steps: &[Step], last: bool) -> Result<bool, Failure> {
        let Some(until) = self.to_leave_out(steps, last) else { return Ok(false) };
        self.note(steps, NoteKind::Compacted, &compact::note(until)).await?;
        fault::point(fault::Point::CompactRecorded);
        Ok(true)
    }

    /// Leaves long results out of the question that takes the place of this one, which its endpoint refused as too large.
    /// Returns whether it does: a run without `step_result` and one without long results keep everything.
    pub(super) async fn compact_refused(
        &self,
        steps: &[Step],
        seq: i32,
        choice: &Choice,
        last: bool,
    ) -> Result<bool, Failure> {
        if !self.pinned.run.knows_a_context() {
            return Ok(false);
        }
        // The estimate of the room was wrong: half of what did not fit is the room.
        let bytes = self.bytes(steps, choice, last)?;
        let Some(until) = compact::due(steps, bytes, bytes) else { return Ok(false) };
        let text = compact::note(until);
        let replace = || self.tasks.replace_question(&self.at, seq, NoteKind::Compacted, &text);
        again(self.job.deadline, replace).await.map_err(|e| unwritten(&e))?;
        fault::point(fault::Point::CompactRecorded);
        Ok(true)
    }

    /// The step up to which long results are to be left out of the next question. `None` if it has room.
    fn to_leave_out(&self, steps: &[Step], last: bool) -> Option<i32> {
        // Without `step_result` the model could not read them again.
        let choice =
            self.choices.first(machine::asked_last(steps)).filter(|_| self.pinned.run.knows_a_context())?;
        let tokens = choice.model.context_tokens?.saturating_sub(self.answer_tokens(choice).into());
        let room = usize::try_from(tokens).unwrap_or(usize::MAX).saturating_mul(compact::BYTES_PER_TOKEN);
        // A question that cannot be made fails when it is asked.
        compact::due(steps, self.bytes(steps, choice, last).ok()?, room)
    }

    fn bytes(&self, steps: &[Step], choice: &Choice, last: bool) -> Result<usize, Failure> {
        Ok(self.question(steps, choice, last)?.body(false).len())
    }

    /// A part of the result of an earlier step.
    pub(super) async fn step_result(&self, call: &ToolStep) -> Outcome {
        let number = |name: &str| call.run_args().get(name).and_then(Value::as_i64);
        let run = match self.tasks.latest_steps(self.at.key.task_id).await {
            Ok(found) => found.map(|found| found.run).filter(|run| run.number == self.at.run),
            Err(error) => return Outcome::Failed("failed", error.to_string(), true),
        };
        let steps = run.map(|run| run.steps).unwrap_or_default();
        let wanted = number("step").and_then(|step| i32::try_from(step).ok());
        let mut ended = steps.iter().filter_map(tool).filter(|(step, _)| step.state.has_ended());
        let found = ended.find(|(step, _)| Some(step.seq) == wanted);
        let Some(result) = found.and_then(|(_, call)| call.result.as_deref()) else {
            return Outcome::Failed("failed", "there is no such step with a result".into(), false);
        };
        let from = number("from").and_then(|from| usize::try_from(from).ok()).unwrap_or_default();
        Outcome::Done(part(result, from).to_string())
    }
}

/// Some bytes of a text from a place in it, and where it goes on.
fn part(text: &str, from: usize) -> Value {
    let boundary =
        |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (from, to) = (boundary(from), boundary(from.saturating_add(PART_BYTES_MAX)));
    let next = (to < text.len()).then_some(to);
    json!({ "bytes": text.len(), "from": from, "next": next, "text": text.get(from..to).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_text_are_the_text() {
        let text = "\u{1f600}".repeat(PART_BYTES_MAX / 3);
        let (mut from, mut all) = (0, String::new());
        loop {
            let part = part(&text, from);
            assert_eq!(part["bytes"], text.len());
            all.push_str(part["text"].as_str().unwrap());
            match part["next"].as_u64() {
                Some(next) => from = usize::try_from(next).unwrap(),
                None => break,
            }
        }
        assert_eq!(all, text);
        assert_eq!(part("abc", 99)["text"], "");
    }
}
