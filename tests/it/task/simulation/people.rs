//! People that request, cancel, answer and try again.
use super::Simulation;
use crate::task::request;
use chrono::TimeDelta;
use convoke::{
    id::TaskId,
    task::{Error, TaskState},
};
use futures_util::future::join_all;
use rand::{RngExt, seq::IndexedRandom};
use serde_json::json;

/// Commands that one tick gives at once, in each lane.
const WIDTH: usize = 40;
/// Tasks that are not final at the same time.
const OPEN_MAX: usize = 400;

impl Simulation {
    pub(super) async fn request(&mut self) {
        let open = self.tasks.len() - self.finals.len();
        let room = OPEN_MAX.saturating_sub(open).min(WIDTH);
        let tasks = self.any();
        let mut wanted = Vec::new();
        for _ in 0..self.rng.random_range(0..=room) {
            let award = ["first", "cheapest", "fastest", "least_loaded", "weighted", "calibrated"]
                .choose(&mut self.rng)
                .unwrap();
            let mut request = request(json!({
                "award": award,
                "attempts_max": self.rng.random_range(1..4),
                "bid_window": "250ms",
                "lease": "10s",
                "attempt": "60s",
                "progress": "15s",
            }));
            request.kind = format!("kind-{}", self.rng.random_range(0..4));
            request.priority = self.rng.random_range(-2..3);
            request.input = json!({ "number": self.tasks.len() + wanted.len() });
            if self.chance(10) {
                request.requires.push("rare".into());
            }
            if self.chance(1) {
                request.requires.push("unheard-of".into());
            }
            // Clients' clocks are wrong by seconds.
            let skew = TimeDelta::milliseconds(self.rng.random_range(-5_000..5_000));
            if self.chance(10) {
                request.deadline = Some(self.now + skew + TimeDelta::seconds(self.rng.random_range(1..300)));
            }
            if self.chance(10) {
                request.run_at = Some(self.now + skew + TimeDelta::seconds(self.rng.random_range(0..60)));
            }
            if self.chance(10) {
                let among: Vec<TaskId> = self.tasks.iter().rev().take(100).copied().collect();
                request.depends_on = among.sample(&mut self.rng, 2).copied().collect();
            }
            if self.chance(10) {
                request.parent_id = self
                    .tasks
                    .iter()
                    .rev()
                    .take(100)
                    .copied()
                    .collect::<Vec<_>>()
                    .choose(&mut self.rng)
                    .copied();
                request.detached = self.chance(30);
            }
            if self.chance(10) {
                // What the agents deliver does not satisfy it until the second epoch.
                let schema = json!({ "properties": { "epoch": { "minimum": 2 } } });
                request.policy.insert("result_schema".into(), schema);
            }
            if self.chance(20) {
                request.idempotency_key = Some(format!("key-{}", self.rng.random_range(0..500)));
            }
            wanted.push(request);
        }
        let org = self.org.clone();
        let answers = join_all(wanted.into_iter().map(|request| tasks.request(&org, "sim", request)));
        for answer in answers.await {
            match answer {
                Ok(requested) if !requested.replayed => {
                    self.tasks.push(requested.task.id);
                    self.count("requested");
                }
                Ok(_) => self.count("request replayed"),
                Err(Error::IdempotencyConflict(_)) => self.count("request conflicts"),
                Err(Error::BadRequest(_) | Error::ParentEnded { .. }) => self.count("request refused"),
                Err(error) => panic!("request: {error}"),
            }
        }
    }

    pub(super) async fn cancel(&mut self) {
        if !self.tasks.is_empty() && self.chance(30) {
            let task = *self.tasks.choose(&mut self.rng).unwrap();
            let tasks = self.any();
            match tasks.cancel(task, "chance").await {
                Ok(_) => self.count("canceled"),
                Err(Error::Conflict { state }) => {
                    assert!(state.is_final() || state == TaskState::Canceling, "{state:?}");
                    self.count("cancel came too late");
                }
                Err(error) => panic!("cancel: {error}"),
            }
        }
    }

    /// People answer what agents asked.
    pub(super) async fn care(&mut self) {
        for task in std::mem::take(&mut self.asked) {
            if self.chance(60) {
                self.asked.push(task);
                continue;
            }
            let tasks = self.any();
            match tasks.answer(task, "person", json!({ "answer": true })).await {
                Ok(_) => self.count("answered"),
                Err(Error::Conflict { .. }) => self.count("answered too late"),
                Err(error) => panic!("answer: {error}"),
            }
        }
    }

    /// People try again what has failed.
    pub(super) async fn requeue(&mut self) {
        if !self.tasks.is_empty() && self.chance(20) {
            let task = *self.tasks.choose(&mut self.rng).unwrap();
            let tasks = self.any();
            match tasks.requeue(task, "person").await {
                Ok(_) => {
                    self.finals.remove(&task);
                    self.count("requeued");
                }
                Err(Error::Conflict { .. } | Error::ParentEnded { .. }) => self.count("requeue refused"),
                Err(error) => panic!("requeue: {error}"),
            }
        }
    }
}
