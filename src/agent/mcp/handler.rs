//! What a server says without being asked: progress of calls, and that its tools have changed. None of its requests is
//! served.
use parking_lot::Mutex;
use rmcp::{
    ClientHandler, ErrorData, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, ErrorCode, Implementation,
        ProgressNotificationParam, ProgressToken, ProtocolVersion,
    },
    service::{NotificationContext, RequestContext},
};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::time::Instant;

/// What a server said.
#[derive(Default)]
pub(super) struct Said {
    changed: AtomicBool,
    /// When progress was last heard of each request that is under way.
    progress: Mutex<HashMap<ProgressToken, Instant>>,
}

impl Said {
    /// Forgets that the tools have changed, before they are listed: a change while the request runs counts.
    pub(super) fn expect_change(&self) {
        self.changed.store(false, Ordering::Relaxed);
    }

    /// Whether the tools have changed since.
    pub(super) fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }
}

/// Hears the progress of one request until it is dropped.
pub(super) struct Heard<'a> {
    said: &'a Said,
    token: ProgressToken,
    since: Instant,
}

impl<'a> Heard<'a> {
    pub(super) fn new(said: &'a Said, token: ProgressToken) -> Self {
        let since = Instant::now();
        said.progress.lock().insert(token.clone(), since);
        Self { said, token, since }
    }

    /// When the last progress came; at first, when the request began.
    pub(super) fn at(&self) -> Instant {
        self.said.progress.lock().get(&self.token).copied().unwrap_or(self.since)
    }
}

impl Drop for Heard<'_> {
    fn drop(&mut self) {
        self.said.progress.lock().remove(&self.token);
    }
}

/// The daemon's side of a connection.
pub(super) struct Handler {
    pub(super) version: ProtocolVersion,
    pub(super) said: Arc<Said>,
}

fn not_served(method: &'static str) -> ErrorData {
    ErrorData::new(ErrorCode::METHOD_NOT_FOUND, method, None)
}

#[expect(deprecated, reason = "older servers ask for roots, and must not be answered with an empty list")]
impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let us = Implementation::new("convoke", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), us).with_protocol_version(self.version.clone())
    }

    async fn list_roots(
        &self,
        _: RequestContext<RoleClient>,
    ) -> Result<rmcp::model::ListRootsResult, ErrorData> {
        Err(not_served("roots/list"))
    }

    async fn create_elicitation(
        &self,
        _: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Err(not_served("elicitation/create"))
    }

    async fn on_progress(&self, progress: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        // That of a request that has ended, or of none, is not kept.
        if let Some(at) = self.said.progress.lock().get_mut(&progress.progress_token) {
            *at = Instant::now();
        }
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.said.changed.store(true, Ordering::Relaxed);
    }
}
