//! Rounds of offers: who is asked, what the runtime offers, who wins.
//!
//! A plan is made in memory from locked rows and the roster, and written by set-based
//! statements in the same transaction. When every eligible agent leaves its offers to
//! the runtime, announcement, offers and award are one commit; else the round stays
//! open until all have answered, the window closes, or nothing more comes for a while.
use super::machine::{Event, Facts};
use super::roster::{Member, Roster};
use super::score::{Offer, Score, rank};
use super::store::{Settled, StoredOffer, Winner, millis};
use super::{AgentId, AssignmentId, Award, Policy, Shared, TaskId, TaskState};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How long an agent that works from outside has to accept.
const CONFIRM_REMOTE: Duration = Duration::from_secs(5);
/// Agents without an offer that are named for one reason.
const SILENT_MAX: usize = 20;

/// A task whose round begins or ends, as it was locked.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: TaskId,
    pub(super) org: String,
    pub(super) kind: String,
    pub(super) requires: Vec<String>,
    pub(super) round: i32,
    pub(super) rounds_empty: i32,
    pub(super) facts: Facts,
    pub(super) policy: Value,
    pub(super) requester: String,
    pub(super) tried: Vec<String>,
    /// Who is asked first: it was answered, or its result was rejected.
    pub(super) prefer: Option<String>,
}

/// A round that waits for agents to speak for themselves.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    pub(super) task: TaskId,
    pub(super) round: i32,
    pub(super) window_ms: i64,
    pub(super) eligible: Vec<AgentId>,
    /// Who could do it and is not asked, by reason.
    pub(super) silent: Value,
}

/// A round without an offer.
#[derive(Clone, Debug)]
pub(super) struct Empty {
    pub(super) task: TaskId,
    pub(super) round: i32,
    pub(super) backoff_ms: i64,
    pub(super) reasons: Value,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) winners: Vec<Winner>,
    pub(super) offers: Vec<StoredOffer>,
    pub(super) announced: Vec<Announced>,
    pub(super) empty: Vec<Empty>,
    pub(super) settled: Vec<Settled>,
    /// Tasks that go back to wait for a free slot.
    pub(super) ready: Vec<TaskId>,
}

impl Plan {
    /// Begins a round for each of these tasks, in their order.
    pub(super) fn open_all(shared: &Shared, tasks: &[Candidate]) -> Self {
        let mut plan = Self::default();
        let mut roster = shared.roster.lock();
        for task in tasks {
            plan.open(shared, &mut roster, task);
        }
        plan
    }

    /// Begins a round for a task that is ready.
    fn open(&mut self, shared: &Shared, roster: &mut Roster, task: &Candidate) {
        let policy = match shared.policy(&task.kind, &task.policy) {
            Ok(policy) => policy,
            Err(reason) => return self.unworkable(task, &reason),
        };
        let able = roster.eligible(&task.org, &task.requires);
        let eligible = asked(&policy, able.clone(), &task.tried);
        let round = task.round + 1;
        if eligible.is_empty() {
            let reason = match &policy.agent {
                Some(agent) => format!("agent {agent}, which the policy names, is not here or cannot do it"),
                None => format!("no agent of the org {} that is present has the capabilities", task.org),
            };
            return self.none(task, round, &policy, json!(reason));
        }
        let computed: Vec<Offer> = eligible.iter().filter_map(|id| roster.offer(id, &task.kind)).collect();
        // The one that goes on is asked alone while it has a free slot; it may refuse like any other.
        if let Some(offer) = first_asked(roster, task) {
            return self.award(roster, task, round, &policy, vec![offer], false);
        }
        let now = Instant::now();
        let speaks = |roster: &mut Roster, id: &&AgentId| {
            roster.members.get(*id).is_some_and(Member::is_asked) && roster.may_bid(id, now)
        };
        let speakers: Vec<AgentId> = eligible.iter().filter(|id| speaks(roster, id)).cloned().collect();
        let chooses = policy.award == Award::Requester && !computed.is_empty();
        let good = policy.award != Award::Requester
            && policy.good_enough.is_some_and(|enough| {
                computed.iter().any(|it| enough.is_met_by(it.cost_microdollars, it.eta_ms, it.confidence))
            });
        if good || (speakers.is_empty() && !chooses) {
            if !computed.is_empty() {
                self.award(roster, task, round, &policy, computed, false);
            }
            // Else all are busy: the task stays ready, and a slot that becomes free brings the next look.
            return;
        }
        let offered = |id: &AgentId| computed.iter().any(|offer| offer.agent == *id);
        let part: Vec<AgentId> =
            eligible.into_iter().filter(|id| speakers.contains(id) || offered(id)).collect();
        let valid_ms = validity_ms(&policy);
        let window_ms = window_ms(&policy, &task.policy, roster, &speakers);
        // Thinking costs: who thinks is asked about no more tasks at once than it may offer on.
        let until = now + Duration::from_millis(u64::try_from(window_ms).unwrap_or(0));
        for id in &speakers {
            if roster.members.get(id).is_some_and(|member| member.terms.thinks.is_some()) {
                roster.bid(id, task.id, until);
            }
        }
        self.offers
            .extend(computed.iter().map(|offer| stored(task.id, round, offer, "open", valid_ms, None)));
        self.announced.push(Announced {
            task: task.id,
            round,
            window_ms,
            silent: silent(&able, &part, &policy, &task.tried),
            eligible: part,
        });
    }

    /// Ends a round with the offers that stand, of those who can still take it.
    pub(super) fn close(
        &mut self,
        shared: &Shared,
        roster: &mut Roster,
        task: &Candidate,
        standing: Vec<Offer>,
    ) {
        roster.round_over(task.id);
        let policy = match shared.policy(&task.kind, &task.policy) {
            Ok(policy) => policy,
            Err(reason) => return self.unworkable(task, &reason),
        };
        if standing.is_empty() {
            let reason = json!("every offer was refused, withdrawn or expired, or there was none");
            return self.none(task, task.round, &policy, reason);
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
            self.award(roster, task, task.round, &policy, able, true);
        }
    }

    fn award(
        &mut self,
        roster: &mut Roster,
        task: &Candidate,
        round: i32,
        policy: &Policy,
        offers: Vec<Offer>,
        standing: bool,
    ) {
        let ranked = rank(policy, offers);
        let Some((winner, _)) = ranked.first() else { return };
        let agent = winner.agent.clone();
        let valid_ms = validity_ms(policy);
        let part: Vec<AgentId> = ranked.iter().map(|(offer, _)| offer.agent.clone()).collect();
        let able = roster.eligible(&task.org, &task.requires);
        for (at, (offer, score)) in ranked.iter().enumerate() {
            let state = if at == 0 && !standing { "awarded" } else { "open" };
            self.offers.push(stored(task.id, round, offer, state, valid_ms, Some(score)));
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
            told: json!({
                "award": policy.award,
                "offers": ranked.iter().map(|(offer, score)| vector(offer, score)).collect::<Vec<_>>(),
                // Of a round that was announced, the announcement has said it.
                "silent": if standing { json!({}) } else { silent(&able, &part, policy, &task.tried) },
            }),
        });
        roster.took(&agent);
    }

    fn none(&mut self, task: &Candidate, round: i32, policy: &Policy, reasons: Value) {
        let rounds = u32::try_from(task.rounds_empty + 1).unwrap_or(u32::MAX);
        if rounds >= policy.rounds_max {
            let error = json!({ "message": "no agent made an offer", "reasons": reasons });
            return self.end(task, Event::RoundsExhausted, error);
        }
        // The policy's back-off · 2^round, at most a minute unless it is longer itself; the statement varies it
        // by a fifth.
        let first = millis(policy.backoff);
        let backoff_ms = first.saturating_mul(1 << (rounds.clamp(1, 7) - 1)).min(first.max(60_000));
        self.empty.push(Empty { task: task.id, round, backoff_ms, reasons });
    }

    fn unworkable(&mut self, task: &Candidate, reason: &str) {
        self.end(task, Event::Unworkable, json!({ "message": reason }));
    }

    fn end(&mut self, task: &Candidate, event: Event, error: Value) {
        let Ok(step) = task.facts.next(event) else { return };
        self.settled.push(Settled {
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
            event: if event == Event::Unworkable { "unworkable" } else { "unallocatable" },
            body: json!({ "state": step.state, "error": error }),
            checkpoint: None,
            more: None,
        });
    }
}

/// What is written for the agent that is asked before all others, if it can take the task now.
fn first_asked(roster: &Roster, task: &Candidate) -> Option<Offer> {
    let agent = AgentId::try_from(task.prefer.as_deref()?).ok()?;
    roster.members.get(&agent).filter(|member| member.can(&task.org, &task.requires))?;
    roster.fallback(&agent, &task.kind)
}

/// How long a winner has to accept. One that works from outside gets [`CONFIRM_REMOTE`] at the least, unless
/// the request says otherwise.
fn confirm(policy: &Policy, patch: &Value, winner: Option<&Member>) -> Duration {
    let remote = winner.is_some_and(|member| !member.terms.computed);
    if remote && patch.get("confirm").is_none() { policy.confirm.max(CONFIRM_REMOTE) } else { policy.confirm }
}

/// How long a round is open: agents that think get their time, unless the request says otherwise; a requester
/// that chooses has its own.
fn window_ms(policy: &Policy, patch: &Value, roster: &Roster, speakers: &[AgentId]) -> i64 {
    if policy.award == Award::Requester {
        return millis(policy.choose_within);
    }
    let thinks = speakers.iter().filter_map(|id| roster.members.get(id)?.terms.thinks).max();
    let thinks = thinks.filter(|_| patch.get("bid_window").is_none()).unwrap_or_default();
    millis(policy.bid_window.max(thinks))
}

/// How long an offer can be awarded: at least as long as its requester may take over choosing.
pub(super) fn validity_ms(policy: &Policy) -> i64 {
    let chooses = policy.award == Award::Requester;
    let least = if chooses { policy.choose_within * 2 } else { Duration::ZERO };
    millis(policy.offer_validity.max(least))
}

/// Who may offer: the agent that the policy names, or those who have not tried yet.
pub(super) fn asked(policy: &Policy, mut able: Vec<AgentId>, tried: &[String]) -> Vec<AgentId> {
    match &policy.agent {
        Some(named) => {
            able.retain(|id| id == named);
            able
        }
        None => untried(able, tried),
    }
}

/// Who could do it and makes no offer, by reason.
fn silent(able: &[AgentId], part: &[AgentId], policy: &Policy, tried: &[String]) -> Value {
    let mut reasons: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for id in able.iter().filter(|id| !part.contains(id)) {
        let reason = match &policy.agent {
            Some(named) if named != id => "the policy names another agent",
            _ if tried.iter().any(|name| name == id.as_str()) => "tried it before",
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

/// Those who have not tried yet; all of them when everyone has.
pub(super) fn untried(eligible: Vec<AgentId>, tried: &[String]) -> Vec<AgentId> {
    let fresh: Vec<AgentId> =
        eligible.iter().filter(|id| !tried.iter().any(|name| name == id.as_str())).cloned().collect();
    if fresh.is_empty() { eligible } else { fresh }
}

fn stored(
    task: TaskId,
    round: i32,
    offer: &Offer,
    state: &'static str,
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

/// An offer with its score, for the log: what `why` explains even when the offers are gone.
fn vector(offer: &Offer, score: &Score) -> Value {
    json!({
        "agent_id": offer.agent,
        "cost_microdollars": offer.cost_microdollars,
        "eta_ms": offer.eta_ms,
        "confidence": super::plain(offer.confidence),
        "score": score,
    })
}

impl Candidate {
    /// Facts of an open task.
    pub(super) fn open_facts(attempt: i32) -> Facts {
        Facts { state: TaskState::Open, attempt, attempts_max: i32::MAX }
    }
}
