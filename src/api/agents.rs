//! `/v1/agents`: the registered agents.
use super::{
    Deps,
    caller::Caller,
    input::{Params, id},
    problem::Problem,
};
use crate::{
    agent::{Agents, Limits},
    id::{AgentId, OrgId},
    task::{self, AgentLine, AgentStatus},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    org: Option<OrgId>,
    view: Option<View>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum View {
    Line,
}

/// `{agents: […]}` of the caller's org. For the service, of every org or of `?org=`. With `?view=line` each also has its
/// terms, limits, spending, offers and problem.
pub(super) async fn list(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<Query>,
) -> Result<Json<Value>, Problem> {
    let org = caller.view(query.org)?;
    if query.view.is_none() {
        let agents = deps.tasks.agents(org.as_ref()).await?;
        return Ok(Json(json!({ "agents": agents })));
    }
    let lines = deps.tasks.agent_lines(org.as_ref()).await?;
    let agents: Vec<Shown> = lines.into_iter().map(|line| Shown::of(line, &deps.agents)).collect();
    Ok(Json(json!({ "agents": agents })))
}

/// A line with what this daemon knows of the agent itself.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    line: AgentLine,
    /// Of its file; null without one.
    limits: Option<Limits>,
    /// In the last 60 minutes; null for an agent that this daemon does not host.
    spent_last_hour: Option<u64>,
    /// Why it is left out; null if it is not.
    problem: Option<String>,
}

impl Shown {
    fn of(line: AgentLine, agents: &Agents) -> Self {
        let id = &line.status.id;
        let limits = agents.definition(id).map(|definition| definition.limits.clone());
        let problem = agents.problem(id).map(str::to_owned);
        Self { limits, spent_last_hour: agents.spent_last_hour(id), problem, line }
    }
}

/// `{agent_id, hash, definition}`: the file of an agent as it was read, with the names of variables only. For
/// operators of its org.
pub(super) async fn definition(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
) -> Result<Json<Value>, Problem> {
    let agent: AgentId = id("an agent's id", &agent)?;
    let org = deps.tasks.agent(&agent).await?.org;
    if !caller.sees(&org) {
        return Err(task::Error::UnknownAgent(agent).into());
    }
    caller.must_operate(&org, "read the definition of an agent")?;
    let Some(definition) = deps.agents.definition(&agent).filter(|definition| definition.org == org) else {
        let detail = format!("this daemon has no usable definition of agent {agent}");
        return Err(Problem::new(StatusCode::NOT_FOUND, "no_definition", detail));
    };
    let (hash, shown) = (definition.hash(), definition.shown());
    Ok(Json(json!({ "agent_id": agent, "hash": hash, "definition": shown })))
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
