//! Requesters by HTTP, by SQL and by row changes; each repeats its request until it is acknowledged.
use super::{daemon::Machine, ledger::Ledger};
use crate::task::values::BAD_CELLS;
use convoke::{clock::Clock, id::TaskId};
use futures_util::{StreamExt, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use uuid::Uuid;

const REQUESTERS: usize = 16;
/// Requests wait while more tasks than this are open.
const OPEN_MAX: u64 = 1_000;

/// Requests all tasks, and cancels a few.
pub async fn all(machine: &Machine, ledger: &Ledger, tasks: u64, pause: Duration, seed: u64) {
    let (http, token) = (reqwest::Client::new(), machine.token(None));
    let open = AtomicU64::new(0);
    let requester = Requester { machine, ledger, http, token };
    let (requester, open) = (&requester, &open);
    let requests = stream::iter(0..tasks).for_each_concurrent(REQUESTERS, |number| async move {
        tokio::time::sleep(pause * REQUESTERS as u32).await;
        while open.load(Ordering::Relaxed) > OPEN_MAX {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut rng = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9));
        match rng.random_range(0..100) {
            0..2 => requester.by_bad_row(number).await,
            2..10 => requester.by_row(number).await,
            10..15 => requester.by_sql(number).await,
            _ => requester.by_http(number, &mut rng).await,
        }
    });
    tokio::select! { () = requests => {}, never = machine.watch(open) => never }
}

struct Requester<'a> {
    machine: &'a Machine,
    ledger: &'a Ledger,
    http: reqwest::Client,
    token: String,
}

fn policy() -> Value {
    json!({
        "lease": "5s", "attempt": "15s", "confirm": "2s", "bid_window": "150ms", "quiet_gap": "50ms",
        "backoff": "200ms", "rounds_max": 1000, "attempts_max": 100,
    })
}

impl Requester<'_> {
    async fn by_row(&self, number: u64) {
        let insert = format!("insert into public.orders values ({number}) on conflict do nothing");
        self.machine.ask(&insert).await;
        self.ledger.count("requested by a row");
    }

    /// Inserts a task past every check, with a cell that the daemon cannot read.
    async fn by_bad_row(&self, number: u64) {
        let (column, value) = BAD_CELLS[usize::try_from(number).unwrap() % BAD_CELLS.len()];
        let id = format!("md5('bad' || {number})::uuid");
        let mut cells = BTreeMap::from([
            ("id", id.clone()),
            ("root_id", id),
            ("org", "'demo'".into()),
            ("kind", "'chaos'".into()),
            ("requires", "array['any']".into()),
            ("class", "convoke.task_class('demo', array['any'])".into()),
            ("requester", "'sql:hand'".into()),
            ("state", "'open'".into()),
            ("input", format!("'{{\"number\": {number}}}'")),
        ]);
        cells.insert(column, value.into());
        let columns: Vec<&str> = cells.keys().copied().collect();
        let values: Vec<String> = cells.into_values().collect();
        let insert = format!(
            "insert into convoke.tasks ({}) values ({}) on conflict do nothing",
            columns.join(", "),
            values.join(", ")
        );
        self.machine.ask(&insert).await;
        self.ledger.count("written by hand with a bad cell");
    }

    async fn by_sql(&self, number: u64) {
        let call = format!(
            "select convoke.request_task('chaos', requires => '{{any}}', org => 'demo', input => '{{\"number\": {number}}}',
                 policy => '{}', idempotency_key => '{number}')",
            policy()
        );
        let rows = self.machine.ask(&call).await;
        self.ledger.requested(number.to_string(), TaskId::from(rows[0].get::<_, Uuid>(0)));
        self.ledger.count("requested by SQL");
    }

    async fn by_http(&self, number: u64, rng: &mut StdRng) {
        let requires = ["any", "any", "hosted", "outside", "by-http"][rng.random_range(0..5)];
        let award = ["weighted", "cheapest", "fastest", "least_loaded", "calibrated", "first"];
        let mut policy = policy();
        policy["award"] = json!(award[rng.random_range(0..award.len())]);
        if rng.random_range(0..100) < 5 {
            policy["attempts_max"] = json!(1);
        }
        let mut wish = json!({ "kind": "chaos", "requires": [requires], "input": { "number": number }, "policy": policy });
        if rng.random_range(0..100) < 2 {
            wish["deadline"] =
                json!(Clock::System.now() + chrono::TimeDelta::milliseconds(rng.random_range(200..4000)));
        }
        if rng.random_range(0..100) < 2 {
            wish["run_at"] =
                json!(Clock::System.now() + chrono::TimeDelta::milliseconds(rng.random_range(200..4000)));
        }
        let key = number.to_string();
        let answer = self.until_answered("/v1/tasks", &wish, Some(&key)).await;
        let id: TaskId =
            serde_json::from_value(answer["task"]["id"].clone()).unwrap_or_else(|_| panic!("{answer}"));
        self.ledger.requested(key, id);
        self.ledger.count("requested by HTTP");
        if rng.random_range(0..100) < 3 {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
            let told = self.until_answered(&format!("/v1/tasks/{id}/cancel"), &json!({}), None).await;
            self.ledger.count(if told["code"] == "conflict" { "canceled too late" } else { "canceled" });
        }
    }

    /// Repeats the request while no daemon answers, or it answers `unavailable`.
    async fn until_answered(&self, path: &str, body: &Value, key: Option<&str>) -> Value {
        loop {
            let url = format!("{}{path}", self.machine.url);
            let mut asked =
                self.http.post(url).bearer_auth(&self.token).json(body).timeout(Duration::from_secs(10));
            if let Some(key) = key {
                asked = asked.header("Idempotency-Key", key);
            }
            match asked.send().await {
                Ok(answer) if answer.status().as_u16() < 500 && answer.status().as_u16() != 429 => {
                    if let Ok(told) = answer.json().await {
                        return told;
                    }
                }
                _ => self.ledger.count("requests asked again"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
