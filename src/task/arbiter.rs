//! The arbiter: looks when something changed or came due, and moves all of it.
//!
//! A wake-up carries no data, so a lost or doubled one is harmless: each look reads
//! the rows. It takes the ready tasks of every class that has free slots, most urgent
//! first, and the tasks whose time has come. It never waits for a batch to fill, and
//! without any wake-up it looks at the next due time, at the latest every few seconds.
use super::desk::{self, Act, Command};
use super::fair::{Want, share};
use super::rounds::{Candidate, Plan};
use super::score::{Measured, Offer};
use super::store::{self, run, sql};
use super::{
    Error, Incarnation, Shared, TaskId, awards, burst, depend, lane::BATCH_MAX, register, release, told,
};
use crate::{db, fault};
use deadpool_postgres::Transaction;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longest time without a look.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Under load, timers are looked at after this many batches of awards, which take some milliseconds each.
const TIMERS_AFTER: u32 = 4;
/// How soon what is due and held by someone else is looked at again.
const HELD_PAUSE: Duration = Duration::from_millis(20);
/// How long the roster is trusted without reading it again.
const ROSTER_EVERY: Duration = Duration::from_secs(1);
/// After a wake-up by the log: the first and, doubled each time, the last wait for another look.
const ECHO_MIN: Duration = Duration::from_millis(1);
const ECHO_MAX: Duration = Duration::from_millis(500);
/// How often old wakes are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(600);
/// Pause after a look that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Tasks that one look opens rounds for.
const TASKS_MAX: u32 = 400;
/// Classes that are found at once, and remembered between looks.
const CLASSES_MAX: usize = 1000;

/// One who looks and awards; see [`Tasks::arbiter`](super::Tasks::arbiter).
pub struct Arbiter {
    shared: Arc<Shared>,
    /// Org and capabilities of the classes that had ready tasks.
    classes: BTreeMap<i64, (String, Vec<String>)>,
    /// The last class that was found; the next look goes on after it when there were too many.
    last_class: i64,
    /// Who begins when not all orgs can have something.
    turn: usize,
    /// Whether the database was away at the last look.
    was_away: bool,
    roster_read: Option<Instant>,
    forgot: Option<Instant>,
}

pub(super) async fn serve(shared: Arc<Shared>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut arbiter = Arbiter::new(shared.clone());
    let mut wait = Duration::ZERO;
    let mut echo = ECHO_MAX;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = shared.poke.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        if shared.told_by_log.swap(false, Ordering::Relaxed) {
            echo = ECHO_MIN;
        }
        wait = match arbiter.look().await {
            Ok(next) => next,
            Err(Error::Unavailable(cause)) => {
                tracing::warn!(cause = ?cause, "the arbiter cannot reach the database");
                arbiter.was_away = true;
                RETRY_PAUSE
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "a look of the arbiter failed");
                RETRY_PAUSE
            }
        };
        if echo < ECHO_MAX {
            wait = wait.min(echo);
            echo *= 2;
        }
    }
}

impl std::fmt::Debug for Arbiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arbiter").field("node", &self.shared.node).finish_non_exhaustive()
    }
}

impl Arbiter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            classes: BTreeMap::new(),
            last_class: i64::MIN,
            turn: 0,
            was_away: false,
            roster_read: None,
            forgot: None,
        }
    }

    /// Moves all that is ready or due; gives the time until something comes due.
    ///
    /// # Errors
    /// `Unavailable` while the database is away; what was not committed is there for the next look.
    pub async fn look(&mut self) -> Result<Duration, Error> {
        self.forget().await?;
        if self.was_away {
            // Nobody could renew a lease meanwhile: whoever lives gets the time to.
            let client = self.shared.database.client().await?;
            client.execute(sql!("grace"), &[]).await.map_err(db::Error::from)?;
            self.was_away = false;
        }
        let mut batches = 0_u32;
        loop {
            let doubted = self.shared.roster_doubted.swap(false, Ordering::Relaxed);
            if doubted || self.roster_read.is_none_or(|at| at.elapsed() > ROSTER_EVERY) {
                register::refresh(&self.shared, None).await?;
                self.roster_read = Some(Instant::now());
            }
            let more = self.award().await?;
            batches += 1;
            if more && !batches.is_multiple_of(TIMERS_AFTER) {
                continue;
            }
            let wait = self.next_due().await?;
            if wait.is_zero() {
                let fired = burst::fire(&self.shared).await?;
                if !self.timers().await? && !fired && !more {
                    // Someone else holds the rows that are due.
                    return Ok(HELD_PAUSE);
                }
            } else if !more {
                return Ok(wait.min(LOOK_EVERY));
            }
        }
    }

    /// Forgets, now and then, the wakes of changes that the log will not tell again.
    async fn forget(&mut self) -> Result<(), Error> {
        if self.forgot.is_none_or(|at| at.elapsed() > FORGET_EVERY) {
            let client = self.shared.database.client().await?;
            client.execute(sql!("forget_wakes"), &[]).await.map_err(db::Error::from)?;
            client.execute(sql!("forget_bursts"), &[]).await.map_err(db::Error::from)?;
            // For those who request with SQL.
            let attempts_max = i32::try_from(self.shared.defaults.attempts_max).unwrap_or(i32::MAX);
            client.execute(sql!("defaults"), &[&attempts_max]).await.map_err(db::Error::from)?;
            self.forgot = Some(Instant::now());
        }
        Ok(())
    }

    async fn next_due(&self) -> Result<Duration, Error> {
        let client = self.shared.database.client().await?;
        let statement = client.prepare_cached(sql!("next_due")).await.map_err(db::Error::from)?;
        let row = client.query_opt(&statement, &[]).await.map_err(db::Error::from)?;
        let wait_ms: Option<i64> = row.map(|row| row.get("wait_ms"));
        Ok(wait_ms.map_or(LOOK_EVERY, |ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))))
    }

    /// Opens rounds for tasks that are ready; true when there may be more.
    async fn award(&mut self) -> Result<bool, Error> {
        let (classes, limits) = self.limits();
        let after = self.last_class;
        let mut client = self.shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        let ((), found, rows) = futures_util::future::try_join3(
            store::relax(&tx),
            run(&tx, sql!("classes"), &[&after]),
            run(&tx, sql!("ready"), &[&classes, &limits]),
        )
        .await?;
        let fresh = self.remember(&found);
        let page = found.len() >= CLASSES_MAX;
        self.last_class = found.last().filter(|_| page).map_or(i64::MIN, |row| row.get("class"));
        self.note_backlog(&found, &classes, &limits, &rows);
        let candidates: Vec<Candidate> = rows.iter().map(candidate).collect();
        if candidates.is_empty() {
            return Ok(fresh);
        }
        let plan = Plan::open_all(&self.shared, &candidates);
        let moved = self.write(tx, plan, &candidates, false).await?;
        Ok(moved > 0 || fresh)
    }

    /// Writes a plan and commits; gives how many tasks moved.
    async fn write(
        &self,
        tx: Transaction<'_>,
        plan: Plan,
        tasks: &[Candidate],
        standing: bool,
    ) -> Result<usize, Error> {
        let doubt = self.shared.doubt();
        let written = awards::write(&self.shared, &tx, &plan, tasks, standing).await?;
        tx.commit().await.map_err(db::Error::from)?;
        doubt.dispel();
        let moved = written.moved;
        awards::tell(&self.shared, written);
        Ok(moved)
    }

    /// How many ready tasks of each known class could find an agent now.
    /// Orgs get as much as each other, so that none waits behind the flood of another.
    fn limits(&mut self) -> (Vec<i64>, Vec<i64>) {
        let roster = self.shared.roster.lock();
        let most = BATCH_MAX as u32;
        let wants = self
            .classes
            .iter()
            .map(|(class, (org, requires))| {
                let mut members = roster.members.values().filter(|m| m.can(org, requires)).peekable();
                // With nobody eligible, the round is empty, and that must be found out too.
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

    /// Which classes have more ready tasks than could be looked at: new ones must queue behind them.
    fn note_backlog(&self, found: &[Row], classes: &[i64], limits: &[i64], rows: &[Row]) {
        let mut taken: HashMap<i64, i64> = HashMap::new();
        for row in rows {
            *taken.entry(row.get("class")).or_default() += 1;
        }
        let drained = |class: &i64| {
            let limit =
                classes.iter().zip(limits).find(|(known, _)| *known == class).map_or(0, |(_, limit)| *limit);
            taken.get(class).copied().unwrap_or(0) < limit
        };
        let waiting = found.iter().map(|row| row.get("class")).filter(|class| !drained(class));
        *self.shared.backlog.lock() = waiting.collect();
    }

    /// Remembers the classes that have ready tasks; true when one was not known.
    fn remember(&mut self, rows: &[Row]) -> bool {
        if self.classes.len() > CLASSES_MAX {
            self.classes.clear();
        }
        let mut fresh = false;
        for row in rows {
            let class = (row.get("org"), row.get("requires"));
            fresh |= self.classes.insert(row.get("class"), class).is_none();
        }
        fresh
    }

    /// Moves the tasks whose time has come; false when there was none that could be locked.
    async fn timers(&mut self) -> Result<bool, Error> {
        let mut client = self.shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        let (due, late) =
            futures_util::future::try_join(run(&tx, sql!("due"), &[]), run(&tx, sql!("past_deadline"), &[]))
                .await?;
        let ends = depend::ends(&tx).await?;
        let mut commands: BTreeMap<TaskId, Command> =
            ends.commands.iter().map(|command| (command.task, command.clone())).collect();
        for row in due.iter().chain(&late) {
            let task = TaskId::from(row.get::<_, Uuid>("id"));
            commands.entry(task).or_insert(Command { task, holder: None, act: Act::Timer });
        }
        if commands.is_empty() && ends.is_empty() {
            return Ok(false);
        }
        let commands: Vec<Command> = commands.into_values().collect();
        let mut outcome = desk::carry_out(&self.shared, &tx, &commands).await?;
        ends.unmark(&tx).await?;
        for (command, answer) in commands.iter().zip(&outcome.answers) {
            match answer {
                // It ended by itself meanwhile.
                Ok(_) | Err(Error::Conflict { .. }) => {}
                Err(error) => {
                    tracing::warn!(task = %command.task, %error, "a timer could not be carried out");
                }
            }
        }
        let broken: Vec<(TaskId, i64)> = commands
            .iter()
            .zip(&outcome.answers)
            .filter(|(_, answer)| answer.is_err())
            .map(|(command, _)| (command.task, 60_000))
            .collect();
        store::rearm(&tx, &broken).await?;
        let closing = std::mem::take(&mut outcome.closing);
        // Before the rounds are closed: whoever lost its award has a slot for the next.
        let shared = self.shared.clone();
        let doubt = shared.doubt();
        release(&shared, &outcome.freed);
        if closing.is_empty() {
            tx.commit().await.map_err(db::Error::from)?;
        } else {
            self.close(tx, &closing).await?;
        }
        doubt.dispel();
        if !ends.is_empty() {
            fault::point("task.followed");
        }
        told(&self.shared, &[], outcome.notices);
        Ok(true)
    }

    /// Ends the rounds of these tasks, whose rows this transaction holds.
    async fn close(&mut self, tx: Transaction<'_>, closing: &[TaskId]) -> Result<(), Error> {
        let ids: Vec<Uuid> = closing.iter().map(|id| id.as_uuid()).collect();
        let mut standing: HashMap<TaskId, Vec<Offer>> = HashMap::new();
        for row in run(&tx, sql!("standing_offers"), &[&ids]).await? {
            let task = TaskId::from(row.get::<_, Uuid>("task_id"));
            standing.entry(task).or_default().extend(standing_offer(&row));
        }
        let candidates: Vec<Candidate> =
            store::lock(&tx, closing).await?.into_iter().map(Candidate::from).collect();
        let mut plan = Plan::default();
        {
            let mut roster = self.shared.roster.lock();
            for task in &candidates {
                let offers = standing.remove(&task.id).unwrap_or_default();
                plan.close(&self.shared, &mut roster, task, offers);
            }
        }
        self.write(tx, plan, &candidates, true).await.map(drop)
    }
}

fn candidate(row: &Row) -> Candidate {
    Candidate {
        id: TaskId::from(row.get::<_, Uuid>("id")),
        org: row.get("org"),
        kind: row.get("kind"),
        requires: row.get("requires"),
        round: row.get("round"),
        rounds_empty: row.get("rounds_empty"),
        facts: Candidate::open_facts(row.get("attempt")),
        policy: row.get("policy"),
        requester: row.get("requester"),
        tried: row.get("tried"),
        prefer: row.get("prefer"),
    }
}

impl From<store::Locked> for Candidate {
    fn from(row: store::Locked) -> Self {
        Self {
            id: row.id,
            org: row.org,
            kind: row.kind,
            requires: row.requires,
            round: row.round,
            rounds_empty: row.rounds_empty,
            facts: row.facts,
            policy: row.policy,
            requester: row.requester,
            tried: row.tried,
            prefer: None,
        }
    }
}

fn standing_offer(row: &Row) -> Option<Offer> {
    Some(Offer {
        agent: store::agent_of(row, "agent_id")?,
        incarnation: Incarnation(row.get("incarnation")),
        cost_microdollars: u64::try_from(row.get::<_, i64>("cost_microdollars")).unwrap_or(0),
        eta_ms: u64::try_from(row.get::<_, i64>("eta_ms")).unwrap_or(0),
        confidence: row.get("confidence"),
        free: 0,
        measured: Measured::default(),
        waited_rank: 0,
        arrival: u64::try_from(row.get::<_, i64>("arrival")).unwrap_or(0),
        chosen: row.get("chosen"),
    })
}
