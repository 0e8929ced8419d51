//! Offers of agents that speak for themselves, and the choice of a requester among them.
//!
//! An agent has at most a few more offers under way than it has free slots, so that nobody promises
//! everybody everything; which ones count is remembered by the roster, the offers themselves are rows.
//! Whoever chooses only marks an offer and ends the round: the arbiter awards it like any other.
use super::rounds;
use super::store::{self, Locked, StoredOffer, millis, run, sql};
use super::{
    AgentId, Award, Error, Incarnation, NewOffer, Notice, OrgId, Shared, TaskId, TaskState, Tasks, Update,
    request,
};
use crate::db;
use tokio::time::Instant;

/// Longest note on an offer, in bytes.
const NOTE_BYTES_MAX: usize = 500;

impl Tasks {
    /// Offers to do a task; a second offer in the round replaces the first. The round closes early
    /// once every eligible agent has answered, this one is `good_enough`, or `offers_min` came.
    ///
    /// # Errors
    /// `Late` when the round is over (the offer is kept as late), `NotEligible`, `Overbid` when the agent has
    /// too many offers under way, `BadRequest`.
    pub async fn offer(&self, task: TaskId, agent: &AgentId, offer: NewOffer) -> Result<(), Error> {
        if !(0.0..=1.0).contains(&offer.confidence) {
            return Err(Error::BadRequest("confidence is not between 0 and 1".into()));
        }
        self.respond(task, agent, offer, "open").await
    }

    /// Will not offer in this round, or withdraws what it has offered: lets the round close early.
    ///
    /// # Errors
    /// As [`Tasks::offer`].
    pub async fn decline(
        &self,
        task: TaskId,
        agent: &AgentId,
        round: i32,
        reason: &str,
    ) -> Result<(), Error> {
        let note = Some(reason.to_owned()).filter(|text| !text.is_empty());
        let offer = NewOffer { round, cost_microdollars: 0, eta_ms: 0, confidence: 0.0, note };
        self.respond(task, agent, offer, "declined").await
    }

    async fn respond(
        &self,
        task: TaskId,
        agent: &AgentId,
        offer: NewOffer,
        state: &'static str,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let mut client = shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        let row = store::lock(&tx, &[task]).await?.pop().ok_or(Error::UnknownTask(task))?;
        let policy = shared.policy(&row.kind, &row.policy).map_err(Error::BadRequest)?;
        let (incarnation, able) = {
            let roster = shared.roster.lock();
            let mut eligible = roster.eligible(&row.org, &row.requires);
            eligible.retain(|id| policy.agent.as_ref().is_none_or(|named| named == id));
            let life = roster.members.get(agent).map(|member| member.incarnation);
            // Nobody waits for those who have no slot free.
            let able = |id: &AgentId| roster.members.get(id).is_some_and(|member| member.free() > 0);
            let able: Vec<String> = eligible.iter().filter(|id| able(id)).map(ToString::to_string).collect();
            (life.filter(|_| eligible.contains(agent)), able)
        };
        let Some(incarnation) = incarnation else { return Err(Error::NotEligible(agent.clone())) };
        if !(1..=row.round).contains(&offer.round) {
            // There was no such round, and what is kept must be bounded by those that there were.
            return Err(Error::Late);
        }
        let late = row.facts.state != TaskState::Open || !row.bidding || row.round != offer.round;
        let bids = state == "open" && !late;
        if bids {
            may_bid(shared, agent, task)?;
        }
        let kept = stored(task, agent, incarnation, &offer, if late { "late" } else { state }, &policy);
        store::offers(&tx, &[kept]).await?;
        if !late {
            let counts = run(&tx, sql!("answered"), &[&task.as_uuid(), &row.round, &able]).await?;
            let count = |name| counts.first().map_or(0, |row| row.get::<_, i64>(name));
            let good = policy.good_enough.is_some_and(|enough| {
                bids && enough.is_met_by(offer.cost_microdollars, offer.eta_ms, offer.confidence)
            });
            let enough = good || policy.offers_min.is_some_and(|min| count("offered") >= i64::from(min));
            let wait_ms = if policy.award == Award::Requester {
                // Only the requester ends it, or its time.
                None
            } else if enough || count("silent") == 0 {
                Some(0)
            } else {
                (state == "open").then(|| millis(policy.quiet_gap))
            };
            store::rearm(&tx, &wait_ms.map(|wait| (task, wait)).into_iter().collect::<Vec<_>>()).await?;
        }
        tx.commit().await.map_err(db::Error::from)?;
        if late {
            return Err(Error::Late);
        }
        if bids {
            let until = Instant::now() + policy.offer_validity.max(policy.bid_window);
            shared.roster.lock().bid(agent, task, until);
        } else {
            shared.roster.lock().declined(agent, task);
        }
        let told = update(&row).filter(|_| state == "open").map(|task| Notice::Offered {
            task,
            round: row.round,
            offers: vec![(agent.clone(), offer.cost_microdollars, offer.eta_ms, offer.confidence)],
        });
        shared.committed(told.into_iter().collect(), true);
        Ok(())
    }
}

impl Tasks {
    /// What the runtime would offer for an agent whose own offer could not be made; nothing when it has no
    /// free slot or is not here.
    #[must_use]
    pub fn computed_offer(&self, agent: &AgentId, kind: &str, round: i32) -> Option<NewOffer> {
        let offer = self.shared.roster.lock().fallback(agent, kind)?;
        Some(NewOffer {
            round,
            cost_microdollars: offer.cost_microdollars,
            eta_ms: offer.eta_ms,
            confidence: offer.confidence,
            note: Some("computed by the runtime".into()),
        })
    }

    /// The requester of a task whose policy is `requester` chooses the offer of this agent in the present
    /// round; it is awarded at once. Whether the caller is the requester is the caller's to know.
    ///
    /// # Errors
    /// `Late` when the round is over, `BadRequest` when there is no such offer, the policy is another, or the
    /// agent has no free slot any more.
    pub async fn choose(&self, task: TaskId, agent: &AgentId) -> Result<(), Error> {
        let shared = &self.shared;
        let mut client = shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        let row = store::lock(&tx, &[task]).await?.pop().ok_or(Error::UnknownTask(task))?;
        let policy = shared.policy(&row.kind, &row.policy).map_err(Error::BadRequest)?;
        if policy.award != Award::Requester {
            let award = policy.award.as_str();
            return Err(Error::BadRequest(format!(
                "the award of this task is {award}: only with requester its requester chooses"
            )));
        }
        if row.facts.state != TaskState::Open || !row.bidding {
            return Err(Error::Late);
        }
        let free = shared.roster.lock().members.get(agent).is_some_and(|member| member.free() > 0);
        if !free {
            return Err(Error::BadRequest(format!("agent {agent} has no free slot now: choose another")));
        }
        if run(&tx, sql!("choose"), &[&task.as_uuid(), &row.round, &agent.as_str()]).await?.is_empty() {
            return Err(Error::BadRequest(format!("agent {agent} has no offer in round {}", row.round)));
        }
        store::rearm(&tx, &[(task, 0)]).await?;
        shared.call_arbiter(&tx).await?;
        tx.commit().await.map_err(db::Error::from)?;
        shared.committed(Vec::new(), true);
        Ok(())
    }
}

/// Whether the agent may have one more offer under way; one that it replaces is not more.
fn may_bid(shared: &Shared, agent: &AgentId, task: TaskId) -> Result<(), Error> {
    let mut roster = shared.roster.lock();
    if roster.has_bid(agent, task) {
        return Ok(());
    }
    match roster.bids(agent, Instant::now()) {
        Some((open, most)) if open >= most => Err(Error::Overbid { agent: agent.clone(), open, most }),
        _ => Ok(()),
    }
}

fn stored(
    task: TaskId,
    agent: &AgentId,
    incarnation: Incarnation,
    offer: &NewOffer,
    state: &'static str,
    policy: &super::Policy,
) -> StoredOffer {
    StoredOffer {
        task,
        round: offer.round,
        agent: agent.clone(),
        incarnation,
        state,
        cost_microdollars: offer.cost_microdollars,
        eta_ms: offer.eta_ms,
        confidence: offer.confidence,
        note: offer.note.as_deref().map(|note| request::one_line(note, NOTE_BYTES_MAX)),
        valid_ms: rounds::validity_ms(policy),
        score: None,
    }
}

fn update(row: &Locked) -> Option<Update> {
    Some(Update {
        id: row.id,
        org: OrgId::try_from(row.org.as_str()).ok()?,
        kind: row.kind.clone(),
        state: row.facts.state,
        state_reason: row.state_reason.clone(),
        epoch: row.epoch,
        agent_id: row.agent.clone(),
        requester: row.requester.clone(),
    })
}
