//! `/v1/tasks`: request, read, follow, cancel, offer.
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
    remote::{self, AgentCommand, RemoteCommand, Reply, RequesterCommand, no_cancel_reason},
    task::{
        Budget, Bulk, BulkDone, Event, Filter, ForkPoint, LineFilter, Lines, NewOffer, Request, Requeue,
        Requeued, Task,
    },
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use std::time::Duration;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const TRACEPARENT: &str = "traceparent";
/// Most events in one answer, and the default.
const EVENTS_MAX: i64 = 1000;

/// The routes below `/v1`.
pub(super) fn routes() -> Router<Deps> {
    Router::new()
        .route("/tasks", post(request).get(list))
        .route("/tasks/requeue", post(requeue_all))
        .route("/tasks/bulk", post(bulk))
        .route("/tasks/{id}", get(show))
        .route("/tasks/{id}/events", get(events))
        .route("/tasks/{id}/why", get(why))
        .route("/tasks/{id}/steps", get(steps))
        .route("/tasks/{id}/fork", post(fork))
        .route("/tasks/{id}/tree", get(tree))
        .route("/tasks/{id}/cancel", post(cancel))
        .route("/tasks/{id}/budget", post(budget))
        .route("/tasks/{id}/choose", post(choose))
        .route("/tasks/{id}/answer", post(answer))
        .route("/tasks/{id}/requeue", post(requeue))
        .route("/tasks/{id}/offers", post(offer))
        .route("/tasks/{id}/decline", post(decline))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestQuery {
    org: Option<OrgId>,
}

/// Requests a task (`docs/spec/negotiation.md` §6). 201 with `{task, replayed}`, or 200 if an earlier request
/// with the same idempotency key created the task.
pub(super) async fn request(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<RequestQuery>,
    headers: HeaderMap,
    Body(mut request): Body<Request>,
) -> Result<Response, Problem> {
    let org = caller.org_for(query.org)?;
    if let Some(key) = headers.get(IDEMPOTENCY_KEY) {
        let key =
            key.to_str().map_err(|_| Problem::bad_request("the header Idempotency-Key is not ASCII text"))?;
        // RFC 9110 structured fields put the key in quotes; most clients do not.
        let key = key.trim().trim_matches('"').to_owned();
        if request.idempotency_key.as_ref().is_some_and(|own| *own != key) {
            return Err(Problem::bad_request(
                "the header Idempotency-Key and idempotency_key in the body differ",
            ));
        }
        request.idempotency_key = Some(key);
    }
    // One that cannot be read is ignored, as W3C demands.
    let trace = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()?.parse().ok());
    request.traceparent = request.traceparent.or(trace);
    let command = RequesterCommand::Request(Box::new(request));
    let command = RemoteCommand::Requester(caller.requester(), org, command);
    match remote::execute(&deps.tasks, &caller, command).await? {
        Reply::Requested(requested) => {
            let status = if requested.replayed { StatusCode::OK } else { StatusCode::CREATED };
            let location = [("location", format!("/v1/tasks/{}", requested.task.id))];
            Ok((status, location, Json(requested)).into_response())
        }
        other => Ok(respond(other)),
    }
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    view: Option<View>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum View {
    Line,
}

/// `{tasks: […]}`, newest first. Parameters `?state=&kind=&limit=&before=`, and `?org=` for the service. With
/// `?view=line` the tasks have no inputs and results, and there are more filters ([`LineFilter`]).
pub(super) async fn list(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<ListQuery>,
    request: Parts,
) -> Result<Response, Problem> {
    Ok(match query.view {
        Some(View::Line) => lines(&deps, &caller, input::params(&request.uri)?).await?.into_response(),
        None => whole(&deps, &caller, input::params(&request.uri)?).await?.into_response(),
    })
}

#[derive(Serialize)]
struct Listed {
    tasks: Vec<Box<RawValue>>,
    partial: Option<Value>,
}

async fn lines(deps: &Deps, caller: &Caller, mut filter: LineFilter) -> Result<Json<Listed>, Problem> {
    input::limit(filter.limit)?;
    filter.org = caller.view(filter.org)?;
    let Lines { tasks, scanned_to } = deps.tasks.lines(&filter).await?;
    let partial = scanned_to.map(|id| json!({ "scanned_to": id }));
    Ok(Json(Listed { tasks, partial }))
}

async fn whole(deps: &Deps, caller: &Caller, mut filter: Filter) -> Result<Json<Value>, Problem> {
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

/// The task; with `?wait=30s` as soon as it is final, or when the time is up.
pub(super) async fn show(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Params(query): Params<WaitQuery>,
) -> Result<Json<Task>, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let ask = || async { caller.visible(task, deps.tasks.get(task).await?) };
    let permit = polls::permit(&deps.polls, &caller, query.wait)?;
    wait::until(query.wait, permit.as_ref(), deps.tasks.changed(), &deps.stop, ask, |task| {
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

/// `{events: […], next: seq, final: bool}` after `?after=`; with `?wait=`, waits for the first event.
///
/// With `accept: text/event-stream`, a stream of events until the task is final, after `Last-Event-ID` or
/// `?after=`.
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
        let permit = polls::permit(&deps.polls, &caller, Duration::MAX)?;
        let within = (caller.claims().exp - deps.clock.now()).to_std().unwrap_or_default();
        let (reader, after) = (deps.tasks.reader(), last.unwrap_or(query.after));
        return Ok(stream::of(reader, task, after, permit, (deps.stop, within)));
    }
    let ask = || async {
        // The state before the events: if the task is final, the events read afterwards are complete.
        let state = caller.visible(task, deps.tasks.get(task).await?)?.state;
        let events = deps.tasks.events(task, query.after, limit).await?;
        Ok::<(Vec<Event>, bool), Problem>((events, state.is_final()))
    };
    let done = |(events, last): &(Vec<Event>, bool)| *last || !events.is_empty();
    let permit = polls::permit(&deps.polls, &caller, query.wait)?;
    let (events, last) =
        wait::until(query.wait, permit.as_ref(), deps.tasks.changed(), &deps.stop, ask, done).await?;
    let next = events.last().map_or(query.after, |event| event.seq);
    // A full page may have successors, so it is never the final one.
    let complete = last && i64::try_from(events.len()).is_ok_and(|count| count < limit);
    Ok(Json(json!({ "events": events, "next": next, "final": complete })).into_response())
}

fn accepts_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get("accept").and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept
        .split(',')
        .any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "text/event-stream"))
}

/// The offers of each round with their scores, and the reasons why other agents did not offer.
pub(super) async fn why(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
) -> Result<Json<Value>, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    caller.visible(task, deps.tasks.get(task).await?)?;
    Ok(Json(deps.tasks.why(task).await?))
}

/// `{runs: [{run, agent_id, model, …, steps: […]}]}`. Only the service and operators see texts, answers, arguments
/// and results.
pub(super) async fn steps(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
) -> Result<Json<Value>, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let found = caller.visible(task, deps.tasks.get(task).await?)?;
    let runs = deps.tasks.steps(task, caller.operates(&found.org)).await?;
    Ok(Json(json!({ "runs": runs })))
}

/// `{tasks: [line], more}`: the whole tree that the task belongs to, newest first.
pub(super) async fn tree(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
) -> Result<Json<Value>, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let found = caller.visible(task, deps.tasks.get(task).await?)?;
    let (tasks, more) = deps.tasks.tree(found.root_id.unwrap_or(task)).await?;
    // A part belongs to the org of the whole, but a row can be written by hand.
    let seen = |line: &Value| {
        line["org"].as_str().and_then(|org| org.parse().ok()).is_some_and(|org| caller.sees(&org))
    };
    let tasks: Vec<Value> = tasks.into_iter().filter(seen).collect();
    Ok(Json(json!({ "tasks": tasks, "more": more })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelBody {
    #[serde(default = "no_cancel_reason")]
    reason: String,
}
/// Cancels the task; returns it as `canceled` or `canceling`. `conflict` if it was final before.
pub(super) async fn cancel(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<CancelBody>,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    command(&deps, &caller, RequesterCommand::Cancel { task, reason: body.reason }).await
}

/// Executes a requester's command; 202 if the reply is empty.
async fn command(deps: &Deps, caller: &Caller, command: RequesterCommand) -> Result<Response, Problem> {
    let command = RemoteCommand::Requester(caller.requester(), caller.org(), command);
    Ok(respond(remote::execute(&deps.tasks, caller, command).await?))
}

fn respond(reply: Reply) -> Response {
    match reply {
        Reply::Done => StatusCode::ACCEPTED.into_response(),
        Reply::Updated(update) => Json(update).into_response(),
        Reply::Started(start) => Json(start).into_response(),
        Reply::Requested(requested) => Json(requested).into_response(),
    }
}

/// Sets the limits of a task, or with `tree` of its tree. A task that waits for budget continues if they
/// suffice.
pub(super) async fn budget(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(budget): Body<Budget>,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    command(&deps, &caller, RequesterCommand::SetBudget { task, budget }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChooseBody {
    /// The agent whose offer is chosen.
    agent_id: AgentId,
}

/// Awards an offer of the current round, for a task whose award is `requester`. 202.
pub(super) async fn choose(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<ChooseBody>,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    command(&deps, &caller, RequesterCommand::Choose { task, chosen: body.agent_id }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnswerBody {
    answer: Value,
}

/// Answers the question that a task waits for; the task continues. `conflict` if it does not wait.
pub(super) async fn answer(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<AnswerBody>,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    command(&deps, &caller, RequesterCommand::Answer { task, answer: body.answer }).await
}

/// Requeues a task that failed or was canceled; `conflict` in any other state.
pub(super) async fn requeue(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    command(&deps, &caller, RequesterCommand::Requeue(task)).await
}

/// Requests a task whose run begins with the steps of this one's, up to `at`. 201 with `{task, replayed}`. For operators:
/// the steps contain what the model and its tools said.
pub(super) async fn fork(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(from): Body<ForkPoint>,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let found = caller.visible(task, deps.tasks.get(task).await?)?;
    caller.must_operate(&found.org, "fork a task")?;
    let requested = deps.tasks.fork(task, from, caller.requester()).await?;
    let location = [("location", format!("/v1/tasks/{}", requested.task.id))];
    Ok((StatusCode::CREATED, location, Json(requested)).into_response())
}

/// Requeues every task that the filter in the body matches: `{tasks, refused, more}`. Restricted to the
/// caller's own tasks, except for operators and the service.
pub(super) async fn requeue_all(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<RequestQuery>,
    Body(filter): Body<Requeue>,
) -> Result<Json<Requeued>, Problem> {
    input::limit(filter.limit)?;
    let org = caller.view(query.org)?;
    let by = caller.requester();
    let operates = caller.is_service() || org.as_ref().is_some_and(|org| caller.operates(org));
    let own = (!operates).then_some(&by);
    Ok(Json(deps.tasks.requeue_all(org.as_ref(), own, &by, &filter).await?))
}

/// Cancels or requeues many tasks of an org: `{tasks, refused, more}`. For operators.
pub(super) async fn bulk(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<RequestQuery>,
    Body(body): Body<Bulk>,
) -> Result<Json<BulkDone>, Problem> {
    let org = caller.org_for(query.org)?;
    caller.must_operate(&org, "change many tasks at once")?;
    Ok(Json(deps.tasks.bulk(&org, &caller.requester(), body).await?))
}

#[derive(Deserialize)]
pub(super) struct OfferBody {
    /// The offering agent; required for the service, else the token's.
    agent_id: Option<AgentId>,
    #[serde(flatten)]
    offer: NewOffer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclineBody {
    /// The declining agent; required for the service, else the token's.
    agent_id: Option<AgentId>,
    round: i32,
    #[serde(default)]
    reason: String,
}

/// Declines the current round for the agent, so that the round can close sooner. 202.
pub(super) async fn decline(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<DeclineBody>,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let agent = caller
        .speaks_as(body.agent_id)?
        .ok_or_else(|| Problem::bad_request("name the declining agent in agent_id"))?;
    deps.identity.check_org(&deps.tasks, &caller, &agent).await?;
    let command = AgentCommand::Decline { task, round: body.round, reason: body.reason };
    Ok(respond(remote::execute(&deps.tasks, &caller, RemoteCommand::Agent(agent, command)).await?))
}

/// Submits an offer of the agent. 202: the offer takes part in the round.
pub(super) async fn offer(
    State(deps): State<Deps>,
    caller: Caller,
    Path(task): Path<String>,
    Body(body): Body<OfferBody>,
) -> Result<Response, Problem> {
    let task: TaskId = id("a task's id", &task)?;
    let agent = caller
        .speaks_as(body.agent_id)?
        .ok_or_else(|| Problem::bad_request("name the offering agent in agent_id"))?;
    deps.identity.check_org(&deps.tasks, &caller, &agent).await?;
    let command = AgentCommand::Offer { task, offer: body.offer };
    Ok(respond(remote::execute(&deps.tasks, &caller, RemoteCommand::Agent(agent, command)).await?))
}
