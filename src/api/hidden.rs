//! `dashboard.data = "operators"`: viewers of the dashboard get no data of tasks.
//!
//! Every answer below `/v1` to a viewer passes here, and members that hold what requesters, agents and people wrote
//! become null: inputs, results, errors, questions, notes, the bodies of events. An answer that is no JSON is refused.
//! The rooms of agents are closed to viewers by `remote::Audience`, and rows by `convoke.sees`.
use super::{Deps, caller::Caller, problem::Problem};
use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::Value;

/// The members that hold data of tasks, in whatever answer they are.
const DATA: [&str; 13] = [
    "activity",
    "body",
    "checkpoint",
    "error",
    "input",
    "input_preview",
    // Of changes that wait to be coalesced: a value of the changed row.
    "key",
    "last_error",
    "note",
    "outcome",
    "question",
    "reason",
    "result",
];
/// Most bytes of an answer in which data is looked for.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Removes the data of tasks from the answer to a viewer.
pub(super) async fn from_viewers(State(deps): State<Deps>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    // A request without a valid token is refused by the handler, with its own words.
    let is_viewer =
        Caller::from_request_parts(&mut parts, &deps).await.is_ok_and(|caller| caller.is_viewer());
    let answer = next.run(Request::from_parts(parts, body)).await;
    if is_viewer && answer.status().is_success() {
        without_data(answer).await.unwrap_or_else(IntoResponse::into_response)
    } else {
        answer
    }
}

async fn without_data(answer: Response) -> Result<Response, Problem> {
    if !is_json(answer.headers()) {
        return Err(Problem::forbidden(
            "viewers of the dashboard see no data of tasks here: ask for application/json",
        ));
    }
    let (mut head, body) = answer.into_parts();
    let too_large = |_| Problem::bad_request("the answer is too large: ask for fewer tasks with limit=");
    let bytes = to_bytes(body, ANSWER_BYTES_MAX).await.map_err(too_large)?;
    let mut value: Value =
        serde_json::from_slice(&bytes).map_err(|_| Problem::internal("the answer is no JSON"))?;
    hide(&mut value);
    head.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, Body::from(value.to_string())))
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json")
}

fn hide(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::Object(members) => {
            for (name, member) in members {
                if DATA.contains(&name.as_str()) { *member = Value::Null } else { hide(member) }
            }
        }
        _ => {}
    }
}
