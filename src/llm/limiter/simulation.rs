//! Simulations of many agents on one account, at endpoints that limit in different ways. No real time passes.
use super::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{cmp::Reverse, collections::BinaryHeap};

const REQUESTS_PER_MINUTE: f64 = 60.0;
const TOKENS_PER_MINUTE: f64 = 30_000.0;
const MINUTE: Duration = Duration::from_secs(60);
const AGENTS: usize = 200;
const MINUTES: u32 = 40;

/// How an endpoint limits, and what it says about it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Refilled continuously, with headers, like OpenAI.
    RefilledWithHeaders,
    /// Fixed windows of a minute, with headers.
    WindowsWithHeaders,
    /// Fixed windows of a minute, with `Retry-After` on 429.
    WindowsWithRetryAfter,
    /// Fixed windows of a minute, and nothing but 429.
    WindowsAlone,
}

struct Endpoint {
    kind: Kind,
    requests: f64,
    tokens: f64,
    refilled_at: Instant,
    accepted: u32,
}

/// An answer of the endpoint.
struct Answer {
    is_accepted: bool,
    retry_after: Option<Duration>,
    ended: Ended,
}

impl Endpoint {
    fn new(kind: Kind, now: Instant) -> Self {
        Self { kind, requests: REQUESTS_PER_MINUTE, tokens: TOKENS_PER_MINUTE, refilled_at: now, accepted: 0 }
    }

    fn refill(&mut self, now: Instant) {
        if self.kind == Kind::RefilledWithHeaders {
            let minutes = (now - self.refilled_at).as_secs_f64() / 60.0;
            self.refilled_at = now;
            self.requests = (self.requests + minutes * REQUESTS_PER_MINUTE).min(REQUESTS_PER_MINUTE);
            self.tokens = (self.tokens + minutes * TOKENS_PER_MINUTE).min(TOKENS_PER_MINUTE);
        }
        while self.kind != Kind::RefilledWithHeaders && now >= self.refilled_at + MINUTE {
            self.refilled_at += MINUTE;
            (self.requests, self.tokens) = (REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE);
        }
    }

    fn ask(&mut self, now: Instant, tokens: f64) -> Answer {
        self.refill(now);
        let is_accepted = self.requests >= 1.0 && self.tokens >= tokens;
        if is_accepted {
            self.requests -= 1.0;
            self.tokens -= tokens;
            self.accepted += 1;
        }
        let window = self.refilled_at + MINUTE - now;
        let report = |limit: f64, left: f64| {
            let reset = match self.kind {
                Kind::RefilledWithHeaders => Some(Duration::from_secs_f64((limit - left) * 60.0 / limit)),
                Kind::WindowsWithHeaders => Some(window),
                _ => return None,
            };
            Some(Reported { limit: Some(limit), remaining: left.floor(), reset })
        };
        let retry_after = match self.kind {
            Kind::RefilledWithHeaders => Some(Duration::from_secs(1)),
            Kind::WindowsWithHeaders | Kind::WindowsWithRetryAfter => Some(window),
            Kind::WindowsAlone => None,
        };
        let ended = Ended {
            is_answered: is_accepted,
            tokens: is_accepted.then_some(tokens as u64),
            requests_reported: report(REQUESTS_PER_MINUTE, self.requests),
            tokens_reported: report(TOKENS_PER_MINUTE, self.tokens),
        };
        Answer { is_accepted, retry_after: retry_after.filter(|_| !is_accepted), ended }
    }
}

/// What came of a simulation.
#[derive(Debug)]
struct Totals {
    /// Accepted requests, as a part of what the endpoint would accept.
    used: f64,
    /// 429s after the first minute, as a part of the requests.
    refused: f64,
    /// Accepted requests of the agent with the fewest, as a part of the mean.
    slowest: f64,
    /// Longest wait of a request, in seconds.
    worst_wait: f64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Look,
    Ended(Ticket),
}

struct Request {
    agent: usize,
    tokens: f64,
    since: Instant,
    answer: Option<Answer>,
}

/// Agents that ask again as soon as they have an answer.
struct Simulation {
    random: StdRng,
    limiter: Limiter,
    endpoint: Endpoint,
    requests: HashMap<Ticket, Request>,
    events: BinaryHeap<Reverse<(Instant, Event)>>,
    accepted: Vec<u32>,
}

impl Simulation {
    fn ask(&mut self, now: Instant, agent: usize) {
        let tokens = self.random.random_range(200.0..600.0);
        // The estimate is higher than what is used, like the limit of an answer.
        let estimate = (tokens * 1.2) as u64;
        let agent_name = format!("acme/{agent}").into();
        let entry = Entry { agent: agent_name, priority: 0, tokens: estimate, spent: 0, prefix: None };
        let ticket = self.limiter.enqueue(now, entry, now + MINUTE * 1_000).unwrap();
        self.requests.insert(ticket, Request { agent, tokens, since: now, answer: None });
    }

    fn run(kind: Kind, limits: Limits, seed: u64) -> Totals {
        let start = Instant::now();
        let mut simulation = Self {
            random: StdRng::seed_from_u64(seed),
            limiter: Limiter::new(start, limits),
            endpoint: Endpoint::new(kind, start),
            requests: HashMap::new(),
            events: BinaryHeap::from([Reverse((start, Event::Look))]),
            accepted: vec![0; AGENTS],
        };
        (0..AGENTS).for_each(|agent| simulation.ask(start, agent));
        let mut totals = Totals { used: 0.0, refused: 0.0, slowest: 0.0, worst_wait: 0.0 };
        let (mut sent, mut refused) = (0_u32, 0_u32);
        let mut next_look = Some(start);
        while let Some(Reverse((now, event))) = simulation.events.pop() {
            if now > start + MINUTE * MINUTES {
                break;
            }
            match event {
                // A look that another one replaced.
                Event::Look if next_look != Some(now) => continue,
                Event::Look => next_look = None,
                Event::Ended(ticket) => simulation.ended(now, ticket),
            }
            while let Some(ticket) = simulation.limiter.admit(now) {
                let request = simulation.requests.get_mut(&ticket).unwrap();
                totals.worst_wait = totals.worst_wait.max((now - request.since).as_secs_f64());
                let answer = simulation.endpoint.ask(now, request.tokens);
                if now > start + MINUTE {
                    sent += 1;
                    refused += u32::from(!answer.is_accepted);
                }
                let latency = if answer.is_accepted { simulation.random.random_range(1.0..4.0) } else { 0.1 };
                request.answer = Some(answer);
                let at = now + Duration::from_secs_f64(latency);
                simulation.events.push(Reverse((at, Event::Ended(ticket))));
            }
            if let Some(first) = simulation.limiter.candidate(now) {
                let at = now + simulation.limiter.wait(now, first).unwrap().max(Duration::from_millis(1));
                if next_look.is_none_or(|next| at < next) {
                    next_look = Some(at);
                    simulation.events.push(Reverse((at, Event::Look)));
                }
            }
        }
        let accepted = f64::from(simulation.endpoint.accepted);
        // The requests are the tighter limit: 60 of 400 tokens on average are 24,000 of 30,000 tokens.
        totals.used = accepted / (REQUESTS_PER_MINUTE * f64::from(MINUTES));
        totals.refused = f64::from(refused) / f64::from(sent);
        totals.slowest = f64::from(*simulation.accepted.iter().min().unwrap()) * AGENTS as f64 / accepted;
        totals
    }

    fn ended(&mut self, now: Instant, ticket: Ticket) {
        let request = self.requests.get_mut(&ticket).unwrap();
        let (agent, answer) = (request.agent, request.answer.take().unwrap());
        if answer.is_accepted {
            self.requests.remove(&ticket);
            self.accepted[agent] += 1;
            self.limiter.ended(now, ticket, &answer.ended);
            self.ask(now, agent);
        } else {
            let jitter = self.random.random();
            self.limiter.rate_limited(now, ticket, answer.retry_after, &answer.ended, jitter);
        }
    }
}

/// The bounds of `docs/spec/thinking-agents.md` §5, for 200 agents at 60 requests and 30,000 tokens a minute.
#[test]
fn agents_share_an_account_without_storms_of_429() {
    let declared =
        Limits { requests_per_minute: Some(60), tokens_per_minute: Some(30_000), concurrent: None };
    let learned = Limits::default();
    for (kind, limits) in [
        (Kind::RefilledWithHeaders, learned),
        (Kind::WindowsWithHeaders, learned),
        (Kind::WindowsWithRetryAfter, learned),
        (Kind::WindowsAlone, learned),
        (Kind::WindowsAlone, declared),
    ] {
        let totals = Simulation::run(kind, limits, 7);
        let told = format!("{kind:?} {limits:?}: {totals:?}");
        assert!(totals.used >= 0.95, "most of the limit is used: {told}");
        assert!(totals.refused <= 0.01, "at most one request in a hundred gets a 429: {told}");
        assert!(totals.slowest >= 0.8, "no agent gets much less than the others: {told}");
        // Each agent's share is a request in 200 seconds.
        assert!(totals.worst_wait <= 600.0, "no request waits for three times its share: {told}");
    }
}
