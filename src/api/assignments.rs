//! `/v1/assignments/{id}/…`: what a winner reports. Each body carries `task_id` and `epoch`, and for
//! the service `agent_id` where it is not the task's present agent.
use super::{
    Deps,
    caller::Caller,
    input::{Body, id},
    problem::Problem,
};
use crate::{
    id::{AgentId, Epoch, TaskId},
    task::{AssignmentKey, Failure, Progress, Question, Request, Usage, WaitFor},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// What every report carries.
#[derive(Deserialize)]
struct Who {
    task_id: TaskId,
    epoch: Epoch,
    agent_id: Option<AgentId>,
}

#[derive(Deserialize)]
struct Finished {
    result: Value,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Failed {
    error: Failure,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct GivenUp {
    #[serde(default)]
    reason: String,
    checkpoint: Option<Value>,
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    #[serde(rename = "for", default)]
    wait_for: WaitFor,
    checkpoint: Option<Value>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Wished {
    task: Request,
}

/// `accept` answers what to work on; `confirm`, `question`, `result`, `failure` and `release` answer the
/// task as it is after them; `request` answers the part that it requests as `POST /v1/tasks` does; `refuse`, `progress` and `heartbeat` answer nothing. An old epoch is `fenced`.
pub(super) async fn report(
    State(deps): State<Deps>,
    caller: Caller,
    Path((assignment, report)): Path<(String, String)>,
    Body(body): Body<Value>,
) -> Result<Response, Problem> {
    let who: Who = part(&body)?;
    let assignment_id = id("an assignment's id", &assignment)?;
    let key = AssignmentKey { task_id: who.task_id, assignment_id, epoch: who.epoch };
    let agent = speaker(&deps, &caller, &who).await?;
    // Whoever reports lives, also one that polls only between its jobs.
    deps.post.touch(&agent);
    let tasks = &deps.tasks;
    Ok(match report.as_str() {
        "accept" => Json(tasks.accept(key, &agent).await?).into_response(),
        "confirm" => Json(tasks.confirm(key, &agent).await?).into_response(),
        "question" => {
            let Asked { question, wait_for, checkpoint, usage } = part(&body)?;
            let question = Question { wait_for, question, checkpoint, usage };
            Json(tasks.ask(key, &agent, question).await?).into_response()
        }
        "request" => {
            let Wished { task } = part(&body)?;
            let org = tasks.get(key.task_id).await?.org;
            if !caller.sees(&org) {
                return Err(crate::task::Error::UnknownTask(key.task_id).into());
            }
            let requested = tasks.request_part(&org, key, &agent, task).await?;
            let status = if requested.replayed { StatusCode::OK } else { StatusCode::CREATED };
            (status, Json(requested)).into_response()
        }
        "refuse" => {
            let GivenUp { reason, .. } = part(&body)?;
            tasks.refuse(key, &agent, &reason).await?;
            StatusCode::NO_CONTENT.into_response()
        }
        "progress" => {
            let progress: Progress = part(&body)?;
            tasks.progress(key, &agent, progress).await?;
            StatusCode::NO_CONTENT.into_response()
        }
        "heartbeat" => {
            tasks.heartbeat(key, &agent).await?;
            StatusCode::NO_CONTENT.into_response()
        }
        "result" => {
            let Finished { result, usage } = part(&body)?;
            Json(tasks.finish(key, &agent, result, usage).await?).into_response()
        }
        "failure" => {
            let Failed { mut error, usage } = part(&body)?;
            error.usage = usage.unwrap_or(error.usage);
            Json(tasks.fail(key, &agent, error).await?).into_response()
        }
        "release" => {
            let GivenUp { reason, checkpoint } = part(&body)?;
            Json(tasks.release(key, &agent, &reason, checkpoint).await?).into_response()
        }
        other => {
            let detail = format!(
                "there is no report {other:?}: use accept, confirm, refuse, progress, heartbeat, request, \
                 question, result, failure or release"
            );
            return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", detail));
        }
    })
}

/// The agent of the token; the service speaks as the one that it names, else as the task's own.
async fn speaker(deps: &Deps, caller: &Caller, who: &Who) -> Result<AgentId, Problem> {
    if let Some(agent) = caller.agent(who.agent_id.clone())? {
        return Ok(agent);
    }
    let task = deps.tasks.get(who.task_id).await?;
    task.agent_id.ok_or_else(|| Problem::bad_request("nobody has the task: say who reports with agent_id"))
}

fn part<T: DeserializeOwned>(body: &Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(body).map_err(|e| {
        let path = e.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Problem::bad_request(format!("the body is not as expected: {place}{}", e.into_inner()))
    })
}
