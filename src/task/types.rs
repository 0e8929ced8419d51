//! The words of the negotiation: what is requested, offered, awarded and reported.
//! Shapes follow `reference/negotiation.md` §2 and §6.
use crate::id::{AgentId, AssignmentId, Epoch, Incarnation, OrgId, TaskId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// What a requester asks for. Unknown members are refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// The task that this one is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<TaskId>,
    /// Members of [`Policy`] that differ from the daemon's defaults.
    #[serde(default)]
    pub policy: serde_json::Map<String, Value>,
}

/// How a task is awarded, timed and retried. Every member has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Who wins.
    pub award: Award,
    /// `weighted`: how much each part counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// `direct`: the one agent that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// `requester`: how long the requester has to choose.
    #[serde(with = "humantime_serde")]
    pub choose_within: Duration,
    /// `requester`: who wins when nothing was chosen in time.
    pub fallback: Award,
    /// Attempts before `failed(attempts_exhausted)`.
    pub attempts_max: u32,
    /// Rounds of offers before `failed(unallocatable)`.
    pub rounds_max: u32,
    /// How long a round collects offers when an eligible agent must be asked.
    #[serde(with = "humantime_serde")]
    pub bid_window: Duration,
    /// A round with offers closes this long after the last one.
    #[serde(with = "humantime_serde")]
    pub quiet_gap: Duration,
    /// A round closes early with this many offers.
    pub offers_min: Option<u32>,
    /// How long the winner has to accept.
    #[serde(with = "humantime_serde")]
    pub confirm: Duration,
    /// How long an assignment lives without a heartbeat.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long an attempt may take.
    #[serde(with = "humantime_serde")]
    pub attempt: Duration,
    /// How long a cancelled assignee has to stop by itself.
    #[serde(with = "humantime_serde")]
    pub cancel_grace: Duration,
    /// An assignment without evidence of work for this long is stalled.
    #[serde(with = "humantime_serde")]
    pub progress: Duration,
    /// How long an offer can be awarded.
    #[serde(with = "humantime_serde")]
    pub offer_validity: Duration,
    /// JSON schema that a result must satisfy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_schema: Option<Value>,
}

impl Policy {
    /// This policy with the members of `patch` in place of its own.
    ///
    /// # Errors
    /// What is wrong with the patch: an unknown member, a wrong type, a number out of range.
    pub fn with(&self, patch: &serde_json::Map<String, Value>) -> Result<Self, String> {
        if patch.is_empty() {
            return Ok(self.clone());
        }
        let Ok(Value::Object(mut members)) = serde_json::to_value(self) else {
            return Err("policy is not an object".into());
        };
        members.extend(patch.clone());
        let policy: Self =
            serde_json::from_value(Value::Object(members)).map_err(|e| format!("policy: {e}"))?;
        policy.check()?;
        Ok(policy)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        for (name, count) in [("attempts_max", self.attempts_max), ("rounds_max", self.rounds_max)] {
            if !(1..=9999).contains(&count) {
                return Err(format!("policy.{name} is {count}; use 1 to 9999"));
            }
        }
        if (self.award == Award::Direct) != self.agent.is_some() {
            return Err("policy.agent and policy.award = \"direct\" belong together: name the agent".into());
        }
        if self.weights.is_some_and(|weights| !weights.are_good()) {
            return Err("policy.weights must be numbers from 0 to 1000, and one of them more than 0".into());
        }
        if matches!(self.fallback, Award::Direct | Award::Requester) {
            return Err("policy.fallback must be a policy that decides by itself".into());
        }
        let week = Duration::from_secs(7 * 24 * 3600);
        for (name, time) in [
            ("bid_window", self.bid_window),
            ("choose_within", self.choose_within),
            ("quiet_gap", self.quiet_gap),
            ("confirm", self.confirm),
            ("lease", self.lease),
            ("attempt", self.attempt),
            ("progress", self.progress),
            ("offer_validity", self.offer_validity),
            ("cancel_grace", self.cancel_grace),
        ] {
            if time.is_zero() || time > week {
                return Err(format!("policy.{name} is {time:?}; use more than 0 and at most 7 days"));
            }
        }
        if let Some(schema) = &self.result_schema {
            jsonschema::validator_for(schema).map_err(|e| format!("policy.result_schema: {e}"))?;
        }
        Ok(())
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            award: Award::default(),
            weights: None,
            agent: None,
            choose_within: Duration::from_secs(60),
            fallback: Award::default(),
            attempts_max: 3,
            rounds_max: 5,
            bid_window: Duration::from_millis(250),
            quiet_gap: Duration::from_millis(100),
            offers_min: None,
            confirm: Duration::from_secs(1),
            lease: Duration::from_secs(30),
            attempt: Duration::from_secs(600),
            cancel_grace: Duration::from_secs(10),
            progress: Duration::from_secs(600),
            offer_validity: Duration::from_secs(60),
            result_schema: None,
        }
    }
}

/// Who wins a round. Ties go to the agent that has waited longest, then by agent id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Award {
    /// The offer that came first.
    First,
    /// The lowest cost.
    Cheapest,
    /// The lowest time to finish.
    Fastest,
    /// The agent with the most free slots for its size.
    LeastLoaded,
    /// Cost, time, confidence, load and reputation together.
    #[default]
    Weighted,
    /// The highest confidence, times how often the agent was right when it was so sure.
    Calibrated,
    /// The agent that `policy.agent` names, and nobody else.
    Direct,
    /// The offer that the requester chooses; `policy.fallback` if it chooses none within `choose_within`.
    Requester,
}

impl Award {
    /// The word in a policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Cheapest => "cheapest",
            Self::Fastest => "fastest",
            Self::LeastLoaded => "least_loaded",
            Self::Weighted => "weighted",
            Self::Calibrated => "calibrated",
            Self::Direct => "direct",
            Self::Requester => "requester",
        }
    }
}

/// How much each part of a score counts for `weighted`, as parts of their sum; what is left out counts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// A low cost.
    #[serde(default)]
    pub cost: u16,
    /// A short time.
    #[serde(default)]
    pub speed: u16,
    /// Confidence.
    #[serde(default)]
    pub confidence: u16,
    /// Free slots.
    #[serde(default)]
    pub load: u16,
    /// Earlier outcomes.
    #[serde(default)]
    pub reputation: u16,
}

impl Weights {
    fn are_good(&self) -> bool {
        let all = [self.cost, self.speed, self.confidence, self.load, self.reputation];
        all.iter().all(|weight| *weight <= 1000) && all.iter().any(|weight| *weight > 0)
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self { cost: 20, speed: 20, confidence: 30, load: 10, reputation: 20 }
    }
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
