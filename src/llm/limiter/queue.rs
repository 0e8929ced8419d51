//! Requests that wait for an account, fair between agents.
use super::Prefix;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Waiting time that raises a request by one priority, so that no priority starves another.
const AGEING: Duration = Duration::from_secs(30);

/// The number of a request, in the order of arrival.
pub(in crate::llm) type Ticket = u64;

/// A request that wants to enter.
#[derive(Clone, Debug)]
pub(in crate::llm) struct Entry {
    /// The agent with its org; agents get equal shares of the tokens.
    pub(in crate::llm) agent: Arc<str>,
    /// Priority of the task; higher goes first.
    pub(in crate::llm) priority: i32,
    /// Estimated tokens of the prompt and the answer.
    pub(in crate::llm) tokens: u64,
    /// Tokens that its run has used so far: of one agent, the run that has used most goes first.
    pub(in crate::llm) spent: u64,
    /// What it has in common with other requests at its beginning; `None` if that is too short for a cache.
    pub(in crate::llm) prefix: Option<Prefix>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// A refused request goes before those that were never sent.
    is_new: bool,
    priority_descending: i64,
    spent_descending: std::cmp::Reverse<u64>,
    ticket: Ticket,
}

#[derive(Debug)]
struct Agent {
    waiting: BTreeSet<Rank>,
    since: Instant,
    /// Tokens of its waiting requests.
    tokens: u64,
    /// Tokens of its requests that entered, counted from those of the least served agent when it came.
    served: u64,
}

/// The queue of one account.
#[derive(Debug, Default)]
pub(in crate::llm) struct Queue {
    agents: HashMap<Arc<str>, Agent>,
    entries: HashMap<Ticket, (Entry, bool)>,
}

impl Queue {
    /// The number of waiting requests.
    pub(in crate::llm) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The request behind a ticket; `None` if it does not wait.
    pub(in crate::llm) fn get(&self, ticket: Ticket) -> Option<&Entry> {
        self.entries.get(&ticket).map(|(entry, _)| entry)
    }

    /// Adds a request; `is_new` is false for one that the endpoint refused.
    pub(in crate::llm) fn add(&mut self, now: Instant, ticket: Ticket, entry: Entry, is_new: bool) {
        // An agent that comes back starts level with the others: an idle time is not saved up.
        let least = self.agents.values().map(|agent| agent.served).min().unwrap_or(0);
        let fresh = || Agent { waiting: BTreeSet::new(), since: now, tokens: 0, served: least };
        let agent = self.agents.entry(entry.agent.clone()).or_insert_with(fresh);
        agent.waiting.insert(rank(ticket, &entry, is_new));
        agent.tokens = agent.tokens.saturating_add(entry.tokens);
        self.entries.insert(ticket, (entry, is_new));
    }

    /// Removes a request that enters.
    pub(in crate::llm) fn serve(&mut self, now: Instant, ticket: Ticket) -> Option<Entry> {
        let entry = self.remove(ticket)?;
        if let Some(agent) = self.agents.get_mut(&entry.agent) {
            agent.served = agent.served.saturating_add(entry.tokens.max(1));
            // Ageing counts from the last service, or an agent with many old requests would pass all others.
            agent.since = now;
        }
        Some(entry)
    }

    /// Removes a request without serving it. `None` if it does not wait.
    pub(in crate::llm) fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        let (entry, is_new) = self.entries.remove(&ticket)?;
        if let Some(agent) = self.agents.get_mut(&entry.agent) {
            agent.waiting.remove(&rank(ticket, &entry, is_new));
            agent.tokens = agent.tokens.saturating_sub(entry.tokens);
            if agent.waiting.is_empty() {
                self.agents.remove(&entry.agent);
            }
        }
        Some(entry)
    }

    /// The next request to enter; `None` if there is none. Only agents for which `may` is true count, and of their requests
    /// only those for which `passes` is true.
    ///
    /// The highest class goes first, a class being a priority raised by the waiting time. Of one class, the agent that
    /// was served least goes first, then the one that has waited longest.
    pub(in crate::llm) fn next(
        &self,
        now: Instant,
        may: impl Fn(&str) -> bool,
        passes: impl Fn(&Entry) -> bool,
    ) -> Option<Ticket> {
        let class = |agent: &Agent, rank: &Rank| {
            let waited = now.saturating_duration_since(agent.since).as_secs() / AGEING.as_secs();
            -rank.priority_descending + i64::try_from(waited).unwrap_or(i64::MAX / 2)
        };
        self.agents
            .iter()
            .filter(|(name, _)| may(name))
            .filter_map(|(_, agent)| {
                let first = agent.waiting.iter().find(|rank| self.get(rank.ticket).is_some_and(&passes))?;
                Some((std::cmp::Reverse(class(agent, first)), agent.served, agent.since, first.ticket))
            })
            .min()
            .map(|(_, _, _, ticket)| ticket)
    }

    /// About how many requests and tokens enter before one more request of this agent, at equal priorities: agents take
    /// turns, so of each other agent as many as this one has, and one more.
    pub(in crate::llm) fn ahead_of(&self, agent: &str) -> (u64, u64) {
        let own = self.agents.get(agent).map_or(0, |agent| agent.waiting.len());
        self.agents.iter().fold((0, 0), |(requests, tokens), (name, other)| {
            let all = other.waiting.len() as u64;
            let entering = if **name == *agent { all } else { all.min(own as u64 + 1) };
            (requests + entering, tokens + other.tokens.saturating_mul(entering) / all.max(1))
        })
    }

    /// Whether an agent other than this one waits.
    pub(in crate::llm) fn others_wait(&self, agent: &str) -> bool {
        self.agents.len() > usize::from(self.agents.contains_key(agent))
    }
}

fn rank(ticket: Ticket, entry: &Entry, is_new: bool) -> Rank {
    Rank {
        is_new,
        priority_descending: -i64::from(entry.priority),
        spent_descending: std::cmp::Reverse(entry.spent),
        ticket,
    }
}
