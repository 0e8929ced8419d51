//! Offers of agents that speak for themselves.
use super::store::{self, Locked, StoredOffer, millis, run, sql};
use super::{
    AgentId, Error, Incarnation, NewOffer, Notice, OrgId, TaskId, TaskState, Tasks, Update, request,
};
use crate::db;

/// Longest note on an offer, in bytes.
const NOTE_BYTES_MAX: usize = 500;

impl Tasks {
    /// Offers to do a task; a second offer in the round replaces the first. The round closes early
    /// once every eligible agent has answered, or `offers_min` came.
    ///
    /// # Errors
    /// `Late` when the round is over (the offer is kept as late), `NotEligible`, `BadRequest`.
    pub async fn offer(&self, task: TaskId, agent: &AgentId, offer: NewOffer) -> Result<(), Error> {
        if !(0.0..=1.0).contains(&offer.confidence) {
            return Err(Error::BadRequest("confidence is not between 0 and 1".into()));
        }
        self.answer(task, agent, offer, "open").await
    }

    /// Will not offer in this round: lets it close early.
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
        self.answer(task, agent, offer, "declined").await
    }

    async fn answer(
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
        let (incarnation, able) = {
            let roster = shared.roster.lock();
            let eligible = roster.eligible(&row.org, &row.requires);
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
        let policy = shared.policy(&row.policy).map_err(Error::BadRequest)?;
        let kept = stored(task, agent, incarnation, &offer, if late { "late" } else { state }, &policy);
        store::offers(&tx, &[kept]).await?;
        if !late {
            let counts = run(&tx, sql!("answered"), &[&task.as_uuid(), &row.round, &able]).await?;
            let count = |name| counts.first().map_or(0, |row| row.get::<_, i64>(name));
            let enough = policy.offers_min.is_some_and(|min| count("offered") >= i64::from(min));
            let wait_ms = if enough || count("silent") == 0 {
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
        let told = update(&row).filter(|_| state == "open").map(|task| Notice::Offered {
            task,
            offers: vec![(agent.clone(), offer.cost_microdollars, offer.eta_ms, offer.confidence)],
        });
        shared.committed(told.into_iter().collect(), true);
        Ok(())
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
        valid_ms: millis(policy.offer_validity),
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
    })
}
