//! Limits on unauthenticated clients: bodies, request heads, handshakes and connections.
use crate::{
    realtime::{Server, quick},
    support::PATIENCE,
};
use convoke::{api, gateway::Config};
use serde_json::json;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Limits that a test reaches at once.
fn short() -> api::Config {
    let short = Duration::from_millis(100);
    api::Config { head_timeout: short, body_idle_timeout: short, ..api::Config::default() }
}

async fn begun(server: &Server, bytes: &str) -> TcpStream {
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    socket.write_all(bytes.as_bytes()).await.unwrap();
    socket
}

/// What the server sends until it closes the connection.
async fn until_closed(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset counts as a close.
    let _reset = timeout(PATIENCE, socket.read_to_end(&mut bytes)).await.expect("the connection stays open");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn posts(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\r\n")
}

const ROUTES: [&str; 4] = [
    "/api/broadcast",
    "/realtime/v1/api/broadcast",
    "/api/broadcast/den/events/e",
    "/realtime/v1/api/broadcast/den/events/e?private=true",
];

/// The body never arrives: a server that read the body before the token would not answer.
#[tokio::test]
async fn token_is_checked_before_the_body_is_read() {
    let server = Server::start().await;
    for path in ROUTES {
        for token in ["", "apikey: rubbish\r\n", "authorization: Bearer x.y.z\r\n"] {
            let mut socket =
                begun(&server, &posts(path, &format!("{token}content-length: 8000000\r\n"))).await;
            let mut head = [0; 12];
            timeout(PATIENCE, socket.read_exact(&mut head)).await.expect("it waits for the body").unwrap();
            assert_eq!(&head, b"HTTP/1.1 401", "{path} {token}");
        }
    }
}

#[tokio::test]
async fn stalled_body_is_408() {
    let server = Server::limited(&short(), quick()).await;
    for path in ROUTES {
        let headers = format!("apikey: {}\r\ncontent-length: 1000\r\n", server.anon());
        let mut socket = begun(&server, &format!("{}{{", posts(path, &headers))).await;
        let answer = until_closed(&mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("too slowly"), "{path}: {answer}");
    }
}

/// Heads that do not end, chunks that do not arrive, and an upgrade with an incomplete head.
#[tokio::test]
async fn incomplete_requests_time_out_and_other_clients_continue() {
    let server = Server::limited(&short(), quick()).await;
    let mut honest = server.joined("den", json!({"broadcast": {"ack": true}})).await;
    let anon = server.anon();
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
    for begin in [
        String::new(),
        "GET / HTTP/1.1\r\nhost: x\r\nx-slow: ".to_owned(),
        format!("GET /socket/websocket?apikey={anon} HTTP/1.1\r\nhost: x\r\n{upgrade}"),
        posts("/api/broadcast", &format!("apikey: {anon}\r\ntransfer-encoding: chunked\r\n")) + "ff\r\n{",
    ] {
        until_closed(&mut begun(&server, &begin).await).await;
        honest.ask("den", "broadcast", json!({"event": "e"})).await.ok();
    }
}

/// A head larger than any token needs is refused before it is complete.
#[tokio::test]
async fn request_head_of_megabytes_is_refused() {
    let server = Server::start().await;
    let mut socket = begun(&server, "GET / HTTP/1.1\r\nhost: x\r\nx-large: ").await;
    let (mut reader, mut writer) = socket.split();
    let flood = async {
        for _ in 0..64 {
            if writer.write_all(&[b'x'; 1 << 16]).await.is_err() {
                return;
            }
        }
        panic!("megabytes were taken");
    };
    let mut answer = Vec::new();
    let read = async {
        let _reset = reader.read_to_end(&mut answer).await;
    };
    timeout(PATIENCE, async { tokio::join!(flood, read) }).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

/// A websocket counts as a connection while it is open; its slot is free when it closes.
#[tokio::test]
async fn websockets_count_against_the_connection_limit_of_their_address() {
    let config = api::Config { connections_per_address_max: Some(2), ..api::Config::default() };
    let server = Server::limited(&config, quick()).await;
    let (one, mut two) = (server.joined("den", json!({})).await, server.joined("den", json!({})).await);
    let refused = until_closed(&mut begun(&server, "").await).await;
    assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains("from this address"), "{refused}");
    assert!(server.registry.encode().unwrap().contains("convoke_server_refused_connections_total 1"));
    let elsewhere = TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut elsewhere = elsewhere.connect(server.addr).await.unwrap();
    let ping = b"GET /api/ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    elsewhere.write_all(ping).await.unwrap();
    assert!(until_closed(&mut elsewhere).await.starts_with("HTTP/1.1 200 "));
    assert!(two.so_far().await.is_empty(), "those that are there stay");
    drop(one);
    let free = async {
        loop {
            let mut socket =
                begun(&server, "GET /api/ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            if until_closed(&mut socket).await.starts_with("HTTP/1.1 200 ") {
                return;
            }
        }
    };
    timeout(PATIENCE, free).await.expect("the place of a closed websocket is free");
}

/// A refused handshake counts as a connection during the delay of its response.
#[tokio::test]
async fn refused_handshakes_use_only_the_limit_of_their_address() {
    let server_limits = api::Config { connections_per_address_max: Some(3), ..api::Config::default() };
    let config = Config { handshake_error_delay: Duration::from_secs(600), ..quick() };
    let server = Server::limited(&server_limits, config).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(begun(&server, "GET /socket/websocket?apikey=x HTTP/1.1\r\nhost: x\r\n\r\n").await);
    }
    let refused = until_closed(&mut begun(&server, "").await).await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
}
