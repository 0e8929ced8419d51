//! The negotiation: a durable Contract Net with confirmation (`docs/spec/negotiation.md`).
//!
//! Owns the tables `convoke.tasks`, `offer_rows`, `assignments`, `agents`, `statistics`, `events`, `wakes`, `bursts`,
//! `budgets`, `charges`, `allowances`, `model_questions`, `spend`, `schedules`, `definitions`, `runs` and `steps`; no
//! other module writes them. [`Tasks`] owns it and hands out what others need: [`TaskReader`] reads,
//! [`TaskCommands`] also gives commands, [`TaskTriggers`] makes tasks from row changes
//! and clocks. The [`arbiter`](Tasks::arbitrate) polls for tasks that are ready or due, and awards them. What a
//! commit did is published as [`Notice`]s, which are hints: the rows are the truth.
//!
//! It never names an agent's code, a channel or the WAL. It fails by refusing a command, and with `Unavailable`
//! while the database cannot be reached.
mod commands;
mod context;
pub mod machine;
mod model;
mod read;
mod rounds;
mod runs;
mod storage;
mod triggers;
mod upkeep;

pub use commands::bulk::{Bulk, BulkAction, BulkDone, NotChanged, Requeue, Requeued};
pub use commands::task_commands::TaskCommands;
pub use model::agent_words::{AgentKind, AgentPresence};
pub use model::approval::{ApprovalCall, CallDecision, Decision, decisions};
pub(crate) use model::budget::budget_question;
pub use model::budget::{Amount, Budget, InsufficientBudget};
pub use model::config::{Config, FOREVER};
pub use model::error::Error;
pub use model::metrics::Metrics;
pub use model::model_question::{DayLimit, LimitScope, ModelQuestion, ModelUsage, TokenParts};
pub use model::policy::*;
pub use model::schema::{SCHEMA_BYTES_MAX, SchemaMismatch, Schemas, check_setting, check_shape};
pub use model::step::*;
pub use model::task_state::TaskState;
pub use model::types::*;
pub use model::usage::Usage;
pub(crate) use model::validate::{check_json, is_word};
pub use model::wait_types::*;
pub use read::activity::{SpendBy, TriggerState};
pub use read::agent_lines::AgentLine;
pub use read::feed::{Feed, FeedFilter, FeedFrom};
pub use read::invariants::INVARIANTS;
pub use read::lines::{LineFilter, Lines};
pub use read::replay::{Replayed, replay};
pub use read::task_reader::TaskReader;
pub use read::traces::{Traced, TracedAttempt, TracedEvent, TracedStep, TracedTask, TracedWork};
pub use rounds::arbiter::Arbiter;
pub use rounds::score;
pub use rounds::tally::OffersTally;
pub use runs::{
    CallEnd, DatabaseCall, DatabaseResult, ForkPoint, LatestRun, MEMORY_BYTES_MAX, Memory, MemoryAction,
    MemoryChange, MemoryChanged, NewQuestion, Part, PinnedDefinition, PinnedTool, RunKey, SeenTool,
    SeenTools, ThreadResult, Turn, accept_tool, pinned_tools,
};
pub use triggers::coalesce::Burst;
pub use triggers::schedules::Schedule;
pub use triggers::task_triggers::TaskTriggers;
pub use triggers::wake::Wake;
pub use upkeep::definitions::{DefinitionVersion, ShownDefinition};

use crate::{
    db::Database,
    id::{AgentId, AssignmentId, Epoch, Incarnation, NodeId, OrgId, Requester, TaskId},
    scope::{OnExit, Scope},
};
use context::TaskContext;
use std::{
    ops::Deref,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use storage::rows::Columns as _;
use tokio::sync::mpsc;

/// Largest input of a task, in bytes of JSON.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Largest result of a task, in bytes of JSON.
pub const RESULT_BYTES_MAX: usize = 1 << 20;
/// How deep the lists and objects of an input, a policy, a result, a checkpoint or an answer may be nested. Rows
/// and messages nest them a few levels deeper, and JSON parsers stop at 128.
pub const JSON_DEPTH_MAX: usize = 100;
/// Tasks that one task may depend on.
pub const DEPENDS_ON_MAX: usize = 100;
/// Longest question, in bytes.
pub const QUESTION_BYTES_MAX: usize = 4000;
/// The name of the arbiter among the watched workers of its scope.
pub const ARBITER_WORKER: &str = "arbiter";
/// An arbiter that finishes no batch for this long is stalled: a batch takes milliseconds.
const ARBITER_STALLED_AFTER: Duration = POLL_EVERY.saturating_mul(3);
/// Longest time between two polls of the arbiter.
pub(in crate::task) const POLL_EVERY: Duration = Duration::from_secs(5);
/// How much of an input is shown before a task is accepted, in characters.
pub const PREVIEW_CHARS_MAX: i32 = 500;

/// The task store of one node, with all rights on it. Cloning is cheap.
///
/// For those who run it: it starts and stops the arbiter and registers agents. Others get a
/// [`TaskReader`](TaskCommands::reader), [`TaskCommands`] (which this derefs to) or [`TaskTriggers`].
#[derive(Clone)]
pub struct Tasks {
    context: Arc<TaskContext>,
    commands: TaskCommands,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("node", &self.context.node).finish_non_exhaustive()
    }
}

impl Deref for Tasks {
    type Target = TaskCommands;

    fn deref(&self) -> &TaskCommands {
        &self.commands
    }
}

impl Tasks {
    /// Starts the group commits in `scope`. The receiver gets the notices of each commit.
    #[must_use]
    pub fn start(
        scope: &Scope,
        database: Database,
        node: NodeId,
        config: &Config,
        metrics: Metrics,
    ) -> (Self, mpsc::Receiver<Vec<Notice>>) {
        let arbiter_progress = scope.watch(ARBITER_WORKER, ARBITER_STALLED_AFTER);
        let (context, notices) = TaskContext::new(database, node, config, metrics, arbiter_progress);
        let commands = TaskCommands::start(scope, &context);
        (Self { context, commands }, notices)
    }

    /// For those who request tasks or work on them.
    #[must_use]
    pub fn commands(&self) -> TaskCommands {
        self.commands.clone()
    }

    /// For those who make tasks from row changes and clocks.
    #[must_use]
    pub fn triggers(&self) -> TaskTriggers {
        TaskTriggers { context: self.context.clone() }
    }

    /// Polls whenever something changed or came due, and awards, until `scope` stops.
    /// One node does this at a time: the one that leads.
    pub fn arbitrate(&self, scope: &Scope) {
        self.context.arbitrates.store(true, Ordering::Relaxed);
        self.context.arbiter_progress.step();
        let context = self.context.clone();
        scope.spawn("arbiter", OnExit::StopDaemon, |stop| rounds::arbiter::serve(context, stop));
        let context = self.context.clone();
        scope.spawn("task retention", OnExit::Log, |stop| upkeep::retention::serve(context, stop));
    }

    /// An arbiter that polls only when it is called: for simulations, and tools that keep their own time.
    /// Instead of [`Tasks::arbitrate`].
    #[must_use]
    pub fn arbiter(&self) -> Arbiter {
        self.context.arbitrates.store(true, Ordering::Relaxed);
        Arbiter::new(self.context.clone())
    }

    /// Another node arbitrates from now on; the scope of [`Tasks::arbitrate`] has stopped.
    pub fn stand_by(&self) {
        self.context.arbitrates.store(false, Ordering::Relaxed);
        self.context.arbiter_progress.idle();
    }

    /// Whether this node arbitrates now, and so hosts agents.
    #[must_use]
    pub fn arbitrates(&self) -> bool {
        self.context.arbitrates.load(Ordering::Relaxed)
    }

    /// For how long the arbiter of this node has not moved; `None` while it moves or another node arbitrates.
    #[must_use]
    pub fn arbiter_stalled(&self) -> Option<Duration> {
        self.context.arbiter_progress.stalled_for()
    }

    /// How many batches of notices were dropped since the start, because their reader was too slow.
    #[must_use]
    pub fn notices_dropped(&self) -> u64 {
        self.context.metrics.notices_dropped.get()
    }

    /// Asks the arbiter of this node to poll; carries no data and may be called for nothing.
    pub fn notify_arbiter(&self) {
        self.context.notify_arbiter();
    }

    /// The content of a WAL message that calls the arbiter. It is a secret of the database: a message without it
    /// was not written by `convoke.call_arbiter()`.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn wake_key(&self) -> Result<String, Error> {
        let rows = self.query("select wake_key::text as wake_key from convoke.task_defaults", &[]).await?;
        let row = rows.first().ok_or(Error::Unavailable(None))?;
        Ok(row.read("wake_key")?)
    }
}
