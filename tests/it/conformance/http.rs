//! Broadcast over HTTP: statements 109 to 128, without row security and the rate limit over time.
use crate::realtime::{Server, http, quick};
use convoke::{
    auth::Role,
    gateway::{Config, limits},
};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

fn post(server: &Server, path: &str, token: &str) -> RequestBuilder {
    http().post(server.http(path)).bearer_auth(token)
}

async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null))
}

async fn batch(server: &Server, body: Value) -> (u16, Value) {
    let request = post(server, "/api/broadcast", &server.anon()).header("content-type", "application/json");
    read(request.body(body.to_string()).send().await.unwrap()).await
}

fn one(topic: &str) -> Value {
    json!({"topic": topic, "event": "ping", "payload": {"n": 1}})
}

/// 109, 110, 114, 119, 127
#[tokio::test]
async fn http_batch_is_delivered_as_text() {
    let server = Server::start().await;
    let mut socket = server.joined("den:7", json!({})).await;
    let path = "/realtime/v1/api/broadcast?apikey=x&vsn=2.0.0";
    let mut with_id = one("den:7");
    with_id["id"] = json!("i1");
    let body = json!({"messages": [one("den:7"), with_id]}).to_string();
    let response = post(&server, path, &server.anon()).body(body).send().await.unwrap();
    for header in ["x-rate-rolling", "x-rate-limit", "x-rate-limit-remaining"] {
        assert!(response.headers().contains_key(header));
    }
    assert_eq!((response.status().as_u16(), response.text().await.unwrap()), (202, String::new()));
    let mut payload = json!({"type": "broadcast", "event": "ping", "payload": {"n": 1}});
    assert_eq!(socket.next().await.short(), json!([null, null, "broadcast", payload]));
    payload["meta"] = json!({"id": "i1"});
    assert_eq!(socket.next().await.payload, payload);
}

/// 111, 112, 113
#[tokio::test]
async fn invalid_http_batch_is_refused_whole_with_errors() {
    let server = Server::start().await;
    let mut socket = server.joined("den", json!({})).await;
    let errors = |errors: Value| (422, json!({"errors": {"messages": errors}}));
    let lacking = json!({"topic": "den", "payload": {}});
    assert_eq!(
        batch(&server, json!({"messages": [lacking, one("den")]})).await,
        errors(json!([{"event": ["can't be blank"]}, {}]))
    );
    for empty in [json!({}), json!({"messages": []})] {
        assert_eq!(batch(&server, empty).await, errors(json!(["can't be blank"])));
    }
    let odd = json!({"topic": "den", "event": "e", "payload": [1]});
    assert_eq!(
        batch(&server, json!({"messages": [odd]})).await,
        errors(json!([{"payload": ["is invalid"]}]))
    );
    let response = post(&server, "/api/broadcast", &server.anon()).body("{").send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(socket.so_far().await.is_empty());
}

/// 115, 124
#[tokio::test]
async fn private_http_messages_need_the_right_to_write() {
    let server = Server::start().await;
    let service = server.token(Role::ServiceRole);
    let mut private = server.v2().await;
    private.join_with("den", json!({"config": {"private": true}, "access_token": service})).await.ok();
    let mut public = server.joined("den", json!({})).await;
    let mut secret = one("den");
    secret["private"] = json!("true");
    assert_eq!(batch(&server, json!({"messages": [secret, one("den")]})).await.0, 202);
    assert_eq!(public.next().await.event, "broadcast", "the permitted part is delivered");
    let path = "/api/broadcast/den/events/e?private=true";
    let denied = read(post(&server, path, &server.anon()).send().await.unwrap()).await;
    assert_eq!(denied, (403, json!({"message": "Unauthorized"})));
    assert!(private.so_far().await.is_empty());
    assert_eq!(post(&server, path, &service).send().await.unwrap().status(), 202);
    private.binary().await;
    assert!(public.so_far().await.is_empty());
}

/// 117, 118
#[tokio::test]
async fn bearer_token_overrides_the_apikey_header() {
    let server = Server::start().await;
    let url = server.http("/api/broadcast/den/events/e");
    let anon = server.anon();
    let status = async |headers: &[(&str, &str)]| {
        let mut request = http().post(&url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send().await.unwrap()).await
    };
    let unauthorized = (401, json!({"message": "Unauthorized"}));
    assert_eq!(status(&[]).await, unauthorized);
    assert_eq!(status(&[("x-api-key", &anon)]).await, unauthorized);
    assert_eq!(status(&[("apikey", &anon)]).await.0, 202);
    assert_eq!(status(&[("authorization", &format!("bEARER {anon}"))]).await.0, 202);
    assert_eq!(status(&[("authorization", "Basic x"), ("apikey", &anon)]).await.0, 202);
    assert_eq!(status(&[("authorization", "Bearer x"), ("apikey", &anon)]).await, unauthorized);
}

/// 120, 121, 122
#[tokio::test]
async fn single_http_message_is_json_or_binary() {
    let server = Server::start().await;
    let mut new = server.joined("den:7", json!({})).await;
    let mut old = server.v1().await;
    old.join("den:7", json!({})).await.ok();
    let send = async |kind: Option<&str>, body: &'static str| {
        let mut request = post(&server, "/api/broadcast/den%3A7/events/ev%2F1", &server.anon());
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        request.body(body).send().await.unwrap().status().as_u16()
    };
    let binary =
        |encoding: u8, data: &[u8]| [&[4, 14, 4, 0, encoding], &b"realtime:den:7ev/1"[..], data].concat();
    for (kind, body, data) in [
        (Some("application/json; charset=utf-8"), r#"{"n" :1}"#, r#"{"n" :1}"#),
        (Some("application/json"), "[1]", r#"{"_json":[1]}"#),
        (Some("application/json"), "", "{}"),
        (None, "ignored", "{}"),
    ] {
        assert_eq!(send(kind, body).await, 202);
        assert_eq!(new.binary().await, binary(1, data.as_bytes()));
        let expected: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            old.next().await.payload,
            json!({"type": "broadcast", "event": "ev/1", "payload": expected})
        );
    }
    for body in ["raw", ""] {
        assert_eq!(send(Some("application/octet-stream"), body).await, 202);
        assert_eq!(new.binary().await, binary(0, body.as_bytes()));
    }
    assert!(old.so_far().await.is_empty());
}

/// 123, 126
#[tokio::test]
async fn unsupported_content_types_and_sizes_are_refused() {
    let server = Server::with(Config { payload_bytes_max: 1000, ..quick() }).await;
    let request = || post(&server, "/api/broadcast/den/events/e", &server.anon());
    let text = "Unsupported Media Type. Use application/json or application/octet-stream";
    let plain = request().header("content-type", "text/plain").body("x").send().await.unwrap();
    assert_eq!(read(plain).await, (415, json!({ "error": text })));
    let large = request()
        .header("content-type", "application/octet-stream")
        .body(vec![0; 1600])
        .send()
        .await
        .unwrap();
    assert_eq!(
        read(large).await,
        (422, json!({"errors": {"payload": ["Payload size exceeds tenant limit"]}}))
    );
}

/// 116
#[tokio::test]
async fn batch_larger_than_the_rate_limit_is_refused() {
    let server =
        Server::with(super::slow(limits::Config { messages_http: 2, ..limits::Config::default() })).await;
    let three = json!({"messages": [one("den"), one("den"), one("den")]});
    let text = "Too many messages to broadcast, please reduce the batch size";
    assert_eq!(batch(&server, three).await, (429, json!({ "message": text })));
}

/// 128
#[tokio::test]
async fn cors_preflight_is_answered() {
    let server = Server::start().await;
    for path in ["/realtime/v1/api/broadcast", "/api/broadcast/den/events/e"] {
        let request = http()
            .request(Method::OPTIONS, server.http(path))
            .header("origin", "https://app.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,apikey,content-type,x-client-info");
        let response = request.send().await.unwrap();
        assert!(response.status().is_success());
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap().to_owned();
        assert!(
            ["authorization", "apikey", "content-type", "x-client-info"].iter().all(|h| allowed.contains(h))
        );
    }
}

/// Responses are JSON. A request that does not accept JSON is refused before anything is sent.
#[tokio::test]
async fn request_that_does_not_accept_json_is_406() {
    let server = Server::start().await;
    let mut socket = server.joined("den", json!({})).await;
    let send = async |accept: &str| {
        let request = post(&server, "/api/broadcast/den/events/e", &server.anon()).header("accept", accept);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(send("text/html").await, 406);
    assert!(socket.so_far().await.is_empty());
    for accept in ["*/*", "text/html, application/json;q=0.9", "application/*"] {
        assert_eq!(send(accept).await, 202);
    }
}
