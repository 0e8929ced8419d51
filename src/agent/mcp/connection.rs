//! One connection to a server: its list of tools, and calls with limits of time and number.
use super::{
    handler::{Heard, Said},
    limited::Allowance,
    offered::pinned_text,
    result,
};
use crate::agent::{McpServer, tool::Outcome};
use parking_lot::Mutex;
use rmcp::{
    Peer, RoleClient, ServiceError,
    model::{
        CallToolRequest, CallToolRequestParams, CancelledNotification, CancelledNotificationParam,
        ClientRequest, ListToolsRequest, PaginatedRequestParams, RequestId, RequestMetaObject, ServerResult,
        Tool,
    },
    service::PeerRequestOptions,
};
use serde_json::{Value, json};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Calls at the same time.
pub(super) const CALLS_MAX: usize = 16;
/// Most pages and tools of a list.
const PAGES_MAX: usize = 100;
const TOOLS_MAX: usize = 1_000;
/// Most bytes of what a server says about one tool, which is left out if it is longer, and about all of them.
const TOOL_BYTES_MAX: usize = 64 << 10;
const LIST_BYTES_MAX: usize = 8 << 20;
/// How old a list may be if the server does not say it, and the shortest time between two lists.
const LIST_AGE: Duration = Duration::from_secs(60);
const LIST_AGE_MIN: Duration = Duration::from_secs(10);
/// How long a request or the message about a cancelled one may take to be sent. A server that does not read its input
/// for as long is ended: its pipe is full, and every other request would wait behind it.
const SEND_WITHIN: Duration = Duration::from_secs(2);

/// An open connection.
pub(crate) struct Connection {
    peer: Peer<RoleClient>,
    calls: Semaphore,
    allowance: Allowance,
    said: Arc<Said>,
    listed: Mutex<Option<Listed>>,
    used: Mutex<Instant>,
}

struct Listed {
    tools: Arc<Vec<Tool>>,
    at: Instant,
    age_max: Duration,
}

impl Connection {
    pub(super) fn new(peer: Peer<RoleClient>, allowance: Allowance, said: Arc<Said>) -> Self {
        Self {
            peer,
            calls: Semaphore::new(CALLS_MAX),
            allowance,
            said,
            listed: Mutex::default(),
            used: Mutex::new(Instant::now()),
        }
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.peer.is_transport_closed()
    }

    /// Resolves when the server has broken a rule, so that the connection must end.
    pub(super) async fn broken(&self) {
        self.allowance.broken().await;
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
        self.said.expect_change();
        let (tools, age_max) = self.list(Instant::now() + within).await?;
        let tools = Arc::new(tools);
        let age_max = age_max.unwrap_or(LIST_AGE).max(LIST_AGE_MIN);
        *self.listed.lock() = Some(Listed { tools: tools.clone(), at: Instant::now(), age_max });
        Ok(tools)
    }

    fn listed_before(&self) -> Option<Arc<Vec<Tool>>> {
        let listed = self.listed.lock();
        let listed = listed.as_ref()?;
        let age_max = if self.said.has_changed() { LIST_AGE_MIN } else { listed.age_max };
        (listed.at.elapsed() < age_max).then(|| listed.tools.clone())
    }

    /// All pages, until `end_at`.
    async fn list(&self, end_at: Instant) -> Result<(Vec<Tool>, Option<Duration>), String> {
        let (mut tools, mut cursor, mut seen) = (Vec::new(), None, HashSet::new());
        let (mut age_max, mut bytes) = (None, 0);
        for _ in 0..PAGES_MAX {
            let mut request = ListToolsRequest::default();
            if cursor.is_some() {
                request.params = Some(PaginatedRequestParams::default().with_cursor(cursor));
            }
            let within = end_at.saturating_duration_since(Instant::now());
            let limits = Limits { silence: within, total: within };
            let request = ClientRequest::ListToolsRequest(request);
            let page = match self.answer(request, None, limits, &CancellationToken::new()).await {
                Answer::Came(Ok(ServerResult::ListToolsResult(page))) => page,
                Answer::Came(Ok(_)) => {
                    return Err("it answered with something that is no list of tools".into());
                }
                Answer::Came(Err(error)) => {
                    return Err(format!("no list of its tools: {}", result::reason(&error)));
                }
                Answer::NotSent | Answer::Stopped => return Err("it has ended".into()),
            };
            let ttl = page.ttl_ms.map(Duration::from_millis);
            age_max = match (age_max, ttl) {
                (Some(one), Some(two)) => Some(Duration::min(one, two)),
                (one, two) => one.or(two),
            };
            for tool in page.tools {
                let size = pinned_text(&tool).len();
                bytes += size;
                if size <= TOOL_BYTES_MAX {
                    tools.push(tool);
                }
            }
            if tools.len() > TOOLS_MAX {
                return Err(format!("it lists more than {TOOLS_MAX} tools"));
            }
            if bytes > LIST_BYTES_MAX {
                return Err(format!("its list of tools has more than {LIST_BYTES_MAX} bytes"));
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
        let mut params = CallToolRequestParams::new(tool.to_owned());
        params.arguments = args.as_object().cloned();
        let meta = json!({ "dev.convoke/idempotency-key": key });
        let meta: RequestMetaObject = serde_json::from_value(meta).unwrap_or_default();
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let limits = Limits { silence: server.timeout, total: server.timeout_max };
        match self.answer(request, Some(meta), limits, stop).await {
            Answer::Came(answer) => result::outcome(&server.name, answer),
            Answer::NotSent => {
                Outcome::Failed("failed", format!("the server {} has ended", server.name), true)
            }
            Answer::Stopped => Outcome::Stopped,
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// The library has limits of time too, but waits without a limit until its message about the end of a request is
    /// sent, which a server that does not read can prevent.
    async fn answer(
        &self,
        request: ClientRequest,
        meta: Option<RequestMetaObject>,
        limits: Limits,
        stop: &CancellationToken,
    ) -> Answer {
        *self.used.lock() = Instant::now();
        self.allowance.request();
        let mut options = PeerRequestOptions::no_options();
        options.meta = meta;
        let sent = timeout(SEND_WITHIN, self.peer.send_request_with_option(request, options)).await;
        let Ok(Ok(handle)) = sent else { return Answer::NotSent };
        let heard = Heard::new(&self.said, handle.progress_token);
        let (id, mut answer) = (handle.id, handle.rx);
        let end_at = Instant::now() + limits.total;
        let answer = loop {
            let until = end_at.min(heard.at() + limits.silence);
            tokio::select! {
                biased;
                answer = &mut answer => {
                    break Answer::Came(answer.unwrap_or(Err(ServiceError::TransportClosed)));
                }
                () = stop.cancelled() => {
                    self.cancel(id).await;
                    break Answer::Stopped;
                }
                () = sleep_until(until) => {
                    // Progress may have come since.
                    if end_at.min(heard.at() + limits.silence) <= Instant::now() {
                        self.cancel(id).await;
                        break Answer::Came(Err(ServiceError::Timeout { timeout: limits.silence }));
                    }
                }
            }
        };
        *self.used.lock() = Instant::now();
        answer
    }

    /// Tells the server that nobody waits for an answer any more, and ends the connection if it does not read that.
    async fn cancel(&self, id: RequestId) {
        let params = CancelledNotificationParam::new(Some(id), None);
        let cancelled = self.peer.send_notification(CancelledNotification::new(params).into());
        if timeout(SEND_WITHIN, cancelled).await.is_err() {
            self.allowance.end();
        }
    }
}

/// What came of a request.
enum Answer {
    /// An answer, or why there is none although the server may have seen the request.
    Came(Result<ServerResult, ServiceError>),
    /// The server has not seen it.
    NotSent,
    /// It was stopped.
    Stopped,
}

/// How long a request may take.
#[derive(Clone, Copy)]
struct Limits {
    /// Without an answer or progress.
    silence: Duration,
    /// In all.
    total: Duration,
}
