//! The tools `request_task` and `tasks`: parts of the task of a run.
use super::{
    calls::error,
    session::{Session, unwritten},
};
use crate::{
    agent::{PartKind, retry::again, tool::Outcome},
    fault,
    task::{CallEnd, Error, Failure, Part, Request, StepState, Task, ToolStep},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How long `tasks` waits for the end of parts.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(600);
/// How often the rows of parts are read at least: other nodes end parts too.
const READ_EVERY: Duration = Duration::from_secs(2);

impl Session<'_> {
    /// Requests a part in the commit that ends its step.
    pub(super) async fn request_part(
        &self,
        seq: i32,
        call: &ToolStep,
        kinds: &BTreeMap<String, PartKind>,
        bytes_max: usize,
    ) -> Result<(), Failure> {
        let kind = call.run_args().get("kind").and_then(Value::as_str).unwrap_or_default();
        // The definition of now: the model chose among the kinds of the run's start.
        let Some(part) = kinds.get(kind) else {
            let text = error("denied", "the agent may not request this kind any more", false);
            return self.end_call(seq, StepState::Failed, &text, bytes_max, None).await;
        };
        let wish = Request {
            kind: kind.to_owned(),
            requires: part.requires.clone(),
            input: call.run_args().get("input").cloned().unwrap_or_default(),
            traceparent: self.span(seq),
            ..Request::default()
        };
        let end = |made: Result<&Task, &Error>| -> CallEnd {
            match made {
                Ok(task) => {
                    let text = json!({ "task_id": task.id, "state": task.state }).to_string();
                    self.shown_end(StepState::Done, &text, bytes_max)
                }
                Err(refused) => {
                    let text = error("failed", &refused.to_string(), false);
                    self.shown_end(StepState::Failed, &text, bytes_max)
                }
            }
        };
        let org = &self.job.start.org;
        let request = || self.tasks.end_call_requesting(&self.at, org, seq, wish.clone(), end);
        again(self.job.deadline, request).await.map_err(|e| unwritten(&e))?;
        fault::point(fault::Point::ToolRecorded);
        Ok(())
    }

    /// The parts of the task; with `wait`, when all of them have ended, or after a while.
    pub(super) async fn parts(&self, call: &ToolStep) -> Outcome {
        let waits = call.run_args().get("wait").and_then(Value::as_bool).unwrap_or_default();
        let until = if waits { self.job.deadline.min(Instant::now() + WAIT_MAX) } else { Instant::now() };
        let mut changed = self.tasks.changed();
        loop {
            changed.borrow_and_update();
            let read = again(self.job.deadline, || self.tasks.parts(self.at.key.task_id));
            let parts = tokio::select! {
                parts = read => parts,
                () = self.job.stopped() => return Outcome::Stopped,
            };
            let parts = match parts {
                Ok(parts) => parts,
                Err(error) => return Outcome::Failed("failed", error.to_string(), true),
            };
            if Instant::now() >= until || parts.iter().all(|part| part.state.is_final()) {
                let shown: Vec<Value> = parts.iter().map(shown).collect();
                return Outcome::Done(json!({ "tasks": shown }).to_string());
            }
            let next = until.min(Instant::now() + READ_EVERY);
            tokio::select! {
                _ = timeout_at(next, changed.changed()) => {}
                () = self.job.stopped() => return Outcome::Stopped,
            }
        }
    }
}

fn shown(part: &Part) -> Value {
    let mut shown = json!({ "task_id": part.id, "kind": part.kind, "state": part.state });
    if let Value::Object(members) = &mut shown {
        members.extend(part.state_reason.clone().map(|reason| ("reason".to_owned(), json!(reason))));
        members.extend(part.result.clone().map(|result| ("result".to_owned(), result)));
        members.extend(part.too_long.then(|| ("result_is_left_out".to_owned(), json!(true))));
    }
    shown
}
