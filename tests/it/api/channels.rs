//! `/v1/channels`: members, traffic and rejections.
use super::{As, Edge};
use crate::realtime::Socket;

use serde_json::json;

impl Edge {
    async fn socket(&self, who: As) -> Socket {
        let key = self.token(who).unwrap();
        Socket::open(&format!("ws://{}/realtime/v1/websocket?apikey={key}&vsn=2.0.0", self.parts.addr), true)
            .await
    }
}

#[tokio::test]
async fn service_sees_members_traffic_and_rejections_of_a_channel() {
    let edge = Edge::start().await;
    let mut anon = edge.socket(As::Anon).await;
    let config = json!({"broadcast": {"ack": true}, "presence": {"key": "ada"}});
    anon.join("chat:a/b", config).await.ok();
    let mut agent = edge.socket(As::Agent("near", "demo")).await;
    agent.join("chat:a/b", json!({})).await.ok();
    for n in 0..3 {
        anon.ask("chat:a/b", "broadcast", json!({"event": "e", "n": n})).await.ok();
    }
    anon.ask("chat:a/b", "broadcast", json!([])).await.reason();
    agent.push("chat:a/b", "broadcast", json!([])).await;
    agent.push("chat:a/b", "dance", json!({})).await;
    agent.so_far().await;

    let (status, look) = edge.get(As::Service, "/v1/channels/chat%3Aa%2Fb").await;
    assert_eq!(status, 200, "{look}");
    assert_eq!(look["topic"], "chat:a/b");
    let room = &look["rooms"][0];
    assert_eq!((&room["private"], &room["member_count"]), (&json!(false), &json!(2)));
    let members = room["members"].as_array().unwrap();
    assert_eq!((&members[0]["role"], &members[0]["presence_key"]), (&json!("anon"), &json!("ada")));
    assert_eq!((&members[1]["role"], &members[1]["agent"]), (&json!("authenticated"), &json!("near")));
    assert!(members[0]["joined_at"].is_string() && members[0]["connection"].is_u64());
    assert_eq!((&room["total"]["messages_in"], &room["total"]["messages_out"]), (&json!(3.0), &json!(3.0)));
    assert!(room["total"]["bytes_out"].as_f64() > room["total"]["bytes_in"].as_f64());
    assert!(room["per_second"]["messages_in"].as_f64().unwrap() > 0.0);
    let refusals = room["refusals"].as_array().unwrap();
    let short: Vec<_> =
        refusals.iter().map(|it| json!([it["event"], it["code"], it["connection"]])).collect();
    let (one, two) = (&members[0]["connection"], &members[1]["connection"]);
    assert_eq!(
        short,
        [
            json!(["push", "unknown_event", two]),
            json!(["broadcast", "not_an_object", two]),
            json!(["broadcast", "not_an_object", one]),
        ]
    );
    assert!(refusals.iter().all(|it| it["at"].is_string() && it["reason"].is_string()));

    let (_, list) = edge.get(As::Service, "/v1/channels?prefix=chat:").await;
    assert_eq!(list["total"], 1);
    assert_eq!(
        (&list["channels"][0]["topic"], &list["channels"][0]["public_members"]),
        (&json!("chat:a/b"), &json!(2))
    );
    edge.stop().await;
}

#[tokio::test]
async fn refused_join_is_visible_on_a_channel_without_members() {
    let edge = Edge::start().await;
    let mut socket = edge.socket(As::Anon).await;
    let own = json!("1");
    // The reply is delayed by seconds; the rejection is visible at once.
    socket.send(own.clone(), own, "realtime:vault", "phx_join", json!({"config": {"private": "yes"}})).await;
    socket.so_far().await;
    let (status, look) = edge.get(As::Service, "/v1/channels/vault").await;
    assert_eq!((status, &look["rooms"]), (200, &json!([])));
    let refusal = &look["refusals"][0];
    assert_eq!((&refusal["event"], &refusal["code"]), (&json!("phx_join"), &json!("UnknownErrorOnChannel")));
    assert_eq!(refusal["reason"], "UnknownErrorOnChannel: config.private must be true or false");
    edge.stop().await;
}

#[tokio::test]
async fn only_the_service_sees_channels_and_bad_parameters_are_explained() {
    let edge = Edge::start().await;
    for who in [As::Agent("near", "demo"), As::User("demo"), As::Anon] {
        for path in ["/v1/channels", "/v1/channels/den"] {
            assert_eq!(edge.get(who, path).await.0, 403);
        }
    }
    assert_eq!(edge.get(As::NoToken, "/v1/channels").await.0, 401);
    for (path, status, word) in [
        ("/v1/channels/empty", 404, "has no members and no recent rejections"),
        ("/v1/channels?limit=0", 400, "limit must be 1 to 1000"),
        ("/v1/channels/den?limit=x", 400, "limit"),
        ("/v1/channels?lmit=3", 400, "lmit"),
    ] {
        let (got, body) = edge.get(As::Service, path).await;
        assert_eq!(got, status, "{path}: {body}");
        assert!(body["detail"].as_str().unwrap().contains(word), "{path}: {body}");
    }
    edge.stop().await;
}
