//! Memory limits per connection, per org and in total; the largest holders are evicted first.
use super::connect::masked_part;
use crate::{
    realtime::{Message, Server, Socket, quick},
    support::PATIENCE,
};
use convoke::gateway::Config;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{interval, timeout},
};

const MB: usize = 1_000_000;

fn metric(server: &Server, name: &str) -> usize {
    let text = server.registry.encode().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

async fn presence_of(socket: &mut Socket, topic: &str, payload: Value) -> Value {
    let own = socket.push(topic, "presence", json!({"event": "track", "payload": payload})).await;
    loop {
        let got = socket.until("phx_reply").await;
        if got.reference == json!(own) {
            return got.payload;
        }
    }
}

/// Fifty channels with megabytes of presence each: the socket keeps what its limit permits. The others are refused
/// with a reason, and the socket and its channels stay.
#[tokio::test]
async fn presence_memory_of_one_socket_is_bounded() {
    let per_connection = 4 * MB;
    let server = Server::with(Config { memory_bytes_per_connection: per_connection, ..quick() }).await;
    let mut socket = server.v2().await;
    let large = json!({"x": "x".repeat(500_000)});
    let (mut kept, mut refused) = (0, 0);
    for n in 0..12 {
        let topic = format!("t{n}");
        socket.join(&topic, json!({"presence": {"key": "ada"}})).await.ok();
        let answer = presence_of(&mut socket, &topic, large.clone()).await;
        if answer["status"] == "ok" {
            kept += 1;
        } else {
            refused += 1;
            assert!(answer["response"]["reason"].as_str().unwrap().contains("too much memory"), "{answer}");
        }
        assert!(metric(&server, "convoke_hub_memory_bytes") < 2 * per_connection);
    }
    assert_eq!((kept, refused), (3, 9), "each counts where it is kept and where it is enqueued");
    // Untracking frees memory, and other sockets are unaffected all the while.
    socket.ask("t11", "presence", json!({"event": "untrack"})).await.ok();
    socket.push("t0", "presence", json!({"event": "untrack"})).await;
    assert_eq!(presence_of(&mut socket, "t11", large.clone()).await["status"], "ok");
    let mut other = server.joined("den", json!({})).await;
    assert_eq!(presence_of(&mut other, "den", large).await["status"], "ok");
    drop((socket, other));
    let mut look = interval(Duration::from_millis(10));
    let freed = async {
        while metric(&server, "convoke_hub_memory_bytes") > 0 {
            look.tick().await;
        }
    };
    timeout(PATIENCE, freed).await.expect("what sockets held is free when they are gone");
}

/// Fifty channels with a presence key of 60 kB each: a key counts with its join, again with each presence call of a few
/// bytes, and the socket that exceeds its limit is closed.
#[tokio::test]
async fn memory_of_large_presence_keys_is_bounded() {
    const KEY: usize = 60_000;
    let server = Server::with(Config { memory_bytes_per_connection: MB, ..quick() }).await;
    let held = || metric(&server, "convoke_hub_memory_bytes");
    let mut honest = server.joined("den", json!({"broadcast": {"ack": true}})).await;
    let mut socket = server.v2().await;
    let config = json!({"presence": {"key": "k".repeat(KEY)}});
    for n in 0..4 {
        socket.join(&format!("t{n}"), config.clone()).await.ok();
    }
    assert!(held() >= 4 * KEY, "{}", held());
    assert_eq!(presence_of(&mut socket, "t0", json!({})).await["status"], "ok");
    assert!(held() >= 6 * KEY, "{}", held());
    // A channel that joins again replaces its charge, and does not lose it.
    socket.join("t0", config.clone()).await.ok();
    assert!(held() >= 4 * KEY, "{}", held());
    for n in 4..50 {
        let join = json!(["1", "1", format!("realtime:t{n}"), "phx_join", {"config": config}]);
        let _gone = socket.try_message(Message::text(join.to_string())).await;
    }
    assert_eq!(socket.close_code().await, Some(1013));
    honest.ask("den", "broadcast", json!({"event": "e"})).await.ok();
}

/// A large message is read and handled on threads of low priority, and its socket then continues on the others.
#[tokio::test]
async fn large_message_is_handled_at_low_priority() {
    let server = Server::with(quick()).await;
    let mut socket = server.joined("den", json!({"broadcast": {"self": true, "ack": true}})).await;
    for (size, handled) in [(1000, 0), (100_000, 1), (1000, 1), (2_000_000, 2)] {
        let message = json!({"type": "broadcast", "event": "e", "payload": {"x": "x".repeat(size)}});
        socket.push("den", "broadcast", message).await;
        let got = socket.until("broadcast").await;
        assert_eq!(got.payload["payload"]["x"].as_str().unwrap().len(), size);
        assert_eq!(metric(&server, "convoke_gateway_large_messages_total"), handled, "{size}");
    }
}

/// Sockets that send megabytes to themselves and never read: together they stay within the total limit, the largest
/// holders are evicted, and clients that read are unaffected.
#[tokio::test]
async fn sockets_that_hold_the_most_memory_are_evicted_and_readers_stay() {
    const SOCKETS: usize = 8;
    let (all, mut peak) = (24 * MB, 0);
    let config = Config { memory_bytes_max: all, memory_bytes_per_org: all, ..quick() };
    let server = Server::with(config).await;
    let attack = async {
        let mut stalled = Vec::new();
        for n in 0..SOCKETS {
            stalled.push((
                format!("self-{n}"),
                server.joined(&format!("self-{n}"), json!({"broadcast": {"self": true}})).await,
            ));
        }
        let message = json!({"event": "e", "payload": "x".repeat(MB)});
        // One socket after the other exceeds the kernel's buffer, until the first are evicted.
        for _ in 0..13 {
            for (topic, socket) in &mut stalled {
                let own = socket.next_ref();
                let frame = json!([null, own, format!("realtime:{topic}"), "broadcast", message]);
                let _gone = socket.try_message(Message::text(frame.to_string())).await;
                peak = peak.max(server.gateway.memory().state().0);
            }
        }
        stalled
    };
    super::hostile::undisturbed(&server, async { drop(attack.await) }).await;
    assert!(peak < all + 8 * MB, "{peak} bytes were held, {all} may be");
    assert!(metric(&server, "convoke_hub_memory_evictions_total") > 0);
    assert!(server.gateway.memory().state().2, "it is shown on /health");
}

/// Bodies are charged until their request is answered. A body over the limit is 503.
#[tokio::test]
async fn bodies_over_the_memory_limit_are_503_with_retry_after() {
    // Of which the bodies of one address may use a quarter, with four bytes for each of theirs.
    let config = Config { memory_bytes_max: 4 * MB, memory_bytes_per_org: 4 * MB, ..quick() };
    let server = Server::with(config).await;
    let send = async |size: usize| {
        let request = crate::realtime::http().post(server.http("/api/broadcast/den/events/e"));
        let request = request.bearer_auth(server.anon()).header("content-type", "application/octet-stream");
        request.body(vec![b'x'; size]).send().await.unwrap()
    };
    let refused = send(500_000).await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));
    assert_eq!(send(100_000).await.status(), 202);
    assert_eq!(metric(&server, "convoke_hub_memory_bytes"), 0);
}

/// Unfinished messages, and frames that wait for a refused join, are charged. A socket over its limit is closed.
#[tokio::test]
async fn fragments_and_waiting_frames_are_bounded() {
    let config =
        Config { memory_bytes_per_connection: MB, join_error_delay: Duration::from_secs(600), ..quick() };
    let server = Server::with(config).await;
    let mut honest = server.joined("den", json!({"broadcast": {"ack": true}})).await;

    let mut waiting = server.v2().await;
    let message = json!({"event": "e", "payload": "x".repeat(100_000)});
    for n in 0..20 {
        let topic = format!("realtime:t{n}");
        let refused = json!([json!("1"), json!("1"), topic, "phx_join", {"config": {"private": "?"}}]);
        let frame = json!([json!("1"), json!("2"), topic, "broadcast", message]);
        for text in [refused, frame] {
            let _gone = waiting.try_message(Message::text(text.to_string())).await;
        }
    }
    assert_eq!(waiting.close_code().await, Some(1013));

    let part = super::connect::masked_part(0x81, 3 * MB, &vec![b'x'; 2 * MB]);
    assert_eq!(super::connect::raw(&server, &part).await[2..4], 1013_u16.to_be_bytes());
    honest.ask("den", "broadcast", json!({"event": "e"})).await.ok();
}

/// An idle socket keeps its state and no buffer.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn idle_socket_takes_little_memory() {
    const SOCKETS: usize = 300;
    // With the client's side of the socket, which is in this process too.
    const KIB_MAX: usize = 13;
    let server = Server::with(quick()).await;
    let open = async |n: usize| {
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        let request = format!(
            "GET /socket/websocket?apikey={}&vsn=2.0.0 HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            server.anon()
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut socket, b"\r\n\r\n").await;
        let join = json!(["1", "1", format!("realtime:den-{}", n / 10), "phx_join", {"config": {}}]);
        let join = join.to_string();
        socket.write_all(&masked_part(0x81, join.len(), join.as_bytes())).await.unwrap();
        read_until(&mut socket, b"\"status\":\"ok\"").await;
        socket
    };
    // The first sockets fill what all of them share.
    let mut sockets = Vec::with_capacity(2 * SOCKETS);
    for n in 0..SOCKETS / 3 {
        sockets.push(open(n).await);
    }
    let before = resident_kib();
    for n in 0..SOCKETS {
        sockets.push(open(n).await);
    }
    let each = (resident_kib() - before) / SOCKETS;
    assert!(each <= KIB_MAX, "{each} KiB");
}

async fn read_until(socket: &mut TcpStream, end: &[u8]) {
    let mut got = Vec::new();
    while !got.windows(end.len()).any(|window| window == end) {
        got.push(timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap());
    }
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
