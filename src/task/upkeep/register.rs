//! Registration of agents: a host writes the profiles of its agents, and each write begins a new incarnation.
use crate::db;
use crate::task::commands::after_commit::{publish, release_slots};
use crate::task::commands::command::{Action, TaskCommand};
use crate::task::commands::command_executor;
use crate::task::rounds::roster::PresentAgent;
use crate::task::rounds::score::Measured;
use crate::task::storage::columns::columns;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::store;
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, AgentStatus, Error, Incarnation, Profile, Requester, TaskCommands, TaskContext, TaskId, Tasks,
    Terms,
};
use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};
use tokio_postgres::{
    Row,
    types::{Json, ToSql},
};
use uuid::Uuid;

/// Lost assignments that one transaction ends.
const LOST_MAX: usize = 200;

impl Tasks {
    /// Registers all hosted agents: each gets a new incarnation, other hosted agents are gone, and the assignments of
    /// earlier incarnations are given to other agents at once.
    ///
    /// # Errors
    /// `Unavailable`, or `BadRequest` for a profile without a slot.
    pub async fn register(&self, profiles: Vec<Profile>) -> Result<HashMap<AgentId, Incarnation>, Error> {
        slots_are_given(&profiles)?;
        let context = &self.context;
        let lives = write_profiles(context, &profiles, false).await?;
        let names: Vec<String> = lives.keys().map(ToString::to_string).collect();
        while end_earlier_lives(context, None).await? {}
        recount(context, names).await?;
        refresh(context, None).await?;
        self.retry_unattended(&lives.keys().map(AgentId::as_str).collect::<Vec<_>>()).await?;
        self.notify_arbiter();
        Ok(lives)
    }

    /// Registers the hosted agents after their definitions have changed: those that this node has registered before keep
    /// their incarnation and their assignments. Other hosted agents are gone: they get no new task, and what they have
    /// is not taken from them. A repeated call changes nothing.
    ///
    /// # Errors
    /// `Unavailable`, or `BadRequest` for a profile without a slot.
    pub async fn register_again(&self, profiles: Vec<Profile>) -> Result<(), Error> {
        slots_are_given(&profiles)?;
        let context = &self.context;
        let changed = write_profiles(context, &profiles, true).await?;
        for agent in changed.keys() {
            while end_earlier_lives(context, Some(agent)).await? {}
        }
        refresh(context, None).await?;
        self.retry_unattended(&changed.keys().map(AgentId::as_str).collect::<Vec<_>>()).await?;
        self.notify_arbiter();
        Ok(())
    }

    /// Marks the agents that are defined and arrive by themselves as expected: tasks wait for them for
    /// `policy.absence`. All other agents lose the mark.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn expect(&self, profiles: &[Profile]) -> Result<(), Error> {
        let columns = columns!("expect", profiles, |p| {
            id: &str = p.id.as_str(),
            org: &str = p.org.as_str(),
            kind: &str = p.kind.as_str(),
            description: &str = p.description.as_str(),
            capabilities: Json<&Vec<String>> = Json(&p.capabilities),
            slots: i32 = i32::try_from(p.slots).unwrap_or(i32::MAX),
        });
        columns.query(&self.context.database).await.map(drop)
    }

    /// Makes tasks due that wait for agents like these, which have just arrived.
    async fn retry_unattended(&self, agents: &[&str]) -> Result<(), Error> {
        self.query(sql!("retry_unattended"), &[&agents]).await.map(drop)
    }
}

impl TaskCommands {
    /// Drains an agent: it gets no new task and finishes what it has, also after restarts, until it is resumed with
    /// `on` = false. `by` is recorded. Tasks that only it can do wait.
    ///
    /// # Errors
    /// `UnknownAgent`, `Unavailable`.
    pub async fn drain(&self, agent: &AgentId, on: bool, by: &Requester) -> Result<AgentStatus, Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        run(&tx, sql!("drain"), &[&agent.as_str(), &on, by]).await?;
        self.context.call_arbiter(&tx).await?;
        tx.commit().await?;
        refresh(&self.context, Some(agent)).await?;
        self.context.notify_arbiter();
        self.agent(agent).await
    }
}

impl Tasks {
    /// Registers one remote agent: it is eligible when this returns.
    ///
    /// `life`: its present incarnation, which continues with this profile. Without one a new incarnation begins, and
    /// the assignments of earlier ones are given to other agents at once.
    ///
    /// # Errors
    /// `Forbidden` when the daemon hosts an agent of this name or it is another org's, `BadRequest` for a profile without
    /// a slot, `Unavailable`.
    pub async fn join_remote(
        &self,
        profile: Profile,
        life: Option<Incarnation>,
    ) -> Result<Incarnation, Error> {
        if profile.slots == 0 {
            return Err(Error::BadRequest(format!("agent {} has no slot", profile.id)));
        }
        let context = &self.context;
        let Profile { id, org, kind, description, capabilities, slots, definition_hash, terms } = profile;
        let slots = i32::try_from(slots).unwrap_or(i32::MAX);
        let terms = serde_json::to_value(&terms).unwrap_or_default();
        let (node, life) = (context.node.as_uuid(), life.map(|life| life.0));
        let listed = !definition_hash.is_empty();
        let params: [&(dyn ToSql + Sync); 11] = [
            &id.as_str(),
            &org.as_str(),
            &kind.as_str(),
            &description,
            &capabilities,
            &slots,
            &definition_hash,
            &terms,
            &node,
            &life,
            &listed,
        ];
        let rows = self.query(sql!("join"), &params).await?;
        let Some(row) = rows.first() else {
            let other = self.agent(&id).await?.org != org;
            let reason = if other { "is of another org" } else { "is hosted by the daemon" };
            return Err(Error::Forbidden(format!("agent {id} {reason}: no other connection may join as it")));
        };
        let joined = Incarnation(row.read("incarnation")?);
        if Some(joined.0) != life {
            while end_earlier_lives(context, Some(&id)).await? {}
            recount(context, vec![id.to_string()]).await?;
        }
        self.load_into_roster(&id).await?;
        self.retry_unattended(&[id.as_str()]).await?;
        self.notify_arbiter();
        Ok(joined)
    }

    /// Deregisters an incarnation of a remote agent: its assignments are given to other agents at once. Does nothing
    /// when the agent has a later incarnation.
    ///
    /// # Errors
    /// `Unavailable`; another call completes it.
    pub async fn leave_remote(&self, agent: &AgentId, life: Incarnation) -> Result<(), Error> {
        self.query(sql!("leave"), &[&agent.as_str(), &life.0]).await?;
        // Before the rows are read again: a round that opens now must not wait for its offer.
        self.context.roster.lock().drop_life(agent, life);
        while end_earlier_lives(&self.context, Some(agent)).await? {}
        self.load_into_roster(agent).await
    }

    /// Reads one agent into the roster.
    async fn load_into_roster(&self, agent: &AgentId) -> Result<(), Error> {
        refresh(&self.context, Some(agent)).await?;
        self.notify_arbiter();
        Ok(())
    }

    /// Whether this node was the last to register these agents, and they are present: no other node has hosted them since.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn still_registered(&self, profiles: &[Profile]) -> Result<bool, Error> {
        let ids: Vec<&str> = profiles.iter().map(|profile| profile.id.as_str()).collect();
        let rows = self.query(sql!("still_registered"), &[&ids, &self.context.node.as_uuid()]).await?;
        Ok(rows.first().map_or(Ok(false), |row| row.read("same"))?)
    }
}

fn slots_are_given(profiles: &[Profile]) -> Result<(), Error> {
    match profiles.iter().find(|profile| profile.slots == 0) {
        Some(profile) => Err(Error::BadRequest(format!("agent {} has no slot", profile.id))),
        None => Ok(()),
    }
}

/// Counts the slots in use again.
async fn recount(context: &TaskContext, names: Vec<String>) -> Result<(), Error> {
    let mut client = context.database.client().await?;
    let tx = Transaction::begin(&mut client);
    // Two statements: the count must see the awards that were committed while this waited for the lock.
    store::lock_agents(&tx, names.clone()).await?;
    run(&tx, sql!("recount_slots"), &[&names]).await?;
    tx.commit().await
}

/// Writes the profiles of all hosted agents; others are gone. `again` begins no new incarnation of an agent that this
/// node has registered before, and returns only those that were written.
async fn write_profiles(
    context: &TaskContext,
    profiles: &[Profile],
    again: bool,
) -> Result<HashMap<AgentId, Incarnation>, Error> {
    let columns = columns!("register", profiles, |p| {
        id: &str = p.id.as_str(),
        org: &str = p.org.as_str(),
        kind: &str = p.kind.as_str(),
        description: &str = p.description.as_str(),
        capabilities: Json<&Vec<String>> = Json(&p.capabilities),
        slots: i32 = i32::try_from(p.slots).unwrap_or(i32::MAX),
        hash: &str = p.definition_hash.as_str(),
        terms: Json<&Terms> = Json(&p.terms),
    });
    let ids: Vec<&str> = profiles.iter().map(|p| p.id.as_str()).collect();
    let mut client = context.database.client().await?;
    let tx = Transaction::begin(&mut client);
    let node = context.node.as_uuid();
    let rows = columns.run(&tx, &[&node, &again]).await?;
    run(&tx, sql!("retire"), &[&ids, &node]).await?;
    tx.commit().await?;
    let mut lives = HashMap::new();
    for row in &rows {
        let incarnation = Incarnation(row.read("incarnation")?);
        lives.extend(rows::agent(row, "id")?.map(|id| (id, incarnation)));
    }
    Ok(lives)
}

/// Ends the assignments of earlier incarnations, of one agent or of all. Returns whether there may be more.
async fn end_earlier_lives(context: &TaskContext, of: Option<&AgentId>) -> Result<bool, Error> {
    let mut client = context.database.client().await?;
    let tx = Transaction::begin(&mut client);
    let held = |rows: Vec<Row>| rows::all::<Uuid>(&rows, "task_id");
    let mut first = held(held_by(&tx, of).await?)?;
    first.truncate(LOST_MAX);
    run(&tx, sql!("lock_tasks"), &[&first]).await?;
    // Read again after the lock: the task may have been awarded to a present incarnation in between.
    let still = held(held_by(&tx, of).await?)?;
    let commands: Vec<TaskCommand> = still
        .into_iter()
        .filter(|task| first.contains(task))
        .map(|task| TaskCommand {
            task: TaskId::from(task),
            holder: None,
            action: Action::Lost { daemon: of.is_none() },
        })
        .collect();
    if commands.is_empty() {
        return Ok(false);
    }
    let outcome = command_executor::carry_out(context, &tx, &commands).await?;
    tx.commit().await?;
    let ended = outcome.freed.len();
    release_slots(context, &outcome.freed);
    publish(context, &outcome.freed, outcome.notices);
    Ok(ended > 0)
}

/// The assignments of earlier incarnations, of one agent or of all.
async fn held_by(tx: &Transaction<'_>, of: Option<&AgentId>) -> Result<Vec<Row>, Error> {
    match of {
        None => run(tx, sql!("held_by_earlier_lives"), &[]).await,
        Some(agent) => run(tx, sql!("held_by_agent"), &[&agent.as_str()]).await,
    }
}

/// A list of ten counts; a missing one is 0.
fn tenths(row: &Row, column: &str) -> Result<[i64; 10], Unreadable> {
    let mut list = [0; 10];
    list.iter_mut().zip(row.read::<Vec<i64>>(column)?).for_each(|(place, count)| *place = count);
    Ok(list)
}

/// Reads the roster from the rows, of one agent or of all.
pub(in crate::task) async fn refresh(context: &TaskContext, of: Option<&AgentId>) -> Result<(), Error> {
    let edits = context.roster.lock().edits();
    let client = context.database.client().await?;
    let statement = client.prepare_cached(sql!("roster")).await.map_err(db::Error::from)?;
    if of.is_none() {
        let published = client
            .prepare_cached("select convoke.offers_are_published() as published")
            .await
            .map_err(db::Error::from)?;
        let row = client.query_one(&published, &[]).await.map_err(db::Error::from)?;
        context.offers_published.store(row.read("published")?, Ordering::Relaxed);
        context.roster.lock().reading();
    }
    let rows = client.query(&statement, &[&of.map(AgentId::as_str)]).await.map_err(db::Error::from)?;
    let mut members: HashMap<AgentId, PresentAgent> = HashMap::new();
    let mut unreadable: HashMap<String, Unreadable> = HashMap::new();
    for row in &rows {
        // A row that cannot be read leaves out its agent, or its measurements of one kind, and nothing else.
        if let Err(why) = add_row(&mut members, row) {
            unreadable.insert(row.read("id").unwrap_or_default(), why);
        }
    }
    context.roster.lock().note_unreadable(unreadable, of.is_none());
    let mut roster = context.roster.lock();
    match of {
        // Race: an agent came or went since the rows were read. They are stale and are read again at the next poll.
        None if roster.edits() != edits => context.roster_stale.store(true, Ordering::Relaxed),
        None => roster.replace(members),
        Some(agent) => roster.put(agent, members.remove(agent)),
    }
    Ok(())
}

/// Adds a row of `roster.sql`.
fn add_row(members: &mut HashMap<AgentId, PresentAgent>, row: &Row) -> Result<(), Unreadable> {
    let Some(id) = rows::agent(row, "id")? else { return Ok(()) };
    if !members.contains_key(&id) {
        members.insert(id.clone(), member(row)?);
    }
    if let (Some(kind), Some(member)) = (row.read::<Option<String>>("kind")?, members.get_mut(&id)) {
        member.measured.insert(kind, measured(row)?);
    }
    Ok(())
}

fn member(row: &Row) -> Result<PresentAgent, Unreadable> {
    // Terms that do not parse make it an agent with offers of its own.
    let no_terms =
        Terms { computed: false, cost_microdollars: 0, confidence: 0.0, eta: Duration::ZERO, thinks: None };
    Ok(PresentAgent {
        org: rows::org(row)?,
        capabilities: row.read("capabilities")?,
        slots: u32::try_from(row.read::<i32>("slots")?).unwrap_or(1),
        used: u32::try_from(row.read::<i32>("slots_used")?).unwrap_or(0),
        drained: row.read("drained")?,
        incarnation: Incarnation(rows::number(row, "incarnation")?),
        terms: serde_json::from_value(row.read("terms")?).unwrap_or(no_terms),
        measured: HashMap::new(),
        last_award: 0,
    })
}

fn measured(row: &Row) -> Result<Measured, Unreadable> {
    Ok(Measured {
        completed: row.read("completed")?,
        failed: row.read("failed")?,
        refused: row.read("refused")?,
        late: row.read("late")?,
        ended_at: tenths(row, "ended_at")?,
        succeeded_at: tenths(row, "succeeded_at")?,
        weight: row.read("weight")?,
        latency_ms_sum: row.read("latency_ms_sum")?,
        cost_microdollars_sum: row.read("cost_microdollars_sum")?,
    })
}
