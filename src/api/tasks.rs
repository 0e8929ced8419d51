//! `/v1/tasks`: request, look, follow, cancel, offer.
use super::{
    Deps,
    caller::Caller,
    input::{self, Body, Params, id},
    polls,
    problem::Problem,
    stream, wait,
};
use crate::{
    id::{AgentId, OrgId, TaskId},
    task::{Budget, Event, Filter, NewOffer, Request, Task, Update},
};
use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Events in one answer, at most and unless said.
const EVENTS_MAX: i64 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestQuery {
    org: Option<OrgId>,
}

/// A request as `reference/negotiation.md` §6 has it. 201 with `{task, replayed}`, or 200 when an
/// earlier request with the same key made the task.
pub(super) async fn request(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<RequestQuery>,
    headers: HeaderMap,
    Body(mut request): Body<Request>,
) -> Result<Response, Problem> {
    let org = caller.org(query.org)?;
    if let Some(key) = headers.get(IDEMPOTENCY_KEY) {
        let key = key.to_str().map_err(|_| Problem::bad_request("the header Idempotency-Key is no text"))?;
        // RFC 9110 structured fields put the key in quotes; most clients do not.
        let key = key.trim().trim_matches('"').to_owned();
        if request.idempotency_key.as_ref().is_some_and(|own| *own != key) {
            return Err(Problem::bad_request(
                "the header Idempotency-Key and idempotency_key in the body differ",
            ));
        }
        request.idempotency_key = Some(key);
    }
    let requested = deps.tasks.request(&org, &caller.name(), request).await?;
    let status = if requested.replayed { StatusCode::OK } else { StatusCode::CREATED };
    let location = [("location", format!("/v1/tasks/{}", requested.task.id))];
    Ok((status, location, Json(requested)).into_response())
}

/// `{tasks: […]}`, newest first; `?state=&kind=&limit=&before=`, and `?org=` for the service.
pub(super) async fn list(
    State(deps): State<Deps>,
    caller: Caller,
    Params(mut filter): Params<Filter>,
) -> Result<Json<Value>, Problem> {
    input::limit(filter.limit)?;
    filter.org = caller.view(filter.org)?;
    let tasks = deps.tasks.list(&filter).await?;
    Ok(Json(json!({ "tasks": tasks })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    #[serde(default, deserialize_with = "wait::parse")]
    wait: Duration,
}

/// The task; with `?wait=30s`, as soon as it is final or the time is up.
pub(super) async fn show(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Params(query): Params<WaitQuery>,
) -> Result<Json<Task>, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let ask = || async { caller.visible(task, deps.tasks.get(task).await?) };
    let place = polls::place(&deps.polls, &caller, query.wait)?;
    wait::until(query.wait, place.as_ref(), deps.tasks.changed(), &deps.stop, ask, |task| {
        task.state.is_final()
    })
    .await
    .map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    #[serde(default)]
    after: i64,
    limit: Option<i64>,
    #[serde(default, deserialize_with = "wait::parse")]
    wait: Duration,
}

/// `{events: […], next: seq, final: bool}` after `?after=`; with `?wait=`, waits for the first one. To whoever
/// accepts `text/event-stream`, a stream of them until the task has ended, after `Last-Event-ID` or `?after=`.
pub(super) async fn events(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Params(query): Params<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let limit = input::limit(query.limit)?.unwrap_or(EVENTS_MAX).min(EVENTS_MAX);
    if accepts_stream(&headers) {
        caller.visible(task, deps.tasks.get(task).await?)?;
        let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.trim().parse().ok());
        let place = polls::place(&deps.polls, &caller, Duration::MAX)?;
        return Ok(stream::of(deps.tasks, task, last.unwrap_or(query.after), place, deps.stop));
    }
    let ask = || async {
        // The state is read first: a task that is final then has all its events now.
        let state = caller.visible(task, deps.tasks.get(task).await?)?.state;
        let events = deps.tasks.events(task, query.after, limit).await?;
        Ok::<(Vec<Event>, bool), Problem>((events, state.is_final()))
    };
    let done = |(events, last): &(Vec<Event>, bool)| *last || !events.is_empty();
    let place = polls::place(&deps.polls, &caller, query.wait)?;
    let (events, last) =
        wait::until(query.wait, place.as_ref(), deps.tasks.changed(), &deps.stop, ask, done).await?;
    let next = events.last().map_or(query.after, |event| event.seq);
    let complete = last && i64::try_from(events.len()).is_ok_and(|count| count < limit);
    Ok(Json(json!({ "events": events, "next": next, "final": complete })).into_response())
}

fn accepts_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get("accept").and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept
        .split(',')
        .any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "text/event-stream"))
}

/// Who offered what in each round, how it was scored, and why others did not offer.
pub(super) async fn why(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
) -> Result<Json<Value>, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    caller.visible(task, deps.tasks.get(task).await?)?;
    Ok(Json(deps.tasks.why(task).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelBody {
    #[serde(default = "no_reason")]
    reason: String,
}
fn no_reason() -> String {
    "canceled by its requester".into()
}

/// The task, `canceled` or `canceling`; one that was final before is told as `conflict`.
pub(super) async fn cancel(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<CancelBody>,
) -> Result<Json<Update>, Problem> {
    let id: TaskId = id("a task's id", &task)?;
    let task = caller.visible(id, deps.tasks.get(id).await?)?;
    caller.may_command("cancel", &task)?;
    Ok(Json(deps.tasks.cancel(id, &body.reason).await?))
}

/// Gives a task, or with `tree` the tree under it, other limits, and lets it go on if it waits for budget.
pub(super) async fn budget(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(budget): Body<Budget>,
) -> Result<Json<Update>, Problem> {
    let id: TaskId = id("a task's id", &task)?;
    let task = caller.visible(id, deps.tasks.get(id).await?)?;
    caller.may_command("give a budget to", &task)?;
    Ok(Json(deps.tasks.set_budget(id, &caller.name(), budget).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChooseBody {
    /// Whose offer.
    agent_id: AgentId,
}

/// The requester of a task whose award is `requester` takes an offer of the present round. 202: it is awarded.
pub(super) async fn choose(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<ChooseBody>,
) -> Result<StatusCode, Problem> {
    let id: TaskId = id("a task's id", &task)?;
    let task = caller.visible(id, deps.tasks.get(id).await?)?;
    caller.may_command("choose an offer on", &task)?;
    deps.tasks.choose(id, &body.agent_id).await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnswerBody {
    answer: Value,
}

/// Answers what a task waits for; it goes on. One that does not wait is told as `conflict`.
pub(super) async fn answer(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<AnswerBody>,
) -> Result<Json<Update>, Problem> {
    let id: TaskId = id("a task's id", &task)?;
    let task = caller.visible(id, deps.tasks.get(id).await?)?;
    caller.may_command("answer", &task)?;
    Ok(Json(deps.tasks.answer(id, &caller.name(), body.answer).await?))
}

/// Tries a task again that has failed or was canceled; any other is told as `conflict`.
pub(super) async fn requeue(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
) -> Result<Json<Update>, Problem> {
    let id: TaskId = id("a task's id", &task)?;
    let task = caller.visible(id, deps.tasks.get(id).await?)?;
    caller.may_command("requeue", &task)?;
    Ok(Json(deps.tasks.requeue(id, &caller.name()).await?))
}

#[derive(Deserialize)]
pub(super) struct OfferBody {
    /// Who offers; only the service must say.
    agent_id: Option<AgentId>,
    #[serde(flatten)]
    offer: NewOffer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclineBody {
    /// Who declines; only the service must say.
    agent_id: Option<AgentId>,
    round: i32,
    #[serde(default)]
    reason: String,
}

/// The agent that the token names will not offer in this round, which lets it close sooner. 202.
pub(super) async fn decline(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<DeclineBody>,
) -> Result<StatusCode, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let agent = caller
        .agent(body.agent_id)?
        .ok_or_else(|| Problem::bad_request("say which agent declines: agent_id"))?;
    caller.visible(task, deps.tasks.get(task).await?)?;
    deps.tasks.decline(task, &agent, body.round, &body.reason).await?;
    Ok(StatusCode::ACCEPTED)
}

/// An offer of the agent that the token names. 202: it takes part.
pub(super) async fn offer(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<OfferBody>,
) -> Result<StatusCode, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let agent = caller
        .agent(body.agent_id)?
        .ok_or_else(|| Problem::bad_request("say which agent offers: agent_id"))?;
    caller.visible(task, deps.tasks.get(task).await?)?;
    deps.tasks.offer(task, &agent, body.offer).await?;
    Ok(StatusCode::ACCEPTED)
}
