//! Offers of hosted agents that think before they offer: `offer.by` is a model, a command or an HTTP hook.
//!
//! Each is asked once a round, about as many tasks at once as the agent has free slots and two more, with its
//! own limits on time, tokens and money. One that fails, takes too long, has no money left to think or says
//! something else gets the offer that the runtime computes for it, with a note that says so: a hook that is
//! broken costs its agent nothing but its own judgement. What thinking costs counts to
//! `limits.microdollars_per_hour` too; where that is used up, the agent declines. Nothing is kept.
use super::{
    Definition, OfferBy,
    kind::hook::{self, Answer},
    supervisor::{Desk, Shared},
};
use crate::{
    scope::OnExit,
    task::{Announcement, Error, NewOffer, Update},
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

/// Why a hook has no answer.
enum Silent {
    /// The agent has nothing left to spend: it could not do the task either.
    Spent,
    /// One line.
    Failed(String),
}

impl Desk {
    /// A round began in which this agent may offer: asks its hook, if it has one.
    pub(super) fn asked(self: &Arc<Self>, shared: &Arc<Shared>, task: Update, round: i32) {
        if !self.is_hosted() || self.definition.offer.by == OfferBy::Runtime {
            return;
        }
        let (desk, own) = (self.clone(), shared.clone());
        shared.jobs.spawn("agent offer", OnExit::Log, |stop| async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = desk.offer(&own, &task, round) => {}
            }
            Ok(())
        });
    }

    async fn offer(&self, shared: &Shared, task: &Update, round: i32) {
        let (tasks, agent) = (&shared.tasks, &self.definition.id);
        let told = match self.think(shared, task, round).await {
            Ok(Answer { offer: Some(terms), .. }) => {
                let offer = NewOffer {
                    round,
                    cost_microdollars: terms.cost,
                    eta_ms: terms.eta_ms,
                    confidence: terms.confidence,
                    note: terms.note,
                };
                match tasks.offer(task.id, agent, offer).await {
                    Err(Error::BadRequest(reason)) => self.fall_back(shared, task, round, &reason).await,
                    told => told,
                }
            }
            Ok(Answer { decline, .. }) => {
                tasks.decline(task.id, agent, round, &decline.unwrap_or_default()).await
            }
            Err(Silent::Spent) => {
                tasks.decline(task.id, agent, round, "the agent's budget for this hour is used up").await
            }
            Err(Silent::Failed(reason)) => self.fall_back(shared, task, round, &reason).await,
        };
        match told {
            Ok(()) | Err(Error::Late | Error::NotEligible(_) | Error::Overbid { .. }) => {}
            Err(error) => debug!(agent = %agent, %error, "offer not taken"),
        }
    }

    async fn think(&self, shared: &Shared, task: &Update, round: i32) -> Result<Answer, Silent> {
        let definition = &self.definition;
        let until = Instant::now() + definition.offer.timeout;
        let known = shared.tasks.announcements(&[task.id]).await;
        let known = known.map_err(|e| Silent::Failed(e.to_string()))?;
        let announced = known.first().ok_or_else(|| Silent::Failed("the task is gone".into()))?;
        let body = body(definition, task, round, announced);
        let most = hook::most(definition, &body);
        let now = Instant::now();
        if !self.spend.lock().reserve(most, definition.limits.microdollars_per_hour, now) {
            return Err(Silent::Spent);
        }
        if !self.thoughts.lock().reserve(most, definition.offer.microdollars_per_hour, now) {
            self.spend.lock().settle(most, 0, now);
            return Err(Silent::Failed("offer.microdollars_per_hour is used up".into()));
        }
        let within = until.saturating_duration_since(now);
        let answer = match timeout(within, hook::ask(definition, &shared.parts, &body)).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(format!("no answer within {}", humantime::format_duration(definition.offer.timeout)))
            }
        };
        // One that gave no answer may have cost all that it could.
        let cost = answer.as_ref().map_or(most, |answer| answer.microdollars);
        for spend in [&self.spend, &self.thoughts] {
            spend.lock().settle(most, cost, Instant::now());
        }
        answer.map_err(Silent::Failed)
    }

    /// What the runtime offers in place of a hook that failed.
    async fn fall_back(&self, shared: &Shared, task: &Update, round: i32, reason: &str) -> Result<(), Error> {
        let agent = &self.definition.id;
        warn!(agent = %agent, reason, "offer hook failed; the runtime offers for it");
        match shared.tasks.computed_offer(agent, &task.kind, round) {
            Some(offer) => {
                let note = Some(format!("computed by the runtime: the hook failed ({reason})"));
                shared.tasks.offer(task.id, agent, NewOffer { note, ..offer }).await
            }
            None => shared.tasks.decline(task.id, agent, round, &format!("the hook failed: {reason}")).await,
        }
    }
}

fn body(definition: &Definition, task: &Update, round: i32, announced: &Announcement) -> Value {
    json!({
        "agent_id": definition.id, "org": definition.org, "round": round,
        "task": {
            "id": task.id, "kind": task.kind, "requires": announced.requires, "priority": announced.priority,
            "deadline": announced.deadline, "input_preview": announced.input_preview,
        },
    })
}
