//! HTTP as it is served: one task a connection.
//!
//! What a stranger must send by itself has a limit in time: who opens a connection and does not end the head of a
//! request, or keeps one without asking anything, is hung up on. The bodies of requests have the limits of their
//! routes, websockets those of the gateway. A connection that fails is nobody's error.
use crate::scope::{OnExit, Scope};
use axum::{Router, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{io, pin::pin, time::Duration};
use tokio::{net::TcpListener, time::sleep};
use tower_service::Service;

/// How long the head of a request may take, and how long a connection may wait for the next one.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// How long nobody is let in when there is no room for another connection.
const FULL: Duration = Duration::from_secs(1);

/// Serves `routes` until the scope stops; requests that are under way then are still answered. `on_exit` is for the
/// end of all serving. The gateway's websockets need this server: they take over its TCP connections.
pub fn serve_http(scope: &Scope, on_exit: OnExit, listener: TcpListener, routes: Router) {
    let connections = scope.clone();
    scope.spawn("http", on_exit, |stop| async move {
        let accepting = accept(&connections, &listener, &routes);
        stop.run_until_cancelled(accepting).await;
        Ok(())
    });
}

async fn accept(scope: &Scope, listener: &TcpListener, routes: &Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    loop {
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_of_the_client(&error) => continue,
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted");
                sleep(FULL).await;
                continue;
            }
        };
        let _ = socket.set_nodelay(true);
        let routes = routes.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            routes.clone().call(request)
        });
        let connection = http.serve_connection(TokioIo::new(socket), service).with_upgrades();
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
                tracing::debug!(%peer, %error, "connection ends");
            }
            Ok(())
        });
    }
}

/// Whether it was the client that went while it was let in.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::net::SocketAddr;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    async fn served() -> (Scope, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (scope, addr) = (Scope::default(), listener.local_addr().unwrap());
        let peer = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
        serve_http(&scope, OnExit::Log, listener, Router::new().route("/", get(peer)));
        (scope, addr)
    }

    async fn answer(socket: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn who_does_not_end_the_head_of_a_request_is_hung_up_on() {
        let (scope, addr) = served().await;
        for begun in ["", "GET / HTTP/1.1\r\nhost: x\r\nx-slow: ", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let mut socket = TcpStream::connect(addr).await.unwrap();
            socket.write_all(begun.as_bytes()).await.unwrap();
            let begins = tokio::time::Instant::now();
            // With nothing else to do, the clock goes forward to the limit.
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
    async fn a_stop_closes_what_waits_and_frees_the_port() {
        let (scope, addr) = served().await;
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(socket.read(&mut [0; 1]).await.unwrap() == 1);
        scope.drain(Duration::from_secs(5)).await.unwrap();
        assert!(answer(&mut socket).await.contains("200 OK"));
        TcpListener::bind(addr).await.unwrap();
    }
}
