//! Row changes that are put together: one task for a burst of them, or one pending task for each value of some columns.
//!
//! A change is counted in the transaction that records it as a wake, so a change that the log tells again
//! counts once. The row of its burst says what the task would be now, and when it is due by the database's
//! clock; whoever makes the task ends the burst in the same commit. After that, changes of a burst that
//! merges go into its task, for as long as nobody has taken that.
use super::store::{self, run, sql};
use super::wake::{Wake, candidate, opened};
use super::{Error, Request, Shared, awards};
use crate::{db, fault};
use deadpool_postgres::Transaction;
use serde_json::{Value, json};
use std::{fmt, sync::Arc, time::Duration};
use tokio_postgres::Row;
use uuid::Uuid;

/// What is requested when a change is the last of so many.
type Again = dyn Fn(i64) -> Result<Request, String> + Send + Sync;

/// How a wake's changes are put together.
#[derive(Clone)]
pub struct Burst {
    /// Which of them: those of one trigger with the same key.
    pub key: String,
    /// The silence after which the task is made; none makes it at once.
    pub quiet: Duration,
    /// Whether later changes go into the task while nobody has taken it.
    pub merges: bool,
    /// What is requested when this change is the last of so many.
    pub again: Arc<Again>,
}

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, quiet, merges, .. } = self;
        f.debug_struct("Burst").field("key", key).field("quiet", quiet).field("merges", merges).finish()
    }
}

/// What some changes came to.
#[derive(Default)]
pub(super) struct Gathered {
    /// The tasks that were made.
    pub(super) made: Vec<Row>,
    /// Whether something waits for its time.
    pub(super) pending: bool,
}

/// Records wakes that have a burst, in the order of the log, and makes the tasks that are due at once.
pub(super) async fn gather(
    shared: &Shared,
    tx: &Transaction<'_>,
    wakes: &[&Wake],
) -> Result<Gathered, Error> {
    let bursts: Vec<(&Wake, &Burst)> =
        wakes.iter().filter_map(|wake| Some((*wake, wake.burst.as_ref()?))).collect();
    if bursts.is_empty() {
        return Ok(Gathered::default());
    }
    let triggers: Vec<&str> = bursts.iter().map(|(wake, _)| wake.trigger.as_str()).collect();
    let keys: Vec<&str> = bursts.iter().map(|(_, burst)| burst.key.as_str()).collect();
    let agents: Vec<&str> = bursts.iter().map(|(wake, _)| wake.agent.as_str()).collect();
    let orgs: Vec<&str> = bursts.iter().map(|(wake, _)| wake.org.as_str()).collect();
    let lsns: Vec<i64> =
        bursts.iter().map(|(wake, _)| i64::try_from(wake.lsn.0).unwrap_or(i64::MAX)).collect();
    let indexes: Vec<i32> =
        bursts.iter().map(|(wake, _)| i32::try_from(wake.index).unwrap_or(i32::MAX)).collect();
    let quiet = |burst: &Burst| i64::try_from(burst.quiet.as_millis()).unwrap_or(i64::MAX);
    let quiets: Vec<i64> = bursts.iter().map(|(_, burst)| quiet(burst)).collect();
    let merges: Vec<bool> = bursts.iter().map(|(_, burst)| burst.merges).collect();
    // Three statements, because each must see what was committed while the one before it waited.
    run(tx, sql!("lock_bursts"), &[&triggers, &keys]).await?;
    run(tx, sql!("lock_burst_tasks"), &[&triggers, &keys]).await?;
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
        [&triggers, &keys, &agents, &orgs, &lsns, &indexes, &quiets, &merges];
    let groups = run(tx, sql!("gather"), &parameters).await?;
    if groups.is_empty() {
        return Ok(Gathered::default());
    }
    fill(shared, tx, &bursts, &groups).await?;
    let mut gathered = Gathered { pending: quiets.iter().any(|quiet| *quiet > 0), ..Gathered::default() };
    if quiets.contains(&0) {
        gathered.made = made(run(tx, sql!("fire_bursts"), &[]).await?);
    }
    Ok(gathered)
}

/// Says what each group requests now that its last change is known.
async fn fill(
    shared: &Shared,
    tx: &Transaction<'_>,
    bursts: &[(&Wake, &Burst)],
    groups: &[Row],
) -> Result<(), Error> {
    let mut requests: Vec<Option<Value>> = Vec::new();
    let mut errors: Vec<Option<String>> = Vec::new();
    for group in groups {
        let (n, changes): (i64, i64) = (group.get("n"), group.get("changes"));
        let last = usize::try_from(n - 1).ok().and_then(|at| bursts.get(at));
        let request = match last {
            Some((wake, burst)) => {
                let asked = if changes == 1 { wake.request.clone() } else { (burst.again)(changes) };
                asked.and_then(|request| wake.checked(shared, request))
            }
            None => Err("its last change is not known".to_owned()),
        };
        errors.push(request.as_ref().err().cloned());
        requests.push(request.ok().map(|request| stored(shared, &request)));
    }
    let triggers: Vec<&str> = groups.iter().map(|group| group.get("trigger")).collect();
    let keys: Vec<&str> = groups.iter().map(|group| group.get("key")).collect();
    let tasks: Vec<Option<Uuid>> = groups.iter().map(|group| group.get("task_id")).collect();
    let changes: Vec<i64> = groups.iter().map(|group| group.get("changes")).collect();
    run(tx, sql!("fill_bursts"), &[&triggers, &keys, &tasks, &changes, &requests, &errors]).await?;
    Ok(())
}

/// A request as the row of its burst keeps it.
fn stored(shared: &Shared, request: &Request) -> Value {
    json!({
        "kind": request.kind,
        "requires": request.requires,
        "input": request.input,
        "priority": request.priority,
        "deadline": request.deadline,
        "policy": request.policy,
        "attempts_max": super::wake::attempts_max(shared, request),
    })
}

/// Those of the bursts that could become tasks.
fn made(rows: Vec<Row>) -> Vec<Row> {
    rows.into_iter().filter(|row| row.get::<_, Option<Uuid>>("id").is_some()).collect()
}

/// Makes the tasks of the bursts that are due and awards them where nobody waits before them; false when none
/// was due that could be locked.
pub(super) async fn fire(shared: &Shared) -> Result<bool, Error> {
    let mut client = shared.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    let ((), rows) =
        futures_util::future::try_join(store::relax(&tx), run(&tx, sql!("fire_bursts"), &[])).await?;
    if rows.is_empty() {
        return Ok(false);
    }
    let rows = made(rows);
    let doubt = shared.doubt();
    let new = rows.iter().map(|row| (row.get("class"), candidate(row))).collect();
    let written = awards::award_new(shared, &tx, new).await?;
    fault::point("burst.before_commit");
    tx.commit().await.map_err(db::Error::from)?;
    doubt.dispel();
    store::flush(&client).await?;
    fault::point("burst.fired");
    shared.metrics.requested.inc_by(rows.len() as u64);
    shared.committed(rows.iter().filter_map(opened).collect(), false);
    awards::tell(shared, written);
    Ok(true)
}
