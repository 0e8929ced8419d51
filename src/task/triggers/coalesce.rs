//! Coalesced row changes: one task for a burst of changes, or one pending task for each value of some columns.
//!
//! A change is counted in the transaction that records it as a wake, so a change that the WAL repeats counts once. The
//! row of its burst has the request as it would be now, and the time when it is due by the clock of the database. The
//! commit that inserts the task ends the burst. Later changes of a burst that merges update its task, until an agent
//! has been awarded it.
use crate::task::commands::request::CheckedRequest;
use crate::task::storage::columns::columns;
use crate::task::storage::rows::Columns;
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::triggers::wake::{self, Wake};
use crate::task::upkeep::catch_panic::catch_panic;
use crate::task::{Error, Request, TaskContext, rounds::awards};
use crate::{db, fault};
use futures_util::future::ready;
use serde_json::{Value, json};
use std::{fmt, sync::Arc, time::Duration};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

/// Makes the request when a change is the last of so many.
type Again = dyn Fn(i64) -> Result<Request, String> + Send + Sync;

/// How the changes of a wake are coalesced.
#[derive(Clone)]
pub struct Burst {
    /// Changes of one trigger with the same key are one burst.
    pub key: String,
    /// The time without a change after which the task is inserted; 0 inserts it at once.
    pub quiet: Duration,
    /// Whether later changes update the task until it is awarded.
    pub merges: bool,
    /// Makes the request when this change is the last of so many.
    pub again: Arc<Again>,
}

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, quiet, merges, .. } = self;
        f.debug_struct("Burst").field("key", key).field("quiet", quiet).field("merges", merges).finish()
    }
}

/// The outcome of some changes.
#[derive(Default)]
pub(in crate::task) struct Gathered {
    /// The tasks that were inserted.
    pub(in crate::task) made: Vec<Row>,
    /// Whether a burst waits until it is due.
    pub(in crate::task) pending: bool,
}

/// Records wakes that have a burst, in the order of the WAL, and inserts the tasks that are due at once.
pub(in crate::task) async fn gather(
    context: &TaskContext,
    tx: &Transaction<'_>,
    wakes: &[&Wake],
) -> Result<Gathered, Error> {
    let bursts: Vec<(&Wake, &Burst)> =
        wakes.iter().filter_map(|wake| Some((*wake, wake.burst.as_ref()?))).collect();
    if bursts.is_empty() {
        return Ok(Gathered::default());
    }
    let columns = columns!("gather", &bursts, |(wake, burst)| {
        trigger: &str = wake.trigger.as_str(),
        key: &str = burst.key.as_str(),
        agent_id: &str = wake.agent.as_str(),
        org: &str = wake.org.as_str(),
        lsn: i64 = i64::try_from(wake.lsn.0).unwrap_or(i64::MAX),
        index: i32 = i32::try_from(wake.index).unwrap_or(i32::MAX),
        quiet_ms: i64 = i64::try_from(burst.quiet.as_millis()).unwrap_or(i64::MAX),
        merges: bool = burst.merges,
    });
    let at_once = |burst: &Burst| burst.quiet.as_millis() == 0;
    let locked = || bursts.iter().copied();
    let bursts_locked = columns!("lock_bursts", locked(), |(wake, burst)| {
        trigger: &str = wake.trigger.as_str(),
        key: &str = burst.key.as_str(),
    });
    let tasks_locked = columns!("lock_burst_tasks", locked(), |(wake, burst)| {
        trigger: &str = wake.trigger.as_str(),
        key: &str = burst.key.as_str(),
    });
    // Three statements, because each must see what was committed while the one before it waited for its locks.
    bursts_locked.run(tx, &[]).await?;
    tasks_locked.run(tx, &[]).await?;
    let groups = columns.run(tx, &[]).await?;
    if groups.is_empty() {
        return Ok(Gathered::default());
    }
    fill(context, tx, &bursts, &groups).await?;
    let mut gathered =
        Gathered { pending: bursts.iter().any(|(_, burst)| !at_once(burst)), ..Gathered::default() };
    if bursts.iter().any(|(_, burst)| at_once(burst)) {
        gathered.made = made(run(tx, sql!("fire_bursts"), &[&None::<&str>, &None::<&str>]).await?);
    }
    Ok(gathered)
}

/// Writes the request of each group, now that its last change is known.
async fn fill(
    context: &TaskContext,
    tx: &Transaction<'_>,
    bursts: &[(&Wake, &Burst)],
    groups: &[Row],
) -> Result<(), Error> {
    let mut requests: Vec<Result<Value, String>> = Vec::new();
    for group in groups {
        let (n, changes): (i64, i64) = (group.read("n")?, group.read("changes")?);
        let last = usize::try_from(n - 1).ok().and_then(|at| bursts.get(at));
        let request = match last {
            Some((wake, burst)) => {
                let asked = if changes == 1 { wake.request.clone() } else { (burst.again)(changes) };
                asked.and_then(|request| {
                    CheckedRequest::new(&context.policies, request).map_err(|error| error.to_string())
                })
            }
            None => Err("its last change is not known".to_owned()),
        };
        if let (Err(reason), Some((wake, _))) = (&request, last) {
            context.log_wake_refused(&wake.trigger, wake.lsn, reason);
        }
        requests.push(request.map(stored));
    }
    let columns = columns!("fill_bursts", groups.iter().zip(&requests), |(group, asked)| {
        trigger: &str = group.read("trigger")?,
        key: &str = group.read("key")?,
        task_id: Option<Uuid> = group.read("task_id")?,
        changes: i64 = group.read("changes")?,
        request: Option<&Value> = asked.as_ref().ok(),
        error: Option<&str> = asked.as_ref().err().map(String::as_str),
    });
    columns.run(tx, &[]).await?;
    Ok(())
}

/// A request as the row of its burst has it.
fn stored(checked: CheckedRequest) -> Value {
    let CheckedRequest { request, attempts_max, .. } = checked;
    json!({
        "kind": request.kind,
        "requires": request.requires,
        "input": request.input,
        "priority": request.priority,
        "deadline": request.deadline,
        "policy": request.policy,
        "attempts_max": attempts_max,
    })
}

/// The rows of bursts that became tasks.
fn made(rows: Vec<Row>) -> Vec<Row> {
    rows.into_iter().filter(|row| row.read::<Option<Uuid>>("id").is_ok_and(|id| id.is_some())).collect()
}

/// Inserts the tasks of due bursts and awards those that need not queue. Returns false when there was none that could
/// be locked.
pub(in crate::task) async fn fire(context: &TaskContext) -> Result<bool, Error> {
    match catch_panic(context, "bursts", fire_those(context, None)).await {
        Err(error @ (Error::Internal(_) | Error::Unstorable(_))) => {
            tracing::warn!(reason = error.refusal(), "batch of bursts failed, bursts are fired one by one");
            fire_one_by_one(context).await
        }
        answer => answer,
    }
}

/// Fires each due burst in a transaction of its own, and drops those that fail again.
async fn fire_one_by_one(context: &TaskContext) -> Result<bool, Error> {
    let client = context.database.client().await?;
    let statement = client.prepare_cached(sql!("due_bursts")).await.map_err(db::Error::from)?;
    let due = client.query(&statement, &[]).await.map_err(db::Error::from)?;
    drop(client);
    let mut moved = false;
    for row in &due {
        let (trigger, key): (String, String) = (row.read("trigger")?, row.read("key")?);
        match catch_panic(context, "a burst", fire_those(context, Some((&trigger, &key)))).await {
            Ok(fired) => moved |= fired,
            Err(error @ (Error::Internal(_) | Error::Unstorable(_))) => {
                tracing::error!(trigger, reason = error.refusal(), "burst dropped: its row cannot be used");
                let client = context.database.client().await?;
                let error = "the database refuses a value that its row leads to";
                let params: [&(dyn ToSql + Sync); 3] = [&trigger, &key, &error];
                client.execute(sql!("drop_burst"), &params).await.map_err(db::Error::from)?;
                moved = true;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(moved)
}

async fn fire_those(context: &TaskContext, one: Option<(&str, &str)>) -> Result<bool, Error> {
    let (trigger, key) = one.unzip();
    let mut client = context.database.client().await?;
    let tx = Transaction::begin_async(&mut client);
    let rows = run(&tx, sql!("fire_bursts"), &[&trigger, &key]).await?;
    if rows.is_empty() {
        return Ok(false);
    }
    let rows = made(rows);
    let roster_guard = context.roster_guard();
    let (new, opened) = wake::made(&rows);
    let left = new.len() < rows.len();
    fault::point(fault::Point::BurstBeforeCommit);
    let ((), written, flushed) = awards::award_new(context, &tx, ready(Ok(((), true))), new).await?;
    roster_guard.keep();
    flushed.await?;
    fault::point(fault::Point::BurstFired);
    context.metrics.requested.inc_by(rows.len() as u64);
    if left {
        context.notify_arbiter();
    }
    context.publish(opened);
    awards::publish(context, written);
    Ok(true)
}
