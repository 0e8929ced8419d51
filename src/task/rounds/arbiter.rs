//! The arbiter: polls when something changed or came due, and moves all ready and due tasks.
//!
//! A signal carries no data, so one that is lost or sent twice is harmless: each poll reads the rows. It takes the
//! ready tasks of every class that has free slots, by priority, and the tasks that are due. It never waits for a
//! batch to fill. Without a signal it polls at the next due time, at the latest every [`POLL_EVERY`].
use crate::task::commands::after_commit::{publish, release_slots};
use crate::task::commands::command::{Action, BatchOutcome, TaskCommand};
use crate::task::commands::dependents::Ends;
use crate::task::model::policies::Policies;
use crate::task::rounds::fair_share::{Want, share};
use crate::task::rounds::round::Plan;
use crate::task::rounds::score::{Measured, Offer};
use crate::task::storage::candidate::Candidate;
use crate::task::storage::locked_task::lock;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::store;
use crate::task::storage::transaction::Transaction;
use crate::task::upkeep::catch_panic::catch_panic;
use crate::task::{
    Error, Incarnation, OrgId, POLL_EVERY, TaskContext, TaskId, commands::command_executor,
    commands::dependents, commands::group_commit::BATCH_MAX, rounds::awards, triggers::coalesce,
    upkeep::register, upkeep::unreadable,
};
use crate::{db, fault, telemetry::Outage};
use futures_util::future::ready;
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;
use tokio_postgres::{Row, types::ToSql};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Under load, due tasks are read after this many batches of awards, which take a few milliseconds each.
const TIMERS_AFTER: u32 = 4;
/// Pause before due tasks that another transaction has locked are read again.
const HELD_PAUSE: Duration = Duration::from_millis(20);
/// After a signal from the WAL: the first pause before another poll, which doubles, and the last one.
const ECHO_MIN: Duration = Duration::from_millis(1);
const ECHO_MAX: Duration = Duration::from_millis(500);
/// How often old wakes are deleted.
const FORGET_EVERY: Duration = Duration::from_secs(600);
/// Pause after a poll that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Tasks that one batch opens rounds for.
const TASKS_MAX: u32 = 400;
/// Classes that one statement returns, and that are remembered between polls.
const CLASSES_MAX: usize = 1000;

/// Polls and awards; see [`Tasks::arbiter`](crate::task::Tasks::arbiter).
pub struct Arbiter {
    pub(in crate::task) context: Arc<TaskContext>,
    /// Org and capabilities of each class that had ready tasks. `None` for an org that cannot be read.
    classes: BTreeMap<i64, (Option<OrgId>, Vec<String>)>,
    /// The last class that was returned; the next batch continues after it when there were too many.
    last_class: i64,
    /// Which org is served first when there are more orgs than places.
    turn: usize,
    /// Whether the database could not be reached at the last poll.
    was_away: bool,
    forgot: Option<Instant>,
}

pub(in crate::task) async fn serve(context: Arc<TaskContext>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut arbiter = Arbiter::new(context.clone());
    let mut wait = Duration::ZERO;
    let mut echo = ECHO_MAX;
    let mut outage = Outage::of("poll of the arbiter");
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                // Also after `stand_by`: the last poll may have ended later.
                context.arbiter_progress.idle();
                return Ok(());
            }
            () = context.arbiter_wanted.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        if context.notified_by_wal.swap(false, Ordering::Relaxed) {
            echo = ECHO_MIN;
        }
        wait = match catch_panic(&context, "a poll of the arbiter", arbiter.poll()).await {
            Ok(next) => {
                outage.succeeded();
                next
            }
            Err(error) => {
                arbiter.was_away |= matches!(error, Error::Unavailable(_));
                outage.failed(&with_cause(&error));
                RETRY_PAUSE
            }
        };
        if echo < ECHO_MAX {
            wait = wait.min(echo);
            echo *= 2;
        }
    }
}

/// An error's text and that of its cause, for the process log.
fn with_cause(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl std::fmt::Debug for Arbiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arbiter").field("node", &self.context.node).finish_non_exhaustive()
    }
}

impl Arbiter {
    pub(in crate::task) fn new(context: Arc<TaskContext>) -> Self {
        Self {
            context,
            classes: BTreeMap::new(),
            last_class: i64::MIN,
            turn: 0,
            was_away: false,
            forgot: None,
        }
    }

    /// Moves all tasks that are ready or due. Returns the time until the next one is due.
    ///
    /// # Errors
    /// `Unavailable` while the database cannot be reached; the next poll finds what was not committed.
    pub async fn poll(&mut self) -> Result<Duration, Error> {
        self.forget().await?;
        if self.was_away {
            // No lease could be renewed in the meantime, so all that have run out get a grace period first.
            let client = self.context.database.client().await?;
            client.execute(sql!("grace"), &[]).await.map_err(db::Error::from)?;
            self.was_away = false;
        }
        let mut batches = 0_u32;
        loop {
            let stale = self.context.roster_stale.swap(false, Ordering::Relaxed);
            if stale || self.context.is_roster_old() {
                register::refresh(&self.context, None).await?;
                *self.context.roster_read.lock() = Some(Instant::now());
            }
            let more = self.open_rounds().await?;
            self.context.arbiter_progress.step();
            batches += 1;
            if more && !batches.is_multiple_of(TIMERS_AFTER) {
                continue;
            }
            let wait = self.next_due().await?;
            if wait.is_zero() {
                let fired = coalesce::fire(&self.context).await?;
                let moved = self.timers().await?;
                self.context.arbiter_progress.step();
                if !moved && !fired && !more {
                    // Another transaction has locked the rows that are due, and they were skipped.
                    return Ok(HELD_PAUSE);
                }
            } else if !more {
                return Ok(wait.min(POLL_EVERY));
            }
        }
    }

    /// Maintenance, at the start and every [`FORGET_EVERY`]: deletes the wakes of changes that the WAL will not
    /// repeat, makes tasks due that never would be, and writes the policies of the settings for SQL.
    async fn forget(&mut self) -> Result<(), Error> {
        if self.forgot.is_none_or(|at| at.elapsed() > FORGET_EVERY) {
            let client = self.context.database.client().await?;
            client.execute(sql!("forget_wakes"), &[]).await.map_err(db::Error::from)?;
            client.execute(sql!("forget_bursts"), &[]).await.map_err(db::Error::from)?;
            client.execute(sql!("wake_never_due"), &[]).await.map_err(db::Error::from)?;
            // `convoke.request_task` reads them.
            let attempts_max = i32::try_from(self.context.policies.default.attempts_max).unwrap_or(i32::MAX);
            let Policies { default, kinds } = &*self.context.policies;
            let policies = json!({ "default": default, "kinds": kinds });
            let defaults: [&(dyn ToSql + Sync); 3] = [&attempts_max, &policies, &self.context.traced_percent];
            client.execute(sql!("defaults"), &defaults).await.map_err(db::Error::from)?;
            self.forgot = Some(Instant::now());
        }
        Ok(())
    }

    async fn next_due(&self) -> Result<Duration, Error> {
        let client = self.context.database.client().await?;
        let statement = client.prepare_cached(sql!("next_due")).await.map_err(db::Error::from)?;
        let row = client.query_opt(&statement, &[]).await.map_err(db::Error::from)?;
        let wait_ms: Option<i64> = row.map(|row| row.read("wait_ms")).transpose()?;
        Ok(wait_ms.map_or(POLL_EVERY, |ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))))
    }

    /// Opens rounds for tasks that are ready. Returns whether there may be more.
    async fn open_rounds(&mut self) -> Result<bool, Error> {
        // Before the free slots are counted: a slot that becomes free later asks for another poll.
        self.context.ready_left.store(true, Ordering::SeqCst);
        let (classes, limits) = self.limits();
        let context = self.context.clone();
        match catch_panic(&context, "opening rounds", self.award_batch(&classes, &limits)).await {
            Err(error @ (Error::Internal(_) | Error::Unstorable(_))) => {
                tracing::warn!(
                    reason = error.refusal(),
                    "batch of awards failed, tasks are awarded one by one"
                );
                self.award_one_by_one(&classes, &limits).await
            }
            answer => answer,
        }
    }

    async fn award_batch(&mut self, classes: &[i64], limits: &[i64]) -> Result<bool, Error> {
        let after = self.last_class;
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin_async(&mut client);
        let (found, rows) = futures_util::future::try_join(
            run(&tx, sql!("classes"), &[&after]),
            run(&tx, sql!("ready"), &[&classes, &limits]),
        )
        .await?;
        let fresh = self.remember(&found)?;
        if found.is_empty() && after == i64::MIN {
            self.context.ready_left.store(false, Ordering::SeqCst);
        }
        let page = found.len() >= CLASSES_MAX;
        let known: Vec<i64> = rows::all(&found, "class")?;
        self.last_class = known.last().filter(|_| page).copied().unwrap_or(i64::MIN);
        self.note_backlog(known, classes, limits, &rows::all(&rows, "class")?);
        let (candidates, mut broken) = rows::split(&rows, Candidate::from_row)?;
        if candidates.is_empty() && broken.is_empty() {
            return Ok(fresh);
        }
        let (plan, panicked) = Plan::open_all(&self.context, &candidates);
        broken.extend(panicked);
        let mut outcome = BatchOutcome::default();
        unreadable::end(&tx, &self.context, &broken, &mut outcome).await?;
        let moved = self.write(tx, plan, &candidates, false).await?;
        publish(&self.context, &outcome.freed, outcome.notices);
        Ok(moved + broken.len() > 0 || fresh)
    }

    /// Writes a plan and commits. Returns how many tasks moved.
    pub(in crate::task) async fn write(
        &self,
        tx: Transaction<'_>,
        plan: Plan,
        tasks: &[Candidate],
        standing: bool,
    ) -> Result<usize, Error> {
        let roster_guard = self.context.roster_guard();
        // Not flushed: an award that is lost with the machine is made anew.
        let ((), written, _) =
            awards::write_and_commit(&self.context, &tx, ready(Ok(((), true))), plan, tasks, standing, false)
                .await?;
        roster_guard.keep();
        let moved = written.moved;
        awards::publish(&self.context, written);
        Ok(moved)
    }

    /// How many ready tasks of each known class could find an agent now.
    /// Every org gets the same share, so that none waits behind a large backlog of another.
    fn limits(&mut self) -> (Vec<i64>, Vec<i64>) {
        let roster = self.context.roster.lock();
        let most = BATCH_MAX as u32;
        let wants = self
            .classes
            .iter()
            .map(|(class, (org, requires))| {
                let members = roster.members.values();
                let mut members =
                    members.filter(|m| org.as_ref().is_some_and(|org| m.can(org, requires))).peekable();
                // Without an eligible agent the round is empty, and tasks must get that round too.
                let limit = if members.peek().is_none() {
                    most
                } else {
                    members.map(|m| m.free()).sum::<u32>().min(most)
                };
                Want { class: *class, org: org.clone(), most: limit }
            })
            .collect();
        drop(roster);
        let shares = share(wants, TASKS_MAX, self.turn);
        self.turn = self.turn.wrapping_add(1);
        shares.into_iter().map(|(class, share)| (class, i64::from(share))).unzip()
    }

    /// Records the classes that have more ready tasks than were read: new tasks must queue behind those.
    fn note_backlog(&self, found: Vec<i64>, classes: &[i64], limits: &[i64], ready: &[i64]) {
        let mut taken: HashMap<i64, i64> = HashMap::new();
        for class in ready {
            *taken.entry(*class).or_default() += 1;
        }
        let drained = |class: &i64| {
            let limit =
                classes.iter().zip(limits).find(|(known, _)| *known == class).map_or(0, |(_, limit)| *limit);
            taken.get(class).copied().unwrap_or(0) < limit
        };
        *self.context.backlog.lock() = found.into_iter().filter(|class| !drained(class)).collect();
    }

    /// Remembers the classes that have ready tasks. Returns whether one was new.
    fn remember(&mut self, rows: &[Row]) -> Result<bool, Unreadable> {
        if self.classes.len() > CLASSES_MAX {
            self.classes.clear();
        }
        let mut fresh = false;
        for row in rows {
            // An org or capabilities that cannot be read belong to a task that ends as soon as a poll reads it.
            let class = (rows::org(row).ok(), row.read("requires").unwrap_or_default());
            fresh |= self.classes.insert(row.read("class")?, class).is_none();
        }
        Ok(fresh)
    }

    /// Moves the tasks that are due. Returns false when there was none that could be locked.
    async fn timers(&mut self) -> Result<bool, Error> {
        let context = self.context.clone();
        match catch_panic(&context, "timers of tasks", self.timers_batch()).await {
            Err(error @ (Error::Internal(_) | Error::Unstorable(_))) => {
                tracing::warn!(
                    reason = error.refusal(),
                    "batch of timers failed, tasks are moved one by one"
                );
                self.timers_one_by_one().await
            }
            answer => answer,
        }
    }

    async fn timers_batch(&mut self) -> Result<bool, Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let (due, late) =
            futures_util::future::try_join(run(&tx, sql!("due"), &[]), run(&tx, sql!("past_deadline"), &[]))
                .await?;
        let ends = dependents::ends(&tx).await?;
        let mut commands: BTreeMap<TaskId, TaskCommand> =
            ends.commands.iter().map(|command| (command.task, command.clone())).collect();
        for row in due.iter().chain(&late) {
            let task = rows::task_id(row, "id")?;
            commands.entry(task).or_insert(TaskCommand { task, holder: None, action: Action::Timer });
        }
        if commands.is_empty() && ends.is_empty() {
            return Ok(false);
        }
        let commands: Vec<TaskCommand> = commands.into_values().collect();
        let followed = !ends.is_empty();
        self.carry_out_due(tx, &commands, Some(ends)).await?;
        if followed {
            fault::point(fault::Point::TaskFollowed);
        }
        Ok(true)
    }

    /// Moves one due task in a transaction of its own.
    pub(in crate::task) async fn move_due(&mut self, command: &TaskCommand) -> Result<(), Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        self.carry_out_due(tx, std::slice::from_ref(command), None).await
    }

    async fn carry_out_due(
        &mut self,
        tx: Transaction<'_>,
        commands: &[TaskCommand],
        ends: Option<Ends>,
    ) -> Result<(), Error> {
        let mut outcome = command_executor::carry_out(&self.context, &tx, commands).await?;
        if let Some(ends) = ends {
            ends.unmark(&tx).await?;
        }
        for (command, answer) in commands.iter().zip(&outcome.answers) {
            match answer {
                // It moved between the two statements.
                Ok(_) | Err(Error::Conflict { .. }) => {}
                Err(error) => {
                    tracing::warn!(task = %command.task, %error, "timer of a task failed");
                }
            }
        }
        let broken: Vec<(TaskId, i64)> = commands
            .iter()
            .zip(&outcome.answers)
            .filter(|(_, answer)| answer.is_err())
            .map(|(command, _)| (command.task, 60_000))
            .collect();
        store::set_due(&tx, &broken).await?;
        let closing = std::mem::take(&mut outcome.closing);
        // Before the rounds are closed: an agent that lost an award has a free slot for the next.
        let context = self.context.clone();
        let roster_guard = context.roster_guard();
        release_slots(&context, &outcome.freed);
        if closing.is_empty() {
            tx.commit().await?;
        } else {
            self.close(tx, &closing).await?;
        }
        roster_guard.keep();
        publish(&self.context, &[], outcome.notices);
        Ok(())
    }

    /// Closes the rounds of these tasks, whose rows this transaction has locked.
    async fn close(&mut self, tx: Transaction<'_>, closing: &[TaskId]) -> Result<(), Error> {
        let ids: Vec<Uuid> = closing.iter().map(|id| id.as_uuid()).collect();
        let mut standing: HashMap<TaskId, Vec<Offer>> = HashMap::new();
        for row in run(&tx, sql!("standing_offers"), &[&ids]).await? {
            let task = rows::task_id(&row, "task_id")?;
            // An offer that cannot be read cannot win.
            standing.entry(task).or_default().extend(standing_offer(&row).ok().flatten());
        }
        let (locked, mut broken) = lock(&tx, closing).await?;
        let candidates: Vec<Candidate> = locked.into_iter().map(Candidate::from).collect();
        let (plan, panicked) = Plan::close_all(&self.context, &candidates, standing);
        broken.extend(panicked);
        let mut outcome = BatchOutcome::default();
        unreadable::end(&tx, &self.context, &broken, &mut outcome).await?;
        self.write(tx, plan, &candidates, true).await?;
        publish(&self.context, &outcome.freed, outcome.notices);
        Ok(())
    }
}

fn standing_offer(row: &Row) -> Result<Option<Offer>, Unreadable> {
    let Some(agent) = rows::agent(row, "agent_id")? else { return Ok(None) };
    Ok(Some(Offer {
        agent,
        incarnation: Incarnation(row.read("incarnation")?),
        cost_microdollars: rows::amount(row, "cost_microdollars")?,
        eta_ms: rows::amount(row, "eta_ms")?,
        confidence: row.read("confidence")?,
        free: 0,
        measured: Measured::default(),
        waited_rank: 0,
        arrival: rows::amount(row, "arrival")?,
        chosen: row.read("chosen")?,
    }))
}
