//! Rounds of offers: the agents that are asked, the offers that the runtime computes, the winner.
//!
//! A plan is made in memory from locked rows and the roster, and written by set-based statements in the same
//! transaction. When the runtime computes the offers of every eligible agent, announcement, offers and award are one
//! commit. Otherwise the round stays open until all have answered, its window ends, or no offer comes for
//! `policy.quiet_gap`.
use crate::task::machine::TaskEvent;
use crate::task::model::offer_state::OfferState;
use crate::task::rounds::roster::{PresentAgent, Roster};
use crate::task::rounds::score::{Offer, Score, decisive, rank};
use crate::task::storage::candidate::Candidate;
use crate::task::storage::rows::UnreadableTask;
use crate::task::storage::statement::millis;
use crate::task::storage::store::{RareColumns, Settled, StoredOffer, Winner};
use crate::task::{AgentId, AssignmentId, Award, OfferSummary, Policy, TaskContext, TaskId};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering,
    time::Duration,
};
use tokio::time::Instant;

/// Least time that a remote agent has to accept.
const CONFIRM_REMOTE: Duration = Duration::from_secs(5);
/// Agents without an offer that are listed for one reason.
const SILENT_MAX: usize = 20;
/// Longest backoff between rounds, unless the policy's first one is longer, in milliseconds.
const BACKOFF_MS_MAX: i64 = 60_000;
/// The same while the task waits for absent agents, whose arrival ends the backoff, in milliseconds.
const ABSENCE_BACKOFF_MS_MAX: i64 = 300_000;

/// A round that waits for offers of agents.
#[derive(Clone, Debug)]
pub(in crate::task) struct Announced {
    pub(in crate::task) task: TaskId,
    pub(in crate::task) round: i32,
    pub(in crate::task) window_ms: i64,
    pub(in crate::task) eligible: Vec<AgentId>,
    /// Capable agents that are not asked, by reason.
    pub(in crate::task) silent: Value,
}

/// A round without an offer.
#[derive(Clone, Debug)]
pub(in crate::task) struct Empty {
    pub(in crate::task) task: TaskId,
    pub(in crate::task) round: i32,
    pub(in crate::task) backoff_ms: i64,
    pub(in crate::task) reasons: Value,
}

/// A task whose rounds are used up: it waits for an absent agent, or it ends.
#[derive(Debug)]
pub(in crate::task) struct Exhausted {
    pub(in crate::task) empty: Empty,
    pub(in crate::task) end: Settled,
    pub(in crate::task) absence_ms: i64,
    /// The agent that the policy names.
    pub(in crate::task) agent: Option<AgentId>,
    /// Whether no agent was present that could be asked.
    pub(in crate::task) none_seen: bool,
}

/// Where the offers of an awarded round are kept (`docs/decisions/0050-offers-in-awards.md`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum OffersKept {
    /// In the event of the award: the runtime computed all of them.
    InEvent,
    /// In a row each, written with the award, because row changes of offers are published.
    InRows,
    /// In rows already, because the round was announced.
    Already,
}

impl OffersKept {
    fn of_computed(context: &TaskContext) -> Self {
        // Relaxed: an award just after the tables were published may still be kept in its event.
        if context.offers_published.load(Ordering::Relaxed) { Self::InRows } else { Self::InEvent }
    }
}

/// The statements that follow from a batch of rounds.
#[derive(Debug, Default)]
pub(in crate::task) struct Plan {
    pub(in crate::task) winners: Vec<Winner>,
    pub(in crate::task) offers: Vec<StoredOffer>,
    pub(in crate::task) announced: Vec<Announced>,
    pub(in crate::task) empty: Vec<Empty>,
    /// Decided by a statement, which sees the agents that are expected.
    pub(in crate::task) exhausted: Vec<Exhausted>,
    pub(in crate::task) settled: Vec<Settled>,
    /// Tasks that go back to wait for a free slot.
    pub(in crate::task) ready: Vec<TaskId>,
}

impl Plan {
    /// Whether it has nothing but awards, of rounds whose offers need no statement.
    pub(in crate::task) fn is_plain(&self) -> bool {
        let Self { winners, offers, announced, empty, exhausted, settled, ready } = self;
        !winners.is_empty()
            && offers.is_empty()
            && announced.is_empty()
            && empty.is_empty()
            && exhausted.is_empty()
            && settled.is_empty()
            && ready.is_empty()
    }

    /// Opens a round for each of these tasks, in their order. Returns also the tasks on which that panicked.
    pub(in crate::task) fn open_all(
        context: &TaskContext,
        tasks: &[Candidate],
    ) -> (Self, Vec<UnreadableTask>) {
        let mut plan = Self::default();
        let mut broken = Vec::new();
        let mut roster = context.roster.lock();
        for task in tasks {
            let opened = plan.plan_or_undo(context, task, |plan| plan.open(context, &mut roster, task));
            broken.extend(opened.err());
        }
        (plan, broken)
    }

    /// Closes the rounds of these tasks with their open offers. Returns also the tasks on which that panicked.
    pub(in crate::task) fn close_all(
        context: &TaskContext,
        tasks: &[Candidate],
        mut standing: HashMap<TaskId, Vec<Offer>>,
    ) -> (Self, Vec<UnreadableTask>) {
        let mut plan = Self::default();
        let mut broken = Vec::new();
        let mut roster = context.roster.lock();
        for task in tasks {
            let offers = standing.remove(&task.id).unwrap_or_default();
            let closed =
                plan.plan_or_undo(context, task, |plan| plan.close(context, &mut roster, task, offers));
            broken.extend(closed.err());
        }
        (plan, broken)
    }

    /// Plans one task; a panic leaves the plan as it was.
    fn plan_or_undo(
        &mut self,
        context: &TaskContext,
        task: &Candidate,
        work: impl FnOnce(&mut Self),
    ) -> Result<(), UnreadableTask> {
        let Self { winners, offers, announced, empty, exhausted, settled, ready } = &*self;
        let (winners, offers, announced) = (winners.len(), offers.len(), announced.len());
        let (empty, exhausted, settled, ready) = (empty.len(), exhausted.len(), settled.len(), ready.len());
        context.catch_panic("planning a round", || work(self)).map_err(|why| {
            self.winners.truncate(winners);
            self.offers.truncate(offers);
            self.announced.truncate(announced);
            self.empty.truncate(empty);
            self.exhausted.truncate(exhausted);
            self.settled.truncate(settled);
            self.ready.truncate(ready);
            UnreadableTask::panicked(task.id, why)
        })
    }

    /// Opens a round for a task that is ready.
    fn open(&mut self, context: &TaskContext, roster: &mut Roster, task: &Candidate) {
        let policy = match context.policies.of_task(&task.kind, &task.policy) {
            Ok(policy) => policy,
            Err(reason) => return self.unworkable(task, &reason),
        };
        let able = roster.eligible(&task.org, &task.requires);
        let eligible = asked(&policy, able.clone(), task);
        let round = task.round + 1;
        if eligible.is_empty() {
            let reason = match &policy.agent {
                Some(agent) => format!("agent {agent}, which the policy names, is not here or cannot do it"),
                None => format!("no agent of the org {} that is present has the capabilities", task.org),
            };
            return self.no_offers(task, round, &policy, json!(reason), true);
        }
        let computed: Vec<Offer> = eligible.iter().filter_map(|id| roster.offer(id, &task.kind)).collect();
        let kept = OffersKept::of_computed(context);
        // The preferred agent is asked alone while it has a free slot; it may refuse like any other.
        if let Some(offer) = preferred_offer(roster, task) {
            return self.award(roster, task, round, &policy, vec![offer], kept);
        }
        let now = Instant::now();
        let speaks = |roster: &mut Roster, id: &&AgentId| {
            roster.members.get(*id).is_some_and(PresentAgent::is_asked) && roster.may_bid(id, now)
        };
        let speakers: Vec<AgentId> = eligible.iter().filter(|id| speaks(roster, id)).cloned().collect();
        let chooses = policy.award == Award::Requester && !computed.is_empty();
        let good = policy.award != Award::Requester
            && policy.good_enough.is_some_and(|enough| {
                computed.iter().any(|it| enough.is_met_by(it.cost_microdollars, it.eta_ms, it.confidence))
            });
        if good || (speakers.is_empty() && !chooses) {
            if !computed.is_empty() {
                self.award(roster, task, round, &policy, computed, kept);
            }
            // Otherwise all are busy: the task stays ready, and the next slot that becomes free starts a poll.
            return;
        }
        let offered = |id: &AgentId| computed.iter().any(|offer| offer.agent == *id);
        let part: Vec<AgentId> =
            eligible.into_iter().filter(|id| speakers.contains(id) || offered(id)).collect();
        let valid_ms = validity_ms(&policy);
        let window_ms = window_ms(&policy, &task.policy, roster, &speakers);
        // An offer that a model thinks about costs money: such an agent is asked about no more tasks than it may
        // offer on, so the question already counts as an offer.
        let until = now + Duration::from_millis(u64::try_from(window_ms).unwrap_or(0));
        for id in &speakers {
            if roster.members.get(id).is_some_and(|member| member.terms.thinks.is_some()) {
                roster.bid(id, task.id, until);
            }
        }
        self.offers.extend(
            computed.iter().map(|offer| stored(task.id, round, offer, OfferState::Open, valid_ms, None)),
        );
        self.announced.push(Announced {
            task: task.id,
            round,
            window_ms,
            silent: silent(&able, &part, &policy, task),
            eligible: part,
        });
    }

    /// Closes a round with the open offers of agents that still have a free slot.
    fn close(&mut self, context: &TaskContext, roster: &mut Roster, task: &Candidate, standing: Vec<Offer>) {
        roster.round_over(task.id);
        let policy = match context.policies.of_task(&task.kind, &task.policy) {
            Ok(policy) => policy,
            Err(reason) => return self.unworkable(task, &reason),
        };
        if standing.is_empty() {
            let reason = json!("every offer was refused, withdrawn or expired, or there was none");
            return self.no_offers(task, task.round, &policy, reason, false);
        }
        let able: Vec<Offer> = standing
            .into_iter()
            .filter_map(|mut offer| {
                let member = roster.members.get(&offer.agent)?;
                if member.incarnation != offer.incarnation || member.free() == 0 {
                    return None;
                }
                offer.free = member.free_share();
                offer.measured = member.measured(&task.kind);
                offer.waited_rank = member.last_award;
                Some(offer)
            })
            .collect();
        if able.is_empty() {
            self.ready.push(task.id);
        } else {
            self.award(roster, task, task.round, &policy, able, OffersKept::Already);
        }
    }

    fn award(
        &mut self,
        roster: &mut Roster,
        task: &Candidate,
        round: i32,
        policy: &Policy,
        offers: Vec<Offer>,
        kept: OffersKept,
    ) {
        let ranked = rank(policy, offers);
        let Some((winner, won)) = ranked.first() else { return };
        let lost = ranked
            .iter()
            .skip(1)
            .map(|(offer, score)| (offer.agent.clone(), Err(decisive(policy, won, score))));
        let decided = std::iter::once((winner.agent.clone(), Ok(()))).chain(lost).collect();
        let compared = if policy.award == Award::Requester { policy.fallback } else { policy.award };
        let agent = winner.agent.clone();
        let valid_ms = validity_ms(policy);
        let part: Vec<AgentId> = ranked.iter().map(|(offer, _)| offer.agent.clone()).collect();
        let able = roster.eligible(&task.org, &task.requires);
        let mut details = json!({
            "award": policy.award,
            // The settings may change: the event log keeps what the totals were computed with.
            "weights": (compared == Award::Weighted).then(|| policy.weights.unwrap_or_default()),
            "offers": ranked.iter().map(|(offer, score)| vector(offer, score)).collect::<Vec<_>>(),
            // The event of the announcement lists them for a round that was announced.
            "silent": if kept == OffersKept::Already { json!({}) } else { silent(&able, &part, policy, task) },
        });
        if kept == OffersKept::InEvent
            && let Some(details) = details.as_object_mut()
        {
            // Marks the event as the only place of these offers; `convoke.computed_offers` reads it.
            let incarnations: Vec<i64> = ranked.iter().map(|(offer, _)| offer.incarnation.0).collect();
            details.insert("computed".into(), json!({ "valid_ms": valid_ms, "incarnations": incarnations }));
        } else {
            for (at, (offer, score)) in ranked.iter().enumerate() {
                let won = at == 0 && kept == OffersKept::InRows;
                let state = if won { OfferState::Awarded } else { OfferState::Open };
                self.offers.push(stored(task.id, round, offer, state, valid_ms, Some(score)));
            }
        }
        let mut new_offers = Vec::new();
        // The offers of an announced round were published when they came.
        if kept != OffersKept::Already {
            new_offers.extend(ranked.iter().map(|(offer, _)| summary(offer)));
        }
        self.winners.push(Winner {
            task: task.id,
            round,
            agent: agent.clone(),
            incarnation: winner.incarnation,
            cost_microdollars: winner.cost_microdollars,
            eta_ms: winner.eta_ms,
            confidence: winner.confidence,
            assignment: AssignmentId::generate(),
            confirm_ms: millis(confirm(policy, &task.policy, roster.members.get(&agent))),
            decided,
            details,
            new_offers,
        });
        roster.took(&agent);
    }

    fn no_offers(&mut self, task: &Candidate, round: i32, policy: &Policy, reasons: Value, none_seen: bool) {
        let rounds = u32::try_from(task.rounds_empty.saturating_add(1)).unwrap_or(u32::MAX);
        // policy.backoff * 2^round, at most a minute unless it is longer itself; the statement adds jitter of a
        // fifth.
        let first = millis(policy.backoff);
        let most = if rounds < policy.rounds_max { BACKOFF_MS_MAX } else { ABSENCE_BACKOFF_MS_MAX };
        let backoff_ms = first.saturating_mul(1 << (rounds.clamp(1, 10) - 1)).min(first.max(most));
        let error = json!({ "message": "no agent made an offer", "reasons": &reasons });
        let empty = Empty { task: task.id, round, backoff_ms, reasons };
        if rounds < policy.rounds_max {
            return self.empty.push(empty);
        }
        let Some(end) = ended(task, TaskEvent::RoundsExhausted, error) else { return };
        if policy.absence.is_zero() {
            return self.settled.push(end);
        }
        let absence_ms = millis(policy.absence);
        self.exhausted.push(Exhausted { empty, end, absence_ms, agent: policy.agent.clone(), none_seen });
    }

    fn unworkable(&mut self, task: &Candidate, reason: &str) {
        self.settled.extend(ended(task, TaskEvent::Unworkable, json!({ "message": reason })));
    }
}

fn ended(task: &Candidate, event: TaskEvent, error: Value) -> Option<Settled> {
    let step = task.facts.next(event).ok()?;
    Some(Settled {
        task: task.id,
        assignment: None,
        assignee: None,
        assignment_state: None,
        state: step.state,
        reason: step.reason.map(str::to_owned),
        result: None,
        error: Some(error.clone()),
        due_ms: None,
        standby: false,
        tried: false,
        holds_slot: false,
        tokens: 0,
        microdollars: 0,
        usage_known: false,
        event: if event == TaskEvent::Unworkable { "unworkable" } else { "unallocatable" },
        body: json!({ "state": step.state, "error": error }),
        checkpoint: None,
        rare: RareColumns::default(),
    })
}

/// The computed offer of the preferred agent, if it can take the task now.
fn preferred_offer(roster: &Roster, task: &Candidate) -> Option<Offer> {
    let agent = AgentId::try_from(task.prefer.as_deref()?).ok()?;
    roster.members.get(&agent).filter(|member| member.can(&task.org, &task.requires))?;
    roster.fallback(&agent, &task.kind)
}

/// How long a winner has to accept. A remote agent gets at least [`CONFIRM_REMOTE`], unless the request has a
/// `confirm` of its own.
fn confirm(policy: &Policy, patch: &Value, winner: Option<&PresentAgent>) -> Duration {
    let remote = winner.is_some_and(|member| !member.terms.computed);
    if remote && patch.get("confirm").is_none() { policy.confirm.max(CONFIRM_REMOTE) } else { policy.confirm }
}

/// How long a round is open: at least the time that the asked agents need to think, unless the request has a
/// `bid_window` of its own; `choose_within` where the requester chooses.
fn window_ms(policy: &Policy, patch: &Value, roster: &Roster, speakers: &[AgentId]) -> i64 {
    if policy.award == Award::Requester {
        return millis(policy.choose_within);
    }
    let thinks = speakers.iter().filter_map(|id| roster.members.get(id)?.terms.thinks).max();
    let thinks = thinks.filter(|_| patch.get("bid_window").is_none()).unwrap_or_default();
    millis(policy.bid_window.max(thinks))
}

/// How long an offer can be awarded: longer than its requester has to choose.
pub(in crate::task) fn validity_ms(policy: &Policy) -> i64 {
    let chooses = policy.award == Award::Requester;
    let least = if chooses { policy.choose_within * 2 } else { Duration::ZERO };
    millis(policy.offer_validity.max(least))
}

/// The agents that may offer: the one that the policy names, or those that have not tried yet. After an empty round
/// all are asked, so that an agent that declines every time does not keep the task from the others.
fn asked(policy: &Policy, mut able: Vec<AgentId>, task: &Candidate) -> Vec<AgentId> {
    able.retain(|id| !is_named(&task.unable, id));
    match &policy.agent {
        Some(named) => able.retain(|id| id == named),
        None if task.rounds_empty > 0 || able.iter().all(|id| is_named(&task.tried, id)) => {}
        None => able.retain(|id| !is_named(&task.tried, id)),
    }
    able
}

fn is_named(names: &[String], id: &AgentId) -> bool {
    names.iter().any(|name| name == id.as_str())
}

/// Capable agents without an offer, by reason.
fn silent(able: &[AgentId], part: &[AgentId], policy: &Policy, task: &Candidate) -> Value {
    let mut reasons: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for id in able.iter().filter(|id| !part.contains(id)) {
        let reason = match &policy.agent {
            Some(named) if named != id => "the policy names another agent",
            _ if is_named(&task.unable, id) => "failed at it for good",
            _ if task.rounds_empty == 0 && is_named(&task.tried, id) => "tried it before",
            _ => "no free slot, or as many offers under way as it may have",
        };
        let agents = reasons.entry(reason).or_default();
        match agents.len() {
            ..SILENT_MAX => agents.push(json!(id)),
            SILENT_MAX => agents.push(json!("…")),
            _ => {}
        }
    }
    json!(reasons)
}

fn stored(
    task: TaskId,
    round: i32,
    offer: &Offer,
    state: OfferState,
    valid_ms: i64,
    score: Option<&Score>,
) -> StoredOffer {
    StoredOffer {
        task,
        round,
        agent: offer.agent.clone(),
        incarnation: offer.incarnation,
        state,
        cost_microdollars: offer.cost_microdollars,
        eta_ms: offer.eta_ms,
        confidence: offer.confidence,
        note: None,
        valid_ms,
        score: score.and_then(|score| serde_json::to_value(score).ok()),
    }
}

fn summary(offer: &Offer) -> OfferSummary {
    OfferSummary {
        agent_id: offer.agent.clone(),
        cost_microdollars: offer.cost_microdollars,
        eta_ms: offer.eta_ms,
        confidence: offer.confidence,
    }
}

/// An offer with its score for the event log, from which `why` explains the award when the offers are deleted.
fn vector(offer: &Offer, score: &Score) -> Value {
    json!({
        "agent_id": offer.agent,
        "cost_microdollars": offer.cost_microdollars,
        "eta_ms": offer.eta_ms,
        "confidence": crate::task::plain(offer.confidence),
        "score": score,
    })
}
