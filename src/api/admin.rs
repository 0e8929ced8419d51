//! `/v1/doctor` and `/v1/settings`: the daemon itself, for the service and admins of the dashboard.
use super::{Deps, caller::Caller, problem::Problem};
use axum::{Json, extract::State, http::StatusCode};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The findings of the checks; `None` if they could not be made, which the process log explains.
type Findings = BoxFuture<'static, Option<Value>>;

/// The checks of `convoke doctor` in the running daemon, one at a time. Clones share the limit.
#[derive(Clone)]
pub struct Doctor {
    check: Arc<dyn Fn() -> Findings + Send + Sync>,
    one: Arc<Semaphore>,
}

impl Doctor {
    /// Makes the checks with `check`, which returns the list of findings.
    #[must_use]
    pub fn new(check: impl Fn() -> Findings + Send + Sync + 'static) -> Self {
        Self { check: Arc::new(check), one: Arc::new(Semaphore::new(1)) }
    }
}

/// `{findings: [{name, ok, found, remedy}]}`. 409 while another check runs: it reads whole tables.
pub(super) async fn doctor(State(deps): State<Deps>, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.may_administer("check the daemon")?;
    let Ok(_one) = deps.doctor.one.try_acquire() else {
        let detail = "another check runs now: try again when it has ended";
        return Err(Problem::new(StatusCode::CONFLICT, "conflict", detail));
    };
    let findings = (deps.doctor.check)().await;
    let findings = findings.ok_or_else(|| {
        Problem::unavailable("the checks could not be made: the process log of the daemon says why")
    })?;
    Ok(Json(json!({ "findings": findings })))
}

/// The settings by section and key; a secret is `set` or null.
pub(super) async fn settings(State(deps): State<Deps>, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.may_administer("read the settings")?;
    Ok(Json(Value::clone(&deps.settings)))
}
