//! `/v1/events`: the event log of an org.
use super::{
    Deps,
    caller::Caller,
    input::{self, Params},
    problem::Problem,
};
use crate::{
    id::{AgentId, OrgId},
    task::{Feed, FeedFilter, FeedFrom},
};
use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::{Value, json};

/// Events of one answer without `limit`.
const EVENTS: i64 = 100;
/// Most events of one answer.
const EVENTS_MAX: i64 = 1000;
/// Most types of a filter.
const TYPES_MAX: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    org: Option<OrgId>,
    /// Words with commas; all types without it.
    #[serde(default)]
    types: String,
    agent_id: Option<AgentId>,
    after: Option<i64>,
    before: Option<i64>,
    limit: Option<i64>,
}

/// `{events, next}`: the newest events of an org, those below `?before=`, or those after `?after=`, the oldest first.
/// After a number the events of the 5 seconds before it come again, because numbers do not commit in order.
pub(super) async fn list(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<Query>,
) -> Result<Json<Value>, Problem> {
    let org = caller.org_for(query.org)?;
    let from = match (query.after, query.before) {
        (Some(_), Some(_)) => return Err(Problem::bad_request("send after or before, not both")),
        (Some(after), None) => FeedFrom::After(after),
        (None, before) => FeedFrom::Newest(before),
    };
    let types = query.types.split(',').map(str::trim).filter(|name| !name.is_empty());
    let types: Vec<String> = types.map(str::to_owned).collect();
    if types.len() > TYPES_MAX {
        return Err(Problem::bad_request(format!("name at most {TYPES_MAX} types")));
    }
    let limit = input::limit(query.limit)?.unwrap_or(EVENTS).min(EVENTS_MAX);
    let filter = FeedFilter { org, types, agent: query.agent_id, from, limit };
    let Feed { events, next } = deps.tasks.feed(&filter).await?;
    Ok(Json(json!({ "events": events, "next": next })))
}
