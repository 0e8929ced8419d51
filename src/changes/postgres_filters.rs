//! Filters that only Postgres can evaluate, and how long delivery waits for the answers.
//!
//! A question that fails counts as no match. Asked on connections of its own, so that patterns take nothing from
//! joins and the catalog.
use super::filter_wait::FilterWait;
use crate::{
    access::{FairQueue, QueueFull, TurnOwner},
    db::Database,
    filter::{self, Answers, Probe, Truth},
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// Connections: one for the channels whose filters are asked together, one for those that are asked alone.
pub const CONNECTIONS: usize = 2;
/// Answers that are kept; with more, all are forgotten.
const ANSWERS_MAX: usize = 200_000;
/// How long one question may take.
const WITHIN: Duration = Duration::from_secs(1);
/// How long one turn on the connection may take.
const TURN: Duration = Duration::from_secs(2);
/// An answer that takes longer does not come, and the connection is of no use any more.
const SILENT: Duration = Duration::from_secs(10);
/// Pause while the database is away.
const PAUSE: Duration = Duration::from_millis(200);
/// Steps of comparing that a channel may take for one row, before Postgres is asked instead.
const STEPS_MAX: usize = 200_000;

#[derive(Debug)]
pub(super) struct Oracle {
    database: Database,
    kept: Mutex<Answers>,
    /// Of those that are asked alone.
    queue: FairQueue,
}

/// What is known when rows are looked at, and what is not.
pub(super) struct Asking {
    answers: Answers,
    /// The group that is looked at, and what it may still spend on this row.
    group: u64,
    steps_left: usize,
}

impl Oracle {
    pub(super) fn new(database: Database) -> Self {
        Self { database, kept: Mutex::default(), queue: FairQueue::new(1) }
    }

    /// What is known already; to be [given back](Self::keep). Who has its own patience has its own answers, which end
    /// with it.
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

    /// Fetches what was asked in vain, or as much of it as can be had by `until`, which is put off while the database is
    /// away.
    pub(super) async fn fetch(&self, asking: &mut Asking, patience: FilterWait, until: &mut Instant) {
        while asking.answers.has_open() && Instant::now() < *until {
            let turn = match patience {
                FilterWait::Own(owner) => {
                    let (org, policy) = (Arc::from(""), Arc::from("filter"));
                    let turn = self.queue.turn(TurnOwner { org, connection: owner, policy }).await;
                    let Ok(turn) = turn.map_err(|QueueFull| ()) else { return };
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
    /// Other rows are looked at.
    pub(super) fn begin(&mut self) {
        self.answers.forget_last_value();
        self.next_row();
    }

    pub(super) fn next_row(&mut self) {
        self.group = u64::MAX;
    }

    /// A group is looked at: each has its own share of comparing.
    pub(super) fn of(&mut self, group: u64) {
        if self.group != group {
            (self.group, self.steps_left) = (group, STEPS_MAX);
        }
    }

    /// How often something was asked that is not known.
    pub(super) fn in_vain(&self) -> u64 {
        self.answers.misses()
    }

    /// What is not known now is taken for no match.
    pub(super) fn give_up(&mut self) {
        self.answers.refuse_open();
    }
}

impl filter::Oracle for Asking {
    fn ask(&mut self, probe: &Arc<Probe>, value: &str) -> Truth {
        self.answers.ask(probe, value)
    }

    fn affords(&mut self, steps: usize) -> bool {
        let affords = steps <= self.steps_left;
        self.steps_left = self.steps_left.saturating_sub(steps);
        affords
    }
}
