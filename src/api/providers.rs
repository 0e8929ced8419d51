//! `/v1/providers`: the accounts of the models, which all agents share.
use super::{Deps, caller::Caller, problem::Problem};
use axum::{Json, extract::State, http::StatusCode};
use serde_json::{Value, json};

/// `{accounts: […]}` with limits, queues and pauses, for the service alone: accounts are shared by all orgs.
pub(super) async fn list(State(deps): State<Deps>, caller: Caller) -> Result<Json<Value>, Problem> {
    if !caller.is_service() {
        let detail = "only a service token may see the accounts of the models";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    Ok(Json(json!({ "accounts": deps.models.accounts() })))
}
