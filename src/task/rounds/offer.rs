//! Offers that agents make themselves, and the choice of a requester among them.
//!
//! An agent has at most a few more open offers than free slots. The roster counts them; the offers themselves are
//! rows. A choice only marks an offer and ends the round: the arbiter awards it like any other.
use crate::task::model::offer_state::OfferState;
use crate::task::rounds::round as rounds;
use crate::task::storage::locked_task::lock_one;
use crate::task::storage::rows::Columns;
use crate::task::storage::statement::{millis, run, sql};
use crate::task::storage::store::{self, StoredOffer};
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, Award, Error, Incarnation, NewOffer, Notice, OfferSummary, Requester, TaskCommands, TaskContext,
    TaskId, TaskState, model::validate::one_line,
};
use tokio::time::Instant;

/// Longest note on an offer, in bytes.
const NOTE_BYTES_MAX: usize = 500;

impl TaskCommands {
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
        self.respond(task, agent, offer, OfferState::Open).await
    }

    /// Makes no offer in this round, or withdraws its offer, so that the round can close early.
    ///
    /// # Errors
    /// As [`TaskCommands::offer`].
    pub async fn decline(
        &self,
        task: TaskId,
        agent: &AgentId,
        round: i32,
        reason: &str,
    ) -> Result<(), Error> {
        let note = Some(reason.to_owned()).filter(|text| !text.is_empty());
        let offer = NewOffer { round, cost_microdollars: 0, eta_ms: 0, confidence: 0.0, note };
        self.respond(task, agent, offer, OfferState::Declined).await
    }

    async fn respond(
        &self,
        task: TaskId,
        agent: &AgentId,
        offer: NewOffer,
        state: OfferState,
    ) -> Result<(), Error> {
        let context = &self.context;
        let mut client = context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let row = lock_one(&tx, task).await?;
        let policy = context.policies.of_task(&row.kind, &row.policy).map_err(Error::BadRequest)?;
        let (incarnation, able) = {
            let roster = context.roster.lock();
            let mut eligible = roster.eligible(&row.org, &row.requires);
            eligible.retain(|id| policy.agent.as_ref().is_none_or(|named| named == id));
            let life = roster.members.get(agent).map(|member| member.incarnation);
            // The round does not wait for agents without a free slot.
            let able = |id: &AgentId| roster.members.get(id).is_some_and(|member| member.free() > 0);
            let able: Vec<String> = eligible.iter().filter(|id| able(id)).map(ToString::to_string).collect();
            (life.filter(|_| eligible.contains(agent)), able)
        };
        let Some(incarnation) = incarnation else { return Err(Error::NotEligible(agent.clone())) };
        if !(1..=row.round).contains(&offer.round) {
            // Late offers are stored, one for each round that was. An offer for another round would be unbounded.
            return Err(Error::Late);
        }
        let late = row.facts.state != TaskState::Open || !row.bidding || row.round != offer.round;
        let bids = state == OfferState::Open && !late;
        if bids {
            may_bid(context, agent, task)?;
        }
        let kept =
            stored(task, agent, incarnation, &offer, if late { OfferState::Late } else { state }, &policy);
        if late {
            // An offer that was computed for this agent stays.
            store::keep_offers(&tx, &[task]).await?;
        }
        store::offers(&tx, &[kept]).await?;
        if !late {
            let counts = run(&tx, sql!("answered"), &[&task.as_uuid(), &row.round, &able]).await?;
            let count = |name| counts.first().map_or(Ok(0), |row| row.read::<i64>(name));
            let (offered, silent) = (count("offered")?, count("silent")?);
            let good = policy.good_enough.is_some_and(|enough| {
                bids && enough.is_met_by(offer.cost_microdollars, offer.eta_ms, offer.confidence)
            });
            let enough = good || policy.offers_min.is_some_and(|min| offered >= i64::from(min));
            let wait_ms = if policy.award == Award::Requester {
                // Only the requester or the end of its time closes the round.
                None
            } else if enough || silent == 0 {
                Some(0)
            } else {
                (state == OfferState::Open).then(|| millis(policy.quiet_gap))
            };
            store::set_due(&tx, &wait_ms.map(|wait| (task, wait)).into_iter().collect::<Vec<_>>()).await?;
        }
        tx.commit().await?;
        if late {
            return Err(Error::Late);
        }
        if bids {
            let until = Instant::now() + policy.offer_validity.max(policy.bid_window);
            context.roster.lock().bid(agent, task, until);
        } else {
            context.roster.lock().declined(agent, task);
        }
        let offered = (state == OfferState::Open).then(|| Notice::Offered {
            task: row.update(),
            round: row.round,
            offers: vec![OfferSummary {
                agent_id: agent.clone(),
                cost_microdollars: offer.cost_microdollars,
                eta_ms: offer.eta_ms,
                confidence: offer.confidence,
            }],
        });
        context.notify_arbiter();
        context.publish(offered.into_iter().collect());
        Ok(())
    }
}

impl TaskCommands {
    /// The computed offer for an agent whose own offer failed. `None` if it has no free slot or is not present.
    #[must_use]
    pub fn computed_offer(&self, agent: &AgentId, kind: &str, round: i32) -> Option<NewOffer> {
        let offer = self.context.roster.lock().fallback(agent, kind)?;
        Some(NewOffer {
            round,
            cost_microdollars: offer.cost_microdollars,
            eta_ms: offer.eta_ms,
            confidence: offer.confidence,
            note: Some("computed by the runtime".into()),
        })
    }

    /// Chooses the offer of this agent in the present round of a task whose policy is `requester`; it is awarded
    /// at once; `by` is recorded. The caller checks that the requester chooses.
    ///
    /// # Errors
    /// `Late` when the round is over, `BadRequest` when there is no such offer, the policy is another, or the
    /// agent has no free slot any more.
    pub async fn choose(&self, task: TaskId, agent: &AgentId, by: impl Into<Requester>) -> Result<(), Error> {
        let by: Requester = by.into();
        let context = &self.context;
        let mut client = context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let row = lock_one(&tx, task).await?;
        let policy = context.policies.of_task(&row.kind, &row.policy).map_err(Error::BadRequest)?;
        if policy.award != Award::Requester {
            let award = policy.award.as_str();
            return Err(Error::BadRequest(format!(
                "the award of this task is {award}: only with requester its requester chooses"
            )));
        }
        if row.facts.state != TaskState::Open || !row.bidding {
            return Err(Error::Late);
        }
        let free = context.roster.lock().members.get(agent).is_some_and(|member| member.free() > 0);
        if !free {
            return Err(Error::BadRequest(format!("agent {agent} has no free slot now: choose another")));
        }
        let chosen = run(&tx, sql!("choose"), &[&task.as_uuid(), &row.round, &agent.as_str(), &by]).await?;
        if chosen.is_empty() {
            return Err(Error::BadRequest(format!("agent {agent} has no offer in round {}", row.round)));
        }
        store::set_due(&tx, &[(task, 0)]).await?;
        context.call_arbiter(&tx).await?;
        tx.commit().await?;
        context.notify_arbiter();
        Ok(())
    }
}

/// Whether the agent may have one more open offer; replacing its own is always allowed.
fn may_bid(context: &TaskContext, agent: &AgentId, task: TaskId) -> Result<(), Error> {
    let mut roster = context.roster.lock();
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
    state: OfferState,
    policy: &crate::task::Policy,
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
        note: offer.note.as_deref().map(|note| one_line(note, NOTE_BYTES_MAX)),
        valid_ms: rounds::validity_ms(policy),
        score: None,
    }
}
