//! The HTTP server: one spawned task a connection.
//!
//! Everything that an unauthenticated client can use has a limit before any route sees the request: connections, in
//! all and from one address; the time for the head of a request, for its body, and for reading the answer; and the
//! idle time of a connection. Routes limit the size of bodies, and the gateway its websockets. A connection that
//! fails is logged at debug and affects no other.
use crate::{
    api,
    gateway::edge::{Bodies, BodyLimits, Caps, ConnectionSlot, Full, Stream, TimedBody},
    hub::Memory,
    scope::{OnExit, Scope},
    telemetry::Registry,
};
use axum::{Router, body::Body, extract::ConnectInfo, http::Uri, response::Response};
use hyper::{Request, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tower_service::Service;

/// Pause of accepting when the system refuses another connection.
const SYSTEM_FULL_PAUSE: Duration = Duration::from_secs(1);
/// Files that the daemon opens besides its connections: the pool, the journals, the private PostgreSQL's output.
const FILES_RESERVED: usize = 256;
/// Least limit of connections, whatever the system's limit of open files is.
const CONNECTIONS_MIN: usize = 16;
/// Largest head of a request, which is buffered until it is complete. A token in a URL has a few thousand bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long refused connections show on `/health`, and the least time between two log lines about them.
const REFUSALS_SHOWN: Duration = Duration::from_secs(60);

/// The limits of clients before authentication. Clones share their counts.
#[derive(Clone)]
pub struct Edge(Arc<Inner>);

struct Inner {
    caps: Caps,
    head_timeout: Duration,
    write_timeout: Duration,
    body: BodyLimits,
    memory: Memory,
    bodies: Bodies,
    refused: Counter,
    refused_at: Mutex<Option<Instant>>,
}

impl Edge {
    /// The limits of these settings, and of the system: `connections_max` leaves the daemon the files that it needs
    /// itself. Bodies count in `memory` until their requests are answered. Its metrics are `server_…` in `registry`.
    #[must_use]
    pub fn new(config: &api::Config, registry: &Registry, memory: Memory) -> Self {
        let files = files_allowed(config.connections_max.saturating_add(FILES_RESERVED));
        let total = config.connections_max.min(files.saturating_sub(FILES_RESERVED).max(CONNECTIONS_MIN));
        let per_address = config.connections_per_address_max.unwrap_or(total.div_ceil(2));
        let refused = Counter::default();
        let help = "Connections and requests refused because there are too many, in all or from one address";
        registry.register("server_refused_connections", help, refused.clone());
        Self(Arc::new(Inner {
            caps: Caps::new(total, per_address, &config.trusted_proxies),
            head_timeout: config.head_timeout,
            write_timeout: config.write_timeout,
            body: BodyLimits { whole: config.body_timeout, idle: config.body_idle_timeout },
            bodies: Bodies::new(memory.clone()),
            memory,
            refused,
            refused_at: Mutex::new(None),
        }))
    }

    /// The open connections, their limit, and whether some were refused in the last minute.
    #[must_use]
    pub fn connections(&self) -> (usize, usize, bool) {
        let (open, max) = self.0.caps.total();
        let refused = self.0.refused_at.lock().is_some_and(|at| at.elapsed() < REFUSALS_SHOWN);
        (open, max, refused)
    }

    /// The memory that clients hold.
    pub(super) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    fn refuse(&self, peer: SocketAddr, why: Full) {
        self.0.refused.inc();
        let mut last = self.0.refused_at.lock();
        if last.is_none_or(|at| at.elapsed() >= REFUSALS_SHOWN) {
            *last = Some(Instant::now());
            tracing::warn!(%peer, %why, "connection refused; logged at most once a minute");
        }
    }

    /// Counts a connection, or sends a refusal and closes it.
    fn admit(&self, socket: &TcpStream, peer: SocketAddr) -> Option<ConnectionSlot> {
        match self.0.caps.connect(peer.ip()) {
            Ok(slot) => Some(slot),
            Err(why) => {
                self.refuse(peer, why);
                // Without waiting: a client that does not read the refusal now gets none.
                let _ = socket.try_write(refusal_text(why).as_bytes());
                None
            }
        }
    }

    /// The client behind a trusted proxy. Refused if it has too many connections.
    fn client(
        &self,
        request: &mut Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Option<Arc<ConnectionSlot>>, Full> {
        // A proxy may add its own line after those of the client: all of them are one list.
        let lines = request.headers().get_all("x-forwarded-for");
        let lines: Vec<&str> = lines.iter().map(|value| value.to_str().unwrap_or_default()).collect();
        let client = self.0.caps.client_behind(peer.ip(), &lines.join(","));
        let address = client.map_or(peer, |client| SocketAddr::new(client, 0));
        request.extensions_mut().insert(ConnectInfo(address));
        let Some(client) = client else { return Ok(None) };
        let slot = self.0.caps.forwarded(client).inspect_err(|why| self.refuse(address, *why))?;
        let slot = Arc::new(slot);
        // A websocket holds it until it closes.
        request.extensions_mut().insert(slot.clone());
        Ok(Some(slot))
    }
}

fn refusal(why: Full) -> (StatusCode, &'static str) {
    match why {
        Full::Total => (StatusCode::SERVICE_UNAVAILABLE, "Too many connections"),
        Full::Address => (StatusCode::TOO_MANY_REQUESTS, "Too many connections from this address"),
    }
}

fn refusal_text(why: Full) -> String {
    let (status, text) = refusal(why);
    let body = serde_json::json!({ "error": text }).to_string();
    let size = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{body}"
    )
}

fn refusal_response(why: Full) -> Response {
    let (status, text) = refusal(why);
    let mut response = Response::new(Body::from(serde_json::json!({ "error": text }).to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    headers.insert(hyper::header::RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
    response
}

/// The limit of open files of this process, raised towards `wanted` up to the hard limit. Child processes inherit it.
fn files_allowed(wanted: usize) -> usize {
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let limits = getrlimit(Resource::Nofile);
    let mut allowed = limits.current.unwrap_or(u64::MAX);
    if allowed < wanted {
        let raised = limits.maximum.unwrap_or(u64::MAX).min(wanted);
        let limits = Rlimit { current: Some(raised), maximum: limits.maximum };
        if raised > allowed && setrlimit(Resource::Nofile, limits).is_ok() {
            allowed = raised;
        }
    }
    usize::try_from(allowed).unwrap_or(usize::MAX)
}

/// Serves `routes` within the limits of `edge` until the scope stops; requests that are under way then are still
/// answered. `on_exit` is for the end of all serving. The gateway's websockets need this server: they take over its
/// TCP connections.
pub fn serve_http(scope: &Scope, on_exit: OnExit, listener: TcpListener, routes: Router, edge: Edge) {
    let connections = scope.clone();
    scope.spawn("http", on_exit, |stop| async move {
        let accepting = accept(&connections, &listener, &routes, &edge);
        stop.run_until_cancelled(accepting).await;
        Ok(())
    });
}

/// Connections that are accepted before the task yields: a burst would otherwise fill the queue of a worker with new
/// connections, and those that are open would wait behind them.
const ACCEPTED_PER_TURN: u32 = 8;

async fn accept(scope: &Scope, listener: &TcpListener, routes: &Router, edge: &Edge) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(edge.0.head_timeout).max_buf_size(HEAD_BYTES_MAX);
    let mut turn = 0;
    loop {
        turn += 1;
        if turn >= ACCEPTED_PER_TURN {
            turn = 0;
            tokio::task::yield_now().await;
        }
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_of_the_client(&error) => continue,
            Err(error) => {
                tracing::error!(%error, "failed to accept connection");
                sleep(SYSTEM_FULL_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = edge.admit(&socket, peer) else { continue };
        let _ = socket.set_nodelay(true);
        let (routes, edge) = (routes.clone(), edge.clone());
        let stream = Stream::new(socket, slot, edge.0.write_timeout);
        let service = service_fn(move |request| answer(request, peer, routes.clone(), edge.clone()));
        let connection = http.serve_connection(stream, service).with_upgrades();
        scope.spawn("http connection", OnExit::Log, |stop| async move {
            let mut connection = pin!(connection);
            let outcome = tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(%peer, %error, "connection failed");
            }
            Ok(())
        });
    }
}

async fn answer(
    mut request: Request<Incoming>,
    peer: SocketAddr,
    mut routes: Router,
    edge: Edge,
) -> Result<Response, Infallible> {
    let _slot = match edge.client(&mut request, peer) {
        Ok(slot) => slot,
        Err(why) => return Ok(refusal_response(why)),
    };
    if let Some(uri) = without_last_slash(request.uri()) {
        *request.uri_mut() = uri;
    }
    // Charged until the request is answered: its parsed body lives that long.
    let client =
        request.extensions().get().map_or(peer, |ConnectInfo(client): &ConnectInfo<SocketAddr>| *client);
    let charge = Arc::new(Mutex::new(edge.0.bodies.charge(client.ip())));
    let body = |body| Body::new(TimedBody::new(body, edge.0.body, charge.clone()));
    routes.call(request.map(body)).await
}

/// Removes a slash at the end of the path, as Phoenix does: some clients append `/websocket/`.
fn without_last_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().trim_end_matches('/');
    if path.is_empty() || path.len() == uri.path().len() {
        return None;
    }
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    format!("{path}{query}").parse().ok()
}

/// Whether the client closed the connection while it was accepted.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::{get, post};
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const HEAD_WITHIN: Duration = Duration::from_secs(30);

    async fn served() -> (Scope, SocketAddr) {
        served_with(&api::Config::default()).await
    }

    /// `/` answers the address of the client, `/large` a large body, and `/body` the size of the request's body.
    async fn served_with(config: &api::Config) -> (Scope, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (scope, addr) = (Scope::default(), listener.local_addr().unwrap());
        let peer = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
        let routes = Router::new()
            .route("/", get(peer))
            .route("/large", get(|| async { vec![b'x'; 64 << 20] }))
            .route("/body", post(|body: Bytes| async move { body.len().to_string() }));
        let (registry, limits) = (Registry::default(), usize::MAX / 2);
        let limits = crate::hub::memory::Limits { total: limits, per_org: limits, per_connection: limits };
        let memory = Memory::new(limits, &registry);
        serve_http(&scope, OnExit::Log, listener, routes, Edge::new(config, &registry, memory));
        (scope, addr)
    }

    async fn asked(addr: SocketAddr, request: &str) -> String {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        answer(&mut socket).await
    }

    async fn answer(socket: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn connection_with_an_unfinished_request_head_is_closed() {
        let (scope, addr) = served().await;
        for begun in ["", "GET / HTTP/1.1\r\nhost: x\r\nx-slow: ", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let mut socket = TcpStream::connect(addr).await.unwrap();
            socket.write_all(begun.as_bytes()).await.unwrap();
            let begins = tokio::time::Instant::now();
            // The paused clock advances to the limit.
            tokio::time::pause();
            let answer = answer(&mut socket).await;
            assert!(begins.elapsed() >= HEAD_WITHIN, "{:?} {answer}", begins.elapsed());
            tokio::time::resume();
            let asked = begun.ends_with("\r\n\r\n");
            assert_eq!(answer.contains(&socket.local_addr().unwrap().to_string()), asked, "{answer}");
        }
        scope.drain(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn stop_closes_idle_connections_and_frees_the_port() {
        let (scope, addr) = served().await;
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(socket.read(&mut [0; 1]).await.unwrap() == 1);
        scope.drain(Duration::from_secs(5)).await.unwrap();
        assert!(answer(&mut socket).await.contains("200 OK"));
        TcpListener::bind(addr).await.unwrap();
    }

    #[tokio::test]
    async fn a_body_that_comes_too_slowly_is_cut_off() {
        let (scope, addr) = served().await;
        // The first body stops in the middle, the second sends one byte a second.
        for (drips, limit) in [(false, Duration::from_secs(10)), (true, Duration::from_secs(60))] {
            let mut socket = TcpStream::connect(addr).await.unwrap();
            let head = "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx";
            socket.write_all(head.as_bytes()).await.unwrap();
            let (mut reader, mut writer) = socket.split();
            let begins = Instant::now();
            tokio::time::pause();
            let drip = async {
                while drips && writer.write_all(b"x").await.is_ok() {
                    sleep(Duration::from_secs(1)).await;
                }
                std::future::pending::<()>().await;
            };
            let mut answer = Vec::new();
            tokio::select! {
                () = drip => {}
                read = reader.read_to_end(&mut answer) => drop(read),
            }
            let took = begins.elapsed();
            tokio::time::resume();
            assert!(took >= limit && took < limit * 2, "{took:?} {}", String::from_utf8_lossy(&answer));
            assert!(answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
        }
        scope.drain(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answer_is_disconnected() {
        let (scope, addr) = served().await;
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        socket.read_exact(&mut [0; 1]).await.unwrap();
        tokio::time::pause();
        sleep(Duration::from_secs(40)).await;
        tokio::time::resume();
        let mut rest = Vec::new();
        let _reset = socket.read_to_end(&mut rest).await;
        assert!(rest.len() < 64 << 20, "{} bytes", rest.len());
        scope.drain(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn one_address_has_its_share_of_the_connections_and_others_come_in() {
        let per_address = Some(2);
        let config = api::Config { connections_per_address_max: per_address, ..api::Config::default() };
        let (scope, addr) = served_with(&config).await;
        let mut held = [TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap()];
        for socket in &mut held {
            socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            socket.read_exact(&mut [0; 1]).await.unwrap();
        }
        let mut third = TcpStream::connect(addr).await.unwrap();
        assert!(answer(&mut third).await.starts_with("HTTP/1.1 429 "));
        let other = tokio::net::TcpSocket::new_v4().unwrap();
        other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = other.connect(addr).await.unwrap();
        other.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        assert!(answer(&mut other).await.ends_with(&other.local_addr().unwrap().to_string()));
        drop(held);
        // The server frees the place once it has seen the end of the connection.
        while asked(addr, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 429")
        {
            tokio::task::yield_now().await;
        }
        scope.drain(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn clients_behind_a_trusted_proxy_are_counted_apart() {
        let config = api::Config {
            connections_per_address_max: Some(1),
            trusted_proxies: vec!["127.0.0.1".parse().unwrap()],
            ..api::Config::default()
        };
        let (scope, addr) = served_with(&config).await;
        let get = |client: &str| {
            format!(
                "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-forwarded-for: 192.0.2.8, {client}\r\n\r\n"
            )
        };
        let (one, two) = (get("192.0.2.1"), get("192.0.2.2"));
        let (one, two) = tokio::join!(asked(addr, &one), asked(addr, &two));
        assert!(one.ends_with("192.0.2.1:0") && two.ends_with("192.0.2.2:0"), "{one} {two}");
        // A proxy that adds a line of its own: what the client wrote into the first line counts for nothing.
        let forged = get("192.0.2.1\r\nx-forwarded-for: 192.0.2.3");
        let three = asked(addr, &forged).await;
        assert!(three.ends_with("192.0.2.3:0"), "{three}");
        scope.drain(Duration::from_secs(5)).await.unwrap();
    }

    #[test]
    fn a_slash_at_the_end_of_a_path_makes_no_difference() {
        for (uri, same) in
            [("/a/b/?c=/", Some("/a/b?c=/")), ("/a//", Some("/a")), ("/", None), ("/a", None), ("//", None)]
        {
            let shortened = without_last_slash(&uri.parse().unwrap()).map(|uri| uri.to_string());
            assert_eq!(shortened.as_deref(), same, "{uri}");
        }
    }
}
