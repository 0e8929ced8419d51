//! The commands of agents and requesters, and how they are read from JSON: `docs/spec/negotiation.md` §6. Pure.
use crate::{
    id::{AgentId, AssignmentId, Epoch, TaskId},
    task::{AssignmentKey, Budget, Failure, NewOffer, Progress, Question, Request, Usage, WaitFor},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// A command of an agent.
#[derive(Clone, Debug)]
pub enum AgentCommand {
    /// Offers to do a task in a round.
    Offer {
        /// Which task.
        task: TaskId,
        /// On which terms.
        offer: NewOffer,
    },
    /// Will not offer in a round, which lets it close sooner.
    Decline {
        /// Which task.
        task: TaskId,
        /// In which round.
        round: i32,
        /// Why.
        reason: String,
    },
    /// Refuses an award.
    Refuse {
        /// Of which assignment.
        key: AssignmentKey,
        /// Why.
        reason: String,
    },
    /// Confirms an award without starting.
    Confirm(AssignmentKey),
    /// Accepts an award and starts the work.
    Accept(AssignmentKey),
    /// Asks for what it needs to go on.
    Ask {
        /// In which assignment.
        key: AssignmentKey,
        /// What.
        question: Box<Question>,
    },
    /// Reports evidence of work.
    Progress(AssignmentKey, Progress),
    /// Reports that it lives.
    Heartbeat(AssignmentKey),
    /// Delivers the result.
    Finish {
        /// Of which assignment.
        key: AssignmentKey,
        /// The result.
        result: Value,
        /// What the work used.
        usage: Usage,
    },
    /// Reports that the attempt failed.
    Fail {
        /// Of which assignment.
        key: AssignmentKey,
        /// Why.
        failure: Failure,
    },
    /// Gives the work back.
    Release {
        /// Which assignment.
        key: AssignmentKey,
        /// Why.
        reason: String,
        /// What a next assignee goes on from.
        checkpoint: Option<Value>,
    },
    /// Requests a part of what it works on.
    RequestPart {
        /// The assignment that it works on.
        key: AssignmentKey,
        /// The part.
        request: Box<Request>,
    },
}

/// A command of a requester.
#[derive(Clone, Debug)]
pub enum RequesterCommand {
    /// Requests a task.
    Request(Box<Request>),
    /// Cancels a task.
    Cancel {
        /// Which one.
        task: TaskId,
        /// Why.
        reason: String,
    },
    /// Chooses an offer on a task whose award is `requester`.
    Choose {
        /// Which task.
        task: TaskId,
        /// Whose offer.
        chosen: AgentId,
    },
    /// Answers what a task waits for.
    Answer {
        /// Which task.
        task: TaskId,
        /// With what.
        answer: Value,
    },
    /// Tries a task again that has failed or was canceled.
    Requeue(TaskId),
    /// Gives a task other limits.
    SetBudget {
        /// Which task.
        task: TaskId,
        /// Which limits.
        budget: Budget,
    },
}

/// A command, by its sender.
#[derive(Clone, Debug)]
pub enum Message {
    /// Of an agent.
    Agent(AgentCommand),
    /// Of a requester.
    Requester(RequesterCommand),
}

/// A command of an agent about its assignment: its name in the path of HTTP, its type on channels, and how it is
/// read.
pub struct AssignmentCommand {
    name: &'static str,
    kind: &'static str,
    read: fn(&Reader<'_>) -> Result<AgentCommand, String>,
}

/// The commands of agents about an assignment. Each names it, so none can be a requester's.
const ASSIGNMENT_COMMANDS: &[AssignmentCommand] = &[
    AssignmentCommand { name: "accept", kind: "task_accept", read: |m| Ok(AgentCommand::Accept(m.key()?)) },
    AssignmentCommand {
        name: "confirm",
        kind: "task_confirm",
        read: |m| Ok(AgentCommand::Confirm(m.key()?)),
    },
    AssignmentCommand {
        name: "refuse",
        kind: "task_refuse",
        read: |m| Ok(AgentCommand::Refuse { key: m.key()?, reason: m.read::<Reason>()?.reason }),
    },
    AssignmentCommand {
        name: "progress",
        kind: "task_progress",
        read: |m| Ok(AgentCommand::Progress(m.key()?, m.read()?)),
    },
    AssignmentCommand {
        name: "heartbeat",
        kind: "heartbeat",
        read: |m| Ok(AgentCommand::Heartbeat(m.key()?)),
    },
    AssignmentCommand {
        name: "request",
        kind: "task_request",
        read: |m| {
            let request = Box::new(m.read::<Requests>()?.task);
            Ok(AgentCommand::RequestPart { key: m.key()?, request })
        },
    },
    AssignmentCommand {
        name: "question",
        kind: "task_question",
        read: |m| {
            let Asks { question, wait_for, checkpoint, usage } = m.read()?;
            let question = Box::new(Question {
                wait_for,
                question,
                checkpoint,
                usage,
                calls: Vec::new(),
                approvers: Vec::new(),
            });
            Ok(AgentCommand::Ask { key: m.key()?, question })
        },
    },
    AssignmentCommand {
        name: "result",
        kind: "task_result",
        read: |m| {
            let Results { result, usage } = m.read()?;
            Ok(AgentCommand::Finish { key: m.key()?, result, usage })
        },
    },
    AssignmentCommand {
        name: "failure",
        kind: "task_failure",
        read: |m| {
            let Failures { error: mut failure, usage } = m.read()?;
            failure.usage = usage.unwrap_or(failure.usage);
            Ok(AgentCommand::Fail { key: m.key()?, failure })
        },
    },
    AssignmentCommand {
        name: "release",
        kind: "task_release",
        read: |m| {
            let Reason { reason, checkpoint } = m.read()?;
            Ok(AgentCommand::Release { key: m.key()?, reason, checkpoint })
        },
    },
];

impl AssignmentCommand {
    /// The command with this name in the path. `None` if there is none.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ASSIGNMENT_COMMANDS.iter().find(|command| command.name == name)
    }

    /// The names of all commands about an assignment, in the order of the documentation.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ASSIGNMENT_COMMANDS.iter().map(|command| command.name)
    }

    /// Reads the command's members `task_id`, `assignment_id`, `epoch` and its own.
    ///
    /// # Errors
    /// One line: what is wrong and where.
    pub fn read(&self, message: &Value) -> Result<AgentCommand, String> {
        (self.read)(&Reader { message })
    }
}

#[derive(Deserialize)]
struct Asks {
    question: String,
    #[serde(rename = "for", default)]
    wait_for: WaitFor,
    checkpoint: Option<Value>,
    #[serde(default = "Usage::unreported")]
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
    #[serde(default = "Usage::unreported")]
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
    #[serde(default = "no_cancel_reason")]
    reason: String,
}

/// The reason of a cancel that gives none.
#[must_use]
pub fn no_cancel_reason() -> String {
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

impl Message {
    /// Reads a message of a channel.
    ///
    /// # Errors
    /// One line: what is wrong and where.
    pub fn read(message: &Value) -> Result<Self, String> {
        let Some(kind) = message.get("type") else { return Err("the message has no type".into()) };
        let part = Reader { message };
        if let Some(command) = part.requesters(kind.as_str().unwrap_or_default())? {
            return Ok(Self::Requester(command));
        }
        if let Some(command) = part.agents(kind.as_str().unwrap_or_default())? {
            return Ok(Self::Agent(command));
        }
        let (last, others) = message_types()
            .split_last()
            .map_or(("", String::new()), |(last, others)| (*last, others.join(", ")));
        Err(format!("{kind} is no type that the daemon takes: use {others} or {last}"))
    }
}

/// The types of all messages, each once.
fn message_types() -> Vec<&'static str> {
    let of_assignments = ASSIGNMENT_COMMANDS.iter().map(|command| command.kind);
    let mut types =
        vec!["task_request", "task_choose", "task_cancel", "task_answer", "task_requeue", "task_offer"];
    types.extend(of_assignments.filter(|kind| *kind != "task_request"));
    types
}

struct Reader<'a> {
    message: &'a Value,
}

impl Reader<'_> {
    fn requesters(&self, kind: &str) -> Result<Option<RequesterCommand>, String> {
        Ok(Some(match kind {
            "task_request" if self.message.get("assignment_id").is_none() => {
                RequesterCommand::Request(Box::new(self.read::<Requests>()?.task))
            }
            "task_cancel" => {
                let Cancels { task_id, reason } = self.read()?;
                RequesterCommand::Cancel { task: task_id, reason }
            }
            "task_choose" => {
                let Chooses { task_id, chosen } = self.read()?;
                RequesterCommand::Choose { task: task_id, chosen }
            }
            "task_answer" => {
                let Answers { task_id, answer } = self.read()?;
                RequesterCommand::Answer { task: task_id, answer }
            }
            "task_requeue" => RequesterCommand::Requeue(self.read::<Named>()?.task_id),
            _ => return Ok(None),
        }))
    }

    fn agents(&self, kind: &str) -> Result<Option<AgentCommand>, String> {
        Ok(Some(match kind {
            "task_offer" => {
                let Offers { task_id, round, offer } = self.read()?;
                let Terms { cost, eta_ms, confidence, note } = offer;
                let offer = NewOffer { round, cost_microdollars: cost, eta_ms, confidence, note };
                AgentCommand::Offer { task: task_id, offer }
            }
            // Without an assignment it refuses to offer in a round, with one it refuses an award.
            "task_refuse" if self.message.get("assignment_id").is_none() => {
                let Declines { task_id, round, reason } = self.read()?;
                AgentCommand::Decline { task: task_id, round, reason }
            }
            kind => match ASSIGNMENT_COMMANDS.iter().find(|command| command.kind == kind) {
                Some(command) => (command.read)(self)?,
                None => return Ok(None),
            },
        }))
    }

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
    fn every_listed_message_type_is_known() {
        let refused = Message::read(&json!({ "type": "task_dance" })).unwrap_err();
        assert!(
            refused.starts_with("\"task_dance\" is no type that the daemon takes: use task_request, "),
            "{refused}"
        );
        for kind in message_types() {
            assert!(refused.contains(kind), "{refused}");
            let incomplete = Message::read(&json!({ "type": kind }));
            assert!(!incomplete.is_err_and(|e| e.contains("no type")), "{kind}");
        }
    }

    #[test]
    fn every_message_type_is_read() {
        let key = |kind: &str, more: Value| {
            let mut all = json!({ "type": kind, "task_id": ID, "assignment_id": ID, "epoch": 1 });
            all.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            Message::read(&all)
        };
        assert!(matches!(key("task_accept", json!({})), Ok(Message::Agent(AgentCommand::Accept(_)))));
        assert!(matches!(key("heartbeat", json!({})), Ok(Message::Agent(AgentCommand::Heartbeat(_)))));
        assert!(matches!(
            key("task_progress", json!({ "progress": 0.5 })),
            Ok(Message::Agent(AgentCommand::Progress(..)))
        ));
        assert!(matches!(
            key("task_result", json!({ "result": null })),
            Ok(Message::Agent(AgentCommand::Finish { .. }))
        ));
        assert!(matches!(
            key("task_failure", json!({ "error": { "message": "m" } })),
            Ok(Message::Agent(AgentCommand::Fail { .. }))
        ));
        assert!(matches!(
            key("task_release", json!({ "reason": "r" })),
            Ok(Message::Agent(AgentCommand::Release { .. }))
        ));
        assert!(matches!(key("task_refuse", json!({})), Ok(Message::Agent(AgentCommand::Refuse { .. }))));
        assert!(matches!(key("task_confirm", json!({})), Ok(Message::Agent(AgentCommand::Confirm(_)))));
        let asks = key("task_question", json!({ "question": "?", "for": "approval" }));
        assert!(
            matches!(asks, Ok(Message::Agent(AgentCommand::Ask { question, .. })) if question.wait_for == WaitFor::Approval)
        );
        assert!(matches!(
            key("task_request", json!({ "task": { "kind": "k" } })),
            Ok(Message::Agent(AgentCommand::RequestPart { .. }))
        ));
        assert!(matches!(
            key("task_answer", json!({ "answer": 1 })),
            Ok(Message::Requester(RequesterCommand::Answer { .. }))
        ));
        assert!(matches!(
            key("task_requeue", json!({})),
            Ok(Message::Requester(RequesterCommand::Requeue(_)))
        ));
        let decline = json!({ "type": "task_refuse", "task_id": ID, "round": 1 });
        assert!(matches!(Message::read(&decline), Ok(Message::Agent(AgentCommand::Decline { .. }))));
        let offer = json!({ "type": "task_offer", "task_id": ID, "round": 1, "offer": { "cost": 7 } });
        assert!(
            matches!(Message::read(&offer), Ok(Message::Agent(AgentCommand::Offer { offer, .. })) if offer.cost_microdollars == 7)
        );
        let request = json!({ "type": "task_request", "task": { "kind": "k" } });
        assert!(matches!(Message::read(&request), Ok(Message::Requester(RequesterCommand::Request(_)))));
        let cancel = json!({ "type": "task_cancel", "task_id": ID });
        assert!(matches!(Message::read(&cancel), Ok(Message::Requester(RequesterCommand::Cancel { .. }))));
    }

    #[test]
    fn invalid_message_is_refused_with_the_path() {
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
            let refused = Message::read(&message).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
