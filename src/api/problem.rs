//! The status of each error of `task`: the only mapping from a code of `docs/spec/negotiation.md` §6 to HTTP.
use crate::task;
use axum::http::StatusCode;

pub(super) use crate::problem::Problem;

/// The status for a code of the negotiation.
fn status(code: &str) -> StatusCode {
    match code {
        "bad_request" => StatusCode::BAD_REQUEST,
        "unknown_task" | "unknown_agent" => StatusCode::NOT_FOUND,
        "not_eligible" | "forbidden" => StatusCode::FORBIDDEN,
        "late" | "conflict" | "fenced" | "idempotency_conflict" => StatusCode::CONFLICT,
        "too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<task::Error> for Problem {
    fn from(error: task::Error) -> Self {
        Self::new(status(error.code()), error.code(), error.to_string())
    }
}
