//! Is the daemon alive, is it ready, what did it count.
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

/// How a part of the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// It does its job.
    Ready,
    /// It does not, and the daemon goes on without it.
    Degraded,
    /// It does not, and the daemon cannot do its own job: not ready.
    Down,
}

/// What each part last said about itself. Clones share it; nothing said yet is not ready.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    parts: Mutex<BTreeMap<&'static str, (PartState, String)>>,
    changed: Notify,
}

impl Health {
    /// Notes how `part` is, with one line for people (no secrets: it is public).
    pub fn set(&self, part: &'static str, state: PartState, detail: impl Into<String>) {
        self.0.parts.lock().insert(part, (state, detail.into()));
        self.0.changed.notify_waiters();
    }

    /// Whether no part is down.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let parts = self.0.parts.lock();
        !parts.is_empty() && parts.values().all(|(state, _)| *state != PartState::Down)
    }

    /// Waits until no part is down.
    pub async fn ready(&self) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_ready() {
                return;
            }
            changed.await;
        }
    }

    fn report(&self) -> Value {
        let status = if self.is_ready() { "ready" } else { "not_ready" };
        let parts = self.0.parts.lock();
        let parts: BTreeMap<_, _> = parts
            .iter()
            .map(|(part, (state, detail))| (*part, json!({ "state": state, "detail": detail })))
            .collect();
        json!({ "status": status, "version": env!("CARGO_PKG_VERSION"), "parts": parts })
    }
}

/// For people and dashboards: always 200.
pub(super) async fn report(State(health): State<Health>) -> Json<Value> {
    Json(health.report())
}

/// For load balancers: 503 when the daemon should get no work.
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
    fn one_part_that_is_down_makes_the_daemon_not_ready() {
        let health = Health::default();
        assert!(!health.is_ready(), "nothing has started yet");
        health.set("database", PartState::Ready, "");
        health.set("llm", PartState::Degraded, "no key");
        assert!(health.is_ready());
        health.set("database", PartState::Down, "connection refused");
        assert_eq!(health.report()["parts"]["database"]["state"], "down");
        assert_eq!(health.report()["status"], "not_ready");
    }
}
