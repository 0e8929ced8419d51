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
use super::{AgentId, AssignmentId, Policy, Shared, TaskId, TaskState};
use rand::RngExt as _;
use serde_json::{Value, json};
use std::time::Duration;

/// How long an agent that works from outside has to accept.
const CONFIRM_REMOTE: Duration = Duration::from_secs(5);

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
    pub(super) tried: Vec<String>,
}

/// A round that waits for agents to speak for themselves.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    pub(super) task: TaskId,
    pub(super) round: i32,
    pub(super) window_ms: i64,
    pub(super) eligible: Vec<AgentId>,
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
        let policy = match shared.policy(&task.policy) {
            Ok(policy) => policy,
            Err(reason) => return self.unworkable(task, &reason),
        };
        let eligible = untried(roster.eligible(&task.org, &task.requires), &task.tried);
        let round = task.round + 1;
        if eligible.is_empty() {
            return self.none(task, round, &policy, json!("no agent that is present has the capabilities"));
        }
        let computed: Vec<Offer> = eligible.iter().filter_map(|id| roster.offer(id, &task.kind)).collect();
        let asks = |id: &&AgentId| roster.members.get(*id).is_some_and(Member::is_asked);
        if eligible.iter().any(|id| asks(&id)) {
            let offered = |id: &AgentId| computed.iter().any(|offer| offer.agent == *id);
            let eligible = eligible.iter().filter(|id| asks(id) || offered(id)).cloned().collect();
            let valid_ms = millis(policy.offer_validity);
            self.offers
                .extend(computed.iter().map(|offer| stored(task.id, round, offer, "open", valid_ms, None)));
            let window_ms = millis(policy.bid_window);
            self.announced.push(Announced { task: task.id, round, window_ms, eligible });
        } else if !computed.is_empty() {
            self.award(roster, task, round, &policy, computed, false);
        }
        // Else all are busy: the task stays ready, and a slot that becomes free brings the next look.
    }

    /// Ends a round with the offers that stand, of those who can still take it.
    pub(super) fn close(
        &mut self,
        shared: &Shared,
        roster: &mut Roster,
        task: &Candidate,
        standing: Vec<Offer>,
    ) {
        let policy = match shared.policy(&task.policy) {
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
                offer.free = i64::from(member.free()) * 1_000_000 / i64::from(member.slots.max(1));
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
        let ranked = rank(policy.award, offers);
        let Some((winner, _)) = ranked.first() else { return };
        let (agent, incarnation) = (winner.agent.clone(), winner.incarnation);
        let valid_ms = millis(policy.offer_validity);
        for (at, (offer, score)) in ranked.iter().enumerate() {
            let state = if at == 0 && !standing { "awarded" } else { "open" };
            self.offers.push(stored(task.id, round, offer, state, valid_ms, Some(score)));
        }
        self.winners.push(Winner {
            task: task.id,
            round,
            agent: agent.clone(),
            incarnation,
            assignment: AssignmentId::generate(),
            confirm_ms: millis(confirm(policy, &task.policy, roster.members.get(&agent))),
            offers: ranked.iter().map(|(offer, score)| vector(offer, score)).collect(),
        });
        roster.took(&agent);
    }

    fn none(&mut self, task: &Candidate, round: i32, policy: &Policy, reasons: Value) {
        let rounds = u32::try_from(task.rounds_empty + 1).unwrap_or(u32::MAX);
        if rounds >= policy.rounds_max {
            return self.end(task, Event::RoundsExhausted, json!({ "message": "no agent made an offer" }));
        }
        // 1 s · 2^round, at most 60 s, plus or minus a fifth so that many do not come back together.
        let base = (1_000_i64 << (rounds.clamp(1, 7) - 1)).min(60_000);
        let backoff_ms = base * rand::rng().random_range(80..=120) / 100;
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
            tokens: 0,
            microdollars: 0,
            event: if event == Event::Unworkable { "unworkable" } else { "unallocatable" },
            body: json!({ "state": step.state, "error": error }),
            checkpoint: None,
        });
    }
}

/// How long a winner has to accept. One that works from outside gets [`CONFIRM_REMOTE`] at the least, unless
/// the request says otherwise.
fn confirm(policy: &Policy, patch: &Value, winner: Option<&Member>) -> Duration {
    let remote = winner.is_some_and(|member| !member.terms.computed);
    if remote && patch.get("confirm").is_none() { policy.confirm.max(CONFIRM_REMOTE) } else { policy.confirm }
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
