//! The words of the negotiation: what is requested, offered, awarded and reported.
//! Shapes follow `reference/negotiation.md` §2 and §6.
use crate::id::{AgentId, AssignmentId, Epoch, Incarnation, OrgId, TaskId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

use super::waits::OnDependencyFailure;

/// What a requester asks for. Unknown members are refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What kind of work, like `support.triage`; 1 to 200 bytes.
    pub kind: String,
    /// Capabilities that an agent must all have to be eligible.
    #[serde(default)]
    pub requires: Vec<String>,
    /// What the agent works on; any JSON up to [`super::INPUT_BYTES_MAX`].
    #[serde(default)]
    pub input: Value,
    /// Higher goes first; 0 by default.
    #[serde(default)]
    pub priority: i16,
    /// Repeating a request with the same key gives the first one's task (24 h after its end).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Not looked at before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<DateTime<Utc>>,
    /// `failed(deadline)` if it is not final by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DateTime<Utc>>,
    /// The task that this one is a part of; of the same org, and not at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<TaskId>,
    /// Whether it goes on when its parent is canceled or fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// Tasks of the same org that must be completed before; at most [`super::DEPENDS_ON_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<TaskId>,
    /// When one of them fails or is canceled: run all the same once all have ended, or `canceled(dependency)`.
    #[serde(default, skip_serializing_if = "OnDependencyFailure::is_cancel")]
    pub on_dependency_failure: OnDependencyFailure,
    /// What it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<super::Budget>,
    /// Members of [`Policy`] that differ from the daemon's defaults.
    #[serde(default)]
    pub policy: serde_json::Map<String, Value>,
}

/// State of a task (`reference/negotiation.md` §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Waits for dependencies.
    Blocked,
    /// Waits for `run_at`.
    Scheduled,
    /// Collects offers.
    Open,
    /// Waits for the winner to accept.
    Awarded,
    /// Is being worked on.
    Running,
    /// Its result is being checked.
    Verifying,
    /// Waits for input, approval or budget.
    Waiting,
    /// Its assignee has been told to stop.
    Canceling,
    /// Done.
    Completed,
    /// Given up; the reason says why.
    Failed,
    /// Canceled.
    Canceled,
}

/// A task as clients see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Whose it is.
    pub org: OrgId,
    /// What kind of work.
    pub kind: String,
    /// What an agent must be able to do.
    pub requires: Vec<String>,
    /// What to work on.
    pub input: Value,
    /// Who asked.
    pub requester: String,
    /// Where it is.
    pub state: TaskState,
    /// Why it is there (`attempts_exhausted`, `unallocatable`, `deadline` …).
    pub state_reason: Option<String>,
    /// Higher goes first.
    pub priority: i16,
    /// Rounds of offers so far.
    pub round: i32,
    /// Awards so far.
    pub epoch: Epoch,
    /// Attempts that started so far.
    pub attempt: i32,
    /// Attempts that are allowed.
    pub attempts_max: i32,
    /// Who has it now, or finished it.
    pub agent_id: Option<AgentId>,
    /// 0 to 1, as last reported.
    pub progress: Option<f32>,
    /// The accepted result.
    pub result: Option<Value>,
    /// `{message, …}` of the last failure.
    pub error: Option<Value>,
    /// When it was requested.
    pub created_at: DateTime<Utc>,
    /// When it last changed state.
    pub updated_at: DateTime<Utc>,
    /// Given up after this.
    pub deadline_at: Option<DateTime<Utc>>,
    /// Not looked at before this time.
    #[serde(default)]
    pub run_at: Option<DateTime<Utc>>,
    /// The task that it is a part of.
    #[serde(default)]
    pub parent_id: Option<TaskId>,
    /// The top of the tree that it belongs to.
    #[serde(default)]
    pub root_id: Option<TaskId>,
    /// What must be completed before.
    #[serde(default)]
    pub depends_on: Vec<TaskId>,
    /// What is waited for: `{for, question, agent_id, asked_at}`.
    #[serde(default)]
    pub question: Option<Value>,
    /// What it and, for a root, its tree may use, has reserved and has spent: `{task, tree}`, each with `tokens`
    /// and `microdollars` as `{max, reserved, spent}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Value>,
}

/// The answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Requested {
    /// The task.
    pub task: Task,
    /// Whether an earlier request with the same key made it.
    pub replayed: bool,
}

/// What an agent is to the negotiation; written on every start of its host.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its id.
    pub id: AgentId,
    /// Whose tasks it may take.
    pub org: OrgId,
    /// `llm`, `command`, `http`, `rust`, `remote`.
    pub kind: String,
    /// One line for people.
    pub description: String,
    /// What it can do; it is eligible for a task whose `requires` are all among these.
    pub capabilities: Vec<String>,
    /// Tasks at once, at least 1.
    pub slots: u32,
    /// Changes when its definition does.
    pub definition_hash: String,
    /// What the runtime offers for it.
    pub terms: Terms,
}

/// How offers of an agent come about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// Whether the runtime computes its offers; else it must speak for itself.
    pub computed: bool,
    /// What a task costs, until measurements say otherwise.
    pub cost_microdollars: u64,
    /// How sure it is of its results, 0 to 1.
    pub confidence: f32,
    /// How long a task takes, until measurements say otherwise.
    #[serde(with = "humantime_serde")]
    pub eta: Duration,
    /// How long a round that asks it stays open at the least, because it thinks before it offers.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub thinks: Option<Duration>,
}

/// Names an assignment; a report that carries an old one is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AssignmentKey {
    /// The task.
    pub task_id: TaskId,
    /// This award of it.
    pub assignment_id: AssignmentId,
    /// Its number among the task's awards.
    pub epoch: Epoch,
}

/// An agent won; it must accept by `confirm_by`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Assigned {
    /// What to report with.
    #[serde(flatten)]
    pub key: AssignmentKey,
    /// Whose task.
    pub org: OrgId,
    /// What kind of work.
    pub kind: String,
    /// The winner.
    pub agent_id: AgentId,
    /// The life of the winner that won.
    pub incarnation: Incarnation,
    /// Later it goes to the next offer.
    pub confirm_by: DateTime<Utc>,
    /// Who asked for the task.
    pub requester: String,
}

/// The answer to a valid accept: the input, and the lease that has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// What to report with.
    #[serde(flatten)]
    pub key: AssignmentKey,
    /// Whose task.
    pub org: OrgId,
    /// What kind of work.
    pub kind: String,
    /// What to work on.
    pub input: Value,
    /// 1 for the first attempt.
    pub attempt: i32,
    /// Report at least this often.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// The attempt must end within this.
    #[serde(with = "humantime_serde")]
    pub attempt_timeout: Duration,
    /// What an earlier assignee left.
    pub checkpoint: Option<Value>,
    /// JSON schema that the result must satisfy.
    pub result_schema: Option<Value>,
    /// The task fails at this time whatever is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DateTime<Utc>>,
    /// What was asked and answered so far: `{question, answer, by, at}` each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Value>,
    /// Why the last result was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// Whether it counts to a budget.
    #[serde(skip)]
    pub budgeted: bool,
}

/// Evidence of work; also renews the lease.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 1.
    pub progress: Option<f32>,
    /// What it is doing, one line.
    pub activity: Option<String>,
    /// What a next assignee could go on from.
    pub checkpoint: Option<Value>,
}

/// What an attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Model tokens, in and out.
    #[serde(default)]
    pub tokens: u64,
    /// Money.
    #[serde(default)]
    pub microdollars: u64,
}

/// Why an attempt failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// One line for people; no model or database text.
    pub message: String,
    /// Whether the same agent may do better at another attempt. Agents that have not tried are asked
    /// anyway, while the attempts last.
    #[serde(default = "yes")]
    pub retryable: bool,
    /// What it used all the same.
    #[serde(default)]
    pub usage: Usage,
}
fn yes() -> bool {
    true
}

/// An offer of an agent that speaks for itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewOffer {
    /// For which round; an offer for another round is late.
    pub round: i32,
    /// What it will cost.
    #[serde(default, alias = "cost")]
    pub cost_microdollars: u64,
    /// How long it will take, in milliseconds.
    #[serde(default)]
    pub eta_ms: u64,
    /// 0 to 1.
    #[serde(default)]
    pub confidence: f32,
    /// One line for people.
    #[serde(default)]
    pub note: Option<String>,
}

/// A share as JSON shows it: 0.6, where the number as it is stored would be 0.6000000238418579.
#[must_use]
pub fn plain(share: f32) -> f64 {
    (f64::from(share) * 1e6).round() / 1e6
}

/// What an agent that speaks for itself is told of a task before it offers.
#[derive(Clone, Debug, Serialize)]
pub struct Announcement {
    /// The task.
    pub id: TaskId,
    /// What an agent must be able to do.
    pub requires: Vec<String>,
    /// Higher goes first.
    pub priority: i16,
    /// Given up after this.
    pub deadline: Option<DateTime<Utc>>,
    /// Who asked.
    #[serde(skip)]
    pub requester: String,
    /// The beginning of the input as JSON text, up to [`super::PREVIEW_CHARS_MAX`] characters.
    pub input_preview: String,
}

/// What a commit did, told to whoever listens. A hint: the rows are the truth.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A task changed state.
    Updated(Update),
    /// A round began; these agents may offer.
    Announced {
        /// The task.
        task: Update,
        /// Its round.
        round: i32,
        /// When the round closes at the latest.
        bids_close_at: Option<DateTime<Utc>>,
        /// Who may offer.
        eligible: Vec<AgentId>,
    },
    /// Agents offered.
    Offered {
        /// The task.
        task: Update,
        /// In which round.
        round: i32,
        /// Agent, cost in microdollars, time in milliseconds, confidence.
        offers: Vec<(AgentId, u64, u64, f32)>,
    },
    /// An agent won.
    Assigned(Assigned),
    /// An assignee has shown no work for a while: it should, or it loses the task.
    Nudge {
        /// Who.
        agent_id: AgentId,
        /// What.
        key: AssignmentKey,
    },
    /// An assignee must stop; it has the cancel grace to report.
    Cancel {
        /// Who.
        agent_id: AgentId,
        /// What.
        key: AssignmentKey,
        /// Why, one line.
        reason: String,
    },
}

/// The public part of a task that changed.
#[derive(Clone, Debug, Serialize)]
pub struct Update {
    /// The task.
    pub id: TaskId,
    /// Whose it is.
    pub org: OrgId,
    /// What kind of work.
    pub kind: String,
    /// Where it is now.
    pub state: TaskState,
    /// Why it is there.
    pub state_reason: Option<String>,
    /// Awards so far.
    pub epoch: Epoch,
    /// Who has it, or had it.
    pub agent_id: Option<AgentId>,
    /// Who asked for it.
    pub requester: String,
}

/// One line of the event log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the log.
    pub seq: i64,
    /// When it was committed.
    pub at: DateTime<Utc>,
    /// The task.
    pub task_id: Option<TaskId>,
    /// The agent it concerns.
    pub agent_id: Option<AgentId>,
    /// The award it belongs to.
    pub epoch: Option<Epoch>,
    /// `requested`, `announced`, `offered`, `awarded`, `started`, `progress`, `finished` …
    #[serde(rename = "type")]
    pub event_type: String,
    /// What there is to say.
    pub body: Value,
}

/// An agent as clients see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its id.
    pub id: AgentId,
    /// Whose it is.
    pub org: OrgId,
    /// `llm`, `command`, `http`, `rust`, `remote`.
    pub kind: String,
    /// One line for people.
    pub description: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Tasks at once.
    pub slots: i32,
    /// Tasks it has now.
    pub slots_used: i32,
    /// `present` or `gone`.
    pub status: String,
    /// The number of its life.
    pub incarnation: Incarnation,
    /// What it is worth by its outcomes, 0 to 1; [`super::score::Measured::reputation`].
    #[serde(default)]
    pub reputation: f64,
    /// Measured per task kind.
    pub statistics: Value,
    /// When its host last said that it lives.
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// Which tasks to list, newest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Only this org's.
    pub org: Option<OrgId>,
    /// Only in this state.
    pub state: Option<TaskState>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// At most so many; 100 by default, 1,000 at most.
    pub limit: Option<i64>,
    /// Only those made before this one.
    pub before: Option<TaskId>,
}
