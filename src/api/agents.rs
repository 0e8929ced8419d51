//! `/v1/agents`: the registered agents.
use super::{
    Deps,
    caller::Caller,
    input::{Params, id},
    problem::Problem,
};
use crate::{
    id::{AgentId, OrgId},
    task::{self, AgentStatus},
};
use axum::{
    Json,
    extract::{Path, State},
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    org: Option<OrgId>,
}

/// `{agents: […]}` of the caller's org. For the service, of every org or of `?org=`.
pub(super) async fn list(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<Query>,
) -> Result<Json<Value>, Problem> {
    let org = caller.view(query.org)?;
    let agents = deps.tasks.agents(org.as_ref()).await?;
    Ok(Json(json!({ "agents": agents })))
}

/// One agent; `unknown_agent` if the caller may not see its org.
pub(super) async fn show(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
) -> Result<Json<AgentStatus>, Problem> {
    let agent = id("an agent's id", &agent)?;
    let status = deps.tasks.agent(&agent).await?;
    if caller.sees(&status.org) { Ok(Json(status)) } else { Err(task::Error::UnknownAgent(agent).into()) }
}

/// The agent gets no new task until it is resumed; what it has is finished. For operators of its org.
pub(super) async fn drain(
    deps: State<Deps>,
    caller: Caller,
    agent: Path<String>,
) -> Result<Json<AgentStatus>, Problem> {
    set_drained(deps, caller, agent, true).await
}

/// Ends the drain. For operators of its org.
pub(super) async fn resume(
    deps: State<Deps>,
    caller: Caller,
    agent: Path<String>,
) -> Result<Json<AgentStatus>, Problem> {
    set_drained(deps, caller, agent, false).await
}

async fn set_drained(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
    on: bool,
) -> Result<Json<AgentStatus>, Problem> {
    let agent: AgentId = id("an agent's id", &agent)?;
    let org = deps.tasks.agent(&agent).await?.org;
    if !caller.sees(&org) {
        return Err(task::Error::UnknownAgent(agent).into());
    }
    caller.must_operate(&org, if on { "drain an agent" } else { "resume an agent" })?;
    let status = deps.tasks.drain(&agent, on, &caller.requester()).await?;
    deps.identity.agents_changed(&org);
    Ok(Json(status))
}
