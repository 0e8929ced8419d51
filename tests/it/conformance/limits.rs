//! Rate limits: as in Supabase Realtime (statements 65, 108, 146 and related ones), and Convoke's own throttle.
use super::{slow, supabase};
use crate::realtime::{Server, UPGRADE, get, http};
use convoke::gateway::{
    Config,
    limits::{self, Supabase},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

/// Supabase Realtime averages whole buckets of five seconds: a test that retries this often meets the next bucket.
const AGAIN: Duration = Duration::from_millis(50);

fn ack() -> Value {
    json!({"broadcast": {"ack": true}})
}

/// 65
#[tokio::test]
async fn supabase_mode_closes_the_socket_after_too_many_joins() {
    let server = Server::with(supabase(Supabase { joins_per_second: 2, ..Supabase::default() })).await;
    let mut socket = server.v2().await;
    let refused = loop {
        let reply = socket.join("den", json!({})).await;
        if reply.payload["status"] == "error" {
            break reply;
        }
        let own = reply.join_ref;
        socket.send(own.clone(), own, "realtime:den", "phx_leave", json!({})).await;
        socket.until("phx_close").await;
        sleep(AGAIN).await;
    };
    assert_eq!(refused.reason(), "ClientJoinRateLimitReached: Too many joins per second");
    assert_eq!(socket.close_code().await, Some(1001));
    let url = server.http(&format!("/socket/websocket?apikey={}", server.anon()));
    let (status, _, body) = get(&url, &UPGRADE).await;
    assert_eq!((status, body.as_str()), (429, r#"{"error":"Too many joins per second"}"#));
}

/// 108
#[tokio::test]
async fn supabase_mode_ends_receiving_channels_after_too_many_messages() {
    let server = Server::with(supabase(Supabase { events_per_second: 2, ..Supabase::default() })).await;
    let (mut sender, mut receiver) =
        (server.joined("den", json!({})).await, server.joined("den", json!({})).await);
    receiver.join("other", json!({})).await.ok();
    let mut received = 0;
    let system = loop {
        sender.push("den", "broadcast", json!({"event": "e"})).await;
        let got = receiver.next().await;
        if got.event == "system" {
            break got;
        }
        received += 1;
        sleep(AGAIN).await;
    };
    assert!(received > 5, "the one that was too many was still heard");
    let text = "Too many messages per second";
    assert_eq!(
        system.payload,
        json!({"extension": "system", "status": "error", "message": text, "channel": "den"})
    );
    assert_eq!(receiver.until("phx_close").await.topic, "realtime:den");
    receiver.ask("other", "presence", json!({"event": "untrack"})).await.ok();
    assert!(sender.so_far().await.is_empty(), "who hears nothing is not ended");
    let response = http().post(server.http("/api/broadcast/den/events/e")).bearer_auth(server.anon());
    let response = response.send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.text().await.unwrap(), r#"{"message":"You have exceeded your rate limit"}"#);
}

/// Presence of all sockets together, as in Supabase Realtime.
#[tokio::test]
async fn supabase_mode_ends_the_channel_after_too_much_presence() {
    let calls = Supabase { presence_per_second: 2, presence_calls: 100_000, ..Supabase::default() };
    let server = Server::with(supabase(calls)).await;
    let mut socket = server.joined("den", json!({})).await;
    let mut n = 0;
    let system = loop {
        n += 1;
        socket.track("den", json!({ "n": n })).await;
        let got = socket.next().await;
        if got.event == "system" {
            break got;
        }
        sleep(AGAIN).await;
    };
    assert_eq!(system.payload["message"], "Too many presence messages per second");
    assert_eq!(socket.until("phx_close").await.topic, "realtime:den");
}

/// Convoke's throttle refuses excess broadcasts with the time to wait; the channel stays.
#[tokio::test]
async fn throttled_broadcast_is_refused_with_retry_time_and_passes_later() {
    let server =
        Server::with(slow(limits::Config { messages_per_channel: 5, ..limits::Config::default() })).await;
    let mut receiver = server.joined("den", json!({})).await;
    let mut sender = server.joined("den", ack()).await;
    sender.join("other", ack()).await.ok();
    let (mut passed, mut refused) = (0, 0);
    while passed < 12 {
        let reply = sender.ask("den", "broadcast", json!({"event": "e", "n": passed})).await;
        if reply.payload["status"] == "ok" {
            passed += 1;
            continue;
        }
        refused += 1;
        assert_eq!(reply.reason(), "rate_limited");
        let wait = reply.payload["response"]["retry_after_ms"].as_u64().unwrap();
        assert!((1..=1000).contains(&wait), "{wait}");
        sender.ask("other", "broadcast", json!({"event": "e"})).await.ok();
        sleep(Duration::from_millis(wait)).await;
    }
    assert!(refused > 0);
    for n in 0..passed {
        assert_eq!(receiver.next().await.payload["n"], n, "what passed arrived, what was refused did not");
    }
    assert!(receiver.so_far().await.is_empty());
}

/// Without `ack`, refusals are reported by system messages: the first at once, later ones coalesced.
#[tokio::test]
async fn refusals_without_ack_are_reported_in_coalesced_notices() {
    let server =
        Server::with(slow(limits::Config { messages_per_channel: 5, ..limits::Config::default() })).await;
    let mut sender = server.joined("den", json!({})).await;
    let mut receiver = server.joined("den", json!({})).await;
    for n in 0..100 {
        sender.push("den", "broadcast", json!({"event": "e", "n": n})).await;
    }
    let (mut refused, mut notices) = (0, 0);
    // The number that passes depends on their speed.
    let mut passed = 0;
    while refused + passed < 100 {
        let got = sender.until("system").await;
        assert_eq!(got.payload["channel"], "den");
        assert!(got.payload["message"].as_str().unwrap().starts_with("rate_limited: "), "{got:?}");
        assert!(got.payload["retry_after_ms"].as_u64().unwrap() > 0);
        refused += got.payload["refused"].as_u64().unwrap();
        notices += 1;
        passed += receiver.so_far().await.len() as u64;
    }
    assert_eq!(refused + passed, 100, "each is answered once");
    assert!(notices < 10, "{notices} notices of {refused} refusals");
    sender.ask("den", "presence", json!({"event": "untrack"})).await.ok();
}

/// The rate limit of bytes is per socket.
#[tokio::test]
async fn bytes_have_their_own_rate_limit() {
    let config = limits::Config { bytes_per_connection: 10_000, ..limits::Config::default() };
    let server = Server::with(slow(config)).await;
    let mut sender = server.joined("den", ack()).await;
    let large = json!({"event": "e", "payload": "x".repeat(30_000)});
    sender.ask("den", "broadcast", large.clone()).await.ok();
    assert_eq!(sender.ask("den", "broadcast", large.clone()).await.reason(), "rate_limited");
    server.joined("den", ack()).await.ask("den", "broadcast", large.clone()).await.ok();
    assert_eq!(sender.next().await.payload, large, "another socket is not concerned");
    // Presence counts against the limit of bytes, too.
    let track = json!({"event": "track", "payload": {"x": "y".repeat(30_000)}});
    assert_eq!(sender.ask("den", "presence", track).await.reason(), "rate_limited");
    // A presence key is part of each diff, so it counts with each call.
    let mut keyed = server.joined("den", json!({"presence": {"key": "k".repeat(30_000)}})).await;
    keyed.push("den", "presence", json!({"event": "track", "payload": {}})).await;
    keyed.until("phx_reply").await.ok();
    keyed.push("den", "presence", json!({"event": "track", "payload": {}})).await;
    assert_eq!(keyed.until("phx_reply").await.reason(), "rate_limited");
}

/// Excess presence calls are coalesced: each is answered with ok, and the last meta is published.
#[tokio::test]
async fn excess_presence_calls_are_coalesced_to_the_last() {
    let config = limits::Config { presence_per_channel: 2, ..limits::Config::default() };
    let server = Server::with(slow(config)).await;
    let mut watcher = server.joined("den", json!({})).await;
    let mut busy = server.joined("den", json!({"presence": {"key": "busy"}})).await;
    for n in 0..100 {
        busy.track("den", json!({ "n": n })).await;
    }
    let mut answered = 0;
    while answered < 100 {
        let reply = busy.until("phx_reply").await;
        reply.ok();
        answered += 1;
    }
    let mut received = 0;
    loop {
        let diff = watcher.until("presence_diff").await;
        received += 1;
        if diff.payload["joins"]["busy"]["metas"][0]["n"] == 99 {
            break;
        }
    }
    assert!(received < 20, "{received} differences");
    busy.push("den", "presence", json!({"event": "untrack"})).await;
    assert!(watcher.until("presence_diff").await.payload["leaves"]["busy"].is_object());
}

/// A left channel drops its delayed presence.
#[tokio::test]
async fn left_channel_drops_its_delayed_presence() {
    let config = limits::Config { presence_per_channel: 1, ..limits::Config::default() };
    let server = Server::with(slow(config)).await;
    let mut socket = server.joined("den", json!({"presence": {"key": "k"}})).await;
    for n in 0..5 {
        socket.track("den", json!({ "n": n })).await;
    }
    socket.send(json!("1"), json!("x"), "realtime:den", "phx_leave", json!({})).await;
    socket.until("phx_close").await;
    socket.join("den", json!({"presence": {"key": "k", "enabled": true}})).await.ok();
    assert_eq!(socket.until("presence_state").await.payload, json!({}));
}

/// Throttled joins wait and succeed. Only a join that would wait too long is refused, with the time to wait.
#[tokio::test]
async fn throttled_joins_wait_and_heartbeats_do_not() {
    let config = limits::Config { joins_total: 20, ..limits::Config::default() };
    let server = Server::with(Config { channels_max: 1000, ..slow(config) }).await;
    let mut socket = server.v2().await;
    for n in 0..40 {
        let own = json!(n.to_string());
        socket.send(own.clone(), own, &format!("realtime:t{n}"), "phx_join", json!({"config": {}})).await;
    }
    let before = socket.so_far().await.len();
    assert!((20..40).contains(&before), "{before} were answered before the heartbeat");
    for _ in before..40 {
        socket.next().await.ok();
    }
    for n in 40..300 {
        let own = json!(n.to_string());
        socket.send(own.clone(), own, &format!("realtime:t{n}"), "phx_join", json!({"config": {}})).await;
    }
    let refused = loop {
        let got = socket.next().await;
        if got.payload["status"] == "error" {
            break got;
        }
    };
    assert_eq!(refused.reason(), "rate_limited");
    assert!(refused.payload["response"]["retry_after_ms"].as_u64().unwrap() >= 4000);
}

/// A throttled HTTP response carries the time to wait in a header and in the body.
#[tokio::test]
async fn throttled_http_request_has_retry_after() {
    let server = Server::with(slow(limits::Config { messages_http: 3, ..limits::Config::default() })).await;
    let send = async || {
        let request = http().post(server.http("/api/broadcast/den/events/e")).bearer_auth(server.anon());
        request.send().await.unwrap()
    };
    let refused = loop {
        let response = send().await;
        if response.status() == 429 {
            break response;
        }
        assert_eq!(response.status(), 202);
    };
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.headers()["x-rate-limit"], "3");
    let body: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert_eq!(
        (&body["message"], &body["code"]),
        (&json!("You have exceeded your rate limit"), &json!("rate_limited"))
    );
    sleep(Duration::from_millis(body["retry_after_ms"].as_u64().unwrap())).await;
    assert_eq!(send().await.status(), 202);
}

/// A flood is throttled by reading slowly. The socket stays, and others are not affected.
#[tokio::test]
async fn flood_is_slowed_by_backpressure_on_reading() {
    let config = limits::Config { frames_per_connection: 1000, ..limits::Config::default() };
    let server = Server::with(slow(config)).await;
    let mut flood = server.v2().await;
    let start = tokio::time::Instant::now();
    for _ in 0..3000 {
        flood.message("rubbish").await;
    }
    assert!(flood.so_far().await.is_empty());
    // The burst of one second, and the frames of one read, do not wait.
    assert!(start.elapsed() >= Duration::from_millis(500));
}
