//! The actor of one server: starts it when a connection is asked for, starts it again after a pause, and ends it when
//! it is idle.
use super::{
    connection::Connection,
    handler::{Handler, Said},
    http,
    limited::{Allowance, LINE_BYTES_MAX},
    process::Process,
    result,
};
use crate::{
    agent::{Env, McpProtocol, McpServer},
    llm::Models,
    scope::Scope,
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use rmcp::{
    RoleClient,
    model::ProtocolVersion,
    service::{
        ClientInitializeError, ClientLifecycleMode, ClientServiceExt, RunningService,
        RunningServiceCancellationToken,
    },
    transport::async_rw::AsyncRwTransport,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// The pause before a start after a failure; it doubles with each one.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A longer pause is not waited for: the request fails at once.
const WAITED_MAX: Duration = Duration::from_secs(5);
/// A connection that lasted as long makes the pause short again.
const STEADY: Duration = Duration::from_secs(60);
/// Without a call for as long, the server is ended.
const IDLE: Duration = Duration::from_secs(300);
/// How long the connection has to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// A request for the connection, with its answer.
pub(super) type Ask = oneshot::Sender<Result<Arc<Connection>, String>>;

/// How the connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Era {
    /// With `server/discover`; each request carries its version.
    Modern,
    /// With `initialize`.
    Legacy(McpProtocol),
}

/// The actor.
pub(super) struct Server {
    server: McpServer,
    folder: Option<PathBuf>,
    env: Env,
    models: Models,
    scope: Scope,
    /// How the last connection began: kept, so that a start does not probe again.
    era: Option<Era>,
    pause: Duration,
    start_at: Instant,
}

/// A connection, and what ends it.
struct Live {
    connection: Arc<Connection>,
    /// Resolves when the connection has ended. Shared, because the end is waited for again after it was seen.
    ended: Shared<BoxFuture<'static, ()>>,
    close: RunningServiceCancellationToken,
    process: Option<Process>,
    since: Instant,
}

impl Server {
    pub(super) fn new(
        server: McpServer,
        folder: Option<PathBuf>,
        env: Env,
        models: Models,
        scope: Scope,
    ) -> Self {
        let start_at = Instant::now();
        Self { server, folder, env, models, scope, era: None, pause: PAUSE_MIN, start_at }
    }

    pub(super) async fn run(
        mut self,
        mut asks: mpsc::Receiver<Ask>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut live: Option<Live> = None;
        loop {
            let ask = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                lost = over(&mut live) => {
                    if let Some(live) = live.take() {
                        self.ended(live, lost).await;
                    }
                    continue;
                }
                ask = asks.recv() => ask,
            };
            let Some(ask) = ask else { break };
            // It has just ended, and its task has not told it yet.
            if let Some(closed) = live.take_if(|live| live.connection.is_closed()) {
                self.ended(closed, true).await;
            }
            if live.is_none() && !ask.is_closed() {
                let started = tokio::select! {
                    started = self.start_again() => started,
                    () = stop.cancelled() => break,
                };
                match started {
                    Ok(started) => live = Some(started),
                    Err(why) => {
                        let _ = ask.send(Err(why));
                        continue;
                    }
                }
            }
            if let Some(live) = &live {
                // The caller may have given up.
                let _ = ask.send(Ok(live.connection.clone()));
            }
        }
        if let Some(live) = live {
            live.end(false).await;
        }
        Ok(())
    }

    /// After the end of a connection: the next start is at once if it was idle, and after a pause if it was lost.
    async fn ended(&mut self, live: Live, lost: bool) {
        if live.since.elapsed() >= STEADY {
            self.pause = PAUSE_MIN;
        }
        if lost {
            warn!(server = self.server.name, "MCP server ended");
            self.start_at = Instant::now() + self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        live.end(lost).await;
    }

    async fn start_again(&mut self) -> Result<Live, String> {
        let wait = self.start_at.saturating_duration_since(Instant::now());
        if wait > WAITED_MAX {
            return Err(format!("it failed and is started again in {}s", wait.as_secs()));
        }
        sleep_until(self.start_at).await;
        let started = self.start().await;
        match &started {
            Ok(_) => debug!(server = self.server.name, "MCP server started"),
            Err(why) => {
                warn!(server = self.server.name, why, "MCP server did not start");
                self.start_at = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
        }
        started
    }

    /// Starts it as it speaks: the newest version is tried first, with a server of its own, because one that does not
    /// know it may be in any state after the try.
    async fn start(&mut self) -> Result<Live, String> {
        let limit = self.server.start_timeout;
        let eras = match (self.server.protocol, self.era) {
            (McpProtocol::Auto, Some(era)) => vec![era],
            (McpProtocol::Auto, None) => vec![Era::Modern, Era::Legacy(McpProtocol::V20251125)],
            (McpProtocol::V20260728, _) => vec![Era::Modern],
            (version, _) => vec![Era::Legacy(version)],
        };
        let share = limit / u32::try_from(eras.len()).unwrap_or(1);
        let mut why = String::new();
        for era in eras {
            match timeout(share, self.open(era)).await {
                Ok(Ok(live)) => {
                    self.era = Some(era);
                    return Ok(live);
                }
                Ok(Err(error)) => why = error,
                Err(_) => why = format!("no answer within {}", humantime::format_duration(share)),
            }
        }
        // A server that was replaced may speak another version.
        self.era = None;
        Err(why)
    }

    async fn open(&self, era: Era) -> Result<Live, String> {
        let (allowance, said) = (Allowance::default(), Arc::<Said>::default());
        let (version, mode) = match era {
            Era::Modern => {
                let version = ProtocolVersion::V_2026_07_28;
                let preferred_versions = vec![version.clone()];
                (version, ClientLifecycleMode::Discover { preferred_versions })
            }
            Era::Legacy(version) => (legacy(version), ClientLifecycleMode::Initialize),
        };
        let handler = Handler { version, said: said.clone() };
        let (service, process) = if self.server.url.is_some() {
            let transport = http::transport(&self.server, &self.env, &self.models, allowance.clone())?;
            let served = handler.serve_with_lifecycle(transport, mode).await;
            (served.map_err(|error| refused(&error))?, None)
        } else {
            let (mut process, (stdout, stdin)) = Process::start(
                &self.server,
                self.folder.as_deref(),
                &self.env,
                &self.scope,
                allowance.clone(),
            )?;
            let transport = AsyncRwTransport::<RoleClient, _, _>::new_client(stdout, stdin)
                .with_max_line_length(LINE_BYTES_MAX);
            let served = handler.serve_with_lifecycle(transport, mode).await;
            match served {
                Ok(service) => (service, Some(process)),
                Err(error) => {
                    let line = process.last_line().await;
                    return Err(match line.is_empty() {
                        true => refused(&error),
                        false => format!("{}: {line}", refused(&error)),
                    });
                }
            }
        };
        Ok(Live::new(service, process, allowance, said))
    }
}

/// Resolves when the connection has ended, with true, or is idle, with false. Never without a connection.
async fn over(live: &mut Option<Live>) -> bool {
    let Some(live) = live else { return std::future::pending().await };
    loop {
        let idle_at = live.connection.used() + IDLE;
        tokio::select! {
            () = live.ended.clone() => return true,
            () = live.connection.broken() => return true,
            () = sleep_until(idle_at) => {
                if live.connection.used() + IDLE <= Instant::now() {
                    return false;
                }
            }
        }
    }
}

impl Live {
    fn new(
        service: RunningService<RoleClient, Handler>,
        process: Option<Process>,
        allowance: Allowance,
        said: Arc<Said>,
    ) -> Self {
        let connection = Arc::new(Connection::new(service.peer().clone(), allowance, said));
        let close = service.cancellation_token();
        // The library has spawned the task behind it; it ends with this future, or when `close` is cancelled.
        let ended = async move {
            let _ = service.waiting().await;
        };
        let ended = ended.boxed().shared();
        Self { connection, ended, close, process, since: Instant::now() }
    }

    /// Closes the connection, and with it the input of the process, and waits for the end of the process. One whose
    /// connection was lost is killed at once.
    async fn end(self, lost: bool) {
        let process = self.process.filter(|_| !lost);
        self.close.cancel();
        let _ = timeout(CLOSE_WITHIN, self.ended).await;
        if let Some(process) = process {
            process.end().await;
        }
    }
}

/// Why a connection did not begin, one line without words of the server.
fn refused(error: &ClientInitializeError) -> String {
    match error {
        ClientInitializeError::JsonRpcError(error) => {
            format!("it refused to begin (error {})", error.code.0)
        }
        ClientInitializeError::NoCompatibleProtocolVersion { .. } => {
            "it speaks no version of the protocol that the daemon speaks".into()
        }
        ClientInitializeError::ConnectionClosed(_) => "it ended before it answered".into(),
        ClientInitializeError::TransportError { error, .. } => result::transport_reason(error),
        _ => "its first answer is not one of the protocol".into(),
    }
}

fn legacy(version: McpProtocol) -> ProtocolVersion {
    match version {
        McpProtocol::V20241105 => ProtocolVersion::V_2024_11_05,
        McpProtocol::V20250326 => ProtocolVersion::V_2025_03_26,
        McpProtocol::V20250618 => ProtocolVersion::V_2025_06_18,
        McpProtocol::Auto | McpProtocol::V20251125 | McpProtocol::V20260728 => ProtocolVersion::V_2025_11_25,
    }
}
