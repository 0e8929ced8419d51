//! Types of the negotiation: requests, tasks, offers, awards and reports.
//! Shapes follow `docs/spec/negotiation.md` §2 and §6.
use crate::id::{AgentId, AssignmentId, Epoch, Incarnation, OrgId, Requester, TaskId, TraceContext};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

use crate::task::{
    AgentKind, AgentPresence, TaskState, model::usage::Usage, model::wait_types::OnDependencyFailure,
};

/// A request for a task. Unknown members are refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The kind of work, like `support.triage`; 1 to 200 bytes.
    pub kind: String,
    /// Capabilities that an agent must all have to be eligible.
    #[serde(default)]
    pub requires: Vec<String>,
    /// The input for the agent; any JSON up to [`crate::task::INPUT_BYTES_MAX`].
    #[serde(default)]
    pub input: Value,
    /// Higher goes first. Defaults to 0.
    #[serde(default)]
    pub priority: i16,
    /// A repeated request with the same key returns the first task, until 24 h after its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// No round opens before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<DateTime<Utc>>,
    /// `failed(deadline)` if it is not final by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DateTime<Utc>>,
    /// The task that this one is a part of: of the same org, and not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<TaskId>,
    /// Whether it continues when its parent is canceled or fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// Tasks of the same org that must be completed first; at most [`crate::task::DEPENDS_ON_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<TaskId>,
    /// When one of them fails or is canceled: run anyway when all have ended, or `canceled(dependency)`.
    #[serde(default, skip_serializing_if = "OnDependencyFailure::is_cancel")]
    pub on_dependency_failure: OnDependencyFailure,
    /// The limits of its use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<crate::task::Budget>,
    /// Members of [`Policy`](crate::task::Policy) that differ from the defaults.
    #[serde(default)]
    pub policy: serde_json::Map<String, Value>,
    /// The trace that the task belongs to. Not part of what is requested: a repeated request may have another one, and
    /// the first one counts.
    #[serde(default, skip_serializing)]
    pub traceparent: Option<TraceContext>,
}

/// A task as clients see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its org.
    pub org: OrgId,
    /// The kind of work.
    pub kind: String,
    /// Capabilities that an agent must have.
    pub requires: Vec<String>,
    /// The input.
    pub input: Value,
    /// The requester.
    pub requester: Requester,
    /// Its state.
    pub state: TaskState,
    /// The reason of the state (`attempts_exhausted`, `unallocatable`, `deadline` …).
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
    /// The agent that has it, or finished it.
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
    /// The version of its row, which rises with every change. 0 in the answer of a daemon that has none.
    #[serde(default)]
    pub version: i64,
    /// It fails after this time.
    pub deadline_at: Option<DateTime<Utc>>,
    /// No round opens before this time.
    #[serde(default)]
    pub run_at: Option<DateTime<Utc>>,
    /// The task that it is a part of.
    #[serde(default)]
    pub parent_id: Option<TaskId>,
    /// The root of its tree.
    #[serde(default)]
    pub root_id: Option<TaskId>,
    /// Tasks that must be completed first.
    #[serde(default)]
    pub depends_on: Vec<TaskId>,
    /// What it waits for: `{for, question, agent_id, asked_at}`.
    #[serde(default)]
    pub question: Option<Value>,
    /// The budget of the task and, for a root, of its tree: `{task, tree}`, each with `tokens` and `microdollars` as
    /// `{max, reserved, spent}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Value>,
    /// Columns that this daemon cannot read (JSON that is nested too deeply, an infinite time); their members are
    /// empty here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// The answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Requested {
    /// The task.
    pub task: Task,
    /// Whether an earlier request with the same key made it.
    pub replayed: bool,
}

/// The registration of an agent; written at every start of its host.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its id.
    pub id: AgentId,
    /// The org whose tasks it may take.
    pub org: OrgId,
    /// How it does its work.
    pub kind: AgentKind,
    /// One line for people.
    pub description: String,
    /// Its capabilities; it is eligible for a task whose `requires` are all among these.
    pub capabilities: Vec<String>,
    /// Tasks at once, at least 1.
    pub slots: u32,
    /// Changes when its definition does.
    pub definition_hash: String,
    /// How its offers are made.
    pub terms: Terms,
}

/// How the offers of an agent are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// Whether the runtime computes its offers; otherwise it makes them itself.
    pub computed: bool,
    /// Declared cost of a task, blended with measurements.
    pub cost_microdollars: u64,
    /// Declared confidence in its results, 0 to 1.
    pub confidence: f32,
    /// Declared time for a task, blended with measurements.
    #[serde(with = "humantime_serde")]
    pub eta: Duration,
    /// Least time that a round which asks it stays open, because it thinks before it offers.
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
    /// The key of its reports.
    #[serde(flatten)]
    pub key: AssignmentKey,
    /// The org of the task.
    pub org: OrgId,
    /// The kind of work.
    pub kind: String,
    /// The winner.
    pub agent_id: AgentId,
    /// The incarnation of the winner.
    pub incarnation: Incarnation,
    /// After this time the next offer gets it.
    pub confirm_by: DateTime<Utc>,
    /// The requester of the task.
    pub requester: Requester,
}

/// The answer to a valid accept: the input, and the lease that has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The key of its reports.
    #[serde(flatten)]
    pub key: AssignmentKey,
    /// The org of the task.
    pub org: OrgId,
    /// The kind of work.
    pub kind: String,
    /// The input.
    pub input: Value,
    /// 1 for the first attempt.
    pub attempt: i32,
    /// Report at least this often.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// The attempt must end within this.
    #[serde(with = "humantime_serde")]
    pub attempt_timeout: Duration,
    /// The checkpoint of an earlier assignee.
    pub checkpoint: Option<Value>,
    /// JSON schema that the result must satisfy.
    pub result_schema: Option<Value>,
    /// The task fails at this time, whatever is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DateTime<Utc>>,
    /// Questions and answers so far: `{question, answer, by, at}` each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Value>,
    /// Why the last result was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// The span of the assignment. `None` if the task belongs to no trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceContext>,
    /// Whether it has a budget.
    #[serde(skip)]
    pub budgeted: bool,
    /// The priority of the task.
    #[serde(skip)]
    pub priority: i16,
}

/// Evidence of work; also renews the lease.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 1.
    pub progress: Option<f32>,
    /// Its present activity, one line.
    pub activity: Option<String>,
    /// A checkpoint for the next assignee.
    pub checkpoint: Option<Value>,
}

/// Why an attempt failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// One line for people; no model or database text.
    pub message: String,
    /// Whether the same agent may succeed at another attempt. Agents that have not tried are asked anyway, while there
    /// are attempts left.
    #[serde(default = "yes")]
    pub retryable: bool,
    /// Whether it failed because of an outage: an endpoint that does not answer or is over its rate limit. It counts as
    /// no attempt for `policy.outage`.
    #[serde(default)]
    pub outage: bool,
    /// What it used.
    #[serde(default = "Usage::unreported")]
    pub usage: Usage,
}
fn yes() -> bool {
    true
}

/// An offer that an agent makes itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewOffer {
    /// Its round; an offer for another round is late.
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

/// A share rounded for JSON: 0.6 instead of 0.6000000238418579.
#[must_use]
pub fn plain(share: f32) -> f64 {
    (f64::from(share) * 1e6).round() / 1e6
}

/// What an agent sees of a task before it offers.
#[derive(Clone, Debug, Serialize)]
pub struct Announcement {
    /// The task.
    pub id: TaskId,
    /// Capabilities that an agent must have.
    pub requires: Vec<String>,
    /// Higher goes first.
    pub priority: i16,
    /// It fails after this time.
    pub deadline: Option<DateTime<Utc>>,
    /// The requester.
    #[serde(skip)]
    pub requester: Requester,
    /// The beginning of the input as JSON text, up to [`crate::task::PREVIEW_CHARS_MAX`] characters.
    pub input_preview: String,
}

/// What a commit did, published to subscribers. A hint: the rows are the truth.
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
        /// The latest end of the round.
        bids_close_at: Option<DateTime<Utc>>,
        /// Agents that may offer.
        eligible: Vec<AgentId>,
    },
    /// Agents offered.
    Offered {
        /// The task.
        task: Update,
        /// Its round.
        round: i32,
        /// One for each agent.
        offers: Vec<OfferSummary>,
    },
    /// An agent won.
    Assigned(Assigned),
    /// An assignee has reported evidence of work.
    Progressed {
        /// The assignee.
        agent_id: AgentId,
        /// Its task.
        task: TaskId,
    },
    /// An assignee has reported no progress for `policy.progress`: it loses the task after as long again.
    Nudge {
        /// The assignee.
        agent_id: AgentId,
        /// Its assignment.
        key: AssignmentKey,
    },
    /// An assignee must stop; it has the cancel grace to report.
    Cancel {
        /// The assignee.
        agent_id: AgentId,
        /// Its assignment.
        key: AssignmentKey,
        /// The reason, one line.
        reason: String,
    },
}

/// The public part of an offer.
#[derive(Clone, Debug, PartialEq)]
pub struct OfferSummary {
    /// The agent that offers.
    pub agent_id: AgentId,
    /// What it will cost.
    pub cost_microdollars: u64,
    /// How long it will take, in milliseconds.
    pub eta_ms: u64,
    /// How sure the agent is of its result, 0 to 1.
    pub confidence: f32,
}

/// The public part of a task that changed.
#[derive(Clone, Debug, Serialize)]
pub struct Update {
    /// The task.
    pub id: TaskId,
    /// Its org.
    pub org: OrgId,
    /// The kind of work.
    pub kind: String,
    /// Its state.
    pub state: TaskState,
    /// The reason of the state.
    pub state_reason: Option<String>,
    /// Awards so far.
    pub epoch: Epoch,
    /// The agent that has it, or had it.
    pub agent_id: Option<AgentId>,
    /// Who asked for it.
    pub requester: Requester,
    /// The version of its row: a later change has a higher one.
    pub version: i64,
}

/// An entry of the event log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its sequence number.
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
    /// Details of the event.
    pub body: Value,
}

/// An agent as clients see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its id.
    pub id: AgentId,
    /// Its org.
    pub org: OrgId,
    /// The word of an [`AgentKind`]. A text, because a later version may register other kinds.
    pub kind: String,
    /// One line for people.
    pub description: String,
    /// Its capabilities.
    pub capabilities: Vec<String>,
    /// Tasks at once.
    pub slots: i32,
    /// Tasks it has now.
    pub slots_used: i32,
    /// Whether it can be awarded tasks.
    pub status: AgentPresence,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Reputation by its outcomes, 0 to 1; [`crate::task::rounds::score::Measured::reputation`].
    #[serde(default)]
    pub reputation: f64,
    /// Measured per task kind.
    pub statistics: Value,
    /// When its host last reported it.
    pub last_seen_at: Option<DateTime<Utc>>,
    /// Since when it gets no new task; `None` if it is not drained.
    #[serde(default)]
    pub drained_at: Option<DateTime<Utc>>,
    /// Who drained it.
    #[serde(default)]
    pub drained_by: Option<String>,
}

/// Which tasks to list, newest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Only of this org.
    pub org: Option<OrgId>,
    /// Only in this state.
    pub state: Option<TaskState>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Most tasks; defaults to 100, at most 1,000.
    pub limit: Option<i64>,
    /// Only those made before this one.
    pub before: Option<TaskId>,
}
