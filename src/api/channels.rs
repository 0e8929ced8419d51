//! `/v1/channels`: which channels there are, who is on one, how much is said, what was refused.
//!
//! For the service alone: it tells who is there whatever the policies say.
use super::{Deps, caller::Caller, input::Params, problem::Problem};
use crate::{
    gateway::{TopicLook, Topics},
    id::Topic,
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;

/// Most topics in one answer, and how many without a wish.
const TOPICS_MAX: usize = 1000;
const TOPICS: usize = 100;
/// Most members in one answer, and how many without a wish.
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

/// `{channels: […], total}`: the topics that begin with `?prefix=`, after `?after=`, at most `?limit=` of them.
pub(super) async fn list(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<ListQuery>,
) -> Result<Json<Topics>, Problem> {
    caller.must_be_service("see all channels")?;
    let limit = at_most(query.limit, TOPICS, TOPICS_MAX)?;
    Ok(Json(deps.gateway.topics(&query.prefix, &query.after, limit)))
}

/// One topic (percent-encoded, without `realtime:`) with its members, at most `?limit=` of each room.
pub(super) async fn show(
    State(deps): State<Deps>,
    caller: Caller,
    Path(topic): Path<String>,
    Params(query): Params<ShowQuery>,
) -> Result<Json<TopicLook>, Problem> {
    caller.must_be_service("see who is on a channel")?;
    let limit = at_most(query.limit, MEMBERS, MEMBERS_MAX)?;
    let look = Topic::new(&topic).and_then(|topic| deps.gateway.topic(&topic, limit));
    look.map(Json).ok_or_else(|| {
        let detail = format!("nobody is on channel {topic:?}, and nothing was refused there lately");
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
