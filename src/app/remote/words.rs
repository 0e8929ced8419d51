//! What agents and requesters say to the daemon, read from JSON: `reference/negotiation.md` §6. Pure.
use crate::{
    id::{AgentId, AssignmentId, Epoch, TaskId},
    task::{AssignmentKey, Failure, NewOffer, Progress, Question, Request, Usage, WaitFor},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// A message that is understood.
#[derive(Clone, Debug)]
pub(super) enum Word {
    Request(Box<Request>),
    /// A part of what the speaker works on.
    Part {
        key: AssignmentKey,
        request: Box<Request>,
    },
    Offer {
        task: TaskId,
        offer: NewOffer,
    },
    Decline {
        task: TaskId,
        round: i32,
        reason: String,
    },
    Refuse {
        key: AssignmentKey,
        reason: String,
    },
    Confirm(AssignmentKey),
    Accept(AssignmentKey),
    Ask {
        key: AssignmentKey,
        question: Box<Question>,
    },
    Progress(AssignmentKey, Progress),
    Heartbeat(AssignmentKey),
    Finish {
        key: AssignmentKey,
        result: Value,
        usage: Usage,
    },
    Fail {
        key: AssignmentKey,
        failure: Failure,
    },
    Release {
        key: AssignmentKey,
        reason: String,
        checkpoint: Option<Value>,
    },
    Cancel {
        task: TaskId,
        reason: String,
    },
    Choose {
        task: TaskId,
        chosen: AgentId,
    },
    Answer {
        task: TaskId,
        answer: Value,
    },
    Requeue(TaskId),
}

#[derive(Deserialize)]
struct Asks {
    question: String,
    #[serde(rename = "for", default)]
    wait_for: WaitFor,
    checkpoint: Option<Value>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Answers {
    task_id: TaskId,
    answer: Value,
}

#[derive(Deserialize)]
struct Named {
    task_id: TaskId,
}

#[derive(Deserialize)]
struct Requests {
    task: Request,
}

#[derive(Deserialize)]
struct Offers {
    task_id: TaskId,
    round: i32,
    offer: Terms,
}

#[derive(Deserialize)]
struct Terms {
    #[serde(default, alias = "cost_microdollars")]
    cost: u64,
    #[serde(default)]
    eta_ms: u64,
    #[serde(default)]
    confidence: f32,
    note: Option<String>,
}

#[derive(Deserialize)]
struct Declines {
    task_id: TaskId,
    round: i32,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    reason: String,
    checkpoint: Option<Value>,
}

#[derive(Deserialize)]
struct Results {
    result: Value,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Failures {
    error: Failure,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Cancels {
    task_id: TaskId,
    #[serde(default = "no_reason")]
    reason: String,
}
fn no_reason() -> String {
    "canceled by its requester".into()
}

#[derive(Deserialize)]
struct Chooses {
    task_id: TaskId,
    chosen: AgentId,
}

#[derive(Deserialize)]
struct Key {
    task_id: TaskId,
    assignment_id: AssignmentId,
    epoch: Epoch,
}

impl Word {
    /// Reads a message. An error says in one line what is wrong and where.
    pub(super) fn read(message: &Value) -> Result<Self, String> {
        let Some(kind) = message.get("type") else { return Err("the message has no type".into()) };
        let part = Reader { message };
        Ok(match kind.as_str().unwrap_or_default() {
            "task_request" if message.get("assignment_id").is_some() => {
                Self::Part { key: part.key()?, request: Box::new(part.read::<Requests>()?.task) }
            }
            "task_request" => Self::Request(Box::new(part.read::<Requests>()?.task)),
            "task_offer" => {
                let Offers { task_id, round, offer } = part.read()?;
                let Terms { cost, eta_ms, confidence, note } = offer;
                let offer = NewOffer { round, cost_microdollars: cost, eta_ms, confidence, note };
                Self::Offer { task: task_id, offer }
            }
            "task_refuse" if message.get("assignment_id").is_none() => {
                let Declines { task_id, round, reason } = part.read()?;
                Self::Decline { task: task_id, round, reason }
            }
            "task_refuse" => Self::Refuse { key: part.key()?, reason: part.read::<Reason>()?.reason },
            "task_confirm" => Self::Confirm(part.key()?),
            "task_accept" => Self::Accept(part.key()?),
            "task_question" => {
                let Asks { question, wait_for, checkpoint, usage } = part.read()?;
                let question = Box::new(Question { wait_for, question, checkpoint, usage });
                Self::Ask { key: part.key()?, question }
            }
            "task_progress" => Self::Progress(part.key()?, part.read()?),
            "heartbeat" => Self::Heartbeat(part.key()?),
            "task_result" => {
                let Results { result, usage } = part.read()?;
                Self::Finish { key: part.key()?, result, usage }
            }
            "task_failure" => {
                let Failures { error: mut failure, usage } = part.read()?;
                failure.usage = usage.unwrap_or(failure.usage);
                Self::Fail { key: part.key()?, failure }
            }
            "task_release" => {
                let Reason { reason, checkpoint } = part.read()?;
                Self::Release { key: part.key()?, reason, checkpoint }
            }
            "task_cancel" => {
                let Cancels { task_id, reason } = part.read()?;
                Self::Cancel { task: task_id, reason }
            }
            "task_choose" => {
                let Chooses { task_id, chosen } = part.read()?;
                Self::Choose { task: task_id, chosen }
            }
            "task_answer" => {
                let Answers { task_id, answer } = part.read()?;
                Self::Answer { task: task_id, answer }
            }
            "task_requeue" => Self::Requeue(part.read::<Named>()?.task_id),
            _ => {
                return Err(format!(
                    "{kind} is no type that the daemon takes: use task_request, task_choose, task_cancel, task_answer, \
                     task_requeue, task_offer, task_refuse, task_confirm, task_accept, task_progress, heartbeat, \
                     task_question, task_result, task_failure or task_release"
                ));
            }
        })
    }

    /// Whether an agent says it of itself; else a requester says it.
    pub(super) fn is_agents(&self) -> bool {
        !matches!(
            self,
            Self::Request(_)
                | Self::Cancel { .. }
                | Self::Choose { .. }
                | Self::Answer { .. }
                | Self::Requeue(_)
        )
    }
}

struct Reader<'a> {
    message: &'a Value,
}

impl Reader<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        serde_path_to_error::deserialize(self.message).map_err(|e| {
            let path = e.path().to_string();
            let place = if path == "." { String::new() } else { format!("{path}: ") };
            format!("the message is not as expected: {place}{}", e.into_inner())
        })
    }

    fn key(&self) -> Result<AssignmentKey, String> {
        let Key { task_id, assignment_id, epoch } = self.read()?;
        Ok(AssignmentKey { task_id, assignment_id, epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    #[test]
    fn every_word_of_an_agent_is_read() {
        let key = |kind: &str, more: Value| {
            let mut all = json!({ "type": kind, "task_id": ID, "assignment_id": ID, "epoch": 1 });
            all.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            Word::read(&all)
        };
        assert!(matches!(key("task_accept", json!({})), Ok(Word::Accept(_))));
        assert!(matches!(key("heartbeat", json!({})), Ok(Word::Heartbeat(_))));
        assert!(matches!(key("task_progress", json!({ "progress": 0.5 })), Ok(Word::Progress(..))));
        assert!(matches!(key("task_result", json!({ "result": null })), Ok(Word::Finish { .. })));
        assert!(matches!(key("task_failure", json!({ "error": { "message": "m" } })), Ok(Word::Fail { .. })));
        assert!(matches!(key("task_release", json!({ "reason": "r" })), Ok(Word::Release { .. })));
        assert!(matches!(key("task_refuse", json!({})), Ok(Word::Refuse { .. })));
        assert!(matches!(key("task_confirm", json!({})), Ok(Word::Confirm(_))));
        let asks = key("task_question", json!({ "question": "?", "for": "approval" }));
        assert!(matches!(asks, Ok(Word::Ask { question, .. }) if question.wait_for == WaitFor::Approval));
        assert!(matches!(key("task_request", json!({ "task": { "kind": "k" } })), Ok(Word::Part { .. })));
        assert!(matches!(key("task_answer", json!({ "answer": 1 })), Ok(Word::Answer { .. })));
        assert!(matches!(key("task_requeue", json!({})), Ok(Word::Requeue(_))));
        let decline = json!({ "type": "task_refuse", "task_id": ID, "round": 1 });
        assert!(matches!(Word::read(&decline), Ok(Word::Decline { .. })));
        let offer = json!({ "type": "task_offer", "task_id": ID, "round": 1, "offer": { "cost": 7 } });
        assert!(matches!(Word::read(&offer), Ok(Word::Offer { offer, .. }) if offer.cost_microdollars == 7));
        let request = json!({ "type": "task_request", "task": { "kind": "k" } });
        assert!(matches!(Word::read(&request), Ok(Word::Request(_))));
        let cancel = json!({ "type": "task_cancel", "task_id": ID });
        assert!(matches!(Word::read(&cancel), Ok(Word::Cancel { .. })));
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_place() {
        for (message, words) in [
            (json!({}), "has no type"),
            (json!({ "type": "dance" }), "\"dance\" is no type"),
            (json!({ "type": 5 }), "5 is no type"),
            (json!({ "type": "task_request", "task": { "kind": "k", "colour": 1 } }), "colour"),
            (
                json!({ "type": "task_offer", "task_id": ID, "round": 1, "offer": { "cost": -1 } }),
                "offer.cost",
            ),
            (json!({ "type": "task_accept", "task_id": "x" }), "task_id"),
            (json!({ "type": "task_result", "task_id": ID, "assignment_id": ID, "epoch": 1 }), "result"),
        ] {
            let told = Word::read(&message).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
    }
}
