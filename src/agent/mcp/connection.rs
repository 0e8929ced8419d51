//! One connection to a server: its list of tools, and calls with limits of time and number.
use super::{limited::Allowance, result};
use crate::agent::{McpServer, tool::Outcome};
use parking_lot::Mutex;
use rmcp::{
    ClientHandler, ErrorData, Peer, RoleClient,
    model::{
        CallToolRequest, CallToolRequestParams, CancelledNotification, CancelledNotificationParam,
        ClientCapabilities, ClientConfig, ClientRequest, ElicitRequestParams, ElicitResult, ErrorCode,
        Implementation, ListToolsRequest, PaginatedRequestParams, ProtocolVersion, RequestId,
        RequestMetaObject, ServerResult, Tool,
    },
    service::{NotificationContext, PeerRequestOptions, RequestContext},
};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// Calls at the same time.
pub(super) const CALLS_MAX: usize = 16;
/// Most pages and tools of a list.
const PAGES_MAX: usize = 100;
const TOOLS_MAX: usize = 1_000;
/// How old a list may be if the server does not say it, and the shortest time between two lists.
const LIST_AGE: Duration = Duration::from_secs(60);
const LIST_AGE_MIN: Duration = Duration::from_secs(10);
/// How long the message about a cancelled call may take.
const CANCEL_WITHIN: Duration = Duration::from_secs(2);

/// An open connection.
pub(crate) struct Connection {
    peer: Peer<RoleClient>,
    calls: Semaphore,
    allowance: Allowance,
    /// The server said that its tools have changed.
    changed: Arc<AtomicBool>,
    listed: Mutex<Option<Listed>>,
    used: Mutex<Instant>,
}

struct Listed {
    tools: Arc<Vec<Tool>>,
    at: Instant,
    age_max: Duration,
}

impl Connection {
    pub(super) fn new(peer: Peer<RoleClient>, allowance: Allowance, changed: Arc<AtomicBool>) -> Self {
        Self {
            peer,
            calls: Semaphore::new(CALLS_MAX),
            allowance,
            changed,
            listed: Mutex::default(),
            used: Mutex::new(Instant::now()),
        }
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.peer.is_transport_closed()
    }

    /// When it was last used; now, while a call runs.
    pub(super) fn used(&self) -> Instant {
        if self.calls.available_permits() < CALLS_MAX { Instant::now() } else { *self.used.lock() }
    }

    /// The tools that the server has now; a list may be used for a while.
    ///
    /// # Errors
    /// Why there is no list, one line.
    pub(crate) async fn tools(&self, within: Duration) -> Result<Arc<Vec<Tool>>, String> {
        if let Some(tools) = self.listed_before() {
            return Ok(tools);
        }
        // Before the request: a change while it runs makes another one necessary.
        self.changed.store(false, Ordering::Relaxed);
        let (tools, age_max) = timeout(within, self.list(within)).await.map_err(|_| {
            format!("it did not list its tools within {}", humantime::format_duration(within))
        })??;
        let tools = Arc::new(tools);
        let age_max = age_max.unwrap_or(LIST_AGE).max(LIST_AGE_MIN);
        *self.listed.lock() = Some(Listed { tools: tools.clone(), at: Instant::now(), age_max });
        Ok(tools)
    }

    fn listed_before(&self) -> Option<Arc<Vec<Tool>>> {
        let listed = self.listed.lock();
        let listed = listed.as_ref()?;
        let age_max = if self.changed.load(Ordering::Relaxed) { LIST_AGE_MIN } else { listed.age_max };
        (listed.at.elapsed() < age_max).then(|| listed.tools.clone())
    }

    async fn list(&self, within: Duration) -> Result<(Vec<Tool>, Option<Duration>), String> {
        let (mut tools, mut cursor, mut seen) = (Vec::new(), None, HashSet::new());
        let mut age_max = None;
        for _ in 0..PAGES_MAX {
            *self.used.lock() = Instant::now();
            self.allowance.request();
            let mut request = ListToolsRequest::default();
            if cursor.is_some() {
                request.params = Some(PaginatedRequestParams::default().with_cursor(cursor));
            }
            let request = ClientRequest::ListToolsRequest(request);
            let options = PeerRequestOptions::with_timeout(within);
            let sent = self.peer.send_request_with_option(request, options).await;
            let answer = match sent {
                Ok(handle) => handle.await_response().await,
                Err(error) => Err(error),
            };
            let page = match answer {
                Ok(ServerResult::ListToolsResult(page)) => page,
                Ok(_) => return Err("it answered with something that is no list of tools".into()),
                Err(error) => return Err(result::reason(&error)),
            };
            let ttl = page.ttl_ms.map(Duration::from_millis);
            age_max = match (age_max, ttl) {
                (Some(one), Some(two)) => Some(Duration::min(one, two)),
                (one, two) => one.or(two),
            };
            tools.extend(page.tools);
            if tools.len() > TOOLS_MAX {
                return Err(format!("it lists more than {TOOLS_MAX} tools"));
            }
            cursor = page.next_cursor;
            let Some(next) = &cursor else { return Ok((tools, age_max)) };
            if !seen.insert(next.clone()) {
                return Err("its list of tools has no end".into());
            }
        }
        Err(format!("its list of tools has more than {PAGES_MAX} pages"))
    }

    /// Calls a tool of the server.
    pub(crate) async fn call(
        &self,
        server: &McpServer,
        tool: &str,
        args: &Value,
        key: &str,
        stop: &CancellationToken,
    ) -> Outcome {
        let place = tokio::select! {
            place = timeout(server.timeout, self.calls.acquire()) => place,
            () = stop.cancelled() => return Outcome::Stopped,
        };
        let Ok(Ok(_place)) = place else {
            return Outcome::Failed("failed", format!("{CALLS_MAX} calls of the server are under way"), true);
        };
        *self.used.lock() = Instant::now();
        let mut params = CallToolRequestParams::new(tool.to_owned());
        params.arguments = args.as_object().cloned();
        let meta = json!({ "dev.convoke/idempotency-key": key });
        let meta: RequestMetaObject = serde_json::from_value(meta).unwrap_or_default();
        let options = PeerRequestOptions::with_timeout(server.timeout)
            .with_meta(meta)
            .reset_timeout_on_progress()
            .with_max_total_timeout(server.timeout_max);
        self.allowance.request();
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let Ok(handle) = self.peer.send_request_with_option(request, options).await else {
            return Outcome::Failed("failed", format!("the server {} has ended", server.name), true);
        };
        let id = handle.id.clone();
        let outcome = tokio::select! {
            answer = handle.await_response() => result::outcome(&server.name, answer),
            () = stop.cancelled() => {
                self.cancel(id).await;
                Outcome::Stopped
            }
        };
        *self.used.lock() = Instant::now();
        outcome
    }

    /// Tells the server that nobody waits for an answer any more.
    async fn cancel(&self, id: RequestId) {
        let params = CancelledNotificationParam::new(Some(id), None);
        let cancelled = self.peer.send_notification(CancelledNotification::new(params).into());
        // It may have ended.
        let _ = timeout(CANCEL_WITHIN, cancelled).await;
    }
}

/// What the daemon answers to requests of a server: none is served.
pub(super) struct Handler {
    pub(super) version: ProtocolVersion,
    pub(super) changed: Arc<AtomicBool>,
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

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.store(true, Ordering::Relaxed);
    }
}
