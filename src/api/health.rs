//! Liveness, readiness and metrics of the daemon.
use crate::telemetry::Registry;
use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::Notify;

/// State of one part of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// The part works.
    Ready,
    /// The part does not work, and the daemon works without it.
    Degraded,
    /// The part does not work, and the daemon is not ready without it.
    Down,
}

/// The last reported state of each part. Clones share it. Not ready until a part has reported.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug)]
struct Part {
    state: PartState,
    detail: String,
    /// Reason for the operator alone: it may contain text of the database.
    reason: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    parts: Mutex<BTreeMap<&'static str, Part>>,
    changed: Notify,
}

impl Health {
    /// Reports the state of `part`, with one line for people. The line is public, so it must not contain
    /// secrets.
    pub fn set(&self, part: &'static str, state: PartState, detail: impl Into<String>) {
        self.note(part, Part { state, detail: detail.into(), reason: None });
    }

    /// Reports that `part` is down, with a public line, and a reason that does not leave this process.
    pub fn set_down(&self, part: &'static str, detail: &str, reason: impl Into<String>) {
        let (detail, reason) = (detail.to_owned(), Some(reason.into()));
        self.note(part, Part { state: PartState::Down, detail, reason });
    }

    fn note(&self, part: &'static str, report: Part) {
        self.0.parts.lock().insert(part, report);
        self.0.changed.notify_waiters();
    }

    /// Returns the parts that are down with their reasons, for the operator of this process alone.
    ///
    /// Like `wal: replication slot x belongs to database y`.
    #[must_use]
    pub fn missing(&self) -> String {
        let parts = self.0.parts.lock();
        let down = parts.iter().filter(|(_, part)| part.state == PartState::Down);
        let reasons =
            down.map(|(name, part)| format!("{name}: {}", part.reason.as_ref().unwrap_or(&part.detail)));
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        if parts.is_empty() { "nothing has started yet".into() } else { reasons }
    }

    /// Whether parts have reported and none is down.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let parts = self.0.parts.lock();
        !parts.is_empty() && parts.values().all(|part| part.state != PartState::Down)
    }

    /// Waits until the daemon is ready.
    pub async fn ready(&self) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Registered before the check, so that a change between check and wait is not missed.
            changed.as_mut().enable();
            if self.is_ready() {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn report(&self) -> Value {
        let status = if self.is_ready() { "ready" } else { "not_ready" };
        let parts = self.0.parts.lock();
        let parts: BTreeMap<_, _> = parts
            .iter()
            .map(|(name, part)| (*name, json!({ "state": part.state, "detail": part.detail })))
            .collect();
        json!({ "status": status, "version": env!("CARGO_PKG_VERSION"), "parts": parts })
    }
}

/// `/health`, for people and dashboards: always 200.
pub(super) async fn report(State(health): State<Health>) -> Json<Value> {
    Json(health.report())
}

/// `/health/ready`, for load balancers: 503 if the daemon should get no work.
pub(super) async fn ready(State(health): State<Health>) -> (StatusCode, Json<Value>) {
    let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health.report()))
}

pub(super) async fn metrics(State(metrics): State<Registry>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    match metrics.encode() {
        Ok(text) => (StatusCode::OK, kind, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, kind, "# EOF\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemon_is_not_ready_while_a_part_is_down() {
        let health = Health::default();
        assert!(!health.is_ready(), "nothing has started yet");
        health.set("database", PartState::Ready, "");
        health.set("llm", PartState::Degraded, "no key");
        assert!(health.is_ready());
        assert_eq!(health.missing(), "");
        health.set_down("database", "does not answer", "connection to 10.0.0.7 refused");
        assert_eq!(health.missing(), "database: connection to 10.0.0.7 refused");
        assert_eq!(health.report()["parts"]["database"]["detail"], "does not answer");
        assert_eq!(health.report()["parts"]["database"]["state"], "down");
        assert_eq!(health.report()["status"], "not_ready");
    }
}
