//! `/v1/assignments/{id}/…`: reports of the assigned agent.
//!
//! Each body has `task_id` and `epoch`. The service adds `agent_id` if it reports for another agent than the
//! task's current one.
use super::{
    Deps,
    caller::Caller,
    input::{Body, id},
    problem::Problem,
};
use crate::{
    id::{AgentId, AssignmentId, TaskId},
    remote::{self, AssignmentCommand, RemoteCommand, Reply},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// The members that every report has.
#[derive(Deserialize)]
struct Sender {
    task_id: TaskId,
    agent_id: Option<AgentId>,
}

/// Executes a report.
///
/// `accept` returns the work. `confirm`, `question`, `result`, `failure` and `release` return the updated
/// task. `request` returns the requested part like `POST /v1/tasks`. `refuse`, `progress` and `heartbeat`
/// return 204. A report with an old epoch is refused with `fenced`.
pub(super) async fn report(
    State(deps): State<Deps>,
    caller: Caller,
    Path((assignment, name)): Path<(String, String)>,
    Body(mut body): Body<Value>,
) -> Result<Response, Problem> {
    let sender: Sender = part(&body)?;
    let assignment: AssignmentId = id("an assignment's id", &assignment)?;
    let agent = reporter(&deps, &caller, &sender).await?;
    // Also renews the lease of the agent's inbox, for agents that poll only between jobs.
    deps.inboxes.renew(&agent);
    let report = AssignmentCommand::named(&name).ok_or_else(|| unknown(&name))?;
    if let Some(object) = body.as_object_mut() {
        object.insert("assignment_id".into(), json!(assignment));
    }
    let command = report.read(&body).map_err(Problem::bad_request)?;
    Ok(match remote::execute(&deps.tasks, &caller, RemoteCommand::Agent(agent, command)).await? {
        Reply::Done => StatusCode::NO_CONTENT.into_response(),
        Reply::Updated(update) => Json(update).into_response(),
        Reply::Started(start) => Json(start).into_response(),
        Reply::Requested(requested) => {
            let status = if requested.replayed { StatusCode::OK } else { StatusCode::CREATED };
            (status, Json(requested)).into_response()
        }
    })
}

fn unknown(name: &str) -> Problem {
    let mut names: Vec<_> = AssignmentCommand::names().collect();
    let last = names.pop().unwrap_or_default();
    let detail = format!("there is no report {name:?}: use {} or {last}", names.join(", "));
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
}

/// Returns the agent that reports: the agent of the token; for the service the named one, else the task's
/// current agent.
async fn reporter(deps: &Deps, caller: &Caller, sender: &Sender) -> Result<AgentId, Problem> {
    if let Some(agent) = caller.speaks_as(sender.agent_id.clone())? {
        deps.identity.check_org(&deps.tasks, caller, &agent).await?;
        return Ok(agent);
    }
    let task = deps.tasks.get(sender.task_id).await?;
    task.agent_id
        .ok_or_else(|| Problem::bad_request("the task has no agent: name the reporting agent in agent_id"))
}

fn part<T: DeserializeOwned>(body: &Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(body).map_err(|e| {
        let path = e.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Problem::bad_request(format!("the body is not as expected: {place}{}", e.into_inner()))
    })
}
