//! Evaluates filters in Postgres, with timeouts.
//!
//! A comparison that fails counts as no match. It has connections of its own, so that expensive patterns do not delay
//! joins and reads of the catalog.
use super::filter_wait::FilterWait;
use crate::{
    db::Database,
    filter::{self, Answers, Probe, Truth},
    scope::{FairQueue, QueueFull, TurnOwner},
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// Connections: one for the shared lane, one for the channels with a task of their own.
pub const CONNECTIONS: usize = 2;
/// Most cached answers; with more, the cache is cleared.
const ANSWERS_MAX: usize = 200_000;
/// Timeout of one comparison.
const WITHIN: Duration = Duration::from_secs(1);
/// Most time of one turn on the connection, in the fair queue.
const TURN: Duration = Duration::from_secs(2);
/// Timeout of a fetch, after which the connection counts as broken.
const SILENT: Duration = Duration::from_secs(10);
/// Pause between two attempts while the database is unavailable.
const PAUSE: Duration = Duration::from_millis(200);
/// Most steps of comparisons and patterns in this process, for one channel and row. Postgres evaluates what exceeds them.
const STEPS_MAX: usize = 200_000;

#[derive(Debug)]
pub(super) struct Oracle {
    database: Database,
    kept: Mutex<Answers>,
    /// Turns of the channels with a task of their own.
    queue: FairQueue,
}

/// The answers during one pass over rows, and the comparisons that lack one.
pub(super) struct Asking {
    answers: Answers,
    /// The current group, and its remaining steps for the current row.
    group: u64,
    steps_left: usize,
}

impl Oracle {
    pub(super) fn new(database: Database) -> Self {
        Self { database, kept: Mutex::default(), queue: FairQueue::new(1) }
    }

    /// Takes the cached answers, to be [returned](Self::keep) after use. Only the shared lane has a cache.
    pub(super) fn asking(&self, patience: FilterWait) -> Asking {
        let answers = match patience {
            FilterWait::Short => std::mem::take(&mut *self.kept.lock()),
            FilterWait::Never | FilterWait::Own(_) => Answers::default(),
        };
        Asking { answers, group: u64::MAX, steps_left: STEPS_MAX }
    }

    pub(super) fn keep(&self, asking: Asking, patience: FilterWait) {
        let mut answers = asking.answers;
        if patience == FilterWait::Short && answers.len() < ANSWERS_MAX {
            answers.drop_open();
            *self.kept.lock() = answers;
        }
    }

    /// Fetches the missing answers until `until`, which is extended while the database is unavailable, and by the time
    /// that a channel waits for its turn: others take that time, and not its filter.
    pub(super) async fn fetch(&self, asking: &mut Asking, patience: FilterWait, until: &mut Instant) {
        while asking.answers.has_open() && Instant::now() < *until {
            let turn = match patience {
                FilterWait::Own(owner) => {
                    let (org, policy) = (Arc::from(""), Arc::from("filter"));
                    let asked = Instant::now();
                    let turn = self.queue.turn(TurnOwner { org, connection: owner, policy }).await;
                    let Ok(turn) = turn.map_err(|QueueFull| ()) else { return };
                    *until += asked.elapsed();
                    Some(turn)
                }
                FilterWait::Never | FilterWait::Short => None,
            };
            let turn_ends = (*until).min(Instant::now() + TURN);
            let fetched = timeout(SILENT, async {
                let mut client = self.database.client().await?;
                asking.answers.fetch_until(&mut client, WITHIN, Some(turn_ends)).await
            });
            let error = match fetched.await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the database does not answer".to_owned(),
            };
            drop(turn);
            tracing::debug!(error, "filters wait for the database");
            tokio::time::sleep(PAUSE).await;
            *until = Instant::now() + patience.within().unwrap_or_default();
        }
    }
}

impl Asking {
    /// Starts a pass over rows.
    pub(super) fn begin(&mut self) {
        self.answers.forget_last_value();
        self.next_row();
    }

    pub(super) fn next_row(&mut self) {
        self.group = u64::MAX;
    }

    /// Switches to a group. Each has its own steps.
    pub(super) fn of(&mut self, group: u64) {
        if self.group != group {
            (self.group, self.steps_left) = (group, STEPS_MAX);
        }
    }

    /// Number of comparisons without an answer so far.
    pub(super) fn in_vain(&self) -> u64 {
        self.answers.misses()
    }

    /// Counts every comparison without an answer as no match.
    pub(super) fn give_up(&mut self) {
        self.answers.give_up();
    }
}

impl filter::Oracle for Asking {
    fn ask(&mut self, probe: &Arc<Probe>, value: &str) -> Truth {
        self.answers.ask(probe, value)
    }

    fn steps_left(&self) -> usize {
        self.steps_left
    }

    fn spend(&mut self, steps: usize) {
        self.steps_left = self.steps_left.saturating_sub(steps);
    }
}
