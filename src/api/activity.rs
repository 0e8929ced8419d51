//! `/v1/lanes`, `/v1/spend` and `/v1/triggers`: what agents did over time, for pages, and what a wake would do.
use super::{
    Deps,
    caller::Caller,
    input::{Body, Params},
    problem::Problem,
};
use crate::{
    agent::{Definition, Schedule, Trial, TrialError, TrialRow, Wake},
    id::{AgentId, OrgId},
    task::{SpendBy, TriggerState},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

/// The longest range of lanes.
const LANES_HOURS_MAX: i64 = 24;
/// The longest range of spending by hour.
const SPEND_DAYS_MAX: i64 = 31;
/// The longest range of spending by dimensions, in days: a bill of a month is compared when it is over.
pub const SPEND_BY_DAYS_MAX: i64 = 92;
/// Most agents of lanes.
const AGENTS_MAX: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LanesQuery {
    org: Option<OrgId>,
    /// Defaults to ten minutes before `to`.
    from: Option<DateTime<Utc>>,
    /// Defaults to now.
    to: Option<DateTime<Utc>>,
    /// Ids with commas; all agents without it.
    #[serde(default)]
    agents: String,
}

/// `{from, to, bars: [{assignment_id, task_id, agent_id, kind, epoch, state, awarded_at, …}], more}`: the assignments
/// that touch the range.
pub(super) async fn lanes(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<LanesQuery>,
) -> Result<Json<Value>, Problem> {
    let org = caller.org_for(query.org)?;
    let to = query.to.unwrap_or_else(|| deps.clock.now());
    // A time near the end of the calendar cannot be computed with.
    let years = 2000..10_000;
    if !query.from.iter().chain([&to]).all(|time| years.contains(&time.year())) {
        return Err(Problem::bad_request("from and to must be in the years 2000 to 9999"));
    }
    let from = query.from.unwrap_or_else(|| to - TimeDelta::minutes(10));
    if from >= to || to - from > TimeDelta::hours(LANES_HOURS_MAX) {
        return Err(Problem::bad_request(format!(
            "from must be before to, by at most {LANES_HOURS_MAX} hours"
        )));
    }
    let names = query.agents.split(',').map(str::trim).filter(|name| !name.is_empty());
    let agents: Vec<AgentId> = names
        .map(|name| {
            name.parse::<AgentId>()
                .map_err(|e| Problem::bad_request(format!("{name:?} is not an agent's id: {e}")))
        })
        .collect::<Result<_, _>>()?;
    if agents.len() > AGENTS_MAX {
        return Err(Problem::bad_request(format!("name at most {AGENTS_MAX} agents")));
    }
    let (bars, more) = deps.tasks.lanes(&org, from, to, &agents).await?;
    Ok(Json(json!({ "from": from, "to": to, "bars": bars, "more": more })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpendQuery {
    org: Option<OrgId>,
    /// Defaults to seven days ago.
    from: Option<DateTime<Utc>>,
    /// Dimensions with commas. Without it by hour, agent and kind, with what is reserved now.
    by: Option<String>,
}

/// `{from, rows: [{hour, agent_id, kind, attempts, tokens, microdollars, presumed, reserved}], partial}`: what was used
/// since the hour of `from`. With `by`, the rows have these dimensions, and the tokens in parts; `by=org` is for the
/// service, and shows every org unless one is named.
pub(super) async fn spend(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<SpendQuery>,
) -> Result<Json<Value>, Problem> {
    let viewed = caller.view(query.org.clone())?;
    let org = caller.org_for(query.org)?;
    let now = deps.clock.now();
    let from = query.from.unwrap_or_else(|| now - TimeDelta::days(7));
    let days_max = if query.by.is_some() { SPEND_BY_DAYS_MAX } else { SPEND_DAYS_MAX };
    if from >= now || now - from > TimeDelta::days(days_max) {
        return Err(Problem::bad_request(format!("from must be in the last {days_max} days")));
    }
    let (rows, partial) = match query.by.as_deref().map(dimensions).transpose()? {
        None => deps.tasks.spend(&org, from).await?,
        Some(by) if by.contains(&SpendBy::Org) => {
            caller.must_be_service("see what other orgs spend")?;
            deps.tasks.spend_by(viewed.as_ref(), from, &by).await?
        }
        Some(by) => deps.tasks.spend_by(Some(&org), from, &by).await?,
    };
    Ok(Json(json!({ "from": from, "rows": rows, "partial": partial })))
}

/// The dimensions in a text with commas.
fn dimensions(text: &str) -> Result<Vec<SpendBy>, Problem> {
    let one = |name: &str| {
        SpendBy::ALL.into_iter().find(|by| by.as_str() == name.trim()).ok_or_else(|| {
            let all = SpendBy::ALL.map(SpendBy::as_str).join(", ");
            Problem::bad_request(format!("by has no {name:?}; use some of {all}, with commas"))
        })
    };
    text.split(',').map(one).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TriggersQuery {
    org: Option<OrgId>,
}

/// `{triggers: [{trigger, kind, agent_id, …, last_at, last_task}], bursts: […]}`: the wakes and schedules of the agents'
/// files of an org, with what each did last, and changes that wait to be coalesced.
pub(super) async fn triggers(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<TriggersQuery>,
) -> Result<Json<Value>, Problem> {
    let org = caller.org_for(query.org)?;
    let mut triggers: Vec<Value> =
        deps.agents.definitions_of(&org).iter().flat_map(|of| defined(of)).collect();
    let named = |kind: &str, trigger: &Value| trigger["kind"] == kind;
    let wakes: Vec<String> = triggers
        .iter()
        .filter(|trigger| named("wake", trigger))
        .filter_map(|trigger| trigger["trigger"].as_str().map(str::to_owned))
        .collect();
    let mut bursts = Vec::new();
    for TriggerState { kind, trigger, shown } in deps.tasks.triggers(&org, &wakes).await? {
        if kind == "burst" {
            bursts.push(merged(json!({ "trigger": trigger }), shown));
        } else if let Some(known) =
            triggers.iter_mut().find(|it| it["trigger"] == trigger.as_str() && it["kind"] == kind.as_str())
        {
            *known = merged(known.take(), shown);
        }
    }
    Ok(Json(json!({ "triggers": triggers, "bursts": bursts })))
}

/// What a wake would do with a row; changes nothing. 404 for a wake that the org does not have, 400 for a row that the
/// table cannot have, 422 for a wake that does not fit its table.
pub(super) async fn try_wake(
    State(deps): State<Deps>,
    caller: Caller,
    Path(trigger): Path<String>,
    Params(query): Params<TriggersQuery>,
    Body(tried): Body<TrialRow>,
) -> Result<Json<Trial>, Problem> {
    caller.may_administer("try the filter of a wake")?;
    let org = caller.org_for(query.org)?;
    let wakes = deps.agents.wakes();
    let trial = deps.trials.try_row(&wakes, (&org, &trigger), tried, deps.clock.now()).await;
    trial.map(Json).map_err(|error| match &error {
        TrialError::UnknownWake(_) => {
            Problem::new(StatusCode::NOT_FOUND, "unknown_wake", format!("{error} in the org {org}"))
        }
        TrialError::BadWake(_) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_wake", error.to_string())
        }
        TrialError::BadRow(_) => Problem::bad_request(error.to_string()),
        TrialError::TooSlow | TrialError::Database(_) => {
            Problem::unavailable(format!("{error}: try again later"))
        }
    })
}

/// The wakes and schedules of an agent's file.
fn defined(of: &Definition) -> Vec<Value> {
    let agent = &of.id;
    let wake = |(at, wake): (usize, &Wake)| {
        json!({
            "kind": "wake", "trigger": format!("{agent}#{at}"), "agent_id": agent, "table": wake.table,
            "events": wake.events.iter().map(|event| event.as_str()).collect::<Vec<_>>(), "filter": wake.filter,
            "reads": wake.columns(),
            "coalesces": wake.debounce.is_some() || wake.coalesce_by.is_some(), "requests": wake.request.kind,
        })
    };
    let schedule = |(at, schedule): (usize, &Schedule)| {
        json!({
            "kind": "schedule", "trigger": format!("{agent}#schedule.{at}"), "agent_id": agent,
            "cron": schedule.cron, "timezone": schedule.timezone, "requests": schedule.request.kind,
        })
    };
    let wakes = of.wake.iter().enumerate().map(wake);
    wakes.chain(of.schedule.iter().enumerate().map(schedule)).collect()
}

/// `base` with the members of `more`.
fn merged(mut base: Value, more: Value) -> Value {
    if let (Some(members), Value::Object(more)) = (base.as_object_mut(), more) {
        members.extend(more);
    }
    base
}
