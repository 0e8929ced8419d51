//! `/v1/channels`: the active channels, their members, traffic and rejections.
//!
//! For the service and admins of the dashboard, because it shows members regardless of policies.
use super::{Deps, caller::Caller, input::Params, problem::Problem};
use crate::{
    gateway::{TopicInfo, Topics},
    id::Topic,
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;

/// Most topics in one answer, and the default.
const TOPICS_MAX: usize = 1000;
const TOPICS: usize = 100;
/// Most members in one answer, and the default.
const MEMBERS_MAX: usize = 10_000;
const MEMBERS: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowQuery {
    limit: Option<usize>,
}

/// `{channels: […], total}`: topics with the prefix `?prefix=` after `?after=`, at most `?limit=`.
pub(super) async fn list(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<ListQuery>,
) -> Result<Json<Topics>, Problem> {
    caller.may_administer("see all channels")?;
    let limit = at_most(query.limit, TOPICS, TOPICS_MAX)?;
    Ok(Json(deps.gateway.topics(&query.prefix, &query.after, limit)))
}

/// One topic (percent-encoded, without `realtime:`) with its members, at most `?limit=` for each room.
pub(super) async fn show(
    State(deps): State<Deps>,
    caller: Caller,
    Path(topic): Path<String>,
    Params(query): Params<ShowQuery>,
) -> Result<Json<TopicInfo>, Problem> {
    caller.may_administer("see who is on a channel")?;
    let limit = at_most(query.limit, MEMBERS, MEMBERS_MAX)?;
    let look = Topic::new(&topic).and_then(|topic| deps.gateway.topic(&topic, limit));
    look.map(Json).ok_or_else(|| {
        let detail = format!("channel {topic:?} has no members and no recent rejections");
        Problem::new(StatusCode::NOT_FOUND, "unknown_channel", detail)
    })
}

fn at_most(asked: Option<usize>, usual: usize, max: usize) -> Result<usize, Problem> {
    match asked {
        None => Ok(usual),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(limit) => Err(Problem::bad_request(format!("limit must be 1 to {max}, not {limit}"))),
    }
}
