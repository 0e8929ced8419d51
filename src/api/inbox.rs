//! `/v1/agents/{id}/presence` and `/inbox`: being an agent with HTTP alone; and messages between agents.
//!
//! An agent says who it is with `PUT …/presence` and asks for what was said to it with long polls. It is here
//! while a poll is open and for its lease after its last request; then what it held is given to others.
use super::{
    Deps,
    caller::Caller,
    input::{Body, Params, id},
    polls,
    problem::Problem,
    wait,
};
use crate::{
    gateway::{Collected, Coordination, LEASE, LEASE_MAX, LEASE_MIN, Unsaid},
    hub::Room,
    id::{AgentId, OrgId, Topic},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Deserialize)]
pub(super) struct Presence {
    /// How long it is here after its last request.
    #[serde(default = "lease", with = "humantime_serde")]
    lease: Duration,
    /// What an agent with a socket tracks.
    #[serde(flatten)]
    meta: Map<String, Value>,
}
fn lease() -> Duration {
    LEASE
}

/// The agent is here, as the body says: `capabilities`, `slots`, `description`, `activity_type` … as they are
/// tracked over a socket, and `lease`. What is wrong with it comes as `error` into the inbox.
pub(super) async fn present(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
    Body(Presence { lease, meta }): Body<Presence>,
) -> Result<Json<Value>, Problem> {
    let agent = own(&caller, &agent)?;
    if !(LEASE_MIN..=LEASE_MAX).contains(&lease) {
        let (min, max) = (LEASE_MIN.as_secs(), LEASE_MAX.as_secs());
        return Err(Problem::bad_request(format!("lease is {lease:?}; use {min}s to {max}s")));
    }
    if !deps.post.enter(&agent, caller.claims(), meta, lease) {
        return Err(Problem::unavailable("too many agents are here by HTTP"));
    }
    let inbox = format!("/v1/agents/{agent}/inbox");
    Ok(Json(
        json!({ "agent_id": agent, "lease": humantime::format_duration(lease).to_string(), "inbox": inbox }),
    ))
}

/// The agent is here no more; what it held is given to others at once.
pub(super) async fn gone(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
) -> Result<StatusCode, Problem> {
    let agent = own(&caller, &agent)?;
    if deps.post.leave(&agent) { Ok(StatusCode::NO_CONTENT) } else { Err(absent(&agent)) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InboxQuery {
    /// The last one that it has; those up to it are forgotten.
    #[serde(default)]
    after: u64,
    #[serde(default, deserialize_with = "wait::parse")]
    wait: Duration,
}

/// `{messages: [{seq, event, payload}], next, dropped}` beyond `?after=`; with `?wait=30s`, as soon as there
/// is one.
pub(super) async fn inbox(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
    Params(query): Params<InboxQuery>,
) -> Result<Json<Collected>, Problem> {
    let agent = own(&caller, &agent)?;
    let _place = polls::place(&deps.polls, &caller, query.wait)?;
    let until = Instant::now() + query.wait;
    let collected = tokio::select! {
        collected = deps.post.collect(&agent, query.after, until) => collected,
        () = deps.stop.cancelled() => deps.post.collect(&agent, query.after, Instant::now()).await,
    };
    collected.map(Json).ok_or_else(|| absent(&agent))
}

/// Says the body to an agent: `agent_message` on its channel, in its mailbox or inbox. 202.
pub(super) async fn message(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
    Body(payload): Body<Value>,
) -> Result<StatusCode, Problem> {
    let agent: AgentId = id("an agent's id", &agent)?;
    say(&deps, &caller, Coordination::MESSAGE, Room::public(Topic::agent(&agent)), &payload)
}

/// Says the body to all agents of an org: `agent_broadcast` on its channel, in their mailboxes and inboxes. 202.
pub(super) async fn broadcast(
    State(deps): State<Deps>,
    caller: Caller,
    Path(org): Path<String>,
    Body(payload): Body<Value>,
) -> Result<StatusCode, Problem> {
    let org: OrgId = id("an org", &org)?;
    say(&deps, &caller, Coordination::BROADCAST, Room::public(Topic::org(&org)), &payload)
}

fn say(
    deps: &Deps,
    caller: &Caller,
    event: &'static str,
    room: Room,
    payload: &Value,
) -> Result<StatusCode, Problem> {
    if !payload.is_object() {
        return Err(Problem::bad_request("a message is a JSON object"));
    }
    let said = deps.post.say(caller.claims(), event, room, payload.to_string().into());
    match said {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(Unsaid::Forbidden(reason)) => Err(Problem::forbidden(reason)),
        Err(full @ Unsaid::Full) => Err(Problem::unavailable(full.to_string())),
    }
}

/// The agent of the path, if the caller is that agent or the service.
fn own(caller: &Caller, agent: &str) -> Result<AgentId, Problem> {
    let agent: AgentId = id("an agent's id", agent)?;
    caller.agent(Some(agent.clone()))?;
    Ok(agent)
}

fn absent(agent: &AgentId) -> Problem {
    let detail = format!(
        "agent {agent} is not here by HTTP: say first who it is with PUT /v1/agents/{agent}/presence"
    );
    Problem::new(StatusCode::CONFLICT, "conflict", detail)
}
