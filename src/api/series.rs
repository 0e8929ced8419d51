//! `/v1/series`: the past of the daemon's metrics, for charts.
use super::{Deps, caller::Caller, input::Params, problem::Problem};
use crate::telemetry::{SERIES, Samples, Step};
use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    /// Names of metrics with commas; all that are kept without it.
    #[serde(default)]
    names: String,
    /// Defaults to all that is kept in this step.
    from: Option<DateTime<Utc>>,
    /// `1s` for the last 15 minutes, `1m` for the last 24 hours. Defaults to the finest that reaches `from`.
    step: Option<String>,
}

/// `{at, step_seconds, times, values: {name: […]}}`: chosen metrics of the daemon, as they are at `/metrics`.
pub(super) async fn read(
    State(deps): State<Deps>,
    _: Caller,
    Params(query): Params<Query>,
) -> Result<Json<Value>, Problem> {
    let now = deps.clock.now();
    let from = query.from.map(|from| from.timestamp());
    let step = match query.step.as_deref() {
        Some("1s") => Step::Second,
        Some("1m") => Step::Minute,
        Some(other) => return Err(Problem::bad_request(format!("step is {other:?}: use 1s or 1m"))),
        None if from.is_some_and(|from| now.timestamp() - from > Step::Second.reach()) => Step::Minute,
        None => Step::Second,
    };
    let named: Vec<&str> = query.names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = named.iter().find(|name| !SERIES.contains(name)) {
        let known = SERIES.join(", ");
        return Err(Problem::bad_request(format!("the past of {unknown:?} is not kept; it is of {known}")));
    }
    let names: &[&str] = if named.is_empty() { &SERIES } else { &named };
    let Samples { times, values } = deps.series.read(names, from.unwrap_or(0), step);
    Ok(Json(json!({ "at": now, "step_seconds": step.seconds(), "times": times, "values": values })))
}
