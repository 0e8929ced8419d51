//! Offers of hosted agents that have an offer hook: `offer.by` is a model, a command or an HTTP endpoint.
//!
//! A hook is called once a round, for as many tasks at once as the agent has free slots and two more, with its own
//! limits of time, tokens and money. For a hook that fails, times out, has no money left or answers something else,
//! the runtime computes the offer, with a note. The cost of a hook counts to `limits.microdollars_per_hour` too; once
//! that is used up, the agent declines. Keeps no state of its own.
use super::{
    Definition, OfferBy,
    hosted::{HostedAgent, Shared},
    kind::hook::{self, HookAnswer},
};
use crate::{
    id::TaskId,
    scope::OnExit,
    task::{Announcement, Error, ModelUsage, NewOffer, Update, Usage},
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

/// Why a hook made no offer.
enum NoOffer {
    /// The agent has no money left, so it could not do the task either.
    Spent,
    /// One line.
    Failed(String),
}

impl HostedAgent {
    /// Starts the hook of this agent for a round, if it has one.
    pub(super) fn asked(self: &Arc<Self>, shared: &Arc<Shared>, task: Update, round: i32) {
        if !self.is_hosted() || self.definition().offer.by == OfferBy::Runtime {
            return;
        }
        let (hosted, own) = (self.clone(), shared.clone());
        shared.jobs.spawn("agent offer", OnExit::Log, |stop| async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = hosted.offer(&own, &task, round) => {}
            }
            Ok(())
        });
    }

    async fn offer(&self, shared: &Shared, task: &Update, round: i32) {
        let (tasks, agent) = (&shared.tasks, &self.id);
        let answer = match self.think(shared, task, round).await {
            Ok(HookAnswer { offer: Some(terms), .. }) => {
                let offer = NewOffer {
                    round,
                    cost_microdollars: terms.cost,
                    eta_ms: terms.eta_ms,
                    confidence: terms.confidence,
                    note: terms.note,
                };
                match tasks.offer(task.id, agent, offer).await {
                    Err(Error::BadRequest(reason)) => self.fall_back(shared, task, round, &reason).await,
                    answer => answer,
                }
            }
            Ok(HookAnswer { decline, .. }) => {
                tasks.decline(task.id, agent, round, &decline.unwrap_or_default()).await
            }
            Err(NoOffer::Spent) => {
                tasks.decline(task.id, agent, round, "the agent's budget for this hour is used up").await
            }
            Err(NoOffer::Failed(reason)) => self.fall_back(shared, task, round, &reason).await,
        };
        match answer {
            Ok(()) | Err(Error::Late | Error::NotEligible(_) | Error::Overbid { .. }) => {}
            Err(error) => debug!(agent = %agent, %error, "offer refused"),
        }
    }

    async fn think(&self, shared: &Shared, task: &Update, round: i32) -> Result<HookAnswer, NoOffer> {
        let definition = &self.definition();
        let until = Instant::now() + definition.offer.timeout;
        let known = shared.tasks.announcements(&[task.id]).await;
        let known = known.map_err(|e| NoOffer::Failed(e.to_string()))?;
        let announced = known.first().ok_or_else(|| NoOffer::Failed("the task is gone".into()))?;
        let body = body(definition, task, round, announced);
        let presumed = hook::most(definition, &shared.parts, &body);
        let most = presumed.microdollars;
        let now = Instant::now();
        if !self.spend.lock().reserve(most, definition.limits.microdollars_per_hour, now) {
            return Err(NoOffer::Spent);
        }
        if !self.offer_spend.lock().reserve(most, definition.offer.microdollars_per_hour, now) {
            self.spend.lock().settle(most, 0, now);
            return Err(NoOffer::Failed("offer.microdollars_per_hour is used up".into()));
        }
        let within = until.saturating_duration_since(now);
        let answer = match timeout(within, hook::ask(definition, &shared.parts, &body)).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(format!("no answer within {}", humantime::format_duration(definition.offer.timeout)))
            }
        };
        // Without an answer the cost is unknown: presume the most.
        let cost = answer.as_ref().map_or(most, |answer| answer.microdollars);
        for spend in [&self.spend, &self.offer_spend] {
            spend.lock().settle(most, cost, Instant::now());
        }
        let used = match &answer {
            Ok(HookAnswer { used: Some(used), .. }) => used.clone(),
            Ok(answer) => {
                let usage = Usage { microdollars: answer.microdollars, ..Usage::default() };
                ModelUsage { usage, ..ModelUsage::default() }
            }
            Err(_) => ModelUsage::presumed(presumed),
        };
        self.record(shared, task.id, &used).await;
        answer.map_err(NoOffer::Failed)
    }

    /// Records what an offer used.
    async fn record(&self, shared: &Shared, task: TaskId, used: &ModelUsage) {
        let definition = &self.definition();
        if used.usage.tokens == 0 && used.usage.microdollars == 0 {
            return;
        }
        let provider = hook::provider(definition, &shared.parts);
        let model = definition.run.model.as_deref().filter(|_| !provider.is_empty()).unwrap_or_default();
        let recorded = shared.tasks.record_offer_usage(task, &definition.id, &provider, model, used).await;
        if let Err(error) = recorded {
            warn!(agent = %definition.id, %task, %error, "the usage of an offer is not recorded");
        }
    }

    /// Makes the computed offer in place of a failed hook's.
    async fn fall_back(&self, shared: &Shared, task: &Update, round: i32, reason: &str) -> Result<(), Error> {
        let agent = &self.id;
        warn!(agent = %agent, reason, "offer hook failed, using the computed offer");
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
