//! Clients that send garbage, flood, stall or fill memory do not disturb others.
use crate::realtime::{Message, Server, Socket, UPGRADE, quick};
use convoke::gateway::Config;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Runs two clients that exchange messages during `attack`. None of their messages may be lost, late or
/// reordered, and they may receive nothing else.
pub(super) async fn undisturbed(server: &Server, attack: impl Future<Output = ()>) {
    const TIMES: u64 = 100;
    let mut one = server.joined("peace", json!({"broadcast": {"ack": true}})).await;
    let mut two = server.joined("peace", json!({"broadcast": {"ack": true}})).await;
    let over = AtomicBool::new(false);
    let talk = async {
        let mut n = 0;
        while n < TIMES || !over.load(Ordering::Acquire) {
            one.ask("peace", "broadcast", json!({"event": "e", "n": n})).await.ok();
            assert_eq!(two.next().await.payload["n"], n);
            two.ask("peace", "broadcast", json!({"event": "e", "n": n})).await.ok();
            assert_eq!(one.next().await.payload["n"], n);
            n += 1;
            tokio::task::yield_now().await;
        }
    };
    let attack = async {
        attack.await;
        over.store(true, Ordering::Release);
    };
    tokio::join!(talk, attack);
    assert!(one.so_far().await.is_empty() && two.so_far().await.is_empty());
}

/// Pseudo-random bytes, the same in every run.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[0]
    };
    (0..size).map(|_| next()).collect()
}

#[tokio::test]
async fn garbage_does_not_disturb_other_clients() {
    let server = Server::start().await;
    let attack = async {
        let mut socket = server.joined("peace?", json!({})).await;
        for n in 0..500 {
            socket.message(Message::binary(noise(n, (n % 200) as usize))).await;
            let text: String =
                noise(n, (n % 100) as usize).into_iter().map(|b| char::from(b % 95 + 32)).collect();
            socket.message(text).await;
            socket
                .message(format!(r#"["1","{n}","realtime:peace?","presence",{{"event":{n},"payload":[]}}]"#))
                .await;
        }
        // The socket still works.
        socket.so_far().await;
        socket.ask("peace?", "presence", json!({"event": "untrack"})).await.ok();
        for seed in 0..20 {
            let mut raw = TcpStream::connect(server.addr).await.unwrap();
            let headers: Vec<_> =
                UPGRADE.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let path = format!("/socket/websocket?apikey={}&vsn=2.0.0", server.anon());
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{}\r\n", headers.concat());
            raw.write_all(request.as_bytes()).await.unwrap();
            // The server may close the connection meanwhile.
            let _ = raw.write_all(&noise(seed, 100_000)).await;
        }
    };
    undisturbed(&server, attack).await;
}

#[tokio::test]
async fn flood_of_broadcasts_does_not_disturb_other_clients() {
    let server = Server::start().await;
    let attack = async {
        let mut sockets = Vec::new();
        for _ in 0..3 {
            sockets.push(server.joined("flood", json!({"broadcast": {"self": true}})).await);
        }
        for n in 0..3000 {
            for socket in &mut sockets {
                socket.push("flood", "broadcast", json!({"event": "e", "n": n})).await;
            }
        }
    };
    undisturbed(&server, attack).await;
}

/// Readers that never read are closed with 4008, and publishers do not wait for them.
#[tokio::test]
async fn stalled_readers_do_not_disturb_other_clients() {
    let server = Server::with(Config { outbox_bytes_max: 200_000, ..quick() }).await;
    let attack = async {
        let mut stalled: Vec<Socket> = Vec::new();
        for _ in 0..10 {
            stalled.push(server.joined("stall", json!({})).await);
        }
        let mut sender = server.joined("stall", json!({"broadcast": {"ack": true}})).await;
        let payload = json!({"event": "e", "payload": "x".repeat(100_000)});
        while !server.registry.encode().unwrap().contains("hub_slow_disconnects_total 10") {
            sender.ask("stall", "broadcast", payload.clone()).await.ok();
        }
        for mut socket in stalled {
            assert_eq!(socket.close_code().await, Some(4008));
        }
    };
    undisturbed(&server, attack).await;
}

#[tokio::test]
async fn ten_thousand_channels_do_not_disturb_other_clients() {
    let server = Server::start().await;
    let attack = async {
        let mut socket = server.v2().await;
        let (mut ok, mut refused) = (0, 0);
        for round in 0..100 {
            for n in 0..100 {
                let own = json!(format!("{round}.{n}"));
                let topic = format!("realtime:t{round}.{n}");
                socket.send(own.clone(), own, &topic, "phx_join", json!({"config": {}})).await;
            }
            for got in socket.so_far().await {
                if got.payload["status"] == "ok" { ok += 1 } else { refused += 1 }
            }
        }
        assert_eq!(ok, 100, "as many as a socket may have");
        assert!(refused > 9000, "{refused} of the others were told so at once");
    };
    undisturbed(&server, attack).await;
}

/// Messages of the maximum size, and one above it.
#[tokio::test]
async fn five_megabyte_messages_do_not_disturb_other_clients() {
    let server = Server::start().await;
    let attack = async {
        let mut socket = server.joined("big", json!({"broadcast": {"ack": true}})).await;
        for _ in 0..5 {
            let payload = json!({"event": "e", "payload": "x".repeat(4_900_000)});
            let reply = socket.ask("big", "broadcast", payload).await;
            assert!(reply.payload["status"] == "error");
        }
        socket.message("x".repeat(5_000_001)).await;
        assert_eq!(socket.close_code().await, Some(1009));
    };
    undisturbed(&server, attack).await;
}

/// Topics, refs, events, keys and tokens of megabytes are not stored.
#[tokio::test]
async fn names_of_megabytes_are_not_stored() {
    let server = Server::start().await;
    let attack = async {
        let mut socket = server.joined("den", json!({})).await;
        let long = "x".repeat(1_000_000);
        for frame in [
            json!(["1", "1", format!("realtime:{long}"), "phx_join", {"config": {}}]),
            json!([long, "1", "realtime:a", "phx_join", {"config": {}}]),
            json!(["1", long, "realtime:den", "presence", {"event": "untrack"}]),
            json!(["1", "1", "realtime:den", long, {}]),
        ] {
            socket.message(frame.to_string()).await;
        }
        assert!(socket.so_far().await.is_empty());
        let reply = socket.join("a", json!({"presence": {"key": long}})).await;
        assert!(reply.reason().contains("phx_join is larger than 65536 bytes"), "{reply:?}");
        let token = socket.ask("den", "access_token", json!({"access_token": long})).await;
        assert!(token.reason().contains("access_token is larger than"), "{token:?}");
        assert!(server.registry.encode().unwrap().contains("gateway_frames_dropped_total 4"));
    };
    undisturbed(&server, attack).await;
}
