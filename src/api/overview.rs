//! `/v1/overview`: what happens in an org now, read once a second for all viewers.
use super::{Deps, caller::Caller, input::Params, problem::Problem};
use crate::id::OrgId;
use axum::{Json, extract::State};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

/// How long an overview is answered again.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Most orgs whose overviews are kept. Beyond it, those that nobody reads are dropped.
const ORGS_MAX: usize = 1_000;

type Slot = Arc<AsyncMutex<Option<(Instant, Arc<Value>)>>>;

/// The overviews of the last second. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Overviews(Arc<Mutex<HashMap<OrgId, Slot>>>);

impl Overviews {
    fn slot(&self, org: &OrgId) -> Slot {
        let mut slots = self.0.lock();
        if slots.len() >= ORGS_MAX && !slots.contains_key(org) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(org.clone()).or_default().clone()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    org: Option<OrgId>,
}

/// The overview of the caller's org, with `health`: `ready`, or the parts that are not; and `n`, the number of the last
/// digest of the room `convoke:<org>` whose changes it contains, null without a subscriber. The service names an org
/// with `?org=`; without it, `default`.
pub(super) async fn show(
    State(deps): State<Deps>,
    caller: Caller,
    Params(query): Params<Query>,
) -> Result<Json<Value>, Problem> {
    let org = caller.org_for(query.org)?;
    let slot = deps.overviews.slot(&org);
    // Held during the query: callers that come meanwhile wait for its answer instead of asking again.
    let mut kept = slot.lock().await;
    let overview = match &*kept {
        Some((read_at, overview)) if read_at.elapsed() < FRESH_FOR => overview.clone(),
        _ => {
            // Before the read: a later digest may have changes that it does not see.
            let n = deps.identity.last_digest(&org);
            let mut overview = deps.tasks.overview(&org).await?;
            if let Some(members) = overview.as_object_mut() {
                members.insert("n".into(), n.into());
            }
            let overview = Arc::new(overview);
            *kept = Some((Instant::now(), overview.clone()));
            overview
        }
    };
    drop(kept);
    let mut overview = Value::clone(&overview);
    if let Some(members) = overview.as_object_mut() {
        members.insert("health".into(), deps.health.report());
    }
    Ok(Json(overview))
}
