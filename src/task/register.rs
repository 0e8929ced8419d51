//! Who may offer: a host writes its agents' profiles, and each write begins a new life.
use super::desk::{self, Act, Command};
use super::roster::Member;
use super::score::Measured;
use super::store::{self, run, sql};
use super::{AgentId, Error, Incarnation, OrgId, Profile, Shared, TaskId, Tasks, Terms, told};
use crate::db;
use deadpool_postgres::Transaction;
use serde_json::Value;
use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

/// Lost assignments that one transaction ends.
const LOST_MAX: usize = 200;

impl Tasks {
    /// Makes these the hosted agents: each gets a new incarnation, hosted agents that are not among
    /// them are gone, and what earlier lives held is given to others at once.
    ///
    /// # Errors
    /// `Unavailable`, or `BadRequest` for a profile without a slot.
    pub async fn register(&self, profiles: Vec<Profile>) -> Result<HashMap<AgentId, Incarnation>, Error> {
        if let Some(profile) = profiles.iter().find(|profile| profile.slots == 0) {
            return Err(Error::BadRequest(format!("agent {} has no slot", profile.id)));
        }
        let shared = &self.shared;
        let lives = enter(shared, &profiles).await?;
        let names: Vec<String> = lives.keys().map(ToString::to_string).collect();
        while end_earlier_lives(shared, None).await? {}
        recount(shared, names).await?;
        refresh(shared, None).await?;
        self.poke();
        Ok(lives)
    }
}

impl Tasks {
    /// Makes one agent that works from outside present: it is eligible as soon as this returns.
    ///
    /// `life`: its present life, which goes on with this profile. Otherwise a new one begins, and
    /// what earlier ones held is given to others at once.
    ///
    /// # Errors
    /// `Forbidden` when the daemon hosts an agent of this name, `BadRequest` for a profile without
    /// a slot, `Unavailable`.
    pub async fn join_remote(
        &self,
        profile: Profile,
        life: Option<Incarnation>,
    ) -> Result<Incarnation, Error> {
        if profile.slots == 0 {
            return Err(Error::BadRequest(format!("agent {} has no slot", profile.id)));
        }
        let shared = &self.shared;
        let Profile { id, org, kind, description, capabilities, slots, definition_hash, terms } = profile;
        let slots = i32::try_from(slots).unwrap_or(i32::MAX);
        let terms = serde_json::to_value(&terms).unwrap_or_default();
        let (node, life) = (shared.node.as_uuid(), life.map(|life| life.0));
        let params: [&(dyn ToSql + Sync); 10] = [
            &id.as_str(),
            &org.as_str(),
            &kind,
            &description,
            &capabilities,
            &slots,
            &definition_hash,
            &terms,
            &node,
            &life,
        ];
        let rows = self.read(sql!("join"), &params).await?;
        let Some(row) = rows.first() else {
            return Err(Error::Forbidden(format!("the daemon hosts agent {id}: nobody joins as it")));
        };
        let joined = Incarnation(row.get("incarnation"));
        if Some(joined.0) != life {
            while end_earlier_lives(shared, Some(&id)).await? {}
            recount(shared, vec![id.to_string()]).await?;
        }
        self.enlist(&id).await?;
        Ok(joined)
    }

    /// A life of an agent that works from outside is over: it is gone, and what it held is given to others
    /// at once. Does nothing when the agent has begun another life.
    ///
    /// # Errors
    /// `Unavailable`; what was not done then is done when it is called again.
    pub async fn leave_remote(&self, agent: &AgentId, life: Incarnation) -> Result<(), Error> {
        self.read(sql!("leave"), &[&agent.as_str(), &life.0]).await?;
        // Before the rows are read again: whoever opens a round now must not wait for its offer.
        self.shared.roster.lock().drop_life(agent, life);
        while end_earlier_lives(&self.shared, Some(agent)).await? {}
        self.enlist(agent).await
    }

    /// Reads one agent into the roster.
    async fn enlist(&self, agent: &AgentId) -> Result<(), Error> {
        refresh(&self.shared, Some(agent)).await?;
        self.poke();
        Ok(())
    }

    /// Whether this node arbitrates now, and so hosts agents.
    #[must_use]
    pub fn arbitrates(&self) -> bool {
        self.shared.arbitrates.load(Ordering::Relaxed)
    }

    /// Whether these lives are still the present ones: nobody else hosted the agents since.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn still_registered(&self, lives: &HashMap<AgentId, Incarnation>) -> Result<bool, Error> {
        let ids: Vec<&str> = lives.keys().map(AgentId::as_str).collect();
        let numbers: Vec<i64> = lives.values().map(|life| life.0).collect();
        let rows = self.read(sql!("still_registered"), &[&ids, &numbers]).await?;
        Ok(rows.first().is_some_and(|row| row.get("same")))
    }

    /// Keeps in the event log that changes were lost between two positions of the log.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn gap(&self, from: Option<&str>, to: &str, reason: &str) -> Result<(), Error> {
        let body = serde_json::json!({ "from": from, "to": to, "reason": reason });
        self.read(sql!("gap"), &[&body]).await.map(drop)
    }
}

/// Sets the slots in use to what is live. Two statements: the count must see the awards that were
/// committed while the lock was waited for.
async fn recount(shared: &Shared, names: Vec<String>) -> Result<(), Error> {
    let mut client = shared.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    store::lock_agents(&tx, names.clone()).await?;
    run(&tx, sql!("recount_slots"), &[&names]).await?;
    Ok(tx.commit().await.map_err(db::Error::from)?)
}

async fn enter(shared: &Shared, profiles: &[Profile]) -> Result<HashMap<AgentId, Incarnation>, Error> {
    let ids: Vec<&str> = profiles.iter().map(|p| p.id.as_str()).collect();
    let orgs: Vec<&str> = profiles.iter().map(|p| p.org.as_str()).collect();
    let kinds: Vec<&str> = profiles.iter().map(|p| p.kind.as_str()).collect();
    let descriptions: Vec<&str> = profiles.iter().map(|p| p.description.as_str()).collect();
    let capabilities: Vec<Value> = profiles.iter().map(|p| p.capabilities.clone().into()).collect();
    let slots: Vec<i32> = profiles.iter().map(|p| i32::try_from(p.slots).unwrap_or(i32::MAX)).collect();
    let hashes: Vec<&str> = profiles.iter().map(|p| p.definition_hash.as_str()).collect();
    let terms: Vec<Value> =
        profiles.iter().map(|p| serde_json::to_value(&p.terms).unwrap_or_default()).collect();
    let mut client = shared.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    let node = shared.node.as_uuid();
    let rows = run(
        &tx,
        sql!("register"),
        &[&ids, &orgs, &kinds, &descriptions, &capabilities, &slots, &hashes, &terms, &node],
    )
    .await?;
    run(&tx, sql!("retire"), &[&ids, &node]).await?;
    tx.commit().await.map_err(db::Error::from)?;
    let lives = rows
        .iter()
        .filter_map(|row| Some((store::agent_of(row, "id")?, Incarnation(row.get("incarnation")))));
    Ok(lives.collect())
}

/// Ends what lives before the present ones held, of one agent or of all; true while there may be more.
async fn end_earlier_lives(shared: &Shared, of: Option<&AgentId>) -> Result<bool, Error> {
    let mut client = shared.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    let held = |rows: Vec<Row>| rows.iter().map(|row| row.get("task_id")).collect::<Vec<Uuid>>();
    let mut first = held(held_by(&tx, of).await?);
    first.truncate(LOST_MAX);
    run(&tx, sql!("lock_tasks"), &[&first]).await?;
    // Asked again, because a task may have gone to a present life before it was locked.
    let still = held(held_by(&tx, of).await?);
    let commands: Vec<Command> = still
        .into_iter()
        .filter(|task| first.contains(task))
        .map(|task| Command { task: TaskId::from(task), holder: None, act: Act::Lost })
        .collect();
    if commands.is_empty() {
        return Ok(false);
    }
    let outcome = desk::carry_out(shared, &tx, &commands).await?;
    tx.commit().await.map_err(db::Error::from)?;
    let ended = outcome.freed.len();
    super::release(shared, &outcome.freed);
    told(shared, &outcome.freed, outcome.notices);
    Ok(ended > 0)
}

/// What lives before the present ones hold, of one agent or of all.
async fn held_by(tx: &Transaction<'_>, of: Option<&AgentId>) -> Result<Vec<Row>, Error> {
    match of {
        None => run(tx, sql!("held_by_earlier_lives"), &[]).await,
        Some(agent) => run(tx, sql!("held_by_agent"), &[&agent.as_str()]).await,
    }
}

/// A list of ten counts; what is missing is zero.
fn tenths(row: &Row, column: &str) -> [i64; 10] {
    let mut list = [0; 10];
    list.iter_mut().zip(row.get::<_, Vec<i64>>(column)).for_each(|(place, count)| *place = count);
    list
}

/// Reads the roster from the rows, of one agent or of all.
pub(super) async fn refresh(shared: &Shared, of: Option<&AgentId>) -> Result<(), Error> {
    let edits = shared.roster.lock().edits();
    let client = shared.database.client().await?;
    let statement = client.prepare_cached(sql!("roster")).await.map_err(db::Error::from)?;
    if of.is_none() {
        shared.roster.lock().reading();
    }
    let rows = client.query(&statement, &[&of.map(AgentId::as_str)]).await.map_err(db::Error::from)?;
    let mut members: HashMap<AgentId, Member> = HashMap::new();
    for row in &rows {
        let (Some(id), Ok(org)) = (store::agent_of(row, "id"), OrgId::try_from(row.get::<_, &str>("org")))
        else {
            continue;
        };
        // Terms that do not parse belong to an agent that speaks for itself.
        let unspoken = Terms {
            computed: false,
            cost_microdollars: 0,
            confidence: 0.0,
            eta: Duration::ZERO,
            thinks: None,
        };
        let member = members.entry(id).or_insert_with(|| Member {
            org,
            capabilities: row.get("capabilities"),
            slots: u32::try_from(row.get::<_, i32>("slots")).unwrap_or(1),
            used: u32::try_from(row.get::<_, i32>("slots_used")).unwrap_or(0),
            incarnation: Incarnation(row.get("incarnation")),
            terms: serde_json::from_value(row.get("terms")).unwrap_or(unspoken),
            measured: HashMap::new(),
            last_award: 0,
        });
        if let Some(kind) = row.get::<_, Option<String>>("kind") {
            member.measured.insert(
                kind,
                Measured {
                    completed: row.get("completed"),
                    failed: row.get("failed"),
                    refused: row.get("refused"),
                    late: row.get("late"),
                    ended_at: tenths(row, "ended_at"),
                    succeeded_at: tenths(row, "succeeded_at"),
                    weight: row.get("weight"),
                    latency_ms_sum: row.get("latency_ms_sum"),
                    cost_microdollars_sum: row.get("cost_microdollars_sum"),
                },
            );
        }
    }
    let mut roster = shared.roster.lock();
    match of {
        // An agent came or went since the rows were read, so they are read again at the next look.
        None if roster.edits() != edits => shared.roster_doubted.store(true, Ordering::Relaxed),
        None => roster.replace(members),
        Some(agent) => roster.put(agent, members.remove(agent)),
    }
    Ok(())
}
