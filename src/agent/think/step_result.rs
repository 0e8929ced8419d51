//! What a run does about the size of its questions: the choice of results to leave out, and the tool that reads them.
use super::{compact, machine::tool, perform::ANSWER_TOKENS_MAX, session::Session};
use crate::{
    agent::tool::Outcome,
    task::{Step, ToolStep},
};
use serde_json::{Value, json};

/// Most bytes of a part of a result.
const PART_BYTES_MAX: usize = 24 << 10;

impl Session<'_> {
    /// The step up to which long results are to be left out before the next question. `None` if it has room.
    pub(super) fn to_leave_out(&self, steps: &[Step], last: bool) -> Option<i32> {
        let tokens = self.pinned.run.context_tokens?;
        // A question that cannot be made fails when it is asked.
        let question = self.question(steps, last).ok()?;
        // A small context is not all for the answer.
        let tokens = tokens.saturating_sub(ANSWER_TOKENS_MAX).max(tokens / 2);
        let room = usize::try_from(tokens).unwrap_or(usize::MAX).saturating_mul(compact::BYTES_PER_TOKEN);
        compact::due(steps, question.body(false).to_string().len(), room)
    }

    /// A part of the result of an earlier step.
    pub(super) async fn step_result(&self, call: &ToolStep) -> Outcome {
        let number = |name: &str| call.run_args().get(name).and_then(Value::as_i64);
        let run = match self.tasks.latest_run(self.at.key.task_id).await {
            Ok(found) => found.map(|found| found.run).filter(|run| run.number == self.at.run),
            Err(error) => return Outcome::Failed("failed", error.to_string(), true),
        };
        let steps = run.map(|run| run.steps).unwrap_or_default();
        let wanted = number("step").and_then(|step| i32::try_from(step).ok());
        let found = steps.iter().filter_map(tool).find(|(step, _)| Some(step.seq) == wanted);
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
