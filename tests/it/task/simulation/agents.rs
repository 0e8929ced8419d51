//! Simulated agents that offer, accept, work, die, report falsely and report late, by their probabilities.
use super::Simulation;
use crate::task::{profile, request};
use convoke::{
    id::{AgentId, TaskId},
    task::{
        Assigned, AssignmentKey, Error, Failure, NewOffer, Notice, Profile, Progress, TaskState, Tasks, Usage,
    },
};
use futures_util::future::join_all;
use rand::{RngExt, seq::IndexedRandom};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Offers that agents think about at the same time.
const BIDS_MAX: usize = 30;

/// How an agent behaves; chances in percent.
#[derive(Clone, Copy, Debug)]
struct Character {
    accepts: i64,
    refuses: i64,
    finishes: i64,
    fails: i64,
    releases: i64,
    dies: i64,
}

const CHARACTERS: [(&str, Character); 6] = [
    ("honest", Character { accepts: 98, refuses: 0, finishes: 70, fails: 2, releases: 1, dies: 0 }),
    ("slow", Character { accepts: 70, refuses: 5, finishes: 10, fails: 2, releases: 2, dies: 0 }),
    ("liar", Character { accepts: 95, refuses: 0, finishes: 20, fails: 50, releases: 5, dies: 0 }),
    ("refuser", Character { accepts: 20, refuses: 70, finishes: 50, fails: 5, releases: 5, dies: 0 }),
    ("silent", Character { accepts: 15, refuses: 0, finishes: 8, fails: 0, releases: 0, dies: 0 }),
    ("mortal", Character { accepts: 90, refuses: 0, finishes: 40, fails: 5, releases: 2, dies: 25 }),
];

/// An assignment as its agent knows it, however late.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) key: AssignmentKey,
    agent: AgentId,
    started: bool,
}

/// How an agent ends its work.
#[derive(Clone, Copy, Debug)]
enum End {
    Finish,
    Fail {
        retryable: bool,
    },
    Release,
    Die,
    /// It needs an answer.
    Ask,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Finish => "finished",
            Self::Fail { .. } => "failed",
            Self::Release => "released",
            Self::Die => "died",
            Self::Ask => "asked a person",
        }
    }

    async fn report(self, tasks: &Tasks, held: &Held) -> Result<TaskState, Error> {
        let (key, agent) = (held.key, &held.agent);
        let usage = Usage { tokens: 10, microdollars: 5, presumed: false };
        let update = match self {
            Self::Finish => tasks.finish(key, agent, result_of(held), usage).await?,
            Self::Fail { retryable } => {
                tasks
                    .fail(key, agent, Failure { message: "chance".into(), retryable, outage: false, usage })
                    .await?
            }
            Self::Release => tasks.release(key, agent, "chance", Some(json!({ "was": key.epoch }))).await?,
            Self::Die => tasks.lost(key, agent).await?,
            Self::Ask => {
                let question = serde_json::from_value(json!({ "question": "May I?" })).unwrap();
                tasks.ask(key, agent, question).await?
            }
        };
        Ok(update.state)
    }
}

fn result_of(held: &Held) -> Value {
    json!({ "by": held.agent, "epoch": held.key.epoch })
}

async fn report(tasks: &Tasks, held: &Held, progress: bool) -> Result<(), Error> {
    if progress {
        let progress = Progress { progress: Some(0.5), activity: None, checkpoint: None };
        tasks.progress(held.key, &held.agent, progress).await
    } else {
        tasks.heartbeat(held.key, &held.agent).await
    }
}

pub(super) fn profiles() -> Vec<Profile> {
    let mut profiles = Vec::new();
    for (number, (name, _)) in CHARACTERS.iter().enumerate() {
        for twin in 0..4 {
            let mut profile = profile(&format!("{name}-{twin}"), 1 + (number as u32 + twin) % 4);
            // Some agents make their own offers.
            profile.terms.computed = twin != 3;
            profile.terms.cost_microdollars = 10 * (number as u64 + 1);
            if twin == 3 {
                profile.capabilities.push("rare".into());
            }
            profiles.push(profile);
        }
    }
    profiles
}

fn character(agent: &AgentId) -> Character {
    let name = agent.as_str().split('-').next().unwrap();
    CHARACTERS.iter().find(|(known, _)| *known == name).unwrap().1
}

impl Simulation {
    /// Agents receive notices: some are lost, some arrive twice.
    pub(super) fn hear(&mut self) {
        let mut notices = Vec::new();
        for node in &mut self.nodes {
            while let Ok(more) = node.heard.try_recv() {
                notices.extend(more);
            }
        }
        // The order of notices is not defined; sorted, the seed reproduces the history.
        let number: HashMap<TaskId, usize> =
            self.tasks.iter().enumerate().map(|(number, task)| (*task, number)).collect();
        notices.sort_by_key(|notice| match notice {
            Notice::Assigned(assigned) => (0, number[&assigned.key.task_id], assigned.key.epoch.0),
            Notice::Announced { task, round, .. } => (1, number[&task.id], i64::from(*round)),
            Notice::Cancel { key, .. } => (2, number[&key.task_id], key.epoch.0),
            Notice::Nudge { .. }
            | Notice::Updated(_)
            | Notice::Offered { .. }
            | Notice::Progressed { .. } => (3, 0, 0),
        });
        for notice in notices {
            for _ in 0..*[0, 1, 1, 1, 1, 1, 1, 2].choose(&mut self.rng).unwrap() {
                self.on_notice(&notice);
            }
        }
    }

    fn on_notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Assigned(Assigned { key, agent_id, .. }) => {
                self.count("heard of an award");
                self.held.push(Held { key: *key, agent: agent_id.clone(), started: false });
            }
            Notice::Announced { task, round, eligible, .. } => {
                let mut eligible = eligible.clone();
                eligible.sort();
                self.bids.extend(eligible.into_iter().map(|agent| (task.id, *round, agent)));
            }
            Notice::Cancel { key, .. } => {
                // Some stop, some ignore it.
                if self.chance(60)
                    && let Some(at) = self.held.iter().position(|held| held.key == *key)
                {
                    let held = self.held.remove(at);
                    self.ghosts.push(held);
                }
            }
            Notice::Nudge { .. }
            | Notice::Updated(_)
            | Notice::Offered { .. }
            | Notice::Progressed { .. } => {}
        }
    }

    pub(super) async fn bid(&mut self) {
        let mut now = Vec::new();
        // Each offer is a commit, so their number is limited.
        self.bids.truncate(BIDS_MAX);
        for bid in std::mem::take(&mut self.bids) {
            // Some answer in the next tick or never.
            match self.rng.random_range(0..10) {
                0..6 => now.push(bid),
                6..9 => self.bids.push(bid),
                _ => {}
            }
        }
        for (task, round, agent) in now {
            let tasks = self.any();
            let answer = if self.chance(15) {
                tasks.decline(task, &agent, round, "busy").await
            } else {
                let offer = NewOffer {
                    round: if self.chance(3) { round - 1 } else { round },
                    cost_microdollars: self.rng.random_range(0..100),
                    eta_ms: self.rng.random_range(1..10_000),
                    confidence: self.rng.random_range(0..=10) as f32 / 10.0,
                    note: None,
                };
                tasks.offer(task, &agent, offer).await
            };
            match answer {
                Ok(()) => self.count("offered"),
                Err(Error::Late) => self.count("offered late"),
                Err(Error::Overbid { .. }) => self.count("offered too much"),
                Err(Error::NotEligible(_) | Error::Conflict { .. }) => self.count("offer refused"),
                Err(error) => panic!("offer: {error}"),
            }
        }
    }

    /// Agents answer their awards.
    pub(super) async fn answer(&mut self) {
        let (mut accepts, mut refusals, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        let tasks = self.any();
        for held in std::mem::take(&mut self.held) {
            let nature = character(&held.agent);
            if held.started {
                waiting.push(held);
            } else if accepts.iter().any(|known: &Held| known.key.task_id == held.key.task_id) {
                // The award was heard twice.
                waiting.push(held);
            } else if self.chance(nature.accepts) {
                accepts.push(held);
            } else if self.chance(nature.refuses) {
                refusals.push(held);
            } else if self.chance(90) {
                waiting.push(held);
            } else {
                self.ghosts.push(held);
            }
        }
        self.held = waiting;
        let answers = join_all(accepts.iter().map(|held| tasks.accept(held.key, &held.agent))).await;
        for (held, answer) in accepts.into_iter().zip(answers) {
            match answer {
                Ok(_) => {
                    self.count("accepted");
                    if !self.held.iter().any(|other| other.key == held.key) {
                        self.held.push(Held { started: true, ..held });
                    }
                }
                Err(Error::Fenced | Error::Conflict { .. }) => {
                    self.count("accepted too late");
                    self.ghosts.push(held);
                }
                Err(error) => panic!("accept: {error}"),
            }
        }
        let answers = join_all(refusals.iter().map(|held| tasks.refuse(held.key, &held.agent, "no"))).await;
        for (held, answer) in refusals.into_iter().zip(answers) {
            match answer {
                Ok(()) => self.count("refused"),
                Err(Error::Fenced | Error::Conflict { .. }) => self.count("refused too late"),
                Err(error) => panic!("refuse: {error}"),
            }
            self.ghosts.push(held);
        }
    }

    /// Agents work, and end their work.
    pub(super) async fn work(&mut self) {
        let (mut ends, mut reports) = (Vec::new(), Vec::new());
        let tasks = self.any();
        for held in std::mem::take(&mut self.held) {
            if !held.started {
                self.held.push(held);
                continue;
            }
            let nature = character(&held.agent);
            let mut dice = self.rng.random_range(0..100);
            let mut falls = |chance| {
                let fell = (0..chance).contains(&dice);
                dice -= chance;
                fell
            };
            if falls(nature.finishes) {
                ends.push((held, End::Finish));
            } else if falls(nature.fails) {
                let retryable = self.chance(80);
                ends.push((held, End::Fail { retryable }));
            } else if falls(nature.releases) {
                ends.push((held, End::Release));
            } else if falls(nature.dies) {
                ends.push((held, End::Die));
            } else if self.chance(5) {
                ends.push((held, End::Ask));
            } else if self.chance(4) {
                self.part(&tasks, &held).await;
                self.held.push(held);
            } else if self.chance(80) {
                let progress = self.chance(50);
                reports.push((held, progress));
            } else if self.chance(95) {
                // Reports nothing.
                self.held.push(held);
            } else {
                // Has lost the assignment.
                self.ghosts.push(held);
            }
        }
        let answers = join_all(ends.iter().map(|(held, end)| end.report(&tasks, held))).await;
        for ((held, end), answer) in ends.into_iter().zip(answers) {
            self.ended(&held, end, answer);
            self.ghosts.push(held);
        }
        let answers = join_all(reports.iter().map(|(held, progress)| report(&tasks, held, *progress))).await;
        for ((held, _), answer) in reports.into_iter().zip(answers) {
            if self.alive(answer) { self.held.push(held) } else { self.ghosts.push(held) }
        }
        let surplus = self.ghosts.len().saturating_sub(2000);
        self.ghosts.drain(..surplus);
    }

    /// An agent requests a part of its task.
    async fn part(&mut self, tasks: &Tasks, held: &Held) {
        let mut request = request(json!({ "lease": "10s", "attempt": "60s", "progress": "15s" }));
        request.input = json!({ "number": self.tasks.len() });
        let org = self.org.clone();
        match tasks.request_part(&org, held.key, &held.agent, request).await {
            Ok(requested) => {
                self.tasks.push(requested.task.id);
                self.count("part requested");
            }
            Err(Error::Fenced | Error::BadRequest(_) | Error::ParentEnded { .. }) => {
                self.count("part refused")
            }
            Err(error) => panic!("part: {error}"),
        }
    }

    fn ended(&mut self, held: &Held, end: End, answer: Result<TaskState, Error>) {
        match answer {
            Ok(state) => {
                self.count(end.word());
                if matches!(end, End::Ask) {
                    self.asked.push(held.key.task_id);
                }
                if matches!(end, End::Finish) && state == TaskState::Completed {
                    let before = self.accepted.insert(held.key.task_id, (held.key, result_of(held)));
                    if let Some((key, _)) = before {
                        assert_eq!(key, held.key, "two results were accepted");
                    }
                }
            }
            Err(Error::Fenced | Error::Conflict { .. }) => self.count("ended too late"),
            Err(error) => panic!("{}: {error}", end.word()),
        }
    }

    fn alive(&mut self, answer: Result<(), Error>) -> bool {
        match answer {
            Ok(()) => self.count("alive"),
            Err(Error::Fenced) => self.count("alive too late"),
            Err(error) => panic!("alive: {error}"),
        }
        answer.is_ok()
    }

    /// Agents whose assignments are over report again.
    pub(super) async fn haunt(&mut self) {
        for _ in 0..self.rng.random_range(0..8) {
            let Some(ghost) = self.ghosts.choose(&mut self.rng).cloned() else { return };
            let tasks = self.any();
            match self.rng.random_range(0..3) {
                0 => {
                    let answer = End::Finish.report(&tasks, &ghost).await;
                    self.ended(&ghost, End::Finish, answer);
                }
                1 => {
                    let answer = tasks.heartbeat(ghost.key, &ghost.agent).await;
                    self.alive(answer);
                }
                _ => match tasks.accept(ghost.key, &ghost.agent).await {
                    Ok(_) => {
                        // The assignment was still live.
                        self.count("accepted");
                        self.held.push(Held { started: true, ..ghost });
                    }
                    Err(Error::Fenced | Error::Conflict { .. }) => self.count("accepted too late"),
                    Err(error) => panic!("accept: {error}"),
                },
            }
        }
    }
}
