//! Carries out what agents and requesters say over websockets.
//!
//! Messages of one socket in their order, those of different sockets side by side, so
//! that the store can commit many together. Who speaks is known by the token of the
//! channel and by nothing else. Answers and errors go to the speaking channel alone.
//! A socket with too many messages under way is told so; nothing is dropped in silence.
use super::{Deps, words::Word};
use crate::{
    agent,
    app::voice,
    auth::Claims,
    gateway::Coordination,
    hub::Message,
    id::{AgentId, ConnId, OrgId, TaskId},
    task::{Error, Request, Requested, Task, Update},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Messages that are carried out or wait here, of all sockets and of one.
const UNDER_WAY_MAX: usize = 4096;
const UNDER_WAY_EACH_MAX: usize = 256;
const ANON: &str = "anon";
const ORG_DEFAULT: &str = "default";

pub(super) struct Desk {
    deps: Deps,
}

pub(super) async fn serve(desk: Arc<Desk>, mut said: mpsc::Receiver<Coordination>, stop: CancellationToken) {
    // A socket is a key while one of its messages is carried out; the others wait behind it.
    let mut waiting: HashMap<ConnId, VecDeque<Coordination>> = HashMap::new();
    let mut running = FuturesUnordered::new();
    let mut under_way = 0_usize;
    let carry_out = |message: Coordination| {
        let desk = desk.clone();
        async move {
            desk.hear(&message).await;
            message.conn
        }
    };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(conn) = running.next(), if !running.is_empty() => {
                under_way = under_way.saturating_sub(1);
                match waiting.get_mut(&conn).and_then(VecDeque::pop_front) {
                    Some(next) => running.push(carry_out(next)),
                    None => drop(waiting.remove(&conn)),
                }
            }
            heard = said.recv(), if under_way < UNDER_WAY_MAX => {
                let Some(message) = heard else { return };
                match waiting.get_mut(&message.conn) {
                    Some(queue) if queue.len() >= UNDER_WAY_EACH_MAX => {
                        desk.error(&message, &Value::Null, "unavailable", "too many messages of this socket wait");
                        continue;
                    }
                    Some(queue) => queue.push_back(message),
                    None => {
                        waiting.insert(message.conn, VecDeque::new());
                        running.push(carry_out(message));
                    }
                }
                under_way += 1;
            }
        }
    }
}

/// What is answered to a speaker: the type and its members.
type Answer = Option<(&'static str, Value)>;

impl Desk {
    pub(super) fn new(deps: Deps) -> Self {
        Self { deps }
    }

    async fn hear(&self, said: &Coordination) {
        let message: Value = serde_json::from_slice(&said.payload).unwrap_or_default();
        let outcome = if said.event == Coordination::EVENT {
            self.carry_out(said, &message).await
        } else {
            self.pass_on(said, message.clone()).map(|()| None)
        };
        match outcome {
            Ok(None) => {}
            Ok(Some((kind, mut members))) => {
                if let Some(object) = members.as_object_mut() {
                    object.insert("in_reply_to".into(), command_id(&message));
                }
                self.answer(said, kind, members);
            }
            Err(error) => {
                if let Error::Internal(cause) = &error {
                    tracing::error!(error = ?cause, "a remote command failed");
                }
                self.error(said, &message, error.code(), &error.to_string());
            }
        }
    }

    async fn carry_out(&self, said: &Coordination, message: &Value) -> Result<Answer, Error> {
        let word = Word::read(message).map_err(Error::BadRequest)?;
        let claims = &said.claims;
        if claims.role == ANON {
            return Err(Error::Forbidden(
                "an anon key may not negotiate: use an agent's or user's token".into(),
            ));
        }
        let named = named(message)?;
        if !word.is_agents() {
            return self.requested(claims, named, message, word).await;
        }
        let agent = speaker(said, named)?;
        let tasks = &self.deps.tasks;
        let moved = |update: Update| Some(("task_update", json!({ "task": update })));
        Ok(match word {
            Word::Offer { task, offer } => {
                tasks.offer(task, &agent, offer).await?;
                None
            }
            Word::Decline { task, round, reason } => {
                tasks.decline(task, &agent, round, &reason).await?;
                None
            }
            Word::Refuse { key, reason } => {
                tasks.refuse(key, &agent, &reason).await?;
                None
            }
            Word::Part { key, request } => {
                let request = keyed(*request, message)?;
                let org = org(claims)?;
                Some(("task_update", made(&tasks.request_part(&org, key, &agent, request).await?)))
            }
            Word::Confirm(key) => moved(tasks.confirm(key, &agent).await?),
            Word::Ask { key, question } => moved(tasks.ask(key, &agent, *question).await?),
            Word::Accept(key) => {
                let start = tasks.accept(key, &agent).await?;
                let lease_ms = u64::try_from(start.lease.as_millis()).unwrap_or(u64::MAX);
                let mut members = serde_json::to_value(start).unwrap_or_default();
                if let Some(object) = members.as_object_mut() {
                    object.insert("lease_ms".into(), lease_ms.into());
                }
                Some(("task_start", members))
            }
            Word::Progress(key, progress) => {
                tasks.progress(key, &agent, progress).await?;
                None
            }
            Word::Heartbeat(key) => {
                tasks.heartbeat(key, &agent).await?;
                None
            }
            Word::Finish { key, result, usage } => moved(tasks.finish(key, &agent, result, usage).await?),
            Word::Fail { key, failure } => moved(tasks.fail(key, &agent, failure).await?),
            Word::Release { key, reason, checkpoint } => {
                moved(tasks.release(key, &agent, &reason, checkpoint).await?)
            }
            Word::Request(_)
            | Word::Cancel { .. }
            | Word::Choose { .. }
            | Word::Answer { .. }
            | Word::Requeue(_) => None,
        })
    }

    /// What requesters say.
    async fn requested(
        &self,
        claims: &Claims,
        named: Option<AgentId>,
        message: &Value,
        word: Word,
    ) -> Result<Answer, Error> {
        let name = requester(claims, named)?;
        match word {
            Word::Request(request) => {
                let request = keyed(*request, message)?;
                let requested = self.deps.tasks.request(&org(claims)?, &name, request).await?;
                Ok(Some(("task_update", made(&requested))))
            }
            Word::Answer { task, answer } => {
                self.commanded(claims, &name, "answer", task).await?;
                let update = self.deps.tasks.answer(task, &name, answer).await?;
                Ok(Some(("task_update", json!({ "task": update }))))
            }
            Word::Requeue(task) => {
                self.commanded(claims, &name, "requeue", task).await?;
                let update = self.deps.tasks.requeue(task, &name).await?;
                Ok(Some(("task_update", json!({ "task": update }))))
            }
            Word::Cancel { task, reason } => {
                self.commanded(claims, &name, "cancel", task).await?;
                let update = self.deps.tasks.cancel(task, &reason).await?;
                Ok(Some(("task_update", json!({ "task": update }))))
            }
            Word::Choose { task, chosen } => {
                self.commanded(claims, &name, "choose an offer on", task).await?;
                self.deps.tasks.choose(task, &chosen).await?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Whether this requester may decide about a task.
    async fn commanded(&self, claims: &Claims, name: &str, what: &str, task: TaskId) -> Result<(), Error> {
        let found = self.visible(claims, task).await?;
        if claims.is_service() || found.requester == name {
            return Ok(());
        }
        Err(Error::Forbidden(format!("only its requester and the service may {what} a task")))
    }

    async fn visible(&self, claims: &Claims, id: TaskId) -> Result<Task, Error> {
        let task = self.deps.tasks.get(id).await?;
        if claims.is_service() || org(claims)? == task.org { Ok(task) } else { Err(Error::UnknownTask(id)) }
    }

    /// Messages between agents that say truly who sends them, and stay in their org, go into the mailboxes of
    /// hosted agents too; whoever is outside hears them in the room. Any other was heard by nobody.
    fn pass_on(&self, said: &Coordination, payload: Value) -> Result<(), Error> {
        said.check_sender(&self.deps.attendance).map_err(Error::Forbidden)?;
        let claims = &said.claims;
        let from = requester(claims, named(&payload)?)?;
        let message = agent::Message { event: said.event, from, at: self.deps.voice.clock.now(), payload };
        let agents = &self.deps.agents;
        let full = match said.room.topic.as_str().split_once(':') {
            Some(("agent", name)) if said.event == Coordination::MESSAGE => {
                let agent = AgentId::try_from(name).ok();
                agent.filter(|agent| !agents.tell(agent, message)).map(|agent| agent.to_string())
            }
            Some(("org", name)) if said.event == Coordination::BROADCAST => {
                let Ok(org) = OrgId::try_from(name) else { return Ok(()) };
                self.to_all(&org, &message);
                None
            }
            _ => None,
        };
        match full {
            Some(agent) => Err(Error::Busy(format!("the mailbox of agent {agent} is full"))),
            None => Ok(()),
        }
    }

    /// To the hosted agents of an org, and those that are here by HTTP, but the sender; a full mailbox is counted.
    fn to_all(&self, org: &OrgId, message: &agent::Message) {
        let deps = &self.deps;
        for agent in deps.agents.of_org(org).filter(|agent| agent.as_str() != message.from) {
            deps.agents.tell(agent, message.clone());
        }
        for (agent, channel) in deps.post.of_org(org) {
            if agent.as_str() != message.from {
                let copy = Message::broadcast(message.event, &message.payload);
                deps.voice.hub.publish_to(&voice::agent_room(&agent), copy, &[channel]);
            }
        }
    }

    fn error(&self, said: &Coordination, message: &Value, code: &str, text: &str) {
        let mut members = json!({ "code": code, "message": text, "in_reply_to": command_id(message) });
        if let (Some(object), Some(task)) = (members.as_object_mut(), message.get("task_id")) {
            object.insert("task_id".into(), task.clone());
        }
        self.answer(said, "error", members);
    }

    fn answer(&self, said: &Coordination, kind: &str, members: Value) {
        let to = said.claims.agent_id.as_ref().map(AgentId::as_str);
        let channel = [said.channel];
        self.deps.voice.tell(&said.room, &channel, kind, to, members);
    }
}

/// The answer to a request.
fn made(requested: &Requested) -> Value {
    let mut task = serde_json::to_value(&requested.task).unwrap_or_default();
    // Whoever asked knows what it asked for.
    task.as_object_mut().map(|task| task.remove("input"));
    json!({ "task": task, "replayed": requested.replayed })
}

fn command_id(message: &Value) -> Value {
    message.get("command_id").filter(|id| id.is_string()).cloned().unwrap_or_default()
}

/// Who the message says that it is from.
fn named(message: &Value) -> Result<Option<AgentId>, Error> {
    match message.get("agent_id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => AgentId::try_from(name.as_str())
            .map(Some)
            .map_err(|e| Error::BadRequest(format!("agent_id: {e}"))),
        Some(_) => Err(Error::BadRequest("agent_id is no text".into())),
    }
}

/// The agent that speaks: the token's own. The service speaks as whom it names, else as the channel's agent.
fn speaker(said: &Coordination, named: Option<AgentId>) -> Result<AgentId, Error> {
    let claims = &said.claims;
    if claims.is_service() {
        let room = || said.room.topic.as_str().strip_prefix("agent:")?.parse().ok();
        return named
            .or_else(|| claims.agent_id.clone())
            .or_else(room)
            .ok_or_else(|| Error::BadRequest("say as which agent: agent_id".into()));
    }
    match (&claims.agent_id, named) {
        (Some(own), Some(named)) if *own != named => {
            Err(Error::Forbidden(format!("the token is {own}'s and cannot speak as {named}")))
        }
        (Some(own), _) => Ok(own.clone()),
        (None, _) => Err(Error::Forbidden("the token is no agent's: it has no claim agent_id".into())),
    }
}

/// How a requester is named; the same as over HTTP.
fn requester(claims: &Claims, named: Option<AgentId>) -> Result<String, Error> {
    let own = claims.agent_id.as_ref();
    if let Some(named) = named {
        if claims.is_service() || own == Some(&named) {
            return Ok(named.to_string());
        }
        return Err(Error::Forbidden(format!("the token is not {named}'s: nobody speaks as another")));
    }
    Ok(claims.name())
}

fn org(claims: &Claims) -> Result<OrgId, Error> {
    match &claims.org {
        Some(org) => Ok(org.clone()),
        None => OrgId::try_from(ORG_DEFAULT).map_err(|e| Error::BadRequest(e.to_string())),
    }
}

/// A message's `command_id` is the key of its request.
fn keyed(mut request: Request, message: &Value) -> Result<Request, Error> {
    if let Value::String(id) = command_id(message) {
        if request.idempotency_key.as_ref().is_some_and(|key| *key != id) {
            return Err(Error::BadRequest("command_id and task.idempotency_key differ".into()));
        }
        request.idempotency_key = Some(id);
    }
    Ok(request)
}
