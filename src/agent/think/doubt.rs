//! Calls whose outcome is unknown: they are probed, told, tried again, or a person is asked and the answer used
//! (`docs/spec/thinking-agents.md` §1.4).
use super::{
    calls::error,
    catalog, machine,
    session::{Session, unwritten},
};
use crate::{
    agent::{
        Finished, OnUnknown,
        job::{permanent, retryable},
        retry::again,
        tool::{self, Callable, Outcome, ToolCall, callable},
    },
    fault,
    task::{Approval, Failure, Question, Step, StepState, ToolStep, WaitFor},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

/// Bytes of arguments that a question to a person shows.
const SHOWN_ARGS_MAX: usize = 1_000;
/// How often a checked call is begun, before the model is told that it does not happen.
const CHECKED_TRIES: i32 = 3;
/// How long after the time limit of a call its effect may still come: only after that it did not happen.
const EFFECT_GRACE: Duration = Duration::from_secs(5);
/// Pause before a call of unknown outcome is tried or probed again. It doubles with each try.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// What a probe says about a call.
enum Probed {
    Happened(String),
    Not,
    Unclear,
}

impl Session<'_> {
    /// What the tool of a call says about an unknown outcome. It is behaviour, so it is that of the run.
    fn on_unknown(&self, call: &ToolStep) -> OnUnknown {
        let tool = callable(&self.pinned, &call.name);
        tool.as_ref().and_then(Callable::declared).and_then(|tool| tool.on_unknown).unwrap_or_default()
    }

    /// A call that was begun and is not known to have ended.
    pub(super) async fn doubt_step(&self, steps: &[Step], seq: i32) -> Result<(), Failure> {
        let found = steps.iter().filter_map(machine::tool).find(|(step, _)| step.seq == seq);
        let Some((step, call)) = found else { return Ok(()) };
        if self.use_kept(step, call).await? {
            return Ok(());
        }
        self.doubt(seq, step.tries, call).await
    }

    /// Goes on as the tool says after the outcome of a call turned out to be unknown.
    pub(super) async fn doubt(&self, seq: i32, tries: i32, call: &ToolStep) -> Result<(), Failure> {
        match self.on_unknown(call) {
            OnUnknown::Tell => {
                let told = "it is unknown whether this call had its effect: look whether it happened before you call \
                            it again";
                let text = error("unknown_outcome", told, false);
                let end = self.shown_end(StepState::Failed, &text, self.pinned_bytes(&call.name));
                let ended = again(self.job.deadline, || self.tasks.end_in_doubt(&self.at, seq, &end)).await;
                ended.map_err(|e| unwritten(&e))?;
                fault::point(fault::Point::ToolRecorded);
                Ok(())
            }
            // Never again with an approval that was used: then a person is asked.
            OnUnknown::Retry if call.approval.is_none() => self.pause(tries).await,
            OnUnknown::Ask | OnUnknown::Fail | OnUnknown::Retry => {
                self.asks_about(seq, StepState::Unknown).await
            }
        }
    }

    async fn pause(&self, tries: i32) -> Result<(), Failure> {
        let pause = RETRY_PAUSE.saturating_mul(1 << tries.clamp(0, 10)).min(RETRY_PAUSE_MAX);
        self.wait(pause).await
    }

    async fn wait(&self, pause: Duration) -> Result<(), Failure> {
        tokio::select! {
            () = sleep(pause) => Ok(()),
            () = self.job.stopped() => Err(retryable("the call of a tool was stopped")),
        }
    }

    /// The failure of an attempt that ends with an unknown outcome.
    async fn fail_in_doubt(&self, seq: i32) -> Result<Failure, Failure> {
        self.end_run("unknown_outcome").await?;
        let run = self.at.run;
        Ok(permanent(format!("it is unknown whether the call in step {seq} of run {run} had its effect")))
    }

    /// Asks the probe of a call that was begun. It runs again only if it certainly did not happen.
    pub(super) async fn probe(&self, steps: &[Step], seq: i32) -> Result<(), Failure> {
        let found = steps.iter().filter_map(machine::tool).find(|(step, _)| step.seq == seq);
        let Some((step, call)) = found else { return Ok(()) };
        if self.use_kept(step, call).await? {
            return Ok(());
        }
        let bytes_max = self.pinned_bytes(&call.name);
        let ended = |text: &str| error("failed", text, true);
        match self.probed(call).await? {
            Probed::Happened(result) => self.end_call(seq, StepState::Done, &result, bytes_max, None).await,
            Probed::Unclear => self.doubt(seq, step.tries, call).await,
            Probed::Not if call.approval == Some(Approval::Used) => {
                let text = ended("it did not happen. Call it again to have it approved again");
                self.end_call(seq, StepState::Failed, &text, bytes_max, None).await
            }
            Probed::Not if step.tries >= CHECKED_TRIES => {
                let text = ended("it was tried several times and did not happen");
                self.end_call(seq, StepState::Failed, &text, bytes_max, None).await
            }
            Probed::Not => {
                self.pause(step.tries).await?;
                self.begin_again(step, call).await
            }
        }
    }

    /// Begins a call once more, and runs it.
    async fn begin_again(&self, step: &Step, call: &ToolStep) -> Result<(), Failure> {
        let (_, _permits) = self.with_permits(&[(step, call)]);
        let Ok(costs) = self.begin_calls(&[(step.seq, call)]).await? else {
            return Err(retryable("a limit of the day has no room"));
        };
        self.run_call(step.seq, step.tries, call, costs.get(&step.seq)).await
    }

    /// What the probe says. "Not" counts only when the effect can come no more.
    async fn probed(&self, call: &ToolStep) -> Result<Probed, Failure> {
        let tool = callable(&self.pinned, &call.name);
        let tool = tool.as_ref().and_then(Callable::declared);
        let Some((tool, probe)) =
            tool.and_then(|tool| Some((tool, self.pinned.declared(tool.probe.as_deref()?)?)))
        else {
            return Ok(Probed::Unclear);
        };
        self.shows(format!("calling {}", probe.name));
        match self.asked_probe(call, probe).await? {
            Probed::Not => {}
            probed => return Ok(probed),
        }
        let left = (tool.timeout() + EFFECT_GRACE).saturating_sub(call.age);
        if left.is_zero() {
            return Ok(Probed::Not);
        }
        self.wait(left).await?;
        self.asked_probe(call, probe).await
    }

    async fn asked_probe(&self, call: &ToolStep, probe: &crate::agent::Tool) -> Result<Probed, Failure> {
        let args = json!({ "key": call.key, "arguments": call.run_args() });
        let (ids, stop) = (self.ids(), self.job.stop_token());
        let outcome = tool::call(ToolCall {
            tool: Callable::Declared(probe),
            agent: &self.at.agent,
            org: &self.job.start.org,
            args: &args,
            key: &call.key,
            trace: self.job.start.traceparent,
            ids: &ids,
            folder: self.thinker.definition.folder.as_deref(),
            parts: &self.thinker.parts,
            stop: &stop,
        });
        match outcome.await {
            Outcome::Stopped => Err(retryable("the call of a tool was stopped")),
            Outcome::Done(output) => Ok(said(&output)),
            Outcome::Failed(..) | Outcome::Uncertain(_) => Ok(Probed::Unclear),
        }
    }

    async fn asks_about(&self, seq: i32, state: StepState) -> Result<(), Failure> {
        let answers = self.answers();
        let asked =
            again(self.job.deadline, || self.tasks.ask_about_call(&self.at, seq, state, answers)).await;
        asked.map_err(|e| unwritten(&e))
    }

    /// How many answers the task has.
    pub(super) fn answers(&self) -> i32 {
        i32::try_from(self.job.start.answers.len()).unwrap_or(i32::MAX)
    }

    /// Asks a person, or uses the answer.
    pub(super) async fn ask_person(&self, steps: &[Step], seq: i32) -> Result<Option<Finished>, Failure> {
        let found = steps.iter().filter_map(machine::tool).find(|(step, _)| step.seq == seq);
        let Some((step, call)) = found else { return Ok(None) };
        if step.state == StepState::Unknown && self.on_unknown(call) == OnUnknown::Fail {
            return Err(self.fail_in_doubt(seq).await?);
        }
        let (wait_for, question) = match step.state {
            StepState::Unknown => (WaitFor::Approval, unknown_question(self.at.run, seq, call)),
            _ => {
                let text = call.args.get("question").and_then(Value::as_str).unwrap_or_default();
                (WaitFor::Input, text.trim().to_owned())
            }
        };
        if step.state == StepState::Planned {
            self.asks_about(seq, StepState::Started).await?;
        }
        let asked_after = call.asked_after.filter(|_| step.state != StepState::Planned);
        match (self.answer(asked_after, &question), step.state) {
            (None, _) => {
                let checkpoint = Some(catalog::checkpoint(self.at.run, seq));
                Ok(Some(Finished::Waits(Question {
                    wait_for,
                    question,
                    checkpoint,
                    usage: self.used,
                    calls: Vec::new(),
                    approvers: Vec::new(),
                })))
            }
            (Some(answer), StepState::Unknown) => self.decided(step, call, &answer).await.map(|()| None),
            (Some(answer), _) => {
                self.end_call(seq, StepState::Done, &answer.to_string(), 64 << 10, None).await.map(|()| None)
            }
        }
    }

    /// The answer to this question, if one came since it was asked.
    fn answer(&self, asked_after: Option<i32>, question: &str) -> Option<Value> {
        let after = usize::try_from(asked_after?).ok()?;
        // Answers that raised a budget are among them.
        let later = self.job.start.answers.iter().skip(after);
        let mut ours = later.filter(|it| it.get("question").and_then(Value::as_str) == Some(question));
        ours.next()?.get("answer").cloned()
    }

    /// Carries out what a person said about a call whose outcome is unknown.
    async fn decided(&self, step: &Step, call: &ToolStep, answer: &Value) -> Result<(), Failure> {
        let seq = step.seq;
        let bytes_max = self.pinned_bytes(&call.name);
        match answer.get("outcome").and_then(Value::as_str) {
            Some("done") => {
                let result = match answer.get("result") {
                    Some(Value::String(text)) => text.clone(),
                    other => other.map(Value::to_string).unwrap_or_default(),
                };
                self.end_call(seq, StepState::Done, &result, bytes_max, None).await
            }
            Some("skip") => {
                let text = error("skipped", "a person decided that this call is not carried out", false);
                self.end_call(seq, StepState::Skipped, &text, bytes_max, None).await
            }
            // The answer is used with this row: after another crash the person is asked again.
            Some("not_done") => self.begin_again(step, call).await,
            // Not one of the three: the same question again.
            _ => self.asks_about(seq, StepState::Unknown).await,
        }
    }
}

/// Reads the answer of a probe: `{"happened": true, "result": …}` or `{"happened": false}`.
fn said(output: &str) -> Probed {
    let answer: Value = serde_json::from_str(output).unwrap_or_default();
    match answer.get("happened").and_then(Value::as_bool) {
        Some(true) => Probed::Happened(match answer.get("result") {
            None | Some(Value::Null) => "it happened".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }),
        Some(false) => Probed::Not,
        None => Probed::Unclear,
    }
}

/// The question about a call whose outcome is unknown.
fn unknown_question(run: i32, seq: i32, call: &ToolStep) -> String {
    format!(
        "Did the tool {} have its effect? It was called in step {seq} of run {run} with {} and the idempotency key {}, \
         and its outcome is unknown. Answer {{\"outcome\": \"done\", \"result\": …}}, {{\"outcome\": \"not_done\"}} to \
         run it, or {{\"outcome\": \"skip\"}}.",
        call.name,
        catalog::shown_args(call.run_args(), SHOWN_ARGS_MAX),
        call.key,
    )
}
