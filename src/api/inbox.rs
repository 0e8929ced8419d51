//! `/v1/agents/{id}/presence` and `/inbox`, for agents that use HTTP alone; and messages between agents.
//!
//! An agent registers with `PUT …/presence` and receives its messages with long polls. It is present while a
//! poll is open, and for its lease after the last request. After that its assignments are given to other
//! agents.
use super::{
    Deps,
    caller::Caller,
    input::{Body, Params, id},
    polls,
    problem::Problem,
    wait,
};
use crate::{
    hub::Room,
    id::{AgentId, OrgId, Topic},
    problem::RateLimit,
    remote::{
        Coordination, INBOX_LEASE, INBOX_LEASE_MAX, INBOX_LEASE_MIN, InboxPage, NotConnected, OpenError,
        SendError,
    },
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Most registrations and renewals of one agent in a minute, as many as a channel may track presence, and of all agents.
const PRESENCES: (u32, u32) = (600, 60_000);

/// The limit on `PUT …/presence`. Clones share the counts.
#[derive(Clone, Debug)]
pub struct PresenceRate(Arc<RateLimit<(OrgId, AgentId)>>);

impl Default for PresenceRate {
    fn default() -> Self {
        Self(Arc::new(RateLimit::new(PRESENCES)))
    }
}

#[derive(Deserialize)]
pub(super) struct Presence {
    /// How long the agent stays present after its last request.
    #[serde(default = "lease", with = "humantime_serde")]
    lease: Duration,
    /// The metadata that an agent with a websocket would track.
    #[serde(flatten)]
    meta: Map<String, Value>,
}
fn lease() -> Duration {
    INBOX_LEASE
}

/// Registers the agent or renews its lease. The body has `capabilities`, `slots`, `description`,
/// `activity_type` … as tracked over a websocket, and `lease`. Problems of its content arrive as `error` in
/// the inbox.
pub(super) async fn present(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
    Body(Presence { lease, meta }): Body<Presence>,
) -> Result<Json<Value>, Problem> {
    // By the org of the token, too: a token of another org with the same agent must not use up the agent's own limit.
    let of = (caller.org(), id("an agent's id", &agent)?);
    deps.presence_rate.0.admit(of).map_err(|wait| Problem::rate_limited("updates of this presence", wait))?;
    let agent = own(&deps, &caller, &agent).await?;
    if !(INBOX_LEASE_MIN..=INBOX_LEASE_MAX).contains(&lease) {
        let (min, max) = (INBOX_LEASE_MIN.as_secs(), INBOX_LEASE_MAX.as_secs());
        return Err(Problem::bad_request(format!("lease is {lease:?}; use {min}s to {max}s")));
    }
    deps.inboxes.open(&agent, caller.claims().clone(), meta, lease).map_err(|why| match why {
        OpenError::NotConnected(NotConnected::Denied(denied)) => denied.into(),
        full @ (OpenError::Full | OpenError::NoMemory) => Problem::unavailable(full.to_string()),
        large @ OpenError::NotConnected(NotConnected::TooLarge) => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", large.to_string())
        }
    })?;
    let inbox = format!("/v1/agents/{agent}/inbox");
    Ok(Json(
        json!({ "agent_id": agent, "lease": humantime::format_duration(lease).to_string(), "inbox": inbox }),
    ))
}

/// Deregisters the agent. Its assignments are given to other agents at once.
pub(super) async fn gone(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
) -> Result<StatusCode, Problem> {
    let agent = own(&deps, &caller, &agent).await?;
    if deps.inboxes.close(&agent) { Ok(StatusCode::NO_CONTENT) } else { Err(absent(&agent)) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InboxQuery {
    /// Sequence number of the last message received; messages up to it are deleted.
    #[serde(default)]
    after: u64,
    #[serde(default, deserialize_with = "wait::parse")]
    wait: Duration,
}

/// `{messages: [{seq, event, payload}], next, dropped}` after `?after=`; with `?wait=30s`, as soon as there
/// is one.
pub(super) async fn inbox(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
    Params(query): Params<InboxQuery>,
) -> Result<Json<InboxPage>, Problem> {
    let agent = own(&deps, &caller, &agent).await?;
    // Held until the response, also by a poll that is answered at once.
    let _permit = polls::permit(&deps.polls, &caller, query.wait)?;
    let until = Instant::now() + query.wait;
    let collected = tokio::select! {
        collected = deps.inboxes.collect(&agent, query.after, until) => collected,
        // At a stop, what is in the inbox now is the answer.
        () = deps.stop.cancelled() => deps.inboxes.collect(&agent, query.after, Instant::now()).await,
    };
    collected.map(Json).ok_or_else(|| absent(&agent))
}

/// Sends the body to an agent: `agent_message` on its channel, in its mailbox or inbox. 202.
pub(super) async fn message(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
    Body(payload): Body<Value>,
) -> Result<StatusCode, Problem> {
    let agent: AgentId = id("an agent's id", &agent)?;
    send(&deps, &caller, Coordination::MESSAGE, Room::public(Topic::agent(&agent)), &payload)
}

/// Sends the body to every agent of an org: `agent_broadcast` on its channel, in their mailboxes and inboxes.
/// 202.
pub(super) async fn broadcast(
    State(deps): State<Deps>,
    caller: Caller,
    Path(org): Path<String>,
    Body(payload): Body<Value>,
) -> Result<StatusCode, Problem> {
    let org: OrgId = id("an org", &org)?;
    send(&deps, &caller, Coordination::BROADCAST, Room::public(Topic::org(&org)), &payload)
}

fn send(
    deps: &Deps,
    caller: &Caller,
    event: &'static str,
    room: Room,
    payload: &Value,
) -> Result<StatusCode, Problem> {
    if !payload.is_object() {
        return Err(Problem::bad_request("a message is a JSON object"));
    }
    let sent = deps.inboxes.send(caller.claims().clone(), event, room, payload.to_string().into());
    match sent {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(SendError::Forbidden(reason)) => Err(Problem::forbidden(reason)),
        Err(full @ SendError::Full) => Err(Problem::unavailable(full.to_string())),
    }
}

/// Returns the agent in the path, if the caller may act as it.
async fn own(deps: &Deps, caller: &Caller, agent: &str) -> Result<AgentId, Problem> {
    let agent: AgentId = id("an agent's id", agent)?;
    caller.speaks_as(Some(agent.clone()))?;
    deps.identity.check_org(&deps.tasks, caller, &agent).await?;
    Ok(agent)
}

fn absent(agent: &AgentId) -> Problem {
    let detail = format!(
        "agent {agent} is not present over HTTP: register it with PUT /v1/agents/{agent}/presence first"
    );
    Problem::new(StatusCode::CONFLICT, "conflict", detail)
}
