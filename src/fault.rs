//! Named points at which a test can kill the daemon with SIGKILL.
//!
//! `CONVOKE_FAULT=task.awarded` kills the process when it passes that point for the first time,
//! `task.awarded:3` at the third time. Only builds with debug assertions read the variable; in a release build a
//! point compiles to nothing.
use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// The environment variable that names the point.
pub const VARIABLE: &str = "CONVOKE_FAULT";

/// A point that the daemon passes. The name is the variant in lower case, with dots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// An actor has received an award and has not accepted it.
    AgentAssigned,
    /// An actor has started a job.
    AgentStarted,
    /// An actor has a result that is not handed in.
    AgentWorked,
    /// Coalesced changes are written and not committed.
    BurstBeforeCommit,
    /// Coalesced changes have become a task.
    BurstFired,
    /// Row changes are in the change log and not delivered.
    ChangesLogged,
    /// Row changes are in the outboxes.
    ChangesPublished,
    /// Row changes are read from the WAL and not in the change log.
    ChangesReceived,
    /// Results are left out of the questions of a run from now on.
    CompactRecorded,
    /// The data folder of the private PostgreSQL is made and not renamed.
    DbDataMade,
    /// The private PostgreSQL has started.
    DbServerStarted,
    /// A message of a room with a history is accepted and not in the journal.
    HistoryHeard,
    /// A message is in the journal and not in the outboxes.
    HistoryWritten,
    /// The keeper of a command has its order and the daemon waits for the end.
    KeeperSpawned,
    /// The keeper of a command has ended and the daemon has not looked at the outcome.
    KeeperWrote,
    /// A WAL position is stored and not reported to Postgres.
    PositionStored,
    /// What a person decided about the calls of a run is recorded and none of them has begun.
    RunAnswered,
    /// Calls of a run are recorded as waiting for an approval and nobody is asked.
    RunAsked,
    /// The result of a run is recorded and its task has not ended.
    RunFinishing,
    /// A scheduled task is written and not committed.
    ScheduleBeforeCommit,
    /// A scheduled task is committed.
    ScheduleFired,
    /// A model has answered and nothing is recorded.
    StepAnswered,
    /// A question to a model is recorded and not asked.
    StepBegun,
    /// A model could not answer, which is recorded, and the next one of the list is not asked.
    StepPassedOver,
    /// The answer of a model and its calls are committed.
    StepRecorded,
    /// An accept is committed.
    TaskAccepted,
    /// A round is announced.
    TaskAnnounced,
    /// An answer to a waiting task is committed.
    TaskAnswered,
    /// An award is decided and not committed.
    TaskAwardBeforeCommit,
    /// An award is committed.
    TaskAwarded,
    /// A batch of commands is decided and not committed.
    TaskCommandsBeforeCommit,
    /// The end of a task is committed.
    TaskFinished,
    /// A result has arrived and nothing is written.
    TaskFinishing,
    /// Dependents of an ended task have moved.
    TaskFollowed,
    /// A request is committed.
    TaskRequested,
    /// A requeue is committed.
    TaskRequeued,
    /// The failure of an unreadable task is committed.
    TaskUnreadable,
    /// A wait is committed.
    TaskWaiting,
    /// A task has its turn in its thread and its run has not begun.
    ThreadTurn,
    /// A tool has had its effect and its result is not recorded.
    ToolDone,
    /// The intent to call a tool is on disk and the tool has not begun.
    ToolIntended,
    /// The result of a tool is committed.
    ToolRecorded,
    /// The WAL position behind a wake is confirmed.
    WakeConfirmed,
    /// A row change with a wake is read from the WAL.
    WakeReceived,
    /// The task of a wake is committed.
    WakeRecorded,
}

impl Point {
    /// Every point.
    pub const ALL: [Self; 45] = [
        Self::AgentAssigned,
        Self::AgentStarted,
        Self::AgentWorked,
        Self::BurstBeforeCommit,
        Self::BurstFired,
        Self::ChangesLogged,
        Self::ChangesPublished,
        Self::ChangesReceived,
        Self::CompactRecorded,
        Self::DbDataMade,
        Self::DbServerStarted,
        Self::HistoryHeard,
        Self::HistoryWritten,
        Self::KeeperSpawned,
        Self::KeeperWrote,
        Self::PositionStored,
        Self::RunAnswered,
        Self::RunAsked,
        Self::RunFinishing,
        Self::ScheduleBeforeCommit,
        Self::ScheduleFired,
        Self::StepAnswered,
        Self::StepBegun,
        Self::StepPassedOver,
        Self::StepRecorded,
        Self::TaskAccepted,
        Self::TaskAnnounced,
        Self::TaskAnswered,
        Self::TaskAwardBeforeCommit,
        Self::TaskAwarded,
        Self::TaskCommandsBeforeCommit,
        Self::TaskFinished,
        Self::TaskFinishing,
        Self::TaskFollowed,
        Self::TaskRequested,
        Self::TaskRequeued,
        Self::TaskUnreadable,
        Self::TaskWaiting,
        Self::ThreadTurn,
        Self::ToolDone,
        Self::ToolIntended,
        Self::ToolRecorded,
        Self::WakeConfirmed,
        Self::WakeReceived,
        Self::WakeRecorded,
    ];

    /// The name in `CONVOKE_FAULT`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AgentAssigned => "agent.assigned",
            Self::AgentStarted => "agent.started",
            Self::AgentWorked => "agent.worked",
            Self::BurstBeforeCommit => "burst.before_commit",
            Self::BurstFired => "burst.fired",
            Self::ChangesLogged => "changes.logged",
            Self::ChangesPublished => "changes.published",
            Self::ChangesReceived => "changes.received",
            Self::CompactRecorded => "compact.recorded",
            Self::DbDataMade => "db.data_made",
            Self::DbServerStarted => "db.server_started",
            Self::HistoryHeard => "history.heard",
            Self::HistoryWritten => "history.written",
            Self::KeeperSpawned => "keeper.spawned",
            Self::KeeperWrote => "keeper.wrote",
            Self::PositionStored => "position.stored",
            Self::RunAnswered => "run.answered",
            Self::RunAsked => "run.asked",
            Self::RunFinishing => "run.finishing",
            Self::ScheduleBeforeCommit => "schedule.before_commit",
            Self::ScheduleFired => "schedule.fired",
            Self::StepAnswered => "step.answered",
            Self::StepBegun => "step.begun",
            Self::StepPassedOver => "step.passed_over",
            Self::StepRecorded => "step.recorded",
            Self::TaskAccepted => "task.accepted",
            Self::TaskAnnounced => "task.announced",
            Self::TaskAnswered => "task.answered",
            Self::TaskAwardBeforeCommit => "task.award.before_commit",
            Self::TaskAwarded => "task.awarded",
            Self::TaskCommandsBeforeCommit => "task.commands.before_commit",
            Self::TaskFinished => "task.finished",
            Self::TaskFinishing => "task.finishing",
            Self::TaskFollowed => "task.followed",
            Self::TaskRequested => "task.requested",
            Self::TaskRequeued => "task.requeued",
            Self::TaskUnreadable => "task.unreadable",
            Self::TaskWaiting => "task.waiting",
            Self::ThreadTurn => "thread.turn",
            Self::ToolDone => "tool.done",
            Self::ToolIntended => "tool.intended",
            Self::ToolRecorded => "tool.recorded",
            Self::WakeConfirmed => "wake.confirmed",
            Self::WakeReceived => "wake.received",
            Self::WakeRecorded => "wake.recorded",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|point| point.name() == name)
    }
}

/// Kills this process as `kill -9` does, if the environment names this point.
#[inline]
pub fn point(point: Point) {
    if cfg!(debug_assertions) {
        pass(point);
    }
}

/// Checks the environment variable before the daemon starts.
///
/// # Errors
/// One line, if the variable names no point or its count is not a number from 1.
pub fn check() -> Result<(), String> {
    match std::env::var(VARIABLE) {
        Ok(text) if cfg!(debug_assertions) => Armed::parse(&text).map(drop),
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct Armed {
    point: Point,
    passes_left: AtomicU32,
}

impl Armed {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let names = || Point::ALL.map(Point::name).join(", ");
        let point = Point::parse(name)
            .ok_or_else(|| format!("{VARIABLE}: {name:?} is not a fault point; use one of {}", names()))?;
        let count = count.parse().ok().filter(|count| *count > 0);
        let count =
            count.ok_or_else(|| format!("{VARIABLE}: the count after {name}: is not a number from 1"))?;
        Ok(Self { point, passes_left: AtomicU32::new(count) })
    }
}

fn pass(point: Point) {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| Armed::parse(&std::env::var(VARIABLE).ok()?).ok());
    let Some(armed) = armed else { return };
    if armed.point == point && armed.passes_left.fetch_sub(1, Ordering::Relaxed) == 1 {
        // SIGKILL leaves no time for destructors, flushes or handlers, as in a real crash.
        let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_found_by_its_name() {
        for point in Point::ALL {
            assert_eq!(Armed::parse(&format!("{}:2", point.name())).unwrap().point, point);
        }
    }

    #[test]
    fn unknown_point_and_bad_count_are_refused() {
        for text in ["", "task.award", "task.awarded:0", "task.awarded:x"] {
            assert!(Armed::parse(text).unwrap_err().starts_with(VARIABLE), "{text}");
        }
    }

    /// CONTRIBUTING.md lists the points; whoever debugs looks there.
    #[test]
    fn contributing_lists_every_point() {
        let page = include_str!("../CONTRIBUTING.md");
        for point in Point::ALL {
            assert!(page.contains(&format!("`{}`", point.name())), "{} is missing", point.name());
        }
    }
}
