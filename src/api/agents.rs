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
    task::{self, AgentLine, AgentStatus, DefinitionVersion},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Digits of a hash that name a version; fewer could be a number.
const HASH_DIGITS_MIN: usize = 6;

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
        let AgentStatus { id, org, .. } = &line.status;
        // A file here may have the id of an agent that is registered in another org, which learns nothing of it.
        let own = Some(id).filter(|id| agents.org_of(id).is_some_and(|of| of == *org));
        let limits = own.and_then(|id| agents.definition(id)).map(|definition| definition.limits.clone());
        let (problem, spent_last_hour) =
            (own.and_then(|id| agents.problem(id)), own.and_then(|id| agents.spent_last_hour(id)));
        Self { limits, spent_last_hour, problem, line }
    }
}

/// Which definition is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DefinitionQuery {
    /// A number, or the first digits of a hash, at least six. The one that is in use without it.
    version: Option<String>,
}

/// `{agent_id, hash, definition, versions: [{version, hash, applied_at}]}`: the file of an agent as it was read, now or
/// in an earlier version, with the names of variables only. For operators of its org.
pub(super) async fn definition(
    State(deps): State<Deps>,
    caller: Caller,
    Path(agent): Path<String>,
    Params(query): Params<DefinitionQuery>,
) -> Result<Json<Value>, Problem> {
    let agent: AgentId = id("an agent's id", &agent)?;
    let org = deps.tasks.agent(&agent).await?.org;
    if !caller.sees(&org) {
        return Err(task::Error::UnknownAgent(agent).into());
    }
    caller.must_operate(&org, "read the definition of an agent")?;
    // An agent may have been of another org before.
    let mut versions = deps.tasks.definition_versions(&agent).await?;
    versions.retain(|version| version.body.get("org").is_some_and(|of| *of == org.as_str()));
    let (hash, shown) = match &query.version {
        None => {
            let now = deps.agents.definition(&agent).filter(|definition| definition.org == org);
            now.map(|definition| (definition.hash(), definition.shown()))
        }
        Some(name) => {
            let found = versions.iter().find(|version| is_named(version, name));
            found.map(|version| (version.hash.clone(), version.body.clone()))
        }
    }
    .ok_or_else(|| {
        let which = query.version.map_or_else(String::new, |version| format!(" {version}"));
        let detail = format!("this daemon has no usable definition{which} of agent {agent}");
        Problem::new(StatusCode::NOT_FOUND, "no_definition", detail)
    })?;
    let line = |version: &DefinitionVersion| json!({ "version": version.version, "hash": version.hash, "applied_at": version.applied_at });
    let versions: Vec<Value> = versions.iter().map(line).collect();
    Ok(Json(json!({ "agent_id": agent, "hash": hash, "definition": shown, "versions": versions })))
}

/// By its number, or by the first digits of its hash.
fn is_named(version: &DefinitionVersion, name: &str) -> bool {
    version.version.to_string() == name || (name.len() >= HASH_DIGITS_MIN && version.hash.starts_with(name))
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
