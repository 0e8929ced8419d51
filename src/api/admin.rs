//! `/v1/doctor`, `/v1/settings` and `/v1/reload`: the daemon itself, for the service and admins of the dashboard.
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
    Ok(Json(deps.settings.read().clone()))
}

/// The outcome of a reading of the agents' files and the settings.
pub enum Reloaded {
    /// `{added, changed, removed, settings: {applied, needs_restart}}`: lists of ids, and of keys.
    Applied(Value),
    /// The problems for which nothing changed, a line each.
    Refused(String),
    /// Why no files were read.
    Not(String),
}

/// Reads the agents' files and the settings of the running daemon again.
#[derive(Clone)]
pub struct Reload(Arc<dyn Fn() -> BoxFuture<'static, Reloaded> + Send + Sync>);

impl Reload {
    /// Reads them with `read`.
    #[must_use]
    pub fn new(read: impl Fn() -> BoxFuture<'static, Reloaded> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

/// Reads the agents' files and the settings, and applies them: `{added, changed, removed, settings}`. 422 if a file has a problem: nothing has changed
/// then, and `detail` has a line for each. 409 for a daemon that reads no files.
pub(super) async fn reload(State(deps): State<Deps>, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.may_administer("reload the agents' files")?;
    match (deps.reload.0)().await {
        Reloaded::Applied(changes) => Ok(Json(changes)),
        Reloaded::Refused(problems) => {
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_definitions", problems))
        }
        Reloaded::Not(why) => Err(Problem::new(StatusCode::CONFLICT, "conflict", why)),
    }
}
