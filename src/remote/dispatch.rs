//! Runs the messages of websockets: commands of agents and requesters, and messages to hosted agents.
//!
//! Messages of one websocket run in their order, those of different websockets concurrently, so that the store can
//! commit many together. The token of the channel identifies the sender. Replies and errors go to the sending
//! channel alone. A message over a limit is answered with an error, never dropped.
use super::{
    command::{AgentCommand, Message, RequesterCommand},
    coordination::Coordination,
    execute::{self, RemoteCommand, Reply},
    forbidden,
    identity::Identity,
    inbox::Inboxes,
    publisher::{self, CoordinationPublisher},
};
use crate::{
    agent::{AgentMessage, Agents},
    auth::Principal,
    hub,
    id::{AgentId, ConnId, OrgId},
    json,
    task::{Error, Requested, TaskCommands},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Messages that run or wait, of all websockets and of one.
const PENDING_MAX: usize = 4096;
const PENDING_EACH_MAX: usize = 256;

/// Executes messages and answers their senders.
pub(super) struct CommandDispatcher {
    pub(super) tasks: TaskCommands,
    pub(super) agents: Agents,
    pub(super) identity: Identity,
    pub(super) inboxes: Inboxes,
    pub(super) publisher: CoordinationPublisher,
}

/// Runs messages until `stop` is cancelled or the queue ends.
pub(super) async fn run(
    dispatcher: &CommandDispatcher,
    mut queue: mpsc::Receiver<Coordination>,
    stop: CancellationToken,
) {
    // A websocket is a key while one of its messages runs; its later ones wait in the value.
    let mut waiting: HashMap<ConnId, VecDeque<Coordination>> = HashMap::new();
    let mut running = FuturesUnordered::new();
    let mut pending = 0_usize;
    let handle = |message: Coordination| async move {
        dispatcher.handle(&message).await;
        message.conn
    };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(conn) = running.next(), if !running.is_empty() => {
                pending = pending.saturating_sub(1);
                match waiting.get_mut(&conn).and_then(VecDeque::pop_front) {
                    Some(next) => running.push(handle(next)),
                    None => drop(waiting.remove(&conn)),
                }
            }
            // At the limit the queue fills up, and its senders drop and count.
            received = queue.recv(), if pending < PENDING_MAX => {
                let Some(message) = received else { return };
                match waiting.get_mut(&message.conn) {
                    Some(queue) if queue.len() >= PENDING_EACH_MAX => {
                        let text = "too many messages of this socket wait";
                        dispatcher.send_error(&message, &Value::Null, "unavailable", text);
                        continue;
                    }
                    Some(queue) => queue.push_back(message),
                    None => {
                        waiting.insert(message.conn, VecDeque::new());
                        running.push(handle(message));
                    }
                }
                pending += 1;
            }
        }
    }
}

/// The type and members of an answer; `None` if a success is not answered.
type Answer = Option<(&'static str, Value)>;

impl CommandDispatcher {
    async fn handle(&self, message: &Coordination) {
        let body: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let outcome = if let Err(refused) = json::check_command(&message.payload) {
            Err(Error::BadRequest(format!("the message is not as expected: {refused}")))
        } else if message.event == Coordination::EVENT {
            self.execute(message, &body).await
        } else {
            self.deliver_to_hosted(message, body.clone()).map(|()| None)
        };
        match outcome {
            Ok(None) => {}
            Ok(Some((kind, mut members))) => {
                if let Some(object) = members.as_object_mut() {
                    object.insert("in_reply_to".into(), command_id(&body));
                }
                self.answer(message, kind, members);
            }
            Err(error) => {
                if let Error::Internal(cause) = &error {
                    tracing::error!(conn = %message.conn, error = ?cause, "remote command failed");
                }
                self.send_error(message, &body, error.code(), &error.to_string());
            }
        }
    }

    async fn execute(&self, message: &Coordination, body: &Value) -> Result<Answer, Error> {
        let read = Message::read(body).map_err(Error::BadRequest)?;
        let principal = Principal::of(message.claims.clone());
        principal.may_negotiate().map_err(forbidden)?;
        let named = named_agent(body)?;
        let command = match read {
            Message::Agent(command) => {
                let agent = speaker(&principal, message, named)?;
                self.identity.check_org(&self.tasks, &principal, &agent).await?;
                RemoteCommand::Agent(agent, command)
            }
            Message::Requester(command) => {
                let requester = principal.requester_as(named).map_err(forbidden)?;
                RemoteCommand::Requester(requester, principal.org(), command)
            }
        };
        let command = with_idempotency_key(command, body)?;
        execute::execute(&self.tasks, &principal, command).await.map(answer)
    }

    /// Puts a message between agents into the mailboxes of hosted agents; remote agents have received it in the
    /// room. Refuses a message that the room did not receive, for the same reason.
    fn deliver_to_hosted(&self, message: &Coordination, payload: Value) -> Result<(), Error> {
        self.identity.check_message(message).map_err(Error::Forbidden)?;
        let principal = Principal::of(message.claims.clone());
        let from = principal.requester_as(named_agent(&payload)?).map_err(forbidden)?;
        // An agent is named by its bare id; the names of other senders have a prefix.
        let from = from.agent().map_or_else(|| from.to_string(), ToString::to_string);
        let copy = AgentMessage { event: message.event, from, at: self.publisher.clock.now(), payload };
        match message.room.topic.as_str().split_once(':') {
            Some(("agent", name)) if message.event == Coordination::MESSAGE => {
                let Ok(agent) = AgentId::try_from(name) else { return Ok(()) };
                if self.agents.deliver(&agent, copy) {
                    return Ok(());
                }
                Err(Error::Busy(format!("the mailbox of agent {agent} is full")))
            }
            Some(("org", name)) if message.event == Coordination::BROADCAST => {
                if let Ok(org) = OrgId::try_from(name) {
                    self.deliver_to_org(&org, &copy);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Delivers to the hosted agents of an org and to those with an inbox, except the sender. A full mailbox is
    /// counted by `agents`.
    fn deliver_to_org(&self, org: &OrgId, message: &AgentMessage) {
        for agent in self.agents.of_org(org).iter().filter(|agent| agent.as_str() != message.from) {
            self.agents.deliver(agent, message.clone());
        }
        // Inboxes subscribe to `agent:<id>` and not to `org:<org>`.
        for (agent, channel) in self.inboxes.of_org(org) {
            if agent.as_str() != message.from {
                let copy = hub::Message::broadcast(message.event, &message.payload);
                self.publisher.hub.publish_to(&publisher::agent_room(&agent), copy, &[channel]);
            }
        }
    }

    fn send_error(&self, message: &Coordination, body: &Value, code: &str, text: &str) {
        let mut members = json!({ "code": code, "message": text, "in_reply_to": command_id(body) });
        if let (Some(object), Some(task)) = (members.as_object_mut(), body.get("task_id")) {
            object.insert("task_id".into(), task.clone());
        }
        self.answer(message, "error", members);
    }

    fn answer(&self, message: &Coordination, kind: &str, members: Value) {
        let to = message.claims.agent_id.as_ref().map(AgentId::as_str);
        self.publisher.send_to(&message.room, &[message.channel], kind, to, members);
    }
}

/// The answer to a request.
fn requested_members(requested: &Requested) -> Value {
    let mut task = serde_json::to_value(&requested.task).unwrap_or_default();
    // The requester has the input already, and it may be large.
    task.as_object_mut().map(|task| task.remove("input"));
    json!({ "task": task, "replayed": requested.replayed })
}

fn command_id(body: &Value) -> Value {
    body.get("command_id").filter(|id| id.is_string()).cloned().unwrap_or_default()
}

/// The agent that the message names as its sender.
fn named_agent(body: &Value) -> Result<Option<AgentId>, Error> {
    match body.get("agent_id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => AgentId::try_from(name.as_str())
            .map(Some)
            .map_err(|e| Error::BadRequest(format!("agent_id: {e}"))),
        Some(_) => Err(Error::BadRequest("agent_id is no text".into())),
    }
}

/// The sending agent: the token's own. The service acts as the agent that it names, else as the channel's.
fn speaker(principal: &Principal, message: &Coordination, named: Option<AgentId>) -> Result<AgentId, Error> {
    let of_room = || message.room.topic.as_str().strip_prefix("agent:")?.parse().ok();
    let agent = principal.speaks_as(named).map_err(forbidden)?;
    agent.or_else(of_room).ok_or_else(|| Error::BadRequest("say as which agent: agent_id".into()))
}

/// Takes the message's `command_id` as the idempotency key of its request.
fn with_idempotency_key(mut command: RemoteCommand, body: &Value) -> Result<RemoteCommand, Error> {
    let request = match &mut command {
        RemoteCommand::Requester(_, _, RequesterCommand::Request(request))
        | RemoteCommand::Agent(_, AgentCommand::RequestPart { request, .. }) => request,
        _ => return Ok(command),
    };
    if let Value::String(id) = command_id(body) {
        if request.idempotency_key.as_ref().is_some_and(|key| *key != id) {
            return Err(Error::BadRequest("command_id and task.idempotency_key differ".into()));
        }
        request.idempotency_key = Some(id);
    }
    Ok(command)
}

/// A reply as a message of the channel.
fn answer(reply: Reply) -> Answer {
    match reply {
        Reply::Done => None,
        Reply::Updated(update) => Some(("task_update", json!({ "task": update }))),
        Reply::Requested(requested) => Some(("task_update", requested_members(&requested))),
        Reply::Started(start) => {
            let lease_ms = u64::try_from(start.lease.as_millis()).unwrap_or(u64::MAX);
            let mut members = serde_json::to_value(start).unwrap_or_default();
            if let Some(object) = members.as_object_mut() {
                object.insert("lease_ms".into(), lease_ms.into());
            }
            Some(("task_start", members))
        }
    }
}
