//! `/v1/agents`: the registered agents.
use super::{
    Deps,
    caller::Caller,
    input::{Params, id},
    problem::Problem,
};
use crate::{
    id::OrgId,
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
