//! Approvals of calls before they begin (`docs/spec/thinking-agents.md` §3.5).
//!
//! Whether a call needs one is judged when it is about to begin, by the rules of now and not by those of the run. That
//! it waits is a row before a person is asked, the decision is a row before the call begins, and the row that begins
//! the call uses the approval up. So a daemon that is killed anywhere neither forgets a question nor runs a call twice
//! with one approval.
use super::{
    calls::{self, Call, Verdict, error},
    catalog, machine,
    session::{Session, unwritten},
};
use crate::{
    agent::{
        ApprovalRule, Finished, definition::APPROVAL_EXPIRES, job::retryable, retry::again, tool::callable,
        wake::Context,
    },
    fault,
    task::{
        Approval, ApprovalCall, CallDecision, Decision, Failure, QUESTION_BYTES_MAX, Question, Step,
        StepState, ToolStep, WaitFor, decisions,
    },
};
use serde_json::{Value, json};
use std::time::Duration;

/// Most bytes of arguments that one question shows. One call always fits.
const ASKED_BYTES_MAX: usize = 128 << 10;
/// Bytes of arguments of one call in the text of a question.
const SHOWN_ARGS_MAX: usize = 200;

/// An answer that decides about calls.
struct Decided {
    by: String,
    at: String,
    calls: Vec<CallDecision>,
}

impl Session<'_> {
    /// The calls of these that may not begin without an approval, and have none.
    pub(super) fn calls_to_hold(&self, steps: &[Step], calls: &[(&Step, &ToolStep)]) -> Vec<i32> {
        let needs = |(step, call): &&(&Step, &ToolStep)| {
            step.state == StepState::Planned
                && call.approval.is_none()
                && (self.needs_approval(call) || is_in_doubt(steps, call))
        };
        calls.iter().filter(needs).map(|(step, _)| step.seq).collect()
    }

    /// Judged by the agent's own definition: what is permitted is looked up now. A tool that was taken away needs no
    /// approval, as its call is denied.
    fn needs_approval(&self, call: &ToolStep) -> bool {
        let Some(rule) = self.approval(&call.name) else { return false };
        let start = &self.job.start;
        let (tokens, microdollars) = self.spent;
        let names = json!({
            "args": call.run_args(),
            "task": { "id": start.key.task_id, "org": start.org, "kind": start.kind, "input": start.input,
                "attempt": start.attempt },
            "agent": { "id": self.at.agent },
            "spent": { "tokens": tokens, "microdollars": microdollars },
        });
        match names {
            Value::Object(names) => rule.is_needed(&Context::new(names)),
            _ => true,
        }
    }

    /// Records that calls wait for an approval.
    pub(super) async fn hold(&self, seqs: &[i32]) -> Result<(), Failure> {
        let answers = self.answers();
        let held = again(self.job.deadline, || self.tasks.hold_calls(&self.at, seqs, answers)).await;
        held.map_err(|e| unwritten(&e))?;
        fault::point(fault::Point::RunAsked);
        Ok(())
    }

    /// Asks a person to approve these calls, or records what the person decided.
    pub(super) async fn ask_approval(
        &self,
        steps: &[Step],
        seqs: &[i32],
    ) -> Result<Option<Finished>, Failure> {
        let calls = steps.iter().filter_map(machine::tool).filter(|(step, _)| seqs.contains(&step.seq));
        let calls: Vec<(&Step, &ToolStep)> = calls.collect();
        let expired = calls.iter().filter(|(_, call)| call.approval == Some(Approval::Expired));
        let expired: Vec<i32> = expired.map(|(step, _)| step.seq).collect();
        if !expired.is_empty() {
            return self.hold(&expired).await.map(|()| None);
        }
        let (calls, asked) = self.asked(&calls);
        let (decided, refused) = self.decided_about(&calls, &asked).await?;
        if let Some(Decided { by, at, calls }) = decided {
            let decide = || self.tasks.decide_calls(&self.at, &by, &at, &calls);
            again(self.job.deadline, decide).await.map_err(|e| unwritten(&e))?;
            fault::point(fault::Point::RunAnswered);
            return Ok(None);
        }
        Ok(Some(Finished::Waits(Question {
            wait_for: WaitFor::Approval,
            question: question(&asked, refused.as_deref()),
            checkpoint: seqs.first().map(|seq| catalog::checkpoint(self.at.run, *seq)),
            usage: self.used,
            approvers: self.approvers(&asked),
            calls: asked,
        })))
    }

    /// The calls of the next question, and how it shows them: the first ones, as many as fit.
    fn asked<'c>(&self, calls: &[(&'c Step, &'c ToolStep)]) -> (Vec<&'c ToolStep>, Vec<ApprovalCall>) {
        let mut bytes = 0;
        let mut all = (Vec::new(), Vec::new());
        for (step, call) in calls {
            let one = ApprovalCall::new(
                self.at.key.task_id,
                (self.at.run, step.seq),
                &call.name,
                call.effect,
                call.run_args(),
            );
            bytes += one.arguments.len();
            if bytes > ASKED_BYTES_MAX && !all.1.is_empty() {
                break;
            }
            all.0.push(*call);
            all.1.push(one);
        }
        all
    }

    /// The first answer since these calls were held that decides about them. Also why a later one was not used.
    async fn decided_about(
        &self,
        calls: &[&ToolStep],
        asked: &[ApprovalCall],
    ) -> Result<(Option<Decided>, Option<String>), Failure> {
        let after = calls.iter().filter_map(|call| call.asked_after).max().unwrap_or(0);
        let ids: Vec<&str> = asked.iter().map(|one| one.id.as_str()).collect();
        let mut refused = None;
        for answer in self.job.start.answers.iter().skip(usize::try_from(after).unwrap_or(0)) {
            // The ids tell: an answer to another question names none of these calls.
            let Ok(found) = decisions(&ids, answer.get("answer").unwrap_or(&Value::Null)) else { continue };
            let mut decided = Vec::with_capacity(found.len());
            refused = None;
            for (one, decision) in asked.iter().zip(found) {
                match self.decision(one, decision).await? {
                    Ok(one) => decided.push(one),
                    Err(why) => refused = Some(format!("{}: {why}", one.id)),
                }
            }
            if refused.is_none() {
                let text =
                    |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                return Ok((Some(Decided { by: text("by"), at: text("at"), calls: decided }), None));
            }
        }
        Ok((None, refused))
    }

    /// A decision as it is recorded. The inner error says why arguments of the person cannot be used.
    async fn decision(
        &self,
        asked: &ApprovalCall,
        decision: Decision,
    ) -> Result<Result<CallDecision, String>, Failure> {
        let mut edited_sha256 = None;
        if let Decision::Edit(args) = &decision {
            let call = Call { wire_id: None, name: asked.tool.clone(), args: Ok(args.clone()) };
            let checked = self.catalog.check(&self.thinker.schemas, &call, None, usize::MAX).await;
            match checked.map_err(|e| retryable(e.to_string()))? {
                Verdict::Valid { .. } => edited_sha256 = Some(calls::args_sha256(args)),
                Verdict::Refused { error, .. } => return Ok(Err(error)),
            }
        }
        let result = match &decision {
            Decision::Deny(reason) => Some(error("denied", reason, false)),
            _ => None,
        };
        let expires = self.expires(&asked.tool);
        Ok(Ok(CallDecision { seq: asked.seq, decision, edited_sha256, result, expires }))
    }

    /// The roles that may approve all of these calls.
    fn approvers(&self, asked: &[ApprovalCall]) -> Vec<String> {
        let of = |one: &ApprovalCall| {
            self.approval(&one.tool).map(|rule| rule.approvers.clone()).unwrap_or_default()
        };
        let Some((first, others)) = asked.split_first() else { return Vec::new() };
        let mut roles = of(first);
        for one in others {
            let theirs = of(one);
            roles.retain(|role| theirs.contains(role));
        }
        roles
    }

    fn expires(&self, tool: &str) -> Duration {
        self.approval(tool).map_or(APPROVAL_EXPIRES, |rule| rule.expires)
    }

    /// Which calls of a tool of the run need an approval, by the agent's own definition.
    fn approval(&self, name: &str) -> Option<&ApprovalRule> {
        callable(&self.pinned, name)?.approval(&self.thinker.definition)
    }
}

/// Whether the same call came before, and it is unknown whether it happened.
fn is_in_doubt(steps: &[Step], call: &ToolStep) -> bool {
    let same = |(_, before): (&Step, &ToolStep)| {
        before.doubtful && before.name == call.name && before.run_args() == call.run_args()
    };
    steps.iter().filter_map(machine::tool).any(same)
}

/// The text of a question about calls. `refused` is why the last answer was not used.
fn question(calls: &[ApprovalCall], refused: Option<&str>) -> String {
    let names: Vec<&str> = calls.iter().take(5).map(|call| call.tool.as_str()).collect();
    let more = if calls.len() > names.len() { ", …" } else { "" };
    let mut text = format!(
        "May {}{more} be called? Answer {{\"ID\": \"approve\"}}, {{\"ID\": {{\"deny\": \"reason\"}}}} or \
         {{\"ID\": {{\"edit\": {{arguments}}}}}} with the ID of each call; a call that is not named is denied.",
        names.join(", ")
    );
    if let Some(why) = refused {
        let why: String = why.chars().take(300).collect();
        text.push_str(&format!("\nThe last answer was not used: {why}"));
    }
    for (at, call) in calls.iter().enumerate() {
        let args = catalog::cut(&call.arguments, SHOWN_ARGS_MAX);
        let line = format!("\n{} {} {args} (SHA-256 {})", call.id, call.tool, call.args_sha256);
        // Space for the line that says what is missing.
        if text.len() + line.len() > QUESTION_BYTES_MAX - 100 {
            text.push_str(&format!("\n{} more are in the member calls of the question", calls.len() - at));
            break;
        }
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Effect;

    fn call(seq: i32, arguments: &str) -> ApprovalCall {
        ApprovalCall {
            id: format!("{seq}-aaaaaaaaaaaaaaaaaaaa"),
            seq,
            tool: "t".repeat(63),
            effect: Effect::Once,
            arguments: arguments.into(),
            args_sha256: "b".repeat(64),
        }
    }

    #[test]
    fn question_names_the_calls_and_is_never_too_long() {
        let text = question(&[call(3, "{\"a\":1}")], Some("3-a: /a breaks a rule"));
        assert!(
            text.contains("3-aaaaaaaaaaaaaaaaaaaa tttt") && text.contains("{\"a\":1} (SHA-256 bbbb"),
            "{text}"
        );
        assert!(text.contains("was not used: 3-a: /a breaks a rule"), "{text}");
        let many: Vec<ApprovalCall> = (0..64).map(|seq| call(seq, &"é".repeat(500))).collect();
        let text = question(&many, Some(&"é".repeat(2_000)));
        assert!(
            text.len() <= QUESTION_BYTES_MAX && text.contains("more are in the member calls"),
            "{}",
            text.len()
        );
    }
}
