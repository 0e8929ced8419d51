//! The Rust client against the real gateway, and against faulty servers.
mod faults;
mod tools;

use crate::realtime::{Server, quick, room};
use crate::support::PATIENCE;
use convoke::{
    client::{
        Backoff, Builder, Channel, Client, Error, Event, Payload, PresenceChange, PresenceSync, Status,
        testing::wait_for_event,
    },
    hub::Message,
    wire::Version,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// A client with short backoff.
pub fn client(server: &Server) -> Builder {
    let url = format!("http://{}", server.addr);
    let backoff = Backoff::new([Duration::from_millis(50)]);
    Client::builder(&url, &server.anon()).unwrap().backoff(backoff)
}

pub async fn until(channel: &Channel, wanted: impl FnMut(&Status) -> bool) -> Status {
    let mut status = channel.status();
    let status = tokio::time::timeout(PATIENCE, status.wait_for(wanted)).await;
    status.expect("the status did not come").unwrap().clone()
}
pub fn subscribed(status: &Status) -> bool {
    matches!(status, Status::Subscribed)
}

#[tokio::test]
async fn both_serializers_exchange_json_and_binary_reaches_2_only() {
    let server = Server::start().await;
    let (old, new) = (client(&server).serializer(Version::V1).start(), client(&server).start());
    let old = old.channel("den").acknowledged().subscribe().await.unwrap();
    let new = new.channel("realtime:den").acknowledged().receive_own().subscribe().await.unwrap();
    let (mut olds, mut news) = (old.broadcasts("*"), new.broadcasts("*"));

    old.broadcast("ping", json!({"n": 1})).await.unwrap();
    let got = wait_for_event(&mut news, PATIENCE, |_| true).await.unwrap();
    assert_eq!((&*got.event, got.json::<Value>().unwrap()), ("ping", json!({"n": 1})));
    new.broadcast("pöng", [1, 2]).await.unwrap();
    new.broadcast_bytes("raw", &b"\xde\xad"[..]).await.unwrap();
    for listener in [&mut olds, &mut news] {
        let got = wait_for_event(listener, PATIENCE, |_| true).await.unwrap();
        assert_eq!((&*got.event, got.json::<Value>().unwrap()), ("pöng", json!([1, 2])));
    }
    let got = wait_for_event(&mut news, PATIENCE, |_| true).await.unwrap();
    assert_eq!(got.payload, Payload::Binary((&b"\xde\xad"[..]).into()));
    assert!(got.json::<Value>().is_err());

    // Names too long for a binary header are sent as text.
    let long = "x".repeat(300);
    new.broadcast(&long, json!("text")).await.unwrap();
    for listener in [&mut olds, &mut news] {
        let got = wait_for_event(listener, PATIENCE, |_| true).await.unwrap();
        assert_eq!((&*got.event, got.json::<Value>().unwrap()), (&*long, json!("text")));
    }
    assert!(matches!(new.broadcast_bytes(&long, "x").await, Err(Error::Payload(_))));
    server.stop().await;
}

#[tokio::test]
async fn http_send_needs_no_subscription() {
    let server = Server::start().await;
    let (listener, sender) = (client(&server).start(), client(&server).start());
    let channel = listener.channel("a/b c").subscribe().await.unwrap();
    let mut heard = channel.broadcasts("*");
    sender.http_send("a/b c", "e v", json!({"n": 1})).await.unwrap();
    let got = wait_for_event(&mut heard, PATIENCE, |_| true).await.unwrap();
    assert_eq!((&*got.event, got.json::<Value>().unwrap()), ("e v", json!({"n": 1})));
    sender.channel("a/b c").build().http_send_bytes("raw", &b"\xff"[..]).await.unwrap();
    assert_eq!(&wait_for_event(&mut heard, PATIENCE, |_| true).await.unwrap().bytes()[..], b"\xff");
    let refused = sender.channel("secret").private().build().http_send("e", 1).await.unwrap_err();
    assert!(matches!(refused, Error::Http { status: Some(403), .. }), "{refused}");
    assert!(!refused.is_temporary());
    server.stop().await;
}

#[tokio::test]
async fn presence_follows_tracks_changes_and_leaves() {
    let server = Server::start().await;
    let ada = client(&server).start().channel("den").presence_key("ada").build();
    let bob = client(&server).start().channel("den").presence_key("bob").build();
    let mut seen = ada.presences();
    ada.subscribe().await.unwrap();
    bob.subscribe().await.unwrap();
    ada.track(json!({"mood": "calm"})).await.unwrap();
    bob.track(json!({"mood": "wild"})).await.unwrap();
    let all = |count| {
        let ada = ada.clone();
        move |_: &_| ada.present().len() == count
    };
    wait_for_event(&mut seen, PATIENCE, all(2)).await.unwrap();
    bob.track(json!({"mood": "tame"})).await.unwrap();
    let is_tame = |change: &PresenceChange| change.changed[0].data["mood"] == "tame";
    let tame = |sync: &Arc<PresenceSync>| sync.joins.iter().any(is_tame);
    let sync = wait_for_event(&mut seen, PATIENCE, tame).await.unwrap();
    assert_eq!((&*sync.joins[0].key, &*sync.leaves[0].key), ("bob", "bob"));
    assert_eq!(sync.leaves[0].changed[0].data["mood"], "wild");
    assert_eq!(ada.present().get("bob").len(), 1);
    bob.untrack().await.unwrap();
    wait_for_event(&mut seen, PATIENCE, all(1)).await.unwrap();
    bob.track(json!({})).await.unwrap();
    wait_for_event(&mut seen, PATIENCE, all(2)).await.unwrap();
    drop(bob);
    wait_for_event(&mut seen, PATIENCE, all(1)).await.unwrap();
    assert!(matches!(ada.track("no object").await, Err(Error::Payload(_))));
    server.stop().await;
}

#[tokio::test]
async fn private_channel_admits_only_permitted_tokens() {
    let server = Server::start().await;
    let anon = client(&server).start();
    let refused = anon.channel("vault").private().subscribe().await.unwrap_err();
    let reason = "Unauthorized: You do not have permissions to read from this Channel topic: vault";
    assert!(matches!(&refused, Error::Refused { reason: told, .. } if told == reason), "{refused}");
    let token = server.token(convoke::auth::Role::ServiceRole);
    anon.set_token(Some(&token)).await.unwrap();
    let vault = anon.channel("vault").private().acknowledged().receive_own().subscribe().await.unwrap();
    let mut heard = vault.broadcasts("e");
    vault.broadcast("e", 1).await.unwrap();
    wait_for_event(&mut heard, PATIENCE, |_| true).await.unwrap();
    vault.http_send("e", 2).await.unwrap();
    wait_for_event(&mut heard, PATIENCE, |_| true).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn expired_token_closes_the_channel_and_a_token_source_keeps_it() {
    let server = Server::start().await;
    let fixed = client(&server).token(server.ending_in(3)).start();
    let tokens = std::sync::Mutex::new(vec![server.ending_in(3600), server.ending_in(3)]);
    let source = move || {
        let mut tokens = tokens.lock().unwrap();
        let token = if tokens.len() > 1 { tokens.pop() } else { tokens.last().cloned() };
        async move { Ok::<_, Error>(token) }
    };
    let renewed = client(&server).token_source(source).start();
    let kept = renewed.channel("den").subscribe().await.unwrap();
    let mut kept_events = kept.events();
    let lost = fixed.channel("den").subscribe().await.unwrap();
    let Status::Closed(why) = until(&lost, |status| matches!(status, Status::Closed(_))).await else {
        panic!()
    };
    assert!(why.to_string().starts_with("channel den is closed: Token has expired"), "{why}");
    let failed = |event: &Event| matches!(event, Event::Status(Status::Failed(_)));
    wait_for_event(&mut kept_events, PATIENCE, failed).await.unwrap();
    until(&kept, subscribed).await;
    server.hub.publish(&room("den"), Message::broadcast("still", &1), None);
    let still = |event: &Event| matches!(event, Event::Broadcast(said) if &*said.event == "still");
    wait_for_event(&mut kept_events, PATIENCE, still).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn many_clients_reconnect_after_a_restart() {
    let server = Server::start().await;
    let clients: Vec<_> = (0..20).map(|_| client(&server).start()).collect();
    let mut channels = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        let channel =
            client.channel("den").presence_key(n.to_string()).acknowledged().subscribe().await.unwrap();
        channel.track(json!({ "n": n })).await.unwrap();
        channels.push(channel);
    }
    let addr = server.addr;
    server.stop().await;
    for channel in &channels {
        until(channel, |status| !subscribed(status)).await;
    }
    let server = Server::on(addr, quick()).await;
    for channel in &channels {
        until(channel, subscribed).await;
    }
    let mut presences = channels[0].presences();
    if channels[0].present().len() < 20 {
        let all = |_: &_| channels[0].present().len() == 20;
        wait_for_event(&mut presences, PATIENCE, all).await.unwrap();
    }
    let mut heard = channels[0].broadcasts("e");
    channels[19].broadcast("e", 1).await.unwrap();
    wait_for_event(&mut heard, PATIENCE, |_| true).await.unwrap();
    for client in clients {
        client.close().await.unwrap();
    }
    server.stop().await;
}
