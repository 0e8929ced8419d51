//! Agents that work from outside: real clients against a whole daemon.
mod commands;
mod digest;
mod doors;
mod encoding;
mod errors;
mod examples;
mod http;
mod identity;
mod identity_fuzz;
mod life;
mod messages;
mod observers;
mod rights;
mod values;

use crate::{
    daemon::{Running, config, fresh},
    realtime::{
        SECRET,
        client_process::{ClientProcess, NEW},
    },
    support::TestDb,
};
use convoke::{
    agent::{Agent, Definition},
    auth::{MintRequest, Role, mint},
    clock::Clock,
    config::Config,
    task::{AgentStatus, Error, Task},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// A daemon, and what it takes to be an agent of it.
pub struct Rig {
    pub daemon: Running,
    _dir: tempfile::TempDir,
    _db: TestDb,
}

impl Rig {
    pub async fn start(agents: Vec<(Definition, Arc<dyn Agent>)>) -> Self {
        Self::with(agents, |_| ()).await
    }

    pub async fn with(agents: Vec<(Definition, Arc<dyn Agent>)>, settings: impl FnOnce(&mut Config)) -> Self {
        let (db, dir) = fresh().await;
        Self::on(db, dir, agents, settings).await
    }

    /// On a database of the test's own.
    pub async fn on(
        db: TestDb,
        dir: tempfile::TempDir,
        agents: Vec<(Definition, Arc<dyn Agent>)>,
        settings: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = config(&db, dir.path());
        config.auth.jwt_secret = Some(SECRET.into());
        // Tests of refusals need not wait for what slows attackers down.
        config.gateway.join_error_delay = Duration::ZERO;
        config.gateway.handshake_error_delay = Duration::ZERO;
        settings(&mut config);
        Self { daemon: Running::start(config, agents).await, _dir: dir, _db: db }
    }

    pub fn http(&self) -> String {
        format!("http://{}", self.daemon.parts.addr)
    }

    /// A token of an agent of org `demo`.
    pub fn token(&self, agent: &str) -> String {
        self.mint(Role::Authenticated, "demo", Some(agent))
    }

    pub fn mint(&self, role: Role, org: &str, agent: Option<&str>) -> String {
        let (org, agent_id) = (Some(org.parse().unwrap()), agent.map(|agent| agent.parse().unwrap()));
        let request = MintRequest { org, agent_id, ttl: Duration::from_secs(600), ..MintRequest::new(role) };
        mint(&self.daemon.parts.keys, &request, Clock::System.now()).unwrap()
    }

    /// A token with exactly these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
    }

    /// A JavaScript client with this token in the channel of an agent.
    pub async fn client(&self, token: &str, room: &str) -> ClientProcess {
        let mut client = ClientProcess::js(NEW, &self.http(), token, None).await;
        client.join(room, json!({ "broadcast": { "ack": true } })).await;
        client
    }

    /// A JavaScript client that is this agent and can `work`.
    pub async fn agent(&self, id: &str) -> ClientProcess {
        let room = format!("agent:{id}");
        let mut client = self.client(&self.token(id), &room).await;
        client
            .ask("track", json!({ "topic": room, "payload": { "capabilities": ["work"] } }), "tracked")
            .await;
        self.status(id, "present").await;
        client
    }

    /// Waits until the agent is there and as said; one that is present is seen, and so eligible.
    pub async fn status(&self, id: &str, status: &str) -> AgentStatus {
        let name = id;
        let id = id.parse().unwrap();
        if status == "present" {
            crate::daemon::soon("its presence", async {
                loop {
                    let seen = self.daemon.parts.tracker.snapshot(crate::realtime::room("org:demo")).await;
                    let seen: Value = serde_json::from_slice(&seen).unwrap();
                    if seen.get(name).is_some() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        }
        crate::daemon::soon(status, async {
            loop {
                match self.daemon.parts.tasks.agent(&id).await {
                    Ok(agent) if agent.status.as_str() == status => return agent,
                    Ok(_) | Err(Error::UnknownAgent(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await
    }

    pub async fn request(&self, request: Value) -> Task {
        let org = "demo".parse().unwrap();
        let request = serde_json::from_value(request).unwrap();
        self.daemon.parts.tasks.request(&org, "tester", request).await.unwrap().task
    }

    pub async fn end(&self, task: &Task) -> Task {
        crate::daemon::soon("the end", self.daemon.parts.tasks.wait(task.id, crate::support::PATIENCE))
            .await
            .unwrap()
    }
}

impl ClientProcess {
    /// Sends a message of the negotiation to a room. Returns when the server has acknowledged it.
    pub async fn send_message(&mut self, room: &str, payload: Value) {
        let send = json!({ "topic": room, "name": "coordination", "payload": payload });
        assert_eq!(self.ask("send", send, "sent").await, "ok");
    }

    /// The next message of the negotiation of this type.
    pub async fn message(&mut self, kind: &str) -> Value {
        let got = self.until("broadcast", |it| it["payload"]["type"] == kind).await;
        got["payload"].clone()
    }
}

/// A message about an assignment.
pub fn about(kind: &str, assignment: &Value, more: Value) -> Value {
    let mut message = json!({
        "type": kind, "task_id": assignment["task_id"], "assignment_id": assignment["assignment_id"],
        "epoch": assignment["epoch"],
    });
    message.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    message
}
