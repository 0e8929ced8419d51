//! Agents that work, delay, refuse, stop reporting and are killed: a service behind hosted agents, agents with a
//! websocket, and agents with HTTP only.
use super::{daemon::Machine, ledger::Ledger};
use axum::{Json, Router, http::StatusCode, routing::post};
use convoke::{
    client::{Backoff, Channel, Client},
    id::TaskId,
};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SOCKETS: u64 = 4;
const BY_HTTP: u64 = 3;
const SLOTS: u32 = 8;
/// A result without an answer is sent again after this time.
const AGAIN: Duration = Duration::from_secs(2);

/// The service that hosted agents of `kind = "http"` post to.
pub struct Service {
    pub url: String,
}

impl Service {
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the test's runtime")]
    pub async fn start(seed: u64) -> Self {
        let rng = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        let work = move |Json(job): Json<Value>| {
            let (chance, pause) = {
                let mut rng = rng.lock();
                (rng.random_range(0..1000), Duration::from_millis(rng.random_range(0..10)))
            };
            async move {
                tokio::time::sleep(pause).await;
                match chance {
                    0..20 => return Err(StatusCode::INTERNAL_SERVER_ERROR),
                    20..30 => return Err(StatusCode::NOT_FOUND),
                    30..33 => tokio::time::sleep(Duration::from_secs(30)).await,
                    _ => {}
                }
                Ok(Json(json!({ "by": job["agent_id"], "epoch": job["epoch"] })))
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = Router::new().route("/work", post(work));
        tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self { url }
    }
}

/// Agents that can be killed: each restarts at once without memory.
#[derive(Default)]
pub struct Agents(Vec<Arc<Notify>>);

impl Agents {
    pub fn kill_one(&self, rng: &mut StdRng) {
        self.0[rng.random_range(0..self.0.len())].notify_one();
    }
}

/// Starts all remote agents.
pub fn start(
    tracker: &TaskTracker,
    machine: &Arc<Machine>,
    ledger: &Arc<Ledger>,
    seed: u64,
    stop: &CancellationToken,
) -> Agents {
    let mut agents = Agents::default();
    for number in 0..SOCKETS + BY_HTTP {
        let name = if number < SOCKETS { format!("socket-{number}") } else { format!("poll-{number}") };
        let killed = Arc::new(Notify::new());
        agents.0.push(killed.clone());
        let me = Me {
            token: machine.token(Some(&name)),
            name,
            machine: machine.clone(),
            ledger: ledger.clone(),
            rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed.wrapping_add(number)))),
        };
        let stop = stop.clone();
        tracker.spawn(async move {
            while !stop.is_cancelled() {
                let life =
                    async { if number < SOCKETS { me.by_socket().await } else { me.by_polls().await } };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = killed.notified() => {}
                    () = life => {}
                }
            }
        });
    }
    agents
}

/// One agent.
#[derive(Clone)]
struct Me {
    name: String,
    token: String,
    machine: Arc<Machine>,
    ledger: Arc<Ledger>,
    rng: Arc<Mutex<StdRng>>,
}

/// What it does with an award or a start.
enum Mood {
    Works(Duration),
    Refuses,
    Fails,
    LetsGo,
    Sleeps,
}

impl Me {
    fn mood(&self) -> Mood {
        let mut rng = self.rng.lock();
        match rng.random_range(0..1000) {
            0..30 => Mood::Refuses,
            30..50 => Mood::Fails,
            50..60 => Mood::LetsGo,
            60..65 => Mood::Sleeps,
            _ => Mood::Works(Duration::from_millis(rng.random_range(0..20))),
        }
    }

    fn profile(&self) -> Value {
        let can = if self.name.starts_with("poll") {
            vec!["any", "outside", "by-http"]
        } else {
            vec!["any", "outside"]
        };
        json!({ "capabilities": can, "slots": SLOTS })
    }

    fn offer(&self) -> Value {
        let mut rng = self.rng.lock();
        json!({ "cost": rng.random_range(1..200), "eta_ms": rng.random_range(1..50), "confidence": 0.5 })
    }

    /// Runs on a websocket until it closes.
    async fn by_socket(&self) {
        let quickly = Backoff::new([Duration::from_millis(100), Duration::from_millis(500)]);
        let client = Client::builder(&self.machine.url, &self.token).unwrap().backoff(quickly).start();
        let room = format!("agent:{}", self.name);
        let channel = client.channel(&room).build();
        let mut heard = channel.broadcasts("coordination");
        if channel.subscribe().await.is_err() || channel.track(self.profile()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            return;
        }
        let voice = AgentChannel { me: self.clone(), channel, unanswered: Arc::default() };
        let jobs = TaskTracker::new();
        let over = CancellationToken::new();
        let _ends_with_it = over.clone().drop_guard();
        while let Some(said) = heard.next().await {
            let Ok(said) = said else { continue };
            let Ok(said) = said.json::<Value>() else { continue };
            let (voice, over) = (voice.clone(), over.clone());
            jobs.spawn(async move { over.run_until_cancelled(voice.receive(said)).await });
        }
    }
}

/// An agent on its websocket.
#[derive(Clone)]
struct AgentChannel {
    me: Me,
    channel: Channel,
    /// Results that were sent and not answered, by assignment.
    unanswered: Arc<Mutex<HashMap<String, (TaskId, i64)>>>,
}

impl AgentChannel {
    async fn send(&self, message: Value) {
        let _ = self.channel.broadcast("coordination", message).await;
    }

    async fn receive(&self, said: Value) {
        let about = |kind: &str, more: Value| {
            let mut message = json!({
                "type": kind, "task_id": said["task_id"], "assignment_id": said["assignment_id"], "epoch": said["epoch"],
            });
            message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            message
        };
        let answered = || self.unanswered.lock().remove(said["in_reply_to"].as_str()?);
        match said["type"].as_str().unwrap_or_default() {
            "task_request" => {
                let task = &said["task"];
                let offer = json!({ "type": "task_offer", "task_id": task["id"], "round": task["round"], "offer": self.me.offer() });
                self.send(offer).await;
            }
            "task_assignment" if said["agent_id"] == self.me.name.as_str() => match self.me.mood() {
                Mood::Refuses => self.send(about("task_refuse", json!({ "reason": "chance" }))).await,
                Mood::Sleeps => {}
                _ => self.send(about("task_accept", json!({}))).await,
            },
            "task_start" => match self.me.mood() {
                Mood::Works(time) => {
                    tokio::time::sleep(time).await;
                    self.hand_in(&said, about).await;
                }
                Mood::Fails => {
                    let error = json!({ "error": { "message": "chance", "retryable": true } });
                    self.send(about("task_failure", error)).await;
                }
                Mood::Refuses | Mood::LetsGo => {
                    self.send(about("task_release", json!({ "reason": "chance" }))).await
                }
                Mood::Sleeps => {}
            },
            "task_update" => {
                if let Some((task, epoch)) = answered()
                    && said["task"]["state"] == "completed"
                {
                    self.me.ledger.accepted(task, epoch);
                }
            }
            "error" if said["code"] != "unavailable" && answered().is_some() => {
                self.me.ledger.count("results refused");
            }
            _ => {}
        }
    }

    /// Sends the result until it is answered.
    async fn hand_in(&self, start: &Value, about: impl Fn(&str, Value) -> Value) {
        let id = start["assignment_id"].as_str().unwrap().to_owned();
        let task: TaskId = serde_json::from_value(start["task_id"].clone()).unwrap();
        let epoch = start["epoch"].as_i64().unwrap();
        self.unanswered.lock().insert(id.clone(), (task, epoch));
        while self.unanswered.lock().contains_key(&id) {
            let result = json!({ "by": self.me.name, "epoch": epoch });
            self.send(about("task_result", json!({ "result": result, "command_id": id }))).await;
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl Me {
    /// Runs by polls until one fails.
    async fn by_polls(&self) {
        let here = format!("/v1/agents/{}", self.name);
        let mut profile = self.profile();
        profile["lease"] = json!("5s");
        let http = Http { me: self.clone(), http: reqwest::Client::new() };
        if http.call(reqwest::Method::PUT, &format!("{here}/presence"), &profile).await.is_none() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            return;
        }
        let jobs = TaskTracker::new();
        let over = CancellationToken::new();
        let _ends_with_it = over.clone().drop_guard();
        let mut after = 0;
        loop {
            let path = format!("{here}/inbox?wait=3s&after={after}");
            let Some((200, inbox)) = http.call(reqwest::Method::GET, &path, &Value::Null).await else {
                return;
            };
            after = inbox["next"].as_u64().unwrap();
            for message in inbox["messages"].as_array().unwrap() {
                let (http, said, over) = (http.clone(), message["payload"].clone(), over.clone());
                jobs.spawn(async move { over.run_until_cancelled(http.receive(said)).await });
            }
        }
    }
}

/// An agent over HTTP.
#[derive(Clone)]
struct Http {
    me: Me,
    http: reqwest::Client,
}

impl Http {
    /// The status and the body; `None` without an answer.
    async fn call(&self, method: reqwest::Method, path: &str, body: &Value) -> Option<(u16, Value)> {
        let url = format!("{}{path}", self.me.machine.url);
        let asked =
            self.http.request(method, url).bearer_auth(&self.me.token).timeout(Duration::from_secs(10));
        let asked = if body.is_null() { asked } else { asked.json(body) };
        let answer = asked.send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.json().await.unwrap_or_default()))
    }

    async fn post(&self, path: &str, body: &Value) -> Option<(u16, Value)> {
        self.call(reqwest::Method::POST, path, body).await
    }

    async fn receive(&self, said: Value) {
        if said["type"] == "task_request" {
            let mut offer = self.me.offer();
            offer["round"] = said["task"]["round"].clone();
            let task = said["task"]["id"].as_str().unwrap();
            self.post(&format!("/v1/tasks/{task}/offers"), &offer).await;
        } else if said["type"] == "task_assignment" && said["agent_id"] == self.me.name.as_str() {
            self.work(&said).await;
        }
    }

    async fn work(&self, won: &Value) {
        let path =
            |report: &str| format!("/v1/assignments/{}/{report}", won["assignment_id"].as_str().unwrap());
        let key = json!({ "task_id": won["task_id"], "epoch": won["epoch"] });
        let with = |name: &str, value: Value| {
            let mut body = key.clone();
            body[name] = value;
            body
        };
        if matches!(self.me.mood(), Mood::Refuses) {
            self.post(&path("refuse"), &with("reason", json!("chance"))).await;
            return;
        }
        let Some((200, _)) = self.post(&path("accept"), &key).await else { return };
        match self.me.mood() {
            Mood::Works(time) => tokio::time::sleep(time).await,
            Mood::Fails => {
                let error = json!({ "message": "chance", "retryable": true });
                self.post(&path("failure"), &with("error", error)).await;
                return;
            }
            Mood::Refuses | Mood::LetsGo => {
                self.post(&path("release"), &with("reason", json!("chance"))).await;
                return;
            }
            Mood::Sleeps => return,
        }
        let epoch = won["epoch"].as_i64().unwrap();
        let result = with("result", json!({ "by": self.me.name, "epoch": epoch }));
        loop {
            match self.post(&path("result"), &result).await {
                Some((200, update)) if update["state"] == "completed" => {
                    let task: TaskId = serde_json::from_value(won["task_id"].clone()).unwrap();
                    return self.me.ledger.accepted(task, epoch);
                }
                Some((409, _)) => return self.me.ledger.count("results refused"),
                Some((status, _)) if status < 500 => return,
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}
