//! Broadcasting over HTTP: many messages, or one (`reference/realtime-protocol.md` §5).
//!
//! Topics here are without `realtime:`. A body is checked as a whole before anything is
//! sent. Private messages need the right to write in their room: the batch skips what
//! is not permitted, the single endpoint refuses it.
use super::{
    Coordination, Refused as Note,
    handshake::as_json,
    limits::{HttpTooMuch, TooMuch},
    shared::Shared,
};
use crate::{
    access::{self, Asker, Rights},
    auth::Claims,
    hub::{Message, Room},
    id::Topic,
    wire::Encoding,
};
use axum::{
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use tower_http::cors::{Any, CorsLayer};

/// Largest request body.
pub(super) const BODY_BYTES_MAX: usize = 8_000_000;
/// What an envelope may add to the payload limit.
const ENVELOPE_BYTES: usize = 500;
const TOO_LARGE: &str = "Payload size exceeds tenant limit";

/// Browsers ask before they post with our headers.
pub(super) fn cors() -> CorsLayer {
    let headers = ["authorization", "apikey", "content-type", "x-client-info"].map(HeaderName::from_static);
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(headers)
        .max_age(Duration::from_secs(3600))
}

/// `POST /api/broadcast`.
pub(super) async fn batch(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let rate = shared.rates.http_request(Instant::now());
    let outcome = batch_inner(&shared, &headers, body, rate).await;
    // 202 means, in a room with a history, that it is kept.
    shared.hub.settled().await;
    rated(rate, outcome)
}

async fn batch_inner(
    shared: &Shared,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    rate: Requests,
) -> Result<(), Refused> {
    let body = body.map_err(|e| message(e.status(), &e.body_text()))?;
    let body: Value = serde_json::from_slice(&body)
        .map_err(|_| message(StatusCode::BAD_REQUEST, "The body is not valid JSON"))?;
    takes_json(headers)?;
    not_too_often(shared, rate)?;
    let claims = authenticate(shared, headers).await?;
    let bytes_max = shared.config.payload_bytes_max + ENVELOPE_BYTES;
    let outgoing = read_batch(&body, bytes_max).map_err(|errors| {
        refused(StatusCode::UNPROCESSABLE_ENTITY, json!({ "errors": { "messages": errors } }))
    })?;
    let size = outgoing.iter().map(|(_, payload)| payload.len()).sum();
    let count = outgoing.len() as u64;
    shared.rates.http(Instant::now(), count, size, true).map_err(too_much)?;
    let asker = asker(claims, headers);
    let mut known = HashMap::new();
    for (room, payload) in outgoing {
        let may = match known.get(&room) {
            Some(may) => *may,
            None => {
                let may = write(shared, &asker, &room).await.is_ok_and(|rights| rights.broadcast);
                known.insert(room.clone(), may);
                may
            }
        };
        if may && shared.relays(&asker.claims, &room, Coordination::inner(&payload)) {
            publish(shared, &room, Message::relayed(payload));
        } else {
            denied(shared, &room);
        }
    }
    Ok(())
}

fn asker(claims: Claims, headers: &HeaderMap) -> Asker {
    Asker { claims: Arc::new(claims), headers: as_json(headers, |_| true).into() }
}

async fn write(shared: &Shared, asker: &Asker, room: &Room) -> Result<Rights, access::Error> {
    match shared.access.at_once(&asker.claims, room.private).and_then(|grant| grant.write) {
        Some(rights) => Ok(rights),
        None => shared.access.write(asker, &room.topic).await,
    }
}

#[derive(Deserialize)]
pub(super) struct SingleParams {
    private: Option<String>,
}

/// `POST /api/broadcast/{topic}/events/{event}`.
pub(super) async fn single(
    State(shared): State<Arc<Shared>>,
    Path((topic, event)): Path<(String, String)>,
    params: Result<Query<SingleParams>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let rate = shared.rates.http_request(Instant::now());
    let private = params.is_ok_and(|Query(params)| params.private.as_deref() == Some("true"));
    let outcome = match Topic::new(&topic) {
        None => Err(message(StatusCode::NOT_FOUND, "A topic must not be empty")),
        Some(topic) => single_inner(&shared, &headers, body, rate, &Room { topic, private }, &event).await,
    };
    shared.hub.settled().await;
    rated(rate, outcome)
}

async fn single_inner(
    shared: &Shared,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    rate: Requests,
    room: &Room,
    event: &str,
) -> Result<(), Refused> {
    let body = body.map_err(|e| message(e.status(), &e.body_text()))?;
    takes_json(headers)?;
    let (encoding, data) = single_payload(headers, body)?;
    not_too_often(shared, rate)?;
    let claims = authenticate(shared, headers).await?;
    if data.len() > shared.config.payload_bytes_max + ENVELOPE_BYTES {
        let errors = json!({ "errors": { "payload": [TOO_LARGE] } });
        return Err(refused(StatusCode::UNPROCESSABLE_ENTITY, errors));
    }
    let asker = asker(claims, headers);
    let rights = write(shared, &asker, room).await.map_err(not_asked)?;
    if !rights.broadcast {
        denied(shared, room);
        return Err(message(StatusCode::FORBIDDEN, "Unauthorized"));
    }
    let to_agents = Coordination::event(event).filter(|_| encoding == Encoding::Json);
    if !shared.relays(&asker.claims, room, to_agents.map(|event| (event, data.clone()))) {
        denied(shared, room);
        return Err(message(StatusCode::FORBIDDEN, "Unauthorized"));
    }
    shared.rates.http(Instant::now(), 1, data.len(), false).map_err(too_much)?;
    publish(shared, room, Message::user(event, encoding, data, None));
    Ok(())
}

/// The answer when nobody can say whether it is allowed (`reference/realtime-protocol.md` §5.3).
fn not_asked(error: access::Error) -> Refused {
    let (status, text) = match error {
        access::Error::Policy => (StatusCode::UNPROCESSABLE_ENTITY, "RLS policy error"),
        access::Error::Canceled => (StatusCode::UNPROCESSABLE_ENTITY, "Query canceled"),
        access::Error::MissingPartition => (StatusCode::UNPROCESSABLE_ENTITY, "Missing messages partition"),
        access::Error::Unreachable => (StatusCode::UNPROCESSABLE_ENTITY, "Tenant database unavailable"),
        access::Error::TooManyConnections => {
            (StatusCode::UNPROCESSABLE_ENTITY, "Tenant database has too many connections")
        }
        access::Error::Busy => (StatusCode::TOO_MANY_REQUESTS, "Connection pool exhausted"),
    };
    message(status, text)
}

/// Answers are JSON; who says that it cannot take that is told.
fn takes_json(headers: &HeaderMap) -> Result<(), Refused> {
    let Some(accept) = headers.get(header::ACCEPT) else { return Ok(()) };
    let kinds = accept.to_str().unwrap_or_default().split(',');
    let mut kinds = kinds.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    let takes = kinds.any(|kind| matches!(kind, "*/*" | "application/*" | "application/json" | ""));
    if takes { Ok(()) } else { Err(message(StatusCode::NOT_ACCEPTABLE, "The answer is JSON")) }
}

/// Requests a second lately, and how many may be.
type Requests = (u64, u64);

/// The original also counts requests, whatever is in them.
fn not_too_often(shared: &Shared, (rate, limit): Requests) -> Result<(), Refused> {
    let often = shared.rates.cuts_off() && rate >= limit;
    if often { Err(message(StatusCode::TOO_MANY_REQUESTS, "Too many requests")) } else { Ok(()) }
}

fn publish(shared: &Shared, room: &Room, message: Message) {
    let receivers = shared.hub.publish(room, message, None);
    if shared.rates.heard(Instant::now(), receivers) {
        shared.directory.cut(room, None);
    }
}

fn denied(shared: &Shared, room: &Room) {
    let refused = Note::push("http", "unauthorized", "no right to write");
    shared.refused(Some(room), room.topic.as_str(), None, refused);
}

fn too_much(why: HttpTooMuch) -> Refused {
    let (text, retry) = match why {
        HttpTooMuch::Batch => ("Too many messages to broadcast, please reduce the batch size", None),
        HttpTooMuch::Now(retry) => ("You have exceeded your rate limit", retry),
    };
    let mut refused = message(StatusCode::TOO_MANY_REQUESTS, text);
    if let Some(retry) = retry {
        refused.body = json!({ "message": text, "code": "rate_limited", "retry_after_ms": retry.millis() });
        refused.retry = Some(retry);
    }
    refused
}

fn single_payload(headers: &HeaderMap, body: Bytes) -> Result<(Encoding, Bytes), Refused> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return Ok((Encoding::Json, Bytes::from_static(b"{}")));
    };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/octet-stream") {
        return Ok((Encoding::Binary, body));
    }
    if !kind.eq_ignore_ascii_case("application/json") {
        let text = "Unsupported Media Type. Use application/json or application/octet-stream";
        return Err(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, json!({ "error": text })));
    }
    if body.is_empty() {
        return Ok((Encoding::Json, Bytes::from_static(b"{}")));
    }
    if !crate::wire::is_json(&body) {
        return Err(message(StatusCode::BAD_REQUEST, "The body is not valid JSON"));
    }
    if crate::wire::is_object(&body) {
        return Ok((Encoding::Json, body));
    }
    let wrapped = [b"{\"_json\":", &body[..], b"}"].concat();
    Ok((Encoding::Json, wrapped.into()))
}

/// The rooms and payloads of a batch, or one entry of errors a message.
fn read_batch(body: &Value, bytes_max: usize) -> Result<Vec<(Room, Bytes)>, Value> {
    let messages = match body.get("messages") {
        None | Some(Value::Null) => return Err(json!(["can't be blank"])),
        Some(Value::Array(messages)) if messages.is_empty() => return Err(json!(["can't be blank"])),
        Some(Value::Array(messages)) if messages.iter().all(Value::is_object) => messages,
        Some(_) => return Err(json!(["is invalid"])),
    };
    let read: Vec<_> = messages.iter().map(|message| read_message(message, bytes_max)).collect();
    if read.iter().any(Result::is_err) {
        return Err(read.into_iter().map(|outcome| outcome.err().map_or(json!({}), Value::Object)).collect());
    }
    Ok(read.into_iter().flatten().collect())
}

fn read_message(message: &Value, bytes_max: usize) -> Result<(Room, Bytes), Map<String, Value>> {
    let mut errors = Map::new();
    let mut wrong = |member: &str, text: &str| errors.insert(member.to_owned(), json!([text]));
    let mut name = |member: &str| match message.get(member) {
        Some(Value::String(text)) if !text.trim().is_empty() => Some(text.clone()),
        None | Some(Value::Null | Value::String(_)) => {
            wrong(member, "can't be blank");
            None
        }
        Some(_) => {
            wrong(member, "is invalid");
            None
        }
    };
    let (topic, event) = (name("topic"), name("event"));
    let private = match message.get("private") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(Value::String(text)) if text == "true" || text == "1" => true,
        Some(Value::String(text)) if text == "false" || text == "0" => false,
        Some(_) => {
            wrong("private", "is invalid");
            false
        }
    };
    let payload = match message.get("payload") {
        None | Some(Value::Null) => {
            wrong("payload", "can't be blank");
            None
        }
        Some(payload @ Value::Object(_)) => Some(payload),
        Some(_) => {
            wrong("payload", "is invalid");
            None
        }
    };
    let mut object = json!({ "type": "broadcast", "event": event, "payload": payload });
    if let (Some(id @ Value::String(_)), Some(object)) = (message.get("id"), object.as_object_mut()) {
        object.insert("meta".to_owned(), json!({ "id": id }));
    }
    let object = object.to_string();
    if object.len() > bytes_max {
        wrong("payload", TOO_LARGE);
    }
    match topic.as_deref().and_then(Topic::new) {
        Some(topic) if errors.is_empty() => Ok((Room { topic, private }, object.into())),
        _ => Err(errors),
    }
}

/// A bearer token, else the `apikey` header.
async fn authenticate(shared: &Shared, headers: &HeaderMap) -> Result<Claims, Refused> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    let token = bearer.or_else(|| text("apikey")).unwrap_or_default();
    shared.verify(token).await.map_err(|_| message(StatusCode::UNAUTHORIZED, "Unauthorized"))
}

/// An answer other than 202.
struct Refused {
    status: StatusCode,
    body: Value,
    retry: Option<TooMuch>,
}

fn refused(status: StatusCode, body: Value) -> Refused {
    Refused { status, body, retry: None }
}

fn message(status: StatusCode, text: &str) -> Refused {
    refused(status, json!({ "message": text }))
}

fn rated((rate, limit): Requests, outcome: Result<(), Refused>) -> Response {
    let headers = [
        ("x-rate-rolling", rate.to_string()),
        ("x-rate-limit", limit.to_string()),
        ("x-rate-limit-remaining", limit.saturating_sub(rate).to_string()),
    ];
    let response = match outcome {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(Refused { status, body, retry }) => {
            let mut response = (status, axum::Json(body)).into_response();
            if let Some(TooMuch(wait)) = retry {
                response.headers_mut().insert(header::RETRY_AFTER, (wait.as_secs() + 1).into());
            }
            response
        }
    };
    (headers, response).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_message_rejects_the_batch_and_each_says_what_is_wrong() {
        let good = json!({"topic": "den", "event": "ping", "payload": {}});
        let errors = |messages: Value| read_batch(&json!({ "messages": messages }), 1000).unwrap_err();
        assert_eq!(
            errors(
                json!([good, {"topic": "den", "payload": 1}, {"topic": 1, "event": "", "payload": {}, "private": 2}])
            ),
            json!([
                {},
                {"event": ["can't be blank"], "payload": ["is invalid"]},
                {"topic": ["is invalid"], "event": ["can't be blank"], "private": ["is invalid"]},
            ])
        );
        assert_eq!(errors(json!([])), json!(["can't be blank"]));
        assert_eq!(errors(json!([1])), json!(["is invalid"]));
        assert_eq!(read_batch(&json!({}), 1000).unwrap_err(), json!(["can't be blank"]));
        let large = json!([{"topic": "t", "event": "e", "payload": {"x": "y".repeat(1000)}}]);
        assert_eq!(errors(large), json!([{ "payload": [TOO_LARGE] }]));
    }

    #[test]
    fn an_id_becomes_meta() {
        let body =
            json!({"messages": [{"topic": "t", "event": "e", "payload": {}, "id": "7", "private": "1"}]});
        let read = read_batch(&body, 1000).unwrap();
        assert!(read[0].0.private);
        let object: Value = serde_json::from_slice(&read[0].1).unwrap();
        assert_eq!(object["meta"]["id"], "7");
    }
}
