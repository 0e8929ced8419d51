//! Guards of a run (`docs/spec/thinking-agents.md`, T24): they judge its input, its calls, the results of these, and
//! its result, before each counts. One that fails to judge denies.
//!
//! The guards of now count, and not those of the run's start: what is allowed is a permission. Nothing is kept of a
//! judgement but what follows from it, so after a crash it is made again.
use super::{
    calls::error,
    session::{Session, Thinker, ids},
};
use crate::{
    agent::{
        Guard, GuardOn, Job, hex,
        job::{permanent, retryable},
        tool::{self, Callable, Outcome, ToolCall},
    },
    task::{Failure, Step, StepState, ToolStep},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt;

/// Longest reason of a tool that judges, in characters.
const REASON_CHARS_MAX: usize = 500;

/// A judgement: the value as it may count, or why it does not.
type Judged = Result<Value, Denial>;

/// Why a guard does not let a value count.
struct Denial {
    guard: String,
    /// Words of the schema or of a tool that judges. Empty for a pattern.
    why: String,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guard {} does not allow it", self.guard)?;
        if self.why.is_empty() { Ok(()) } else { write!(f, ": {}", self.why) }
    }
}

/// What one guard says.
enum Verdict {
    Allowed,
    Denied(String),
    Replaced(Value),
}

/// The guards of an agent, for one job.
struct Guards<'a> {
    thinker: &'a Thinker,
    job: &'a Job,
}

/// The input of a new run, as its guards let it count.
///
/// # Errors
/// Permanent if one denies it.
pub(super) async fn judged_input(thinker: &Thinker, job: &Job, input: String) -> Result<String, Failure> {
    match (Guards { thinker, job }).judge(GuardOn::Input, None, Value::String(input)).await? {
        Ok(value) => Ok(text_of(value)),
        // The reason may have words of the input, which no failure shows.
        Err(denial) => Err(permanent(format!("the guard {} denied the input", denial.guard))),
    }
}

impl Session<'_> {
    fn guards(&self) -> Guards<'_> {
        Guards { thinker: self.thinker, job: self.job }
    }

    /// Ends those of the planned calls that a guard denies. Returns whether there were any.
    pub(super) async fn deny_calls(&self, calls: &[(&Step, &ToolStep)]) -> Result<bool, Failure> {
        let mut any = false;
        for (step, call) in calls.iter().filter(|(step, _)| step.state == StepState::Planned) {
            let args = call.run_args().clone();
            let judged = self.guards().judge(GuardOn::Call, Some(&call.name), args).await?;
            if let Err(denial) = judged {
                let text = error("denied", &denial.to_string(), false);
                self.end_call(step.seq, StepState::Denied, &text, self.pinned_bytes(&call.name), None)
                    .await?;
                any = true;
            }
        }
        Ok(any)
    }

    /// The output of a call as its guards let it count. The inner error says why it does not.
    pub(super) async fn judged_output(&self, call: &ToolStep, output: String) -> Result<String, String> {
        let judged = self.guards().judge(GuardOn::Result, Some(&call.name), Value::String(output)).await;
        match judged {
            Ok(judged) => judged.map(text_of).map_err(|denial| denial.to_string()),
            // The effect has happened, so the call must end also if the job is stopped now.
            Err(failure) => Err(failure.message),
        }
    }

    /// The result of the run as its guards let it count. The inner error says why it does not.
    pub(super) async fn judged_answer(&self, result: Value) -> Result<Result<Value, String>, Failure> {
        let judged = match self.guards().judge(GuardOn::Answer, None, result.clone()).await? {
            Ok(judged) if judged != result => judged,
            unchanged => return Ok(unchanged.map_err(|denial| denial.to_string())),
        };
        let Some(schema) = self.catalog.result_schema() else { return Ok(Ok(judged)) };
        let fits = self.thinker.schemas.fits(schema, &judged).await.map_err(|e| retryable(e.to_string()))?;
        Ok(fits.map(|()| judged).map_err(|_| "a replacement breaks the schema of the result".into()))
    }
}

impl Guards<'_> {
    /// What is left of a value after all guards that judge it, in their order.
    async fn judge(&self, on: GuardOn, tool: Option<&str>, mut value: Value) -> Result<Judged, Failure> {
        for guard in self.thinker.definition.guard.iter().filter(|guard| guard.judges(on, tool)) {
            match self.one(guard, tool, &value).await? {
                Verdict::Allowed => {}
                Verdict::Denied(why) => return Ok(Err(Denial { guard: guard.name.clone(), why })),
                Verdict::Replaced(other) => value = other,
            }
        }
        Ok(Ok(value))
    }

    async fn one(&self, guard: &Guard, tool: Option<&str>, value: &Value) -> Result<Verdict, Failure> {
        if let Some(pattern) = &guard.regex {
            return Ok(by_regex(pattern, guard.replace.as_deref(), value));
        }
        if let Some(schema) = &guard.schema {
            let fits = self.thinker.schemas.fits(schema, value).await;
            return Ok(match fits.map_err(|e| retryable(e.to_string()))? {
                Ok(()) => Verdict::Allowed,
                Err(misfit) => Verdict::Denied(misfit.to_string()),
            });
        }
        self.by_tool(guard, tool, value).await
    }

    async fn by_tool(&self, guard: &Guard, tool: Option<&str>, value: &Value) -> Result<Verdict, Failure> {
        let definition = &self.thinker.definition;
        let Some(judge) = guard.tool.as_deref().and_then(|name| definition.declared(name)) else {
            return Ok(Verdict::Denied("nothing judges".into()));
        };
        let args = json!({ "guard": guard.name, "on": guard.on.as_str(), "tool": tool, "value": value });
        let start = &self.job.start;
        // Another one than that of any call: a keeper keeps the end of a program by its key.
        let key = hex(&Sha256::digest(format!("{} {} {args}", start.key.task_id, start.key.assignment_id)));
        let key = format!("cv_guard_{}", key.get(..40).unwrap_or_default());
        let (ids, stop) = (ids(self.job), self.job.stop_token());
        let outcome = tool::call(ToolCall {
            tool: Callable::Declared(judge),
            agent: &definition.id,
            org: &start.org,
            args: &args,
            key: &key,
            trace: start.traceparent,
            ids: &ids,
            folder: definition.folder.as_deref(),
            parts: &self.thinker.parts,
            stop: &stop,
        });
        let outcome = outcome.await;
        if let Some(keeper) = &self.thinker.parts.keeper {
            keeper.forget(&key);
        }
        Ok(match outcome {
            Outcome::Stopped => return Err(retryable("the call of a tool was stopped")),
            Outcome::Done(output) => said(&output, matches!(guard.on, GuardOn::Input | GuardOn::Result)),
            Outcome::Failed(..) | Outcome::Uncertain(_) => Verdict::Denied("it failed to judge".into()),
        })
    }
}

fn by_regex(pattern: &str, replace: Option<&str>, value: &Value) -> Verdict {
    let failed = || Verdict::Denied("it failed to judge".into());
    let Ok(regex) = regex::Regex::new(pattern) else { return failed() };
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if !regex.is_match(&text) {
        return Verdict::Allowed;
    }
    let Some(replace) = replace else { return Verdict::Denied(String::new()) };
    let text = regex.replace_all(&text, replace).into_owned();
    match value {
        Value::String(_) => Verdict::Replaced(Value::String(text)),
        // Quotes or braces of a match may be gone.
        _ => serde_json::from_str(&text).map_or_else(|_| failed(), Verdict::Replaced),
    }
}

/// Reads the answer of a tool that judges: `{"allow": true}`, `{"deny": "reason"}`, and for texts `{"replace": "text"}`.
fn said(output: &str, of_text: bool) -> Verdict {
    let answer: Value = serde_json::from_str(output).unwrap_or_default();
    let one =
        answer.as_object().filter(|members| members.len() == 1).and_then(|members| members.iter().next());
    match one {
        Some((word, Value::Bool(true))) if word == "allow" => Verdict::Allowed,
        Some((word, Value::String(why))) if word == "deny" => {
            Verdict::Denied(why.trim().chars().take(REASON_CHARS_MAX).collect())
        }
        Some((word, text @ Value::String(_))) if word == "replace" && of_text => {
            Verdict::Replaced(text.clone())
        }
        _ => Verdict::Denied("it failed to judge".into()),
    }
}

fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(verdict: Verdict) -> Value {
        match verdict {
            Verdict::Allowed => json!("allowed"),
            Verdict::Denied(why) => json!({ "denied": why }),
            Verdict::Replaced(value) => json!({ "replaced": value }),
        }
    }

    #[test]
    fn pattern_denies_or_replaces_in_texts_and_in_the_json_of_values() {
        assert_eq!(told(by_regex("b+", None, &json!("ac"))), "allowed");
        assert_eq!(told(by_regex("b+", None, &json!("abbc"))), json!({ "denied": "" }));
        assert_eq!(told(by_regex("b+", Some("x"), &json!("abbcb"))), json!({ "replaced": "axcx" }));
        assert_eq!(told(by_regex("a(b)", Some("$1$1"), &json!("ab"))), json!({ "replaced": "bb" }));
        let value = json!({ "a": ["secret 1"], "n": 1 });
        assert_eq!(
            told(by_regex("secret", Some("-"), &value)),
            json!({ "replaced": { "a": ["- 1"], "n": 1 } })
        );
        let failed = json!({ "denied": "it failed to judge" });
        assert_eq!(told(by_regex("\"secret", Some(""), &value)), failed, "what is left is no JSON");
        assert_eq!(told(by_regex("(", None, &value)), failed);
    }

    #[test]
    fn answer_of_another_form_denies() {
        assert_eq!(told(said("{\"allow\": true}", false)), "allowed");
        assert_eq!(told(said("{\"deny\": \" no \"}", false)), json!({ "denied": "no" }));
        assert_eq!(told(said("{\"replace\": \"x\"}", true)), json!({ "replaced": "x" }));
        for output in [
            "",
            "yes",
            "true",
            "{}",
            "{\"allow\": false}",
            "{\"allow\": \"true\"}",
            "{\"allow\": true, \"deny\": \"no\"}",
            "{\"replace\": \"x\"}",
            "[{\"allow\": true}]",
        ] {
            assert_eq!(told(said(output, false)), json!({ "denied": "it failed to judge" }), "{output}");
        }
    }
}
